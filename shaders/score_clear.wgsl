// Zeroes words, which kernels then count in.

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> words: array<u32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let first = ((group.x + group.y * groups.x) * 256u + local.x) * 4u;
    let last = min(first + 4u, params.len);
    for (var i = first; i < last; i++) {
        words[i] = 0u;
    }
}
