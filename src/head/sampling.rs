//! Which classes take part in a step (Partial FC: An et al., arXiv 2010.05222): those of the batch, and a random sample of
//! the others.
//!
//! The number is the same in every step, since the graph is static. The sample is a function of seed, step and batch
//! alone, so that a run can be resumed anywhere.

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::{Error, Result};

/// The classes that take part in a step, and where those of the batch are among them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The classes, ascending.
    pub classes: Vec<u32>,
    /// For each sample of the batch, the place of its class among them.
    pub positions: Vec<u32>,
}

/// Chooses the classes that take part in each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassSampler {
    classes: usize,
    sampled: usize,
    seed: u64,
}

impl ClassSampler {
    /// A sampler of the share `rate` of `classes`, but at least as many as a batch of `batch` may have. `None` where all
    /// take part, at a rate of 1.
    pub fn new(classes: usize, batch: usize, rate: f64, seed: u64) -> Option<Self> {
        let wanted = (classes as f64 * rate).ceil() as usize;
        let sampled = wanted.max(batch).clamp(1, classes.max(1));
        (rate < 1.0).then_some(Self { classes, sampled, seed })
    }

    /// Classes that take part in a step.
    pub fn count(&self) -> usize {
        self.sampled
    }

    /// The classes that take part in step `step`, whose batch has these labels.
    ///
    /// # Errors
    /// Where a label is no class.
    pub fn sample(&self, step: u64, labels: &[u32]) -> Result<Sample> {
        let mut chosen = Bits::new(self.classes);
        for &label in labels {
            if label as usize >= self.classes {
                return Err(Error::usage(
                    format!("the label {label} is none of the {} classes", self.classes),
                    "this is a fault of the program: labels are checked when the data is read",
                ));
            }
            chosen.insert(label as usize);
        }
        // Mixed by an odd constant, so that neighbouring seeds and steps do not share streams.
        let mut generator =
            Pcg64Mcg::seed_from_u64(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ step.rotate_left(32));
        let missing = self.sampled.saturating_sub(chosen.count);
        let others = self.classes - chosen.count;
        if missing <= others / 2 {
            while chosen.count < self.sampled {
                chosen.insert(generator.random_range(0..self.classes));
            }
        } else {
            // Most of the others take part: it is quicker to draw those that do not.
            let mut left_out = Bits::new(self.classes);
            while left_out.count < others - missing {
                let class = generator.random_range(0..self.classes);
                if !chosen.contains(class) {
                    left_out.insert(class);
                }
            }
            for class in 0..self.classes {
                if !left_out.contains(class) {
                    chosen.insert(class);
                }
            }
        }
        let classes: Vec<u32> = chosen.iter().map(|class| class as u32).collect();
        // Every label was inserted, so that each is found.
        let positions =
            labels.iter().map(|label| classes.partition_point(|class| class < label) as u32).collect();
        Ok(Sample { classes, positions })
    }
}

/// A set of numbers below a limit.
struct Bits {
    words: Vec<u64>,
    count: usize,
}

impl Bits {
    fn new(limit: usize) -> Self {
        Self { words: vec![0; limit.div_ceil(64)], count: 0 }
    }

    fn contains(&self, number: usize) -> bool {
        self.words.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn insert(&mut self, number: usize) {
        if let Some(word) = self.words.get_mut(number / 64) {
            let bit = 1 << (number % 64);
            self.count += usize::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// The numbers, ascending.
    fn iter(&self) -> impl Iterator<Item = usize> {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let bit = left.trailing_zeros() as usize;
                    left &= left - 1;
                    64 * index + bit
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(classes: usize, batch: usize, rate: f64) -> ClassSampler {
        ClassSampler::new(classes, batch, rate, 7).unwrap()
    }

    #[test]
    fn a_rate_of_one_samples_nothing() {
        assert_eq!(ClassSampler::new(1000, 8, 1.0, 7), None);
    }

    #[test]
    fn the_count_is_the_share_but_never_below_the_batch() {
        assert_eq!(sampler(1000, 8, 0.1).count(), 100);
        assert_eq!(sampler(1001, 8, 0.1).count(), 101);
        assert_eq!(sampler(1000, 300, 0.1).count(), 300);
        assert_eq!(sampler(100, 300, 0.1).count(), 100);
    }

    #[test]
    fn the_classes_of_the_batch_always_take_part_and_no_class_twice() {
        let labels = [999, 0, 5, 5, 500];
        for rate in [0.001, 0.1, 0.3, 0.7, 0.99, 0.9999] {
            let sampler = sampler(1000, labels.len(), rate);
            for step in 0..20 {
                let Sample { classes, positions } = sampler.sample(step, &labels).unwrap();
                assert_eq!(classes.len(), sampler.count());
                assert!(classes.windows(2).all(|pair| pair[0] < pair[1]), "{classes:?}");
                assert!(classes.last().is_some_and(|&last| last < 1000));
                let found: Vec<u32> = positions.iter().map(|&place| classes[place as usize]).collect();
                assert_eq!(found, labels);
            }
        }
    }

    #[test]
    fn the_sample_is_a_function_of_seed_and_step() {
        let labels = [1, 2, 3];
        let sampler = sampler(1000, 3, 0.2);
        assert_eq!(sampler.sample(4, &labels).unwrap(), sampler.sample(4, &labels).unwrap());
        assert_ne!(sampler.sample(4, &labels).unwrap(), sampler.sample(5, &labels).unwrap());
        let other = ClassSampler::new(1000, 3, 0.2, 8).unwrap();
        assert_ne!(sampler.sample(4, &labels).unwrap(), other.sample(4, &labels).unwrap());
    }

    #[test]
    fn every_other_class_is_as_likely() {
        for rate in [0.2, 0.8] {
            let sampler = sampler(50, 1, rate);
            let mut counts = [0u32; 50];
            let steps = 4000;
            for step in 0..steps {
                for class in sampler.sample(step, &[0]).unwrap().classes {
                    counts[class as usize] += 1;
                }
            }
            assert_eq!(counts[0], steps as u32);
            // Of the 49 others, all but one of those that take part; five deviations of a binomial count.
            let p = (sampler.count() - 1) as f64 / 49.0;
            let (mean, deviation) = (steps as f64 * p, (steps as f64 * p * (1.0 - p)).sqrt());
            for (class, &count) in counts.iter().enumerate().skip(1) {
                assert!((f64::from(count) - mean).abs() < 5.0 * deviation, "class {class}: {count}, {mean}");
            }
        }
    }

    #[test]
    fn a_label_that_is_no_class_is_refused() {
        assert!(sampler(10, 1, 0.5).sample(0, &[10]).unwrap_err().to_string().contains("label 10"));
    }
}
