//! Batch normalisation with given statistics (evaluation, or frozen layers), and its gradient.
//!
//! `y = (x - mean) / sqrt(var + eps) * weight + bias`, with `x` of shape `[..., C]` and the others `[C]`.
//! Differentiable with respect to `x` and `bias`; the statistics are constants.

use crate::case::{Case, LARGE_IMAGES, OpEntry, normal, uniform};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::ops::batch_norm::{check, example};
use crate::ops::sum_rows::sum_rows;
use crate::ops::walk::{self, RowsParams, Walk};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `batch_norm_eval*.wgsl`.
    pub struct BatchNormEvalParams {
        /// Rows of `x`, all dimensions but the innermost.
        rows: u32,
        /// Columns: channels, or vectors of four of them.
        columns: u32,
        /// Rows that one workgroup walks.
        rows_per_split: u32,
        /// Added to the variance.
        eps: f32,
    }
}

const EVAL_KERNEL: Kernel = Kernel {
    shader: "batch_norm_eval",
    entry: "main",
    params: BatchNormEvalParams::FIELDS,
    bindings: &[read("x"), read("weight"), read("bias"), read("mean"), read("variance"), write("y")],
    constants: walk::CONSTANTS,
    needs: Needs::Nothing,
};
static EVAL: Kernel = EVAL_KERNEL;
static EVAL_VEC4: Kernel = Kernel { shader: "batch_norm_eval_vec4", ..EVAL_KERNEL };

const EVAL_GRAD_KERNEL: Kernel = Kernel {
    shader: "batch_norm_eval_grad",
    entry: "main",
    params: BatchNormEvalParams::FIELDS,
    bindings: &[read("weight"), read("variance"), read("dy"), write("dx")],
    constants: walk::CONSTANTS,
    needs: Needs::Nothing,
};
static EVAL_GRAD: Kernel = EVAL_GRAD_KERNEL;
static EVAL_GRAD_VEC4: Kernel = Kernel { shader: "batch_norm_eval_grad_vec4", ..EVAL_GRAD_KERNEL };

/// The registry's entry for [`BatchNormEval`].
pub const ENTRY: OpEntry = OpEntry { name: "batch_norm_eval", cases, kernels: &[&EVAL, &EVAL_VEC4] };
/// The registry's entry for [`BatchNormEvalGrad`].
pub const GRAD_ENTRY: OpEntry =
    OpEntry { name: "batch_norm_eval_grad", cases: grad_cases, kernels: &[&EVAL_GRAD, &EVAL_GRAD_VEC4] };

/// Records batch normalisation with given statistics: `x` `[..., C]`; `weight`, `bias`, `mean`, `var` `[C]` ->
/// `[..., C]`.
pub fn batch_norm_eval(
    record: &mut dyn Record,
    x: TensorId,
    weight: TensorId,
    bias: TensorId,
    mean: TensorId,
    var: TensorId,
    eps: f32,
) -> Result<TensorId> {
    push_one(record, BatchNormEval { eps }, &[x, weight, bias, mean, var])
}

/// The parameters of both kernels on a walk.
fn params(walk: &Walk, eps: f32) -> BatchNormEvalParams {
    let RowsParams { rows, columns, rows_per_split } = walk.params;
    BatchNormEvalParams { rows, columns, rows_per_split, eps }
}

/// The op `batch_norm_eval`: `x, weight, bias, mean, var -> y`.
#[derive(Debug, Clone, Copy)]
pub struct BatchNormEval {
    /// Added to the variance.
    pub eps: f32,
}

impl Op for BatchNormEval {
    fn name(&self) -> &'static str {
        "batch_norm_eval"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, weight, bias, mean, var] = inputs else {
            return Err(Error::shape(
                "batch_norm_eval",
                format!("{} inputs", inputs.len()),
                "x, weight, bias, mean, var",
            ));
        };
        let vectors = [("weight", weight), ("bias", bias), ("mean", mean), ("var", var)];
        check("batch_norm_eval", x, &vectors)?;
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
            Operand::Output(0),
        ];
        let kernel = walk.kernel(&EVAL, &EVAL_VEC4);
        lowering.dispatch(kernel, &walk.constants(), &params(&walk, self.eps), &operands, walk.grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        for (index, name) in [(1, "weight"), (3, "mean"), (4, "var")] {
            if gradient.needs(index) {
                return Err(Error::graph(
                    format!("op batch_norm_eval has no gradient with respect to {name}"),
                    "keep that tensor constant, or train with the statistics of the batch (batch_norm_train)",
                ));
            }
        }
        if gradient.needs(0) {
            let (weight, var) = (gradient.input(1)?, gradient.input(4)?);
            let op = BatchNormEvalGrad { eps: self.eps };
            let dx = push_one(gradient.record(), op, &[weight, var, dy])?;
            gradient.set(0, dx);
        }
        if gradient.needs(2) {
            let dbias = sum_rows(gradient.record(), dy, 1.0)?;
            gradient.set(2, dbias);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, weight, bias, mean, var] = inputs else { return Vec::new() };
        let channels = weight.data.len();
        vec![Array::from_fn(x.shape.clone(), |i| {
            let c = i % channels;
            let deviation = (var.data[c] + f64::from(self.eps)).sqrt();
            (x.data[i] - mean.data[c]) / deviation * weight.data[c] + bias.data[c]
        })]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |x| x.shape.elements());
        Cost::once(3.0 * elements as f64, inputs, outputs)
    }
}

/// The op `batch_norm_eval_grad`: `weight, var, dy -> dx = dy * weight / sqrt(var + eps)`.
#[derive(Debug, Clone, Copy)]
pub struct BatchNormEvalGrad {
    /// Added to the variance.
    pub eps: f32,
}

impl Op for BatchNormEvalGrad {
    fn name(&self) -> &'static str {
        "batch_norm_eval_grad"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [weight, var, dy] = inputs else {
            return Err(Error::shape(
                "batch_norm_eval_grad",
                format!("{} inputs", inputs.len()),
                "weight, var, dy",
            ));
        };
        check("batch_norm_eval_grad", dy, &[("weight", weight), ("var", var)])?;
        Ok(vec![dy.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let walk = Walk::elementwise(lowering, &lowering.input(2)?.shape)?;
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Input(2), Operand::Output(0)];
        let kernel = walk.kernel(&EVAL_GRAD, &EVAL_GRAD_VEC4);
        lowering.dispatch(kernel, &walk.constants(), &params(&walk, self.eps), &operands, walk.grid)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [weight, var, dy] = inputs else { return Vec::new() };
        let channels = weight.data.len();
        vec![Array::from_fn(dy.shape.clone(), |i| {
            let c = i % channels;
            dy.data[i] * weight.data[c] / (var.data[c] + f64::from(self.eps)).sqrt()
        })]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = outputs.first().map_or(0, |dx| dx.shape.elements());
        Cost::once(elements as f64, inputs, outputs)
    }
}

const SHAPES: [(&str, &[usize]); 8] = [
    ("one row", &[1, 5]),
    ("images, odd sizes", &[2, 3, 5, 9]),
    ("one channel", &[1031, 1]),
    ("a tile and one", &[129, 65]),
    ("channels by four", &[2, 5, 3, 8]),
    ("a tile and four", &[37, 260]),
    ("perf", &[32, 28, 28, 128]),
    ("perf, large", LARGE_IMAGES),
];

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize]| {
        let case = Case::new(label, BatchNormEval { eps: 1e-5 }, example(shape, 0.5));
        match shape.iter().product::<usize>() {
            0..300 => case.differentiate(&[0, 2]),
            300..100_000 => case,
            _ if shape == LARGE_IMAGES => case.perf_large(),
            _ => case.perf(),
        }
    };
    SHAPES.into_iter().map(|(label, shape)| case(label, shape)).collect()
}

fn grad_cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize]| {
        let channels = shape.last().copied().unwrap_or(1);
        let inputs = vec![
            uniform([channels], 0.5, 1.5, 1),
            uniform([channels], 0.5, 2.0, 2),
            normal(shape.to_vec(), 1.0, 3),
        ];
        let case = Case::new(label, BatchNormEvalGrad { eps: 1e-5 }, inputs);
        match shape.iter().product::<usize>() {
            0..100_000 => case,
            _ if shape == LARGE_IMAGES => case.perf_large(),
            _ => case.perf(),
        }
    };
    SHAPES.into_iter().map(|(label, shape)| case(label, shape)).collect()
}
