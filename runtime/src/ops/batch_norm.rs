//! Batch normalisation over all dimensions but the innermost, in training (Ioffe and Szegedy 2015, arXiv 1502.03167), and what
//! follows it where that can be done in the same pass.
//!
//! With `x` of shape `[..., C]` seen as `[R, C]`, and for every channel `c`:
//! `mean = sum x / R`, `var = sum (x - mean)^2 / R`, `z = (x - mean) / sqrt(var + eps) * weight + bias`, and
//! `y = z`, or `y = z > 0 ? z : slope * z` with a slope a channel, or `y = z + residual` with a tensor like x.
//! The running statistics move as in PyTorch: `running = (1 - momentum) * running + momentum * batch`, where the running
//! variance takes the unbiased `sum (x - mean)^2 / (R - 1)`. `[N, C]` and NHWC are the same to this op. x, y and the residual
//! are all f32 or all f16; everything else is f32.
//!
//! The statistics are those of `x` less the channel's first row, by Welford's method in two stages: exact to rounding
//! however far the mean is from 0. What remains is the rounding of the mean itself to f32.
//! The gradient is in [`batch_norm_grad`](super::batch_norm_grad), evaluation with running statistics in [`batch_norm_eval`](super::batch_norm_eval).

use std::sync::Arc;

use crate::case::{Case, Input, LARGE_IMAGES, OpEntry, constant, matrix, normal, uniform};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Again, Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_many, push_one};
use crate::ops::batch_norm_apply::{self, APPLY, APPLY_VEC4, BatchNormApply};
use crate::ops::batch_norm_grad::{BatchNormGradInput, BatchNormGradWeight};
use crate::ops::moments;
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
    needs: Needs::Nothing,
};
pub(super) static STATS: Kernel = STATS_KERNEL;
pub(super) static STATS_VEC4: Kernel = Kernel { shader: "batch_norm_stats_vec4", ..STATS_KERNEL };

static COMBINE: Kernel = Kernel {
    shader: "batch_norm_combine",
    entry: "main",
    params: CombineParams::FIELDS,
    bindings: &[
        read("x"),
        read("partial"),
        read("weight"),
        read("bias"),
        read("slope"),
        write("running_mean"),
        write("running_var"),
        write("constants"),
    ],
    constants: &["COLUMNS", "LANES"],
    needs: Needs::Nothing,
};

crate::param_block! {
    /// Parameters of `batch_norm_finish.wgsl`.
    pub struct FinishParams {
        /// Rows of `x`, all dimensions but the innermost.
        rows: u32,
        /// Channels, the innermost dimension.
        channels: u32,
        /// Added to the variance.
        eps: f32,
        /// Weight of the batch in the running statistics.
        momentum: f32,
    }
}

static FINISH: Kernel = Kernel {
    shader: "batch_norm_finish",
    entry: "main",
    params: FinishParams::FIELDS,
    bindings: &[
        read("moments"),
        read("weight"),
        read("bias"),
        read("slope"),
        write("running_mean"),
        write("running_var"),
        write("constants"),
    ],
    constants: &[],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry {
    name: "batch_norm",
    cases,
    kernels: &[&STATS, &STATS_VEC4, &COMBINE, &FINISH, &APPLY, &APPLY_VEC4],
};

/// Channels of a workgroup of the second stage, where there are few rows, hence few columns and many lanes.
const COMBINE_COLUMNS: usize = 16;
/// Splits that such a workgroup handles at a time.
const COMBINE_LANES: usize = 16;

/// What is kept of the statistics of a batch, f32 `[5, C]`: the mean, `1 / sqrt(var + eps)`, that times the weight, the bias, and
/// the slope of the PReLU that follows, or the weight where none does. All that the other passes need to know of a channel.
pub(super) fn constants(x: &TensorDesc) -> TensorDesc {
    TensorDesc::f32([5, x.shape.last()])
}

/// Fails unless `x` is of floats with at least one element and every named tensor is `f32[C]`.
pub(super) fn check(op: &str, x: &TensorDesc, vectors: &[(&str, &TensorDesc)]) -> Result<()> {
    if !x.is_float() || x.shape.elements() == 0 {
        return Err(Error::shape(op, format!("x {x}"), "a tensor of floats [..., C] that is not empty"));
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
/// `running_var`, which it updates, `[C]`; what [`BatchNorm::then`] asks for; and, where they are at hand, the moments of x ->
/// `y` `[..., C]`.
pub fn batch_norm_train(
    record: &mut dyn Record,
    x: TensorId,
    [weight, bias, running_mean, running_var]: [TensorId; 4],
    more: Option<TensorId>,
    moments: Option<TensorId>,
    config: BatchNorm,
) -> Result<TensorId> {
    let mut inputs = vec![x, weight, bias, running_mean, running_var];
    inputs.extend(more);
    inputs.extend(moments);
    let config = BatchNorm { moments: moments.is_some(), ..config };
    let [y, _constants] = push_many(record, config, &inputs)?;
    Ok(y)
}

/// What follows the normalisation in the same pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    #[default]
    Nothing,
    /// PReLU, with slopes f32 `[C]`.
    Prelu,
    /// The sum with a tensor like x.
    Add,
}

impl Then {
    /// Whether an input belongs to it, and fits.
    pub(super) fn check(self, op: &str, x: &TensorDesc, more: Option<&TensorDesc>) -> Result<()> {
        let expected = match self {
            Self::Nothing => None,
            Self::Prelu => Some(TensorDesc::f32([x.shape.last()])),
            Self::Add => Some(x.clone()),
        };
        if more == expected.as_ref() {
            return Ok(());
        }
        let text = |desc: Option<&TensorDesc>| desc.map_or("nothing".into(), TensorDesc::to_string);
        Err(Error::shape(
            op,
            format!("{} for {self:?} after x {x}", text(more)),
            format!("{}, as its last input", text(expected.as_ref())),
        ))
    }

    /// The constants of a kernel.
    pub(super) fn constants(self) -> [(&'static str, f64); 2] {
        let flag = |set: bool| f64::from(u8::from(set));
        [("PRELU", flag(self == Self::Prelu)), ("RESIDUAL", flag(self == Self::Add))]
    }

    /// y, given z, the channel and the element's index.
    pub(super) fn apply(self, z: f64, slope: f64, more: Option<&Array>, index: usize) -> f64 {
        match self {
            Self::Nothing => z,
            Self::Prelu if z > 0.0 => z,
            Self::Prelu => slope * z,
            Self::Add => z + more.map_or(f64::NAN, |residual| residual.data[index]),
        }
    }
}

/// The op `batch_norm`: `x, weight, bias, running_mean, running_var`, a slope or a residual where it is followed by what
/// takes one, and the moments of x where they are given, `-> y, constants`. The moments, mean and variance f32 `[2, C]`, must be those of x: they
/// save the pass that makes them, nothing else depends on them, and the gradient with respect to x is the whole one. The constants, f32 `[5, C]`, are kept for the gradient: mean, `1 / sqrt(var + eps)`, that times
/// the weight, bias, slope (the weight, where there is none).
#[derive(Debug, Clone, Copy)]
pub struct BatchNorm {
    /// Added to the variance. PyTorch's default is 1e-5.
    pub eps: f32,
    /// Weight of the batch in the running statistics. PyTorch's default is 0.1.
    pub momentum: f32,
    /// What follows.
    pub then: Then,
    /// Whether the last input is the moments of x.
    pub moments: bool,
}

impl BatchNorm {
    /// The inputs after the first five: what follows takes, and the moments.
    fn split<'a, T>(&self, more: &'a [T]) -> (Option<&'a T>, Option<&'a T>) {
        match (self.then, more) {
            (Then::Nothing, rest) => (None, rest.first()),
            (_, [own, rest @ ..]) => (Some(own), rest.first()),
            (_, []) => (None, None),
        }
    }
}

impl Op for BatchNorm {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, weight, bias, running_mean, running_var, more @ ..] = inputs else {
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
        let (more, moments) = self.split(more);
        self.then.check("batch_norm", x, more)?;
        if self.moments && moments != Some(&moments::desc(&x.shape)) {
            return Err(Error::shape(
                "batch_norm",
                format!("moments {moments:?} of x {x}"),
                format!("{}", moments::desc(&x.shape)),
            ));
        }
        if x.shape.rows() < 2 {
            return Err(Error::shape(
                "batch_norm",
                format!("x {x}, one value a channel"),
                "at least two in training, since the variance of one is undefined: use a larger batch",
            ));
        }
        Ok(vec![x.clone(), constants(x)])
    }

    fn updates(&self) -> &'static [usize] {
        &[3, 4]
    }

    fn again(&self) -> Option<Again> {
        // A sum is what the next layers start from: to make it again would take the residual, which is one itself.
        (self.then != Then::Add).then(|| Again {
            op: Arc::new(BatchNormApply { then: self.then }),
            operands: vec![Operand::Input(0), Operand::Output(1)],
        })
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let x = &lowering.input(0)?.shape;
        let channels = x.last();
        let weight = Operand::Input(1);
        let slope = if self.then == Then::Prelu { Operand::Input(5) } else { weight };
        if self.moments {
            let moments = Operand::Input(if self.then == Then::Nothing { 5 } else { 6 });
            let finish = FinishParams {
                rows: lowering.size(x.rows())?,
                channels: lowering.size(channels)?,
                eps: self.eps,
                momentum: self.momentum,
            };
            let [bias, mean, var] = [2, 3, 4].map(Operand::Input);
            let operands = [moments, weight, bias, slope, mean, var, Operand::Output(1)];
            let grid = [lowering.size(channels.div_ceil(64))?, 1, 1];
            lowering.dispatch(&FINISH, &[], &finish, &operands, grid)?;
            return batch_norm_apply::lower(lowering, self.then, Operand::Output(1), Operand::Input(5));
        }
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
                weight,
                Operand::Input(2),
                slope,
                Operand::Input(3),
                Operand::Input(4),
                Operand::Output(1),
            ],
            [lowering.size(channels.div_ceil(COMBINE_COLUMNS))?, 1, 1],
        )?;
        batch_norm_apply::lower(lowering, self.then, Operand::Output(1), Operand::Input(5))
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        if gradient.upstream(1).is_some() {
            return Err(Error::graph(
                "op batch_norm has no gradient through what it keeps of the statistics (output 1)",
                "let the loss depend on output 0 alone",
            ));
        }
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        if self.then == Then::Add {
            gradient.set(5, dy);
        }
        let prelu = self.then == Then::Prelu;
        let of_this = |index: &usize| gradient.needs(*index) && (*index < 3 || prelu);
        if ![0, 1, 2, 5].iter().any(of_this) {
            return Ok(());
        }
        let (x, constants) = (gradient.input(0)?, gradient.output(1)?);
        let sums = Arc::new(BatchNormGradWeight { prelu });
        let sums = gradient.record().push(sums, &[x, constants, dy])?;
        let &[dweight, dbias, ..] = sums.as_slice() else { return Ok(()) };
        if gradient.needs(0) {
            let op = BatchNormGradInput { prelu };
            let dx = push_one(gradient.record(), op, &[x, constants, dy, dweight, dbias])?;
            gradient.set(0, dx);
        }
        gradient.set(1, dweight);
        gradient.set(2, dbias);
        if let Some(&dslope) = sums.get(2) {
            gradient.set(5, dslope);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, weight, bias, running_mean, running_var, more @ ..] = inputs else { return Vec::new() };
        let (more, _) = self.split(more);
        let slopes = more.filter(|_| self.then == Then::Prelu).unwrap_or(weight);
        let (rows, channels) = (x.shape.rows(), x.shape.last());
        let (eps, momentum) = (f64::from(self.eps), f64::from(self.momentum));
        let mut y = Array::zeros(x.shape.clone());
        let mut constants = Array::zeros([5, channels]);
        let mut new_mean = Array::zeros([channels]);
        let mut new_var = Array::zeros([channels]);
        for c in 0..channels {
            let column = || (0..rows).map(|r| x.data[r * channels + c]);
            let m = column().sum::<f64>() / rows as f64;
            let squares = column().map(|v| (v - m) * (v - m)).sum::<f64>();
            let inverse = 1.0 / (squares / rows as f64 + eps).sqrt();
            let of_channel = [m, inverse, inverse * weight.data[c], bias.data[c], slopes.data[c]];
            for (row, value) in of_channel.into_iter().enumerate() {
                constants.data[row * channels + c] = value;
            }
            let unbiased = squares / (rows as f64 - 1.0);
            let (old_mean, old_var) = (running_mean.data[c], running_var.data[c]);
            (new_mean.data[c], new_var.data[c]) = if m.is_finite() && unbiased.is_finite() {
                ((1.0 - momentum) * old_mean + momentum * m, (1.0 - momentum) * old_var + momentum * unbiased)
            } else {
                (old_mean, old_var)
            };
            for r in 0..rows {
                let i = r * channels + c;
                let z = (x.data[i] - m) * inverse * weight.data[c] + bias.data[c];
                y.data[i] = self.then.apply(z, slopes.data[c], more, i);
            }
        }
        vec![y, constants, new_mean, new_var]
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

/// The case with the moments of its x as one more input.
fn with_moments(mut case: Case) -> Case {
    let x = case.inputs.first().map(|x| Array::from(&x.tensor()));
    let of_x = x.map_or_else(|| Array::zeros([2, 1]), |x| moments::reference(&x));
    let values: Vec<f32> = of_x.data.iter().map(|&v| v as f32).collect();
    case.inputs.push(matrix(of_x.shape, &values));
    let op: &dyn std::any::Any = case.op.as_ref();
    if let Some(&op) = op.downcast_ref::<BatchNorm>() {
        case.op = Arc::new(BatchNorm { moments: true, ..op });
    }
    case.label += ", moments given";
    case
}

fn cases() -> Vec<Case> {
    let op = BatchNorm { eps: 1e-5, momentum: 0.1, then: Then::Nothing, moments: false };
    let case = |label: &str, shape: &[usize], mean: f32| Case::new(label, op, example(shape, mean));
    let prelu = |label: &str, shape: &[usize], mean: f32| {
        let mut inputs = example(shape, mean);
        inputs.push(uniform([Shape::from(shape).last()], -0.3, 0.9, 6));
        Case::new(format!("{label}, then PReLU"), BatchNorm { then: Then::Prelu, ..op }, inputs)
    };
    let add = |label: &str, shape: &[usize], mean: f32| {
        let mut inputs = example(shape, mean);
        inputs.push(normal(shape.to_vec(), 2.0, 7));
        Case::new(format!("{label}, then a sum"), BatchNorm { then: Then::Add, ..op }, inputs)
    };
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
            BatchNorm { eps: 0.1, momentum: 1.0, ..op },
            example(&[31, 4], 3.0),
        ),
        with_moments(case("odd sizes", &[17, 7], 0.5).differentiate(&[0, 1, 2])),
        with_moments(case("channels by four", &[2, 5, 3, 8], 0.5)),
        with_moments(
            prelu("channels by four", &[2, 5, 3, 8], 0.5).differentiate(&[0, 1, 2, 5]).epsilon(1e-6),
        ),
        with_moments(add("many channels", &[9, 132], 0.5)),
        with_moments(case("one channel", &[1031, 1], 3.0)),
        prelu("odd sizes", &[17, 7], 0.5).differentiate(&[0, 1, 2, 5]).epsilon(1e-6),
        prelu("channels by four", &[2, 5, 3, 8], 0.5).differentiate(&[0, 1, 2, 5]).epsilon(1e-6),
        prelu("slopes alone", &[11, 5], 0.5).differentiate(&[5]).epsilon(1e-6),
        prelu("many splits", &[2, 47, 61, 3], 2.0),
        prelu("four channels, many splits", &[2, 67, 71, 4], 2.0),
        add("odd sizes", &[17, 7], 0.5).differentiate(&[0, 1, 2, 5]),
        add("channels by four", &[2, 5, 3, 8], 0.5).differentiate(&[0, 1, 2, 5]),
        add("residual alone", &[11, 5], 0.5).differentiate(&[5]),
        add("a tile and four", &[37, 260], 0.0),
        case("images, odd sizes", &[2, 3, 5, 9], -0.5).half(&[0]),
        case("four channels, many splits", &[2, 67, 71, 4], 2.0).half(&[0]),
        prelu("odd sizes", &[17, 7], 0.5).half(&[0]),
        prelu("channels by four", &[2, 5, 3, 8], 0.5).half(&[0]),
        add("odd sizes", &[17, 7], 0.5).half(&[0, 5]),
        add("channels by four", &[2, 5, 3, 8], 0.5).half(&[0, 5]),
        case("perf", &[32, 28, 28, 128], 0.1).perf(),
        prelu("perf", &[32, 28, 28, 128], 0.1).perf(),
        add("perf", &[32, 28, 28, 128], 0.1).perf(),
        case("perf, wide", &[64, 7, 7, 512], 0.1).perf(),
        case("perf, large", LARGE_IMAGES, 0.1).perf_large(),
        prelu("perf, large", LARGE_IMAGES, 0.1).perf_large(),
        add("perf, large", LARGE_IMAGES, 0.1).perf_large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_a_channel_is_refused() {
        let op = BatchNorm { eps: 1e-5, momentum: 0.1, then: Then::Nothing, moments: false };
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
