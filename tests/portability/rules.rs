//! What naga's validator and writers let through and a backend does not take: matrices of mixed shapes, matrices moved through
//! pointers to anything but scalars or in memory where they cannot be, and one buffer bound both to be read and to be written.

use std::collections::BTreeSet;

use epl_runtime::graph::Graph;
use epl_runtime::kernel::Access;
use epl_runtime::op::{Bound, Dispatch, Lowered, Operand, TensorId};
use epl_runtime::plan::{Place, Plan, Step};
use epl_runtime::{Caps, TensorDesc};
use naga::proc::TypeResolution;
use naga::valid::FunctionInfo;
use naga::{AddressSpace, Block, Expression, Function, Handle, Scalar, Statement, TypeInner};

use super::modules::Module;

/// Rows and columns of the only matrices that Metal has.
const METAL_SIDE: u32 = 8;

/// What of a module's cooperative matrices some backend does not take; `metal` where the module is for Metal too.
pub fn matrix_faults(module: &Module, metal: bool) -> Vec<String> {
    let mut sides = BTreeSet::new();
    for (_, ty) in module.module.types.iter() {
        if let TypeInner::CooperativeMatrix { columns, rows, .. } = ty.inner {
            sides.insert((rows as u32, columns as u32));
        }
    }
    let mut faults = Vec::new();
    if sides.len() > 1 || sides.iter().any(|(rows, columns)| rows != columns) {
        // Drivers list shapes of whole products, and the runtime asks for square ones.
        faults.push(format!("matrices of the shapes {sides:?} in one module"));
    }
    if let Some(side) = sides.iter().map(|&(rows, _)| rows).find(|&rows| metal && rows != METAL_SIDE) {
        faults.push(format!("matrices of {side} rows, and Metal has them of {METAL_SIDE} alone"));
    }
    for (handle, function) in module.module.functions.iter() {
        faults.extend(function_faults(module, function, &module.info[handle]));
    }
    for (index, entry) in module.module.entry_points.iter().enumerate() {
        faults.extend(function_faults(module, &entry.function, module.info.get_entry_point(index)));
    }
    faults
}

fn function_faults(module: &Module, function: &Function, info: &FunctionInfo) -> Vec<String> {
    let mut faults = Vec::new();
    let types = &module.module.types;
    let inner = |handle: Handle<Expression>| -> &TypeInner {
        match &info[handle].ty {
            TypeResolution::Handle(ty) => &types[*ty].inner,
            TypeResolution::Value(inner) => inner,
        }
    };
    let scalar_of = |handle| match *inner(handle) {
        TypeInner::CooperativeMatrix { scalar, .. } => Some(scalar),
        _ => None,
    };
    let mut moved = |what: &str, pointer: Handle<Expression>| {
        let (scalars, space) = match *inner(pointer) {
            TypeInner::Pointer { base, space } => {
                (matches!(types[base].inner, TypeInner::Scalar(_)), Some(space))
            }
            TypeInner::ValuePointer { size, space, .. } => (size.is_none(), Some(space)),
            _ => (false, None),
        };
        // Of which scalars, naga sees to itself: those of the matrix.
        if !scalars {
            faults.push(format!("a matrix is {what} through a pointer to something else than scalars"));
        }
        // simdgroup_load takes device and threadgroup pointers, OpCooperativeMatrixLoadKHR those to Workgroup and StorageBuffer.
        if !matches!(space, Some(AddressSpace::Storage { .. } | AddressSpace::WorkGroup)) {
            faults.push(format!("a matrix is {what} in the address space {space:?}"));
        }
    };
    for (_, expression) in function.expressions.iter() {
        if let Expression::CooperativeLoad { data, .. } = expression {
            moved("loaded", data.pointer);
        }
    }
    statements(&function.body, &mut |statement| {
        if let Statement::CooperativeStore { data, .. } = statement {
            moved("stored", data.pointer);
        }
    });
    for (_, expression) in function.expressions.iter() {
        if let Expression::CooperativeMultiplyAdd { a, b, c } = expression {
            let (factors, sum) = ([scalar_of(*a), scalar_of(*b)], scalar_of(*c));
            if factors[0] != factors[1] || sum != factors[0] && sum != Some(Scalar::F32) {
                faults.push(format!("a product of {factors:?} is added to {sum:?}"));
            }
        }
    }
    faults
}

/// Calls `visit` with every statement of a block and of those within.
fn statements(block: &Block, visit: &mut dyn FnMut(&Statement)) {
    for statement in block {
        visit(statement);
        match statement {
            Statement::Block(block) => statements(block, visit),
            Statement::If { accept, reject, .. } => {
                statements(accept, visit);
                statements(reject, visit);
            }
            Statement::Switch { cases, .. } => {
                cases.iter().for_each(|case| statements(&case.body, visit));
            }
            Statement::Loop { body, continuing, .. } => {
                statements(body, visit);
                statements(continuing, visit);
            }
            _ => {}
        }
    }
}

/// A buffer of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// A slot of transients.
    Slot(usize),
    /// The inputs of a step.
    Inputs,
    /// A persistent tensor, and which of the buffers that it takes.
    Persistent(TensorId, usize),
    /// What an op has by itself.
    Own(Operand),
}

/// A part of a buffer that a dispatch binds: its first byte, and its bytes.
pub type Part = (Buffer, u64, u64, Access);

/// What WebGPU refuses of the buffers that one dispatch binds: one that is read and written, and parts of one that overlap where
/// they are written. wgpu sees the first when the step runs, and the second never.
pub fn alias_faults(parts: &[Part]) -> Vec<String> {
    let mut faults = Vec::new();
    for (index, &(buffer, first, bytes, access)) in parts.iter().enumerate() {
        for &(other, other_first, other_bytes, other_access) in &parts[..index] {
            if buffer != other {
                continue;
            }
            if access != other_access {
                faults.push(format!("{buffer:?} is bound to be read and to be written"));
            } else if access == Access::ReadWrite
                && first < other_first + other_bytes
                && other_first < first + bytes
            {
                faults.push(format!("parts of {buffer:?} that overlap are bound to be written"));
            }
        }
    }
    faults
}

/// What a dispatch of an op by itself binds: every operand has a buffer of its own then.
pub fn parts_of_op(
    inputs: &[TensorDesc],
    outputs: &[TensorDesc],
    lowered: &Lowered,
    dispatch: &Dispatch,
) -> Vec<Part> {
    let bytes = |operand: Operand| match operand {
        Operand::Input(index) => inputs[index].bytes(),
        Operand::Output(index) => outputs[index].bytes(),
        Operand::Workspace(index) => lowered.workspaces[index],
    };
    let part = |(bound, access): (&Bound, Access)| {
        let (first, bytes) = bound.range.unwrap_or_else(|| (0, bytes(bound.operand)));
        (Buffer::Own(bound.operand), first, bytes, access)
    };
    with_access(dispatch).map(part).collect()
}

/// What a dispatch of a plan binds.
pub fn parts_of_step(graph: &Graph, caps: &Caps, plan: &Plan, step: &Step, dispatch: &Dispatch) -> Vec<Part> {
    let node = &graph.nodes()[step.node];
    let part = |(bound, access): (&Bound, Access)| {
        let (place, whole) = match bound.operand {
            Operand::Input(index) => place_of(graph, plan, node.inputs[index]),
            Operand::Output(index) => place_of(graph, plan, node.outputs[index]),
            Operand::Workspace(index) => step.workspaces[index],
        };
        let (offset, bytes) = bound.range.unwrap_or((0, whole));
        match place {
            Place::Slot { slot, offset: first } => (Buffer::Slot(slot), first + offset, bytes, access),
            Place::Input { offset: first } => (Buffer::Inputs, first + offset, bytes, access),
            Place::Persistent { tensor, offset: first } => {
                let shards = caps.shards(&graph.tensor(tensor).desc);
                let holds =
                    |&(start, length): &(u64, u64)| (start..start + length).contains(&(first + offset));
                let shard = shards.iter().position(holds).expect("a part lies in a buffer of its tensor");
                (Buffer::Persistent(tensor, shard), first + offset, bytes, access)
            }
        }
    };
    with_access(dispatch).map(part).collect()
}

fn place_of(graph: &Graph, plan: &Plan, tensor: TensorId) -> (Place, u64) {
    (plan.place(tensor).expect("a tensor that is bound has a place"), graph.tensor(tensor).desc.bytes())
}

fn with_access(dispatch: &Dispatch) -> impl Iterator<Item = (&Bound, Access)> {
    dispatch.bindings.iter().zip(dispatch.kernel.bindings).map(|(bound, binding)| (bound, binding.access))
}

#[cfg(test)]
mod tests {
    use epl_runtime::kernel::Needs;

    use super::super::modules::parse;
    use super::*;

    const PRODUCT: &str = "enable f16;
        enable wgpu_cooperative_matrix;
        alias Left = coop_mat8x8<f16, A>;
        alias Right = coop_mat8x8<f16, B>;
        alias Sum = coop_mat8x8<f32, C>;
        @group(0) @binding(1) var<storage, read> x: array<f16>;
        @group(0) @binding(2) var<storage, read_write> y: array<f32>;
        @group(0) @binding(3) var<storage, read> x4: array<vec4<f16>>;
        @group(0) @binding(4) var<storage, read_write> y4: array<vec4<f32>>;
        var<workgroup> tile: array<f32, 64>;
        @compute @workgroup_size(64)
        fn main() {
            let a = coopLoadT<Left>(&x[0], 8u);
            let b = coopLoadT<Right>(&x[64], 8u);
            let c = coopLoadT<Sum>(&tile[0], 8u);
            coopStoreT(coopMultiplyAdd(a, b, c), &y[0], 8u);
        }";

    fn faults(changes: &[(&str, &str)], metal: bool) -> Vec<String> {
        let text = changes.iter().fold(PRODUCT.to_owned(), |text, (old, new)| {
            assert!(text.contains(old), "{old}");
            text.replace(old, new)
        });
        let module = parse(&text, Needs::Matrices(8)).unwrap_or_else(|error| panic!("{changes:?}: {error}"));
        matrix_faults(&module, metal)
    }

    #[test]
    fn matrices_that_a_backend_does_not_take_are_found() {
        assert_eq!(faults(&[], true), Vec::<String>::new());
        let large = ("coop_mat8x8", "coop_mat16x16");
        assert_eq!(faults(&[large], false), Vec::<String>::new());
        for (change, part) in [
            (large, "matrices of 16 rows, and Metal has them of 8 alone"),
            (("Sum = coop_mat8x8", "Sum = coop_mat16x16"), "in one module"),
            (("&x[64]", "&x4[4]"), "loaded through a pointer to something else than scalars"),
            (("&y[0]", "&y4[0]"), "stored through a pointer to something else than scalars"),
            (("&x[64]", "&y[64]"), "a product of"),
            (("var<workgroup>", "var<private>"), "in the address space Some(Private)"),
        ] {
            let found = faults(&[change], true);
            assert!(found.iter().any(|fault| fault.contains(part)), "{change:?}: {found:?}");
        }
    }

    #[test]
    fn a_buffer_that_is_read_and_written_is_found() {
        let (a, b) = (Buffer::Slot(0), Buffer::Slot(1));
        let (read, write) = (Access::Read, Access::ReadWrite);
        assert!(alias_faults(&[(a, 0, 64, read), (a, 0, 64, read), (b, 0, 64, write)]).is_empty());
        assert!(alias_faults(&[(a, 0, 64, write), (a, 64, 64, write)]).is_empty(), "apart");
        assert_eq!(alias_faults(&[(a, 0, 64, read), (b, 0, 4, read), (a, 256, 64, write)]).len(), 1);
        let overlapping = alias_faults(&[(a, 0, 65, write), (a, 64, 64, write)]);
        assert!(overlapping.len() == 1 && overlapping[0].contains("overlap"), "{overlapping:?}");
    }
}
