//! Subgroups of any size on any adapter, for tests: kernels whose workgroup is one subgroup, with the operations between its
//! invocations made of workgroup memory and barriers.

use crate::kernel::Kernel;

/// The builtin by which an invocation knows its place in the subgroup; in a workgroup of one it is that in the workgroup.
const LANE: &str = "@builtin(subgroup_invocation_id)";
const BROADCAST: &str = "subgroupBroadcast(";

/// The source of a kernel without subgroup operations, where each workgroup is one subgroup. What it cannot rewrite is left, and
/// refused by the compiler.
pub(crate) fn rewritten(kernel: &Kernel, source: &str) -> String {
    if !source.contains(LANE) {
        return source.to_owned();
    }
    // A broadcast is of one type in a shader.
    let of = if kernel.shader.starts_with("matmul") { "f32" } else { "vec4<f32>" };
    let text =
        source.replace(LANE, "@builtin(local_invocation_index)").replace(BROADCAST, "emulated_broadcast(");
    // Functions that main calls have no builtins: the lane is left where they find it.
    let lane = text
        .split_once("@builtin(local_invocation_index) ")
        .and_then(|(_, rest)| rest.split_once(':'))
        .map_or("lane", |(name, _)| name);
    let main = text.find("fn main(").and_then(|at| Some(at + text.get(at..)?.find(") {")? + ") {".len()));
    let (head, body) = text.split_at(main.unwrap_or(text.len()));
    format!(
        "{head}\n    emulated_lane = {lane};{body}
var<private> emulated_lane: u32;
var<workgroup> emulated_value: {of};

fn emulated_broadcast(value: {of}, lane: u32) -> {of} {{
    if emulated_lane == lane {{
        emulated_value = value;
    }}
    workgroupBarrier();
    let found = emulated_value;
    workgroupBarrier();
    return found;
}}
"
    )
}
