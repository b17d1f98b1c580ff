// Softmax with a margin on the target: loss[row] = softplus(log(sum over j != y of e^{s t_j}) - s z(t_y)), and what
// its gradient needs of the other classes: peak = max t_j and log_sum = log(sum of e^{s (t_j - peak)}).
// One workgroup a row; each invocation walks its share of the classes once with a running maximum and sum.

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
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(4) var<storage, read_write> peak: array<f32>;
@group(0) @binding(5) var<storage, read_write> log_sum: array<f32>;

override WORKGROUP: u32 = 256u;

// Rule 0 subtracts the margin from the cosine.
const STRAIGHT_THROUGH: u32 = 1u;
const EASY: u32 = 2u;
const HARD: u32 = 3u;
const EXACT: u32 = 4u;

// The cosine nearest to 1 whose angle still has a finite slope: 1 - 2^-23.
const COSINE_LIMIT: f32 = 0.99999988;
// Stands for the logarithm of an empty sum; its product with a scale is still finite.
const NOTHING: f32 = -1e30;

var<workgroup> peaks: array<f32, WORKGROUP>;
var<workgroup> sums: array<f32, WORKGROUP>;

// cos(arccos(c) + margin)
fn arc(cosine: f32) -> f32 {
    let c = clamp(cosine, -COSINE_LIMIT, COSINE_LIMIT);
    return c * params.cos_margin - sqrt((1.0 - c) * (1.0 + c)) * params.sin_margin;
}

// The target's cosine with its margin.
fn target_value(cosine: f32) -> f32 {
    let c = params.keep * cosine;
    switch params.rule {
        case STRAIGHT_THROUGH, EXACT: { return arc(c); }
        case EASY: { return select(c, arc(c), c > 0.0); }
        case HARD: { return select(arc(c), c - params.margin * params.sin_margin, c < -params.cos_margin); }
        default: { return c - params.margin; }
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
    var highest = NOTHING;
    var sum = 0.0;
    for (var j = lane; j < params.classes; j += WORKGROUP) {
        if j == label {
            continue;
        }
        let t = cosines[base + j];
        // One of the two terms is always e^0.
        let decay = exp(-params.scale * abs(t - highest));
        if t > highest {
            sum = sum * decay + 1.0;
            highest = t;
        } else {
            sum += decay;
        }
    }
    peaks[lane] = highest;
    sums[lane] = sum;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            let a = peaks[lane];
            let b = peaks[lane + width];
            let top = max(a, b);
            sums[lane] = sums[lane] * exp(params.scale * (a - top))
                + sums[lane + width] * exp(params.scale * (b - top));
            peaks[lane] = top;
        }
    }
    if lane == 0u {
        let others = params.classes > select(0u, 1u, label < params.classes);
        let top = select(0.0, peaks[0], others);
        let rest = select(NOTHING, log(sums[0]), others);
        var result = 0.0;
        if label < params.classes {
            let z = target_value(cosines[base + label]);
            result = softplus(params.scale * (top - z) + rest);
        }
        loss[row] = result;
        peak[row] = top;
        log_sum[row] = rest;
    }
}
