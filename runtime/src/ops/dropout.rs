//! Dropout with a counter-based generator: `y = x * mask / (1 - p)`, each element of the mask 0 with probability `p`.
//!
//! `x` is of any shape, `seed` a u32 `[2]`: the seed and the step. Element `i` of the mask is a function of
//! (seed, step, salt, i) alone, so that the gradient makes it again instead of keeping it, and every adapter drops the
//! same elements. The generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as
//! 1, 2, 3", SC 2011) with the counter `(i / 4, step, 0, 0)` and the key `(seed, salt)`.

use crate::case::{Case, OpEntry, normal, words};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `dropout.wgsl`.
    pub struct DropoutParams {
        /// Elements of `x`.
        len: u32,
        /// Second word of the key.
        salt: u32,
        /// Elements whose random word is smaller are dropped.
        threshold: u32,
        /// Factor of the elements that are kept.
        scale: f32,
        /// The first block of four elements of the mask.
        first: u32,
    }
}

static DROPOUT: Kernel = Kernel {
    shader: "dropout",
    entry: "main",
    params: DropoutParams::FIELDS,
    bindings: &[read("x"), read("seed"), write("y")],
    constants: &[],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "dropout", cases, kernels: &[&DROPOUT] };

/// Elements that one workgroup of `dropout.wgsl` handles.
const PER_GROUP: usize = 4 * 256;

/// Records dropout of `x` with `probability` in `0..1`. `seed` is a u32 `[2]`: the seed, and the step, which the caller
/// changes.
pub fn dropout(record: &mut dyn Record, x: TensorId, seed: TensorId, config: Dropout) -> Result<TensorId> {
    push_one(record, config, &[x, seed])
}

/// The op `dropout`.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// Tells apart several dropouts of one graph.
    pub salt: u32,
    /// Probability that an element is dropped, from 0 to below 1.
    pub probability: f32,
    /// The element of the mask that the first of `x` takes, a multiple of four: so `x` can be a part of something that is
    /// dropped as if it were whole.
    pub first: usize,
}

impl Dropout {
    /// A random word below this drops its element: `floor(p * 2^32)`, which is exact in f64.
    fn threshold(&self) -> u32 {
        (f64::from(self.probability) * 4_294_967_296.0) as u32
    }
}

/// Philox4x32-10: four random words for a counter and a key.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let product = |a: u32, b: u32| {
        let wide = u64::from(a) * u64::from(b);
        ((wide >> 32) as u32, wide as u32)
    };
    for _ in 0..10 {
        let (high0, low0) = product(0xd251_1f53, counter[0]);
        let (high1, low1) = product(0xcd9e_8d57, counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, seed] = inputs else {
            return Err(Error::shape("dropout", format!("{} inputs", inputs.len()), "x, seed"));
        };
        if *seed != TensorDesc::u32([2]) {
            return Err(Error::shape("dropout", format!("seed {seed}"), "u32[2]: seed, step"));
        }
        if !self.first.is_multiple_of(4) {
            return Err(Error::shape("dropout", format!("first {}", self.first), "a multiple of four"));
        }
        if !(0.0..1.0).contains(&self.probability) {
            return Err(Error::shape(
                "dropout",
                format!("probability {}", self.probability),
                "at least 0 and below 1",
            ));
        }
        Ok(vec![TensorDesc::f32(x.shape.clone())])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let len = lowering.input(0)?.shape.elements();
        lowering.size(self.first + len)?;
        let params = DropoutParams {
            len: lowering.size(len)?,
            salt: self.salt,
            threshold: self.threshold(),
            scale: 1.0 / (1.0 - self.probability),
            first: lowering.size(self.first / 4)?,
        };
        let grid = lowering.fold(len.div_ceil(PER_GROUP))?;
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Output(0)];
        lowering.dispatch(&DROPOUT, &[], &params, &operands, grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        let seed = gradient.input(1)?;
        let dx = push_one(gradient.record(), *self, &[dy, seed])?;
        gradient.set(0, dx);
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, seed) = (&inputs[0], &inputs[1]);
        let (key, step) = ([seed.data[0] as u32, self.salt], seed.data[1] as u32);
        vec![Array::from_fn(x.shape.clone(), |i| {
            let word = philox([((self.first + i) / 4) as u32, step, 0, 0], key)[i % 4];
            if word < self.threshold() { 0.0 } else { x.data[i] / (1.0 - f64::from(self.probability)) }
        })]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(outputs.iter().map(|y| y.shape.elements() as f64).sum(), inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], seed: [u32; 2], salt: u32, probability: f32| {
        let inputs = vec![normal(shape.to_vec(), 1.0, 1), words(&seed)];
        Case::new(label, Dropout { salt, probability, first: 0 }, inputs)
    };
    vec![
        case("odd sizes", &[3, 5, 13], [1, 0], 0, 0.4).differentiate(&[0]),
        Case::new(
            "a part of a mask",
            Dropout { salt: 0, probability: 0.4, first: 92 },
            vec![normal([3, 35], 1.0, 1), words(&[1, 0])],
        )
        .differentiate(&[0]),
        case("one element", &[1], [7, 3], 1, 0.5),
        case("several workgroups", &[4099], [u32::MAX, u32::MAX], u32::MAX, 0.4),
        case("a late step", &[2, 513], [1234, 1_000_003], 2, 0.9),
        case("nothing dropped", &[77], [1, 2], 3, 0.0).differentiate(&[0]),
        case("nearly all dropped", &[1027], [1, 2], 3, 0.999),
        case("perf", &[512, 7, 7, 512], [1, 2], 3, 0.4).perf(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers that come with the authors' Random123 library.
    #[test]
    fn philox_gives_the_published_words() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    fn dropped(seed: [u32; 2], salt: u32, probability: f32) -> Vec<bool> {
        let x = Array::new([100_000], vec![1.0; 100_000]);
        let seed = Array::new([2], seed.map(f64::from).to_vec());
        let y = Dropout { salt, probability, first: 0 }.reference(&[x, seed]);
        y[0].data.iter().map(|&v| v == 0.0).collect()
    }

    #[test]
    fn the_share_of_dropped_elements_is_the_probability() {
        for probability in [0.0, 0.1, 0.4, 0.9] {
            let share =
                dropped([1, 2], 3, probability).iter().filter(|&&drop| drop).count() as f64 / 100_000.0;
            // Four standard deviations of the share of 100,000 draws at most.
            assert!((share - f64::from(probability)).abs() < 0.0064, "{share} for {probability}");
        }
    }

    #[test]
    fn the_parts_of_a_mask_are_the_mask() {
        let seed = || Array::new([2], vec![5.0, 6.0]);
        let mask = |first: usize, len: usize| {
            let op = Dropout { salt: 1, probability: 0.5, first };
            op.reference(&[Array::new([len], vec![1.0; len]), seed()]).remove(0).data
        };
        assert_eq!([mask(0, 40), mask(40, 24), mask(64, 7)].concat(), mask(0, 71));
    }

    #[test]
    fn seed_step_and_salt_each_change_the_mask() {
        let first = dropped([1, 2], 3, 0.5);
        for other in [dropped([2, 2], 3, 0.5), dropped([1, 3], 3, 0.5), dropped([1, 2], 4, 0.5)] {
            let equal = first.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!((49_000..51_000).contains(&equal), "{equal} of 100000 elements agree");
        }
        assert_eq!(first, dropped([1, 2], 3, 0.5));
    }
}
