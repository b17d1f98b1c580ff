//! What a training run tells whoever watches it.

use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

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

/// A progress bar and a line an epoch, on standard error.
pub struct Console {
    bar: ProgressBar,
}

impl Console {
    /// A console that draws nothing until the run starts.
    pub fn new() -> Self {
        Self { bar: ProgressBar::hidden() }
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
    fn start(&mut self, total_steps: u64, _steps_per_epoch: u64, summary: &str) {
        write_line(summary);
        self.bar = ProgressBar::new(total_steps);
        // The template is a constant; an unusable one would only leave the default look.
        if let Ok(style) =
            ProgressStyle::with_template("{bar:32} {pos}/{len} steps, {elapsed} gone, {eta} left  {msg}")
        {
            self.bar.set_style(style);
        }
    }

    fn step(&mut self, point: &StepPoint) {
        self.bar.set_position(point.step);
        self.bar.set_message(format!(
            "epoch {} loss {:.3} lr {:.2e} {:.0} images/s",
            point.epoch, point.loss, point.lr, point.images_per_second
        ));
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
