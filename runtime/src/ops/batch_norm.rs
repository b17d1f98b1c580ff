//! Batch normalisation over all dimensions but the innermost, in training (Ioffe and Szegedy 2015, arXiv 1502.03167).
//!
//! With `x` of shape `[..., C]` seen as `[R, C]`, and for every channel `c`:
//! `mean = sum x / R`, `var = sum (x - mean)^2 / R`, `y = (x - mean) / sqrt(var + eps) * weight + bias`.
//! The running statistics move as in PyTorch: `running = (1 - momentum) * running + momentum * batch`, where the running
//! variance takes the unbiased `sum (x - mean)^2 / (R - 1)`. `[N, C]` and NHWC are the same to this op.
//!
//! The statistics are those of `x` less the channel's first row, by Welford's method in two stages: exact to rounding
//! however far the mean is from 0. What remains is the rounding of the mean itself to f32.
//! The gradient is in [`batch_norm_grad`](super::batch_norm_grad), evaluation with running statistics in [`batch_norm_eval`](super::batch_norm_eval).

use std::sync::Arc;

use crate::case::{Case, Input, OpEntry, constant, normal, uniform};
use crate::host::Array;
use crate::kernel::{Kernel, ParamBlock, read, write};
use crate::op::{Again, Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_many, push_one};
use crate::ops::batch_norm_apply::BatchNormApply;
use crate::ops::batch_norm_grad::{BatchNormGradInput, BatchNormGradWeight};
use crate::ops::sum_rows;
use crate::ops::walk::{self, RowsParams, Walk};
use crate::{Error, Result, Shape, TensorDesc};

crate::param_block! {
    /// Parameters of `batch_norm_combine.wgsl`.
    pub struct CombineParams {
        /// Rows of `x`, all dimensions but the innermost.
        rows: u32,
        /// Channels, the innermost dimension.
        channels: u32,
        /// Rows of every split but perhaps the last.
        rows_per_split: u32,
        /// Splits.
        splits: u32,
        /// Added to the variance.
        eps: f32,
        /// Weight of the batch in the running statistics.
        momentum: f32,
    }
}

const STATS_KERNEL: Kernel = Kernel {
    shader: "batch_norm_stats",
    entry: "main",
    params: RowsParams::FIELDS,
    bindings: &[read("x"), write("partial")],
    constants: walk::CONSTANTS,
    subgroups: false,
};
static STATS: Kernel = STATS_KERNEL;
static STATS_VEC4: Kernel = Kernel { shader: "batch_norm_stats_vec4", ..STATS_KERNEL };

static COMBINE: Kernel = Kernel {
    shader: "batch_norm_combine",
    entry: "main",
    params: CombineParams::FIELDS,
    bindings: &[
        read("x"),
        read("partial"),
        write("mean"),
        write("inv_std"),
        write("running_mean"),
        write("running_var"),
    ],
    constants: &["COLUMNS", "LANES"],
    subgroups: false,
};

const NORMALISE_KERNEL: Kernel = Kernel {
    shader: "batch_norm",
    entry: "main",
    params: RowsParams::FIELDS,
    bindings: &[read("x"), read("weight"), read("bias"), read("mean"), read("inv_std"), write("y")],
    constants: walk::CONSTANTS,
    subgroups: false,
};
pub(super) static NORMALISE: Kernel = NORMALISE_KERNEL;
pub(super) static NORMALISE_VEC4: Kernel = Kernel { shader: "batch_norm_vec4", ..NORMALISE_KERNEL };

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry {
    name: "batch_norm",
    cases,
    kernels: &[&STATS, &STATS_VEC4, &COMBINE, &NORMALISE, &NORMALISE_VEC4],
};

/// Channels of a workgroup of the second stage, where there are few rows, hence few columns and many lanes.
const COMBINE_COLUMNS: usize = 16;
/// Splits that such a workgroup handles at a time.
const COMBINE_LANES: usize = 16;

/// Fails unless `x` is f32 with at least one element and every named tensor is `f32[C]`.
pub(super) fn check(op: &str, x: &TensorDesc, vectors: &[(&str, &TensorDesc)]) -> Result<()> {
    if *x != TensorDesc::f32(x.shape.clone()) || x.shape.elements() == 0 {
        return Err(Error::shape(op, format!("x {x}"), "an f32 tensor [..., C] that is not empty"));
    }
    let expected = TensorDesc::f32([x.shape.last()]);
    match vectors.iter().find(|(_, desc)| **desc != expected) {
        Some((name, desc)) => {
            Err(Error::shape(op, format!("{name} {desc} for x {x}"), format!("{name} {expected}")))
        }
        None => Ok(()),
    }
}

/// Records batch normalisation in training: `x` `[..., C]`; `weight`, `bias` and the persistent `running_mean` and
/// `running_var`, which it updates, `[C]` -> `y` `[..., C]`.
pub fn batch_norm_train(
    record: &mut dyn Record,
    x: TensorId,
    weight: TensorId,
    bias: TensorId,
    running_mean: TensorId,
    running_var: TensorId,
    config: BatchNorm,
) -> Result<TensorId> {
    let [y, _mean, _inv_std] = push_many(record, config, &[x, weight, bias, running_mean, running_var])?;
    Ok(y)
}

/// The op `batch_norm`: `x, weight, bias, running_mean, running_var -> y, mean, inv_std`, with the batch's mean and
/// `1 / sqrt(var + eps)`, both `[C]`, kept for the gradient.
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm {
    /// Added to the variance. PyTorch's default is 1e-5.
    pub eps: f32,
    /// Weight of the batch in the running statistics. PyTorch's default is 0.1.
    pub momentum: f32,
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, weight, bias, running_mean, running_var] = inputs else {
            return Err(Error::shape(
                "batch_norm",
                format!("{} inputs", inputs.len()),
                "x, weight, bias, running_mean, running_var",
            ));
        };
        let vectors = [
            ("weight", weight),
            ("bias", bias),
            ("running_mean", running_mean),
            ("running_var", running_var),
        ];
        check("batch_norm", x, &vectors)?;
        if x.shape.rows() < 2 {
            return Err(Error::shape(
                "batch_norm",
                format!("x {x}, one value a channel"),
                "at least two in training, since the variance of one is undefined: use a larger batch",
            ));
        }
        Ok(vec![x.clone(), weight.clone(), weight.clone()])
    }

    fn updates(&self) -> &'static [usize] {
        &[3, 4]
    }

    fn again(&self) -> Option<Again> {
        let operands = [0, 1, 2].map(Operand::Input).into_iter().chain([1, 2].map(Operand::Output));
        Some(Again { op: Arc::new(BatchNormApply), operands: operands.collect() })
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let x = &lowering.input(0)?.shape;
        let channels = x.last();
        let walk = Walk::reduction(lowering, x)?;
        let partial = lowering.workspace(2 * walk.partial_bytes(channels));
        let stats = walk.kernel(&STATS, &STATS_VEC4);
        let operands = [Operand::Input(0), partial];
        lowering.dispatch(stats, &walk.constants(), &walk.params, &operands, walk.grid)?;

        let combine = CombineParams {
            rows: walk.params.rows,
            channels: lowering.size(channels)?,
            rows_per_split: walk.params.rows_per_split,
            splits: lowering.size(walk.splits)?,
            eps: self.eps,
            momentum: self.momentum,
        };
        lowering.dispatch(
            &COMBINE,
            &[("COLUMNS", COMBINE_COLUMNS as f64), ("LANES", COMBINE_LANES as f64)],
            &combine,
            &[
                Operand::Input(0),
                partial,
                Operand::Output(1),
                Operand::Output(2),
                Operand::Input(3),
                Operand::Input(4),
            ],
            [lowering.size(channels.div_ceil(COMBINE_COLUMNS))?, 1, 1],
        )?;

        let walk = Walk::elementwise(lowering, x)?;
        let operands = [
            Operand::Input(0),
            Operand::Input(1),
            Operand::Input(2),
            Operand::Output(1),
            Operand::Output(2),
            Operand::Output(0),
        ];
        let kernel = walk.kernel(&NORMALISE, &NORMALISE_VEC4);
        lowering.dispatch(kernel, &walk.constants(), &walk.params, &operands, walk.grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        if gradient.upstream(1).is_some() || gradient.upstream(2).is_some() {
            return Err(Error::graph(
                "op batch_norm has no gradient through the statistics that it keeps (outputs 1 and 2)",
                "let the loss depend on output 0 alone",
            ));
        }
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        if !gradient.needs(0) && !gradient.needs(1) {
            if gradient.needs(2) {
                let dbias = sum_rows::sum_rows(gradient.record(), dy, 1.0)?;
                gradient.set(2, dbias);
            }
            return Ok(());
        }
        let (x, weight) = (gradient.input(0)?, gradient.input(1)?);
        let (mean, inv_std) = (gradient.output(1)?, gradient.output(2)?);
        let [dweight, dbias] = push_many(gradient.record(), BatchNormGradWeight, &[x, mean, inv_std, dy])?;
        if gradient.needs(0) {
            let inputs = [x, weight, mean, inv_std, dy, dweight, dbias];
            let dx = push_one(gradient.record(), BatchNormGradInput, &inputs)?;
            gradient.set(0, dx);
        }
        if gradient.needs(1) {
            gradient.set(1, dweight);
        }
        if gradient.needs(2) {
            gradient.set(2, dbias);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, weight, bias, running_mean, running_var] = inputs else { return Vec::new() };
        let (rows, channels) = (x.shape.rows(), x.shape.last());
        let (eps, momentum) = (f64::from(self.eps), f64::from(self.momentum));
        let mut y = Array::zeros(x.shape.clone());
        let mut mean = Array::zeros([channels]);
        let mut inv_std = Array::zeros([channels]);
        let mut new_mean = Array::zeros([channels]);
        let mut new_var = Array::zeros([channels]);
        for c in 0..channels {
            let column = || (0..rows).map(|r| x.data[r * channels + c]);
            let m = column().sum::<f64>() / rows as f64;
            let squares = column().map(|v| (v - m) * (v - m)).sum::<f64>();
            mean.data[c] = m;
            inv_std.data[c] = 1.0 / (squares / rows as f64 + eps).sqrt();
            let unbiased = squares / (rows as f64 - 1.0);
            let (old_mean, old_var) = (running_mean.data[c], running_var.data[c]);
            (new_mean.data[c], new_var.data[c]) = if m.is_finite() && unbiased.is_finite() {
                ((1.0 - momentum) * old_mean + momentum * m, (1.0 - momentum) * old_var + momentum * unbiased)
            } else {
                (old_mean, old_var)
            };
            for r in 0..rows {
                let i = r * channels + c;
                y.data[i] = (x.data[i] - m) * inv_std.data[c] * weight.data[c] + bias.data[c];
            }
        }
        vec![y, mean, inv_std, new_mean, new_var]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |x| x.shape.elements());
        // Statistics 3, normalisation 3; x is read twice, since no y is known before all of x is.
        let mut cost = Cost::once(6.0 * elements as f64, inputs, outputs);
        cost.bytes += inputs.first().map_or(0, TensorDesc::bytes) as f64;
        cost
    }
}

/// `x` with the given mean and deviation 1, then weight, bias and running statistics that are not the identity.
pub(super) fn example(shape: &[usize], mean: f32) -> Vec<Input> {
    let shape = Shape::from(shape);
    let channels = shape.last();
    vec![
        normal(shape, 1.0, 1).shifted(mean),
        uniform([channels], 0.5, 1.5, 2),
        uniform([channels], -1.0, 1.0, 3),
        uniform([channels], -1.0, 1.0, 4),
        uniform([channels], 0.5, 2.0, 5),
    ]
}

fn cases() -> Vec<Case> {
    let op = BatchNorm { eps: 1e-5, momentum: 0.1 };
    let case = |label: &str, shape: &[usize], mean: f32| Case::new(label, op, example(shape, mean));
    let mut constant_channel = example(&[37, 3], 0.0);
    constant_channel[0] = constant([37, 3], -7.25);
    vec![
        case("two rows", &[2, 5], 0.5).differentiate(&[0, 1, 2]),
        case("vectors, odd sizes", &[17, 7], 0.5).differentiate(&[0, 1, 2]),
        case("images, odd sizes", &[2, 3, 5, 9], -0.5).differentiate(&[0, 1, 2]),
        case("frozen weight", &[11, 5], 0.5).differentiate(&[0, 2]),
        case("bias alone", &[11, 5], 0.5).differentiate(&[2]),
        case("one channel", &[1031, 1], 1.0),
        case("a tile and one", &[129, 65], 0.0),
        case("many splits", &[2, 47, 61, 3], 2.0),
        case("channels by four", &[2, 5, 3, 8], 0.5).differentiate(&[0, 1, 2]),
        case("four channels, many splits", &[2, 67, 71, 4], 2.0),
        case("a tile and four", &[37, 260], 0.0),
        // The mean is rounded to f32, by up to 4.9e-4 at 1e4, and y moves by as much times the weight.
        case("mean far from zero", &[999, 5], 1e4).relative(1e-3),
        Case::new("channel without variance", op, constant_channel),
        Case::new(
            "running statistics replaced",
            BatchNorm { eps: 0.1, momentum: 1.0 },
            example(&[31, 4], 3.0),
        ),
        case("perf", &[32, 28, 28, 128], 0.1).perf(),
        case("perf, wide", &[64, 7, 7, 512], 0.1).perf(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_a_channel_is_refused() {
        let op = BatchNorm { eps: 1e-5, momentum: 0.1 };
        let vector = TensorDesc::f32([3]);
        let infer = |rows: usize| {
            let vectors = vec![vector.clone(); 4];
            op.infer(&[vec![TensorDesc::f32([rows, 3])], vectors].concat())
        };
        assert!(infer(2).is_ok());
        let error = infer(1).unwrap_err().to_string();
        assert!(error.contains("one value a channel"), "{error}");
    }
}
