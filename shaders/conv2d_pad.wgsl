// Copies [rows, from_a, groups, from_b] to [rows, to_a, groups, to_b], cropped, or filled up with zeros: it brings the
// channels of each group to a multiple of four, and back. One invocation for four values of b; grid folded into two
// dimensions.

struct Params {
    len: u32,
    groups: u32,
    from_a: u32,
    from_b: u32,
    to_a: u32,
    to_b: u32,
}

// How the tensors are stored.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<Elem>;
@group(0) @binding(2) var<storage, read_write> output: array<Elem>;

override WORKGROUP: u32 = 256u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.x + group.y * groups.x) * WORKGROUP + local;
    if index >= params.len {
        return;
    }
    let vectors = (params.to_b + 3u) / 4u;
    let first_b = index % vectors * 4u;
    let channel_group = index / vectors % params.groups;
    let outer = index / vectors / params.groups;
    let a = outer % params.to_a;
    let row = outer / params.to_a;
    let start = ((row * params.from_a + a) * params.groups + channel_group) * params.from_b;
    let to = (outer * params.groups + channel_group) * params.to_b;
    for (var b = first_b; b < min(first_b + 4u, params.to_b); b++) {
        var value = Elem();
        if a < params.from_a && b < params.from_b {
            value = input[start + b];
        }
        output[to + b] = value;
    }
}
