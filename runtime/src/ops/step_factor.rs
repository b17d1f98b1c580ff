//! What the gradient of a step is multiplied by: `min(1, max_norm / (norm + 1e-6))`, as in PyTorch's `clip_grad_norm_`,
//! or 0 where the step has anything that is not finite. The optimisers take 0 for "leave everything as it is": neither
//! weights nor momentum move, as if the step had not been taken. A norm that is not finite counts as one more such thing.
//!
//! Where the gradient has a loss scale (see [`loss_scale`](super::loss_scale)) that can still fall, such a step says nothing but
//! that the scale was too large: it is not taken, and does not count as a bad one.

use crate::case::{Case, OpEntry, floats, words};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `step_factor.wgsl`.
    pub struct StepFactorParams {
        /// The largest norm allowed; 0 for any.
        max_norm: f32,
        /// 1: no step after the first bad one is taken.
        latch: u32,
        /// 1: a step is bad only at the smallest loss scale.
        scaled: u32,
        /// That scale.
        smallest: f32,
    }
}

static KERNEL: Kernel = Kernel {
    shader: "step_factor",
    entry: "main",
    params: StepFactorParams::FIELDS,
    bindings: &[read("norm"), read("nonfinite"), write("halted"), read("scale"), write("factor")],
    constants: &[],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "step_factor", cases, kernels: &[&KERNEL] };

/// Records the factor f32 `[1]` of a step whose gradient has the norm `norm` f32 `[1]` and `nonfinite` u32 `[1]` elements
/// that are not finite (see [`check_finite`](super::check_finite)). The persistent `halted` u32 `[1]` counts the latter over
/// the steps; where there is a loss scale, `scale` f32 `[1]`, over those at the smallest one.
pub fn step_factor(
    record: &mut dyn Record,
    norm: TensorId,
    nonfinite: TensorId,
    halted: TensorId,
    scale: Option<TensorId>,
    config: StepFactor,
) -> Result<TensorId> {
    let mut inputs = vec![norm, nonfinite, halted];
    inputs.extend(scale);
    push_one(record, config, &inputs)
}

/// The op `step_factor`: `norm, nonfinite, halted` and perhaps `scale` `-> factor`.
#[derive(Debug, Clone, Copy)]
pub struct StepFactor {
    /// The largest norm allowed; 0 for any.
    pub max_norm: f32,
    /// Whether no step after the first bad one is taken.
    pub latch: bool,
    /// The smallest loss scale, at which a step that is not finite is a bad one; without a loss scale it always is.
    pub smallest_scale: f32,
}

impl Op for StepFactor {
    fn name(&self) -> &'static str {
        "step_factor"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let (number, count) = (TensorDesc::f32([1]), TensorDesc::u32([1]));
        let expected = [number.clone(), count.clone(), count, number.clone()];
        if !(3..=4).contains(&inputs.len()) || !expected.starts_with(inputs) {
            let expected = "norm f32[1], nonfinite u32[1], halted u32[1] and perhaps scale f32[1]";
            return Err(Error::shape("step_factor", format!("{inputs:?}"), expected));
        }
        if !(self.max_norm.is_finite() && self.max_norm >= 0.0) {
            let found = format!("max_norm {}", self.max_norm);
            return Err(Error::shape("step_factor", found, "0 or a positive number"));
        }
        Ok(vec![number])
    }

    fn updates(&self) -> &'static [usize] {
        &[2]
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let scaled = lowering.input(3).is_ok();
        let params = StepFactorParams {
            max_norm: self.max_norm,
            latch: u32::from(self.latch),
            scaled: u32::from(scaled),
            smallest: self.smallest_scale,
        };
        // Without a scale, the norm fills its place and is not read there.
        let scale = if scaled { Operand::Input(3) } else { Operand::Input(0) };
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Input(2), scale, Operand::Output(0)];
        lowering.dispatch(&KERNEL, &[], &params, &operands, [1, 1, 1])
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [norm, nonfinite, halted, scale @ ..] = inputs else { return Vec::new() };
        let max_norm = f64::from(self.max_norm);
        let wanted = if max_norm > 0.0 { (max_norm / (norm.item() + 1e-6)).min(1.0) } else { 1.0 };
        let infinite = !norm.item().is_finite();
        let halts = nonfinite.item() > 0.0 || infinite || (self.latch && halted.item() > 0.0);
        let forgiven = scale.first().is_some_and(|scale| scale.item() > f64::from(self.smallest_scale));
        let found = if infinite { nonfinite.item().max(1.0) } else { nonfinite.item() };
        let now = if forgiven { 0.0 } else { found };
        let count = (halted.item() + now).min(f64::from(u32::MAX));
        vec![Array::new([1], vec![if halts { 0.0 } else { wanted }]), Array::new([1], vec![count])]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(3.0, inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, norm: f32, max_norm: f32, latch: bool, counts: [u32; 2]| {
        let inputs = vec![floats(&[norm]), words(&counts[..1]), words(&counts[1..])];
        Case::new(label, StepFactor { max_norm, latch, smallest_scale: 1.0 }, inputs)
    };
    let scaled = |label: &str, nonfinite: u32, halted: u32, scale: f32| {
        let inputs = vec![floats(&[3.0]), words(&[nonfinite]), words(&[halted]), floats(&[scale])];
        Case::new(label, StepFactor { max_norm: 5.0, latch: true, smallest_scale: 1.0 }, inputs)
    };
    vec![
        case("within", 3.0, 5.0, true, [0, 0]),
        case("beyond", 7.0, 5.0, true, [0, 0]),
        case("zero", 0.0, 5.0, true, [0, 0]),
        case("near the guard", 2e-6, 1e-6, true, [0, 0]),
        case("huge", 1e30, 5.0, true, [0, 0]),
        case("infinite", f32::INFINITY, 5.0, true, [0, 0]),
        case("without a limit", 1e30, 0.0, true, [0, 0]),
        case("infinite, without a limit", f32::INFINITY, 0.0, false, [0, 0]),
        case("not a number", f32::NAN, 5.0, true, [0, 0]),
        case("not finite", 3.0, 5.0, true, [17, 0]),
        case("not finite, without a limit", f32::INFINITY, 0.0, false, [1, 4]),
        case("after a bad one", 3.0, 5.0, true, [0, 2]),
        case("after a bad one that is forgiven", 3.0, 5.0, false, [0, 2]),
        scaled("with a loss scale", 0, 0, 1024.0),
        scaled("not finite, and the loss scale can fall", 17, 0, 1024.0),
        scaled("not finite at the smallest loss scale", 17, 0, 1.0),
        scaled("with a loss scale, after a bad one", 0, 2, 1024.0),
        case("more than can be counted", 3.0, 5.0, true, [9, u32::MAX - 3]),
    ]
}
