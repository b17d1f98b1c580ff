//! A tensor times a constant: `y = factor * x`. The gradient is the same op.

use crate::case::{Case, OpEntry, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `scale.wgsl`.
    pub struct ScaleParams {
        /// Elements.
        len: u32,
        /// Factor.
        factor: f32,
    }
}

static SCALE: Kernel = Kernel {
    shader: "scale",
    entry: "main",
    params: ScaleParams::FIELDS,
    bindings: &[read("x"), write("y")],
    constants: &[],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "scale", cases, kernels: &[&SCALE] };

/// Elements that one workgroup of `scale.wgsl` handles.
const PER_GROUP: usize = 4 * 256;

/// Records `factor * x`, of the shape of `x`.
pub fn scale(record: &mut dyn Record, x: TensorId, factor: f32) -> Result<TensorId> {
    push_one(record, Scale { factor }, &[x])
}

/// The op `scale`.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// The factor.
    pub factor: f32,
}

impl Op for Scale {
    fn name(&self) -> &'static str {
        "scale"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        match inputs {
            [x] => Ok(vec![TensorDesc::f32(x.shape.clone())]),
            _ => Err(Error::shape("scale", format!("{} inputs", inputs.len()), "x")),
        }
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let len = lowering.input(0)?.shape.elements();
        let params = ScaleParams { len: lowering.size(len)?, factor: self.factor };
        let grid = lowering.fold(len.div_ceil(PER_GROUP))?;
        lowering.dispatch(&SCALE, &[], &params, &[Operand::Input(0), Operand::Output(0)], grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        if let Some(dy) = gradient.upstream(0) {
            let dx = scale(gradient.record(), dy, self.factor)?;
            gradient.set(0, dx);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let x = &inputs[0];
        vec![Array::from_fn(x.shape.clone(), |i| f64::from(self.factor) * x.data[i])]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(outputs.iter().map(|y| y.shape.elements() as f64).sum(), inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], factor: f32| {
        Case::new(label, Scale { factor }, vec![normal(shape.to_vec(), 1.0, 1)])
    };
    vec![
        case("odd sizes", &[3, 7, 11], -0.3).differentiate(&[0]),
        case("one element", &[1], 2.0),
        case("several workgroups", &[4099], 1e30),
        case("tiny", &[5], 1e-30),
        case("zero", &[6], 0.0),
        case("perf", &[32, 112, 112, 64], 0.5).perf(),
    ]
}
