//! Axes: from values to positions, and where the ticks are.

/// How values are spread along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spacing {
    /// Equal differences are equally far apart.
    Linear,
    /// Equal ratios are equally far apart; values must be above 0.
    Log,
}

/// An axis with a finite, non-empty domain.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    spacing: Spacing,
    low: f64,
    high: f64,
    /// The least distance of two ticks: 1 where values are counts.
    least_step: f64,
}

impl Scale {
    /// The axis that shows all of `values` that can be shown, or `None` if there are none. `margin` is the fraction
    /// of the domain that is left free at either end.
    pub(super) fn of(spacing: Spacing, values: impl Iterator<Item = f64>, margin: f64) -> Option<Self> {
        let usable = values.filter(|&value| value.is_finite() && (spacing == Spacing::Linear || value > 0.0));
        let (low, high) = usable.fold(None, |range, value| match range {
            None => Some((value, value)),
            Some((low, high)) => Some((value.min(low), value.max(high))),
        })?;
        let (low, high) = match spacing {
            Spacing::Linear => (low, high),
            Spacing::Log => (low.log10(), high.log10()),
        };
        // Halved first: the difference of two huge values need not be finite.
        let half = high / 2.0 - low / 2.0;
        let margin = if half > low.abs().max(high.abs()) * 1e-9 {
            2.0 * half * margin
        } else {
            // One value only: it goes into the middle.
            if low == 0.0 { 0.5 } else { low.abs() * 0.1 }
        };
        let (low, high) = ((low - margin).max(-1e300), (high + margin).min(1e300));
        Some(Self { spacing, low, high, least_step: 0.0 })
    }

    /// The axis from `low` to `high`, which must differ.
    pub(super) fn fixed(spacing: Spacing, low: f64, high: f64) -> Self {
        match spacing {
            Spacing::Linear => Self { spacing, low, high, least_step: 0.0 },
            Spacing::Log => Self { spacing, low: low.log10(), high: high.log10(), least_step: 0.0 },
        }
    }

    /// Keeps the domain within `low..=high`, where a margin has left what is possible.
    pub(super) fn within(mut self, low: f64, high: f64) -> Self {
        if self.high > low && self.low < high {
            self.low = self.low.max(low);
            self.high = self.high.min(high);
        }
        self
    }

    /// With ticks at whole numbers only.
    pub(super) fn whole(self) -> Self {
        Self { least_step: 1.0, ..self }
    }

    /// Position of a value: 0 at the low end, 1 at the high end. `None` where it cannot be shown at all.
    pub(super) fn position(&self, value: f64) -> Option<f64> {
        let value = match self.spacing {
            Spacing::Linear => value,
            Spacing::Log if value > 0.0 => value.log10(),
            Spacing::Log => return None,
        };
        let position = (value / 2.0 - self.low / 2.0) / (self.high / 2.0 - self.low / 2.0);
        position.is_finite().then_some(position)
    }

    /// About `count` round values within the domain.
    pub(super) fn ticks(&self, count: usize) -> Vec<f64> {
        match self.spacing {
            Spacing::Linear => linear_ticks(self.low, self.high, self.step(count), count),
            Spacing::Log => log_ticks(self.low, self.high),
        }
    }

    /// A tick's label. Its decimals are those that tell the ticks apart.
    pub(super) fn label(&self, value: f64, count: usize) -> String {
        match self.spacing {
            Spacing::Linear => fixed(value, decimals(self.step(count))),
            // Over many decades the exponent is what matters; over few the number is easier to read.
            Spacing::Log if self.high - self.low > 3.5 && value != 1.0 => {
                format!("10{}", superscript(&format!("{:.0}", value.log10())))
            }
            Spacing::Log => number(value),
        }
    }

    /// The round step (1, 2 or 5 times a power of ten) that cuts the domain into at most about `count` parts.
    fn step(&self, count: usize) -> f64 {
        let rough = (self.high / 2.0 - self.low / 2.0) / count.max(1) as f64 * 2.0;
        let power = 10_f64.powf(rough.log10().floor());
        let factor =
            [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough * 0.999).unwrap_or(10.0);
        (factor * power).max(self.least_step)
    }
}

fn linear_ticks(low: f64, high: f64, step: f64, count: usize) -> Vec<f64> {
    let first = (low / step - 1e-6).ceil();
    let last = (high / step + 1e-6).floor();
    // Near 1e300 neighbouring multiples may be the same number; there is no domain with more ticks than this.
    let ticks = (last - first).clamp(0.0, 4.0 * count.max(1) as f64) as u32;
    // Adding 0 makes a tick of -0 plain 0.
    (0..=ticks).map(|index| (first + f64::from(index)) * step + 0.0).collect()
}

/// Whole decades, with 2 and 5 in between where there are few of them. The bounds are logarithms.
fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let factors: &[f64] = if high - low < 1.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let every = (((high - low) / 8.0).ceil() as i32).max(1);
    let decades = (low.floor() as i32..=high.ceil() as i32).filter(|decade| decade.rem_euclid(every) == 0);
    decades
        .flat_map(|decade| factors.iter().map(move |factor| (factor, decade)))
        // A decade below 1 as a quotient, because 10^-3 is not the double nearest to 0.001.
        .map(
            |(factor, decade)| {
                if decade < 0 { factor / 10_f64.powi(-decade) } else { factor * 10_f64.powi(decade) }
            },
        )
        .filter(|value| (low - 1e-9..=high + 1e-9).contains(&value.log10()))
        .collect()
}

fn decimals(step: f64) -> usize {
    (-(step.log10() + 1e-9).floor()).clamp(0.0, 9.0) as usize
}

/// With a fixed number of decimals, thousands separated by thin spaces, a true minus sign.
fn fixed(value: f64, decimals: usize) -> String {
    if value.abs() >= 1e9 {
        return format!("{value:.1e}");
    }
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) =
        text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) && whole.len() > 4 {
            grouped.push('\u{2009}');
        }
        grouped.push(digit);
    }
    if let Some(fraction) = fraction {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    let zero = text.chars().all(|digit| matches!(digit, '0' | '.'));
    if value < 0.0 && !zero { format!("\u{2212}{grouped}") } else { grouped }
}

/// A number for a person: about four significant digits, no needless zeros.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return "not finite".to_owned();
    }
    let size = value.abs();
    if size == 0.0 {
        return "0".to_owned();
    }
    if size < 1e-4 {
        let text = format!("{value:.1e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let mantissa = mantissa.trim_end_matches(".0");
        let power = format!("10{}", superscript(exponent));
        return match mantissa {
            "1" => power,
            _ => format!("{mantissa}\u{00d7}{power}"),
        };
    }
    let digits = (3 - size.log10().floor() as i32).clamp(0, 7) as usize;
    let text = fixed(value, digits);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A fraction as percent with two decimals.
pub(super) fn percent(fraction: f64) -> String {
    if fraction.is_finite() { format!("{:.2}\u{2009}%", fraction * 100.0) } else { "not finite".to_owned() }
}

fn superscript(digits: &str) -> String {
    const RAISED: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let raise = |digit: char| match digit {
        '-' => Some('⁻'),
        _ => digit.to_digit(10).and_then(|value| RAISED.get(value as usize).copied()),
    };
    digits.chars().filter_map(raise).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_ticks_are_round_and_inside() {
        let scale = Scale::fixed(Spacing::Linear, 0.0, 28_000.0);
        let ticks = scale.ticks(6);
        assert_eq!(ticks, [0.0, 5e3, 1e4, 1.5e4, 2e4, 2.5e4]);
        let labels: Vec<_> = ticks.iter().map(|&tick| scale.label(tick, 6)).collect();
        assert_eq!(labels[..3], ["0", "5000", "10\u{2009}000"]);
        let scale = Scale::fixed(Spacing::Linear, 0.951, 1.0);
        let labels: Vec<_> = scale.ticks(5).iter().map(|&tick| scale.label(tick, 5)).collect();
        assert_eq!(labels, ["0.96", "0.97", "0.98", "0.99", "1.00"]);
        let epochs = Scale::of(Spacing::Linear, [1.0].into_iter(), 0.0).unwrap().whole();
        assert_eq!((epochs.ticks(5), epochs.label(1.0, 5)), (vec![1.0], "1".to_owned()));
        assert_eq!(Scale::fixed(Spacing::Linear, -1.0, 1.0).label(-0.5, 5), "\u{2212}0.5");
    }

    #[test]
    fn log_ticks_are_decades() {
        let scale = Scale::fixed(Spacing::Log, 1e-5, 1.0);
        let labels: Vec<_> = scale.ticks(6).iter().map(|&tick| scale.label(tick, 6)).collect();
        assert_eq!(labels, ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "1"]);
        assert_eq!(Scale::fixed(Spacing::Log, 1e-3, 0.1).label(1e-3, 6), "0.001");
        assert_eq!(Scale::fixed(Spacing::Log, 1.0, 10.0).ticks(6), [1.0, 2.0, 5.0, 10.0]);
        assert!(Scale::fixed(Spacing::Log, 1e-300, 1e300).ticks(6).len() < 12);
    }

    #[test]
    fn domain_survives_any_values() {
        let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        assert_eq!(Scale::of(Spacing::Linear, odd.into_iter(), 0.1), None);
        assert_eq!(Scale::of(Spacing::Log, [0.0, -1.0].into_iter(), 0.1), None);
        for values in
            [vec![0.0], vec![3.0, 3.0], vec![f64::MAX, f64::MIN], vec![f64::NAN, 1e-310, 0.0], vec![-2.0]]
        {
            let scale = Scale::of(Spacing::Linear, values.iter().copied(), 0.05).unwrap();
            for value in values.into_iter().filter(|value| value.is_finite() && value.abs() < 1e300) {
                let position = scale.position(value).unwrap();
                assert!((0.0..=1.0).contains(&position), "{value} at {position} of {scale:?}");
            }
            assert!(scale.ticks(6).len() < 30);
        }
        let scale = Scale::of(Spacing::Log, [0.1].into_iter(), 0.05).unwrap();
        assert!((scale.position(0.1).unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(scale.position(0.0), None);
        assert_eq!(scale.position(f64::NAN), None);
    }

    #[test]
    fn numbers_for_people() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (12.3456, "12.35"),
            (0.00123456, "0.001235"),
            (123_456.7, "123\u{2009}457"),
            (2.5e-7, "2.5×10⁻⁷"),
            (-0.25, "\u{2212}0.25"),
            (f64::NAN, "not finite"),
            (1000.0, "1000"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
        assert_eq!(percent(0.994_51), "99.45\u{2009}%");
    }
}
