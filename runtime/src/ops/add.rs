//! Elementwise sum of two tensors of the same shape, f32 or f16: `y = a + b`. Its gradient is its upstream, for both.

use crate::case::{Case, OpEntry, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Gradient, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `add.wgsl` and `add_vec4.wgsl`.
    pub struct AddParams {
        /// Elements, or vectors of four of them.
        len: u32,
        /// Elements or vectors that one workgroup adds.
        per_workgroup: u32,
    }
}

const ADD_KERNEL: Kernel = Kernel {
    shader: "add",
    entry: "main",
    params: AddParams::FIELDS,
    bindings: &[read("a"), read("b"), write("y")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};
static ADD: Kernel = ADD_KERNEL;
static ADD_VEC4: Kernel = Kernel { shader: "add_vec4", ..ADD_KERNEL };

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "add", cases, kernels: &[&ADD, &ADD_VEC4] };

/// Invocations of a workgroup, and how many elements or vectors it adds, on a GPU.
const WORKGROUP: [usize; 2] = [256, 1024];
/// The same on a CPU adapter: one subgroup of llvmpipe, which then walks memory without gaps.
const CPU_WORKGROUP: [usize; 2] = [8, 1024];

/// Records `a + b`, both of the same shape.
pub fn add(record: &mut dyn Record, a: TensorId, b: TensorId) -> Result<TensorId> {
    push_one(record, Add, &[a, b])
}

/// The op `add`.
#[derive(Debug, Clone, Copy)]
pub struct Add;

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        match inputs {
            [a, b] if a == b && a.is_float() => Ok(vec![a.clone()]),
            [a, b] => Err(Error::shape(
                "add",
                format!("{a} and {b}"),
                "two tensors of floats, alike in shape and type",
            )),
            _ => Err(Error::shape("add", format!("{} inputs", inputs.len()), "a, b")),
        }
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let elements = lowering.input(0)?.shape.elements();
        let (kernel, len) =
            if elements.is_multiple_of(4) { (&ADD_VEC4, elements / 4) } else { (&ADD, elements) };
        let [workgroup, per_workgroup] = if lowering.caps().cpu { CPU_WORKGROUP } else { WORKGROUP };
        let params = AddParams { len: lowering.size(len)?, per_workgroup: lowering.size(per_workgroup)? };
        let grid = lowering.fold(len.div_ceil(per_workgroup))?;
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Output(0)];
        lowering.dispatch(kernel, &[("WORKGROUP", workgroup as f64)], &params, &operands, grid)
    }

    fn gradient(&self, gradient: &mut Gradient<'_>) -> Result<()> {
        if let Some(dy) = gradient.upstream(0) {
            gradient.set(0, dy);
            gradient.set(1, dy);
        }
        Ok(())
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let (a, b) = (&inputs[0], &inputs[1]);
        vec![Array::from_fn(a.shape.clone(), |i| a.data[i] + b.data[i])]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(outputs.iter().map(|y| y.shape.elements() as f64).sum(), inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, shape: &[usize], scale: f32| {
        Case::new(label, Add, vec![normal(shape.to_vec(), scale, 1), normal(shape.to_vec(), scale, 2)])
    };
    vec![
        case("odd sizes", &[3, 7, 11], 1.0).differentiate(&[0, 1]),
        case("one element", &[1], 1.0),
        case("several workgroups", &[4099], 1e30),
        case("tiny", &[5], 1e-30),
        case("one vector", &[4], 1.0),
        case("vectors, several workgroups", &[3, 5, 7, 44], 1.0),
        case("odd sizes", &[3, 7, 11], 1.0).half(&[0, 1]),
        case("vectors", &[3, 5, 7, 44], 1e3).half(&[0, 1]),
        case("overflow", &[64], 5e4).half(&[0, 1]),
        case("perf", &[32, 112, 112, 64], 1.0).perf(),
    ]
}
