//! The dynamic loss scale of mixed precision, kept on the GPU: what the gradient is multiplied by before it is stored in
//! 16 bits, so that small values do not vanish (Micikevicius et al. 2018, arXiv 1710.03740).
//!
//! Where a step's gradient is not finite: `scale = max(scale * backoff, smallest)`. After `interval` finite ones in a row:
//! `scale = min(scale * growth, largest)`. The rule, and the defaults, of PyTorch's `GradScaler`, but for the bounds, which it
//! does not have.

use crate::case::{Case, OpEntry, floats, words};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `loss_scale.wgsl`.
    pub struct LossScaleParams {
        /// Finite steps in a row after which the scale grows.
        interval: u32,
        /// By how much.
        growth: f32,
        /// What it is multiplied by after a step that is not finite.
        backoff: f32,
        /// What it never falls below.
        smallest: f32,
        /// What it never exceeds.
        largest: f32,
    }
}

static KERNEL: Kernel = Kernel {
    shader: "loss_scale",
    entry: "main",
    params: LossScaleParams::FIELDS,
    bindings: &[read("nonfinite"), write("scale"), write("good"), write("used")],
    constants: &[],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "loss_scale", cases, kernels: &[&KERNEL] };

/// Records the update of the persistent `scale` f32 `[1]` after a step with `nonfinite` u32 `[1]` elements that are not finite.
/// The persistent `good` u32 `[1]` counts the finite steps since the scale last changed. Returns the scale of the step, f32
/// `[1]`.
pub fn loss_scale(
    record: &mut dyn Record,
    nonfinite: TensorId,
    scale: TensorId,
    good: TensorId,
    config: LossScale,
) -> Result<TensorId> {
    push_one(record, config, &[nonfinite, scale, good])
}

/// The op `loss_scale`: `nonfinite, scale, good -> used`, the scale as it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    /// Finite steps in a row after which the scale grows.
    pub interval: u32,
    /// By how much.
    pub growth: f32,
    /// What it is multiplied by after a step that is not finite.
    pub backoff: f32,
    /// What it never falls below.
    pub smallest: f32,
    /// What it never exceeds.
    pub largest: f32,
}

impl LossScale {
    /// What a run begins with.
    pub const INITIAL: f32 = 65536.0;
}

impl Default for LossScale {
    fn default() -> Self {
        Self { interval: 2000, growth: 2.0, backoff: 0.5, smallest: 1.0, largest: 16_777_216.0 }
    }
}

impl Op for LossScale {
    fn name(&self) -> &'static str {
        "loss_scale"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let (number, count) = (TensorDesc::f32([1]), TensorDesc::u32([1]));
        if inputs != [count.clone(), number.clone(), count] {
            let expected = "nonfinite u32[1], scale f32[1], good u32[1]";
            return Err(Error::shape("loss_scale", format!("{inputs:?}"), expected));
        }
        Ok(vec![number])
    }

    fn updates(&self) -> &'static [usize] {
        &[1, 2]
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let params = LossScaleParams {
            interval: self.interval,
            growth: self.growth,
            backoff: self.backoff,
            smallest: self.smallest,
            largest: self.largest,
        };
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Input(2), Operand::Output(0)];
        lowering.dispatch(&KERNEL, &[], &params, &operands, [1, 1, 1])
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [nonfinite, scale, good] = inputs else { return Vec::new() };
        let one = |value: f64| Array::new([1], vec![value]);
        let [growth, backoff, smallest, largest] =
            [self.growth, self.backoff, self.smallest, self.largest].map(f64::from);
        let (scale, run) = (scale.item(), good.item() + 1.0);
        if nonfinite.item() > 0.0 {
            vec![one(scale), one((scale * backoff).max(smallest)), one(0.0)]
        } else if run < f64::from(self.interval) {
            vec![one(scale), one(scale), one(run)]
        } else {
            vec![one(scale), one((scale * growth).min(largest)), one(0.0)]
        }
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(1.0, inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, nonfinite: u32, scale: f32, good: u32| {
        let inputs = vec![words(&[nonfinite]), floats(&[scale]), words(&[good])];
        Case::new(label, LossScale { interval: 10, ..LossScale::default() }, inputs)
    };
    vec![
        case("finite", 0, 65536.0, 3),
        case("finite for long enough", 0, 65536.0, 9),
        case("not finite", 17, 65536.0, 9),
        case("not finite, at the bottom", 1, 1.0, 0),
        case("finite, at the top", 0, 16_777_216.0, 9),
    ]
}
