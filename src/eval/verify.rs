//! The 1:1 verification protocol of LFW, CFP-FP, AgeDB-30 and their kin, as InsightFace reports it.
//!
//! Embeddings are L2-normalised; the score of a pair is the squared distance of its two embeddings, from 0 to 4.
//! Ten contiguous folds: the threshold found on nine is applied to the tenth. All in f64.

use std::ops::Range;

use serde::Serialize;

use crate::{Error, Result};

const FOLDS: usize = 10;

/// The squared distances tried for accuracy: 0, 0.01, ... 3.99.
const ACCURACY_THRESHOLDS: usize = 400;
const ACCURACY_STEP: f64 = 0.01;

/// The squared distances tried for TAR at FAR: 0, 0.001, ... 3.999.
const TAR_THRESHOLDS: usize = 4000;
const TAR_STEP: f64 = 0.001;
const TARGET_FAR: f64 = 1e-3;

/// What the protocol measures; fractions, not percent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerificationReport {
    /// The name of the set.
    pub name: String,
    /// The number of pairs.
    pub pairs: usize,
    /// Mean over the folds of the accuracy at the threshold that is best on the other nine.
    pub accuracy: f64,
    /// Population standard deviation of that accuracy over the folds.
    pub accuracy_std: f64,
    /// Mean over the folds of the true-accept rate at the threshold where the false-accept rate of the other
    /// nine is 1e-3; folds without a matching pair are left out of the mean.
    #[serde(rename = "tar_at_far_1e-3")]
    pub tar_at_far_1e3: f64,
    /// Area under the ROC curve of all pairs.
    pub auc: f64,
    /// Equal error rate: where the ROC curve of all pairs has as many false accepts as false rejects.
    pub eer: f64,
    /// The squared distance below which to call a pair the same: the first of 0, 0.01, ... 3.99 with the best
    /// accuracy on all pairs.
    pub threshold: f64,
    /// The ROC curve of all pairs, (FAR, TAR) from (0, 0) to (1, 1), a point for every distinct distance.
    #[serde(skip)]
    pub roc: Vec<(f32, f32)>,
}

/// Whether the protocol can be run on pairs of these kinds.
///
/// # Errors
/// Fewer than ten pairs, only matching or only non-matching pairs.
pub fn check_pairs(name: &str, issame: &[bool]) -> Result<()> {
    let same_total = issame.iter().filter(|&&same| same).count();
    let faulty = |found: String, expected: &str| {
        Err(Error::data(name, found, expected, "the protocol cannot be run on this set; add such pairs"))
    };
    if issame.len() < FOLDS {
        return faulty(format!("{} pairs", issame.len()), "at least 10, one a fold");
    }
    if same_total == 0 || same_total == issame.len() {
        return faulty(
            format!("{same_total} matching pairs of {}", issame.len()),
            "matching and other pairs",
        );
    }
    Ok(())
}

/// Runs the protocol on `embeddings` `[2N, D]`, the images of pair i being rows 2i and 2i + 1, each row already the
/// sum of the image's embedding and its mirror image's; `issame` `[N]`.
///
/// # Errors
/// Lengths that do not fit, fewer than ten pairs, only matching or only non-matching pairs, and embeddings that
/// are not finite.
pub fn verify(name: &str, embeddings: &[f32], dim: usize, issame: &[bool]) -> Result<VerificationReport> {
    let distances = squared_distances(name, embeddings, dim, issame.len())?;
    check_pairs(name, issame)?;

    let accuracy_folds = FoldCounts::new(&distances, issame, ACCURACY_THRESHOLDS, ACCURACY_STEP);
    let accuracies = std::array::from_fn(|fold| {
        let best = first_best(&accuracy_folds.training(fold));
        let (test, size) = (&accuracy_folds.folds[fold], accuracy_folds.sizes[fold]);
        test.correct(best) as f64 / size as f64
    });
    let (accuracy, accuracy_std) = mean_and_std(&accuracies);

    let tar_folds = FoldCounts::new(&distances, issame, TAR_THRESHOLDS, TAR_STEP);
    let folds = folds(issame.len());
    let mut tars = Vec::with_capacity(FOLDS);
    for (fold, range) in folds.into_iter().enumerate() {
        let threshold = threshold_at_far(&tar_folds.training(fold));
        let test = distances[range.clone()].iter().zip(&issame[range]).filter(|&(_, &same)| same);
        let (accepted, same) = test.fold((0_u32, 0_u32), |(accepted, same), (&d, _)| {
            (accepted + u32::from(d < threshold), same + 1)
        });
        if same > 0 {
            tars.push(f64::from(accepted) / f64::from(same));
        }
    }
    let tar_at_far_1e3 = match <&[f64; FOLDS]>::try_from(tars.as_slice()) {
        Ok(all) => mean_and_std(all).0,
        Err(_) => tars.iter().sum::<f64>() / tars.len() as f64,
    };

    let curve = roc_curve(&distances, issame);
    Ok(VerificationReport {
        name: name.to_owned(),
        pairs: issame.len(),
        accuracy,
        accuracy_std,
        tar_at_far_1e3,
        auc: area_under(&curve),
        eer: equal_error_rate(&curve),
        threshold: first_best(&accuracy_folds.all()) as f64 * ACCURACY_STEP,
        roc: curve.into_iter().map(|(far, tar)| (far as f32, tar as f32)).collect(),
    })
}

/// The squared distances of the normalised pairs, `[N]`. A row of zeros stays zero, as in scikit-learn.
fn squared_distances(name: &str, embeddings: &[f32], dim: usize, pairs: usize) -> Result<Vec<f64>> {
    if dim == 0 || embeddings.len() != 2 * pairs * dim {
        return Err(Error::data(
            name,
            format!("{} numbers", embeddings.len()),
            format!("2 x {pairs} embeddings of {dim}"),
            "give two embeddings a pair",
        ));
    }
    let mut rows: Vec<f64> = embeddings.iter().map(|&value| f64::from(value)).collect();
    for (index, row) in rows.chunks_exact_mut(dim).enumerate() {
        let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Err(Error::data(
                format!("{name}, embedding {index}"),
                "a value that is not finite",
                "finite values",
                "the weights or the precision are at fault: check the training's loss for NaN",
            ));
        }
        if norm > 0.0 {
            row.iter_mut().for_each(|value| *value /= norm);
        }
    }
    let distance = |pair: &[f64]| {
        let (first, second) = pair.split_at(dim);
        first.iter().zip(second).map(|(a, b)| (a - b) * (a - b)).sum()
    };
    Ok(rows.chunks_exact(2 * dim).map(distance).collect())
}

/// scikit-learn's `KFold` without shuffling: the first `pairs % 10` folds have one pair more.
fn folds(pairs: usize) -> [Range<usize>; FOLDS] {
    let start = |fold: usize| fold * (pairs / FOLDS) + fold.min(pairs % FOLDS);
    std::array::from_fn(|fold| start(fold)..start(fold + 1))
}

/// At every threshold, how many pairs of either kind are called the same.
#[derive(Clone)]
struct Counts {
    /// Matching pairs with a distance below threshold k.
    true_accepts: Vec<u32>,
    /// Other pairs with a distance below threshold k.
    false_accepts: Vec<u32>,
    same: u32,
    different: u32,
}

impl Counts {
    /// Pairs called rightly at threshold k.
    fn correct(&self, k: usize) -> u32 {
        self.true_accepts[k] + self.different - self.false_accepts[k]
    }

    /// `self` without the pairs of `other`, or with them.
    fn combine(&self, other: &Self, op: fn(u32, u32) -> u32) -> Self {
        let each = |a: &[u32], b: &[u32]| a.iter().zip(b).map(|(&a, &b)| op(a, b)).collect();
        Self {
            true_accepts: each(&self.true_accepts, &other.true_accepts),
            false_accepts: each(&self.false_accepts, &other.false_accepts),
            same: op(self.same, other.same),
            different: op(self.different, other.different),
        }
    }
}

/// The counts of each fold and of all; a fold's training set is all without the fold. Counting once replaces
/// the protocol's thousands of passes over the pairs, with the same integers as the result.
struct FoldCounts {
    folds: Vec<Counts>,
    sizes: [usize; FOLDS],
    all: Counts,
}

impl FoldCounts {
    fn new(distances: &[f64], issame: &[bool], thresholds: usize, step: f64) -> Self {
        let ranges = folds(issame.len());
        let sizes = ranges.clone().map(|range| range.len());
        let grid: Vec<f64> = (0..thresholds).map(|k| k as f64 * step).collect();
        let empty = Counts {
            true_accepts: vec![0; thresholds],
            false_accepts: vec![0; thresholds],
            same: 0,
            different: 0,
        };
        let count = |range: Range<usize>| {
            let mut counts = empty.clone();
            for (&distance, &same) in distances[range.clone()].iter().zip(&issame[range]) {
                let (total, accepts) = if same {
                    (&mut counts.same, &mut counts.true_accepts)
                } else {
                    (&mut counts.different, &mut counts.false_accepts)
                };
                *total += 1;
                let first_accepting = grid.partition_point(|&threshold| distance >= threshold);
                if let Some(slot) = accepts.get_mut(first_accepting) {
                    *slot += 1;
                }
            }
            for accepts in [&mut counts.true_accepts, &mut counts.false_accepts] {
                let mut sum = 0;
                for slot in accepts.iter_mut() {
                    sum += *slot;
                    *slot = sum;
                }
            }
            counts
        };
        let folds: Vec<Counts> = ranges.into_iter().map(count).collect();
        let all = folds.iter().fold(empty.clone(), |all, fold| all.combine(fold, |a, b| a + b));
        Self { folds, sizes, all }
    }

    fn all(&self) -> Counts {
        self.all.clone()
    }

    fn training(&self, fold: usize) -> Counts {
        self.all.combine(&self.folds[fold], |all, fold| all - fold)
    }
}

/// The first threshold with the most pairs called rightly.
fn first_best(counts: &Counts) -> usize {
    let mut best = 0;
    for k in 1..counts.true_accepts.len() {
        if counts.correct(k) > counts.correct(best) {
            best = k;
        }
    }
    best
}

/// The threshold at which the FAR is 1e-3, linear between the thresholds tried; 0, which accepts nothing, if it
/// is not reached. FAR has steps: of the thresholds with one FAR the last one starts the next slope.
fn threshold_at_far(counts: &Counts) -> f64 {
    let rate = |count: u32| f64::from(count) / f64::from(counts.different);
    let far = |k: usize| rate(counts.false_accepts[k]);
    let steps = counts.false_accepts.len();
    // Without other pairs there is no FAR, and no threshold reaches it.
    if counts.different == 0 || far(steps - 1) < TARGET_FAR {
        return 0.0;
    }
    let above = counts.false_accepts.partition_point(|&count| rate(count) <= TARGET_FAR);
    if above == steps {
        return (steps - 1) as f64 * TAR_STEP;
    }
    // At threshold 0 nothing is accepted, so that `above` is at least 1.
    let below = above - 1;
    let (low, high) = (below as f64 * TAR_STEP, above as f64 * TAR_STEP);
    low + (TARGET_FAR - far(below)) * ((high - low) / (far(above) - far(below)))
}

/// Mean and population standard deviation over the folds, added in NumPy's order (eight partial sums, then the
/// rest), so that published figures are met to the last digit.
fn mean_and_std(values: &[f64; FOLDS]) -> (f64, f64) {
    let sum =
        |v: &[f64; FOLDS]| ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])) + v[8] + v[9];
    let mean = sum(values) / FOLDS as f64;
    (mean, (sum(&values.map(|value| (value - mean) * (value - mean))) / FOLDS as f64).sqrt())
}

/// (FAR, TAR) of all pairs, from (0, 0), then for every distinct distance with the pairs up to it accepted.
fn roc_curve(distances: &[f64], issame: &[bool]) -> Vec<(f64, f64)> {
    let mut pairs: Vec<(f64, bool)> = distances.iter().copied().zip(issame.iter().copied()).collect();
    pairs.sort_by(|a, b| a.0.total_cmp(&b.0));
    let same_total = issame.iter().filter(|&&same| same).count();
    let different_total = issame.len() - same_total;
    let mut curve = vec![(0.0, 0.0)];
    let (mut same, mut different) = (0_usize, 0_usize);
    for tied in pairs.chunk_by(|a, b| a.0 == b.0) {
        let matching = tied.iter().filter(|(_, same)| *same).count();
        same += matching;
        different += tied.len() - matching;
        curve.push((different as f64 / different_total as f64, same as f64 / same_total as f64));
    }
    curve
}

/// The area under a curve, by trapezoids.
fn area_under(curve: &[(f64, f64)]) -> f64 {
    curve.windows(2).map(|ends| (ends[1].0 - ends[0].0) * (ends[0].1 + ends[1].1) / 2.0).sum()
}

/// Where FAR = 1 - TAR, linear between the curve's points.
fn equal_error_rate(curve: &[(f64, f64)]) -> f64 {
    for ends in curve.windows(2) {
        let ((far, tar), (next_far, next_tar)) = (ends[0], ends[1]);
        let (before, after) = (far + tar, next_far + next_tar);
        if after >= 1.0 {
            return far + (next_far - far) * (1.0 - before) / (after - before);
        }
    }
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_those_of_scikit_learn() {
        let lengths = |pairs| folds(pairs).map(|range| range.len());
        assert_eq!(lengths(6000), [600; 10]);
        assert_eq!(lengths(13), [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]);
        for pairs in [10, 137, 299] {
            let folds = folds(pairs);
            assert_eq!((folds[0].start, folds[9].end), (0, pairs));
            assert!(folds.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }

    /// Pairs of unit vectors in the plane, with the squared distances given.
    fn pairs_at(distances: &[f64]) -> Vec<f32> {
        let pair = |&d: &f64| {
            let cosine = 1.0 - d / 2.0;
            [1.0, 0.0, cosine as f32, (1.0 - cosine * cosine).sqrt() as f32]
        };
        distances.iter().flat_map(pair).collect()
    }

    #[test]
    fn separable_pairs_are_perfect_and_reversed_ones_are_not() {
        let issame: Vec<bool> = (0..40).map(|index| index % 2 == 0).collect();
        let distances: Vec<f64> = issame.iter().map(|&same| if same { 0.5 } else { 1.905 }).collect();
        let report = verify("x", &pairs_at(&distances), 2, &issame).unwrap();
        assert_eq!((report.accuracy, report.accuracy_std, report.tar_at_far_1e3), (1.0, 0.0, 1.0));
        assert_eq!((report.auc, report.eer, report.pairs), (1.0, 0.0, 40));
        assert!((report.threshold - 0.5).abs() < 0.011, "{}", report.threshold);
        assert_eq!((report.roc.first(), report.roc.last()), (Some(&(0.0, 0.0)), Some(&(1.0, 1.0))));

        let reversed: Vec<bool> = issame.iter().map(|same| !same).collect();
        let report = verify("x", &pairs_at(&distances), 2, &reversed).unwrap();
        assert_eq!((report.auc, report.eer, report.tar_at_far_1e3), (0.0, 1.0, 0.0));
    }

    #[test]
    fn tar_is_zero_where_the_far_is_not_reached() {
        // Opposite vectors: no threshold below 4 accepts them.
        let issame: Vec<bool> = (0..20).map(|index| index % 2 == 0).collect();
        let distances: Vec<f64> = issame.iter().map(|&same| if same { 0.5 } else { 4.0 }).collect();
        let report = verify("x", &pairs_at(&distances), 2, &issame).unwrap();
        assert_eq!((report.accuracy, report.tar_at_far_1e3), (1.0, 0.0));
    }

    #[test]
    fn a_far_that_is_met_on_a_plateau_takes_the_plateaus_end() {
        let counts = |false_accepts: Vec<u32>| Counts {
            true_accepts: vec![0; false_accepts.len()],
            false_accepts,
            same: 0,
            different: 1000,
        };
        assert_eq!(threshold_at_far(&counts(vec![0, 0, 1, 1, 1, 3, 9])), 4.0 * TAR_STEP);
        assert_eq!(threshold_at_far(&counts(vec![0, 0, 1, 1])), 3.0 * TAR_STEP);
        assert!((threshold_at_far(&counts(vec![0, 0, 0, 4, 4])) - 2.25 * TAR_STEP).abs() < 1e-15);
        assert_eq!(threshold_at_far(&counts(vec![0, 0, 0])), 0.0);
    }

    #[test]
    fn equal_distances_are_one_point_of_the_curve() {
        let issame: Vec<bool> = (0..20).map(|index| index % 2 == 0).collect();
        let report = verify("x", &pairs_at(&[1.0; 20]), 2, &issame).unwrap();
        assert_eq!((report.roc, report.auc, report.eer), (vec![(0.0, 0.0), (1.0, 1.0)], 0.5, 0.5));
    }

    #[test]
    fn sets_that_cannot_be_evaluated_are_refused() {
        let issame: Vec<bool> = (0..10).map(|index| index % 2 == 0).collect();
        let good = pairs_at(&[1.0; 10]);
        assert!(verify("x", &good, 2, &issame).is_ok());
        assert!(verify("x", &good[..38], 2, &issame).is_err());
        assert!(verify("x", &good, 0, &issame).is_err());
        assert!(verify("x", &good[..36], 2, &issame[..9]).is_err());
        assert!(verify("x", &good, 2, &[true; 10]).is_err());
        let mut damaged = good;
        damaged[9] = f32::NAN;
        assert!(verify("x", &damaged, 2, &issame).unwrap_err().to_string().contains("embedding 4"));
    }

    #[test]
    fn the_report_has_the_published_field_names() {
        let issame: Vec<bool> = (0..10).map(|index| index % 2 == 0).collect();
        let report = verify("lfw", &pairs_at(&[1.0; 10]), 2, &issame).unwrap();
        let json = serde_json::to_value(&report).unwrap();
        let mut keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let expected =
            ["accuracy", "accuracy_std", "auc", "eer", "name", "pairs", "tar_at_far_1e-3", "threshold"];
        assert_eq!(keys, expected);
    }
}
