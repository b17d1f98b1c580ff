//! A run that survives its device: where that is lost, it goes on with another one from the newest checkpoint.
//!
//! Everything that a step depends on is in the checkpoint or a function of the seed and the position, so a run that was
//! recovered ends in the bits of one that never lost its device, as long as the same adapter takes over.

use std::sync::Arc;
use std::time::{Duration, Instant};

use epl_runtime::guard::discard;
use epl_runtime::tune::TuneOptions;
use epl_runtime::{Choices, Device};

use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::config::{AUTO, Config};
use crate::data::Dataset;
use crate::eval::pairs::PairSet;
use crate::model::ModelSpec;
use crate::train::batch::{Room, decide};
use crate::train::events::Observer;
use crate::train::folder::RunFolder;
use crate::train::run::{Outcome, Stop};
use crate::train::start::{StartClock, StartSeconds};
use crate::train::state::{TrainingState, device_names};
use crate::train::trainer::Trainer;
use crate::train::{RunOptions, kernels, summary};
use crate::{Error, Result};

/// Losses without a new checkpoint in between after which a run gives up.
const MOST_IN_A_ROW: u32 = 5;
/// Seconds between attempts to take the same adapter up again, before another one is looked for: a driver that is updated, or a
/// computer that wakes up, takes its time.
const PATIENCE: [u64; 8] = [1, 2, 4, 8, 15, 30, 30, 30];

/// What a run is made of, whatever device it is on.
struct Run<'a> {
    config: &'a Config,
    dataset: &'a Arc<dyn Dataset>,
    sets: &'a Arc<[PairSet]>,
    options: &'a RunOptions,
}

/// What of a run outlives its device.
#[derive(Default)]
struct Course {
    /// The batch, and how many a step has, where they were left to be decided.
    batch: Option<(usize, usize)>,
    /// The kernels that were chosen, and for which device.
    kernels: Option<([String; 3], Choices)>,
    /// Whether a device was lost while kernels were measured.
    lost_measuring: bool,
    /// Whether the run's folder is this run's.
    begun: bool,
    /// Devices lost so far.
    losses: u32,
    /// Those of them since the last new checkpoint.
    in_a_row: u32,
    /// Steps, epoch and batch of the newest checkpoint.
    saved: Option<(u64, u32, u64)>,
    /// Steps between checkpoints, where the configuration has too many for a device that is lost more often.
    save_every: Option<u64>,
}

impl Course {
    /// Notes how far `trainer` came before its device was lost.
    fn note(&mut self, trainer: &Trainer) {
        if trainer.saved > self.saved {
            (self.saved, self.in_a_row) = (trainer.saved, 0);
        }
        let since = trainer.reached.saturating_sub(self.saved.map_or(0, |(step, ..)| step));
        if self.in_a_row > 0 && since > 0 {
            let every = (since / 2).max(1);
            self.save_every = Some(self.save_every.map_or(every, |before| before.min(every)));
        }
    }

    /// What is safe, in words.
    fn kept(&self, config: &Config) -> String {
        let folder = config.train.out.display();
        match self.saved {
            Some((step, ..)) => {
                format!("everything up to step {step} is kept in {folder}: go on from there with --resume")
            }
            None if self.begun => format!("there was no checkpoint in {folder} yet"),
            None => "training had not begun".into(),
        }
    }
}

/// Trains as `config` says, on other devices where `device` is lost. It should be the only one that holds on to it: drivers may
/// give no other as long as one that is lost is there.
///
/// # Errors
/// See [`run_on`](super::run_on).
pub(super) fn train(
    config: Config,
    device: Arc<Device>,
    dataset: Arc<dyn Dataset>,
    sets: Vec<PairSet>,
    options: &RunOptions,
    observer: &mut dyn Observer,
    clock: (StartClock, StartSeconds),
) -> Result<Outcome> {
    config.validate()?;
    RunFolder::check_free(&config.train.out)?;
    let run = Run { config: &config, dataset: &dataset, sets: &sets.into(), options };
    let mut course = Course::default();
    let mut device = device;
    let mut clock = Some(clock);
    loop {
        let clock =
            clock.take().unwrap_or_else(|| (StartClock::since(Instant::now()), StartSeconds::default()));
        let error = match attempt(&run, &device, observer, clock, &mut course) {
            Err(error) if device.lost().is_some() && !is_memory(&error) => error,
            mut ended => {
                if let Ok(outcome) = &mut ended {
                    outcome.device_losses = course.losses;
                }
                return ended;
            }
        };
        observer.end();
        device = replace(device, error, &run, observer, &mut course)?;
    }
}

/// Whether it is for lack of memory, over which wgpu may give a device up: another one would have no more.
fn is_memory(error: &Error) -> bool {
    matches!(error, Error::Runtime(epl_runtime::Error::OutOfMemory { .. }))
}

/// Another device in the place of one that is lost.
fn replace(
    device: Arc<Device>,
    error: Error,
    run: &Run<'_>,
    observer: &mut dyn Observer,
    course: &mut Course,
) -> Result<Arc<Device>> {
    course.losses += 1;
    course.in_a_row += 1;
    if course.in_a_row >= MOST_IN_A_ROW || run.options.stop.requested() {
        return Err(gives_up(&error, run, course));
    }
    // The first is met at once; after more a driver that has just reset a GPU is given time.
    let pause = match course.in_a_row {
        1 => Duration::ZERO,
        more => Duration::from_secs(1 << (more - 2)),
    };
    observer.message(&format!("warning: {error}; {}", next(course, pause)));
    let hung = device.is_hung();
    let reopener = device.reopener().with_halved_submissions(course.in_a_row);
    discard(device, hung);
    if !waited(pause, &run.options.stop) {
        return Err(gives_up(&error, run, course));
    }
    let mut refused = match reopener.same() {
        Ok(device) => return Ok(device),
        Err(refused) => refused,
    };
    for pause in PATIENCE.map(Duration::from_secs) {
        observer.message(&format!(
            "warning: the GPU cannot be taken up again: {refused}; it is tried again in {} s",
            pause.as_secs()
        ));
        if !waited(pause, &run.options.stop) {
            return Err(gives_up(&error, run, course));
        }
        refused = match reopener.same() {
            Ok(device) => return Ok(device),
            Err(refused) => refused,
        };
    }
    observer.message(&format!("warning: the GPU is gone: {refused}; another one is looked for"));
    reopener.other().map_err(|_| gives_up(&error, run, course))
}

/// What is done about a loss, in words.
fn next(course: &Course, pause: Duration) -> String {
    let place = match course.saved {
        Some((step, ..)) => format!("going on from the checkpoint after step {step}"),
        None => "starting again, since there is no checkpoint yet".into(),
    };
    let when =
        if pause.is_zero() { String::new() } else { format!(" after a pause of {} s", pause.as_secs()) };
    let often = course
        .save_every
        .map_or_else(String::new, |every| format!(", with a checkpoint at least every {every} steps"));
    format!("{place}{when}{often}")
}

/// Waits for `pause`, unless `stop` is asked for.
fn waited(pause: Duration, stop: &Stop) -> bool {
    let until = Instant::now() + pause;
    while !stop.requested() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
    false
}

/// The error with which a run ends that has lost its device too often.
fn gives_up(error: &Error, run: &Run<'_>, course: &Course) -> Error {
    let what = match error {
        Error::Runtime(epl_runtime::Error::DeviceLost { what }) => what.clone(),
        other => other.to_string(),
    };
    let often = match course.in_a_row {
        1 => String::new(),
        times => format!(", {times} times in a row without getting any further"),
    };
    let kept = course.kept(run.config);
    epl_runtime::Error::DeviceLost { what: format!("{what}{often}; {kept}") }.into()
}

/// One run on one device: from the beginning, or from the newest checkpoint.
fn attempt(
    run: &Run<'_>,
    device: &Arc<Device>,
    observer: &mut dyn Observer,
    clock: (StartClock, StartSeconds),
    course: &mut Course,
) -> Result<Outcome> {
    let Run { config, dataset, sets, options } = *run;
    let resume = options.resume || course.begun;
    let checkpoints = Checkpoints::of(&config.train.out);
    let mut start: Option<Checkpoint<TrainingState>> = None;
    if resume {
        start = checkpoints.newest(|error| observer.message(&format!("warning: passed over: {error}")))?;
    }
    if let Some(start) = &start {
        course.saved = course.saved.max(Some((start.step, start.body.epoch, start.body.batch)));
    }
    let config = &with_batch_decided(run, device, start.as_ref(), observer, course)?;
    // A run goes on with the kernels that it was started with, unless it is on another device, where they mean nothing.
    let names = device_names(device);
    let kernels = match (&start, &course.kernels) {
        (Some(start), _) if start.body.device == names => {
            Some(start.body.kernels.clone().into_iter().collect::<Choices>())
        }
        (None, Some((before, chosen))) if *before == names => Some(chosen.clone()),
        _ => None,
    };
    let mut choose = |config: &Config, spec: &ModelSpec| {
        let chosen = match kernels.clone() {
            Some(kernels) => kernels,
            // With nowhere to note which kernel it was, it would be tried again and again.
            None if course.lost_measuring && device.cache_folder().is_none() => {
                observer.message("the kernels of this run are those that the rules choose");
                Choices::new()
            }
            None => {
                let mut say = |line: &str| observer.message(line);
                let chosen =
                    kernels::choose(config, spec, device, &TuneOptions::default(), &options.stop, &mut say);
                course.lost_measuring |= chosen.is_err() && device.lost().is_some();
                chosen?
            }
        };
        course.kernels = Some((names.clone(), chosen.clone()));
        Ok(chosen)
    };
    // The model comes first: whatever is wrong with the configuration leaves no folder behind,
    // and the run that is to be replaced as it was.
    let mut trainer =
        Trainer::started(config.clone(), device, dataset.clone(), sets.clone(), clock, &mut choose)?;
    trainer.save_at_least_every(course.save_every);
    let outcome = on_folder(&mut trainer, start, resume, options, observer, course);
    if outcome.is_err() && device.lost().is_some() {
        course.note(&trainer);
        discard(trainer, device.is_hung());
    }
    outcome
}

/// The configuration with a batch: a run goes on with the one that it was started with, whatever is free by now.
fn with_batch_decided(
    run: &Run<'_>,
    device: &Arc<Device>,
    start: Option<&Checkpoint<TrainingState>>,
    observer: &mut dyn Observer,
    course: &mut Course,
) -> Result<Config> {
    let mut config = run.config.clone();
    if config.train.batch_size != AUTO {
        return Ok(config);
    }
    let before = match start {
        Some(start) => {
            let train = Config::from_toml(&start.body.config, &[])?.train;
            Some((train.batch_size, train.accumulate))
        }
        None => course.batch,
    };
    if let Some(before) = before {
        (config.train.batch_size, config.train.accumulate) = before;
    } else {
        let (classes, images) = (run.dataset.num_classes(), run.dataset.len());
        let place = (device.caps(), &Room::Device(device));
        config = decide(&config, classes, images, place, &mut |line| observer.message(line))?;
    }
    course.batch = Some((config.train.batch_size, config.train.accumulate));
    Ok(config)
}

/// Runs a trainer in its run's folder.
fn on_folder(
    trainer: &mut Trainer,
    start: Option<Checkpoint<TrainingState>>,
    resume: bool,
    options: &RunOptions,
    observer: &mut dyn Observer,
    course: &mut Course,
) -> Result<Outcome> {
    let config = trainer.config().clone();
    if resume && start.is_none() {
        let folder = Checkpoints::of(&config.train.out).folder().display().to_string();
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
            let unfinished = resume && !RunFolder::is_finished(&config.train.out);
            RunFolder::create(&config, options.replace || unfinished)?
        }
    };
    course.begun = true;
    if let Some(warning) = folder.take_warning() {
        observer.message(&warning);
    }
    let outcome = trainer.run(&mut folder, &options.stop, observer)?;
    if outcome.interrupted.is_none() {
        summary::report(&config, trainer, &folder, &outcome)?.write(&folder.report_path())?;
    }
    Ok(outcome)
}
