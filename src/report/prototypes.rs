//! The section on what the prototypes did.

use maud::{Markup, html};

use super::chart::{Axis, Band, Chart, Series, Width};
use super::scale::number;
use super::{Percentiles, PrototypePoint, Report};

const HEIGHT: f64 = 260.0;

/// A quantity of which percentiles are drawn.
struct Quantity {
    title: &'static str,
    unit: &'static str,
    possible: (f64, f64),
    colour: usize,
    mean: fn(&PrototypePoint) -> f64,
    percentiles: fn(&PrototypePoint) -> Option<Percentiles>,
}

const COS_WEIGHT: Quantity = Quantity {
    title: "cos(x, W)",
    unit: "cosine",
    possible: (-1.0, 1.0),
    colour: 0,
    mean: |point| point.cos_weight,
    percentiles: |point| point.cos_weight_percentiles,
};

const COS_EMPIRICAL: Quantity = Quantity {
    title: "cos(x, Q)",
    unit: "cosine",
    possible: (-1.0, 1.0),
    colour: 1,
    mean: |point| point.cos_empirical,
    percentiles: |point| point.cos_empirical_percentiles,
};

const COS_BEFORE: Quantity = Quantity {
    title: "cos(x, Q) before the update",
    unit: "cosine",
    possible: (-1.0, 1.0),
    colour: 1,
    mean: |point| point.cos_before_update,
    percentiles: |point| point.cos_before_update_percentiles,
};

const MARGIN: Quantity = Quantity {
    title: "Adaptive margin",
    unit: "k cos(x, Q)",
    possible: (-1.0, 1.0),
    colour: 2,
    mean: |point| point.adaptive_margin,
    percentiles: |point| point.adaptive_margin_percentiles,
};

impl Report {
    /// What the prototypes did: of samples with bands, of classes with lines.
    pub(super) fn prototypes(&self) -> Markup {
        let threshold = self.prototypes.last().map_or(f64::NAN, |point| point.hard_cosine);
        html! {
            h2 { "Prototypes" }
            @if self.prototypes.is_empty() {
                p.missing { "No figures about prototypes were recorded." }
            } @else {
                p.note {
                    "W is the class prototype that gradients train; Q, the empirical one, is the running expectation of the "
                    "class\u{2019}s own features, and only a head with EPL has it. A point is an epoch. Bands hold the middle "
                    "half of the samples (dark) and nine tenths of them (light)."
                }
                div.pair {
                    (self.banded(&COS_WEIGHT,
                        "How near samples are to the prototype of their class. A light band that stays low while the \
                         median rises is samples that the network does not learn: hard ones, or wrong labels."))
                    (self.banded(&COS_EMPIRICAL,
                        "How near samples are to Q, which their step has just moved towards them, so that most are near. What \
                         lies low are samples of a class that moved to another sample of the same batch instead."))
                    (self.banded(&COS_BEFORE,
                        "The same before the step: how near a sample is to what its class looked like without it. A light \
                         band that stays low is hard samples, or wrong labels."))
                    (self.banded(&MARGIN,
                        "What the empirical branch takes off the cosine of a sample: much where sample and Q agree, little \
                         for hard samples."))
                    (self.class_angles())
                    (self.hard_share(threshold))
                    (self.unvisited())
                }
            }
        }
    }

    fn points(&self, value: impl Fn(&PrototypePoint) -> f64) -> Vec<(f64, f64)> {
        self.prototypes.iter().map(|point| (f64::from(point.epoch), value(point))).collect()
    }

    /// Median and bands; the mean where a log has no percentiles. Nothing where nothing was measured.
    fn banded(&self, quantity: &Quantity, reading: &str) -> Markup {
        let band = |name, outer, low: usize, high: usize| {
            let at = |point: &PrototypePoint| {
                let [low, high] =
                    (quantity.percentiles)(point).map_or([f64::NAN; 2], |values| [values[low], values[high]]);
                (f64::from(point.epoch), low, high)
            };
            let points = self.prototypes.iter().map(at).collect();
            Band { name, colour: quantity.colour, outer, points }
        };
        let medians = self.prototypes.iter().any(|point| (quantity.percentiles)(point).is_some());
        let (bands, line, points) = if medians {
            let bands = vec![band("5 to 95 %", true, 0, 4), band("25 to 75 %", false, 1, 3)];
            let median = |point: &PrototypePoint| (quantity.percentiles)(point).map_or(f64::NAN, |p| p[2]);
            (bands, "median", self.points(median))
        } else {
            (Vec::new(), "mean", self.points(quantity.mean))
        };
        let (low, high) = quantity.possible;
        let chart = Chart {
            title: quantity.title.to_owned(),
            x: Axis::count("epoch"),
            y: Axis::linear(quantity.unit).possible(low, high),
            height: HEIGHT,
            bands,
            marks: Vec::new(),
            series: vec![Series::line(line, quantity.colour, points)],
        };
        card(&chart, reading)
    }

    fn class_angles(&self) -> Markup {
        let mut series = vec![Series::line("between W and Q", 3, self.points(|point| point.angle_degrees))];
        let drift = Series::line("drift of Q", 4, self.points(|point| point.drift_degrees));
        if drift.points.iter().any(|point| point.1.is_finite()) {
            series.push(drift);
        }
        let chart = Chart {
            title: "Angle and drift".to_owned(),
            x: Axis::count("epoch"),
            y: Axis::linear("degrees, mean over classes").possible(0.0, 180.0),
            height: HEIGHT,
            bands: Vec::new(),
            marks: Vec::new(),
            series,
        };
        let reading = "How far the two prototypes of a class are apart, and how far Q turned in the epoch. At first Q is \
                       noise, which is at 90\u{b0} to everything; a drift that falls says that the features of a class settle.";
        card(&chart, reading)
    }

    fn hard_share(&self, threshold: f64) -> Markup {
        let chart = Chart {
            title: "Hard samples".to_owned(),
            x: Axis::count("epoch"),
            y: Axis::linear("% of the samples").possible(0.0, 100.0),
            height: HEIGHT,
            bands: Vec::new(),
            marks: Vec::new(),
            series: vec![Series::line("hard", 5, self.points(|point| 100.0 * point.hard_share))],
        };
        let reading = format!(
            "Samples whose cosine with Q before their step (with W, for a head without EPL) is below {}. What remains of them at the end is \
             worth a look: the command epl data noise names the worst.",
            number(threshold)
        );
        card(&chart, &reading)
    }

    fn unvisited(&self) -> Markup {
        let left = |point: &PrototypePoint| point.classes_unvisited.map_or(f64::NAN, |left| left as f64);
        let mut axis = Axis::count("classes").possible(0.0, f64::INFINITY);
        // A run that has seen all of them shows that on an axis with room, not on one around 0.
        if self.prototypes.iter().all(|point| point.classes_unvisited.unwrap_or(0) == 0) {
            axis.ends = Some((0.0, 1.0));
        }
        let chart = Chart {
            title: "Classes not yet visited".to_owned(),
            x: Axis::count("epoch"),
            y: axis,
            height: HEIGHT,
            bands: Vec::new(),
            marks: Vec::new(),
            series: vec![Series::line("not visited", 2, self.points(left))],
        };
        card(
            &chart,
            "Classes of which the run has not seen a sample so far; their Q is still noise. 0 is what one wants.",
        )
    }
}

/// A chart with a sentence on how to read it; nothing where it has no value at all.
fn card(chart: &Chart, reading: &str) -> Markup {
    let measured = chart.series.iter().flat_map(|series| &series.points).any(|point| point.1.is_finite());
    html! {
        @if measured {
            div.card { h3 { (chart.title) } p.reading { (reading) } (chart.render(Width::Half)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(epoch: u32, epl: bool) -> PrototypePoint {
        let percentiles = |low: f64| Some([low, low + 0.1, low + 0.2, low + 0.3, low + 0.4]);
        let of_epl = |value: f64| if epl { value } else { f64::NAN };
        PrototypePoint {
            step: 10 * u64::from(epoch),
            epoch,
            cos_weight: 0.5,
            cos_weight_percentiles: percentiles(0.25),
            cos_empirical: of_epl(0.6),
            cos_empirical_percentiles: percentiles(0.5).filter(|_| epl),
            cos_before_update: of_epl(0.6),
            cos_before_update_percentiles: percentiles(0.5).filter(|_| epl),
            adaptive_margin: of_epl(0.42),
            adaptive_margin_percentiles: percentiles(0.3).filter(|_| epl),
            angle_degrees: of_epl(30.0),
            angle_degrees_percentiles: None,
            drift_degrees: of_epl(12.0),
            drift_degrees_percentiles: None,
            hard_cosine: 0.3,
            hard_share: 0.125,
            classes_unvisited: Some(3),
        }
    }

    fn section(points: Vec<PrototypePoint>) -> String {
        Report { prototypes: points, ..Report::default() }.prototypes().0
    }

    const OF_EPL: [&str; 3] = ["cos(x, Q)", "Adaptive margin", "Angle and drift"];
    const OF_ALL: [&str; 3] = ["cos(x, W)", "Hard samples", "Classes not yet visited"];

    #[test]
    fn a_head_without_epl_has_no_charts_of_q() {
        let charts = |html: &str| html.matches("<figure").count();
        let html = section((1..=3).map(|epoch| point(epoch, true)).collect());
        assert!(OF_EPL.iter().chain(&OF_ALL).all(|title| html.contains(&format!("<h3>{title}</h3>"))));
        assert_eq!((charts(&html), html.matches("class=\"band ").count()), (7, 4 * 2));

        let html = section((1..=3).map(|epoch| point(epoch, false)).collect());
        assert!(OF_ALL.iter().all(|title| html.contains(&format!("<h3>{title}</h3>"))));
        assert_eq!((charts(&html), html.matches("class=\"band ").count()), (3, 2));
    }

    #[test]
    fn lines_without_percentiles_are_drawn_by_their_means() {
        let old = |epoch| PrototypePoint {
            cos_weight_percentiles: None,
            cos_empirical_percentiles: None,
            cos_before_update: f64::NAN,
            cos_before_update_percentiles: None,
            adaptive_margin_percentiles: None,
            drift_degrees: f64::NAN,
            hard_cosine: f64::NAN,
            hard_share: f64::NAN,
            classes_unvisited: None,
            ..point(epoch, true)
        };
        let html = section((1..=3).map(old).collect());
        assert!(!html.contains("class=\"band ") && html.contains("mean 0.42"), "{html}");
        assert!(!html.contains("Hard samples") && !html.contains("not yet visited"), "{html}");
        assert!(!html.contains("before the update</h3>"), "{html}");
        assert!(html.contains("between W and Q 30") && !html.contains("drift of Q"), "{html}");
    }

    #[test]
    fn readouts_have_median_and_bands() {
        let html = section(vec![point(1, true), point(2, true)]);
        assert!(
            html.contains("epoch 2  \u{b7}  median 0.45  \u{b7}  25 to 75 % 0.35 to 0.55  \u{b7}  5 to 95 % 0.25 to 0.65"),
            "{html}"
        );
    }
}
