//! A tensor whose elements are all the same constant: the gradient of a loss with respect to itself, to begin with.

use crate::case::{Case, OpEntry};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, write};
use crate::op::{Cost, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, Shape, TensorDesc};

crate::param_block! {
    /// Parameters of `fill.wgsl`.
    pub struct FillParams {
        /// Elements.
        len: u32,
        /// Their value.
        value: f32,
    }
}

static FILL: Kernel = Kernel {
    shader: "fill",
    entry: "main",
    params: FillParams::FIELDS,
    bindings: &[write("y")],
    constants: &[],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "fill", cases, kernels: &[&FILL] };

/// Workgroup size of `fill.wgsl`.
const WORKGROUP: usize = 256;

/// Records an f32 tensor of `shape` filled with `value`.
pub fn fill(record: &mut dyn Record, shape: Shape, value: f32) -> Result<TensorId> {
    push_one(record, Fill { shape, value }, &[])
}

/// The op `fill`.
#[derive(Debug, Clone)]
pub struct Fill {
    /// The tensor's shape.
    pub shape: Shape,
    /// Its value.
    pub value: f32,
}

impl Op for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        if !inputs.is_empty() {
            return Err(Error::shape("fill", format!("{} inputs", inputs.len()), "none"));
        }
        Ok(vec![TensorDesc::f32(self.shape.clone())])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let len = self.shape.elements();
        let params = FillParams { len: lowering.size(len)?, value: self.value };
        let grid = lowering.fold(len.div_ceil(WORKGROUP))?;
        lowering.dispatch(&FILL, &[], &params, &[Operand::Output(0)], grid)
    }

    fn reference(&self, _inputs: &[Array]) -> Vec<Array> {
        vec![Array::from_fn(self.shape.clone(), |_| f64::from(self.value))]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(0.0, inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], value: f32| {
        Case::new(label, Fill { shape: shape.into(), value }, Vec::new())
    };
    vec![
        case("one element", &[1], 1.0),
        case("odd sizes", &[3, 257], -2.5),
        case("huge", &[7], 1e38),
        case("tiny", &[1031], 1e-38),
    ]
}
