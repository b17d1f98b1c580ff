//! 2-D convolution (cross-correlation) without bias.
//!
//! `y[n, oy, ox, o] = sum over ky, kx, i of x[n, oy * stride + ky - top, ox * stride + kx - left, i] * weight[ky, kx, i, o]`
//! with zeros outside x. x `[N, H, W, Cin]`, weight `[KH, KW, Cin / groups, Cout]`, y `[N, OH, OW, Cout]`, where
//! `OH = (H + top + bottom - KH) / stride + 1`, rounded down. Input and output channels are divided into `groups`, each
//! a convolution of its own. x and weight are both f32 or both f16, and so is y; the sums are f32.

use std::sync::Arc;

use crate::caps::Caps;
use crate::case::{Case, OpEntry};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_many, push_one};
use crate::ops::batch_norm::{STATS, STATS_VEC4};
use crate::ops::channels::{Channels, PAD};
use crate::ops::conv2d_grad_input::Conv2dGradInput;
use crate::ops::conv2d_grad_weight::Conv2dGradWeight;
use crate::ops::convolution::{
    COOPERATIVE_8, COOPERATIVE_16, Geometry, Path, ProductParams, STRIP, SUBGROUP, TILED, Variant,
    lower_product,
};
use crate::ops::depthwise::{self, DEPTHWISE};
use crate::ops::direct::{DirectParams, lower_direct};
use crate::ops::moments::{self, Parts};
use crate::ops::{conv2d_cases, conv2d_variants, winograd};
use crate::{Error, Result, TensorDesc};

static DIRECT: Kernel = Kernel {
    shader: "conv2d_direct",
    entry: "main",
    params: DirectParams::FIELDS,
    bindings: &[read("x"), read("weight"), write("y")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry {
    name: "conv2d",
    cases,
    kernels: &[
        &TILED,
        &COOPERATIVE_8,
        &COOPERATIVE_16,
        &SUBGROUP,
        &STRIP,
        &DIRECT,
        &DEPTHWISE,
        &PAD,
        &winograd::INPUT,
        &winograd::WEIGHT,
        &winograd::OUTPUT,
        &STATS,
        &STATS_VEC4,
        &moments::COMBINE,
    ],
};

/// Records `conv2d(x, weight)` and the moments of its result, for the batch norm that follows: mean and variance of each channel
/// over all else, f32 `[2, Cout]`.
pub fn conv2d_moments(
    record: &mut dyn Record,
    x: TensorId,
    weight: TensorId,
    attributes: Conv2d,
) -> Result<[TensorId; 2]> {
    push_many(record, Conv2d { moments: true, ..attributes }, &[x, weight])
}

/// Records `conv2d(x, weight)`: x `[N, H, W, Cin]`, weight `[KH, KW, Cin / groups, Cout]` -> `[N, OH, OW, Cout]`.
pub fn conv2d(
    record: &mut dyn Record,
    x: TensorId,
    weight: TensorId,
    attributes: Conv2d,
) -> Result<TensorId> {
    push_one(record, attributes, &[x, weight])
}

/// The op `conv2d`, and the attributes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Pixels between neighbouring windows, along height and width.
    pub stride: [usize; 2],
    /// Zeros around x: top, bottom, left, right.
    pub padding: [usize; 4],
    /// Groups of channels; as many as input channels make a depthwise convolution.
    pub groups: usize,
    /// Which kernels to use.
    pub variant: Variant,
    /// Whether a second output is the moments of the first.
    pub moments: bool,
}

impl Default for Conv2d {
    /// Stride 1, no padding, one group.
    fn default() -> Self {
        Self { stride: [1, 1], padding: [0; 4], groups: 1, variant: Variant::Auto, moments: false }
    }
}

impl Conv2d {
    /// Dispatches the convolution; gives parts of the rows whose moments it leaves, where it does and they are asked for.
    fn lower_convolution(&self, lowering: &mut Lowering<'_>) -> Result<Option<Parts>> {
        let geometry = Geometry::of(self, &lowering.input(0)?.shape, &lowering.input(1)?.shape).flattened();
        let variant = conv2d_variants::chosen(self.variant, lowering);
        let path = geometry.path(variant, lowering.caps(), lowering.element());
        let (x, weight, y) = (Operand::Input(0), Operand::Input(1), Operand::Output(0));
        if path == Path::Direct {
            let len = geometry.out_pixels() * geometry.out_channels();
            lower_direct(lowering, &DIRECT, &geometry, len, [x, weight, y])?;
            return Ok(None);
        }
        if path == Path::Depthwise {
            let params = ProductParams::forward(lowering, &geometry)?;
            depthwise::lower(lowering, &params, [x, weight, y])?;
            return Ok(None);
        }
        let aligned = geometry.aligned();
        let activations = |of: &Geometry| {
            let x = Channels::activations(of.in_pixels(), of.groups, of.group_in);
            (x, Channels::activations(of.out_pixels(), of.groups, of.group_out))
        };
        let ((x_is, y_is), (x_aligned, y_aligned)) = (activations(&geometry), activations(&aligned));
        let x = x_is.pad(lowering, x, &x_aligned)?;
        let weight = Channels::weights(&geometry).pad(lowering, weight, &Channels::weights(&aligned))?;
        let to = y_is.target(lowering, y, &y_aligned);
        let params = ProductParams::forward(lowering, &aligned)?;
        // Moments of channels that are cropped away would have to be cropped as well.
        let moments = self.moments && y_is == y_aligned;
        let parts = lower_product(lowering, path, params, aligned.groups, [x, weight, to], moments)?;
        y_aligned.copy(lowering, to, y, &y_is)?;
        Ok(parts)
    }
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, weight] = inputs else {
            return Err(Error::shape("conv2d", format!("{} inputs", inputs.len()), "x, weight"));
        };
        let geometry = Geometry::check("conv2d", self, x, weight)?;
        if x.dtype != weight.dtype {
            return Err(Error::shape("conv2d", format!("x {x}, weight {weight}"), "elements of one type"));
        }
        let y = TensorDesc { shape: geometry.out_shape(), dtype: x.dtype };
        let moments = self.moments.then(|| moments::desc(&y.shape));
        Ok([y].into_iter().chain(moments).collect())
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let parts = self.lower_convolution(lowering)?;
        if !self.moments {
            return Ok(());
        }
        let (y, moments) = (Operand::Output(0), Operand::Output(1));
        let shape = &lowering.output(0)?.shape;
        match parts {
            Some(parts) => moments::lower_combine(lowering, shape, y, parts, false, moments),
            None => moments::lower_pass(lowering, shape, y, moments),
        }
    }

    fn variants(&self, caps: &Caps, inputs: &[TensorDesc]) -> Vec<String> {
        let [x, weight] = inputs else { return Vec::new() };
        let geometry = Geometry::of(self, &x.shape, &weight.shape).flattened();
        conv2d_variants::names(self.variant, &geometry, caps, x.dtype)
    }

    fn smaller(&self, inputs: &[TensorDesc]) -> Option<(Arc<dyn Op>, Vec<TensorDesc>)> {
        let [x, weight] = inputs else { return None };
        let geometry = Geometry::of(self, &x.shape, &weight.shape);
        let (x, ..) = conv2d_variants::smaller(self, &geometry, weight, x.dtype)?;
        Some((Arc::new(*self), vec![x, weight.clone()]))
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        let (x, weight) = (gradient.input(0)?, gradient.input(1)?);
        if gradient.needs(0) {
            let shape = &gradient.record().desc(x).shape;
            let op = Conv2dGradInput { conv: *self, input: [shape.dim(1), shape.dim(2)] };
            let dx = push_one(gradient.record(), op, &[weight, dy])?;
            gradient.set(0, dx);
        }
        if gradient.needs(1) {
            let shape = &gradient.record().desc(weight).shape;
            let op = Conv2dGradWeight { conv: *self, kernel: [shape.dim(0), shape.dim(1)] };
            let dw = push_one(gradient.record(), op, &[x, dy])?;
            gradient.set(1, dw);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, weight) = (&inputs[0], &inputs[1]);
        let geometry = Geometry::of(self, &x.shape, &weight.shape);
        let mut y = Array::zeros(geometry.out_shape());
        geometry.for_each_term(|i, j, k| y.data[k] += x.data[i] * weight.data[j]);
        let moments = self.moments.then(|| moments::reference(&y));
        [y].into_iter().chain(moments).collect()
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let flops = match inputs {
            [x, weight] => Geometry::of(self, &x.shape, &weight.shape).flops(),
            _ => 0.0,
        };
        Cost::once(flops, inputs, outputs)
    }
}

/// `count` as i32, as kernels take positions that may lie outside a tensor.
pub(super) fn signed(lowering: &Lowering<'_>, count: usize) -> Result<i32> {
    i32::try_from(lowering.size(count)?)
        .map_err(|_| Error::shape("conv2d", format!("an extent of {count}"), "less than 2^31"))
}

fn cases() -> Vec<Case> {
    let plain = conv2d_cases::cases(|setting| {
        let case = Case::new(setting.label(), setting.conv, vec![setting.x(), setting.weight()]);
        if setting.differentiable() { case.differentiate(&[0, 1]) } else { case }
    });
    let moments = conv2d_cases::cases(|setting| {
        let conv = Conv2d { moments: true, ..setting.conv };
        Case::new(format!("{}, moments", setting.label()), conv, vec![setting.x(), setting.weight()])
    });
    // A variance needs two values, and a mean that nearly vanishes is exact in units of the deviation alone, which is what the
    // tolerance allows where the channels are like each other. Moments of 16-bit values are those of the values as rounded.
    let moments = moments.into_iter().filter(|case| !case.label.contains("values")).map(|case| {
        let half = case.label.ends_with("f16");
        case.relative(if half { 2e-3 } else { 2e-5 })
    });
    plain.into_iter().chain(moments).collect()
}
