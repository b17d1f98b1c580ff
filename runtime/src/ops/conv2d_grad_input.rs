//! Gradient of [`conv2d`](super::conv2d) with respect to its input.
//!
//! `dx[n, iy, ix, i] = sum over ky, kx, o of dy[n, (iy + top - ky) / stride, (ix + left - kx) / stride, o] * weight[ky, kx, i, o]`,
//! over the taps for which both divisions leave no remainder and fall inside dy. weight and dy are both f32 or both f16, and
//! so is dx.
//! weight `[KH, KW, Cin / groups, Cout]`, dy `[N, OH, OW, Cout]` -> dx `[N, H, W, Cin]`.
//!
//! With stride s only the taps `ky = (iy + top) mod s, + s, ...` count for row iy, the same for all rows of one
//! remainder modulo s, a *phase*. Within a phase this is a convolution of dy at stride 1 with the phase's taps in reverse
//! order and the roles of the channels exchanged: no product is wasted, and the kernels of the forward op do the work.

use std::sync::Arc;

use crate::caps::Caps;
use crate::case::{Case, OpEntry};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Operand};
use crate::ops::channels::{Channels, PAD};
use crate::ops::conv2d::{Conv2d, signed};
use crate::ops::convolution::{
    COOPERATIVE_8, COOPERATIVE_16, Geometry, Path, ProductParams, STRIP, SUBGROUP, TILED, lower_product,
};
use crate::ops::depthwise::{self, DEPTHWISE};
use crate::ops::direct::{DirectParams, lower_direct};
use crate::ops::{conv2d_cases, conv2d_variants, winograd};
use crate::{Error, Result, Shape, TensorDesc};

crate::param_block! {
    /// Parameters of `conv2d_grad_input_weight.wgsl`.
    pub struct FlipParams {
        /// Invocations: one for 16 output channels.
        len: u32,
        /// Kernel rows.
        kernel_height: u32,
        /// Kernel columns.
        kernel_width: u32,
        /// Stride along the height.
        stride_y: u32,
        /// Stride along the width.
        stride_x: u32,
        /// Groups.
        groups: u32,
        /// Input channels of a group.
        group_in: u32,
        /// Output channels of a group.
        group_out: u32,
        /// Input channels of a group in the result.
        padded_in: u32,
        /// Output channels of a group in the result.
        padded_out: u32,
    }
}

static FLIP: Kernel = Kernel {
    shader: "conv2d_grad_input_weight",
    entry: "main",
    params: FlipParams::FIELDS,
    bindings: &[read("weight"), write("flipped")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

static DIRECT: Kernel = Kernel {
    shader: "conv2d_grad_input",
    entry: "main",
    params: DirectParams::FIELDS,
    bindings: &[read("weight"), read("dy"), write("dx")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry {
    name: "conv2d_grad_input",
    cases,
    kernels: &[
        &DIRECT,
        &DEPTHWISE,
        &FLIP,
        &TILED,
        &COOPERATIVE_8,
        &COOPERATIVE_16,
        &SUBGROUP,
        &STRIP,
        &PAD,
        &winograd::INPUT,
        &winograd::WEIGHT,
        &winograd::OUTPUT,
    ],
};

/// The op `conv2d_grad_input`: `weight, dy -> dx`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dGradInput {
    /// The forward op.
    pub conv: Conv2d,
    /// Height and width of its input, which a stride leaves open.
    pub input: [usize; 2],
}

impl Conv2dGradInput {
    fn in_shape(&self, weight: &Shape, dy: &Shape) -> Shape {
        Shape::from([dy.dim(0), self.input[0], self.input[1], weight.dim(2) * self.conv.groups])
    }

    fn geometry(&self, weight: &Shape, dy: &Shape) -> Geometry {
        Geometry::of(&self.conv, &self.in_shape(weight, dy), weight)
    }
}

impl Op for Conv2dGradInput {
    fn name(&self) -> &'static str {
        "conv2d_grad_input"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [weight, dy] = inputs else {
            return Err(Error::shape("conv2d_grad_input", format!("{} inputs", inputs.len()), "weight, dy"));
        };
        let dx = TensorDesc { shape: self.in_shape(&weight.shape, &dy.shape), dtype: dy.dtype };
        let geometry = Geometry::check("conv2d_grad_input", &self.conv, &dx, weight)?;
        if dy.shape != geometry.out_shape() || dy.dtype != weight.dtype {
            return Err(Error::shape(
                "conv2d_grad_input",
                format!("dy {dy}"),
                format!("{}{}, as y", weight.dtype, geometry.out_shape()),
            ));
        }
        Ok(vec![dx])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let geometry = self.geometry(&lowering.input(0)?.shape, &lowering.input(1)?.shape).flattened();
        let variant = conv2d_variants::chosen(self.conv.variant, lowering);
        let path = geometry.path(variant, lowering.caps(), lowering.element());
        let (weight, dy, dx) = (Operand::Input(0), Operand::Input(1), Operand::Output(0));
        if path == Path::Direct {
            let len = geometry.in_pixels() * geometry.in_channels();
            return lower_direct(lowering, &DIRECT, &geometry, len, [weight, dy, dx]);
        }
        if path == Path::Depthwise {
            let flipped = lower_flip(lowering, &geometry, &geometry, weight)?;
            return each_phase(lowering, &geometry, |lowering, params| {
                depthwise::lower(lowering, &params, [dy, flipped, dx])
            });
        }
        let aligned = geometry.aligned();
        let activations = |of: &Geometry| {
            let dx = Channels::activations(of.in_pixels(), of.groups, of.group_in);
            (dx, Channels::activations(of.out_pixels(), of.groups, of.group_out))
        };
        let ((dx_is, dy_is), (dx_aligned, dy_aligned)) = (activations(&geometry), activations(&aligned));
        let flipped = lower_flip(lowering, &geometry, &aligned, weight)?;
        let dy = dy_is.pad(lowering, dy, &dy_aligned)?;
        let to = dx_is.target(lowering, dx, &dx_aligned);
        each_phase(lowering, &aligned, |lowering, params| {
            lower_product(lowering, path, params, aligned.groups, [dy, flipped, to], false).map(drop)
        })?;
        dx_aligned.copy(lowering, to, dx, &dx_is)
    }

    fn variants(&self, caps: &Caps, inputs: &[TensorDesc]) -> Vec<String> {
        let [weight, dy] = inputs else { return Vec::new() };
        let geometry = self.geometry(&weight.shape, &dy.shape).flattened();
        conv2d_variants::names(self.conv.variant, &geometry, caps, dy.dtype)
    }

    fn smaller(&self, inputs: &[TensorDesc]) -> Option<(Arc<dyn Op>, Vec<TensorDesc>)> {
        let [weight, dy] = inputs else { return None };
        let geometry = self.geometry(&weight.shape, &dy.shape);
        let (_, dy, input) = conv2d_variants::smaller(&self.conv, &geometry, weight, dy.dtype)?;
        Some((Arc::new(Self { conv: self.conv, input }), vec![weight.clone(), dy]))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (weight, dy) = (&inputs[0], &inputs[1]);
        let mut dx = Array::zeros(self.in_shape(&weight.shape, &dy.shape));
        self.geometry(&weight.shape, &dy.shape)
            .for_each_term(|i, j, k| dx.data[i] += dy.data[k] * weight.data[j]);
        vec![dx]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let flops = match inputs {
            [weight, dy] => self.geometry(&weight.shape, &dy.shape).flops(),
            _ => 0.0,
        };
        Cost::once(flops, inputs, outputs)
    }
}

/// Writes the weights of all phases, one after the other, to a scratch buffer.
fn lower_flip(
    lowering: &mut Lowering<'_>,
    geometry: &Geometry,
    aligned: &Geometry,
    weight: Operand,
) -> Result<Operand> {
    let len = Channels::weights(aligned).elements();
    lowering.size(len)?;
    let flipped = lowering.scratch(len);
    let invocations = aligned.taps() * aligned.in_channels() * aligned.group_out.div_ceil(16);
    let params = FlipParams {
        len: lowering.size(invocations)?,
        kernel_height: lowering.size(geometry.kernel[0])?,
        kernel_width: lowering.size(geometry.kernel[1])?,
        stride_y: lowering.size(geometry.stride[0])?,
        stride_x: lowering.size(geometry.stride[1])?,
        groups: lowering.size(geometry.groups)?,
        group_in: lowering.size(geometry.group_in)?,
        group_out: lowering.size(geometry.group_out)?,
        padded_in: lowering.size(aligned.group_in)?,
        padded_out: lowering.size(aligned.group_out)?,
    };
    let grid = lowering.fold(invocations.div_ceil(64))?;
    lowering.dispatch(&FLIP, &[("WORKGROUP", 64.0)], &params, &[weight, flipped], grid)?;
    Ok(flipped)
}

/// One axis of a phase.
struct Phase {
    /// Taps.
    taps: usize,
    /// Taps of the phases that come before in the flipped weights.
    taps_before: usize,
    /// Pixels of dx.
    pixels: usize,
    /// Where the window of the first pixel begins in dy.
    origin: i32,
}

impl Phase {
    /// Axis `axis` of the phase of the pixels `phase`, `phase + stride`, ... of dx.
    fn new(lowering: &Lowering<'_>, geometry: &Geometry, axis: usize, phase: usize) -> Result<Self> {
        let (size, kernel) = (geometry.in_size[axis], geometry.kernel[axis]);
        let (stride, padding) = (geometry.stride[axis], geometry.padding[axis]);
        let first_tap = (phase + padding) % stride;
        let taps_before = |remainder: usize| remainder * (kernel / stride) + remainder.min(kernel % stride);
        let taps = taps_before(first_tap + 1) - taps_before(first_tap);
        // Tap t of the phase, first_tap + stride * t, reads pixel (phase + padding - first_tap) / stride - t of dy.
        let last_tap_at = signed(lowering, (phase + padding) / stride)?;
        Ok(Self {
            taps,
            taps_before: taps_before(first_tap),
            pixels: size.saturating_sub(phase).div_ceil(stride),
            origin: last_tap_at + 1 - signed(lowering, taps)?,
        })
    }
}

/// Calls `launch` with the parameters of each phase.
fn each_phase(
    lowering: &mut Lowering<'_>,
    geometry: &Geometry,
    launch: impl Fn(&mut Lowering<'_>, ProductParams) -> Result<()>,
) -> Result<()> {
    let [stride_y, stride_x] = geometry.stride;
    // Where the image is smaller than the stride, the last phases have no pixels.
    for phase_y in 0..stride_y.min(geometry.in_size[0]) {
        for phase_x in 0..stride_x.min(geometry.in_size[1]) {
            let params = phase_params(lowering, geometry, phase_y, phase_x)?;
            launch(lowering, params)?;
        }
    }
    Ok(())
}

fn phase_params(
    lowering: &Lowering<'_>,
    aligned: &Geometry,
    phase_y: usize,
    phase_x: usize,
) -> Result<ProductParams> {
    let y = Phase::new(lowering, aligned, 0, phase_y)?;
    let x = Phase::new(lowering, aligned, 1, phase_x)?;
    // A phase without taps still has to write its zeros: a product over no rows of an x of one column.
    let (taps_y, taps_x) = if y.taps * x.taps == 0 { (0, 1) } else { (y.taps, x.taps) };
    let weight_first = (y.taps_before * aligned.kernel[1] + y.taps * x.taps_before)
        * aligned.group_out
        * (aligned.in_channels() / 4);
    Ok(ProductParams {
        pixels: lowering.size(aligned.batch * y.pixels * x.pixels)?,
        grid_height: lowering.size(y.pixels)?,
        grid_width: lowering.size(x.pixels)?,
        in_height: lowering.size(aligned.out_size[0])?,
        in_width: lowering.size(aligned.out_size[1])?,
        in_vectors: lowering.size(aligned.out_channels() / 4)?,
        group_in_vectors: lowering.size(aligned.group_out / 4)?,
        out_height: lowering.size(aligned.in_size[0])?,
        out_width: lowering.size(aligned.in_size[1])?,
        out_vectors: lowering.size(aligned.in_channels() / 4)?,
        group_out_vectors: lowering.size(aligned.group_in / 4)?,
        blocks_per_group: 0,
        taps_y: lowering.size(taps_y)?,
        taps_x: lowering.size(taps_x)?,
        stride_y: 1,
        stride_x: 1,
        origin_y: y.origin,
        origin_x: x.origin,
        out_step_y: lowering.size(aligned.stride[0])?,
        out_step_x: lowering.size(aligned.stride[1])?,
        out_first_y: lowering.size(phase_y)?,
        out_first_x: lowering.size(phase_x)?,
        weight_first: lowering.size(weight_first)?,
    })
}

fn cases() -> Vec<Case> {
    conv2d_cases::cases(|setting| {
        let op = Conv2dGradInput { conv: setting.conv, input: setting.input() };
        Case::new(setting.label(), op, vec![setting.weight(), setting.dy()])
    })
}
