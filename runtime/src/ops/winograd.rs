//! 3x3 convolutions with stride 1 by Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308):
//! `y = A^T ((G g G^T) * (B^T d B)) A` for each 2x2 pixels of y and the 4x4 pixels d of x that they see.
//!
//! 16 multiplications make four pixels where the definition takes 36. The product over channels is a matrix product for each of the
//! 16 values of a tile: a 1x1 convolution in 16 groups, for which the kernels of convolutions serve. Tiles go through in
//! parts, so that what lies between the steps is small and still in a cache when it is read.
//!
//! Sums of transformed values lose about one more bit than the definition's; only operands in 32 bits are done this way.

use crate::caps::Caps;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Lowering, Operand};
use crate::ops::convolution::{Geometry, Path, ProductParams, Variant, lower_product};
use crate::{DType, Result};

crate::param_block! {
    /// Parameters of `winograd_input.wgsl`.
    pub struct InputParams {
        /// Invocations: one for four channels of a tile.
        len: u32,
        /// The first tile of the part.
        first_tile: u32,
        /// Tiles of an image's column.
        tiles_y: u32,
        /// Tiles of an image's row.
        tiles_x: u32,
        /// Height of x.
        in_height: u32,
        /// Width of x.
        in_width: u32,
        /// Vectors of four channels of a pixel.
        vectors: u32,
        /// Row of x where the first tile begins.
        origin_y: i32,
        /// Column of x where the first tile begins.
        origin_x: i32,
    }
}

crate::param_block! {
    /// Parameters of `winograd_weight.wgsl`.
    pub struct WeightParams {
        /// Invocations: one for four output channels of an input channel.
        len: u32,
        /// Input channels.
        channels: u32,
        /// Vectors of four output channels.
        out_vectors: u32,
    }
}

crate::param_block! {
    /// Parameters of `winograd_output.wgsl`.
    pub struct OutputParams {
        /// Invocations: one for four channels of a tile.
        len: u32,
        /// The first tile of the part.
        first_tile: u32,
        /// Tiles of an image's column.
        tiles_y: u32,
        /// Tiles of an image's row.
        tiles_x: u32,
        /// Height of y.
        out_height: u32,
        /// Width of y.
        out_width: u32,
        /// Vectors of four channels of a pixel.
        vectors: u32,
    }
}

/// `winograd_input.wgsl`
pub(super) static INPUT: Kernel = Kernel {
    shader: "winograd_input",
    entry: "main",
    params: InputParams::FIELDS,
    bindings: &[read("x"), write("v")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// `winograd_weight.wgsl`
pub(super) static WEIGHT: Kernel = Kernel {
    shader: "winograd_weight",
    entry: "main",
    params: WeightParams::FIELDS,
    bindings: &[read("weight"), write("u")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// `winograd_output.wgsl`
pub(super) static OUTPUT: Kernel = Kernel {
    shader: "winograd_output",
    entry: "main",
    params: OutputParams::FIELDS,
    bindings: &[read("m"), write("y")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// Values of a tile.
const VALUES: usize = 16;

/// Invocations of a workgroup of the three kernels.
const WORKGROUP: usize = 64;

/// Whether a convolution of `geometry` can be done this way.
pub(super) fn suits(geometry: &Geometry, element: DType) -> bool {
    element == DType::F32
        && geometry.kernel == [3, 3]
        && geometry.stride == [1, 1]
        && geometry.groups == 1
        && geometry.group_in >= 16
        && geometry.group_out >= 16
}

/// Whether it is the rule on CPU adapters: with fewer channels the transforms cost what the product gains. GPUs, whose
/// arithmetic is faster beside their memory, take it only where it was measured to win.
pub(super) fn is_the_rule(geometry: &Geometry, caps: &Caps, element: DType) -> bool {
    caps.cpu && suits(geometry, element) && geometry.group_in.min(geometry.group_out) >= 128
}

/// Tiles of a part: those whose transformed values, of `channels` in and out together, take `most` elements.
fn tiles_of_a_part(caps: &Caps, channels: usize, tiles: usize) -> usize {
    // What stays in the cache of a CPU core; on a GPU, the last level's, and enough to fill it with work.
    let most: usize = if caps.cpu { 1 << 20 } else { 8 << 20 };
    let parts = tiles.div_ceil((most / (VALUES * channels)).max(64));
    tiles.div_ceil(parts)
}

/// Dispatches the 3x3 convolution with stride 1 that `params` describe.
pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    params: &ProductParams,
    [x, weight, y]: [Operand; 3],
) -> Result<()> {
    let caps = lowering.caps();
    let (in_vectors, out_vectors) = (params.in_vectors as usize, params.out_vectors as usize);
    let (channels, out_channels) = (4 * in_vectors, 4 * out_vectors);
    let images = params.pixels as usize / (params.grid_height * params.grid_width).max(1) as usize;
    let tiles_of = |extent: u32| extent.div_ceil(2);
    let (tiles_y, tiles_x) = (tiles_of(params.grid_height), tiles_of(params.grid_width));
    let tiles = images * (tiles_y * tiles_x) as usize;
    let constants = [("WORKGROUP", WORKGROUP as f64)];

    let u = lowering.scratch(channels * VALUES * out_channels);
    let len = channels * out_vectors;
    let weights = WeightParams {
        len: lowering.size(len)?,
        channels: lowering.size(channels)?,
        out_vectors: params.out_vectors,
    };
    let grid = lowering.fold(len.div_ceil(WORKGROUP))?;
    lowering.dispatch(&WEIGHT, &constants, &weights, &[weight, u], grid)?;

    let part = tiles_of_a_part(caps, channels + out_channels, tiles);
    let v = lowering.scratch(part * VALUES * channels);
    let m = lowering.scratch(part * VALUES * out_channels);
    for first in (0..tiles).step_by(part) {
        let count = part.min(tiles - first);
        let first_tile = lowering.size(first)?;
        let len = count * in_vectors;
        let input = InputParams {
            len: lowering.size(len)?,
            first_tile,
            tiles_y,
            tiles_x,
            in_height: params.in_height,
            in_width: params.in_width,
            vectors: params.in_vectors,
            origin_y: params.origin_y,
            origin_x: params.origin_x,
        };
        let grid = lowering.fold(len.div_ceil(WORKGROUP))?;
        lowering.dispatch(&INPUT, &constants, &input, &[x, v], grid)?;

        let product = Geometry {
            batch: count,
            in_size: [1, 1],
            out_size: [1, 1],
            kernel: [1, 1],
            stride: [1, 1],
            padding: [0, 0],
            groups: VALUES,
            group_in: channels,
            group_out: out_channels,
        };
        // Neither few channels nor a depthwise convolution: one of the matrix products.
        let path = match product.path(Variant::Auto, caps, DType::F32) {
            path @ (Path::Subgroup(_) | Path::Tiled(_)) => path,
            _ => Path::Tiled(None),
        };
        let products = ProductParams::forward(lowering, &product)?;
        lower_product(lowering, path, products, VALUES, [v, u, m], false)?;

        let len = count * out_vectors;
        let output = OutputParams {
            len: lowering.size(len)?,
            first_tile,
            tiles_y,
            tiles_x,
            out_height: params.out_height,
            out_width: params.out_width,
            vectors: params.out_vectors,
        };
        let grid = lowering.fold(len.div_ceil(WORKGROUP))?;
        lowering.dispatch(&OUTPUT, &constants, &output, &[m, y], grid)?;
    }
    Ok(())
}
