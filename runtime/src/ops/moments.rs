//! The moments of a batch, for batch normalisation: mean and variance (divided by the rows) of each channel of a tensor
//! `[..., C]`, f32 `[2, C]`, by partial moments of parts of the rows that are merged in a fixed order. A convolution leaves the
//! parts itself where its kernel can, and the tensor is not read again.

use crate::Result;
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Lowering, Operand};
use crate::ops::batch_norm::{STATS, STATS_VEC4};
use crate::ops::walk::Walk;
use crate::{Shape, TensorDesc};

crate::param_block! {
    /// Parameters of `moments_combine.wgsl`.
    pub struct CombineParams {
        /// Rows of the tensor, all dimensions but the innermost.
        rows: u32,
        /// Channels, the innermost dimension.
        channels: u32,
        /// Rows of every part but perhaps the last.
        rows_per_split: u32,
        /// Parts.
        splits: u32,
    }
}

/// `moments_combine.wgsl`
pub(super) static COMBINE: Kernel = Kernel {
    shader: "moments_combine",
    entry: "main",
    params: CombineParams::FIELDS,
    bindings: &[read("x"), read("partial"), write("moments")],
    constants: &["COLUMNS", "LANES", "SHIFTED"],
    needs: Needs::Nothing,
};

/// Channels of a workgroup of the second stage, and parts that it handles at a time.
const COLUMNS: usize = 8;
const LANES: usize = 32;

/// The moments of a tensor `x`.
pub(super) fn desc(x: &Shape) -> TensorDesc {
    TensorDesc::f32([2, x.last()])
}

/// Parts of the rows of a tensor whose moments are known: `[parts, 2, C]`, mean and sum of squared deviations.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    pub partial: Operand,
    pub count: usize,
    /// Rows of every part but perhaps the last.
    pub rows: usize,
}

/// Dispatches the merging of `parts` of a tensor of `shape` at `x`; `shifted` where their means are less its first row.
pub(super) fn lower_combine(
    lowering: &mut Lowering<'_>,
    shape: &Shape,
    x: Operand,
    parts: Parts,
    shifted: bool,
    moments: Operand,
) -> Result<()> {
    let channels = shape.last();
    let params = CombineParams {
        rows: lowering.size(shape.rows())?,
        channels: lowering.size(channels)?,
        rows_per_split: lowering.size(parts.rows)?,
        splits: lowering.size(parts.count)?,
    };
    let constants =
        [("COLUMNS", COLUMNS as f64), ("LANES", LANES as f64), ("SHIFTED", f64::from(u8::from(shifted)))];
    let grid = [lowering.size(channels.div_ceil(COLUMNS))?, 1, 1];
    lowering.dispatch(&COMBINE, &constants, &params, &[x, parts.partial, moments], grid)
}

/// Dispatches a pass over the tensor of `shape` at `x` that makes its moments.
pub(super) fn lower_pass(
    lowering: &mut Lowering<'_>,
    shape: &Shape,
    x: Operand,
    moments: Operand,
) -> Result<()> {
    let walk = Walk::reduction(lowering, shape)?;
    let partial = lowering.workspace(2 * walk.partial_bytes(shape.last()));
    let kernel = walk.kernel(&STATS, &STATS_VEC4);
    lowering.dispatch(kernel, &walk.constants(), &walk.params, &[x, partial], walk.grid)?;
    let parts = Parts { partial, count: walk.splits, rows: walk.params.rows_per_split as usize };
    lower_combine(lowering, shape, x, parts, true, moments)
}

/// The moments by their definition.
pub(super) fn reference(x: &Array) -> Array {
    let (rows, channels) = (x.shape.rows(), x.shape.last());
    let mut moments = Array::zeros([2, channels]);
    for c in 0..channels {
        let column = || (0..rows).map(|r| x.data[r * channels + c]);
        let mean = column().sum::<f64>() / rows as f64;
        moments.data[c] = mean;
        moments.data[channels + c] = column().map(|v| (v - mean) * (v - mean)).sum::<f64>() / rows as f64;
    }
    moments
}
