//! What a training run tells whoever watches it.

use std::io::Write;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::eval::verify::VerificationReport;
use crate::report::{Percentiles, PrototypePoint, StepPoint};

/// Something that watches a run. All methods do nothing unless written.
pub trait Observer {
    /// The run starts: total steps, steps an epoch, and a line about model, data and device.
    fn start(&mut self, _total_steps: u64, _steps_per_epoch: u64, _summary: &str) {}
    /// A step's result arrived (some steps after it was submitted).
    fn step(&mut self, _point: &StepPoint) {}
    /// An epoch ended.
    fn epoch(&mut self, _epoch: u32, _mean_loss: f64, _prototypes: Option<&PrototypePoint>) {}
    /// A verification set was evaluated.
    fn evaluation(&mut self, _epoch: u32, _report: &VerificationReport) {}
    /// A checkpoint was written after `step` steps: its bytes, and the time that it took.
    fn checkpoint(&mut self, _step: u64, _bytes: u64, _took: Duration) {}
    /// Anything else worth a line.
    fn message(&mut self, _text: &str) {}
    /// The run ended.
    fn end(&mut self) {}
}

/// Watches nothing.
pub struct Silent;

impl Observer for Silent {}

/// A progress bar and a line an epoch, on standard error; where that is no terminal, lines of progress instead of the
/// bar.
pub struct Console {
    bar: ProgressBar,
    pace: Pace,
    /// When progress was last written as a line.
    line_at: Option<Instant>,
}

/// Between two lines of progress where there is no terminal, at least; a step that takes longer has its own.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// A share of the time that waits for data is mentioned from here on.
const WAIT_SHOWN: f64 = 0.05;

impl Console {
    /// A console that draws nothing until the run starts.
    pub fn new() -> Self {
        Self { bar: ProgressBar::hidden(), pace: Pace::default(), line_at: None }
    }
}

/// How far a run is and how fast it goes.
#[derive(Default)]
struct Pace {
    total_steps: u64,
    steps_per_epoch: u64,
    /// The first step that was seen, and when: a resumed run does not start at step 1.
    first: Option<(u64, Instant)>,
}

impl Pace {
    /// Time left at the pace since the first step, evaluations included; `None` before there is one.
    fn left(&mut self, step: u64, now: Instant) -> Option<Duration> {
        let (first, since) = *self.first.get_or_insert((step, now));
        let done = step.checked_sub(first).filter(|done| *done > 0)?;
        let seconds = now.duration_since(since).as_secs_f64() / done as f64;
        Duration::try_from_secs_f64(seconds * self.total_steps.saturating_sub(step) as f64).ok()
    }

    /// The figures of a step that fit a line.
    fn text(&mut self, point: &StepPoint, now: Instant) -> String {
        let epochs = self.total_steps.div_ceil(self.steps_per_epoch.max(1));
        let mut text = format!(
            "epoch {}/{epochs}, loss {:.3}, lr {:.2e}, {:.0} images/s",
            point.epoch, point.loss, point.lr, point.images_per_second
        );
        if point.data_wait > WAIT_SHOWN {
            text += &format!(", {:.0} % of the time waiting for data", 100.0 * point.data_wait);
        }
        if point.skipped > 0 {
            text += &format!(", {} steps skipped", point.skipped);
        }
        if let Some(left) = self.left(point.step, now) {
            text += &format!(", {} left", HumanDuration(left));
        }
        text
    }
}

/// A line on standard error. Unlike `eprintln!` it survives a reader that has gone away.
fn write_line(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// The figures of an epoch's prototypes that fit a line: means, with the 5th and the 95th percentile of the cosines.
fn prototype_text(point: &PrototypePoint) -> String {
    let cosine = |name: &str, mean: f64, percentiles: Option<Percentiles>| match percentiles {
        Some([low, .., high]) => format!(", {name} {mean:.3} ({low:.2} to {high:.2})"),
        None if mean.is_finite() => format!(", {name} {mean:.3}"),
        None => String::new(),
    };
    let mut text = cosine("cos(x, W_y)", point.cos_weight, point.cos_weight_percentiles);
    text += &cosine("cos(x, Q_y)", point.cos_empirical, point.cos_empirical_percentiles);
    if point.angle_degrees.is_finite() {
        text += &format!(", W to Q {:.1} deg, Q moved {:.1} deg", point.angle_degrees, point.drift_degrees);
    }
    if point.hard_share.is_finite() {
        text += &format!(", hard {:.1} %", 100.0 * point.hard_share);
    }
    // All classes are visited in the first epoch of most runs, which need not be told of it in every other one.
    if let Some(left @ 1..) = point.classes_unvisited {
        text += &format!(", {left} classes not yet visited");
    }
    text
}

impl Default for Console {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for Console {
    fn start(&mut self, total_steps: u64, steps_per_epoch: u64, summary: &str) {
        write_line(summary);
        self.pace = Pace { total_steps, steps_per_epoch, first: None };
        self.bar = ProgressBar::new(total_steps);
        // The template is a constant; an unusable one would only leave the default look.
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} steps, {elapsed} gone  {msg}") {
            self.bar.set_style(style);
        }
    }

    fn step(&mut self, point: &StepPoint) {
        let now = Instant::now();
        let text = self.pace.text(point, now);
        if !self.bar.is_hidden() {
            self.bar.set_position(point.step);
            self.bar.set_message(text);
        } else if self.line_at.is_none_or(|last| now.duration_since(last) >= LINE_EVERY) {
            write_line(&format!("step {}/{}: {text}", point.step, self.pace.total_steps));
            self.line_at = Some(now);
        }
    }

    fn epoch(&mut self, epoch: u32, mean_loss: f64, prototypes: Option<&PrototypePoint>) {
        let mut line = format!("epoch {epoch}: mean loss {mean_loss:.4}");
        line.extend(prototypes.map(prototype_text));
        self.message(&line);
    }

    fn evaluation(&mut self, _epoch: u32, report: &VerificationReport) {
        self.message(&format!(
            "  {}: accuracy {:.4} +- {:.4}, AUC {:.4}, EER {:.4}",
            report.name, report.accuracy, report.accuracy_std, report.auc, report.eer
        ));
    }

    fn checkpoint(&mut self, step: u64, bytes: u64, took: Duration) {
        let (mib, seconds) = (bytes as f64 / f64::from(1 << 20), took.as_secs_f64());
        self.message(&format!("checkpoint after step {step}: {mib:.1} MiB in {seconds:.1} s"));
    }

    fn message(&mut self, text: &str) {
        // A hidden bar (no terminal) would swallow the line.
        if self.bar.is_hidden() {
            write_line(text);
        } else {
            self.bar.println(text);
        }
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_progress_has_what_matters() {
        let mut pace = Pace { total_steps: 2001, steps_per_epoch: 1000, first: None };
        let start = Instant::now();
        let mut point = StepPoint {
            step: 500,
            epoch: 1,
            loss: 12.3456,
            lr: 0.1,
            images_per_second: 812.4,
            grad_norm: 1.0,
            loss_scale: 1.0,
            data_wait: 0.05,

            device_wait: 0.9,
            skipped: 0,
        };
        // A resumed run: what was done before says nothing about the pace.
        assert_eq!(pace.text(&point, start), "epoch 1/3, loss 12.346, lr 1.00e-1, 812 images/s");
        (point.step, point.data_wait, point.skipped) = (501, 0.234, 2);
        assert_eq!(
            pace.text(&point, start + Duration::from_millis(2400)),
            "epoch 1/3, loss 12.346, lr 1.00e-1, 812 images/s, 23 % of the time waiting for data, 2 steps skipped, \
             60 minutes left"
        );
        (point.step, point.data_wait) = (2001, f64::NAN);
        assert!(
            pace.text(&point, start + Duration::from_secs(9))
                .ends_with("812 images/s, 2 steps skipped, 0 seconds left")
        );
        // A clock that stands still, or a run that is longer than it was said to be.
        assert_eq!(pace.left(3000, start), Some(Duration::ZERO));
        assert_eq!(Pace::default().left(0, start), None);
    }

    #[test]
    fn a_line_of_figures_leaves_out_what_a_head_without_epl_lacks() {
        let epl = PrototypePoint {
            step: 10,
            epoch: 1,
            cos_weight: 0.5,
            cos_weight_percentiles: Some([0.1, 0.3, 0.5, 0.7, 0.8]),
            cos_empirical: 0.625,
            cos_empirical_percentiles: Some([0.2, 0.4, 0.6, 0.8, 0.9]),
            cos_before_update: 0.625,
            cos_before_update_percentiles: Some([0.2, 0.4, 0.6, 0.8, 0.9]),
            adaptive_margin: 0.4375,
            adaptive_margin_percentiles: None,
            angle_degrees: 31.0,
            angle_degrees_percentiles: None,
            drift_degrees: 12.5,
            drift_degrees_percentiles: None,
            hard_cosine: 0.3,
            hard_share: 0.0625,
            classes_unvisited: Some(2),
        };
        assert_eq!(
            prototype_text(&epl),
            ", cos(x, W_y) 0.500 (0.10 to 0.80), cos(x, Q_y) 0.625 (0.20 to 0.90), W to Q 31.0 deg, Q moved 12.5 deg, \
             hard 6.2 %, 2 classes not yet visited"
        );
        let plain = PrototypePoint {
            cos_empirical: f64::NAN,
            cos_empirical_percentiles: None,
            cos_before_update: f64::NAN,
            cos_before_update_percentiles: None,
            angle_degrees: f64::NAN,
            drift_degrees: f64::NAN,
            classes_unvisited: Some(0),
            ..epl
        };
        assert_eq!(prototype_text(&plain), ", cos(x, W_y) 0.500 (0.10 to 0.80), hard 6.2 %");
    }
}
