//! A measurement over several seeds, and two methods compared seed by seed.

use serde::Serialize;

/// Mean and spread of a measurement that was repeated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// How often it was measured.
    pub count: usize,
    /// The mean; NaN where nothing was measured.
    pub mean: f64,
    /// Standard deviation of a measurement, with `count - 1` in the denominator; NaN below two of them.
    pub std: f64,
}

impl Spread {
    /// Of these values.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares = values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>();
        let std = if count < 2 { f64::NAN } else { (squares / (count - 1) as f64).sqrt() };
        Self { count, mean, std }
    }

    /// Standard error of the mean.
    pub fn standard_error(&self) -> f64 {
        self.std / (self.count as f64).sqrt()
    }
}

/// Two methods under the same conditions: what differs from seed to seed but not between the two drops out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Paired {
    /// Mean of the differences, second less first; NaN where there is none.
    pub difference: f64,
    /// Standard error of that mean; NaN below two pairs.
    pub standard_error: f64,
    /// Pairs in which the second was the higher one.
    pub higher: usize,
    /// Pairs in which it was the lower one.
    pub lower: usize,
    /// All pairs.
    pub count: usize,
}

impl Paired {
    /// Of pairs (first method, second method), one a seed.
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        let differences: Vec<f64> = pairs.iter().map(|(first, second)| second - first).collect();
        let spread = Spread::of(&differences);
        Self {
            difference: spread.mean,
            standard_error: spread.standard_error(),
            higher: differences.iter().filter(|&&difference| difference > 0.0).count(),
            lower: differences.iter().filter(|&&difference| difference < 0.0).count(),
            count: pairs.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_that_of_a_sample() {
        let spread = Spread::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!((spread.count, spread.mean), (8, 5.0));
        // Squared deviations sum to 32: 32 / 7, not the population's 32 / 8.
        assert!((spread.std - (32.0_f64 / 7.0).sqrt()).abs() < 1e-15);
        assert!((spread.standard_error() - (4.0_f64 / 7.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn too_few_values_have_no_spread() {
        let one = Spread::of(&[3.0]);
        assert_eq!((one.mean, one.count), (3.0, 1));
        assert!(one.std.is_nan() && one.standard_error().is_nan());
        assert!(Spread::of(&[]).mean.is_nan());
    }

    #[test]
    fn pairing_takes_out_what_the_seeds_share() {
        // The seeds differ by tens, the methods by about one.
        let paired = Paired::of(&[(10.0, 11.0), (50.0, 52.0), (90.0, 90.0), (30.0, 29.0)]);
        assert_eq!((paired.difference, paired.higher, paired.lower, paired.count), (0.5, 2, 1, 4));
        // Differences 1, 2, 0, -1: variance 5 / 3.
        assert!((paired.standard_error - (5.0_f64 / 12.0).sqrt()).abs() < 1e-15);
    }
}
