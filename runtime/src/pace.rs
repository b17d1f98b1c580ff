//! How a step is cut into submissions, so that none keeps the GPU busy for long.
//!
//! Windows resets a GPU whose work takes more than two seconds, other systems later, and a desktop is stuck meanwhile. A
//! step may take longer than that. Its launches are cut into submissions that stay below a bound: in the first steps by
//! what the ops' costs make of a slow GPU, then by what was measured. Cuts change no result.

use std::ops::Range;
use std::time::Duration;

use crate::op::Cost;

/// Operations and bytes a second that are reckoned with before anything was measured: those of a slow integrated GPU.
const SLOW_FLOPS: f64 = 50e9;
const SLOW_BYTES: f64 = 5e9;
/// The least time that a launch is reckoned with.
const LAUNCH: f64 = 20e-6;
/// Steps run before the one that is measured: the first ones of some drivers compile.
const WARM_UP: u64 = 1;
/// A step that takes so many times as long as it should, or that part of it, changes the cuts.
const OFF: f64 = 1.5;
/// So many steps in a row have to be shorter before there are fewer cuts.
const SHORT_IN_A_ROW: u32 = 8;

/// The cuts of a step, and what they come from.
#[derive(Debug)]
pub(crate) struct Pace {
    bound: f64,
    /// Seconds that each launch should take, in order.
    seconds: Vec<f64>,
    /// The first launch of each submission but the first.
    cuts: Vec<usize>,
    steps: u64,
    measured: bool,
    /// The longest of the last steps that were shorter than they should be, and how many they were.
    shorter: (f64, u32),
}

/// The seconds that the launches of a node with this cost take on a slow GPU.
pub(crate) fn slow_seconds(cost: Cost, launches: usize) -> impl Iterator<Item = f64> {
    let all = cost.flops / SLOW_FLOPS + cost.bytes / SLOW_BYTES;
    std::iter::repeat_n((all / launches.max(1) as f64).max(LAUNCH), launches)
}

impl Pace {
    /// Of launches that should take `seconds`, in submissions that take at most `bound`.
    pub fn new(bound: Duration, seconds: Vec<f64>) -> Self {
        let mut pace = Self {
            bound: bound.as_secs_f64(),
            seconds,
            cuts: Vec::new(),
            steps: 0,
            measured: false,
            shorter: (0.0, 0),
        };
        pace.cut();
        pace
    }

    fn cut(&mut self) {
        self.cuts.clear();
        let mut sum = 0.0;
        for (index, seconds) in self.seconds.iter().enumerate() {
            // A launch that takes longer than the bound has a submission of its own.
            if index > 0 && sum + seconds > self.bound {
                self.cuts.push(index);
                sum = 0.0;
            }
            sum += seconds;
        }
    }

    /// The launches of each submission; one without launches where the step has none.
    pub fn parts(&self) -> Vec<Range<usize>> {
        let starts = std::iter::once(0).chain(self.cuts.iter().copied());
        let ends = self.cuts.iter().copied().chain(std::iter::once(self.seconds.len()));
        starts.zip(ends).map(|(start, end)| start..end).collect()
    }

    /// The seconds that a submission should take at most.
    pub fn bound(&self) -> f64 {
        self.bound
    }

    /// The seconds that these launches should take.
    pub fn seconds(&self, launches: Range<usize>) -> f64 {
        self.seconds.get(launches).unwrap_or_default().iter().sum()
    }

    /// Begins a step. Whether its submissions are to be waited for one by one, and measured: also where there is only one, which
    /// takes longer than was reckoned with on a GPU that is slower still.
    pub fn begin(&mut self) -> bool {
        self.steps += 1;
        !self.measured && self.steps > WARM_UP
    }

    /// Takes what the submissions of a step took, in the order of [`Self::parts`]. Returns the longest launch and what it
    /// took, where that alone is over the bound.
    pub fn measured(&mut self, took: &[Duration]) -> Option<(usize, Duration)> {
        for (part, took) in self.parts().into_iter().zip(took) {
            let Some(seconds) = self.seconds.get_mut(part) else { continue };
            let factor = took.as_secs_f64() / seconds.iter().sum::<f64>().max(f64::MIN_POSITIVE);
            seconds.iter_mut().for_each(|seconds| *seconds *= factor);
        }
        self.measured = true;
        self.cut();
        let longest = self.seconds.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
        let (index, seconds) = longest?;
        (*seconds > self.bound).then(|| (index, Duration::try_from_secs_f64(*seconds).unwrap_or_default()))
    }

    /// Takes what a whole step took, while the device did nothing else: where that is far from what it should, because the
    /// GPU is busy with something else or clocked otherwise, the cuts change.
    pub fn observe(&mut self, step: Duration) {
        let expected: f64 = self.seconds.iter().sum();
        let mut factor = step.as_secs_f64() / expected;
        if !self.measured || !factor.is_finite() {
            return;
        }
        // A host that woke up late makes the next step look short: only a row of short ones is believed.
        self.shorter = match self.shorter {
            (longest, count) if factor < 1.0 / OFF => (factor.max(longest), count + 1),
            _ => (0.0, 0),
        };
        if let (longest, SHORT_IN_A_ROW) = self.shorter {
            (factor, self.shorter) = (longest, (0.0, 0));
        } else if factor <= OFF {
            return;
        }
        self.seconds.iter_mut().for_each(|seconds| *seconds *= factor);
        self.cut();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(bound: f64, seconds: &[f64]) -> Pace {
        Pace::new(Duration::from_secs_f64(bound), seconds.to_vec())
    }

    /// The first launch of each submission, and that of the next one.
    fn parts(pace: &Pace) -> Vec<(usize, usize)> {
        pace.parts().into_iter().map(|part| (part.start, part.end)).collect()
    }

    #[test]
    fn every_launch_is_in_one_submission_and_none_is_too_long() {
        let of = |seconds: &[f64]| parts(&pace(1.0, seconds));
        assert_eq!(of(&[0.4, 0.4, 0.4, 3.0, 0.1, 0.9, 0.2]), [(0, 2), (2, 3), (3, 4), (4, 6), (6, 7)]);
        assert_eq!(of(&[]), [(0, 0)]);
        assert_eq!(of(&[5.0]), [(0, 1)]);
    }

    #[test]
    fn what_is_measured_moves_the_cuts() {
        let mut pace = pace(1.0, &[0.5; 8]);
        assert_eq!(pace.parts().len(), 4);
        assert!(!pace.begin(), "the first step warms up");
        assert!(pace.begin());
        // Ten times as fast as was reckoned with, but for the last part.
        let milliseconds = [100, 100, 100, 1500].map(Duration::from_millis);
        assert_eq!(pace.measured(&milliseconds), None);
        assert_eq!(parts(&pace), [(0, 6), (6, 7), (7, 8)]);
        assert!(!pace.begin(), "once is enough");
        // As long as it should take, nearly; then three times as long.
        pace.observe(Duration::from_millis(2500));
        assert_eq!(pace.parts().len(), 3);
        pace.observe(Duration::from_millis(5400));
        assert_eq!(parts(&pace), [(0, 6), (6, 7), (7, 8)]);
        // One that is short says nothing, and a row of them what the longest took.
        for short in [50, 40, 50, 60, 50, 900, 50, 50] {
            assert_eq!(parts(&pace).len(), 3);
            pace.observe(Duration::from_millis(short));
        }
        assert_eq!(parts(&pace), [(0, 8)]);
    }

    #[test]
    fn a_launch_that_is_too_long_alone_is_told_of() {
        let mut pace = pace(1.0, &[0.5, 2.0, 0.5]);
        let took = [300, 2400, 300].map(Duration::from_millis);
        assert_eq!(pace.measured(&took), Some((1, Duration::from_millis(2400))));
    }

    #[test]
    fn what_should_fit_one_submission_is_cut_where_it_takes_longer() {
        let mut pace = pace(1.0, &[0.1; 3]);
        pace.observe(Duration::from_secs(60));
        assert_eq!(parts(&pace), [(0, 3)], "nothing was measured");
        assert!(!pace.begin() && pace.begin());
        assert_eq!(pace.measured(&[Duration::from_millis(2700)]), None);
        assert_eq!(parts(&pace), [(0, 1), (1, 2), (2, 3)]);
        assert!(!pace.begin());
    }

    #[test]
    fn costs_are_spread_over_the_launches_of_a_node() {
        let seconds: Vec<f64> = slow_seconds(Cost { flops: 100e9, bytes: 5e9 }, 3).collect();
        assert_eq!(seconds, [1.0; 3]);
        assert_eq!(slow_seconds(Cost::default(), 2).collect::<Vec<_>>(), [LAUNCH; 2]);
    }
}
