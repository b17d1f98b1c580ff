//! Each row of a matrix times a factor of its own: `y[r, c] = x[r, c] * factors[r]`, `[R, C], [R] -> [R, C]`.
//!
//! The gradient of `x` is the same op; `factors` have none.

use crate::case::{Case, OpEntry, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `scale_rows.wgsl`.
    pub struct ScaleRowsParams {
        /// Elements.
        len: u32,
        /// Elements of a row.
        columns: u32,
    }
}

static SCALE_ROWS: Kernel = Kernel {
    shader: "scale_rows",
    entry: "main",
    params: ScaleRowsParams::FIELDS,
    bindings: &[read("x"), read("factors"), write("y")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "scale_rows", cases, kernels: &[&SCALE_ROWS] };

const WORKGROUP: usize = 256;

/// Records the rows of `x` `[R, C]` times `factors` `[R]` -> `[R, C]`.
pub fn scale_rows(record: &mut dyn Record, x: TensorId, factors: TensorId) -> Result<TensorId> {
    push_one(record, ScaleRows, &[x, factors])
}

/// The op `scale_rows`.
#[derive(Debug, Clone, Copy)]
pub struct ScaleRows;

impl Op for ScaleRows {
    fn name(&self) -> &'static str {
        "scale_rows"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, factors] = inputs else {
            return Err(Error::shape("scale_rows", format!("{} inputs", inputs.len()), "x, factors"));
        };
        match x.shape.dims() {
            &[rows, _] if *x == TensorDesc::f32(x.shape.clone()) && *factors == TensorDesc::f32([rows]) => {
                Ok(vec![x.clone()])
            }
            _ => Err(Error::shape("scale_rows", format!("x {x}, factors {factors}"), "f32[R, C] and f32[R]")),
        }
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let shape = &lowering.input(0)?.shape;
        let len = shape.elements();
        let params = ScaleRowsParams { len: lowering.size(len)?, columns: lowering.size(shape.last())? };
        let grid = lowering.fold(len.div_ceil(WORKGROUP))?;
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Output(0)];
        lowering.dispatch(&SCALE_ROWS, &[("WORKGROUP", WORKGROUP as f64)], &params, &operands, grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        if gradient.needs(1) {
            return Err(Error::graph(
                "the factors of scale_rows have no gradient",
                "keep them out of the path from the loss to the trained tensors",
            ));
        }
        if let Some(dy) = gradient.upstream(0) {
            let factors = gradient.input(1)?;
            let dx = scale_rows(gradient.record(), dy, factors)?;
            gradient.set(0, dx);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, factors) = (&inputs[0], &inputs[1]);
        let columns = x.shape.last();
        vec![Array::from_fn(x.shape.clone(), |i| x.data[i] * factors.data[i / columns])]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(outputs.iter().map(|y| y.shape.elements() as f64).sum(), inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, rows: usize, columns: usize| {
        Case::new(label, ScaleRows, vec![normal([rows, columns], 1.0, 1), normal([rows], 1.0, 2)])
    };
    vec![
        case("odd sizes", 7, 13).differentiate(&[0]),
        case("one column", 300, 1).differentiate(&[0]),
        case("one element", 1, 1),
        case("several workgroups", 5, 1031),
        case("perf", 512, 512).perf(),
    ]
}
