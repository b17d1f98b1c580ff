//! A line chart as inline SVG. Colours are CSS classes of `style.css`, so that one picture serves light and dark.

use maud::{Markup, html};

use super::scale::{Scale, Spacing, number};

/// Number of colours in `style.css`; further series reuse them, dashed.
const COLOURS: usize = 6;

/// A chart is drawn at a fixed width in CSS pixels, at which its text has its natural size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// The whole page; phones get a [`Width::Half`] of their own.
    Full,
    /// Half the page, or a phone.
    Half,
}

/// One axis.
pub(super) struct Axis {
    /// Quantity and unit.
    pub(super) title: &'static str,
    /// Its spacing.
    pub(super) spacing: Spacing,
    /// The values at its ends; by default those of the series.
    pub(super) ends: Option<(f64, f64)>,
    /// What is possible at all, for example 0 to 100 %; margins do not go beyond.
    pub(super) possible: (f64, f64),
    /// Whether its values are counts, so that only whole numbers make sense as ticks.
    pub(super) whole: bool,
}

impl Axis {
    /// A linear axis over the values of the series.
    pub(super) fn linear(title: &'static str) -> Self {
        Self {
            title,
            spacing: Spacing::Linear,
            ends: None,
            possible: (f64::NEG_INFINITY, f64::INFINITY),
            whole: false,
        }
    }

    /// A linear axis over counts: steps, epochs.
    pub(super) fn count(title: &'static str) -> Self {
        Self { whole: true, ..Self::linear(title) }
    }

    /// The same, with limits that the axis does not pass.
    pub(super) fn possible(self, low: f64, high: f64) -> Self {
        Self { possible: (low, high), ..self }
    }

    fn scale(&self, values: impl Iterator<Item = f64>, margin: f64) -> Option<Scale> {
        let (low, high) = self.possible;
        let scale = match self.ends {
            Some((low, high)) => Scale::fixed(self.spacing, low, high),
            None => Scale::of(self.spacing, values, margin)?.within(low, high),
        };
        Some(if self.whole { scale.whole() } else { scale })
    }
}

/// One line of a chart.
pub(super) struct Series {
    /// Its name in the legend.
    pub(super) name: String,
    /// Index of its colour.
    pub(super) colour: usize,
    /// Drawn thin and pale, behind the others: the raw values of a smoothed line.
    pub(super) faint: bool,
    /// Constant from each point to the next, instead of straight lines between them.
    pub(super) stepped: bool,
    /// Points in ascending order of x. Where a coordinate is not finite the line has a gap.
    pub(super) points: Vec<(f64, f64)>,
}

impl Series {
    /// A plain line.
    pub(super) fn line(name: impl Into<String>, colour: usize, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), colour, faint: false, stepped: false, points }
    }

    fn class(&self) -> String {
        let dashed = if self.colour >= COLOURS { " dashed" } else { "" };
        let faint = if self.faint { " faint" } else { "" };
        format!("c{}{dashed}{faint}", self.colour % COLOURS)
    }

    /// The last value at or before `x`, where that is finite.
    fn at(&self, x: f64) -> Option<f64> {
        let after = self.points.partition_point(|point| point.0 <= x);
        let value = self.points.get(after.checked_sub(1)?)?.1;
        value.is_finite().then_some(value)
    }
}

/// The area between two lines: between which values a share of what was measured lies.
pub(super) struct Band {
    /// Its name in the legend.
    pub(super) name: &'static str,
    /// Index of its colour.
    pub(super) colour: usize,
    /// Drawn paler: the outer one of two bands.
    pub(super) outer: bool,
    /// x, low and high, in ascending order of x. Where a coordinate is not finite the band has a gap.
    pub(super) points: Vec<(f64, f64, f64)>,
}

impl Band {
    fn class(&self) -> String {
        format!("band c{}{}", self.colour % COLOURS, if self.outer { " outer" } else { "" })
    }

    /// Its low and high points one after the other.
    fn edges(&self) -> impl Iterator<Item = (f64, f64)> {
        self.points.iter().flat_map(|&(x, low, high)| [(x, low), (x, high)])
    }

    /// The values at `x`, where it has a point with finite ones.
    fn at(&self, x: f64) -> Option<(f64, f64)> {
        let &(_, low, high) = self.points.iter().find(|point| point.0 == x)?;
        (low.is_finite() && high.is_finite()).then_some((low, high))
    }
}

/// An upright line with a name.
pub(super) struct Mark {
    /// Where it stands.
    pub(super) x: f64,
    /// What is there.
    pub(super) name: &'static str,
}

/// A line chart.
pub(super) struct Chart {
    /// What it shows, for screen readers.
    pub(super) title: String,
    /// The horizontal axis.
    pub(super) x: Axis,
    /// The vertical axis.
    pub(super) y: Axis,
    /// Height in CSS pixels.
    pub(super) height: f64,
    /// The areas behind the lines, the outermost first.
    pub(super) bands: Vec<Band>,
    /// Upright lines at values of x.
    pub(super) marks: Vec<Mark>,
    /// The lines.
    pub(super) series: Vec<Series>,
}

/// The rectangle that the lines are drawn in, and the scales that lead there.
struct Frame {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
    x: Scale,
    y: Scale,
}

impl Frame {
    fn x(&self, value: f64) -> Option<f64> {
        Some(self.left + self.x.position(value)?.clamp(0.0, 1.0) * (self.right - self.left))
    }

    fn y(&self, value: f64) -> Option<f64> {
        Some(self.bottom - self.y.position(value)?.clamp(0.0, 1.0) * (self.bottom - self.top))
    }

    fn place(&self, point: (f64, f64)) -> Option<(f64, f64)> {
        Some((self.x(point.0)?, self.y(point.1)?))
    }
}

impl Chart {
    /// The chart with its legend, or a line saying that there is nothing to draw.
    pub(super) fn render(&self, width: Width) -> Markup {
        let points = || {
            let lines = self.series.iter().flat_map(|series| series.points.iter().copied());
            let all = lines.chain(self.bands.iter().flat_map(Band::edges));
            all.filter(|point| point.0.is_finite() && point.1.is_finite())
        };
        let x = self.x.scale(points().map(|point| point.0), 0.0);
        let y = self.y.scale(points().map(|point| point.1), 0.06);
        let (Some(x), Some(y)) = (x, y) else {
            return html! { p.missing { (self.title) ": no finite values to draw." } };
        };
        html! {
            figure.chart {
                @if self.series.len() + self.bands.len() > 1 { (self.legend()) }
                @match width {
                    Width::Full => {
                        div.wide { (self.svg(960.0, x.clone(), y.clone(), true)) }
                        // A touch screen has no pointer to hover with.
                        div.narrow { (self.svg(400.0, x, y, false)) }
                    }
                    Width::Half => (self.svg(424.0, x, y, true)),
                }
            }
        }
    }

    fn legend(&self) -> Markup {
        html! {
            figcaption.legend {
                @for series in &self.series {
                    span.key { span class=(format!("swatch {}", series.class())) {} (series.name) }
                }
                @for band in self.bands.iter().rev() {
                    span.key { span class=(format!("swatch {}", band.class())) {} (band.name) }
                }
            }
        }
    }

    fn svg(&self, width: f64, x: Scale, y: Scale, hover: bool) -> Markup {
        let y_count = ((self.height - 70.0) / 38.0).clamp(2.0, 8.0) as usize;
        let y_ticks: Vec<(f64, String)> =
            y.ticks(y_count).into_iter().map(|tick| (tick, y.label(tick, y_count))).collect();
        let longest = y_ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0);
        let left = (14.0 + 7.0 * longest as f64).max(48.0);
        let frame = Frame { left, top: 26.0, right: width - 14.0, bottom: self.height - 42.0, x, y };
        let x_count = ((frame.right - frame.left) / 90.0).clamp(2.0, 10.0) as usize;
        let x_ticks: Vec<(f64, String)> =
            frame.x.ticks(x_count).into_iter().map(|tick| (tick, frame.x.label(tick, x_count))).collect();
        html! {
            svg viewBox=(format!("0 0 {width} {}", self.height)) role="img" aria-label=(self.title) {
                @for (tick, label) in &y_ticks {
                    @if let Some(y) = frame.y(*tick) {
                        line.grid x1=(px(frame.left)) x2=(px(frame.right)) y1=(px(y)) y2=(px(y)) {}
                        text.tick x=(px(frame.left - 8.0)) y=(px(y + 4.0)) text-anchor="end" { (label) }
                    }
                }
                line.axis x1=(px(frame.left)) x2=(px(frame.right)) y1=(px(frame.bottom)) y2=(px(frame.bottom)) {}
                @for (tick, label) in &x_ticks {
                    @if let Some(x) = frame.x(*tick) {
                        line.axis x1=(px(x)) x2=(px(x)) y1=(px(frame.bottom)) y2=(px(frame.bottom + 4.0)) {}
                        text.tick x=(px(x)) y=(px(frame.bottom + 18.0)) text-anchor="middle" { (label) }
                    }
                }
                text.axis-title.above x=(px(frame.left)) y="14" { (self.y.title) }
                text.axis-title x=(px(frame.right)) y=(px(self.height - 6.0)) text-anchor="end" { (self.x.title) }
                @for band in &self.bands {
                    path class=(band.class()) d=(area(band, &frame)) {}
                }
                @for mark in &self.marks {
                    @if let Some(x) = frame.x(mark.x) {
                        line.mark x1=(px(x)) x2=(px(x)) y1=(px(frame.top)) y2=(px(frame.bottom)) {}
                        // On the side where there is room.
                        @let (at, anchor) = if x > (frame.left + frame.right) / 2.0 { (x - 5.0, "end") } else { (x + 5.0, "start") };
                        text.mark-name x=(px(at)) y=(px(frame.bottom - 6.0)) text-anchor=(anchor) { (mark.name) }
                    }
                }
                @for series in self.series.iter().rev() {
                    path class=(format!("line {}", series.class())) d=(path(series, &frame)) {}
                    @if !series.faint && !series.stepped && series.points.len() <= 40 {
                        @for (x, y) in series.points.iter().filter_map(|&point| frame.place(point)) {
                            circle class=(format!("dot {}", series.class())) cx=(px(x)) cy=(px(y)) r="3.2" {}
                        }
                    }
                }
                @if hover { (self.strips(&frame)) }
            }
        }
    }

    /// Invisible vertical strips that, under the pointer, show a cursor and the values there.
    fn strips(&self, frame: &Frame) -> Markup {
        let mut stops: Vec<(f64, f64)> = self
            .series
            .iter()
            .flat_map(|series| &series.points)
            .filter(|point| point.1.is_finite())
            .filter_map(|point| Some((frame.x(point.0)?, point.0)))
            .collect();
        stops.sort_by(|a, b| a.0.total_cmp(&b.0));
        // A strip is at least 7 pixels wide, or it could not be hit.
        let mut apart: Vec<(f64, f64)> = Vec::new();
        for stop in stops {
            if apart.last().is_none_or(|last| stop.0 - last.0 >= 7.0) {
                apart.push(stop);
            }
        }
        let middle = |a: Option<&(f64, f64)>, b: Option<&(f64, f64)>| Some((a?.0 + b?.0) / 2.0);
        html! {
            @for (index, &(at, x)) in apart.iter().enumerate() {
                @let before = index.checked_sub(1).and_then(|index| apart.get(index));
                @let from = middle(before, apart.get(index)).unwrap_or(frame.left);
                @let to = middle(apart.get(index), apart.get(index + 1)).unwrap_or(frame.right);
                @let text = self.readout(x);
                g.strip {
                    rect x=(px(from)) y=(px(frame.top)) width=(px(to - from)) height=(px(frame.bottom - frame.top)) {}
                    line.cursor x1=(px(at)) x2=(px(at)) y1=(px(frame.top)) y2=(px(frame.bottom)) {}
                    @for series in self.series.iter().filter(|series| !series.faint) {
                        @if let Some(y) = series.at(x).and_then(|y| frame.y(y)) {
                            circle class=(format!("dot {}", series.class())) cx=(px(at)) cy=(px(y)) r="4" {}
                        }
                    }
                    text.readout x=(px(frame.right)) y="14" text-anchor="end" { (text) }
                    title { (text) }
                }
            }
        }
    }

    fn readout(&self, x: f64) -> String {
        let mut text = format!("{} {}", self.x.title, number(x));
        for series in &self.series {
            if let Some(y) = series.at(x) {
                text.push_str(&format!("  \u{b7}  {} {}", series.name, number(y)));
            }
        }
        for band in self.bands.iter().rev() {
            if let Some((low, high)) = band.at(x) {
                text.push_str(&format!("  \u{b7}  {} {} to {}", band.name, number(low), number(high)));
            }
        }
        text
    }
}

/// A coordinate, to a tenth of a pixel.
fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// The path data of a line. Points that share a pixel column are reduced to the first, lowest, highest and last, which
/// looks the same and keeps the file small however long the run was.
fn path(series: &Series, frame: &Frame) -> String {
    let mut data = String::new();
    let placed: Vec<_> = series.points.iter().map(|&point| frame.place(point)).collect();
    for run in placed.split(|point| point.is_none()) {
        let run: Vec<(f64, f64)> = run.iter().copied().flatten().collect();
        let mut command = 'M';
        let mut last: Option<(f64, f64)> = None;
        for column in run.chunk_by(|a, b| a.0.floor() == b.0.floor()) {
            for (x, y) in extremes(column) {
                match last {
                    Some((_, from)) if series.stepped => {
                        data.push_str(&format!("H{}", px(x)));
                        if from != y {
                            data.push_str(&format!("V{}", px(y)));
                        }
                    }
                    _ => data.push_str(&format!("{command}{} {}", px(x), px(y))),
                }
                command = 'L';
                last = Some((x, y));
            }
        }
        if run.len() == 1 {
            // With round caps a line of no length is a dot.
            data.push_str("h0");
        }
    }
    data
}

/// Half the width at which a point of a band is drawn that has no neighbours.
const ALONE: f64 = 5.0;

/// The path data of a band: forth along its upper edge and back along its lower one, for each stretch without a gap.
fn area(band: &Band, frame: &Frame) -> String {
    let mut data = String::new();
    let place = |&(x, low, high): &(f64, f64, f64)| Some((frame.x(x)?, frame.y(low)?, frame.y(high)?));
    let placed: Vec<_> = band.points.iter().map(place).collect();
    for run in placed.split(|point| point.is_none()) {
        let mut run: Vec<(f64, f64, f64)> = run.iter().copied().flatten().collect();
        if let [(x, low, high)] = run[..] {
            run = vec![(x - ALONE, low, high), (x + ALONE, low, high)];
        }
        let forth = run.iter().map(|&(x, _, high)| (x, high));
        let back = run.iter().rev().map(|&(x, low, _)| (x, low));
        for (index, (x, y)) in forth.chain(back).enumerate() {
            data.push_str(&format!("{}{} {}", if index == 0 { 'M' } else { 'L' }, px(x), px(y)));
        }
        if !run.is_empty() {
            data.push('Z');
        }
    }
    data
}

/// First, lowest, highest and last point of a column, in their order, each once.
fn extremes(column: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let lowest = (0..column.len()).min_by(|&a, &b| column[a].1.total_cmp(&column[b].1));
    let highest = (0..column.len()).max_by(|&a, &b| column[a].1.total_cmp(&column[b].1));
    let mut indices: Vec<usize> =
        [Some(0), lowest, highest, column.len().checked_sub(1)].into_iter().flatten().collect();
    indices.sort_unstable();
    indices.dedup();
    indices.into_iter().filter_map(|index| column.get(index).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        Chart {
            title: "loss".to_owned(),
            x: Axis::linear("step"),
            y: Axis::linear("loss"),
            height: 260.0,
            bands: Vec::new(),
            marks: Vec::new(),
            series: vec![Series::line("loss", 0, points)],
        }
    }

    #[track_caller]
    fn clean(svg: &str) {
        for word in ["NaN", "inf", "nan"] {
            assert!(!svg.contains(word), "{word} in {svg}");
        }
    }

    #[test]
    fn gaps_where_values_are_not_finite() {
        let nan = f64::NAN;
        let svg =
            chart(vec![(1.0, 5.0), (2.0, nan), (3.0, 4.0), (4.0, 3.0), (5.0, f64::INFINITY), (nan, 1.0)])
                .render(Width::Half)
                .0;
        clean(&svg);
        let data = svg.split(" d=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        assert_eq!(data.matches('M').count(), 2, "{data}");
        assert!(data.contains("h0M"), "a point alone is a dot: {data}");
        assert_eq!(svg.matches("<g class=\"strip\">").count(), 3);
    }

    #[test]
    fn nothing_finite_is_said() {
        let html = chart(vec![(1.0, f64::NAN)]).render(Width::Full).0;
        assert!(html.contains("no finite values"), "{html}");
        assert!(chart(Vec::new()).render(Width::Full).0.contains("no finite values"));
    }

    #[test]
    fn extreme_values_stay_inside() {
        for points in
            [vec![(1.0, f64::MAX), (2.0, f64::MIN)], vec![(1.0, 0.0)], vec![(0.0, 1e-320), (1.0, 0.0)]]
        {
            clean(&chart(points).render(Width::Full).0);
        }
    }

    #[test]
    fn a_long_run_stays_small_and_keeps_its_spikes() {
        let mut points: Vec<(f64, f64)> = (0..200_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
        points[100_000].1 = 100.0;
        let svg = chart(points).render(Width::Full).0;
        assert!(svg.len() < 150_000, "{}", svg.len());
        let frame_top = 26.0 + (260.0 - 42.0 - 26.0) * (1.0 - 1.06 / 1.12);
        assert!(svg.contains(&format!(" {}", px(frame_top))), "the spike is not in the path");
    }

    #[test]
    fn stepped_lines_turn_at_right_angles() {
        let mut chart = chart(vec![(0.0, 1.0), (10.0, 1.0), (20.0, 2.0)]);
        chart.series[0].stepped = true;
        let svg = chart.render(Width::Half).0;
        let data = svg.split(" d=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        assert!(
            !data.contains('L') && data.matches('H').count() == 2 && data.matches('V').count() == 1,
            "{data}"
        );
    }

    #[test]
    fn tooltips_name_every_series() {
        let mut chart = chart(vec![(1.0, 5.0), (2.0, 4.0)]);
        chart.series.push(Series::line("smoothed <b>", 1, vec![(1.0, 5.0), (2.0, 4.5)]));
        let svg = chart.render(Width::Half).0;
        assert!(
            svg.contains("<title>step 2  \u{b7}  loss 4  \u{b7}  smoothed &lt;b&gt; 4.5</title>"),
            "{svg}"
        );
        assert!(svg.contains("<figcaption class=\"legend\">"));
    }

    fn band(points: Vec<(f64, f64, f64)>) -> Band {
        Band { name: "5 to 95 %", colour: 0, outer: true, points }
    }

    #[test]
    fn bands_are_closed_and_have_gaps() {
        let nan = f64::NAN;
        let mut chart = chart(vec![(1.0, 2.0), (5.0, 2.0)]);
        chart.bands.push(band(vec![
            (1.0, 1.0, 3.0),
            (2.0, 1.5, 2.5),
            (3.0, nan, 2.0),
            (4.0, 1.0, 2.0),
            (5.0, 1.0, nan),
        ]));
        let svg = chart.render(Width::Half).0;
        clean(&svg);
        let shape = svg.split("class=\"band c0 outer\" d=\"").nth(1).unwrap();
        let data = shape.split('"').next().unwrap();
        assert_eq!((data.matches('M').count(), data.matches('Z').count()), (2, 2), "{data}");
        assert_eq!(data.matches('L').count(), 3 + 3, "a point alone has a width: {data}");
        // The readout has the ends of the band where it has them.
        assert!(svg.contains("loss 2  \u{b7}  5 to 95 % 1 to 3</title>"), "{svg}");
        assert!(svg.contains("<title>step 5  \u{b7}  loss 2</title>"), "{svg}");
    }

    #[test]
    fn the_axis_holds_the_whole_band() {
        let mut chart = chart(vec![(1.0, 5.0), (2.0, 5.0)]);
        chart.bands.push(band(vec![(1.0, 0.0, 10.0), (2.0, 0.0, 10.0)]));
        let svg = chart.render(Width::Half).0;
        for tick in [">0<", ">10<"] {
            assert!(svg.contains(tick), "{tick}: {svg}");
        }
    }
}
