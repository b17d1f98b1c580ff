// Gradient of margin_loss with respect to the cosines. With q = sigmoid(log-sum-exp of the others - s z(t_y)), the
// probability that is not the target's: d loss / d t_j = s q e^{s (t_j - peak) - log_sum}, and -s q z'(t_y) at the
// target. Written with q and not with p_y - 1, which loses all digits once a row is learned. One workgroup a row.

struct Params {
    rows: u32,
    classes: u32,
    rule: u32,
    scale: f32,
    keep: f32,
    margin: f32,
    cos_margin: f32,
    sin_margin: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cosines: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read> peak: array<f32>;
@group(0) @binding(4) var<storage, read> log_sum: array<f32>;
@group(0) @binding(5) var<storage, read> dloss: array<f32>;
@group(0) @binding(6) var<storage, read_write> dcosines: array<f32>;

override WORKGROUP: u32 = 256u;

// Rule 0 subtracts the margin from the cosine.
const STRAIGHT_THROUGH: u32 = 1u;
const EASY: u32 = 2u;
const HARD: u32 = 3u;
const EXACT: u32 = 4u;

const COSINE_LIMIT: f32 = 0.99999988;

fn arc(cosine: f32) -> f32 {
    let c = clamp(cosine, -COSINE_LIMIT, COSINE_LIMIT);
    return c * params.cos_margin - sqrt((1.0 - c) * (1.0 + c)) * params.sin_margin;
}

// The derivative of `arc`; 0 where its argument is clamped.
fn arc_slope(c: f32) -> f32 {
    if abs(c) > COSINE_LIMIT {
        return 0.0;
    }
    return params.cos_margin + c * params.sin_margin / sqrt((1.0 - c) * (1.0 + c));
}

// The target's cosine with its margin (x), and its derivative (y). The factor `keep` is part of the value only: what
// it takes away is held constant.
fn target_value(cosine: f32) -> vec2<f32> {
    let c = params.keep * cosine;
    switch params.rule {
        case STRAIGHT_THROUGH: { return vec2(arc(c), 1.0); }
        case EASY: {
            if c > 0.0 {
                return vec2(arc(c), arc_slope(c));
            }
            return vec2(c, 1.0);
        }
        case HARD: {
            if c < -params.cos_margin {
                return vec2(c - params.margin * params.sin_margin, 1.0);
            }
            return vec2(arc(c), arc_slope(c));
        }
        case EXACT: { return vec2(arc(c), arc_slope(c)); }
        default: { return vec2(c - params.margin, 1.0); }
    }
}

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
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let label = labels[row];
    let base = row * params.classes;
    let top = peak[row];
    let rest = log_sum[row];
    var factor = 0.0;
    var at_target = 0.0;
    if label < params.classes {
        let z = target_value(cosines[base + label]);
        factor = dloss[row] * params.scale * sigmoid(params.scale * (top - z.x) + rest);
        at_target = -factor * z.y;
    }
    for (var j = local.x; j < params.classes; j += WORKGROUP) {
        if j == label {
            dcosines[base + j] = at_target;
        } else {
            dcosines[base + j] = factor * exp(params.scale * (cosines[base + j] - top) - rest);
        }
    }
}
