//! The same elements under another shape. Shares the memory of its input; no kernel runs.

use crate::case::{Case, OpEntry, normal};
use crate::host::Array;
use crate::op::{Cost, Gradient, Lowering, Op, Record, TensorId, push_one};
use crate::{Error, Result, Shape, TensorDesc};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "reshape", cases, kernels: &[] };

/// Records `x` seen as `shape`, which must have as many elements.
pub fn reshape(record: &mut dyn Record, x: TensorId, shape: impl Into<Shape>) -> Result<TensorId> {
    push_one(record, Reshape { shape: shape.into() }, &[x])
}

/// The op `reshape`.
#[derive(Debug, Clone)]
pub struct Reshape {
    /// The shape of the output.
    pub shape: Shape,
}

impl Op for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        match inputs {
            [x] if x.shape.elements() == self.shape.elements() => {
                Ok(vec![TensorDesc { shape: self.shape.clone(), dtype: x.dtype }])
            }
            [x] => Err(Error::shape(
                "reshape",
                format!("{x} to {}", self.shape),
                format!("{} elements", x.shape.elements()),
            )),
            _ => Err(Error::shape("reshape", format!("{} inputs", inputs.len()), "x")),
        }
    }

    fn aliases_input(&self) -> bool {
        true
    }

    fn lower(&self, _lowering: &mut Lowering<'_>) -> Result<()> {
        Ok(())
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        let x = gradient.input(0)?;
        let shape = gradient.record().desc(x).shape.clone();
        let dx = reshape(gradient.record(), dy, shape)?;
        gradient.set(0, dx);
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        vec![Array::new(self.shape.clone(), inputs[0].data.clone())]
    }

    fn cost(&self, _inputs: &[TensorDesc], _outputs: &[TensorDesc]) -> Cost {
        Cost::default()
    }
}

fn cases() -> Vec<Case> {
    vec![
        Case::new("flatten", Reshape { shape: [3, 70].into() }, vec![normal([3, 5, 2, 7], 1.0, 1)])
            .differentiate(&[0]),
        Case::new("add dimensions", Reshape { shape: [1, 13, 1].into() }, vec![normal([13], 1.0, 2)]),
    ]
}
