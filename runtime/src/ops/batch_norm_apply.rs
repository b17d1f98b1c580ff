//! The last stage of batch normalisation in training: `y = (x - mean) * inv_std * weight + bias`, with the batch's mean and
//! `1 / sqrt(var + eps)` at hand, with `x` of shape `[..., C]` and the others `[C]`.
//!
//! What [`batch_norm`](super::batch_norm) made is made again with it, bit for bit and by the same kernel, where keeping it
//! for the gradients of what follows would take memory for a whole step. It has no gradient itself: that is
//! `batch_norm`'s.

use crate::case::{Case, OpEntry, normal, uniform};
use crate::host::Array;
use crate::op::{Cost, Lowering, Op, Operand};
use crate::ops::batch_norm::{NORMALISE, NORMALISE_VEC4, check};
use crate::ops::walk::Walk;
use crate::{Error, Result, Shape, TensorDesc};

/// The registry's entry.
pub const ENTRY: OpEntry =
    OpEntry { name: "batch_norm_apply", cases, kernels: &[&NORMALISE, &NORMALISE_VEC4] };

/// The op `batch_norm_apply`: `x, weight, bias, mean, inv_std -> y`.
#[derive(Debug, Clone, Copy)]
pub struct BatchNormApply;

impl Op for BatchNormApply {
    fn name(&self) -> &'static str {
        "batch_norm_apply"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, weight, bias, mean, inv_std] = inputs else {
            return Err(Error::shape(
                "batch_norm_apply",
                format!("{} inputs", inputs.len()),
                "x, weight, bias, mean, inv_std",
            ));
        };
        let vectors = [("weight", weight), ("bias", bias), ("mean", mean), ("inv_std", inv_std)];
        check("batch_norm_apply", x, &vectors)?;
        Ok(vec![x.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let walk = Walk::elementwise(lowering, &lowering.input(0)?.shape)?;
        let operands = [0, 1, 2, 3, 4].map(Operand::Input);
        let operands = [&operands[..], &[Operand::Output(0)]].concat();
        let kernel = walk.kernel(&NORMALISE, &NORMALISE_VEC4);
        lowering.dispatch(kernel, &walk.constants(), &walk.params, &operands, walk.grid)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, weight, bias, mean, inv_std] = inputs else { return Vec::new() };
        let channels = x.shape.last();
        vec![Array::from_fn(x.shape.clone(), |i| {
            let c = i % channels;
            (x.data[i] - mean.data[c]) * inv_std.data[c] * weight.data[c] + bias.data[c]
        })]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |x| x.shape.elements());
        Cost::once(3.0 * elements as f64, inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize]| {
        let shape = Shape::from(shape);
        let channels = shape.last();
        let vector = |low, high, seed| uniform([channels], low, high, seed);
        let inputs = vec![
            normal(shape, 1.0, 1),
            vector(0.5, 1.5, 2),
            vector(-1.0, 1.0, 3),
            vector(-1.0, 1.0, 4),
            vector(0.5, 2.0, 5),
        ];
        Case::new(label, BatchNormApply, inputs)
    };
    vec![
        case("one row", &[1, 5]),
        case("vectors, odd sizes", &[17, 7]),
        case("images, odd sizes", &[2, 3, 5, 9]),
        case("a tile and one", &[129, 65]),
        case("channels by four", &[2, 5, 3, 8]),
        case("a tile and four", &[37, 260]),
        case("perf", &[32, 28, 28, 128]).perf(),
    ]
}
