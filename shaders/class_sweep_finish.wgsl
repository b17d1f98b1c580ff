// After the last tile of a softmax with a margin on the target z(t_y): the loss, its gradient with respect to x, and what
// the gradient of the prototypes needs. With p the largest cosine of another class, S = sum over j != y of e^{s (t_j - p)}
// and q = sigmoid(s (p - z) + log S), the probability that is not the target's:
// loss = softplus(s (p - z) + log S), d loss / d t_j = s q e^{s (t_j - p)} / S, d loss / d t_y = -s q z'.
// In: dx = sum over j != y of e^{s (t_j - p)} n(w_j). One workgroup a row.

struct Params {
    // Samples.
    rows: u32,
    // All classes that take part.
    classes: u32,
    // Vectors of four elements of a row.
    dim: u32,
    rule: u32,
    scale: f32,
    keep: f32,
    margin: f32,
    cos_margin: f32,
    sin_margin: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> labels: array<u32>;
@group(0) @binding(2) var<storage, read> unit: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> cosine: array<f32>;
// In: p, S. Out: p, log S, s q, -s q z'.
@group(0) @binding(4) var<storage, read_write> running: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> loss: array<f32>;

override WORKGROUP: u32 = 64u;

// Rule 0 subtracts the margin from the cosine.
const STRAIGHT_THROUGH: u32 = 1u;
const EASY: u32 = 2u;
const HARD: u32 = 3u;
const EXACT: u32 = 4u;

// The cosine nearest to 1 whose angle still has a finite slope: 1 - 2^-23.
const COSINE_LIMIT: f32 = 0.99999988;
// Stands for the logarithm of an empty sum; its product with a scale is still finite.
const NOTHING: f32 = -1e30;

var<workgroup> shared_state: vec4<f32>;

// cos(arccos(c) + margin)
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

// log(1 + e) for e in 0..1, as 2 artanh(e / (2 + e)): exact to f32 also where 1 + e rounds to 1.
fn log1p(e: f32) -> f32 {
    let w = e / (2.0 + e);
    let q = w * w;
    let tail = 1.0 / 7.0 + q * (1.0 / 9.0 + q * (1.0 / 11.0 + q * (1.0 / 13.0)));
    return 2.0 * w * (1.0 + q * (1.0 / 3.0 + q * (1.0 / 5.0 + q * tail)));
}

fn softplus(v: f32) -> f32 {
    return max(v, 0.0) + log1p(exp(-abs(v)));
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
    if local.x == 0u {
        let sums = running[row].xy;
        let is_class = labels[row] < params.classes;
        let others = params.classes > select(0u, 1u, is_class);
        let top = select(0.0, sums.x, others);
        let rest = select(NOTHING, log(sums.y), others);
        var value = 0.0;
        var push = 0.0;
        var pull = 0.0;
        if is_class {
            let z = target_value(cosine[row]);
            let v = params.scale * (top - z.x) + rest;
            value = softplus(v);
            push = params.scale * sigmoid(v);
            pull = -push * z.y;
        }
        loss[row] = value;
        running[row] = vec4(top, rest, push, pull);
        // An empty sum has an empty gradient.
        shared_state = vec4(select(0.0, push / sums.y, others), pull, 0.0, 0.0);
    }
    let factors = workgroupUniformLoad(&shared_state);
    let base = row * params.dim;
    for (var d = local.x; d < params.dim; d += WORKGROUP) {
        dx[base + d] = factors.x * dx[base + d] + factors.y * unit[base + d];
    }
}
