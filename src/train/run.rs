//! The training loop: epochs, steps, what is logged, and what is left behind.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use epl_runtime::Choices;

use crate::checkpoint::{Checkpoint, Checkpoints, producer};
use crate::config::{LearningRate, Precision};
use crate::data::{Batch, Stream};
use crate::eval::embedder::Embedder;
use crate::eval::verify::VerificationReport;
use crate::interchange::safetensors::StateDict;
use crate::report::StepPoint;
use crate::train::events::Observer;
use crate::train::folder::RunFolder;
use crate::train::metrics::Record;
use crate::train::plan::explain_memory;
use crate::train::progress::{InFlight, Progress, Saved};
use crate::train::prototypes::PrototypeWatch;
use crate::train::start::StartSeconds;
use crate::train::state::{Best, Fingerprint, TrainingState, device_names};
use crate::train::step::{ScaleState, StepResult};
use crate::train::summary::eval_point;
use crate::train::trainer::{EVALUATION_BATCH, Trainer};
use crate::{Error, Result};

/// How long the last weights wait for room on a full disk, or in a full memory.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(3600);

/// What there was too little of, in words, where that may change by itself.
fn lack(error: &Error) -> Option<&'static str> {
    match error {
        Error::Io { source, .. }
            if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
        {
            Some("the disk has no room")
        }
        // The weights are read back through buffers of their own.
        Error::Runtime(epl_runtime::Error::OutOfMemory { .. }) => Some("the GPU has no memory"),
        _ => None,
    }
}

/// Asks a run to stop after the step that it is at. Clones ask the same run.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asks.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Steps done, those before a resumption included.
    pub steps: u64,
    /// Epochs, one that was cut off included.
    pub epochs: u32,
    /// Mean loss of the last epoch.
    pub loss: f64,
    /// Seconds of training, evaluations and checkpoints left out.
    pub train_seconds: f64,
    /// Images a second over all training.
    pub images_per_second: f64,
    /// Steps whose update was left out.
    pub skipped: u64,
    /// The last evaluation of each set.
    pub evaluations: Vec<VerificationReport>,
    /// The best evaluation of all epochs.
    pub best: Option<Best>,
    /// Where the time until the first step went; `None` where no step was taken.
    pub start: Option<StartSeconds>,
    /// Where the run was asked to stop before its end: the checkpoint that it can go on from.
    pub interrupted: Option<PathBuf>,
    /// How often the device was lost and another one took its place.
    pub device_losses: u32,
}

/// What a run has to do with beside its model and its data.
pub(super) struct Around<'a> {
    pub(super) folder: &'a mut RunFolder,
    checkpoints: Checkpoints,
    stop: &'a Stop,
    pub(super) observer: &'a mut dyn Observer,
}

impl Around<'_> {
    /// Logs what was measured, and tells what went wrong with that without ending the run.
    fn record(&mut self, record: &Record) -> Result<()> {
        self.folder.record(record)?;
        if let Some(warning) = self.folder.take_warning() {
            self.observer.message(&warning);
        }
        Ok(())
    }

    pub(super) fn warn(&mut self, text: &str) {
        self.observer.message(&format!("warning: {text}"));
    }
}

/// An error with what to do about it, in a line.
fn with_hint(error: &Error) -> String {
    let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{error}{hint}")
}

fn no_batch(progress: &Progress) -> Error {
    Error::data(
        format!("batch {} of epoch {}", progress.batch, progress.epoch),
        "another one, or none",
        "what the loader is to give",
        "this is a fault of the program; please report it",
    )
}

/// How an epoch went.
enum Epoch {
    Whole,
    Interrupted,
}

impl Trainer {
    /// Puts model and position where `checkpoint` has them; [`Self::run`] goes on from there. Returns what differs from the
    /// run that wrote it, a line each.
    ///
    /// # Errors
    /// A checkpoint of another model, or of a run whose position means nothing in this one.
    pub fn restore(&mut self, checkpoint: Checkpoint<TrainingState>) -> Result<Vec<String>> {
        let mut changed = checkpoint.body.admits(
            &self.config,
            &Fingerprint::of(self.dataset.as_ref())?,
            &device_names(&self.device),
        )?;
        self.model.restore_training(&checkpoint.state, &checkpoint.state.path().display().to_string())?;
        let TrainingState { loss_scale, finite_steps, .. } = checkpoint.body;
        if self.config.train.precision == Precision::Mixed {
            ScaleState { scale: loss_scale as f32, finite_steps }.write(&self.model.store)?;
        }
        let kernels: Choices = checkpoint.body.kernels.clone().into_iter().collect();
        if kernels != *self.model.choices {
            changed.push("the kernels were chosen otherwise".into());
        }
        if checkpoint.producer != producer() {
            changed.push(format!("it was written by {}, this is {}", checkpoint.producer, producer()));
        }
        self.start = Some(checkpoint);
        Ok(changed)
    }

    /// Trains to the end of the configuration, or until `stop` is asked for, writing into `folder`.
    ///
    /// # Errors
    /// Data that cannot be read, a loss that is not finite, a file that cannot be written, a lost device. What was saved
    /// before stays.
    pub fn run(
        &mut self,
        folder: &mut RunFolder,
        stop: &Stop,
        observer: &mut dyn Observer,
    ) -> Result<Outcome> {
        let steps_per_epoch = self.loader.batches_per_epoch() as u64;
        let schedule = LearningRate::new(&self.config.optim, &self.config.train);
        let total = schedule.total_steps(steps_per_epoch);
        observer.start(total, steps_per_epoch, &self.summary());
        let checkpoints = Checkpoints::of(folder.path());
        let around = &mut Around { folder, checkpoints, stop, observer };

        let hard_cosine = self.config.train.hard_cosine;
        let mut progress = Progress::new(
            schedule,
            steps_per_epoch,
            PrototypeWatch::new(&self.model, hard_cosine)?,
            hard_cosine,
        );
        if let Some(start) = self.start.take() {
            progress.watch.restore(&start.state)?;
            progress.go_on(start.step, start.body, start.folder);
            (self.reached, self.saved) = (progress.submitted, Some(progress.position()));
        }
        let first = usize::try_from(progress.batch).unwrap_or(usize::MAX);
        // Over all epochs: while one ends the first batches of the next are decoded already.
        let mut batches = self.loader.stream(progress.epoch..=self.config.train.epochs, first)?;
        let mut evaluated = None;
        let mut interrupted = false;
        for epoch in progress.epoch..=self.config.train.epochs {
            if progress.submitted >= total && progress.batch == 0 {
                break;
            }
            if self.session_for(epoch)? {
                progress.stall.reset();
            }
            if matches!(self.run_epoch(&mut batches, &mut progress, around)?, Epoch::Interrupted) {
                interrupted = true;
                break;
            }
            let last = epoch == self.config.train.epochs || progress.submitted >= total;
            evaluated = Some(self.end_epoch(last, &mut progress, around)?);
            if last {
                break;
            }
            if stop.requested() {
                interrupted = true;
                break;
            }
        }
        let mut outcome = progress.outcome(self.config.train.images_per_step());
        outcome.start = progress.start.clone();
        if interrupted {
            // The end of an epoch has written one, unless it failed; this one must not.
            let saved = progress.saved.take().filter(|saved| saved.at == progress.position());
            outcome.interrupted = Some(match saved {
                Some(saved) => saved.path,
                None => self.checkpoint(&progress, around)?,
            });
        } else {
            outcome.evaluations = match evaluated {
                Some(reports) => reports,
                // A run that had ended but for its last files.
                None => {
                    self.save_last(progress.submitted, around)?;
                    self.evaluate(&mut |_| Ok(()))?
                }
            };
        }
        if let Err(error) = around.folder.finish() {
            around.warn(&format!("the log is not complete: {}", with_hint(&error)));
        }
        around.observer.end();
        Ok(outcome)
    }

    /// Trains from the position to the end of its epoch, unless it is asked to stop.
    fn run_epoch(
        &mut self,
        batches: &mut Stream,
        progress: &mut Progress,
        around: &mut Around<'_>,
    ) -> Result<Epoch> {
        let steps_per_epoch = self.loader.batches_per_epoch() as u64;
        let every = self.save_every;
        // Here rather than by the first step, whose time it is no part of.
        self.device.settle()?;
        self.device.enter("training");
        // The time between epochs goes to evaluation, and is no throughput.
        progress.start_clock(self.device.waited());
        while progress.submitted < progress.total && progress.batch < steps_per_epoch {
            let asked = Instant::now();
            let batch = match batches.next().unwrap_or_else(|| Err(no_batch(progress))) {
                Ok(batch) => batch,
                Err(error) => {
                    // The state is as whole as ever: what was trained so far need not be lost with this sample.
                    self.collect(true, progress, around)?;
                    progress.stop_clock(self.device.waited());
                    if progress.submitted > 0 {
                        self.try_checkpoint(progress, around)?;
                    }
                    return Err(error);
                }
            };
            progress.waited += asked.elapsed();
            if (batch.epoch, batch.number as u64) != (progress.epoch, progress.batch) {
                return Err(no_batch(progress));
            }
            let lr = progress.schedule.lr(progress.submitted, steps_per_epoch);
            self.submit(&batch, lr, progress)?;
            self.collect(false, progress, around)?;
            batches.recycle(batch);
            let ends_epoch = progress.batch == steps_per_epoch || progress.submitted == progress.total;
            if around.stop.requested() {
                self.collect(true, progress, around)?;
                progress.stop_clock(self.device.waited());
                return Ok(Epoch::Interrupted);
            }
            // The end of an epoch has a checkpoint of its own.
            if every > 0 && progress.submitted.is_multiple_of(every) && !ends_epoch {
                self.collect(true, progress, around)?;
                progress.stop_clock(self.device.waited());
                self.try_checkpoint(progress, around)?;
                progress.start_clock(self.device.waited());
            }
        }
        self.collect(true, progress, around)?;
        progress.stop_clock(self.device.waited());
        Ok(Epoch::Whole)
    }

    /// What comes at an epoch's end: the figures of its prototypes, evaluation, weights, and a checkpoint.
    fn end_epoch(
        &mut self,
        last: bool,
        progress: &mut Progress,
        around: &mut Around<'_>,
    ) -> Result<Vec<VerificationReport>> {
        let (epoch, step) = (progress.epoch, progress.submitted);
        let batches = self.loader.batches_per_epoch() as u64;
        if last && progress.sums.steps() == 0 && progress.skipped > 0 {
            return Err(Error::data(
                format!("epoch {epoch}, the last one"),
                "not one step that was finite",
                "some",
                "lower optim.lr or set optim.clip_norm = 5, and go on from a checkpoint from before (--resume takes the \
                 newest: move newer ones away), or start anew",
            ));
        }
        if last || !self.sets.is_empty() {
            // Before all that may take long or fail: it says that the epoch's steps are done and its end is not. That one
            // is not announced, since another one follows.
            self.try_checkpoint(progress, around)?;
        }
        if last {
            self.save_last(step, around)?;
        }
        let prototypes = if progress.batch >= batches {
            progress.watch.end_epoch(&self.model, epoch, step, &progress.sums)?
        } else {
            // Cut off by the limit of steps; with a higher one it goes on, and must not have ended for the watch.
            progress.watch.clone().end_epoch(&self.model, epoch, step, &progress.sums)?
        };
        around.record(&Record::Prototypes(Box::new(prototypes.clone())))?;
        around.observer.epoch(epoch, progress.sums.mean_loss(), Some(&prototypes));
        let reports = self.evaluate(&mut |report| {
            around.record(&Record::Eval(eval_point(report, step, epoch)))?;
            around.observer.evaluation(epoch, report);
            Ok(())
        })?;
        self.keep_best(&reports, progress, around)?;
        progress.epoch_loss = progress.sums.mean_loss();
        progress.next_epoch(batches);
        self.try_checkpoint(progress, around)?;
        Ok(reports)
    }

    /// Writes the last weights. What a whole training came to is worth waiting for room on the disk, and in memory.
    fn save_last(&self, step: u64, around: &mut Around<'_>) -> Result<()> {
        let path = around.folder.weights_path();
        let deadline = Instant::now() + WAIT_FOR_ROOM;
        let mut told = false;
        loop {
            let Err(error) = self.model.save(&path, step) else { return Ok(()) };
            let Some(lack) = lack(&error) else { return Err(error) };
            if Instant::now() >= deadline || around.stop.requested() {
                return Err(error);
            }
            if !told {
                let minutes = WAIT_FOR_ROOM.as_secs() / 60;
                around.warn(&format!(
                    "{lack} for {}: it is tried again for {minutes} minutes; Ctrl-C gives up",
                    path.display()
                ));
                told = true;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Keeps the weights, if no epoch's mean accuracy on the same sets was better. Fails only where the device is lost.
    fn keep_best(
        &self,
        reports: &[VerificationReport],
        progress: &mut Progress,
        around: &mut Around<'_>,
    ) -> Result<()> {
        let accuracy = reports.iter().map(|report| report.accuracy).sum::<f64>() / reports.len() as f64;
        let sets: Vec<String> = reports.iter().map(|report| report.name.clone()).collect();
        let beaten = |best: &Best| accuracy > best.accuracy || best.sets != sets;
        // A NaN is no accuracy, and would never be beaten.
        if !accuracy.is_finite() || !progress.best.as_ref().is_none_or(beaten) {
            return Ok(());
        }
        let step = progress.submitted;
        match self.model.save(&around.folder.best_path(), step) {
            Ok(()) => progress.best = Some(Best { epoch: progress.epoch, step, accuracy, sets }),
            Err(error) => {
                self.device.check()?;
                around.warn(&format!("the best weights so far were not kept: {error}"));
            }
        }
        Ok(())
    }

    /// Writes a checkpoint. That it cannot be written, for example on a full disk, does not end the run: what was saved
    /// before stays, and the next one may succeed. Fails only where the device is lost.
    fn try_checkpoint(&mut self, progress: &mut Progress, around: &mut Around<'_>) -> Result<()> {
        // Done already, for example by the run that this one goes on from.
        if progress.saved.as_ref().is_some_and(|saved| saved.at == progress.position()) {
            return Ok(());
        }
        let phase = self.device.enter("checkpoint");
        let written = self.checkpoint(progress, around);
        self.device.enter(phase);
        match written {
            Ok(path) => {
                progress.saved = Some(Saved { at: progress.position(), path });
                self.saved = Some(progress.position());
            }
            Err(error) => {
                self.device.check()?;
                around.warn(&format!(
                    "no checkpoint after step {}: {}; training goes on",
                    progress.submitted,
                    with_hint(&error)
                ));
            }
        }
        Ok(())
    }

    fn checkpoint(&self, progress: &Progress, around: &mut Around<'_>) -> Result<PathBuf> {
        let Around { checkpoints, folder, observer, .. } = around;
        // A checkpoint that is ahead of the log would leave a gap in it for ever.
        folder.sync()?;
        let step = progress.submitted;
        let started = Instant::now();
        let scale = match self.config.train.precision {
            Precision::F32 => ScaleState { scale: 1.0, finite_steps: 0 },
            Precision::Mixed => ScaleState::read(&self.model.store)?,
        };
        let state = TrainingState {
            epoch: progress.epoch,
            batch: progress.batch,
            skipped: progress.skipped,
            skipped_in_a_row: progress.skipped_in_a_row,
            loss_scale: f64::from(scale.scale),
            finite_steps: scale.finite_steps,
            stall: progress.stall.clone(),
            train_seconds: progress.train_seconds,
            sums: progress.sums.clone(),
            epoch_loss: Some(progress.epoch_loss).filter(|loss| loss.is_finite()),
            best: progress.best.clone(),
            data: Fingerprint::of(self.dataset.as_ref())?,
            config: self.config.to_toml()?,
            device: device_names(&self.device),
            kernels: self.model.choices.iter().map(|(op, kernel)| (op.into(), kernel.into())).collect(),
        };
        let mut more = StateDict::default();
        progress.watch.save(&mut more, self.model.spec.network.embedding);
        let mut bytes = 0;
        let path = checkpoints.write(step, &state, |path| {
            let written = self.model.save_training(path, step, more)?;
            bytes = written.0;
            Ok(written)
        })?;
        if progress.batch < self.loader.batches_per_epoch() as u64 {
            observer.checkpoint(step, bytes, started.elapsed());
        }
        if let Err(error) = checkpoints.prune(self.config.train.keep_checkpoints) {
            around.warn(&format!("older checkpoints are still there: {}", with_hint(&error)));
        }
        Ok(path)
    }

    /// Uploads a batch and submits its step. Does not wait for it.
    fn submit(&mut self, batch: &Batch, lr: f64, progress: &mut Progress) -> Result<()> {
        let step = progress.submitted;
        self.write_inputs(batch, step, lr)?;
        if progress.start.is_none() {
            self.start_seconds.batch = self.clock.lap();
            self.start_seconds.first_step = self.clock.total();
            progress.start = Some(self.start_seconds.clone());
        }
        let Some((_, _, session)) = &mut self.session else { return Ok(()) };
        session.step()?;
        progress.watch.see(&batch.labels);
        let (epoch, number) = (progress.epoch, progress.batch);
        let (indices, labels) = (batch.indices.clone(), batch.labels.clone());
        progress.flights.push_back(InFlight { step, epoch, lr, batch: number, indices, labels });
        progress.submitted += 1;
        progress.batch += 1;
        self.reached = progress.submitted;
        Ok(())
    }

    /// Writes the inputs of a step.
    pub(super) fn write_inputs(&mut self, batch: &Batch, step: u64, lr: f64) -> Result<()> {
        let Some((_, inputs, session)) = &mut self.session else { return Ok(()) };
        inputs.write(session, batch, step, self.config.train.seed, lr, self.sampler.as_ref())
    }

    /// Takes the results that have arrived; all of them where `wait` is set.
    fn collect(&mut self, wait: bool, progress: &mut Progress, around: &mut Around<'_>) -> Result<()> {
        let Some((_, _, session)) = &mut self.session else { return Ok(()) };
        let done = if wait { session.flush()? } else { session.finished()? };
        // Results come several at once; each has its share of the time since the last ones came.
        let (came, count) = (progress.collected_at, done.len().max(1) as u32);
        let each = came.elapsed() / count;
        if !done.is_empty() {
            progress.collected_at = Instant::now();
        }
        for (number, finished) in (1..).zip(done) {
            let Some(flight) = progress.flights.pop_front() else { break };
            if let Some(start) = progress.start.as_mut().filter(|start| start.first_result == 0.0) {
                start.first_result = self.clock.total();
                around.observer.message(&start.to_string());
            }
            let result = StepResult::unpack(&finished.values)?;
            if result.is_finite() {
                progress.skipped_in_a_row = 0;
                progress.sums.add(&result);
                let cosine = mean(&result.target_cosine);
                let (loss, norm) = (f64::from(result.loss), f64::from(result.grad_norm));
                if let Some(line) = progress.stall.see(flight.step + 1, loss, norm, cosine, flight.lr) {
                    around.observer.message(&line);
                }
            } else {
                self.not_finite(&flight, &result, progress, around)?;
            }
            progress.logged_images += self.config.train.images_per_step();
            let now = came + each * number;
            let seconds = now.duration_since(progress.logged_at).as_secs_f64().max(1e-9);
            let point = StepPoint {
                step: flight.step + 1,
                epoch: flight.epoch,
                loss: f64::from(result.loss),
                lr: flight.lr,
                images_per_second: progress.logged_images as f64 / seconds,
                grad_norm: f64::from(result.grad_norm),
                loss_scale: f64::from(result.loss_scale),
                data_wait: (progress.waited.as_secs_f64() / seconds).min(1.0),
                device_wait: (self.device.waited().saturating_sub(progress.device_waited).as_secs_f64()
                    / seconds)
                    .min(1.0),
                skipped: progress.skipped,
            };
            around.observer.step(&point);
            // The last step always, so that every run has a line of its steps.
            if point.step.is_multiple_of(self.config.train.log_every.max(1)) || point.step == progress.total {
                around.record(&Record::Step(point))?;
                progress.logged(now, self.device.waited());
            }
        }
        Ok(())
    }

    /// Runs every verification set on the weights as they are now, and hands each result to `each`.
    fn evaluate(
        &self,
        each: &mut dyn FnMut(&VerificationReport) -> Result<()>,
    ) -> Result<Vec<VerificationReport>> {
        if self.sets.is_empty() {
            return Ok(Vec::new());
        }
        self.device.enter("evaluation");
        let mut embedder = Embedder::new(&self.model, EVALUATION_BATCH).map_err(|error| {
            explain_memory(error, &self.config, self.dataset.num_classes(), self.device.caps())
        })?;
        let mut reports = Vec::with_capacity(self.sets.len());
        for set in self.sets.iter() {
            let report = set.evaluate(&mut embedder, &mut |_| {})?;
            each(&report)?;
            reports.push(report);
        }
        Ok(reports)
    }
}

/// The mean of some values; NaN of none.
fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_and_memory_are_waited_for_and_nothing_else() {
        let full = Error::io("model.safetensors", ErrorKind::StorageFull.into());
        assert_eq!(lack(&full), Some("the disk has no room"));
        let (device, label) = ("some GPU".to_owned(), "read-back".to_owned());
        let memory = epl_runtime::Error::OutOfMemory { device, label, bytes: 1 << 30, allocated: 1 << 20 };
        assert_eq!(lack(&memory.into()), Some("the GPU has no memory"));
        assert_eq!(lack(&Error::io("model.safetensors", ErrorKind::PermissionDenied.into())), None);
        assert_eq!(lack(&epl_runtime::Error::DeviceLost { what: String::new() }.into()), None);
    }
}
