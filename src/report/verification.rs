//! The section on the verification sets.

use maud::{Markup, html};

use super::chart::{Axis, Chart, Mark, Series, Width};
use super::scale::{Spacing, number, percent};
use super::{EvalPoint, Report};

/// The evaluation with the best mean accuracy, see [`best_evaluation`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BestEvaluation {
    /// Steps done before it.
    pub step: u64,
    /// The epoch that had ended, counted from 1.
    pub epoch: u32,
    /// Mean accuracy over the sets, a fraction.
    pub mean_accuracy: f64,
}

/// The evaluation with the best mean accuracy over all sets, the first of equal ones. Only those count that have all
/// sets, with a finite accuracy; where a set was evaluated twice after a step, the later result is taken.
pub fn best_evaluation(evals: &[EvalPoint]) -> Option<BestEvaluation> {
    let sets = set_names(evals.iter().map(|point| point.set.as_str()));
    let mut best: Option<BestEvaluation> = None;
    let mut steps: Vec<(u64, u32)> = evals.iter().map(|point| (point.step, point.epoch)).collect();
    steps.sort_unstable();
    steps.dedup_by_key(|step| step.0);
    for (step, epoch) in steps {
        let mean_accuracy = mean_accuracy(&evaluations_at(evals, step), sets.len());
        if mean_accuracy.is_finite() && best.is_none_or(|best| mean_accuracy > best.mean_accuracy) {
            best = Some(BestEvaluation { step, epoch, mean_accuracy });
        }
    }
    best
}

/// NaN unless there is one point for each of `sets` sets.
fn mean_accuracy(points: &[&EvalPoint], sets: usize) -> f64 {
    let sum: f64 = points.iter().map(|point| point.accuracy).sum();
    if points.len() == sets { sum / sets as f64 } else { f64::NAN }
}

/// The names, each once, in the order in which they come first.
fn set_names<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut unique = Vec::new();
    for name in names {
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

/// The last evaluation of each set.
pub(super) fn last_evaluations(evals: &[EvalPoint]) -> Vec<&EvalPoint> {
    last_of_each_set(evals, |_| true)
}

/// The evaluation of each set after `step` steps, of those sets that have one.
fn evaluations_at(evals: &[EvalPoint], step: u64) -> Vec<&EvalPoint> {
    last_of_each_set(evals, |point| point.step == step)
}

fn last_of_each_set(evals: &[EvalPoint], of: impl Fn(&EvalPoint) -> bool) -> Vec<&EvalPoint> {
    let names = set_names(evals.iter().map(|point| point.set.as_str()));
    names.into_iter().filter_map(|name| evals.iter().rfind(|point| point.set == name && of(point))).collect()
}

/// Most curves behind those of the best and the last epoch.
const FAINT_CURVES: usize = 12;

impl Report {
    /// Best and last results, accuracy and the other figures over the run, ROC curves.
    pub(super) fn verification(&self) -> Markup {
        let epochs = epochs_evaluated(&self.evals);
        html! {
            h2 { "Verification" }
            @if self.evals.is_empty() {
                p.missing { "No verification set was evaluated." }
            } @else {
                (self.results())
                div.card { h3 { "Accuracy" } (self.accuracy_chart().render(Width::Full)) }
                @if epochs > 1 {
                    div.pair {
                        (self.figure("TAR at FAR 10\u{207b}\u{b3}", "%", (0.0, 100.0), |point| 100.0 * point.tar_at_far_1e3))
                        (self.figure("Equal error rate", "%", (0.0, 100.0), |point| 100.0 * point.eer))
                        (self.figure("Area under the ROC curve", "AUC", (0.0, 1.0), |point| point.auc))
                        (self.figure("Threshold", "squared distance", (0.0, 4.0), |point| point.threshold))
                    }
                }
            }
            @let charts = self.roc_charts();
            @if charts.is_empty() {
                p.missing { "No ROC curve was recorded." }
            } @else {
                @let width = if charts.len() == 1 { Width::Full } else { Width::Half };
                div.pair[charts.len() > 1] {
                    @for chart in charts { div.card { h3 { (chart.title) } (chart.render(width)) } }
                }
            }
        }
    }

    /// For every set the results of the best epoch and of the last one.
    fn results(&self) -> Markup {
        let last = last_evaluations(&self.evals);
        let sets = last.len();
        let best = best_evaluation(&self.evals);
        let at_best = best.map(|best| evaluations_at(&self.evals, best.step)).unwrap_or_default();
        let rows: Vec<(&EvalPoint, &str)> = last
            .iter()
            .flat_map(|last| match at_best.iter().find(|point| point.set == last.set) {
                Some(best) if best.step == last.step => vec![(*last, "best and last")],
                Some(best) => vec![(*best, "best"), (*last, "last")],
                None => vec![(*last, "last")],
            })
            .collect();
        html! {
            div.card {
                h3 { "Results" }
                p.reading {
                    @if let Some(best) = best {
                        "The best epoch is " (best.epoch) ", where the mean accuracy of "
                        @if sets > 1 { "the " (sets) " sets" } @else { "the set" }
                        " was highest: " (percent(best.mean_accuracy))
                        @let mean = mean_accuracy(&last, sets);
                        @if mean.is_finite() && last.iter().any(|point| point.step != best.step) { "; at the last epoch it was " (percent(mean)) }
                        ". It was chosen on the very sets that it is reported on, which flatters it a little; the last epoch was not chosen."
                    } @else {
                        "No epoch has a finite accuracy on all sets, so none is the best."
                    }
                    @if let Some(file) = &self.last_weights { " The last epoch\u{2019}s weights are in " code { (file) } "." }
                    @if let Some(file) = &self.best_weights { " The best epoch\u{2019}s are in " code { (file) } "." }
                }
                div.scroll { (evaluation_table(&rows)) }
            }
        }
    }

    /// A line a set over the epochs.
    fn lines(&self, value: impl Fn(&EvalPoint) -> f64) -> Vec<Series> {
        set_names(self.evals.iter().map(|point| point.set.as_str()))
            .into_iter()
            .enumerate()
            .map(|(colour, set)| {
                let of_set = self.evals.iter().filter(|point| point.set == set);
                Series::line(
                    set,
                    colour,
                    of_set.map(|point| (f64::from(point.epoch), value(point))).collect(),
                )
            })
            .collect()
    }

    fn accuracy_chart(&self) -> Chart {
        let mark = |best: BestEvaluation| Mark { x: f64::from(best.epoch), name: "best" };
        Chart {
            title: "Accuracy".to_owned(),
            x: Axis::count("epoch"),
            y: Axis::linear("accuracy, %").possible(0.0, 100.0),
            height: 300.0,
            bands: Vec::new(),
            marks: best_evaluation(&self.evals).map(mark).into_iter().collect(),
            series: self.lines(|point| 100.0 * point.accuracy),
        }
    }

    /// A smaller chart of another figure; nothing where it was never measured.
    fn figure(
        &self,
        title: &str,
        unit: &'static str,
        (low, high): (f64, f64),
        value: impl Fn(&EvalPoint) -> f64,
    ) -> Markup {
        let series = self.lines(value);
        let measured = series.iter().flat_map(|series| &series.points).any(|point| point.1.is_finite());
        let chart = Chart {
            title: title.to_owned(),
            x: Axis::count("epoch"),
            y: Axis::linear(unit).possible(low, high),
            height: 230.0,
            bands: Vec::new(),
            marks: Vec::new(),
            series,
        };
        html! { @if measured { div.card { h3 { (title) } (chart.render(Width::Half)) } } }
    }

    /// A chart a set: the curves of the last epoch and of the best one, and those of others behind them.
    fn roc_charts(&self) -> Vec<Chart> {
        let names = set_names(self.evals.iter().map(|point| point.set.as_str()));
        let best = best_evaluation(&self.evals).map(|best| best.step);
        let charts = names.into_iter().filter_map(|set| {
            let of_set: Vec<&EvalPoint> =
                self.evals.iter().filter(|point| point.set == set && !point.roc.is_empty()).collect();
            let last = of_set.last()?.step;
            let smallest = of_set.iter().flat_map(|point| point.roc.iter().map(|rates| rates.0));
            let smallest = smallest.filter(|far| *far > 0.0).fold(0.1, f64::min);
            // The decade below the smallest rate, which is where a rate of 0 goes; at most eight decades are shown.
            let low = 10_f64.powf(smallest.max(1e-8).log10().floor());
            // Not so many that they hide each other.
            let every = of_set.len().div_ceil(FAINT_CURVES);
            let shown = of_set.iter().enumerate().filter(|(index, point)| {
                index % every == 0 || point.step == last || Some(point.step) == best
            });
            let series = shown.map(|(_, point)| {
                let points = point.roc.iter().map(|&(far, tar)| (far.max(low), 100.0 * tar)).collect();
                let (which, colour) = match (point.step == last, Some(point.step) == best) {
                    (true, true) => (", best and last", 0),
                    (true, false) => (", last", 0),
                    (false, true) => (", best", 1),
                    (false, false) => ("", 2),
                };
                let line = Series::line(format!("epoch {}{which}", point.epoch), colour, points);
                Series { stepped: true, faint: colour == 2, ..line }
            });
            Some(Chart {
                title: format!("Receiver operating characteristic, {set}"),
                x: Axis { spacing: Spacing::Log, ends: Some((low, 1.0)), ..Axis::linear("FAR") },
                y: Axis::linear("TAR, %").possible(0.0, 100.0),
                height: 340.0,
                bands: Vec::new(),
                marks: Vec::new(),
                series: series.collect(),
            })
        });
        charts.collect()
    }
}

/// How many epochs have an evaluation.
fn epochs_evaluated(evals: &[EvalPoint]) -> usize {
    let mut epochs: Vec<u32> = evals.iter().map(|point| point.epoch).collect();
    epochs.sort_unstable();
    epochs.dedup();
    epochs.len()
}

fn evaluation_table(rows: &[(&EvalPoint, &str)]) -> Markup {
    html! {
        table.figures {
            thead {
                tr {
                    @for head in ["Set", "Epoch", "Accuracy", "\u{b1} folds", "TAR at FAR 10\u{207b}\u{b3}", "AUC", "EER", "Threshold"] {
                        th scope="col" { (head) }
                    }
                }
            }
            tbody {
                @for (point, which) in rows {
                    tr {
                        th scope="row" { (point.set) }
                        td { (which) ", " (point.epoch) }
                        @for fraction in [point.accuracy, point.accuracy_std, point.tar_at_far_1e3] {
                            td { (percent(fraction)) }
                        }
                        td { (number(point.auc)) }
                        td { (percent(point.eer)) }
                        td { (number(point.threshold)) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eval(epoch: u32, set: &str, accuracy: f64) -> EvalPoint {
        EvalPoint {
            step: 10 * u64::from(epoch),
            epoch,
            set: set.to_owned(),
            accuracy,
            accuracy_std: 0.0,
            tar_at_far_1e3: 0.5,
            auc: 0.9,
            eer: 0.1,
            threshold: 1.5,
            roc: Vec::new(),
        }
    }

    fn best(evals: &[EvalPoint]) -> Option<(u32, f64)> {
        best_evaluation(evals).map(|best| (best.epoch, best.mean_accuracy))
    }

    #[test]
    fn the_best_epoch_is_that_of_the_best_mean() {
        let mut evals = vec![
            eval(1, "a", 0.875),
            eval(1, "b", 0.5),
            eval(2, "a", 0.75),
            eval(2, "b", 0.75),
            eval(3, "a", 0.5),
            eval(3, "b", 1.0),
            // The run ended within this one.
            eval(4, "a", 1.0),
        ];
        assert_eq!(best(&evals), Some((2, 0.75)), "the first of equal ones, and only whole ones");
        evals.push(eval(4, "b", f64::NAN));
        assert_eq!(best(&evals), Some((2, 0.75)));
        // A resumed run evaluates an epoch again.
        evals.push(eval(1, "b", 1.0));
        assert_eq!(best(&evals), Some((1, 0.9375)));
        assert_eq!(best(&[]), None);
        assert_eq!(best(&[eval(1, "a", f64::NAN)]), None);
    }

    #[test]
    fn best_and_last_are_labelled() {
        let evals = vec![eval(1, "a", 0.75), eval(1, "b", 0.75), eval(2, "a", 0.875), eval(2, "b", 0.5)];
        let mut report = Report { evals, ..Report::default() };
        let html = report.verification().0;
        for part in [
            "The best epoch is 1, where the mean accuracy of the 2 sets was highest: 75.00\u{2009}%",
            "at the last epoch it was 68.75\u{2009}%",
            "<td>best, 1</td><td>75.00",
            "<td>last, 2</td><td>87.50",
            "<td>last, 2</td><td>50.00",
            "class=\"mark\"",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
        assert!(!html.contains("<code>"), "no file is named that was not kept");
        report.best_weights = Some("best.safetensors".to_owned());
        assert!(report.verification().0.contains("in <code>best.safetensors</code>"));

        report.evals.truncate(2);
        let html = report.verification().0;
        assert!(html.contains("<td>best and last, 1</td>") && !html.contains("Equal error rate"), "{html}");
        report.evals[0].accuracy = f64::NAN;
        assert!(report.verification().0.contains("none is the best"));
    }

    #[test]
    fn every_evaluation_has_its_roc_and_rates_of_zero_are_at_the_left_edge() {
        let roc = vec![(0.0, 0.5), (0.002, 0.8), (1.0, 1.0)];
        let evals = [(1, 0.5), (2, 0.9), (3, 0.7)];
        let evals =
            evals.map(|(epoch, accuracy)| EvalPoint { roc: roc.clone(), ..eval(epoch, "lfw", accuracy) });
        let report = Report { evals: evals.into(), ..Report::default() };
        let charts = report.roc_charts();
        let [chart] = charts.as_slice() else { panic!("a chart a set") };
        assert_eq!(chart.x.ends, Some((0.001, 1.0)));
        assert_eq!(chart.series[0].points[0], (0.001, 50.0));
        let names: Vec<(&str, bool)> =
            chart.series.iter().map(|series| (series.name.as_str(), series.faint)).collect();
        assert_eq!(names, [("epoch 1", true), ("epoch 2, best", false), ("epoch 3, last", false)]);
    }
}
