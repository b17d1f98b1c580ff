//! Training: the step graph, the loop, the run's folder and what is written into it.

use std::sync::Arc;
use std::time::Instant;

use epl_runtime::tune::TuneOptions;
use epl_runtime::{Choices, Device};

use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::config::Config;
use crate::data::{self, Dataset};
use crate::eval::pairs::PairSet;
use crate::model::ModelSpec;
use crate::{Error, Result};

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
pub mod run;
pub mod sheet;
pub mod stall;
pub mod start;
pub mod state;
pub mod step;
pub mod summary;
pub mod tensorboard;
pub mod trainer;

pub use events::{Console, Observer, Silent};
pub use folder::RunFolder;
use start::StartClock;
use state::{TrainingState, device_names};

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

/// Trains as `config` says, from opening the data to writing the report.
///
/// # Errors
/// As [`run_on`], and data or verification sets that cannot be opened.
pub fn run(
    config: Config,
    device: &Arc<Device>,
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
    train(config, device, dataset, sets, options, observer, (clock, StartSeconds::default()))
}

fn train(
    config: Config,
    device: &Arc<Device>,
    dataset: Arc<dyn Dataset>,
    sets: Vec<PairSet>,
    options: &RunOptions,
    observer: &mut dyn Observer,
    clock: (StartClock, StartSeconds),
) -> Result<Outcome> {
    config.validate()?;
    RunFolder::check_free(&config.train.out)?;
    let checkpoints = Checkpoints::of(&config.train.out);
    let mut start: Option<Checkpoint<TrainingState>> = None;
    if options.resume {
        start = checkpoints.newest(|error| observer.message(&format!("warning: passed over: {error}")))?;
    }
    // A run goes on with the kernels that it was started with, unless it is on another device, where they mean nothing.
    let kernels = start
        .as_ref()
        .filter(|start| start.body.device == device_names(device))
        .map(|start| start.body.kernels.clone().into_iter().collect::<Choices>());
    let mut choose = |config: &Config, spec: &ModelSpec| match kernels.clone() {
        Some(kernels) => Ok(kernels),
        None => {
            kernels::choose(config, spec, device, &TuneOptions::default(), &mut |line| observer.message(line))
        }
    };
    // The model comes first: whatever is wrong with the configuration leaves no folder behind,
    // and the run that is to be replaced as it was.
    let mut trainer = Trainer::started(config, device, dataset, sets, clock, &mut choose)?;
    let config = trainer.config().clone();
    if options.resume && start.is_none() {
        let folder = checkpoints.folder().display();
        observer.message(&format!("there is no checkpoint in {folder} yet: starting from the beginning"));
    }
    let mut folder = match start {
        Some(checkpoint) => {
            let (step, epoch) = (checkpoint.step, checkpoint.body.epoch);
            let place = checkpoint.folder.display().to_string();
            for change in trainer.restore(checkpoint)? {
                observer.message(&format!("warning: unlike in the run that is resumed: {change}"));
            }
            observer.message(&format!("going on after step {step}, in epoch {epoch}, from {place}"));
            RunFolder::resume(&config, step, epoch.saturating_sub(1))?
        }
        None => {
            trainer.initialize()?.iter().for_each(|line| observer.message(line));
            // Weights without a report and a checkpoint are what a run left that ended while it wrote its last files.
            let unfinished = options.resume && !RunFolder::is_finished(&config.train.out);
            RunFolder::create(&config, options.replace || unfinished)?
        }
    };
    if let Some(warning) = folder.take_warning() {
        observer.message(&warning);
    }
    let outcome = trainer.run(&mut folder, &options.stop, observer)?;
    if outcome.interrupted.is_none() {
        summary::report(&config, &trainer, &folder, &outcome)?.write(&folder.report_path())?;
    }
    Ok(outcome)
}
