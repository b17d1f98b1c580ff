//! Training: the step graph, the loop, the run's folder and what is written into it.

use std::sync::Arc;
use std::time::Instant;

use epl_runtime::Device;

use crate::config::Config;
use crate::data::{self, Dataset};
use crate::eval::pairs::PairSet;
use crate::{Error, Result};

pub mod batch;
pub mod epoch;
pub mod events;
pub mod folder;
pub mod histogram;
pub mod kernels;
pub mod measure;
pub mod metrics;
mod nonfinite;
pub mod plan;
mod progress;
pub mod prototypes;
mod recovery;
pub mod run;
pub mod sheet;
pub mod stall;
pub mod start;
pub mod state;
pub mod step;
pub mod summary;
pub mod tensorboard;
pub mod trainer;
mod trial;

pub use events::{Console, Observer, Silent};
pub use folder::RunFolder;
use recovery::train;
use start::StartClock;

pub use run::{Outcome, Stop};
pub use start::StartSeconds;
pub use trainer::Trainer;

/// How a run begins and ends.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Go on from the newest checkpoint that is whole, if there is one.
    pub resume: bool,
    /// Take the place of a finished run on the same data (see [`RunFolder::create`]).
    pub replace: bool,
    /// What asks the run to stop.
    pub stop: Stop,
    /// When the program was started, for [`StartSeconds`]; by default when the run is.
    pub started: Option<Instant>,
}

/// Trains as `config` says, from opening the data to writing the report. Where `device` is lost another one takes its place, which
/// some drivers only give when nobody holds on to the lost one.
///
/// # Errors
/// As [`run_on`], and data or verification sets that cannot be opened.
pub fn run(
    config: Config,
    device: Arc<Device>,
    options: &RunOptions,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let mut clock = StartClock::since(options.started.unwrap_or_else(Instant::now));
    let mut seconds = StartSeconds { device: clock.lap(), ..StartSeconds::default() };
    config.validate()?;
    let as_read = data::Options {
        size: config.model.input,
        resize: config.data.resize,
        num_classes: config.data.num_classes,
    };
    let dataset: Arc<dyn Dataset> = data::open(&config.data.train, &as_read)?.into();
    let sets =
        config.train.eval.iter().map(|path| PairSet::open_bin(path)).collect::<Result<Vec<PairSet>>>()?;
    for (index, (set, path)) in sets.iter().zip(&config.train.eval).enumerate() {
        if let Some(first) = sets.iter().take(index).position(|other| other.name() == set.name()) {
            let other =
                config.train.eval.get(first).map(|path| path.display().to_string()).unwrap_or_default();
            return Err(Error::usage(
                format!("`train.eval`: {other} and {} have one name", path.display()),
                "results go by the names of the files: rename one",
            ));
        }
        // A set that cannot be evaluated is found now, and not at the end of the first epoch.
        set.check(config.model.input)?;
    }
    seconds.data = clock.lap();
    train(config, device, dataset, sets, options, observer, (clock, seconds))
}

/// Trains on an opened dataset, evaluates on opened sets, and writes the run's folder.
///
/// # Errors
/// Whatever is wrong with the configuration, before anything is written; a folder that holds another run; then those of
/// [`Trainer::run`].
pub fn run_on(
    config: Config,
    device: &Arc<Device>,
    dataset: Arc<dyn Dataset>,
    sets: Vec<PairSet>,
    options: &RunOptions,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let clock = StartClock::since(options.started.unwrap_or_else(Instant::now));
    train(config, device.clone(), dataset, sets, options, observer, (clock, StartSeconds::default()))
}
