//! The last pass of batch normalisation in training, with the statistics of the batch at hand:
//! `z = (x - mean) * inv_std * weight + bias`, and what follows it: `y = z`, PReLU, or the sum with a residual. `x`, `y` and the
//! residual are `[..., C]`, all f32 or all f16; the constants of the channels f32 `[5, C]`, as
//! [`batch_norm`](super::batch_norm) keeps them.
//!
//! What [`batch_norm`](super::batch_norm) made is made again with it, bit for bit and by the same kernel, where keeping it
//! for the gradients of what follows would take memory for a whole step. It has no gradient itself: that is
//! `batch_norm`'s.

use crate::case::{Case, LARGE_IMAGES, OpEntry, normal, uniform};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Operand};
use crate::ops::batch_norm::{Then, check, constants};
use crate::ops::walk::{RowsParams, Walk};
use crate::{Error, Result, Shape, TensorDesc};

const KERNEL: Kernel = Kernel {
    shader: "batch_norm",
    entry: "main",
    params: RowsParams::FIELDS,
    bindings: &[read("x"), read("constants"), read("residual"), write("y")],
    constants: &["COLUMNS", "LANES", "PRELU", "RESIDUAL"],
    needs: Needs::Nothing,
};
pub(super) static APPLY: Kernel = KERNEL;
pub(super) static APPLY_VEC4: Kernel = Kernel { shader: "batch_norm_vec4", ..KERNEL };

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "batch_norm_apply", cases, kernels: &[&APPLY, &APPLY_VEC4] };

/// The op `batch_norm_apply`: `x, constants`, and a residual where one is added, `-> y`.
#[derive(Debug, Clone, Copy)]
pub struct BatchNormApply {
    /// What follows the normalisation. The slopes of a PReLU are among the constants.
    pub then: Then,
}

/// Dispatches the pass from input 0 to output 0; `residual` where one is added.
pub(super) fn lower(
    lowering: &mut Lowering<'_>,
    then: Then,
    constants: Operand,
    residual: Operand,
) -> Result<()> {
    let walk = Walk::elementwise(lowering, &lowering.input(0)?.shape)?;
    let x = Operand::Input(0);
    // Without a residual, x fills its place and is not read there.
    let residual = if then == Then::Add { residual } else { x };
    let operands = [x, constants, residual, Operand::Output(0)];
    let settings = [walk.constants(), then.constants()].concat();
    lowering.dispatch(walk.kernel(&APPLY, &APPLY_VEC4), &settings, &walk.params, &operands, walk.grid)
}

impl Op for BatchNormApply {
    fn name(&self) -> &'static str {
        "batch_norm_apply"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let wrong = |found: String| Err(Error::shape("batch_norm_apply", found, "x, constants f32[5, C]"));
        let [x, of_channels, more @ ..] = inputs else {
            return wrong(format!("{} inputs", inputs.len()));
        };
        check("batch_norm_apply", x, &[])?;
        if *of_channels != constants(x) {
            return wrong(format!("x {x}, constants {of_channels}"));
        }
        // Slopes come with the constants.
        let then = if self.then == Then::Add { Then::Add } else { Then::Nothing };
        then.check("batch_norm_apply", x, more.first())?;
        Ok(vec![x.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        lower(lowering, self.then, Operand::Input(1), Operand::Input(2))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [x, constants, more @ ..] = inputs else { return Vec::new() };
        let channels = x.shape.last();
        vec![Array::from_fn(x.shape.clone(), |i| {
            let of_channel = |row: usize| constants.data[row * channels + i % channels];
            let z = (x.data[i] - of_channel(0)) * of_channel(2) + of_channel(3);
            self.then.apply(z, of_channel(4), more.first(), i)
        })]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        let elements = inputs.first().map_or(0, |x| x.shape.elements());
        let flops = if self.then == Then::Nothing { 3.0 } else { 4.0 };
        Cost::once(flops * elements as f64, inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], then: Then| {
        let shape = Shape::from(shape);
        let mut inputs = vec![normal(shape.clone(), 1.0, 1), uniform([5, shape.last()], -1.0, 1.5, 2)];
        if then == Then::Add {
            inputs.push(normal(shape, 2.0, 3));
        }
        Case::new(format!("{label}, then {then:?}"), BatchNormApply { then }, inputs)
    };
    let mut cases = Vec::new();
    for then in [Then::Nothing, Then::Prelu, Then::Add] {
        let halves: &[usize] = if then == Then::Add { &[0, 2] } else { &[0] };
        cases.extend([
            case("one row", &[1, 5], then),
            case("vectors, odd sizes", &[17, 7], then),
            case("images, odd sizes", &[2, 3, 5, 9], then),
            case("a tile and one", &[129, 65], then),
            case("channels by four", &[2, 5, 3, 8], then),
            case("a tile and four", &[37, 260], then),
            case("images, odd sizes", &[2, 3, 5, 9], then).half(halves),
            case("a tile and four", &[37, 260], then).half(halves),
            case("perf", &[32, 28, 28, 128], then).perf(),
            case("perf", &[32, 28, 28, 128], then).half(halves).perf(),
            case("perf, large", LARGE_IMAGES, then).perf_large(),
            case("perf, large", LARGE_IMAGES, then).half(halves).perf_large(),
        ]);
    }
    cases
}
