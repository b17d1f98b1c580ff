//! Sums over the steps of an epoch.

use serde::{Deserialize, Serialize};

use crate::train::histogram::Histogram;
use crate::train::step::StepResult;

/// What the steps of an epoch gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EpochSums {
    loss: f64,
    steps: u64,
    /// cos(x, W_y) of every sample.
    pub weight: Histogram,
    /// cos(x, Q_y) of every sample whose step measured it; empty for a head without EPL.
    pub empirical: Histogram,
    /// The same before the step moved Q_y towards the sample.
    pub before_update: Histogram,
}

impl EpochSums {
    /// Of no steps. A sample whose cosine is below `hard_cosine` is a hard one.
    pub fn new(hard_cosine: f64) -> Self {
        let empty = Histogram::new(hard_cosine);
        Self { loss: 0.0, steps: 0, weight: empty.clone(), empirical: empty.clone(), before_update: empty }
    }

    /// Adds a step.
    pub fn add(&mut self, result: &StepResult) {
        self.loss += f64::from(result.loss);
        self.steps += 1;
        result.target_cosine.iter().for_each(|&cosine| self.weight.add(cosine));
        result.empirical_cosine.iter().for_each(|&cosine| self.empirical.add(cosine));
        result.cosine_before_update.iter().for_each(|&cosine| self.before_update.add(cosine));
    }

    /// The number of steps.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Mean loss of the steps; NaN before the first.
    pub fn mean_loss(&self) -> f64 {
        self.loss / self.steps as f64
    }
}
