//! The factor that clips a gradient to a largest norm: `min(1, max_norm / (norm + 1e-6))`, as in PyTorch's
//! `clip_grad_norm_`. An infinite norm gives 0 and a NaN a NaN: a step that overflowed is found by
//! [`check_finite`](super::check_finite), not here.

use crate::case::{Case, OpEntry, floats};
use crate::host::Array;
use crate::kernel::{Kernel, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `clip_factor.wgsl`.
    pub struct ClipFactorParams {
        /// The largest norm allowed.
        max_norm: f32,
    }
}

static KERNEL: Kernel = Kernel {
    shader: "clip_factor",
    entry: "main",
    params: ClipFactorParams::FIELDS,
    bindings: &[read("norm"), write("factor")],
    constants: &[],
    subgroups: false,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "clip_factor", cases, kernels: &[&KERNEL] };

/// Records `min(1, max_norm / (norm + 1e-6))`: f32 `[1]` -> f32 `[1]`.
pub fn clip_factor(record: &mut dyn Record, norm: TensorId, max_norm: f32) -> Result<TensorId> {
    push_one(record, ClipFactor { max_norm }, &[norm])
}

/// The op `clip_factor`.
#[derive(Debug, Clone, Copy)]
pub struct ClipFactor {
    /// The largest norm allowed.
    pub max_norm: f32,
}

impl Op for ClipFactor {
    fn name(&self) -> &'static str {
        "clip_factor"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [norm] = inputs else {
            return Err(Error::shape("clip_factor", format!("{} inputs", inputs.len()), "norm"));
        };
        if *norm != TensorDesc::f32([1]) {
            return Err(Error::shape("clip_factor", format!("norm {norm}"), "f32[1]"));
        }
        if !(self.max_norm.is_finite() && self.max_norm > 0.0) {
            return Err(Error::shape(
                "clip_factor",
                format!("max_norm {}", self.max_norm),
                "a positive number",
            ));
        }
        Ok(vec![norm.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let params = ClipFactorParams { max_norm: self.max_norm };
        lowering.dispatch(&KERNEL, &[], &params, &[Operand::Input(0), Operand::Output(0)], [1, 1, 1])
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let max_norm = f64::from(self.max_norm);
        inputs
            .iter()
            .map(|norm| Array::from_fn([1], |_| (max_norm / (norm.item() + 1e-6)).min(1.0)))
            .collect()
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(3.0, inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, norm: f32, max_norm: f32| {
        Case::new(label, ClipFactor { max_norm }, vec![floats(&[norm])])
    };
    vec![
        case("within", 3.0, 5.0),
        case("beyond", 7.0, 5.0),
        case("zero", 0.0, 5.0),
        case("near the guard", 2e-6, 1e-6),
        case("huge", 1e30, 5.0),
        case("infinite", f32::INFINITY, 5.0),
    ]
}
