//! Subgroups of any size on any adapter, for tests: kernels whose workgroup is one subgroup, with the operations between its
//! invocations made of workgroup memory and barriers.

use crate::kernel::Kernel;

/// The builtin by which an invocation knows its place in the subgroup; in a workgroup of one it is that in the workgroup.
const LANE: &str = "@builtin(subgroup_invocation_id)";
const INDEX: &str = "@builtin(local_invocation_index)";
const BROADCAST: &str = "subgroupBroadcast(";

/// The source of a kernel without subgroup operations, where each workgroup is one subgroup. What it cannot rewrite is left, and
/// refused by the compiler.
pub(crate) fn rewritten(kernel: &Kernel, source: &str) -> String {
    if !source.contains(LANE) {
        return source.to_owned();
    }
    // A broadcast is of one type in a shader.
    let of = if kernel.shader.starts_with("matmul") { "f32" } else { "vec4<f32>" };
    let name_after = |builtin: &str| {
        let (name, _) = source.split_once(builtin)?.1.split_once(':')?;
        Some(name.trim().to_owned())
    };
    let lane = name_after(LANE).unwrap_or_default();
    let text = source.replace(BROADCAST, "emulated_broadcast(");
    // A builtin is given once: where the kernel has its place in the workgroup already, that is the lane.
    let (text, alias) = match name_after(INDEX) {
        Some(index) => {
            (text.replace(&format!("{LANE} {lane}: u32,"), ""), format!("\n    let {lane} = {index};"))
        }
        None => (text.replace(LANE, INDEX), String::new()),
    };
    let main = text.find("fn main(").and_then(|at| Some(at + text.get(at..)?.find(") {")? + ") {".len()));
    let (head, body) = text.split_at(main.unwrap_or(text.len()));
    format!(
        "{head}{alias}
    // Functions that main calls have no builtins: the lane is left where they find it.
    emulated_lane = {lane};{body}
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
