//! The report of a finished run.

use std::path::Path;

use crate::Result;
use crate::config::Config;
use crate::eval::verify::VerificationReport;
use crate::head::HeadForm;
use crate::report::{EvalPoint, Report};
use crate::train::folder::RunFolder;
use crate::train::metrics::{self, add_to_report};
use crate::train::run::Outcome;
use crate::train::sheet::face_sheet;
use crate::train::trainer::Trainer;

/// Sample faces on the sheet.
const SHEET_FACES: usize = 10;

/// An evaluation as a point of a curve.
pub fn eval_point(report: &VerificationReport, step: u64, epoch: u32) -> EvalPoint {
    EvalPoint {
        step,
        epoch,
        set: report.name.clone(),
        accuracy: report.accuracy,
        accuracy_std: report.accuracy_std,
        tar_at_far_1e3: report.tar_at_far_1e3,
        auc: report.auc,
        eer: report.eer,
        threshold: report.threshold,
        roc: thinned(&report.roc),
    }
}

/// The points of a ROC curve that a chart shows apart: steps of a twentieth of a decade in the false-accept rate, or of a
/// hundredth in the true-accept rate. The curve steps up at a rate, so that of several points at one rate the last counts.
fn thinned(roc: &[(f32, f32)]) -> Vec<(f64, f64)> {
    const STEP: f64 = 0.05;
    let mut kept: Vec<(f64, f64)> = Vec::new();
    let mut points = roc.iter().map(|&(far, tar)| (f64::from(far), f64::from(tar))).peekable();
    while let Some((far, tar)) = points.next() {
        if points.peek().is_some_and(|next| next.0 == far) {
            continue;
        }
        let apart = |&(last_far, last_tar): &(f64, f64)| {
            far.max(1e-9).log10() - last_far.max(1e-9).log10() >= STEP || tar - last_tar >= 0.01
        };
        if points.peek().is_none() || kept.last().is_none_or(apart) {
            kept.push((far, tar));
        }
    }
    kept
}

/// Gathers what a run left behind into a report.
pub fn report(config: &Config, trainer: &Trainer, folder: &RunFolder, outcome: &Outcome) -> Result<Report> {
    let description = trainer.device().description();
    let minutes = outcome.train_seconds / 60.0;
    let mut facts: Vec<(String, String)> = [
        (
            "Network",
            format!("{}, width {}, input {:?}", config.model.arch, config.model.width, config.model.input),
        ),
        ("Parameters", format!("{:.2} M", trainer.model().spec.parameters.trained_elements() as f64 / 1e6)),
        ("Head", head_text(config)),
        (
            "Data",
            format!("{} images, {} identities", trainer.dataset().len(), trainer.dataset().num_classes()),
        ),
        ("Device", format!("{} ({}, {})", description.name, description.backend, description.driver)),
        ("Steps", format!("{} in {} epochs", outcome.steps, outcome.epochs)),
        ("Training time", format!("{minutes:.1} min, {:.0} images/s", outcome.images_per_second)),
        ("Mean loss of the last epoch", format!("{:.4}", outcome.loss)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_string(), value))
    .collect();
    for result in &outcome.evaluations {
        facts.push((
            format!("Accuracy on {}, last epoch", result.name),
            format!("{:.2} % +- {:.2}", 100.0 * result.accuracy, 100.0 * result.accuracy_std),
        ));
    }
    let mut report = Report {
        title: format!("epl: {}", config.train.out.display()),
        facts,
        faces: face_sheet(trainer.model(), trainer.dataset().as_ref(), SHEET_FACES)?,
        last_weights: name_of(&folder.weights_path()),
        best_weights: name_of(&folder.best_path()),
        config_toml: config.to_toml()?,
        ..Report::default()
    };
    add_to_report(&mut report, metrics::read(&folder.metrics_path())?);
    Ok(report)
}

/// The name of a file, if it is there.
fn name_of(path: &Path) -> Option<String> {
    path.file_name().filter(|_| path.is_file()).map(|name| name.to_string_lossy().into_owned())
}

fn head_text(config: &Config) -> String {
    let head = &config.head;
    let mut base = format!("{:?}, margin {}, scale {}", head.kind, head.effective_margin(), head.scale);
    if head.form == HeadForm::Tiled {
        base += ", classes in tiles";
    }
    if head.sample_rate < 1.0 {
        base += &format!(", {} of the classes sampled a step", head.sample_rate);
    }
    match &head.epl {
        Some(epl) => format!("{base}, EPL from epoch {} (k = {})", epl.start_epoch, epl.k),
        None => base,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thinned_curve_keeps_its_ends_and_its_steps() {
        let roc: Vec<(f32, f32)> =
            (0..=3000).map(|i| (i as f32 / 3000.0, (i as f32 / 3000.0).powf(0.1))).collect();
        let kept = thinned(&roc);
        assert!(kept.len() < 150, "{}", kept.len());
        assert_eq!((kept.first(), kept.last()), (Some(&(0.0, 0.0)), Some(&(1.0, 1.0))));
        assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        // A jump at one rate is kept at its upper end.
        assert_eq!(thinned(&[(0.0, 0.0), (0.0, 0.75), (1.0, 0.75), (1.0, 1.0)]), [(0.0, 0.75), (1.0, 1.0)]);
        assert_eq!(thinned(&[]), []);
    }
}
