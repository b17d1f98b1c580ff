//! Learning-rate schedules.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::{Optim, Train};

/// How the learning rate changes over the run; the formulas are those of [`LearningRate::lr`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", try_from = "ScheduleTable")]
pub enum Schedule {
    /// Times `gamma` after each of `milestones`, as in the EPL release.
    Multistep {
        /// Numbers of whole epochs after which the rate falls, ascending. With 16 the 17th epoch is the first slow one.
        milestones: Vec<u32>,
        /// The factor.
        gamma: f64,
    },
    /// A power of what is left of the run, after a linear warm-up, as in InsightFace.
    Polynomial {
        /// The power; 2 in InsightFace's published runs.
        power: f64,
        /// Length of the warm-up in epochs; fractions are allowed.
        warmup_epochs: f64,
    },
    /// Half a cosine, after a linear warm-up.
    Cosine {
        /// Length of the warm-up in epochs; fractions are allowed.
        warmup_epochs: f64,
    },
    /// The base rate throughout.
    Constant,
}

impl Default for Schedule {
    fn default() -> Self {
        Self::Multistep { milestones: vec![16, 24], gamma: 0.1 }
    }
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Multistep,
    Polynomial,
    Cosine,
    Constant,
}

/// The table as written: a kind, and keys of which each kind has some.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ScheduleTable {
    kind: Kind,
    milestones: Option<Vec<u32>>,
    gamma: Option<f64>,
    power: Option<f64>,
    warmup_epochs: Option<f64>,
}

impl TryFrom<ScheduleTable> for Schedule {
    type Error = String;

    fn try_from(table: ScheduleTable) -> Result<Self, String> {
        let ScheduleTable { kind, milestones, gamma, power, warmup_epochs } = table;
        let given = [
            ("milestones", milestones.is_some()),
            ("gamma", gamma.is_some()),
            ("power", power.is_some()),
            ("warmup_epochs", warmup_epochs.is_some()),
        ];
        let (name, takes): (_, &[&str]) = match kind {
            Kind::Multistep => ("multistep", &["milestones", "gamma"]),
            Kind::Polynomial => ("polynomial", &["power", "warmup_epochs"]),
            Kind::Cosine => ("cosine", &["warmup_epochs"]),
            Kind::Constant => ("constant", &[]),
        };
        if let Some((key, _)) = given.iter().find(|(key, given)| *given && !takes.contains(key)) {
            let takes = if takes.is_empty() { "no further keys".to_owned() } else { takes.join(", ") };
            return Err(format!(
                "found the key `{key}`, which kind \"{name}\" does not have; expected {takes} \
                 (--set 'optim.schedule={{kind=\"{name}\"}}' replaces the whole table)"
            ));
        }
        Ok(match kind {
            Kind::Multistep => Self::Multistep {
                milestones: milestones.unwrap_or_else(|| vec![16, 24]),
                gamma: gamma.unwrap_or(0.1),
            },
            Kind::Polynomial => {
                Self::Polynomial { power: power.unwrap_or(2.0), warmup_epochs: warmup_epochs.unwrap_or(0.0) }
            }
            Kind::Cosine => Self::Cosine { warmup_epochs: warmup_epochs.unwrap_or(0.0) },
            Kind::Constant => Self::Constant,
        })
    }
}

/// The learning rate as a function of the step; it has no state, so that a resumed run cannot differ.
#[derive(Debug, Clone, PartialEq)]
pub struct LearningRate {
    base: f64,
    schedule: Schedule,
    epochs: u32,
    max_steps: u64,
}

impl LearningRate {
    /// The schedule of a run, its base rate scaled to the batch where `optim.lr_batch` says so. A run that `train.max_steps` ends early has its decay squeezed into those steps.
    pub fn new(optim: &Optim, train: &Train) -> Self {
        let batch = train.images_per_step();
        let scale = if optim.lr_batch == 0 { 1.0 } else { batch as f64 / optim.lr_batch as f64 };
        Self {
            base: optim.lr * scale,
            schedule: optim.schedule.clone(),
            epochs: train.epochs,
            max_steps: train.max_steps,
        }
    }

    /// Steps of the whole run, T: `epochs * steps_per_epoch`, or `max_steps` where that is less.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        let total = u64::from(self.epochs).saturating_mul(steps_per_epoch);
        if self.max_steps == 0 { total } else { total.min(self.max_steps) }
    }

    /// The learning rate of the step `l`, counted from 0 over the whole run.
    ///
    /// With the base rate `lr`, T steps in all and `w = round(warmup_epochs * steps_per_epoch)` steps of warm-up:
    ///
    /// - multistep: `lr * gamma^n`, n the number of milestones `<= l / steps_per_epoch` (PyTorch's `MultiStepLR`);
    /// - polynomial: `lr * (l + 1) / w` for `l < w`, then `lr * (1 - (l - w) / (T - w))^power`;
    /// - cosine: the same warm-up, then `lr * (1 + cos(pi * (l - w) / (T - w))) / 2`;
    /// - constant: `lr`.
    ///
    /// The warm-up counts the step itself and the decay does not, so that neither the first step nor the last one
    /// has a rate of zero.
    pub fn lr(&self, step: u64, steps_per_epoch: u64) -> f64 {
        match &self.schedule {
            Schedule::Multistep { milestones, gamma } => {
                let epochs_done = step / steps_per_epoch.max(1);
                let passed =
                    milestones.iter().filter(|&&milestone| u64::from(milestone) <= epochs_done).count();
                // Factor by factor, because `powi` does not promise the same bits on every platform.
                (0..passed).fold(self.base, |rate, _| rate * gamma)
            }
            Schedule::Polynomial { power, warmup_epochs } => {
                self.warmed_up(step, steps_per_epoch, *warmup_epochs, |done| (1.0 - done).powf(*power))
            }
            Schedule::Cosine { warmup_epochs } => {
                self.warmed_up(step, steps_per_epoch, *warmup_epochs, |done| 0.5 * (1.0 + (PI * done).cos()))
            }
            Schedule::Constant => self.base,
        }
    }

    /// Linear warm-up, then `decay` of the fraction of the rest of the run that is done, in `[0, 1]`.
    fn warmed_up(
        &self,
        step: u64,
        steps_per_epoch: u64,
        warmup_epochs: f64,
        decay: impl Fn(f64) -> f64,
    ) -> f64 {
        let warmup = (warmup_epochs * steps_per_epoch as f64).round() as u64;
        if step < warmup {
            return self.base * (step + 1) as f64 / warmup as f64;
        }
        let rest = self.total_steps(steps_per_epoch).saturating_sub(warmup);
        let done = if rest == 0 { 1.0 } else { ((step - warmup) as f64 / rest as f64).min(1.0) };
        self.base * decay(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: u64 = 100;

    fn rate(schedule: Schedule, epochs: u32, max_steps: u64) -> LearningRate {
        LearningRate { base: 0.1, schedule, epochs, max_steps }
    }

    #[track_caller]
    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "found {found}, expected {expected}");
    }

    #[test]
    fn multistep_falls_after_whole_epochs() {
        let rate = rate(Schedule::default(), 28, 0);
        close(rate.lr(0, STEPS), 0.1);
        close(rate.lr(16 * STEPS - 1, STEPS), 0.1);
        close(rate.lr(16 * STEPS, STEPS), 0.01);
        close(rate.lr(24 * STEPS - 1, STEPS), 0.01);
        close(rate.lr(24 * STEPS, STEPS), 0.001);
        close(rate.lr(28 * STEPS, STEPS), 0.001);
    }

    #[test]
    fn polynomial_warms_up_and_decays() {
        let rate = rate(Schedule::Polynomial { power: 2.0, warmup_epochs: 0.5 }, 10, 0);
        close(rate.lr(0, STEPS), 0.1 / 50.0);
        close(rate.lr(24, STEPS), 0.05);
        close(rate.lr(49, STEPS), 0.1);
        close(rate.lr(50, STEPS), 0.1);
        close(rate.lr(50 + 475, STEPS), 0.1 * 0.25);
        assert!(rate.lr(999, STEPS) > 0.0, "the last step must still learn");
        close(rate.lr(5000, STEPS), 0.0);
    }

    #[test]
    fn cosine_is_half_way_in_the_middle() {
        let rate = rate(Schedule::Cosine { warmup_epochs: 0.0 }, 10, 0);
        close(rate.lr(0, STEPS), 0.1);
        close(rate.lr(500, STEPS), 0.05);
        close(rate.lr(250, STEPS), 0.05 * (1.0 + 0.5_f64.sqrt()));
        assert!(rate.lr(999, STEPS) > 0.0 && rate.lr(999, STEPS) < 1e-6);
    }

    #[test]
    fn constant_stays() {
        let rate = rate(Schedule::Constant, 10, 0);
        close(rate.lr(0, STEPS), 0.1);
        close(rate.lr(999, STEPS), 0.1);
    }

    #[test]
    fn max_steps_shortens_the_decay() {
        let rate = rate(Schedule::Cosine { warmup_epochs: 0.0 }, 10, 200);
        assert_eq!(rate.total_steps(STEPS), 200);
        close(rate.lr(100, STEPS), 0.05);
    }

    #[test]
    fn degenerate_runs_stay_finite() {
        for schedule in [
            Schedule::default(),
            Schedule::Polynomial { power: 2.0, warmup_epochs: 3.0 },
            Schedule::Cosine { warmup_epochs: 3.0 },
        ] {
            let rate = rate(schedule, 1, 1);
            for (step, steps_per_epoch) in [(0, 0), (0, 1), (5, 1), (u64::MAX / 2, 1)] {
                assert!(rate.lr(step, steps_per_epoch).is_finite());
            }
        }
    }
}
