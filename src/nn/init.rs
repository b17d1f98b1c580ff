//! Initial values, each a function of the seed and the parameter's name alone, so that adding a layer changes no other.

use epl_runtime::Store;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Normal};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;

use crate::nn::parameters::{Initial, ParameterSpec, Parameters};
use crate::{Error, Result};

/// 64-bit FNV-1a: turns a name into a stream of its own.
fn name_hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The random numbers of the parameter called `name`.
fn generator(name: &str, seed: u64) -> Pcg64Mcg {
    Pcg64Mcg::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ name_hash(name))
}

/// `count` normal values with the given deviation, for the parameter called `name`, to be taken in pieces.
pub fn normal(name: &str, count: usize, deviation: f32, seed: u64) -> Result<NormalValues> {
    let generator = generator(name, seed);
    let distribution = Normal::new(0.0f64, f64::from(deviation)).map_err(|error| {
        Error::usage(format!("initial deviation {deviation} of {name}: {error}"), "use a finite width")
    })?;
    Ok(NormalValues { generator, distribution, left: count })
}

/// Normal values that are drawn as they are taken.
#[derive(Clone, Debug)]
pub struct NormalValues {
    generator: Pcg64Mcg,
    distribution: Normal<f64>,
    left: usize,
}

impl NormalValues {
    /// The values in pieces of `size` and the rest; the pieces of any size make up the same values.
    pub fn chunks(mut self, size: usize) -> impl Iterator<Item = Vec<f32>> {
        std::iter::from_fn(move || {
            let count = self.left.min(size.max(1));
            self.left -= count;
            let draw = |_| self.distribution.sample(&mut self.generator) as f32;
            (count > 0).then(|| (0..count).map(draw).collect())
        })
    }
}

/// The initial values of a parameter in state-dict order.
pub fn initial_values(spec: &ParameterSpec, seed: u64) -> Result<Vec<f32>> {
    let count = spec.shape.elements();
    match spec.initial {
        Initial::Constant(value) => Ok(vec![value; count]),
        Initial::Normal(deviation) => {
            Ok(normal(&spec.name, count, deviation, seed)?.chunks(count).next().unwrap_or_default())
        }
        Initial::Uniform(bound) => {
            let mut generator = generator(&spec.name, seed);
            Ok((0..count).map(|_| bound * (2.0 * generator.random::<f32>() - 1.0)).collect())
        }
    }
}

/// Parameters that are drawn at once.
const DRAWN_AT_ONCE: usize = 32;

/// Sets every parameter to its initial values.
pub fn initialize(parameters: &Parameters, store: &Store, seed: u64) -> Result<()> {
    let drawn = |spec: &ParameterSpec| Ok(spec.to_gpu(&initial_values(spec, seed)?));
    // Each value is a function of seed and name: drawn on all cores, some parameters at a time, so that the host holds few.
    for entries in parameters.entries().chunks(DRAWN_AT_ONCE) {
        let values: Vec<Vec<f32>> =
            entries.par_iter().map(|entry| drawn(&entry.spec)).collect::<Result<_>>()?;
        for (entry, values) in entries.iter().zip(&values) {
            parameters.write_gpu(store, entry, values)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Layout, Role};

    #[test]
    fn uniform_values_fill_their_bounds() {
        let spec = ParameterSpec {
            name: "fc.weight".into(),
            shape: [1000].into(),
            layout: Layout::Plain,
            role: Role::Weight,
            initial: Initial::Uniform(0.25),
        };
        let values = initial_values(&spec, 1).unwrap();
        assert!(values.iter().all(|value| value.abs() <= 0.25));
        assert!(values.iter().any(|&value| value < -0.2) && values.iter().any(|&value| value > 0.2));
        assert!((values.iter().sum::<f32>() / 1000.0).abs() < 0.02);
        assert_ne!(initial_values(&spec, 2).unwrap(), values);
    }

    #[test]
    fn pieces_of_any_size_make_up_the_same_values() {
        let all = |size: usize| -> Vec<f32> {
            normal("w", 103, 0.5, 1).unwrap().chunks(size).collect::<Vec<_>>().concat()
        };
        assert_eq!(all(103).len(), 103);
        assert_eq!(all(103), all(10));
        assert_eq!(all(103), all(1));
    }
}
