//! The sections that have charts.

use maud::{Markup, html};

use super::chart::{Axis, Chart, Series, Width};
use super::scale::{Spacing, number, percent};
use super::{EvalPoint, Report, StepPoint};

/// A run with fewer points than this is drawn as it is.
const SMOOTHED_FROM: usize = 100;

impl Report {
    /// The figures that one looks for first.
    pub(super) fn tiles(&self) -> Markup {
        let losses: Vec<(f64, f64)> =
            self.steps.iter().map(|point| (point.step as f64, point.loss)).collect();
        let loss = smoothed(&losses).into_iter().map(|point| point.1).rfind(|loss| loss.is_finite());
        let mut speeds: Vec<f64> = self
            .steps
            .iter()
            .map(|point| point.images_per_second)
            .filter(|speed| speed.is_finite())
            .collect();
        speeds.sort_by(f64::total_cmp);
        let last = last_evaluations(&self.evals);
        html! {
            div.tiles {
                @if let Some(loss) = loss { (tile("Final loss", &number(loss), if losses.len() < SMOOTHED_FROM { "last logged step" } else { "smoothed" })) }
                @for point in last.iter().take(4) {
                    (tile(&format!("Accuracy, {}", point.set), &percent(point.accuracy),
                        &format!("\u{b1} {} over folds", percent(point.accuracy_std))))
                }
                @if let Some(&speed) = speeds.get(speeds.len() / 2) {
                    (tile("Throughput", &number(speed), "images a second"))
                }
            }
        }
    }

    /// Loss, learning rate, throughput, gradient norm.
    pub(super) fn training(&self) -> Markup {
        let lost = self.steps.iter().filter(|point| !point.loss.is_finite()).count();
        html! {
            h2 { "Training" }
            @if self.steps.is_empty() {
                p.missing { "No steps were logged." }
            } @else {
                div.card {
                    h3 { "Loss and learning rate" }
                    @if lost > 0 {
                        p.note { "The loss of " (lost) " of " (self.steps.len()) " logged steps was not finite; the curve has gaps there." }
                    }
                    (self.loss_chart().render(Width::Full))
                    (self.learning_rate_chart().render(Width::Full))
                }
                div.pair {
                    (self.step_chart("Throughput", "images a second", 2, |point| point.images_per_second))
                    (self.step_chart("Gradient norm", "L2 norm", 3, |point| point.grad_norm))
                }
            }
        }
    }

    fn loss_chart(&self) -> Chart {
        let raw: Vec<(f64, f64)> = self.steps.iter().map(|point| (point.step as f64, point.loss)).collect();
        let series = with_smoothed("loss", 0, raw);
        Chart {
            title: "Loss".to_owned(),
            x: Axis::count("step"),
            y: Axis::linear("loss"),
            height: 320.0,
            bands: Vec::new(),
            series,
        }
    }

    fn learning_rate_chart(&self) -> Chart {
        let points: Vec<(f64, f64)> = self.steps.iter().map(|point| (point.step as f64, point.lr)).collect();
        let mut rates: Vec<u64> = points.iter().map(|point| point.1.to_bits()).collect();
        rates.sort_unstable();
        rates.dedup();
        // A rate that falls in steps falls by factors, which a linear axis hides; a smooth schedule is
        // recognised by its shape on a linear axis.
        let stepped = rates.len() <= 10.min(points.len().div_ceil(2));
        let spacing = if stepped && rates.len() > 1 { Spacing::Log } else { Spacing::Linear };
        Chart {
            title: "Learning rate".to_owned(),
            x: Axis::count("step"),
            y: Axis { spacing, ..Axis::linear("learning rate").possible(0.0, f64::INFINITY) },
            height: 170.0,
            bands: Vec::new(),
            series: vec![Series { stepped, ..Series::line("rate", 1, points) }],
        }
    }

    /// A smaller chart of one quantity of the steps; nothing where it was never measured.
    fn step_chart(
        &self,
        title: &str,
        unit: &'static str,
        colour: usize,
        value: impl Fn(&StepPoint) -> f64,
    ) -> Markup {
        let points: Vec<(f64, f64)> =
            self.steps.iter().map(|point| (point.step as f64, value(point))).collect();
        let measured = points.iter().any(|point| point.1.is_finite());
        let chart = Chart {
            title: title.to_owned(),
            x: Axis::count("step"),
            y: Axis::linear(unit).possible(0.0, f64::INFINITY),
            height: 230.0,
            bands: Vec::new(),
            series: with_smoothed(&title.to_lowercase(), colour, points),
        };
        html! { @if measured { div.card { h3 { (title) } (chart.render(Width::Half)) } } }
    }

    /// Accuracy over the run, the figures of the last evaluation, ROC curves.
    pub(super) fn verification(&self) -> Markup {
        html! {
            h2 { "Verification" }
            @if self.evals.is_empty() {
                p.missing { "No verification set was evaluated." }
            } @else {
                div.card { h3 { "Accuracy" } (self.accuracy_chart().render(Width::Full)) }
                div.card {
                    h3 { "Last evaluation" }
                    div.scroll { (evaluation_table(&last_evaluations(&self.evals))) }
                }
            }
            @if self.rocs.iter().all(|curve| curve.points.is_empty()) {
                p.missing { "No ROC curve was recorded." }
            } @else {
                div.card { h3 { "Receiver operating characteristic" } (self.roc_chart().render(Width::Full)) }
            }
        }
    }

    fn accuracy_chart(&self) -> Chart {
        let series = set_names(self.evals.iter().map(|point| point.set.as_str()))
            .into_iter()
            .enumerate()
            .map(|(colour, set)| {
                let of_set = self.evals.iter().filter(|point| point.set == set);
                Series::line(
                    set,
                    colour,
                    of_set.map(|point| (f64::from(point.epoch), 100.0 * point.accuracy)).collect(),
                )
            })
            .collect();
        Chart {
            title: "Accuracy".to_owned(),
            x: Axis::count("epoch"),
            y: Axis::linear("accuracy, %").possible(0.0, 100.0),
            height: 300.0,
            bands: Vec::new(),
            series,
        }
    }

    fn roc_chart(&self) -> Chart {
        let all = || self.rocs.iter().flat_map(|curve| curve.points.iter());
        let smallest = all().map(|point| point.0).filter(|far| *far > 0.0).fold(0.1, f64::min);
        // The decade below the smallest rate, which is where a rate of 0 goes; at most eight decades are shown.
        let low = 10_f64.powf(smallest.max(1e-8).log10().floor());
        let names = set_names(self.rocs.iter().map(|curve| curve.set.as_str()));
        let series = self
            .rocs
            .iter()
            .map(|curve| {
                let points = curve.points.iter().map(|&(far, tar)| (far.max(low), 100.0 * tar)).collect();
                let colour = names.iter().position(|name| *name == curve.set).unwrap_or(0);
                Series { stepped: true, ..Series::line(&curve.set, colour, points) }
            })
            .collect();
        Chart {
            title: "Receiver operating characteristic".to_owned(),
            x: Axis { spacing: Spacing::Log, ends: Some((low, 1.0)), ..Axis::linear("FAR") },
            y: Axis::linear("TAR, %").possible(0.0, 100.0),
            height: 340.0,
            bands: Vec::new(),
            series,
        }
    }
}

fn tile(name: &str, value: &str, more: &str) -> Markup {
    html! { div.tile { div.name { (name) } div.value { (value) } div.more { (more) } } }
}

fn evaluation_table(points: &[&EvalPoint]) -> Markup {
    html! {
        table.figures {
            thead {
                tr {
                    @for head in ["Set", "Accuracy", "\u{b1} folds", "TAR at FAR 10\u{207b}\u{b3}", "AUC", "EER", "Threshold"] {
                        th scope="col" { (head) }
                    }
                }
            }
            tbody {
                @for point in points {
                    tr {
                        th scope="row" { (point.set) }
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
fn last_evaluations(evals: &[EvalPoint]) -> Vec<&EvalPoint> {
    let names = set_names(evals.iter().map(|point| point.set.as_str()));
    names.into_iter().filter_map(|name| evals.iter().rfind(|point| point.set == name)).collect()
}

/// Centred moving average over about a fiftieth of the points, which unlike an exponential one does not lag behind.
/// Values that are not finite are passed over, and stay gaps. Short runs are returned as they are.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = points.len() / SMOOTHED_FROM;
    let mean = |index: usize| {
        let window =
            points.get(index.saturating_sub(reach)..points.len().min(index + reach + 1)).unwrap_or_default();
        let finite = || window.iter().map(|point| point.1).filter(|value| value.is_finite());
        // Divided first: a sum of huge values need not be finite.
        let count = finite().count() as f64;
        finite().map(|value| value / count).sum::<f64>()
    };
    let smooth =
        |(index, &(x, value)): (usize, &(f64, f64))| (x, if value.is_finite() { mean(index) } else { value });
    if reach == 0 { points.to_vec() } else { points.iter().enumerate().map(smooth).collect() }
}

/// The smoothed line with the raw one behind it, or the raw one alone where smoothing changes nothing.
fn with_smoothed(name: &str, colour: usize, raw: Vec<(f64, f64)>) -> Vec<Series> {
    if raw.len() < SMOOTHED_FROM {
        return vec![Series::line(name, colour, raw)];
    }
    let smooth = Series::line("smoothed", colour, smoothed(&raw));
    vec![smooth, Series { faint: true, ..Series::line(name, colour, raw) }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_constants_and_short_runs() {
        let constant: Vec<_> = (0..600).map(|step| (f64::from(step), 2.5)).collect();
        assert!(smoothed(&constant).iter().all(|point| (point.1 - 2.5).abs() < 1e-12));
        let short: Vec<_> = (0..30).map(|step| (f64::from(step), f64::from(step % 3))).collect();
        assert_eq!(smoothed(&short), short);
        let noisy: Vec<_> = (0..3000).map(|step| (f64::from(step), f64::from(step % 2))).collect();
        assert!(smoothed(&noisy).iter().all(|point| (point.1 - 0.5).abs() < 0.02));
        let falling: Vec<_> = (0..600).map(|step| (f64::from(step), -f64::from(step))).collect();
        assert!((smoothed(&falling)[300].1 + 300.0).abs() < 1e-9, "no lag");
    }

    #[test]
    fn smoothing_passes_over_what_is_not_finite() {
        let mut points: Vec<_> = (0..300).map(|step| (f64::from(step), 1.0)).collect();
        points[100].1 = f64::NAN;
        points[200].1 = f64::INFINITY;
        let smooth = smoothed(&points);
        assert_eq!(smooth.iter().filter(|point| !point.1.is_finite()).count(), 2);
        assert!((smooth[299].1 - 1.0).abs() < 1e-12);
    }

    fn steps(rates: impl Iterator<Item = f64>) -> Report {
        let point = |(index, lr)| StepPoint {
            step: index as u64,
            epoch: 1,
            loss: 1.0,
            lr,
            images_per_second: 1.0,
            grad_norm: 1.0,
            loss_scale: 1.0,
            data_wait: 0.0,
            skipped: 0,
        };
        Report { steps: rates.enumerate().map(point).collect(), ..Report::default() }
    }

    #[test]
    fn stepped_rates_get_a_logarithmic_axis() {
        let multistep = steps((0..300).map(|step| 0.1 / 10_f64.powi(step / 100))).learning_rate_chart();
        assert!(multistep.series[0].stepped && multistep.y.spacing == Spacing::Log);
        let cosine = steps((0..300).map(|step| (f64::from(step) / 300.0).cos())).learning_rate_chart();
        assert!(!cosine.series[0].stepped && cosine.y.spacing == Spacing::Linear);
        let constant = steps((0..300).map(|_| 0.1)).learning_rate_chart();
        assert_eq!(constant.y.spacing, Spacing::Linear);
    }

    #[test]
    fn rates_of_zero_are_at_the_left_edge_of_the_roc() {
        let points = vec![(0.0, 0.5), (0.002, 0.8), (1.0, 1.0)];
        let report = Report {
            rocs: vec![super::super::RocCurve { set: "lfw".to_owned(), points }],
            ..Report::default()
        };
        let chart = report.roc_chart();
        assert_eq!(chart.x.ends, Some((0.001, 1.0)));
        assert_eq!(chart.series[0].points[0], (0.001, 50.0));
    }
}
