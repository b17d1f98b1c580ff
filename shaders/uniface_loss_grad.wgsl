// Gradient of uniface_loss with respect to the cosines, and a partial sum a row of that with respect to the bias.
// Where the logit is clipped the gradient is 0; on the bounds it is not. One workgroup a row.

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
@group(0) @binding(4) var<storage, read> dloss: array<f32>;
@group(0) @binding(5) var<storage, read_write> dcosines: array<f32>;
@group(0) @binding(6) var<storage, read_write> partial: array<f32>;

override WORKGROUP: u32 = 256u;

var<workgroup> sums: array<f32, WORKGROUP>;

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
    let lane = local.x;
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let label = labels[row];
    let base = row * params.classes;
    let b = bias[0];
    let s = params.scale;
    let upstream = select(0.0, dloss[row], label < params.classes);
    var sum = 0.0;
    for (var j = lane; j < params.classes; j += WORKGROUP) {
        let t = cosines[base + j];
        let is_target = j == label;
        let v = s * select(t, params.keep * t - params.margin, is_target) - b;
        // d loss / d logit; the factor `keep` is part of the value only, so d logit / d t_y is s as well.
        let slope = select(sigmoid(v), -sigmoid(-v), is_target);
        let dlogit = select(upstream * slope, 0.0, abs(v) > s);
        dcosines[base + j] = s * dlogit;
        sum -= dlogit;
    }
    sums[lane] = sum;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            sums[lane] += sums[lane + width];
        }
    }
    if lane == 0u {
        partial[row] = sums[0];
    }
}
