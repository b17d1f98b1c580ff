// Binary cross-entropy of every class with one bias: loss[row] = softplus(-clip(s (keep t_y - m) - b)) + sum over
// j != y of softplus(clip(s t_j - b)), clip to -s..s. One workgroup a row.

struct Params {
    rows: u32,
    classes: u32,
    scale: f32,
    keep: f32,
    margin: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cosines: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> loss: array<f32>;

override WORKGROUP: u32 = 256u;

var<workgroup> sums: array<f32, WORKGROUP>;

// log(1 + e) for e in 0..1, as 2 artanh(e / (2 + e)): exact to f32 also where 1 + e rounds to 1.
fn log1p(e: f32) -> f32 {
    let w = e / (2.0 + e);
    let q = w * w;
    let tail = 1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0 + q * (1.0 / 13.0)));
    return 2.0 * w * (1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * tail)));
}

// Unlike `clamp` it lets a NaN through, so that a step that has gone wrong is noticed.
fn clip(v: f32, limit: f32) -> f32 {
    return select(select(v, limit, v > limit), -limit, v < -limit);
}

fn softplus(v: f32) -> f32 {
    return max(v, 0.0) + log1p(exp(-abs(v)));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let lane = local.x;
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let label = labels[row];
    let base = row * params.classes;
    let b = bias[0];
    let s = params.scale;
    var sum = 0.0;
    if label < params.classes {
        for (var j = lane; j < params.classes; j += WORKGROUP) {
            let t = cosines[base + j];
            let is_target = j == label;
            let v = clip(s * select(t, params.keep * t - params.margin, is_target) - b, s);
            sum += softplus(select(v, -v, is_target));
        }
    }
    sums[lane] = sum;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            sums[lane] += sums[lane + width];
        }
    }
    if lane == 0u {
        loss[row] = sums[0];
    }
}
