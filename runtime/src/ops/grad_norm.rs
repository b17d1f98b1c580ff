//! The L2 norm of several tensors taken together, as for clipping: `sqrt(sum of all squares)` -> f32 `[1]`.
//!
//! Two stages in a fixed order. Squares of values of 2^32 and more are summed apart, scaled down, so that the norm
//! overflows only where f32 cannot hold it (after Blue 1978, "A portable Fortran program to find the Euclidean norm").

use std::sync::Arc;

use crate::case::{Case, LARGE_VECTOR, OpEntry, constant, normal};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Bound, Cost, Lowering, Op, Operand, Record, TensorId};
use crate::{Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of the first stage of a reduction of flat tensors.
    pub struct ShareParams {
        /// Elements of the part of the tensor.
        len: u32,
        /// Neighbours that a workgroup takes.
        per_workgroup: u32,
        /// The first workgroup's place among the partial results.
        first: u32,
    }
}

crate::param_block! {
    /// Parameters of the second stage.
    pub struct FinishParams {
        /// Partial results.
        len: u32,
    }
}

static SQUARES: Kernel = Kernel {
    shader: "grad_norm",
    entry: "main",
    params: ShareParams::FIELDS,
    bindings: &[read("x"), write("partial")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// `grad_norm_finish.wgsl`, also the second stage of ops that leave partial sums of squares themselves.
pub static FINISH: Kernel = Kernel {
    shader: "grad_norm_finish",
    entry: "main",
    params: FinishParams::FIELDS,
    bindings: &[read("partial"), write("norm")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "grad_norm", cases, kernels: &[&SQUARES, &FINISH] };

/// Invocations of a workgroup, and the fewest elements that it takes, on a GPU.
const WORKGROUP: usize = 256;
const PER_WORKGROUP: usize = 16 * WORKGROUP;
/// The most workgroups a range on a GPU: enough to fill it.
const MOST: usize = 512;
/// The same on a CPU adapter: one subgroup of llvmpipe, which then walks memory without gaps.
const CPU_WORKGROUP: usize = 8;
const CPU_PER_WORKGROUP: usize = 16_384;

/// Lowers a reduction of all elements of all inputs to output 0 by `stage`, which leaves `partial_bytes` bytes a
/// workgroup, and `finish`, one workgroup that gathers them. Tensors beyond the binding limit go in ranges.
pub(super) fn lower_reduction(
    lowering: &mut Lowering<'_>,
    inputs: usize,
    stage: &'static Kernel,
    finish: &'static Kernel,
    partial_bytes: u64,
) -> Result<()> {
    let cpu = lowering.caps().cpu;
    let mut shares = Vec::new();
    let mut total = 0;
    for input in 0..inputs {
        for range in lowering.caps().ranges(lowering.input(input)?) {
            let elements = (range.1 / 4) as usize;
            let per_workgroup =
                if cpu { CPU_PER_WORKGROUP } else { elements.div_ceil(MOST).max(PER_WORKGROUP) };
            shares.push((
                Bound { operand: Operand::Input(input), range: Some(range) },
                elements,
                per_workgroup,
            ));
            total += elements.div_ceil(per_workgroup);
        }
    }
    let constants = [("WORKGROUP", if cpu { CPU_WORKGROUP } else { WORKGROUP } as f64)];
    let partial = lowering.workspace(partial_bytes * total as u64);
    let mut first = 0;
    for (bound, elements, per_workgroup) in shares {
        let groups = elements.div_ceil(per_workgroup);
        let params = ShareParams {
            len: lowering.size(elements)?,
            per_workgroup: lowering.size(per_workgroup)?,
            first: lowering.size(first)?,
        };
        let bindings = [bound, Bound { operand: partial, range: None }];
        let grid = [lowering.size(groups)?, 1, 1];
        lowering.dispatch_ranges(stage, &constants, &params, &bindings, grid)?;
        first += groups;
    }
    lower_finish(lowering, finish, partial, Operand::Output(0), total)
}

/// Dispatches the second stage of a reduction: `finish` gathers `count` partial results into `to`.
pub fn lower_finish(
    lowering: &mut Lowering<'_>,
    finish: &'static Kernel,
    partial: Operand,
    to: Operand,
    count: usize,
) -> Result<()> {
    let params = FinishParams { len: lowering.size(count)? };
    lowering.dispatch(finish, &[("WORKGROUP", WORKGROUP as f64)], &params, &[partial, to], [1, 1, 1])
}

/// Fails unless there is at least one input, and all are f32 and not empty.
pub(super) fn check_inputs(op: &str, inputs: &[TensorDesc]) -> Result<()> {
    if inputs.is_empty() {
        return Err(Error::shape(op, "no inputs", "at least one tensor"));
    }
    match inputs.iter().find(|x| **x != TensorDesc::f32(x.shape.clone()) || x.shape.elements() == 0) {
        Some(x) => Err(Error::shape(op, format!("input {x}"), "f32 tensors that are not empty")),
        None => Ok(()),
    }
}

/// Records the norm of all elements of `tensors`, f32 of any shapes, taken together: -> f32 `[1]`.
pub fn grad_norm(record: &mut dyn Record, tensors: &[TensorId]) -> Result<TensorId> {
    match record.push(Arc::new(GradNorm), tensors)?.as_slice() {
        [norm] => Ok(*norm),
        outputs => Err(Error::shape("grad_norm", format!("{} outputs", outputs.len()), "one output")),
    }
}

/// The op `grad_norm`: any number of tensors -> norm.
#[derive(Debug, Clone, Copy)]
pub struct GradNorm;

impl Op for GradNorm {
    fn name(&self) -> &'static str {
        "grad_norm"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        check_inputs("grad_norm", inputs)?;
        Ok(vec![TensorDesc::f32([1])])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let inputs = (0..).take_while(|&i| lowering.input(i).is_ok()).count();
        lower_reduction(lowering, inputs, &SQUARES, &FINISH, 8)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let squares: f64 = inputs.iter().flat_map(|x| &x.data).map(|v| v * v).sum();
        vec![Array::new([1], vec![squares.sqrt()])]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(inputs.iter().map(|x| 2.0 * x.shape.elements() as f64).sum(), inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, inputs| Case::new(label, GradNorm, inputs);
    vec![
        case("one element", vec![normal([1], 1.0, 1)]),
        case("zeros", vec![normal([300], 0.0, 1)]),
        case(
            "several tensors",
            vec![normal([4097], 1.0, 1), normal([3, 5], 10.0, 2), normal([9001], 0.1, 3)],
        ),
        case("tiny", vec![normal([1027], 1e-12, 1)]),
        case("huge", vec![normal([5003], 1e18, 1)]),
        case("nearly all of f32", vec![normal([1027], 1e36, 1)]),
        case("huge beside small", vec![normal([1027], 1.0, 1), normal([1], 1e25, 2)]),
        case("on both sides of the bound", vec![normal([4099], 4e9, 1)]),
        case("perf", vec![constant([4 << 20], 1.0)]).perf(),
        // Read alone, one vector would fit the largest caches.
        case("perf, large", vec![constant([LARGE_VECTOR], 1.0), constant([LARGE_VECTOR], 1.0)]).perf_large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Caps;

    #[test]
    fn ranges_fill_the_partial_results_without_gaps() {
        let caps = Caps { max_binding_bytes: 1 << 20, ..Caps::WEBGPU };
        let inputs = [TensorDesc::f32([700_001]), TensorDesc::f32([5])];
        let lowered = Lowering::run(&GradNorm, &caps, &inputs, &[TensorDesc::f32([1])]).unwrap();
        let (finish, stages) = lowered.dispatches.split_last().unwrap();
        let mut next = 0;
        let mut elements = 0;
        for stage in stages {
            let params: ShareParams = bytemuck::pod_read_unaligned(&stage.params);
            assert_eq!(params.first, next);
            assert_eq!(stage.bindings[0].range.unwrap().1, 4 * u64::from(params.len));
            next += stage.grid[0];
            elements += params.len;
        }
        assert_eq!((stages.len(), elements), (4, 700_006));
        let params: FinishParams = bytemuck::pod_read_unaligned(&finish.params);
        assert_eq!((params.len, lowered.workspaces[0]), (next, 8 * u64::from(next)));
    }
}
