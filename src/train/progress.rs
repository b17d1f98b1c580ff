//! Where a run is.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::config::LearningRate;
use crate::train::epoch::EpochSums;
use crate::train::prototypes::PrototypeWatch;
use crate::train::run::Outcome;
use crate::train::stall::LossWatch;
use crate::train::start::StartSeconds;
use crate::train::state::{Best, TrainingState};

/// A step in flight.
pub(super) struct InFlight {
    pub(super) step: u64,
    pub(super) epoch: u32,
    pub(super) lr: f64,
    /// Its number in the epoch.
    pub(super) batch: u64,
    /// Its samples in the dataset, and their classes.
    pub(super) indices: Vec<usize>,
    pub(super) labels: Vec<u32>,
}

/// A checkpoint that was written.
pub(super) struct Saved {
    /// The position that it is of, see [`Progress::position`].
    pub(super) at: (u64, u32, u64),
    pub(super) path: PathBuf,
}

/// Where the loop is.
pub(super) struct Progress {
    pub(super) schedule: LearningRate,
    /// Steps of the whole run.
    pub(super) total: u64,
    /// Steps submitted so far.
    pub(super) submitted: u64,
    /// The epoch in progress, counted from 1.
    pub(super) epoch: u32,
    /// Batches of it that were submitted.
    pub(super) batch: u64,
    pub(super) flights: VecDeque<InFlight>,
    pub(super) sums: EpochSums,
    pub(super) watch: PrototypeWatch,
    pub(super) stall: LossWatch,
    /// Mean loss of the last epoch that has ended; NaN before.
    pub(super) epoch_loss: f64,
    pub(super) best: Option<Best>,
    /// The last checkpoint that was written.
    pub(super) saved: Option<Saved>,
    /// Steps whose update was left out.
    pub(super) skipped: u64,
    /// The last ones of them, without one that was taken in between.
    pub(super) skipped_in_a_row: u64,
    /// Seconds of training, as far as the clock was stopped.
    pub(super) train_seconds: f64,
    /// When the clock was started.
    started: Instant,
    /// When the last line was logged, without the time in which the clock stood still since.
    pub(super) logged_at: Instant,
    /// When the last results came, likewise.
    pub(super) collected_at: Instant,
    /// When the clock was stopped.
    stopped: Option<Instant>,
    pub(super) logged_images: usize,
    /// Time since the last line in which the loader was waited for.
    pub(super) waited: Duration,
    /// How long the device had been waited for when the last line was logged, without the waits while the clock stood still.
    pub(super) device_waited: Duration,
    /// How long it had been waited for when the clock was stopped.
    device_waited_at_stop: Duration,
    hard_cosine: f64,
    /// Where the time until the first step went, once that was submitted.
    pub(super) start: Option<StartSeconds>,
}

impl Progress {
    /// At the start of a run.
    pub(super) fn new(
        schedule: LearningRate,
        steps_per_epoch: u64,
        watch: PrototypeWatch,
        hard_cosine: f64,
    ) -> Self {
        let now = Instant::now();
        Self {
            total: schedule.total_steps(steps_per_epoch),
            schedule,
            submitted: 0,
            epoch: 1,
            batch: 0,
            flights: VecDeque::new(),
            sums: EpochSums::new(hard_cosine),
            watch,
            stall: LossWatch::new(steps_per_epoch),
            epoch_loss: f64::NAN,
            best: None,
            saved: None,
            skipped: 0,
            skipped_in_a_row: 0,
            train_seconds: 0.0,
            started: now,
            logged_at: now,
            collected_at: now,
            stopped: Some(now),
            logged_images: 0,
            waited: Duration::ZERO,
            device_waited: Duration::ZERO,
            device_waited_at_stop: Duration::ZERO,
            hard_cosine,
            start: None,
        }
    }

    /// Goes on from the checkpoint at `path` after `step` steps.
    pub(super) fn go_on(&mut self, step: u64, state: TrainingState, path: PathBuf) {
        self.submitted = step;
        self.epoch = state.epoch;
        self.batch = state.batch;
        self.sums = state.sums;
        self.epoch_loss = state.epoch_loss.unwrap_or(f64::NAN);
        self.best = state.best;
        self.skipped = state.skipped;
        self.skipped_in_a_row = state.skipped_in_a_row;
        self.stall = state.stall;
        self.train_seconds = state.train_seconds;
        self.saved = Some(Saved { at: self.position(), path });
    }

    /// Steps, epoch and batch: what tells two checkpoints apart.
    pub(super) fn position(&self) -> (u64, u32, u64) {
        (self.submitted, self.epoch, self.batch)
    }

    /// Lets the clock run, for training and throughput. The device has been waited for `device_waited` in all.
    pub(super) fn start_clock(&mut self, device_waited: Duration) {
        let now = Instant::now();
        if let Some(stopped) = self.stopped.take() {
            self.logged_at += now.duration_since(stopped);
            self.collected_at += now.duration_since(stopped);
            self.device_waited += device_waited.saturating_sub(self.device_waited_at_stop);
        }
        self.started = now;
    }

    /// Stops the clock, for work that is not training.
    pub(super) fn stop_clock(&mut self, device_waited: Duration) {
        let now = Instant::now();
        self.train_seconds += now.duration_since(self.started).as_secs_f64();
        self.stopped = Some(now);
        self.device_waited_at_stop = device_waited;
    }

    /// A line was logged of what was done by `at`.
    pub(super) fn logged(&mut self, at: Instant, device_waited: Duration) {
        self.device_waited = device_waited;
        self.logged_at = at;
        self.logged_images = 0;
        self.waited = Duration::ZERO;
    }

    /// The epoch in progress has ended, and all that comes at its end is done. One that the limit of steps cut off, of
    /// `batches` in all, is still in progress: with a higher limit it goes on.
    pub(super) fn next_epoch(&mut self, batches: u64) {
        if self.batch >= batches {
            self.epoch += 1;
            self.batch = 0;
            self.sums = EpochSums::new(self.hard_cosine);
        }
    }

    /// How the run stands, with `batch` images a step.
    pub(super) fn outcome(&self, batch: usize) -> Outcome {
        let images = self.submitted as f64 * batch as f64;
        Outcome {
            steps: self.submitted,
            epochs: if self.batch == 0 { self.epoch.saturating_sub(1) } else { self.epoch },
            loss: self.epoch_loss,
            train_seconds: self.train_seconds,
            images_per_second: images / self.train_seconds.max(1e-9),
            skipped: self.skipped,
            evaluations: Vec::new(),
            best: self.best.clone(),
            interrupted: None,
            device_losses: 0,
            start: None,
        }
    }
}
