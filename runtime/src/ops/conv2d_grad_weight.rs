//! Gradient of [`conv2d`](super::conv2d) with respect to its weight.
//!
//! `dw[ky, kx, i, o] = sum over n, oy, ox of x[n, oy * stride + ky - top, ox * stride + kx - left, i] * dy[n, oy, ox, o]`
//! with zeros outside x. x `[N, H, W, Cin]`, dy `[N, OH, OW, Cout]` -> dw `[KH, KW, Cin / groups, Cout]`.
//!
//! x and dy are both f32 or both f16; dw is f32.
//!
//! The result is small and the sum is long: the output pixels are split among workgroups, and the partial sums are
//! added in a fixed order by `sum_rows`.

use std::sync::Arc;

use crate::caps::Caps;
use crate::case::{Case, OpEntry};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Operand};
use crate::ops::channels::{Channels, PAD};
use crate::ops::conv2d::{Conv2d, signed};
use crate::ops::conv2d_variants::{self, Parts};
use crate::ops::convolution::{Geometry, Path, Variant, subgroup_columns, tile_grid};
use crate::ops::direct::DIRECT_WORKGROUP;
use crate::ops::{conv2d_cases, depthwise, sum_rows};
use crate::{DType, Error, Result, Shape, TensorDesc};

crate::param_block! {
    /// Parameters of `conv2d_grad_weight.wgsl` and `conv2d_grad_weight_subgroup.wgsl`. Vectors are of four channels.
    pub struct GradWeightParams {
        /// Output pixels of all images.
        pixels: u32,
        /// Output pixels that one workgroup adds.
        pixels_per_split: u32,
        /// Height of x.
        in_height: u32,
        /// Width of x.
        in_width: u32,
        /// Vectors of an input pixel.
        in_vectors: u32,
        /// Those of one group.
        group_in_vectors: u32,
        /// Height of dy.
        out_height: u32,
        /// Width of dy.
        out_width: u32,
        /// Vectors of an output pixel.
        out_vectors: u32,
        /// Those of one group.
        group_out_vectors: u32,
        /// Workgroups along the output channels of a group.
        blocks_per_group: u32,
        /// Elements of the kernel, without channels.
        taps: u32,
        /// Kernel columns.
        taps_x: u32,
        /// Stride along the height.
        stride_y: u32,
        /// Stride along the width.
        stride_x: u32,
        /// Input row of the first tap of the first pixel.
        origin_y: i32,
        /// Input column of the first tap of the first pixel.
        origin_x: i32,
    }
}

static TILED: Kernel = TILED_KERNEL;

const TILED_KERNEL: Kernel = Kernel {
    shader: "conv2d_grad_weight",
    entry: "main",
    params: GradWeightParams::FIELDS,
    bindings: &[read("x"), read("dy"), write("dw")],
    constants: &["ROWS", "COLUMNS", "WIDE"],
    needs: Needs::Nothing,
};

static COOPERATIVE_8: Kernel = COOPERATIVE_KERNEL;

static COOPERATIVE_16: Kernel = Kernel { needs: Needs::Matrices(16), ..COOPERATIVE_KERNEL };

const COOPERATIVE_KERNEL: Kernel = Kernel {
    shader: "conv2d_grad_weight_cooperative",
    constants: &["JOBS_Y", "JOBS_X", "STEP", "WORKGROUP"],
    needs: Needs::Matrices(8),
    ..TILED_KERNEL
};

static SUBGROUP: Kernel = Kernel {
    shader: "conv2d_grad_weight_subgroup",
    entry: "main",
    params: GradWeightParams::FIELDS,
    bindings: &[read("x"), read("dy"), write("dw")],
    constants: &["WORKGROUP", "WIDE"],
    needs: Needs::Subgroups,
};

crate::param_block! {
    /// Parameters of `conv2d_grad_weight_strip.wgsl`. Vectors are of four channels.
    pub struct StripParams {
        /// Rows of output pixels of all images.
        rows: u32,
        /// Those that one workgroup adds.
        rows_per_split: u32,
        /// Height of x.
        in_height: u32,
        /// Width of x.
        in_width: u32,
        /// Vectors of an input pixel.
        in_vectors: u32,
        /// Those of one group.
        group_in_vectors: u32,
        /// Height of dy.
        out_height: u32,
        /// Width of dy.
        out_width: u32,
        /// Vectors of an output pixel.
        out_vectors: u32,
        /// Those of one group.
        group_out_vectors: u32,
        /// Workgroups along the output channels of a group.
        blocks_per_group: u32,
        /// Kernel rows.
        taps_y: u32,
        /// Stride along the height.
        stride_y: u32,
        /// Input row of the first tap of the first pixel.
        origin_y: i32,
        /// Input column of the first tap of the first pixel.
        origin_x: i32,
    }
}

static STRIP: Kernel = Kernel {
    shader: "conv2d_grad_weight_strip",
    entry: "main",
    params: StripParams::FIELDS,
    bindings: &[read("x"), read("dy"), write("dw")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

crate::param_block! {
    /// Parameters of `conv2d_grad_weight_direct.wgsl`.
    pub struct DirectGradWeightParams {
        /// Elements of the result.
        len: u32,
        /// Height of x.
        in_height: u32,
        /// Width of x.
        in_width: u32,
        /// Input channels of a group.
        group_in: u32,
        /// Height of dy.
        out_height: u32,
        /// Width of dy.
        out_width: u32,
        /// Output channels of a group.
        group_out: u32,
        /// Groups.
        groups: u32,
        /// Kernel rows.
        kernel_height: u32,
        /// Kernel columns.
        kernel_width: u32,
        /// Stride along the height.
        stride_y: u32,
        /// Stride along the width.
        stride_x: u32,
        /// Rows of zeros above x.
        pad_top: u32,
        /// Columns of zeros left of x.
        pad_left: u32,
        /// Output pixels of all images.
        pixels: u32,
        /// Output pixels that one invocation adds.
        pixels_per_split: u32,
    }
}

static DIRECT: Kernel = Kernel {
    shader: "conv2d_grad_weight_direct",
    entry: "main",
    params: DirectGradWeightParams::FIELDS,
    bindings: &[read("x"), read("dy"), write("dw")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry {
    name: "conv2d_grad_weight",
    cases,
    kernels: &[
        &TILED,
        &COOPERATIVE_8,
        &COOPERATIVE_16,
        &SUBGROUP,
        &STRIP,
        &DIRECT,
        &depthwise::GRAD_WEIGHT,
        &PAD,
        &sum_rows::KERNEL,
    ],
};

/// The op `conv2d_grad_weight`: `x, dy -> dw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dGradWeight {
    /// The forward op.
    pub conv: Conv2d,
    /// Height and width of its kernel, which a stride leaves open.
    pub kernel: [usize; 2],
}

impl Conv2dGradWeight {
    fn weight_shape(&self, x: &Shape, dy: &Shape) -> Shape {
        Shape::from([self.kernel[0], self.kernel[1], x.last() / self.conv.groups.max(1), dy.last()])
    }

    fn geometry(&self, x: &Shape, dy: &Shape) -> Geometry {
        Geometry::of(&self.conv, x, &self.weight_shape(x, dy))
    }
}

/// How the output pixels are divided among workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Split {
    splits: usize,
    pixels_per_split: usize,
}

impl Split {
    /// Parts enough to fill the adapter where each of them is `workgroups` workgroups, none trivially short, and not
    /// more memory for the partial sums of `weights` than is worth it. A function of the sizes and the kind of adapter
    /// alone, so that sums are made in the same order on every run; or `times` as many, where that was chosen.
    fn choose(caps: &Caps, geometry: &Geometry, weights: usize, workgroups: usize, times: Parts) -> Self {
        /// Partial sums, in elements.
        const MOST: usize = 16 << 20;
        /// Elements of x and dy that a CPU keeps in a core's cache while all workgroups of a part walk them.
        const CACHED: usize = 1 << 18;
        let pixels = geometry.out_pixels();
        let (wanted, shortest) = if caps.cpu {
            let walked = pixels * (geometry.in_channels() + geometry.out_channels());
            (usize::div_ceil(32, workgroups).max(walked / CACHED), 128)
        } else {
            (usize::div_ceil(1024, workgroups), 256)
        };
        let by_rule = wanted.min(pixels.div_ceil(shortest)).clamp(1, 1024);
        let parts = (by_rule * times.0 / times.1).min(pixels).min(MOST / weights.max(1)).clamp(1, 1024);
        // The second stage has a workgroup for 64 weights.
        let parts = if weights.div_ceil(64) > caps.max_grid as usize { 1 } else { parts };
        let pixels_per_split = pixels.div_ceil(parts).max(1);
        Self { splits: pixels.div_ceil(pixels_per_split).max(1), pixels_per_split }
    }

    /// Where the first stage writes: straight to `to` if there is only one part.
    fn target(&self, lowering: &mut Lowering<'_>, to: Operand, weights: usize) -> Operand {
        if self.splits == 1 { to } else { lowering.workspace(4 * (self.splits * weights) as u64) }
    }

    /// Dispatches the second stage, if there is one.
    fn lower_sum(
        &self,
        lowering: &mut Lowering<'_>,
        from: Operand,
        to: Operand,
        weights: usize,
    ) -> Result<()> {
        if from == to {
            return Ok(());
        }
        sum_rows::lower_sum(lowering, from, to, self.splits, weights, 1.0)
    }
}

impl Op for Conv2dGradWeight {
    fn name(&self) -> &'static str {
        "conv2d_grad_weight"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, dy] = inputs else {
            return Err(Error::shape("conv2d_grad_weight", format!("{} inputs", inputs.len()), "x, dy"));
        };
        let dw = TensorDesc::f32(self.weight_shape(&x.shape, &dy.shape));
        let geometry = Geometry::check("conv2d_grad_weight", &self.conv, x, &dw)?;
        if dy.shape != geometry.out_shape() || dy.dtype != x.dtype {
            return Err(Error::shape(
                "conv2d_grad_weight",
                format!("dy {dy}"),
                format!("{}{}, as y", x.dtype, geometry.out_shape()),
            ));
        }
        Ok(vec![dw])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let geometry = self.geometry(&lowering.input(0)?.shape, &lowering.input(1)?.shape).flattened();
        let variant = conv2d_variants::chosen(self.conv.variant, lowering);
        let path = match geometry.path(variant, lowering.caps(), lowering.element()) {
            // That is for the other two; here it means what an adapter's products are otherwise.
            Path::Winograd => geometry.path(Variant::Subgroup, lowering.caps(), lowering.element()),
            path => path,
        };
        let parts = conv2d_variants::chosen_parts(self.conv.variant, lowering);
        let (x, dy, dw) = (Operand::Input(0), Operand::Input(1), Operand::Output(0));
        if path == Path::Direct {
            return lower_direct(lowering, &geometry, parts);
        }
        if path == Path::Depthwise {
            return depthwise::lower_grad_weight(lowering, &geometry, [x, dy, dw]);
        }
        let aligned = geometry.aligned();
        let activations = |of: &Geometry| {
            let x = Channels::activations(of.in_pixels(), of.groups, of.group_in);
            (x, Channels::activations(of.out_pixels(), of.groups, of.group_out))
        };
        let ((x_is, dy_is), (x_aligned, dy_aligned)) = (activations(&geometry), activations(&aligned));
        let (dw_is, dw_aligned) = (Channels::weights(&geometry), Channels::weights(&aligned));
        let x = x_is.pad(lowering, x, &x_aligned)?;
        let dy = dy_is.pad(lowering, dy, &dy_aligned)?;
        // From here on everything but x and dy is f32.
        let to = if dw_is == dw_aligned { dw } else { lowering.workspace(4 * dw_aligned.elements() as u64) };
        match path {
            Path::Subgroup(size) if suits_strips(&aligned) => {
                lower_strips(lowering, size, &aligned, [x, dy, to])?
            }
            path => lower_product(lowering, path, &aligned, parts, [x, dy, to])?,
        }
        lowering.set_element(DType::F32);
        dw_aligned.copy(lowering, to, dw, &dw_is)
    }

    fn variants(&self, caps: &Caps, inputs: &[TensorDesc]) -> Vec<String> {
        let [x, dy] = inputs else { return Vec::new() };
        let geometry = self.geometry(&x.shape, &dy.shape).flattened();
        conv2d_variants::names_with_parts(self.conv.variant, &geometry, caps, x.dtype)
    }

    fn smaller(&self, inputs: &[TensorDesc]) -> Option<(Arc<dyn Op>, Vec<TensorDesc>)> {
        let [x, dy] = inputs else { return None };
        let geometry = self.geometry(&x.shape, &dy.shape);
        let weight = TensorDesc { shape: self.weight_shape(&x.shape, &dy.shape), dtype: x.dtype };
        let (x, dy, _) = conv2d_variants::smaller(&self.conv, &geometry, &weight, x.dtype)?;
        Some((Arc::new(*self), vec![x, dy]))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, dy) = (&inputs[0], &inputs[1]);
        let mut dw = Array::zeros(self.weight_shape(&x.shape, &dy.shape));
        self.geometry(&x.shape, &dy.shape).for_each_term(|i, j, k| dw.data[j] += x.data[i] * dy.data[k]);
        vec![dw]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let flops = match inputs {
            [x, dy] => self.geometry(&x.shape, &dy.shape).flops(),
            _ => 0.0,
        };
        Cost::once(flops, inputs, outputs)
    }
}

fn lower_product(
    lowering: &mut Lowering<'_>,
    path: Path,
    aligned: &Geometry,
    parts: Parts,
    [x, dy, dw]: [Operand; 3],
) -> Result<()> {
    let (pixels, rows) = (aligned.out_pixels(), aligned.taps() * aligned.group_in);
    let weights = rows * aligned.out_channels();
    let (kernel, row_blocks, blocks, constants) = match path {
        Path::Subgroup(size) => {
            let (wide, blocks) = subgroup_columns(aligned.group_out);
            // An invocation has two vectors of rows.
            let row_blocks = rows.div_ceil(8 * size as usize);
            (
                &SUBGROUP,
                row_blocks,
                blocks,
                vec![("WORKGROUP", f64::from(size)), ("WIDE", f64::from(u8::from(wide)))],
            )
        }
        Path::Tiled(tile) => {
            // The splits make up for few workgroups, so only the shape decides on the tile.
            let longest = pixels.div_ceil(256);
            let (row_blocks, blocks, constants) =
                tile_grid(tile, rows, aligned.group_out, aligned.groups * longest);
            (&TILED, row_blocks, blocks, constants.to_vec())
        }
        Path::Cooperative(matrices) => {
            let longest = pixels.div_ceil(256);
            let blocks =
                matrices.blocks(lowering.caps(), rows, aligned.group_out, aligned.groups * longest)?;
            (
                matrices.kernel([&COOPERATIVE_8, &COOPERATIVE_16]),
                blocks.rows,
                blocks.columns,
                blocks.constants,
            )
        }
        Path::Winograd | Path::Direct | Path::Depthwise => {
            return Err(Error::graph("a direct gradient is no matrix product", "use its own kernel"));
        }
    };
    let split = Split::choose(lowering.caps(), aligned, weights, row_blocks * blocks * aligned.groups, parts);
    let partial = split.target(lowering, dw, weights);
    let params = GradWeightParams {
        pixels: lowering.size(pixels)?,
        pixels_per_split: lowering.size(split.pixels_per_split)?,
        in_height: lowering.size(aligned.in_size[0])?,
        in_width: lowering.size(aligned.in_size[1])?,
        in_vectors: lowering.size(aligned.in_channels() / 4)?,
        group_in_vectors: lowering.size(aligned.group_in / 4)?,
        out_height: lowering.size(aligned.out_size[0])?,
        out_width: lowering.size(aligned.out_size[1])?,
        out_vectors: lowering.size(aligned.out_channels() / 4)?,
        group_out_vectors: lowering.size(aligned.group_out / 4)?,
        blocks_per_group: lowering.size(blocks)?,
        taps: lowering.size(aligned.taps())?,
        taps_x: lowering.size(aligned.kernel[1])?,
        stride_y: lowering.size(aligned.stride[0])?,
        stride_x: lowering.size(aligned.stride[1])?,
        origin_y: -signed(lowering, aligned.padding[0])?,
        origin_x: -signed(lowering, aligned.padding[1])?,
    };
    let grid =
        [lowering.size(row_blocks)?, lowering.size(blocks * aligned.groups)?, lowering.size(split.splits)?];
    lowering.dispatch(kernel, &constants, &params, &[x, dy, partial], grid)?;
    split.lower_sum(lowering, partial, dw, weights)
}

/// Whether `conv2d_grad_weight_strip.wgsl` can do a gradient, and has channels few enough for it to be the fastest.
fn suits_strips(aligned: &Geometry) -> bool {
    let few = aligned.group_out <= 8 || aligned.group_in <= 4;
    aligned.kernel[1] == 3 && aligned.stride[1] == 1 && few
}

fn lower_strips(
    lowering: &mut Lowering<'_>,
    size: u32,
    aligned: &Geometry,
    [x, dy, dw]: [Operand; 3],
) -> Result<()> {
    let rows = aligned.batch * aligned.out_size[0];
    let weights = aligned.taps() * aligned.group_in * aligned.out_channels();
    let vectors = aligned.kernel[0] * aligned.group_in / 4;
    let blocks = aligned.group_out.div_ceil(8);
    // Each invocation of a workgroup walks at least four rows, unless there are too few.
    let parts =
        usize::div_ceil(32, vectors * blocks * aligned.groups).min(rows.div_ceil(4 * size as usize)).max(1);
    let rows_per_split = rows.div_ceil(parts);
    let splits = rows.div_ceil(rows_per_split);
    let partial_rows = splits * size as usize;
    let partial = lowering.workspace(4 * (partial_rows * weights) as u64);
    let params = StripParams {
        rows: lowering.size(rows)?,
        rows_per_split: lowering.size(rows_per_split)?,
        in_height: lowering.size(aligned.in_size[0])?,
        in_width: lowering.size(aligned.in_size[1])?,
        in_vectors: lowering.size(aligned.in_channels() / 4)?,
        group_in_vectors: lowering.size(aligned.group_in / 4)?,
        out_height: lowering.size(aligned.out_size[0])?,
        out_width: lowering.size(aligned.out_size[1])?,
        out_vectors: lowering.size(aligned.out_channels() / 4)?,
        group_out_vectors: lowering.size(aligned.group_out / 4)?,
        blocks_per_group: lowering.size(blocks)?,
        taps_y: lowering.size(aligned.kernel[0])?,
        stride_y: lowering.size(aligned.stride[0])?,
        origin_y: -signed(lowering, aligned.padding[0])?,
        origin_x: -signed(lowering, aligned.padding[1])?,
    };
    let grid = [lowering.size(vectors)?, lowering.size(blocks * aligned.groups)?, lowering.size(splits)?];
    lowering.dispatch(&STRIP, &[("WORKGROUP", f64::from(size))], &params, &[x, dy, partial], grid)?;
    sum_rows::lower_sum(lowering, partial, dw, partial_rows, weights, 1.0)
}

fn lower_direct(lowering: &mut Lowering<'_>, geometry: &Geometry, parts: Parts) -> Result<()> {
    let (pixels, weights) = (geometry.out_pixels(), Channels::weights(geometry).elements());
    let split = Split::choose(lowering.caps(), geometry, weights, weights.div_ceil(DIRECT_WORKGROUP), parts);
    let dw = Operand::Output(0);
    let partial = split.target(lowering, dw, weights);
    let params = DirectGradWeightParams {
        len: lowering.size(weights)?,
        in_height: lowering.size(geometry.in_size[0])?,
        in_width: lowering.size(geometry.in_size[1])?,
        group_in: lowering.size(geometry.group_in)?,
        out_height: lowering.size(geometry.out_size[0])?,
        out_width: lowering.size(geometry.out_size[1])?,
        group_out: lowering.size(geometry.group_out)?,
        groups: lowering.size(geometry.groups)?,
        kernel_height: lowering.size(geometry.kernel[0])?,
        kernel_width: lowering.size(geometry.kernel[1])?,
        stride_y: lowering.size(geometry.stride[0])?,
        stride_x: lowering.size(geometry.stride[1])?,
        pad_top: lowering.size(geometry.padding[0])?,
        pad_left: lowering.size(geometry.padding[1])?,
        pixels: lowering.size(pixels)?,
        pixels_per_split: lowering.size(split.pixels_per_split)?,
    };
    let [x, y, _] = lowering.fold(weights.div_ceil(DIRECT_WORKGROUP))?;
    let grid = [x, y, lowering.size(split.splits)?];
    let operands = [Operand::Input(0), Operand::Input(1), partial];
    lowering.dispatch(&DIRECT, &[("WORKGROUP", DIRECT_WORKGROUP as f64)], &params, &operands, grid)?;
    split.lower_sum(lowering, partial, dw, weights)
}

fn cases() -> Vec<Case> {
    conv2d_cases::cases(|setting| {
        let op = Conv2dGradWeight { conv: setting.conv, kernel: setting.kernel() };
        Case::new(setting.label(), op, vec![setting.x(), setting.dy()])
    })
}
