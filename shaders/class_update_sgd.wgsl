// Stochastic gradient descent with momentum on the prototypes of a tile, in place, from the gradient g of the normalised
// prototypes: grad = (g - n (n . g)) / |w| with n = w / |w|, or g / eps where |w| <= eps; then PyTorch's rule,
// v = momentum v + scale grad + weight_decay w, w -= lr v. Leaves the sum of squares of `grad` a workgroup in `partial`,
// large ones apart as in grad_norm.wgsl. A workgroup takes every n-th row. The prototypes may be bound in several
// ranges, one launch each: a launch does the rows that lie in its own.

struct Params {
    // Classes of the tile, and the first one's place among all that take part.
    rows: u32,
    first: u32,
    // Vectors of four elements of a row.
    dim: u32,
    // First class of the range, and how many it has.
    range_first: u32,
    range_rows: u32,
    // 1 where the classes that take part are listed in `classes`; otherwise they are all.
    sampled: u32,
    // The first workgroup's place in `partial`.
    partial_first: u32,
    // 0: only the sums of squares are wanted.
    applied: u32,
    eps: f32,
    momentum: f32,
    weight_decay: f32,
    // 1: the gradient is multiplied by scale[0], and 0 there leaves everything as it is.
    scaled: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> grad: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> classes: array<u32>;
@group(0) @binding(3) var<storage, read> lr: array<f32>;
@group(0) @binding(4) var<storage, read> scale: array<f32>;
@group(0) @binding(5) var<storage, read_write> weight: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> velocity: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> partial: array<vec2<f32>>;

override WORKGROUP: u32 = 64u;

// The smallest normal number: its reciprocal is finite.
const TINY: f32 = 1.1754944e-38;
// Sums of squares within which no square that matters has overflowed or vanished.
const LOW: f32 = 0x1p-60;
const HIGH: f32 = 0x1p100;
const LARGE: f32 = 0x1p32;
const DOWN: f32 = 0x1p-64;

var<workgroup> cells: array<vec2<f32>, WORKGROUP>;

fn workgroup_max(lane: u32, value: f32) -> f32 {
    cells[lane] = vec2(value, 0.0);
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            cells[lane] = max(cells[lane], cells[lane + width]);
        }
    }
    return workgroupUniformLoad(&cells[0]).x;
}

fn workgroup_sum(lane: u32, value: vec2<f32>) -> vec2<f32> {
    cells[lane] = value;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            cells[lane] += cells[lane + width];
        }
    }
    return workgroupUniformLoad(&cells[0]);
}

fn square(value: vec4<f32>) -> vec2<f32> {
    let large = abs(value) >= vec4(LARGE);
    let low = select(value, vec4(0.0), large);
    let high = select(vec4(0.0), value * DOWN, large);
    return vec2(dot(low, low), dot(high, high));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let lane = local.x;
    let factor = select(1.0, scale[0], params.scaled != 0u);
    var squares = vec2(0.0);
    for (var row = group.x; row < params.rows; row += groups.x) {
        var class_of_row = params.first + row;
        if params.sampled != 0u {
            class_of_row = classes[class_of_row];
        }
        // A class below the range wraps around and is past its end.
        let within = class_of_row - params.range_first;
        if within >= params.range_rows {
            continue;
        }
        let base = within * params.dim;
        let source = row * params.dim;
        // |w|^2 and w . g.
        var products = vec2(0.0);
        for (var d = lane; d < params.dim; d += WORKGROUP) {
            let w = weight[base + d];
            products += vec2(dot(w, w), dot(w, grad[source + d]));
        }
        products = workgroup_sum(lane, products);
        var unit = 1.0;
        if !(products.x > LOW && products.x < HIGH) {
            // Squares may have overflowed or vanished: once more, in units of the largest magnitude.
            var largest = vec4(0.0);
            for (var d = lane; d < params.dim; d += WORKGROUP) {
                largest = max(largest, abs(weight[base + d]));
            }
            let most = max(max(largest.x, largest.y), max(largest.z, largest.w));
            unit = 1.0 / max(workgroup_max(lane, most), TINY);
            products = vec2(0.0);
            for (var d = lane; d < params.dim; d += WORKGROUP) {
                let w = weight[base + d] * unit;
                products += vec2(dot(w, w), dot(w, grad[source + d]));
            }
            products = workgroup_sum(lane, products);
        }
        let norm = sqrt(products.x);
        let normal = norm > params.eps * unit;
        let along = products.y / norm;
        for (var d = lane; d < params.dim; d += WORKGROUP) {
            let w = weight[base + d];
            let g = grad[source + d];
            let exact = select(g / params.eps, (g - w * unit / norm * along) / norm * unit, normal);
            squares += square(exact);
            if params.applied != 0u && factor != 0.0 {
                let v = params.momentum * velocity[base + d] + (factor * exact + params.weight_decay * w);
                velocity[base + d] = v;
                weight[base + d] = w - lr[0] * v;
            }
        }
    }
    let total = workgroup_sum(lane, squares);
    if lane == 0u {
        partial[params.partial_first + group.x] = total;
    }
}
