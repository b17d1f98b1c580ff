//! What happens after a step whose loss or gradient is not finite.

use std::path::Path;

use epl_runtime::inspect::{Origin, first_nonfinite};
use serde::Serialize;

use crate::config::NonFinite;
use crate::data::Batch;
use crate::head::HeadForm;
use crate::interchange::files::write_atomically;
use crate::train::progress::{InFlight, Progress};
use crate::train::run::Around;
use crate::train::step::StepResult;
use crate::train::trainer::Trainer;
use crate::{Error, Result};

/// Steps in a row that may be left out. More are no accident of a batch: the weights themselves have gone astray.
const MOST_IN_A_ROW: u64 = 50;
/// Samples of the batch that a message names; the file has them all.
const NAMED: usize = 4;

/// The file about the step.
#[derive(Serialize)]
struct Report<'a> {
    step: u64,
    epoch: u32,
    loss: f32,
    grad_norm: f32,
    nonfinite: u32,
    lr: f64,
    /// The first value that is not finite, in words.
    origin: Option<String>,
    samples: Vec<Sample<'a>>,
}

#[derive(Serialize)]
struct Sample<'a> {
    name: &'a str,
    label: u32,
}

impl Trainer {
    /// Leaves the step out, where the configuration says so, or ends the run with all that can be found out about it.
    pub(super) fn not_finite(
        &mut self,
        flight: &InFlight,
        result: &StepResult,
        progress: &mut Progress,
        around: &mut Around<'_>,
    ) -> Result<()> {
        if result.is_overflow() {
            progress.skipped += 1;
            return Ok(());
        }
        let names: Vec<String> = flight.indices.iter().map(|&index| self.dataset.name(index)).collect();
        let labels = &flight.labels;
        // Where no norm of the class weights is needed before they are updated, and only that one is not finite, they have
        // taken the step.
        let clips_head = self.config.optim.clip_norm > 0.0 && self.config.optim.clip_head;
        let left_out = result.nonfinite > 0 || self.config.head.form == HeadForm::Materialized || clips_head;
        if self.config.train.nonfinite == NonFinite::Skip && left_out {
            progress.skipped += 1;
            progress.skipped_in_a_row += 1;
            if progress.skipped_in_a_row < MOST_IN_A_ROW {
                around.warn(&format!(
                    "step {} was left out: {}; its batch: {}",
                    flight.step + 1,
                    symptom(result),
                    named(&names, labels)
                ));
                return Ok(());
            }
        }
        let origin = self.origin(flight)?;
        let samples = names.iter().zip(labels).map(|(name, &label)| Sample { name, label }).collect();
        let report = Report {
            step: flight.step + 1,
            epoch: flight.epoch,
            loss: result.loss,
            grad_norm: result.grad_norm,
            nonfinite: result.nonfinite,
            lr: flight.lr,
            origin: origin.as_ref().map(Origin::to_string),
            samples,
        };
        let path = around.folder.path().join("nonfinite.json");
        let text = serde_json::to_string_pretty(&report).map_err(|error| Error::io(&path, error.into()));
        // That it cannot be written must not hide what it is about.
        if let Err(error) = text.and_then(|text| write_atomically(&path, text.as_bytes())) {
            around.warn(&error.to_string());
        }
        let first = match origin {
            Some(origin) => format!("first, {origin}"),
            None => "which did not come again when the step was repeated".into(),
        };
        let row = match progress.skipped_in_a_row {
            MOST_IN_A_ROW.. => format!(", the last of {MOST_IN_A_ROW} such steps in a row"),
            _ => String::new(),
        };
        Err(Error::data(
            format!("step {} (epoch {}){row}", flight.step + 1, flight.epoch),
            format!("{}; {first}; its batch: {}", symptom(result), named(&names, labels)),
            "finite numbers",
            self.remedy(flight, left_out, &path),
        ))
    }

    /// What to do, as far as it is known what happened.
    fn remedy(&self, flight: &InFlight, left_out: bool, path: &Path) -> String {
        let (taken, from) = match (left_out, self.config.train.nonfinite) {
            (false, _) => ("the class weights have taken the step", "the last checkpoint"),
            (true, NonFinite::Stop) => ("the step was not taken", "the last checkpoint"),
            (true, NonFinite::Skip) => {
                ("none of these steps was taken", "a checkpoint from before them, if one is left")
            }
        };
        let skip = match (left_out, self.config.train.nonfinite) {
            (true, NonFinite::Stop) => ", or leave such steps out with train.nonfinite = \"skip\"",
            _ => "",
        };
        format!(
            "{taken}, and {} names its whole batch. Lower optim.lr (it was {} here), set optim.clip_norm = 5, look at \
             those images{skip}; then go on from {from} with --resume. Should the same step fail \
             again, the weights had grown out of range before: move the newest folders in checkpoints/ away",
            path.display(),
            flight.lr
        )
    }

    /// The batch of a step: a function of its epoch and its number there.
    fn batch_of(&self, flight: &InFlight) -> Result<Batch> {
        let number = usize::try_from(flight.batch).unwrap_or(usize::MAX);
        self.loader.epoch(flight.epoch, number)?.next().unwrap_or_else(|| {
            Err(Error::usage("a step has no batch", "this is a fault of the program; please report it"))
        })
    }

    /// Repeats a step, op by op. Where the first bad step halts the run the weights are still those that it started with;
    /// the empirical prototypes have seen its finite samples and those of the steps in flight behind it.
    fn origin(&mut self, flight: &InFlight) -> Result<Option<Origin>> {
        let Some((_, _, session)) = &mut self.session else { return Ok(None) };
        session.flush()?;
        let batch = self.batch_of(flight)?;
        self.write_inputs(&batch, flight.step, flight.lr)?;
        let Some((_, _, session)) = &mut self.session else { return Ok(None) };
        Ok(first_nonfinite(session)?)
    }
}

fn symptom(result: &StepResult) -> String {
    match (result.loss.is_finite(), result.nonfinite) {
        (false, _) => format!("the loss is {}", result.loss),
        (true, 0) => format!("the norm of the gradient is {}", result.grad_norm),
        (true, count) => format!("{count} elements of the gradient are not finite"),
    }
}

/// The first samples of a batch.
fn named(names: &[String], labels: &[u32]) -> String {
    let mut parts: Vec<String> =
        names.iter().zip(labels).take(NAMED).map(|(name, label)| format!("{name} (label {label})")).collect();
    if names.len() > NAMED {
        parts.push(format!("{} more", names.len() - NAMED));
    }
    parts.join(", ")
}
