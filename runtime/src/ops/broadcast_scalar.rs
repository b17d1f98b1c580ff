//! A one-element tensor spread over a shape: `y[i] = factor * x`. Its gradient is `sum_all`, whose gradient it is.

use crate::case::{Case, OpEntry, floats};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::ops::{reshape, sum_all};
use crate::{Error, Result, Shape, TensorDesc};

crate::param_block! {
    /// Parameters of `broadcast_scalar.wgsl`.
    pub struct BroadcastScalarParams {
        /// Elements of `y`.
        len: u32,
        /// Factor.
        factor: f32,
    }
}

static BROADCAST_SCALAR: Kernel = Kernel {
    shader: "broadcast_scalar",
    entry: "main",
    params: BroadcastScalarParams::FIELDS,
    bindings: &[read("x"), write("y")],
    constants: &[],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "broadcast_scalar", cases, kernels: &[&BROADCAST_SCALAR] };

/// Workgroup size of `broadcast_scalar.wgsl`.
const WORKGROUP: usize = 256;

/// Records a tensor of `shape` whose elements are all `factor * x`, with `x` of one element.
pub fn broadcast_scalar(
    record: &mut dyn Record,
    x: TensorId,
    shape: impl Into<Shape>,
    factor: f32,
) -> Result<TensorId> {
    push_one(record, BroadcastScalar { shape: shape.into(), factor }, &[x])
}

/// The op `broadcast_scalar`.
#[derive(Debug, Clone)]
pub struct BroadcastScalar {
    /// The shape of the output.
    pub shape: Shape,
    /// The factor.
    pub factor: f32,
}

impl Op for BroadcastScalar {
    fn name(&self) -> &'static str {
        "broadcast_scalar"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        match inputs {
            [x] if x.shape.elements() == 1 => Ok(vec![TensorDesc::f32(self.shape.clone())]),
            [x] => Err(Error::shape("broadcast_scalar", format!("x {x}"), "one element")),
            _ => Err(Error::shape("broadcast_scalar", format!("{} inputs", inputs.len()), "x")),
        }
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let len = self.shape.elements();
        let params = BroadcastScalarParams { len: lowering.size(len)?, factor: self.factor };
        let grid = lowering.fold(len.div_ceil(WORKGROUP))?;
        lowering.dispatch(&BROADCAST_SCALAR, &[], &params, &[Operand::Input(0), Operand::Output(0)], grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        let x = gradient.input(0)?;
        let record = gradient.record();
        let shape = record.desc(x).shape.clone();
        let sum = sum_all::sum_all(record, dy, self.factor)?;
        let dx = if record.desc(sum).shape == shape { sum } else { reshape::reshape(record, sum, shape)? };
        gradient.set(0, dx);
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![Array::from_fn(self.shape.clone(), |_| f64::from(self.factor) * inputs[0].item())]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(outputs.iter().map(|y| y.shape.elements() as f64).sum(), inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], factor: f32| {
        Case::new(label, BroadcastScalar { shape: shape.into(), factor }, vec![floats(&[1.7])])
    };
    vec![
        case("one element", &[1], 1.0).differentiate(&[0]),
        case("odd sizes", &[3, 5, 7], -0.25).differentiate(&[0]),
        case("several workgroups", &[1031], 1e30),
        case("perf", &[32, 112, 112, 64], 0.5).perf(),
    ]
}
