//! What the gradient of a step is multiplied by: `min(1, max_norm / (norm + 1e-6))`, as in PyTorch's `clip_grad_norm_`,
//! or 0 where the step has anything that is not finite. The optimisers take 0 for "leave everything as it is": neither
//! weights nor momentum move, as if the step had not been taken. A norm that is not finite counts as one more such thing.

use crate::case::{Case, OpEntry, floats, words};
use crate::host::Array;
use crate::kernel::{Kernel, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `step_factor.wgsl`.
    pub struct StepFactorParams {
        /// The largest norm allowed; 0 for any.
        max_norm: f32,
        /// 1: no step after the first bad one is taken.
        latch: u32,
    }
}

static KERNEL: Kernel = Kernel {
    shader: "step_factor",
    entry: "main",
    params: StepFactorParams::FIELDS,
    bindings: &[read("norm"), read("nonfinite"), write("halted"), write("factor")],
    constants: &[],
    subgroups: false,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "step_factor", cases, kernels: &[&KERNEL] };

/// Records the factor f32 `[1]` of a step whose gradient has the norm `norm` f32 `[1]` and `nonfinite` u32 `[1]` elements
/// that are not finite (see [`check_finite`](super::check_finite)). The persistent `halted` u32 `[1]` counts the latter over
/// the steps.
pub fn step_factor(
    record: &mut dyn Record,
    norm: TensorId,
    nonfinite: TensorId,
    halted: TensorId,
    config: StepFactor,
) -> Result<TensorId> {
    push_one(record, config, &[norm, nonfinite, halted])
}

/// The op `step_factor`: `norm, nonfinite, halted -> factor`.
#[derive(Debug, Clone, Copy)]
pub struct StepFactor {
    /// The largest norm allowed; 0 for any.
    pub max_norm: f32,
    /// Whether no step after the first bad one is taken.
    pub latch: bool,
}

impl Op for StepFactor {
    fn name(&self) -> &'static str {
        "step_factor"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let (number, count) = (TensorDesc::f32([1]), TensorDesc::u32([1]));
        if inputs != [number.clone(), count.clone(), count] {
            let expected = "norm f32[1], nonfinite u32[1], halted u32[1]";
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
        let params = StepFactorParams { max_norm: self.max_norm, latch: u32::from(self.latch) };
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Input(2), Operand::Output(0)];
        lowering.dispatch(&KERNEL, &[], &params, &operands, [1, 1, 1])
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [norm, nonfinite, halted] = inputs else { return Vec::new() };
        let max_norm = f64::from(self.max_norm);
        let wanted = if max_norm > 0.0 { (max_norm / (norm.item() + 1e-6)).min(1.0) } else { 1.0 };
        let infinite = !norm.item().is_finite();
        let halts = nonfinite.item() > 0.0 || infinite || (self.latch && halted.item() > 0.0);
        let now = if infinite { nonfinite.item().max(1.0) } else { nonfinite.item() };
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
        Case::new(label, StepFactor { max_norm, latch }, inputs)
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
        case("more than can be counted", 3.0, 5.0, true, [9, u32::MAX - 3]),
    ]
}
