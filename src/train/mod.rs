//! Training: the step graph, the loop, the run's folder and what is written into it.

use std::sync::Arc;

use epl_runtime::Device;

use crate::Result;
use crate::config::Config;
use crate::data::{self, Dataset};
use crate::eval::pairs::PairSet;

pub mod epoch;
pub mod events;
pub mod folder;
pub mod histogram;
pub mod metrics;
pub mod plan;
pub mod prototypes;
pub mod sheet;
pub mod step;
pub mod summary;
pub mod tensorboard;
pub mod trainer;

pub use events::{Console, Observer, Silent};
pub use folder::RunFolder;
pub use trainer::{Outcome, Trainer};

/// Trains as `config` says, from opening the data to writing the report.
pub fn run(config: Config, device: &Arc<Device>, observer: &mut dyn Observer) -> Result<Outcome> {
    config.validate()?;
    let options = data::Options {
        size: config.model.input,
        resize: config.data.resize,
        num_classes: config.data.num_classes,
    };
    let dataset: Arc<dyn Dataset> = data::open(&config.data.train, &options)?.into();
    let sets =
        config.train.eval.iter().map(|path| PairSet::open_bin(path)).collect::<Result<Vec<PairSet>>>()?;
    run_on(config, device, dataset, sets, false, observer)
}

/// Trains on an opened dataset, evaluates on opened sets, and writes the run's folder; with `replace` in the place of a
/// finished run on the same data (see [`RunFolder::create`]).
pub fn run_on(
    config: Config,
    device: &Arc<Device>,
    dataset: Arc<dyn Dataset>,
    sets: Vec<PairSet>,
    replace: bool,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    // The model comes first: whatever is wrong with the configuration leaves no folder behind,
    // and the run that is to be replaced as it was.
    let (mut trainer, left) = Trainer::new(config, device, dataset, sets)?;
    let config = trainer.config().clone();
    let mut folder = RunFolder::create(&config, replace)?;
    if !left.is_empty() {
        observer.message(&format!("not in the weights given, so started anew: {}", left.join(", ")));
    }
    if let Some(warning) = folder.take_warning() {
        observer.message(&warning);
    }
    let outcome = trainer.run(&mut folder, observer)?;
    summary::report(&config, &trainer, &folder, &outcome)?.write(&folder.report_path())?;
    Ok(outcome)
}
