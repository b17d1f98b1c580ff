//! Sums over an epoch, and what can be said of the prototypes at its end.

use epl_runtime::Store;

use crate::Result;
use crate::model::{HEAD_QUEUE, HEAD_WEIGHT, Model};
use crate::train::step::StepResult;

/// Classes whose angle between W and Q is looked at, at most: enough for a mean, little enough to read back.
const ANGLE_CLASSES: usize = 4096;

/// Running sums of an epoch.
#[derive(Clone, Debug, Default)]
pub struct EpochSums {
    loss: Mean,
    target: Mean,
    empirical: Mean,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f32) {
        self.sum += f64::from(value);
        self.count += 1;
    }

    /// NaN where nothing was added.
    fn value(self) -> f64 {
        self.sum / self.count as f64
    }
}

impl EpochSums {
    /// Adds a step.
    pub fn add(&mut self, result: &StepResult) {
        self.loss.add(result.loss);
        result.target_cosine.iter().for_each(|&cosine| self.target.add(cosine));
        result.empirical_cosine.iter().for_each(|&cosine| self.empirical.add(cosine));
    }

    /// Mean loss of the steps; NaN before the first.
    pub fn mean_loss(&self) -> f64 {
        self.loss.value()
    }

    /// Mean of cos(x, W_y) over the samples.
    pub fn mean_target_cosine(&self) -> f64 {
        self.target.value()
    }

    /// Mean of cos(x, Q_y) over the samples; NaN while the empirical branch is off.
    pub fn mean_empirical_cosine(&self) -> f64 {
        self.empirical.value()
    }
}

/// Mean angle in degrees between the learned and the empirical prototype of a class, over the first classes;
/// NaN for a head without EPL.
pub fn prototype_angle(model: &Model) -> Result<f64> {
    let Some(desc) = model.spec.queue_desc() else { return Ok(f64::NAN) };
    let (classes, dimension) = (desc.shape.dim(0).min(ANGLE_CLASSES), desc.shape.dim(1));
    let weights = read_rows(&model.store, model, classes, dimension)?;
    let rows = epl_runtime::TensorDesc::f32([classes, dimension]);
    let queue = model.store.read_range(HEAD_QUEUE, 0, &rows)?;
    let angles =
        weights.chunks_exact(dimension).zip(queue.as_f32()?.chunks_exact(dimension)).map(|(w, q)| {
            let dot = |a: &[f32], b: &[f32]| -> f64 {
                a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
            };
            let cosine = dot(w, q) / (dot(w, w) * dot(q, q)).sqrt().max(1e-30);
            cosine.clamp(-1.0, 1.0).acos().to_degrees()
        });
    Ok(angles.sum::<f64>() / classes as f64)
}

fn read_rows(store: &Store, model: &Model, classes: usize, dimension: usize) -> Result<Vec<f32>> {
    if model.spec.head.is_none() {
        return Ok(Vec::new());
    }
    let rows = epl_runtime::TensorDesc::f32([classes, dimension]);
    let value = store.read_range(HEAD_WEIGHT, 0, &rows)?;
    Ok(value.as_f32()?.to_vec())
}
