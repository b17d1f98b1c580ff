//! What the prototypes do over a run: how near samples are to them, how far they move, which classes were seen.

use crate::interchange::safetensors::{StateDict, Value};
use crate::interchange::tensor_file::{TensorFile, TensorSource};
use crate::model::{Model, PrototypeRows};
use crate::report::{Percentiles, PrototypePoint};
use crate::train::epoch::EpochSums;
use crate::train::histogram::{Histogram, Spread};
use crate::{Error, Result};

/// Name in a checkpoint of the set of classes that were seen, a bit each.
const SEEN: &str = "watch.classes_seen";
/// Name in a checkpoint of the watched rows of Q when the epoch started.
const BEFORE: &str = "watch.queue_before";

/// Classes whose prototypes are read back, at most: enough for percentiles, few enough to read every epoch.
const WATCHED: usize = 4096;

/// Watches the prototypes of a model in training.
#[derive(Clone, Debug)]
pub struct PrototypeWatch {
    /// Factor k of the adaptive margin; `None` for a head without EPL.
    k: Option<f64>,
    hard_cosine: f64,
    /// The classes whose prototypes are looked at, the same ones in every epoch.
    watched: Vec<u32>,
    /// Their rows of Q as they were when the epoch started, `[watched, D]`; `None` for a head without EPL.
    before: Option<Vec<f32>>,
    seen: SeenClasses,
}

impl PrototypeWatch {
    /// Starts with the prototypes as they are now. A sample whose cosine is below `hard_cosine` is a hard one.
    ///
    /// # Errors
    /// When the prototypes cannot be read.
    pub fn new(model: &Model, hard_cosine: f64) -> Result<Self> {
        let (classes, epl) =
            model.spec.head.as_ref().map_or((0, None), |head| (head.classes, head.settings.epl));
        let watched = spread_evenly(classes, WATCHED);
        let before = match epl {
            Some(_) => model.prototype_rows(&watched)?.queue,
            None => None,
        };
        Ok(Self { k: epl.map(|epl| epl.k), hard_cosine, watched, before, seen: SeenClasses::new(classes) })
    }

    /// Adds to `dict` what a checkpoint needs of it.
    pub fn save(&self, dict: &mut StateDict, dimension: usize) {
        let seen = self.seen.bits.iter().map(|&word| word.cast_signed()).collect();
        dict.tensors.insert(SEEN.into(), (vec![self.seen.bits.len()], Value::I64(seen)));
        if let Some(before) = &self.before {
            dict.insert(BEFORE, &[self.watched.len(), dimension], before.clone());
        }
    }

    /// Takes what [`Self::save`] wrote.
    ///
    /// # Errors
    /// Where it is not there, or of another size.
    pub fn restore(&mut self, file: &TensorFile) -> Result<()> {
        let seen = file.integers(SEEN)?;
        let before = match &self.before {
            Some(_) => Some(file.floats_of(BEFORE)?),
            None => None,
        };
        if seen.len() != self.seen.bits.len()
            || before.as_ref().map(Vec::len) != self.before.as_ref().map(Vec::len)
        {
            return Err(Error::data(
                file.path().display().to_string(),
                format!("{SEEN} of {} words", seen.len()),
                format!("{} classes", self.seen.classes),
                "go on with the model that the checkpoint is of",
            ));
        }
        self.seen.bits = seen.into_iter().map(i64::cast_unsigned).collect();
        self.before = before;
        Ok(())
    }

    /// Notes that a step trains on samples of these classes.
    pub fn see(&mut self, labels: &[u32]) {
        self.seen.insert(labels);
    }

    /// What the prototypes did in the epoch that has ended after `step` steps and whose samples are in `sums`. The
    /// next epoch's drift is measured from now on.
    ///
    /// # Errors
    /// When the prototypes cannot be read.
    pub fn end_epoch(
        &mut self,
        model: &Model,
        epoch: u32,
        step: u64,
        sums: &EpochSums,
    ) -> Result<PrototypePoint> {
        let mut rows = PrototypeRows { weight: Vec::new(), queue: None };
        if self.k.is_some() {
            rows = model.prototype_rows(&self.watched)?;
        }
        let dimension = model.spec.network.embedding;
        let between = |a: &[f32], b: Option<&[f32]>| {
            b.map_or(Spread::NONE, |b| Spread::of(angles_degrees(a, b, dimension)))
        };
        let angle = between(&rows.weight, rows.queue.as_deref());
        let drift = between(self.before.as_deref().unwrap_or_default(), rows.queue.as_deref());
        self.before = rows.queue;

        let k = self.k.unwrap_or(f64::NAN);
        // After the update nearly every sample is near Q, which has just been moved there.
        let hard = if self.k.is_some() { &sums.before_update } else { &sums.weight };
        Ok(PrototypePoint {
            step,
            epoch,
            cos_weight: sums.weight.mean(),
            cos_weight_percentiles: sums.weight.percentiles(),
            cos_empirical: sums.empirical.mean(),
            cos_empirical_percentiles: sums.empirical.percentiles(),
            cos_before_update: sums.before_update.mean(),
            cos_before_update_percentiles: sums.before_update.percentiles(),
            adaptive_margin: k * sums.empirical.mean(),
            adaptive_margin_percentiles: self.k.and_then(|k| scaled(&sums.empirical, k)),
            angle_degrees: angle.mean,
            angle_degrees_percentiles: angle.percentiles,
            drift_degrees: drift.mean,
            drift_degrees_percentiles: drift.percentiles,
            hard_cosine: self.hard_cosine,
            hard_share: hard.share_below(),
            classes_unvisited: Some(self.seen.missing()),
        })
    }
}

/// Percentiles of `k` times the values: those of the values times `k`, as `k` is not negative.
fn scaled(values: &Histogram, k: f64) -> Option<Percentiles> {
    values.percentiles().map(|percentiles| percentiles.map(|value| k * value))
}

/// At most `most` of the classes, evenly spread over all of them, in ascending order.
fn spread_evenly(classes: usize, most: usize) -> Vec<u32> {
    let count = classes.min(most);
    (0..count).filter_map(|index| u32::try_from(index * classes / count).ok()).collect()
}

/// The angle in degrees between each row of `a` and the same row of `b`, both `[N, dimension]`. A row without
/// length has no direction, and its angle is NaN.
fn angles_degrees(a: &[f32], b: &[f32], dimension: usize) -> Vec<f64> {
    let dot =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum() };
    let rows = a.chunks_exact(dimension).zip(b.chunks_exact(dimension));
    rows.map(|(a, b)| {
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        cosine.clamp(-1.0, 1.0).acos().to_degrees()
    })
    .collect()
}

/// A set of classes, one bit each.
#[derive(Clone, Debug)]
struct SeenClasses {
    bits: Vec<u64>,
    classes: usize,
}

impl SeenClasses {
    fn new(classes: usize) -> Self {
        Self { bits: vec![0; classes.div_ceil(64)], classes }
    }

    /// Adds classes; a label that is no class adds nothing.
    fn insert(&mut self, labels: &[u32]) {
        for &label in labels.iter().filter(|&&label| (label as usize) < self.classes) {
            if let Some(word) = self.bits.get_mut(label as usize / 64) {
                *word |= 1 << (label % 64);
            }
        }
    }

    /// The number of classes that are not in it.
    fn missing(&self) -> u64 {
        let seen: u64 = self.bits.iter().map(|word| u64::from(word.count_ones())).sum();
        self.classes as u64 - seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watched_classes_are_spread_over_all() {
        assert_eq!(spread_evenly(3, 4096), [0, 1, 2]);
        assert_eq!(spread_evenly(0, 4096), [] as [u32; 0]);
        assert_eq!(spread_evenly(10, 4), [0, 2, 5, 7]);
        let many = spread_evenly(617_970, WATCHED);
        assert_eq!((many.len(), many[0]), (WATCHED, 0));
        let gaps: Vec<u32> = many.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| (150..=151).contains(gap)));
        assert!(617_970 - many[WATCHED - 1] <= 151, "the last classes are not left out");
    }

    #[test]
    fn angles_do_not_depend_on_length() {
        let a = [1.0, 0.0, 0.0, 2.0, 3.0, 3.0, 0.0, 0.0];
        let b = [5.0, 0.0, 0.5, 0.0, -1.0, -1.0, 1.0, 0.0];
        let angles = angles_degrees(&a, &b, 2);
        for (found, expected) in angles.iter().zip([0.0, 90.0, 180.0]) {
            assert!((found - expected).abs() < 1e-5, "{angles:?}");
        }
        assert!(angles[3].is_nan(), "a row of zeros has no direction");
    }

    #[test]
    fn classes_are_counted_once() {
        let mut seen = SeenClasses::new(130);
        assert_eq!(seen.missing(), 130);
        seen.insert(&[0, 63, 64, 129, 129, 0]);
        assert_eq!(seen.missing(), 126);
        seen.insert(&[130, 191, u32::MAX]);
        assert_eq!(seen.missing(), 126, "labels that are no class");
        seen.insert(&(0..130).collect::<Vec<_>>());
        assert_eq!(seen.missing(), 0);
    }
}
