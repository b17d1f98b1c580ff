//! What [`conv2d`](super::conv2d) and its gradients share where every channel is convolved by itself: kernels that walk
//! strips of pixels for vectors of four channels.

use crate::caps::Caps;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Lowering, Operand};
use crate::ops::conv2d::signed;
use crate::ops::conv2d_grad_weight::StripParams;
use crate::ops::convolution::{Geometry, ProductParams};
use crate::ops::sum_rows;
use crate::{Error, Result};

const CONSTANTS: &[&str] = &["COLUMNS", "LANES", "STRIP", "TAPS", "STRIDE"];

/// `conv2d_depthwise.wgsl`
pub(super) static DEPTHWISE: Kernel = Kernel {
    shader: "conv2d_depthwise",
    entry: "main",
    params: ProductParams::FIELDS,
    bindings: &[read("x"), read("weight"), write("y")],
    constants: CONSTANTS,
    needs: Needs::Nothing,
};

/// `conv2d_depthwise_grad_weight.wgsl`
pub(super) static GRAD_WEIGHT: Kernel = Kernel {
    shader: "conv2d_depthwise_grad_weight",
    entry: "main",
    params: StripParams::FIELDS,
    bindings: &[read("x"), read("dy"), write("dw")],
    constants: CONSTANTS,
    needs: Needs::Nothing,
};

/// Pixels of a strip at most, and of x that its windows may cover, as in the shaders.
const STRIP_MOST: usize = 8;
const COVERED_MOST: usize = 10;
/// Kernel columns that the kernels hold at most.
pub(super) const MOST_TAPS: usize = 8;

/// Pixels of a strip for kernels of `taps` columns, at least 1.
fn strip(taps: usize, stride: usize) -> usize {
    (COVERED_MOST.saturating_sub(taps) / stride.max(1) + 1).min(STRIP_MOST)
}

/// How a workgroup is divided, by a function of the channels and the kind of adapter alone.
struct Shape {
    columns: usize,
    lanes: usize,
    blocks: usize,
}

impl Shape {
    fn new(caps: &Caps, vectors: usize) -> Self {
        // On a CPU adapter a subgroup of llvmpipe; on a GPU enough to fill one of any width.
        let workgroup = if caps.cpu { 8 } else { 128 };
        let columns = vectors.next_power_of_two().min(if caps.cpu { 8 } else { 32 });
        Self { columns, lanes: workgroup / columns, blocks: vectors.div_ceil(columns) }
    }

    fn constants(&self, strip: usize, taps: usize, stride: usize) -> Vec<(&'static str, f64)> {
        let values = [self.columns, self.lanes, strip, taps, stride];
        CONSTANTS.iter().copied().zip(values.map(|value| value as f64)).collect()
    }
}

/// Dispatches the depthwise convolution that `params` describe (also a phase of an input gradient).
pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    params: &ProductParams,
    operands: [Operand; 3],
) -> Result<()> {
    let [taps, stride] = [params.taps_x, params.stride_x].map(|n| n as usize);
    let shape = Shape::new(lowering.caps(), params.out_vectors as usize);
    let strip = strip(taps, stride);
    let width = params.grid_width as usize;
    let strips = params.pixels as usize / width.max(1) * width.div_ceil(strip);
    let [x, y, _] = lowering.fold(strips.div_ceil(shape.lanes))?;
    let grid = [lowering.size(shape.blocks)?, x, y];
    lowering.dispatch(&DEPTHWISE, &shape.constants(strip, taps, stride), params, &operands, grid)
}

/// Dispatches the gradient with respect to the weight, and the sum of its parts.
pub(super) fn lower_grad_weight(
    lowering: &mut Lowering<'_>,
    geometry: &Geometry,
    [x, dy, dw]: [Operand; 3],
) -> Result<()> {
    let [taps, stride] = [geometry.kernel[1], geometry.stride[1]];
    if taps > MOST_TAPS {
        return Err(Error::graph(
            "the window of a depthwise convolution is too wide",
            "use the direct kernel",
        ));
    }
    let vectors = geometry.out_channels() / 4;
    let shape = Shape::new(lowering.caps(), vectors);
    let rows = geometry.batch * geometry.out_size[0];
    // Enough workgroups to fill the adapter, each lane with some rows to walk.
    let wanted: usize = if lowering.caps().cpu { 16 } else { 1024 };
    let parts =
        wanted.div_ceil(shape.blocks * geometry.kernel[0]).min(rows.div_ceil(4 * shape.lanes)).clamp(1, 512);
    let rows_per_split = rows.div_ceil(parts);
    let splits = rows.div_ceil(rows_per_split);
    let weights = geometry.taps() * geometry.out_channels();
    let partial_rows = splits * shape.lanes;
    let partial = lowering.workspace(4 * (partial_rows * weights) as u64);
    let vectors = lowering.size(vectors)?;
    let params = StripParams {
        rows: lowering.size(rows)?,
        rows_per_split: lowering.size(rows_per_split)?,
        in_height: lowering.size(geometry.in_size[0])?,
        in_width: lowering.size(geometry.in_size[1])?,
        in_vectors: vectors,
        group_in_vectors: 0,
        out_height: lowering.size(geometry.out_size[0])?,
        out_width: lowering.size(geometry.out_size[1])?,
        out_vectors: vectors,
        group_out_vectors: 0,
        blocks_per_group: 0,
        taps_y: lowering.size(geometry.kernel[0])?,
        stride_y: lowering.size(geometry.stride[0])?,
        origin_y: -signed(lowering, geometry.padding[0])?,
        origin_x: -signed(lowering, geometry.padding[1])?,
    };
    let grid = [lowering.size(shape.blocks)?, lowering.size(geometry.kernel[0])?, lowering.size(splits)?];
    let constants = shape.constants(strip(taps, stride), taps, stride);
    lowering.dispatch(&GRAD_WEIGHT, &constants, &params, &[x, dy, partial], grid)?;
    sum_rows::lower_sum(lowering, partial, dw, partial_rows, weights, 1.0)
}
