//! From a histogram of rounded scores to an exact order statistic: the pairs near it, by their scores in f64.

use crate::eval::ops::Bins;
use crate::{Error, Result};

/// Scores counted in bins: those of genuine pairs, and of impostors.
pub(super) struct Histogram {
    pub bins: Bins,
    pub counts: [Vec<u64>; 2],
}

/// Points of an ROC curve in a decade of FAR.
const POINTS_A_DECADE: f64 = 24.0;

impl Histogram {
    fn within(&self, first: usize, last: usize) -> [u64; 2] {
        let sum = |counts: &Vec<u64>| counts.get(first..=last).unwrap_or_default().iter().sum();
        std::array::from_fn(|kind| self.counts.get(kind).map_or(0, sum))
    }

    /// (FAR, TAR) at edges of bins, from the highest score down, thinned to what a plot can show.
    pub fn roc(&self) -> Vec<(f64, f64)> {
        let [genuine, impostors] = &self.counts;
        let totals: [f64; 2] = [genuine, impostors].map(|counts| counts.iter().sum::<u64>() as f64);
        let (mut points, mut sums, mut shown) = (Vec::new(), [0u64; 2], f64::NEG_INFINITY);
        for (genuine, impostor) in genuine.iter().zip(impostors).rev() {
            if *impostor > 0 {
                // What is accepted above the bin, in which the order of genuine pairs and impostors is not known.
                let far = sums[1] as f64 / totals[1];
                let place = far.log10() * POINTS_A_DECADE;
                if points.is_empty() || place.floor() > shown {
                    shown = place.floor();
                    points.push((far, sums[0] as f64 / totals[0]));
                }
            }
            sums[0] += genuine;
            sums[1] += impostor;
        }
        points.push((1.0, 1.0));
        points
    }
}

/// A number that is ordered as scores are.
pub(super) fn key(score: f64) -> u64 {
    // There is one zero.
    let bits = (score + 0.0).to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

/// The score of a key.
fn score_of(key: u64) -> f64 {
    f64::from_bits(if key >> 63 == 1 { key & !(1 << 63) } else { !key })
}

/// The threshold, and what is above it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Found {
    pub threshold: f64,
    /// Genuine pairs and impostors with a score above it.
    pub accepted: [u64; 2],
}

/// Buckets of scores where they are too many to keep.
const BUCKETS: u32 = 18;

/// What becomes of the scores in range.
enum Gathered {
    /// They are kept, as keys.
    Kept([Vec<u64>; 2]),
    /// They are counted by the bits of `key - low` above `shift`.
    Counted { shift: u32, counts: Vec<[u64; 2]> },
}

/// The search for the impostor score of a rank, counted from 0 from the largest one down.
pub(super) struct Target {
    pub rank: u64,
    /// The bins that have to be looked at.
    first: usize,
    last: usize,
    /// The range of exact scores in which the score lies, as keys.
    low: u64,
    high: u64,
    /// Pairs with a score that is known to be above that range.
    above: [u64; 2],
    gathered: Gathered,
    /// Pairs of those bins that were met in this pass.
    met: u64,
    found: Option<Found>,
}

impl Target {
    /// The bins around that of the rank. `bound` is the most by which a rounded score is off: then so is any order
    /// statistic, and what is further than twice that from the rank's bin is certainly above or below.
    pub fn new(histogram: &Histogram, rank: u64, bound: f64) -> Result<Self> {
        let bins = histogram.bins;
        let mut passed = 0;
        let bin = (0..bins.count()).rev().find(|&bin| {
            passed += histogram.within(bin, bin)[1];
            passed > rank
        });
        let bin = bin.ok_or_else(|| lost(rank))?;
        let margin = (2.0 * bound * f64::from(bins.per_unit)).ceil() as usize;
        let (first, last) = (bin.saturating_sub(margin), (bin + margin).min(bins.count() - 1));
        Ok(Self {
            rank,
            first,
            last,
            low: key(bins.edge(first) - bound),
            high: key(bins.edge(last + 1) + bound),
            above: histogram.within(last + 1, bins.count() - 1),
            gathered: Gathered::Kept(Default::default()),
            met: 0,
            found: None,
        })
    }

    /// Gets ready for a pass in which at most `keep` scores may be kept.
    pub fn prepare(&mut self, histogram: &Histogram, keep: u64) {
        self.gather(self.expected(histogram) <= keep);
    }

    /// Pairs that it will meet in the next pass.
    pub fn expected(&self, histogram: &Histogram) -> u64 {
        self.bins().map(|bin| histogram.within(bin, bin).iter().sum::<u64>()).sum()
    }

    fn gather(&mut self, kept: bool) {
        self.met = 0;
        self.gathered = if kept {
            Gathered::Kept(Default::default())
        } else {
            let bits = u64::BITS - (self.high - self.low).leading_zeros();
            let shift = bits.saturating_sub(BUCKETS);
            let buckets = ((self.high - self.low) >> shift) as usize + 1;
            Gathered::Counted { shift, counts: vec![[0; 2]; buckets] }
        };
    }

    /// The bins that it has to see; none where it is done.
    pub fn bins(&self) -> std::ops::Range<usize> {
        if self.found.is_some() { 0..0 } else { self.first..self.last + 1 }
    }

    /// The result.
    pub fn found(&self) -> Option<Found> {
        self.found
    }

    /// Takes a pair of one of its bins; `kind` is 0 for a genuine one and 1 for an impostor.
    pub fn add(&mut self, kind: usize, key: u64) {
        self.met += 1;
        if key < self.low || key > self.high {
            return;
        }
        match &mut self.gathered {
            Gathered::Kept(keys) => {
                if let Some(keys) = keys.get_mut(kind) {
                    keys.push(key);
                }
            }
            Gathered::Counted { shift, counts } => {
                let count = counts.get_mut(((key - self.low) >> *shift) as usize);
                if let Some(count) = count.and_then(|count| count.get_mut(kind)) {
                    *count += 1;
                }
            }
        }
    }

    /// Ends a pass: the score is found, or its range is smaller.
    ///
    /// # Errors
    /// Where the pass met other pairs than the histogram counted.
    pub fn finish(&mut self, histogram: &Histogram, bound: f64, keep: u64) -> Result<()> {
        if self.found.is_some() {
            return Ok(());
        }
        if self.met != self.expected(histogram) {
            return Err(lost(self.rank));
        }
        let mut above = self.above;
        match std::mem::replace(&mut self.gathered, Gathered::Kept(Default::default())) {
            Gathered::Kept([genuine, mut impostors]) => {
                let place = self.rank.checked_sub(above[1]).and_then(|place| usize::try_from(place).ok());
                let place = place.filter(|&place| place < impostors.len()).ok_or_else(|| lost(self.rank))?;
                let (_, &mut threshold, _) = impostors.select_nth_unstable_by(place, |a, b| b.cmp(a));
                let beyond = |keys: &[u64]| keys.iter().filter(|&&key| key > threshold).count() as u64;
                above = [above[0] + beyond(&genuine), above[1] + beyond(&impostors)];
                self.found = Some(Found { threshold: score_of(threshold), accepted: above });
            }
            Gathered::Counted { shift, counts } => {
                let mut holds = None;
                for (bucket, &[genuine, impostors]) in counts.iter().enumerate().rev() {
                    if above[1] + impostors > self.rank {
                        holds = Some((bucket as u64, genuine + impostors));
                        break;
                    }
                    above = [above[0] + genuine, above[1] + impostors];
                }
                let (bucket, pairs) = holds.ok_or_else(|| lost(self.rank))?;
                self.above = above;
                self.low += bucket << shift;
                self.high = self.high.min(self.low + ((1 << shift) - 1));
                if self.low == self.high {
                    // All in the bucket have one score.
                    self.found = Some(Found { threshold: score_of(self.low), accepted: above });
                    return Ok(());
                }
                let bins = histogram.bins;
                self.first = self.first.max(bins.of(score_of(self.low) - bound));
                self.last = self.last.min(bins.of(score_of(self.high) + bound));
                self.gather(pairs <= keep);
            }
        }
        Ok(())
    }
}

/// The error for passes that do not agree.
fn lost(rank: u64) -> Error {
    Error::data(
        format!("the impostor of rank {rank}"),
        "other pairs in one pass than in the pass before",
        "the same scores in every pass",
        "the adapter or its driver is at fault: check it with `epl ops test`, or use another with --device",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_scores_and_lead_back() {
        let scores = [-1.0, -0.5, -1e-300, 0.0, 5e-324, 1e-9, 0.25, 0.5, 1.0, 1.0000001];
        assert!(scores.windows(2).all(|pair| key(pair[0]) < key(pair[1])));
        assert!(scores.iter().all(|&score| score_of(key(score)) == score));
        assert_eq!(key(-0.0), key(0.0));
    }

    /// What sorting gives.
    fn by_sorting(genuine: &[f64], impostors: &[f64], rank: usize) -> Found {
        let mut sorted = impostors.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let threshold = sorted[rank];
        let above = |scores: &[f64]| scores.iter().filter(|&&score| score > threshold).count() as u64;
        Found { threshold, accepted: [above(genuine), above(impostors)] }
    }

    /// Searches with rounded scores `bound` off, in turn up and down.
    fn search(scores: [&[f64]; 2], rank: usize, bound: f64, keep: u64) -> (Found, usize) {
        let bins = Bins { per_unit: 64, margin: 4 };
        let rounded = |at: usize, score: f64| bins.of(score + bound * [0.99, -0.99, 0.3][at % 3]);
        let mut histogram = Histogram { bins, counts: [vec![0; bins.count()], vec![0; bins.count()]] };
        for (kind, scores) in scores.iter().enumerate() {
            for (at, &score) in scores.iter().enumerate() {
                histogram.counts[kind][rounded(at, score)] += 1;
            }
        }
        let mut target = Target::new(&histogram, rank as u64, bound).unwrap();
        target.prepare(&histogram, keep);
        for pass in 1..20 {
            let range = target.bins();
            for (kind, scores) in scores.iter().enumerate() {
                for (at, &score) in scores.iter().enumerate() {
                    if range.contains(&rounded(at, score)) {
                        target.add(kind, key(score));
                    }
                }
            }
            target.finish(&histogram, bound, keep).unwrap();
            if let Some(found) = target.found() {
                return (found, pass);
            }
        }
        panic!("no end");
    }

    #[test]
    fn the_score_of_every_rank_is_that_of_sorting_however_few_may_be_kept() {
        let wave = |n: usize, by: f64, up: f64| -> Vec<f64> {
            (0..n).map(|i| ((i as f64 * by).sin() * 0.3 + up).clamp(-1.0, 1.0)).collect()
        };
        let (genuine, mut impostors) = (wave(300, 0.7, 0.3), wave(2000, 1.3, 0.0));
        // Many of one score, and neighbours of it.
        impostors.extend(vec![0.125; 400]);
        impostors.extend([0.125f64.next_up(), 0.125f64.next_down()]);
        for keep in [u64::MAX, 100, 0] {
            for rank in [1, 2, 10, 500, 900, 1200, 2401] {
                for bound in [1e-9, 0.004, 0.02] {
                    let (found, passes) = search([&genuine, &impostors], rank, bound, keep);
                    assert_eq!(found, by_sorting(&genuine, &impostors, rank), "{rank} {bound} {keep}");
                    assert!(keep < u64::MAX || passes == 1);
                    assert!(passes <= 6, "{passes}");
                }
            }
        }
    }

    #[test]
    fn one_score_for_all_is_found_without_keeping_any() {
        let same = vec![1.0; 1000];
        let (found, _) = search([&same, &same], 10, 1e-3, 5);
        assert_eq!(found, Found { threshold: 1.0, accepted: [0, 0] });
    }

    #[test]
    fn a_curve_begins_without_false_accepts_and_ends_with_all() {
        let bins = Bins { per_unit: 4, margin: 1 };
        let mut histogram = Histogram { bins, counts: [vec![0; 10], vec![0; 10]] };
        histogram.counts[0][8] = 3;
        histogram.counts[0][6] = 1;
        histogram.counts[1][7] = 1;
        histogram.counts[1][3] = 9;
        assert_eq!(histogram.roc(), [(0.0, 0.75), (0.1, 1.0), (1.0, 1.0)]);
        // Within a bin nothing is known of who is above whom: that is no reason to count for the network.
        let together = Histogram {
            bins,
            counts: [
                [vec![0; 5], vec![7; 1], vec![0; 4]].concat(),
                [vec![0; 5], vec![9; 1], vec![0; 4]].concat(),
            ],
        };
        assert_eq!(together.roc(), [(0.0, 0.0), (1.0, 1.0)]);
    }
}
