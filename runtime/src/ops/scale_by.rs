//! A tensor times a number that is computed on the GPU: `y = x * factor`, or `y = x / factor`, for x of any shape and a
//! factor of one element. Its gradient with respect to x is the same op; that with respect to the factor is not offered.

use crate::case::{Case, OpEntry, floats, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `scale_by.wgsl`.
    pub struct ScaleByParams {
        /// Elements.
        len: u32,
        /// 1: divide.
        divide: u32,
    }
}

static KERNEL: Kernel = Kernel {
    shader: "scale_by",
    entry: "main",
    params: ScaleByParams::FIELDS,
    bindings: &[read("x"), read("factor"), write("y")],
    constants: &[],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "scale_by", cases, kernels: &[&KERNEL] };

/// Elements that one workgroup handles.
const PER_GROUP: usize = 4 * 256;

/// Records `x * factor`, of the shape of `x`, with `factor` f32 `[1]`.
pub fn scale_by(record: &mut dyn Record, x: TensorId, factor: TensorId) -> Result<TensorId> {
    push_one(record, ScaleBy { divide: false }, &[x, factor])
}

/// Records `x / factor`, of the shape of `x`, with `factor` f32 `[1]`.
pub fn divide_by(record: &mut dyn Record, x: TensorId, factor: TensorId) -> Result<TensorId> {
    push_one(record, ScaleBy { divide: true }, &[x, factor])
}

/// The op `scale_by`: `x, factor -> y`.
#[derive(Debug, Clone, Copy)]
pub struct ScaleBy {
    /// Whether x is divided by the factor.
    pub divide: bool,
}

impl Op for ScaleBy {
    fn name(&self) -> &'static str {
        "scale_by"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        match inputs {
            [x, factor] if *x == TensorDesc::f32(x.shape.clone()) && *factor == TensorDesc::f32([1]) => {
                Ok(vec![x.clone()])
            }
            other => Err(Error::shape("scale_by", format!("{other:?}"), "x, f32, and factor f32[1]")),
        }
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let len = lowering.input(0)?.shape.elements();
        let params = ScaleByParams { len: lowering.size(len)?, divide: u32::from(self.divide) };
        let grid = lowering.fold(len.div_ceil(PER_GROUP))?;
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Output(0)];
        lowering.dispatch(&KERNEL, &[], &params, &operands, grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        if gradient.needs(1) {
            return Err(Error::graph(
                "op scale_by has no gradient with respect to its factor",
                "keep what is trained out of it",
            ));
        }
        let factor = gradient.input(1)?;
        if let Some(dy) = gradient.upstream(0) {
            let dx = push_one(gradient.record(), *self, &[dy, factor])?;
            gradient.set(0, dx);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, factor) = (&inputs[0], inputs[1].item());
        let of = |v: f64| if self.divide { v / factor } else { v * factor };
        vec![Array::from_fn(x.shape.clone(), |i| of(x.data[i]))]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(outputs.iter().map(|y| y.shape.elements() as f64).sum(), inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], factor: f32, divide: bool| {
        Case::new(label, ScaleBy { divide }, vec![normal(shape.to_vec(), 1.0, 1), floats(&[factor])])
    };
    vec![
        case("odd sizes", &[3, 7, 11], -0.3, false).differentiate(&[0]),
        case("odd sizes, divided", &[3, 7, 11], -0.3, true).differentiate(&[0]),
        case("several workgroups", &[4099], 65536.0, false),
        case("several workgroups, divided", &[4099], 65536.0, true),
        case("one element", &[1], 1e30, false),
        case("by zero", &[6], 0.0, false),
        case("perf", &[128, 512], 65536.0, false).perf(),
    ]
}
