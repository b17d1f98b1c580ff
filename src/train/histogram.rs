//! How the values of an epoch are spread, in memory that does not grow with the number of samples.

use serde::{Deserialize, Serialize};

use crate::report::{PERCENTILES, Percentiles};

/// Bins over [-1, 1]. A percentile is exact to the width of one, 0.0005.
const BINS: usize = 4096;
/// Units of the sum in one: finer than the spacing of f32 values near 1.
const UNIT: f64 = (1_u64 << 40) as f64;

/// A histogram of cosines. All that it keeps are counts, extremes and a sum in fixed point, so that its results do not
/// depend on the order in which the values came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Histogram {
    bins: Vec<u64>,
    count: u64,
    /// In units of 1 / [`UNIT`]; 128 bits hold more values than any run has.
    sum: i128,
    least: f32,
    most: f32,
    threshold: f64,
    below: u64,
}

impl Histogram {
    /// An empty histogram, which also counts the values below `threshold`.
    pub fn new(threshold: f64) -> Self {
        Self {
            bins: vec![0; BINS],
            count: 0,
            sum: 0,
            least: f32::INFINITY,
            most: f32::NEG_INFINITY,
            threshold,
            below: 0,
        }
    }

    /// Adds a cosine. Rounding may carry it beyond -1 or 1, where it is taken for that; NaN is passed over.
    pub fn add(&mut self, value: f32) {
        if value.is_nan() {
            return;
        }
        let value = value.clamp(-1.0, 1.0);
        let bin = ((f64::from(value) + 1.0) / 2.0 * BINS as f64) as usize;
        // The value 1 belongs to the last bin.
        if let Some(count) = self.bins.get_mut(bin.min(BINS - 1)) {
            *count += 1;
        }
        self.count += 1;
        self.sum += (f64::from(value) * UNIT).round() as i128;
        self.least = self.least.min(value);
        self.most = self.most.max(value);
        self.below += u64::from(f64::from(value) < self.threshold);
    }

    /// Mean of the values; NaN where there are none.
    pub fn mean(&self) -> f64 {
        self.sum as f64 / UNIT / self.count as f64
    }

    /// Share of the values that are below the threshold; NaN where there are none.
    pub fn share_below(&self) -> f64 {
        self.below as f64 / self.count as f64
    }

    /// The percentiles that a report shows; `None` where there are no values.
    pub fn percentiles(&self) -> Option<Percentiles> {
        (self.count > 0).then(|| PERCENTILES.map(|percent| self.quantile(percent / 100.0)))
    }

    /// The value below which the share `share` of the values is, linear within a bin.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = share * self.count as f64;
        let mut before = 0;
        for (bin, &count) in self.bins.iter().enumerate() {
            if count > 0 && (before + count) as f64 >= wanted {
                let within = (wanted - before as f64) / count as f64;
                let value = (bin as f64 + within) * 2.0 / BINS as f64 - 1.0;
                // The outermost values are known exactly.
                return value.clamp(f64::from(self.least), f64::from(self.most));
            }
            before += count;
        }
        f64::from(self.most)
    }
}

/// A histogram in a file: the bins that are not empty, and the rest without a loss of bits.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    bins: Vec<(usize, u64)>,
    /// JSON has no integers of 128 bits.
    sum: String,
    least_bits: u32,
    most_bits: u32,
    threshold: f64,
    below: u64,
}

impl From<Histogram> for Stored {
    fn from(histogram: Histogram) -> Self {
        let bins = histogram.bins.into_iter().enumerate().filter(|(_, count)| *count > 0).collect();
        Self {
            bins,
            sum: histogram.sum.to_string(),
            least_bits: histogram.least.to_bits(),
            most_bits: histogram.most.to_bits(),
            threshold: histogram.threshold,
            below: histogram.below,
        }
    }
}

impl TryFrom<Stored> for Histogram {
    type Error = String;

    fn try_from(stored: Stored) -> Result<Self, String> {
        let mut histogram = Self::new(stored.threshold);
        for (bin, count) in stored.bins {
            let place = histogram.bins.get_mut(bin).ok_or(format!("bin {bin} of {BINS}"))?;
            *place = count;
            histogram.count = histogram.count.checked_add(count).ok_or("more values than can be counted")?;
        }
        histogram.sum = stored.sum.parse().map_err(|_| format!("the sum {:?}", stored.sum))?;
        histogram.least = f32::from_bits(stored.least_bits);
        histogram.most = f32::from_bits(stored.most_bits);
        histogram.below = stored.below;
        Ok(histogram)
    }
}

/// Mean and percentiles of values that are all at hand, here an angle a class. What is not finite is passed over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// NaN where there are no values.
    pub mean: f64,
    /// `None` where there are no values.
    pub percentiles: Option<Percentiles>,
}

impl Spread {
    /// Of no values.
    pub const NONE: Self = Self { mean: f64::NAN, percentiles: None };

    /// Of `values`, in any order.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.retain(|value| value.is_finite());
        if values.is_empty() {
            return Self::NONE;
        }
        // Before the sum, which then does not depend on the order either.
        values.sort_by(f64::total_cmp);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Self { mean, percentiles: Some(PERCENTILES.map(|percent| quantile(&values, percent / 100.0))) }
    }
}

/// Linear between the sorted values on either side, as NumPy does by default.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * sorted.len().saturating_sub(1) as f64;
    let at = |index: f64| sorted.get(index as usize).copied().unwrap_or(f64::NAN);
    let (low, high) = (at(place.floor()), at(place.ceil()));
    low + (high - low) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_json() {
        for values in [&[][..], &[0.25, -1.0, 0.9999999, 1.0, -0.1, f32::MIN_POSITIVE]] {
            let mut histogram = Histogram::new(0.3);
            values.iter().for_each(|&value| histogram.add(value));
            let text = serde_json::to_string(&histogram).unwrap();
            assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
        }
        let text = serde_json::to_string(&Histogram::new(0.3)).unwrap();
        for (from, to) in [("\"bins\":[]", "\"bins\":[[4096,1]]"), ("\"0\"", "\"x\"")] {
            let text = text.replace(from, to);
            assert!(serde_json::from_str::<Histogram>(&text).is_err(), "{text}");
        }
    }

    /// Cosines without a pattern: the golden ratio's multiples are spread evenly over [0, 1).
    fn cosines() -> Vec<f32> {
        (1..=20_000).map(|i| (f64::from(i) * 0.618_033_988_749_894_9).fract().powi(2) as f32 - 0.3).collect()
    }

    fn histogram(values: impl IntoIterator<Item = f32>) -> Histogram {
        let mut histogram = Histogram::new(0.25);
        values.into_iter().for_each(|value| histogram.add(value));
        histogram
    }

    #[test]
    fn figures_are_those_of_the_sorted_values() {
        let values = cosines();
        let histogram = histogram(values.iter().copied());
        let exact = Spread::of(values.iter().map(|&value| f64::from(value)).collect());
        assert!((histogram.mean() - exact.mean).abs() < 1e-11, "{} {}", histogram.mean(), exact.mean);
        for (binned, exact) in histogram.percentiles().unwrap().iter().zip(exact.percentiles.unwrap()) {
            assert!((binned - exact).abs() < 2.0 / BINS as f64, "{binned} {exact}");
        }
        let below = values.iter().filter(|&&value| value < 0.25).count();
        assert_eq!(histogram.share_below(), below as f64 / values.len() as f64);
    }

    #[test]
    fn the_order_of_the_values_changes_nothing() {
        let mut values = cosines();
        let forward = histogram(values.iter().copied());
        values.sort_by(f32::total_cmp);
        let sorted = histogram(values);
        assert_eq!(forward.mean().to_bits(), sorted.mean().to_bits());
        assert_eq!(forward.percentiles(), sorted.percentiles());
    }

    #[test]
    fn one_value_is_its_own_percentiles() {
        for value in [-1.0, -0.123, 0.0, 0.7, 1.0] {
            let found = histogram([value; 7]);
            assert_eq!(found.percentiles(), Some([f64::from(value); 5]));
            assert!((found.mean() - f64::from(value)).abs() < 1e-12);
        }
    }

    #[test]
    fn what_is_beyond_is_taken_for_the_end_and_nan_for_nothing() {
        let found = histogram([1.000_001, f32::NAN, -1.5]);
        assert_eq!((found.count, found.mean()), (2, 0.0));
        assert_eq!((found.least, found.most), (-1.0, 1.0));
        let [low, .., high] = found.percentiles().unwrap();
        assert!((-1.0..-0.9995).contains(&low) && (0.9995..=1.0).contains(&high), "{low} {high}");
        assert_eq!(found.share_below(), 0.5);
    }

    #[test]
    fn of_nothing_there_are_no_figures() {
        let empty = histogram([]);
        assert!(empty.mean().is_nan() && empty.share_below().is_nan() && empty.percentiles().is_none());
        let none = Spread::of(vec![f64::NAN]);
        assert!(none.mean.is_nan() && none.percentiles.is_none());
    }

    #[test]
    fn a_spread_is_numpys() {
        // numpy.percentile([3, 1, 4, 1, 5, 9, 2, 6], [5, 25, 50, 75, 95])
        let spread = Spread::of([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0].to_vec());
        let expected = [1.0, 1.75, 3.5, 5.25, 7.95];
        for (found, expected) in spread.percentiles.unwrap().iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert_eq!(spread.mean, 31.0 / 8.0);
    }
}
