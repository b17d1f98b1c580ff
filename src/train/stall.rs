//! Notices a loss that does not move, or that rises again.

use serde::{Deserialize, Serialize};

/// Least and most steps whose losses are averaged.
const WINDOW: std::ops::RangeInclusive<u64> = 50..=500;
/// Windows after which a loss should have moved.
const PATIENCE: usize = 4;
/// A loss that is still above this share of the first has not moved.
const MOVED: f64 = 0.98;
/// A loss above this share of the best, twice in a row, rises.
const RISES: f64 = 1.2;

/// Means over the steps of a window.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Window {
    steps: u64,
    loss: f64,
    grad_norm: f64,
    cosine: f64,
}

/// Watches the losses of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LossWatch {
    length: u64,
    current: Window,
    first: Option<f64>,
    /// `None` before the first window: JSON has no infinity.
    best: Option<f64>,
    windows: usize,
    above_best: usize,
    /// The number of windows at which it may speak again.
    quiet_until: usize,
}

impl LossWatch {
    /// For epochs of `steps_per_epoch` steps: a window is half of one, within reason.
    pub fn new(steps_per_epoch: u64) -> Self {
        Self {
            length: (steps_per_epoch / 2).clamp(*WINDOW.start(), *WINDOW.end()),
            current: Window::default(),
            first: None,
            best: None,
            windows: 0,
            above_best: 0,
            quiet_until: PATIENCE,
        }
    }

    /// Begins again: the loss is another one, since a branch was added to it.
    pub fn reset(&mut self) {
        let length = self.length;
        *self = Self { length, ..Self::new(0) };
    }

    /// Takes a step that is finite: its number, loss, gradient norm and mean cos(x, W_y), and the rate. Returns a line for
    /// whoever watches the run, where there is something to say.
    pub fn see(&mut self, step: u64, loss: f64, grad_norm: f64, cosine: f64, lr: f64) -> Option<String> {
        self.current.steps += 1;
        self.current.loss += loss;
        self.current.grad_norm += grad_norm;
        self.current.cosine += cosine;
        if self.current.steps < self.length {
            return None;
        }
        let Window { steps, loss, grad_norm, cosine } = std::mem::take(&mut self.current);
        let mean = |sum: f64| sum / steps as f64;
        let (loss, grad_norm, cosine) = (mean(loss), mean(grad_norm), mean(cosine));
        self.windows += 1;
        let first = *self.first.get_or_insert(loss);
        let rises = self.best.is_some_and(|best| loss > RISES * best);
        self.above_best = if rises { self.above_best + 1 } else { 0 };
        let best = self.best.map_or(loss, |best| best.min(loss));
        self.best = Some(best);
        if self.windows < self.quiet_until {
            return None;
        }
        let figures = format!(
            "mean {loss:.3} over the {steps} steps up to {step}; lr {lr:.2e}, gradient norm {grad_norm:.2e}, \
             cos(x, W_y) {cosine:.3}"
        );
        let said = if best > MOVED * first {
            format!(
                "warning: the loss has not moved from {first:.3} ({figures}). Usual causes: a rate that is too high or \
                 too low (optim.lr), a margin that is too hard to begin with (head.margin), labels that do not belong to \
                 the images (`epl data check`)"
            )
        } else if self.above_best >= 2 {
            format!(
                "warning: the loss rises again, from {:.3} at its best ({figures}). Usual causes: a rate that is too high \
                 (optim.lr; optim.clip_norm limits a step)",
                best
            )
        } else {
            return None;
        };
        // Once more when it has gone on for twice as long.
        self.quiet_until = 2 * self.windows;
        Some(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of the losses `loss(0)`, `loss(1)`, ..., and after how many steps.
    fn said(steps: u64, loss: impl Fn(u64) -> f64) -> Vec<(u64, String)> {
        let mut watch = LossWatch::new(200);
        (0..steps).filter_map(|i| Some((i + 1, watch.see(i + 1, loss(i), 1.0, 0.1, 0.1)?))).collect()
    }

    #[test]
    fn a_loss_that_stands_still_is_pointed_out_ever_more_rarely() {
        let lines = said(1700, |i| 40.0 + (i % 7) as f64 / 10.0);
        assert_eq!(lines.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [400, 800, 1600]);
        let (_, line) = &lines[0];
        for part in
            ["has not moved from 40.295", "up to 400", "lr 1.00e-1", "cos(x, W_y) 0.100", "epl data check"]
        {
            assert!(line.contains(part), "{part} is not in {line}");
        }
    }

    #[test]
    fn a_loss_that_falls_or_has_fallen_is_not() {
        assert!(said(5000, |i| 40.0 / (1.0 + i as f64 / 500.0)).is_empty());
        // Converged, on a plateau far below the start.
        assert!(said(5000, |i| if i < 300 { 40.0 - 0.1 * i as f64 } else { 10.0 }).is_empty());
    }

    #[test]
    fn a_loss_that_rises_again_is_pointed_out() {
        let lines = said(1000, |i| if i < 500 { 40.0 - 0.06 * i as f64 } else { 25.0 });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert_eq!(lines[0].0, 700, "two windows in a row");
        assert!(lines[0].1.contains("rises again, from 13"), "{lines:?}");
    }

    #[test]
    fn a_new_branch_of_the_loss_is_a_new_start() {
        let mut watch = LossWatch::new(200);
        let see = |watch: &mut LossWatch, steps: std::ops::Range<u64>, loss: f64| {
            steps.filter_map(|i| watch.see(i, loss - 0.01 * i as f64, 1.0, 0.0, 0.1)).count()
        };
        assert_eq!(see(&mut watch, 0..400, 20.0), 0);
        watch.reset();
        assert_eq!(see(&mut watch, 400..900, 40.0), 0, "higher than before, and falling");
    }
}
