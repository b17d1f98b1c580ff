//! A bias added to each row: `y[..., c] = x[..., c] + bias[c]`, `[..., C], [C] -> [..., C]`.
//!
//! The gradient of `x` is that of y, that of `bias` is its sum over the rows.

use crate::case::{Case, OpEntry, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::ops::sum_rows::sum_rows;
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `add_bias.wgsl`.
    pub struct AddBiasParams {
        /// Elements.
        len: u32,
        /// Elements of a row.
        columns: u32,
    }
}

static ADD_BIAS: Kernel = Kernel {
    shader: "add_bias",
    entry: "main",
    params: AddBiasParams::FIELDS,
    bindings: &[read("x"), read("bias"), write("y")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "add_bias", cases, kernels: &[&ADD_BIAS] };

const WORKGROUP: usize = 256;

/// Records `x` `[..., C]` plus `bias` `[C]` -> `[..., C]`.
pub fn add_bias(record: &mut dyn Record, x: TensorId, bias: TensorId) -> Result<TensorId> {
    push_one(record, AddBias, &[x, bias])
}

/// The op `add_bias`.
#[derive(Debug, Clone, Copy)]
pub struct AddBias;

impl Op for AddBias {
    fn name(&self) -> &'static str {
        "add_bias"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [x, bias] = inputs else {
            return Err(Error::shape("add_bias", format!("{} inputs", inputs.len()), "x, bias"));
        };
        let floats = *x == TensorDesc::f32(x.shape.clone()) && x.shape.rank() > 0;
        if !floats || *bias != TensorDesc::f32([x.shape.last()]) {
            return Err(Error::shape("add_bias", format!("x {x}, bias {bias}"), "f32[..., C] and f32[C]"));
        }
        Ok(vec![x.clone()])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let shape = &lowering.input(0)?.shape;
        let len = shape.elements();
        let params = AddBiasParams { len: lowering.size(len)?, columns: lowering.size(shape.last())? };
        let grid = lowering.fold(len.div_ceil(WORKGROUP))?;
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Output(0)];
        lowering.dispatch(&ADD_BIAS, &[("WORKGROUP", WORKGROUP as f64)], &params, &operands, grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        let Some(dy) = gradient.upstream(0) else { return Ok(()) };
        if gradient.needs(0) {
            gradient.set(0, dy);
        }
        if gradient.needs(1) {
            let dbias = sum_rows(gradient.record(), dy, 1.0)?;
            gradient.set(1, dbias);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (x, bias) = (&inputs[0], &inputs[1]);
        let columns = x.shape.last();
        vec![Array::from_fn(x.shape.clone(), |i| x.data[i] + bias.data[i % columns])]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(outputs.iter().map(|y| y.shape.elements() as f64).sum(), inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, rows: usize, columns: usize| {
        Case::new(label, AddBias, vec![normal([rows, columns], 1.0, 1), normal([columns], 1.0, 2)])
    };
    let four = vec![normal([2, 3, 5, 6], 1.0, 3), normal([6], 1e3, 4)];
    vec![
        case("odd sizes", 7, 13).differentiate(&[0, 1]),
        case("one column", 300, 1).differentiate(&[0, 1]),
        case("one element", 1, 1).differentiate(&[0, 1]),
        case("several workgroups", 5, 1031),
        Case::new("channels of an image, a large bias", AddBias, four).differentiate(&[0, 1]),
        case("perf", 512, 512).perf(),
    ]
}
