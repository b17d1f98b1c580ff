// A tile of the gradient of the cosines of a softmax with a margin, from the products tile[row, j] = x . w_j and what the
// forward pass has left of each row. One invocation a sample and class.

struct Params {
    // Samples.
    rows: u32,
    // The tile's first class, and how many it has.
    first: u32,
    classes: u32,
    scale: f32,
    // d (loss of the step) / d (loss of a row).
    upstream: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> inverse: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
// The largest cosine p of another class, log S, s q, -s q z': see class_sweep_finish.wgsl.
@group(0) @binding(3) var<storage, read> state: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> tile: array<f32>;

override WORKGROUP: u32 = 256u;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let i = (group.x + group.y * groups.x) * WORKGROUP + local.x;
    if i >= params.rows * params.classes {
        return;
    }
    let row = i / params.classes;
    let j = i % params.classes;
    let of_row = state[row];
    if j == labels[row] - params.first {
        tile[i] = params.upstream * of_row.w;
    } else {
        let t = tile[i] * inverse[j];
        tile[i] = params.upstream * of_row.z * exp(params.scale * (t - of_row.x) - of_row.y);
    }
}
