//! The sections that have charts.

use maud::{Markup, html};

use super::chart::{Axis, Chart, Series, Width};
use super::scale::{Spacing, number, percent};
use super::verification::last_evaluations;
use super::{Report, StepPoint};

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
                        &format!("\u{b1} {} over folds, last epoch", percent(point.accuracy_std))))
                }
                @if let Some(&speed) = speeds.get(speeds.len() / 2) {
                    (tile("Throughput", &number(speed), &self.waiting().map_or_else(
                        || "images a second".to_owned(),
                        |share| format!("images a second; {share:.0}\u{2009}% of the time waiting for data"))))
                }
            }
        }
    }

    /// Percent of the time in which the run waited for data; `None` where that was not measured or hardly anything.
    fn waiting(&self) -> Option<f64> {
        let shares: Vec<f64> =
            self.steps.iter().map(|point| point.data_wait).filter(|share| share.is_finite()).collect();
        let mean = 100.0 * shares.iter().sum::<f64>() / shares.len() as f64;
        Some(mean).filter(|share| *share >= 0.5)
    }

    /// Loss, learning rate, throughput, waiting, gradient norm, loss scale.
    pub(super) fn training(&self) -> Markup {
        let lost = self.steps.iter().filter(|point| !point.loss.is_finite()).count();
        let skipped = self.steps.iter().map(|point| point.skipped).max().unwrap_or(0);
        let scaled = self.steps.iter().any(|point| point.loss_scale.is_finite() && point.loss_scale != 1.0);
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
                    @if skipped > 0 {
                        p.note { "The updates of " (skipped) " steps were left out, because their loss or gradient was not finite." }
                    }
                    (self.loss_chart().render(Width::Full))
                    (self.learning_rate_chart().render(Width::Full))
                }
                div.pair {
                    (self.step_chart("Throughput", "images a second", 2, |point| point.images_per_second))
                    (self.step_chart("Time waiting for data", "% of the time", 4, |point| 100.0 * point.data_wait))
                    (self.step_chart("Gradient norm", "L2 norm", 3, |point| point.grad_norm))
                    @if scaled { (self.step_chart("Loss scale", "factor", 5, |point| point.loss_scale)) }
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
            marks: Vec::new(),
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
            marks: Vec::new(),
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
            marks: Vec::new(),
            series: with_smoothed(&title.to_lowercase(), colour, points),
        };
        html! { @if measured { div.card { h3 { (title) } (chart.render(Width::Half)) } } }
    }
}

fn tile(name: &str, value: &str, more: &str) -> Markup {
    html! { div.tile { div.name { (name) } div.value { (value) } div.more { (more) } } }
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

            device_wait: 0.9,
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
}
