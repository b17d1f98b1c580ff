//! What a training run tells whoever watches it.

use std::io::Write;

use indicatif::{ProgressBar, ProgressStyle};

use crate::eval::verify::VerificationReport;
use crate::report::{PrototypePoint, StepPoint};

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
        if let Some(point) = prototypes {
            line += &format!(", cos(x, W_y) {:.3}", point.cos_weight);
            if point.cos_empirical.is_finite() {
                line += &format!(", cos(x, Q_y) {:.3}", point.cos_empirical);
            }
        }
        self.message(&line);
    }

    fn evaluation(&mut self, _epoch: u32, report: &VerificationReport) {
        self.message(&format!(
            "  {}: accuracy {:.4} +- {:.4}, AUC {:.4}, EER {:.4}",
            report.name, report.accuracy, report.accuracy_std, report.auc, report.eer
        ));
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
