//! The gradients of [batch normalisation in training](super::batch_norm), in two ops, so that only what is needed is
//! computed. With `h = (x - mean) * inv_std` and sums over the `R` rows of `[R, C]`:
//!
//! - `batch_norm_grad_weight`: `dweight = sum dy * h`, `dbias = sum dy`
//! - `batch_norm_grad_input`: `dx = weight * inv_std * (dy - dbias / R - h * dweight / R)`

use crate::case::{Case, Input, OpEntry, normal, uniform};
use crate::host::Array;
use crate::kernel::{Kernel, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Operand};
use crate::ops::batch_norm::{check, example};
use crate::ops::sum_rows;
use crate::ops::walk::{self, RowsParams, Walk};
use crate::{Error, Result, TensorDesc};

const GRAD_WEIGHT_KERNEL: Kernel = Kernel {
    shader: "batch_norm_grad_weight",
    entry: "main",
    params: RowsParams::FIELDS,
    bindings: &[
        read("x"),
        read("mean"),
        read("inv_std"),
        read("dy"),
        write("partial_weight"),
        write("partial_bias"),
    ],
    constants: walk::CONSTANTS,
    subgroups: false,
};
static GRAD_WEIGHT: Kernel = GRAD_WEIGHT_KERNEL;
static GRAD_WEIGHT_VEC4: Kernel = Kernel { shader: "batch_norm_grad_weight_vec4", ..GRAD_WEIGHT_KERNEL };

const GRAD_INPUT_KERNEL: Kernel = Kernel {
    shader: "batch_norm_grad_input",
    entry: "main",
    params: RowsParams::FIELDS,
    bindings: &[
        read("x"),
        read("weight"),
        read("mean"),
        read("inv_std"),
        read("dy"),
        read("dweight"),
        read("dbias"),
        write("dx"),
    ],
    constants: walk::CONSTANTS,
    subgroups: false,
};
static GRAD_INPUT: Kernel = GRAD_INPUT_KERNEL;
static GRAD_INPUT_VEC4: Kernel = Kernel { shader: "batch_norm_grad_input_vec4", ..GRAD_INPUT_KERNEL };

/// The registry's entry for [`BatchNormGradInput`].
pub const INPUT_ENTRY: OpEntry =
    OpEntry { name: "batch_norm_grad_input", cases: input_cases, kernels: &[&GRAD_INPUT, &GRAD_INPUT_VEC4] };
/// The registry's entry for [`BatchNormGradWeight`].
pub const WEIGHT_ENTRY: OpEntry = OpEntry {
    name: "batch_norm_grad_weight",
    cases,
    kernels: &[&GRAD_WEIGHT, &GRAD_WEIGHT_VEC4, &sum_rows::KERNEL],
};

/// The op `batch_norm_grad_weight`: `x, mean, inv_std, dy -> dweight, dbias`; `x` and `dy` `[..., C]`, the others `[C]`.
#[derive(Debug, Clone, Copy)]
pub struct BatchNormGradWeight;

impl Op for BatchNormGradWeight {
    fn name(&self) -> &'static str {
        "batch_norm_grad_weight"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, mean, inv_std, dy] = inputs else {
            return Err(Error::shape(
                self.name(),
                format!("{} inputs", inputs.len()),
                "x, mean, inv_std, dy",
            ));
        };
        check(self.name(), x, &[("mean", mean), ("inv_std", inv_std)])?;
        check_upstream(self.name(), x, dy)?;
        Ok(vec![mean.clone(), mean.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let x = &lowering.input(0)?.shape;
        let channels = x.last();
        let walk = Walk::reduction(lowering, x)?;
        let outputs = [Operand::Output(0), Operand::Output(1)];
        let partials = if walk.splits == 1 {
            outputs
        } else {
            let bytes = walk.partial_bytes(channels);
            [lowering.workspace(bytes), lowering.workspace(bytes)]
        };
        let operands = [
            Operand::Input(0),
            Operand::Input(1),
            Operand::Input(2),
            Operand::Input(3),
            partials[0],
            partials[1],
        ];
        let kernel = walk.kernel(&GRAD_WEIGHT, &GRAD_WEIGHT_VEC4);
        lowering.dispatch(kernel, &walk.constants(), &walk.params, &operands, walk.grid)?;
        if walk.splits > 1 {
            for (partial, output) in partials.into_iter().zip(outputs) {
                sum_rows::lower_sum(lowering, partial, output, walk.splits, channels, 1.0)?;
            }
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, mean, inv_std, dy] = inputs else { return Vec::new() };
        let channels = mean.data.len();
        let mut dweight = Array::zeros([channels]);
        let mut dbias = Array::zeros([channels]);
        for (i, d) in dy.data.iter().enumerate() {
            let c = i % channels;
            dweight.data[c] += d * (x.data[i] - mean.data[c]) * inv_std.data[c];
            dbias.data[c] += d;
        }
        vec![dweight, dbias]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |x| x.shape.elements());
        Cost::once(5.0 * elements as f64, inputs, outputs)
    }
}

/// The op `batch_norm_grad_input`: `x, weight, mean, inv_std, dy, dweight, dbias -> dx`; `x`, `dy` and `dx` `[..., C]`,
/// the others `[C]`. `dweight` and `dbias` are those of this `dy`, also where weight or bias is not trained.
#[derive(Debug, Clone, Copy)]
pub struct BatchNormGradInput;

impl Op for BatchNormGradInput {
    fn name(&self) -> &'static str {
        "batch_norm_grad_input"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, weight, mean, inv_std, dy, dweight, dbias] = inputs else {
            return Err(Error::shape(
                self.name(),
                format!("{} inputs", inputs.len()),
                "x, weight, mean, inv_std, dy, dweight, dbias",
            ));
        };
        let vectors = [
            ("weight", weight),
            ("mean", mean),
            ("inv_std", inv_std),
            ("dweight", dweight),
            ("dbias", dbias),
        ];
        check(self.name(), x, &vectors)?;
        check_upstream(self.name(), x, dy)?;
        Ok(vec![x.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let walk = Walk::elementwise(lowering, &lowering.input(0)?.shape)?;
        let operands = [
            Operand::Input(0),
            Operand::Input(1),
            Operand::Input(2),
            Operand::Input(3),
            Operand::Input(4),
            Operand::Input(5),
            Operand::Input(6),
            Operand::Output(0),
        ];
        let kernel = walk.kernel(&GRAD_INPUT, &GRAD_INPUT_VEC4);
        lowering.dispatch(kernel, &walk.constants(), &walk.params, &operands, walk.grid)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, weight, mean, inv_std, dy, dweight, dbias] = inputs else { return Vec::new() };
        let channels = weight.data.len();
        let rows = x.shape.rows() as f64;
        vec![Array::from_fn(x.shape.clone(), |i| {
            let c = i % channels;
            let h = (x.data[i] - mean.data[c]) * inv_std.data[c];
            let centred = dy.data[i] - dbias.data[c] / rows - h * dweight.data[c] / rows;
            weight.data[c] * inv_std.data[c] * centred
        })]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |x| x.shape.elements());
        Cost::once(5.0 * elements as f64, inputs, outputs)
    }
}

fn check_upstream(op: &str, x: &TensorDesc, dy: &TensorDesc) -> Result<()> {
    if dy != x {
        return Err(Error::shape(op, format!("dy {dy}"), format!("{x}, as x")));
    }
    Ok(())
}

const SHAPES: [(&str, &[usize]); 8] = [
    ("vectors, odd sizes", &[17, 7]),
    ("images, odd sizes", &[2, 3, 5, 9]),
    ("one channel", &[1031, 1]),
    ("a tile and one", &[129, 65]),
    ("many splits", &[2, 47, 61, 3]),
    ("channels by four", &[2, 5, 3, 8]),
    ("four channels, many splits", &[2, 67, 71, 4]),
    ("a tile and four", &[37, 260]),
];
const PERF: &[usize] = &[32, 28, 28, 128];

fn weight_inputs(shape: &[usize], mean: f32) -> Vec<Input> {
    let channels = shape.last().copied().unwrap_or(1);
    vec![
        example(shape, mean).swap_remove(0),
        uniform([channels], mean - 0.1, mean + 0.1, 6),
        uniform([channels], 0.5, 2.0, 7),
        normal(shape.to_vec(), 1.0, 8),
    ]
}

fn cases() -> Vec<Case> {
    // Sums of random signs nearly cancel: the error is relative to the terms, not to the sum.
    let case = |label: &str, shape: &[usize], mean: f32| {
        Case::new(label, BatchNormGradWeight, weight_inputs(shape, mean)).relative(1e-4)
    };
    let mut cases: Vec<Case> = SHAPES.into_iter().map(|(label, shape)| case(label, shape, 0.5)).collect();
    cases.push(case("mean far from zero", &[999, 5], 1e4));
    cases.push(case("perf", PERF, 0.1).perf());
    cases
}

fn input_cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], mean: f32| {
        let channels = shape.last().copied().unwrap_or(1);
        let mut inputs = weight_inputs(shape, mean);
        inputs.insert(1, uniform([channels], 0.5, 1.5, 9));
        inputs.push(normal([channels], 20.0, 10));
        inputs.push(normal([channels], 20.0, 11));
        Case::new(label, BatchNormGradInput, inputs)
    };
    let mut cases: Vec<Case> = SHAPES.into_iter().map(|(label, shape)| case(label, shape, 0.5)).collect();
    cases.push(case("one row", &[1, 5], 0.5));
    cases.push(case("mean far from zero", &[999, 5], 1e4));
    cases.push(case("perf", PERF, 0.1).perf());
    cases
}
