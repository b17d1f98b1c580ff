// A tile of the gradient of the cosines of a binary cross-entropy of every class, from the products
// tile[row, j] = x . w_j; see class_sweep_uniface.wgsl. One invocation a sample and class.

struct Params {
    // Samples.
    rows: u32,
    // The tile's first class, and how many it has.
    first: u32,
    classes: u32,
    // All classes that take part.
    all: u32,
    scale: f32,
    keep: f32,
    margin: f32,
    // d (loss of the step) / d (loss of a row).
    upstream: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> inverse: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> tile: array<f32>;

override WORKGROUP: u32 = 256u;

fn sigmoid(v: f32) -> f32 {
    let e = exp(-abs(v));
    return select(e, 1.0, v >= 0.0) / (1.0 + e);
}

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
    let label = labels[row];
    let s = params.scale;
    let t = tile[i] * inverse[j];
    let is_target = j == label - params.first;
    let v = s * select(t, params.keep * t - params.margin, is_target) - bias[0];
    let slope = select(sigmoid(v), -sigmoid(-v), is_target);
    tile[i] = select(params.upstream * s * slope, 0.0, abs(v) > s || label >= params.all);
}
