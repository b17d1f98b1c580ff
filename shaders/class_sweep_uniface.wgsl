// One tile of the classes in a binary cross-entropy of every class. In: tile[row, j] = x . w_j. With the logits
// v_j = s t_j - b and v_y = s (keep t_y - m) - b, clipped to -s..s, adds softplus(-v_y) and softplus(v_j) to the row's
// loss and d loss / d b to its sum. Out: tile[row, j] = d loss / d t_j / |w_j|. One workgroup a row.

struct Params {
    // Samples.
    rows: u32,
    // The tile's first class, and how many it has.
    first: u32,
    classes: u32,
    // All classes that take part.
    all: u32,
    // 1 for the first tile.
    initial: u32,
    scale: f32,
    keep: f32,
    margin: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> inverse: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> tile: array<f32>;
@group(0) @binding(5) var<storage, read_write> loss: array<f32>;
@group(0) @binding(6) var<storage, read_write> cosine: array<f32>;
@group(0) @binding(7) var<storage, read_write> dbias: array<f32>;

override WORKGROUP: u32 = 256u;

var<workgroup> sums: array<vec2<f32>, WORKGROUP>;

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
    let is_class = labels[row] < params.all;
    // Past the end where the label is in another tile, or no class.
    let own = labels[row] - params.first;
    let base = row * params.classes;
    let b = bias[0];
    let s = params.scale;
    var sum = vec2(0.0);
    for (var j = lane; j < params.classes; j += WORKGROUP) {
        let u = inverse[j];
        let t = tile[base + j] * u;
        let is_target = j == own;
        let logit = s * select(t, params.keep * t - params.margin, is_target) - b;
        // Of softplus(v) with v = -logit at the target: both its value and its slope come from e^-|v|.
        let v = select(clip(logit, s), -clip(logit, s), is_target);
        let e = exp(-abs(v));
        let slope = select(e, 1.0, v >= 0.0) / (1.0 + e);
        // The factor `keep` is part of the value only, so d logit / d t_y is s as well.
        let dlogit = select(select(slope, -slope, is_target), 0.0, abs(logit) > s || !is_class);
        sum += vec2(select(0.0, max(v, 0.0) + log1p(e), is_class), -dlogit);
        tile[base + j] = s * dlogit * u;
        if is_target {
            cosine[row] = t;
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
        let begins = params.initial != 0u;
        loss[row] = select(loss[row], 0.0, begins) + sums[0].x;
        dbias[row] = select(dbias[row], 0.0, begins) + sums[0].y;
        // The own class, where the tile has it, has been written above by one invocation.
        if begins && own >= params.classes {
            cosine[row] = 0.0;
        }
    }
}
