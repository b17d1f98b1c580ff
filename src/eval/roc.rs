//! The ROC curve of scores, in which more is alike, with the points and the numbers that scikit-learn gives.

use rayon::prelude::*;
use serde::Serialize;

/// A point of the curve: the pairs with at least `threshold` are accepted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RocPoint {
    /// False-accept rate.
    pub far: f64,
    /// True-accept rate.
    pub tar: f64,
    /// The least score that is accepted; infinite where none is.
    pub threshold: f64,
}

/// The true-accept rate at a false-accept rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TarAtFar {
    /// The false-accept rate that was asked for.
    pub far: f64,
    /// The true-accept rate at the point of the curve that is nearest to it.
    pub tar: f64,
    /// The false-accept rate of that point: far from the other where there are too few non-matching pairs.
    pub far_of_point: f64,
    /// The least score that is accepted there; `None` where none is.
    pub threshold: Option<f64>,
}

/// The curve of some pairs, from nothing accepted to everything.
#[derive(Debug, Clone, PartialEq)]
pub struct Roc {
    points: Vec<RocPoint>,
}

impl Roc {
    /// The curve of pairs, each with its score and whether it matches; `None` where all or none match, or a score is not a
    /// number. Pairs of equal scores are one point. As in scikit-learn's `roc_curve`, points between which the steps of both
    /// counts are the same are left out; [`Roc::tar_at`] goes to the nearest of those that remain.
    pub fn new(mut pairs: Vec<(f64, bool)>) -> Option<Self> {
        let matching = pairs.par_iter().filter(|(_, same)| *same).count();
        let others = pairs.len() - matching;
        if matching == 0 || others == 0 || pairs.par_iter().any(|(score, _)| score.is_nan()) {
            return None;
        }
        pairs.par_sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        // For every distinct score: false accepts and true accepts.
        let mut counts: Vec<([i64; 2], f64)> = Vec::new();
        let mut accepted = [0, 0];
        for tied in pairs.chunk_by(|a, b| a.0 == b.0) {
            let same = tied.iter().filter(|(_, same)| *same).count();
            accepted = [accepted[0] + (tied.len() - same) as i64, accepted[1] + same as i64];
            counts.push((accepted, tied.first().map_or(0.0, |(score, _)| *score)));
        }
        drop(pairs);
        let point = |&([false_accepts, true_accepts], threshold): &([i64; 2], f64)| RocPoint {
            far: false_accepts as f64 / others as f64,
            tar: true_accepts as f64 / matching as f64,
            threshold,
        };
        let mut points = vec![RocPoint { far: 0.0, tar: 0.0, threshold: f64::INFINITY }];
        points.extend(counts.first().map(point));
        let bends = |window: &[([i64; 2], f64)]| match window {
            [(a, _), (b, _), (c, _)] => (0..2).any(|of| a[of] - 2 * b[of] + c[of] != 0),
            _ => false,
        };
        points.extend(
            counts.windows(3).filter(|window| bends(window)).filter_map(|window| window.get(1).map(point)),
        );
        if counts.len() > 1 {
            points.extend(counts.last().map(point));
        }
        Some(Self { points })
    }

    /// The points, in ascending order.
    pub fn points(&self) -> &[RocPoint] {
        &self.points
    }

    /// The area under the curve, by trapezoids.
    pub fn auc(&self) -> f64 {
        let area = |ends: &[RocPoint]| match ends {
            [a, b] => (b.far - a.far) * (a.tar + b.tar) / 2.0,
            _ => 0.0,
        };
        self.points.windows(2).map(area).sum()
    }

    /// The true-accept rate at the point whose false-accept rate is nearest to `far`: of equally near ones the highest.
    pub fn tar_at(&self, far: f64) -> TarAtFar {
        let mut best = RocPoint { far: f64::INFINITY, tar: 0.0, threshold: f64::INFINITY };
        for point in self.points.iter().rev() {
            if (point.far - far).abs() < (best.far - far).abs() {
                best = *point;
            }
        }
        let threshold = best.threshold.is_finite().then_some(best.threshold);
        TarAtFar { far, tar: best.tar, far_of_point: best.far, threshold }
    }

    /// (FAR, TAR) of about as many points as a picture with a logarithmic axis can show: each first one in a hundredth of a
    /// decade, and the ends.
    pub fn thinned(&self) -> Vec<(f64, f64)> {
        let bin = |far: f64| (far.max(1e-12).log10() * 100.0).floor();
        let mut kept: Vec<(f64, f64)> = Vec::new();
        for ends in self.points.chunk_by(|a, b| bin(a.far) == bin(b.far)) {
            // The last of a FAR is the highest.
            kept.extend(ends.last().map(|point| (point.far, point.tar)));
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(roc: &Roc) -> Vec<(f64, f64)> {
        roc.points().iter().map(|point| (point.far, point.tar)).collect()
    }

    #[test]
    fn points_are_those_of_scikit_learn() {
        // The example of its documentation.
        let roc = Roc::new(vec![(0.1, false), (0.4, false), (0.35, true), (0.8, true)]).unwrap();
        assert_eq!(rates(&roc), [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]);
        assert_eq!(roc.auc(), 0.75);
        let at = roc.tar_at(0.5);
        assert_eq!((at.tar, at.far_of_point, at.threshold), (1.0, 0.5, Some(0.35)));
        // 0.25 is as far from 0 as from 0.5.
        assert_eq!(roc.tar_at(0.25).tar, 1.0);
        assert_eq!(roc.tar_at(0.2).tar, 0.5);
        // Ten steps of non-matching pairs in a row are a line: in between there is no point.
        let mut pairs: Vec<(f64, bool)> = (0..10).map(|at| (f64::from(at), false)).collect();
        pairs.extend([(20.0, true), (-1.0, true)]);
        let roc = Roc::new(pairs).unwrap();
        assert_eq!(rates(&roc), [(0.0, 0.0), (0.0, 0.5), (1.0, 0.5), (1.0, 1.0)]);
        assert_eq!((roc.tar_at(0.1).tar, roc.tar_at(0.6).tar), (0.5, 1.0));
    }

    #[test]
    fn equal_scores_are_one_point() {
        let roc = Roc::new(vec![(1.0, true), (1.0, false), (1.0, true)]).unwrap();
        assert_eq!((rates(&roc), roc.auc()), (vec![(0.0, 0.0), (1.0, 1.0)], 0.5));
        assert_eq!(roc.tar_at(1e-6).threshold, None);
        // The two zeros are equal.
        let roc = Roc::new(vec![(0.0, true), (-0.0, false)]).unwrap();
        assert_eq!(rates(&roc), [(0.0, 0.0), (1.0, 1.0)]);
    }

    #[test]
    fn there_is_no_curve_of_one_kind_or_of_nan() {
        for pairs in [vec![], vec![(1.0, true)], vec![(1.0, false); 3], vec![(f64::NAN, true), (1.0, false)]]
        {
            assert_eq!(Roc::new(pairs), None);
        }
    }

    #[test]
    fn a_thinned_curve_keeps_its_ends() {
        let pairs =
            (0..20_000).map(|at| (f64::from(at % 1000) + f64::from(at % 7) / 10.0, at % 3 == 0)).collect();
        let roc = Roc::new(pairs).unwrap();
        let thinned = roc.thinned();
        assert!(thinned.len() > 100 && thinned.len() < 600, "{}", thinned.len());
        assert_eq!(thinned.last(), Some(&(1.0, 1.0)));
        assert!(thinned.is_sorted());
    }
}
