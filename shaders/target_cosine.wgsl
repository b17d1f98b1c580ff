// cosine[row] = x[row] . n(w_y), n(v) = v / max(|v|, eps), for the samples whose class y is in the bound range of the
// table. The first range also sets what none will: 0, for labels that are no class. One workgroup a sample.
// The row of the table is divided by its largest magnitude before it is squared, so that no square overflows or vanishes.

struct Params {
    // Samples.
    rows: u32,
    dim: u32,
    // First class of the table's range, and how many it has.
    first: u32,
    classes: u32,
    // 1 for the first range.
    initial: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read> labels: array<u32>;
@group(0) @binding(4) var<storage, read_write> cosine: array<f32>;

override WORKGROUP: u32 = 64u;

// The smallest normal number: its reciprocal is finite.
const TINY: f32 = 1.1754944e-38;

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
    // A label below the range wraps around and is past its end.
    let within = labels[row] - params.first;
    if within >= params.classes {
        if lane == 0u && params.initial != 0u {
            cosine[row] = 0.0;
        }
        return;
    }
    let base = within * params.dim;
    var largest = 0.0;
    for (var d = lane; d < params.dim; d += WORKGROUP) {
        largest = max(largest, abs(table[base + d]));
    }
    let unit = 1.0 / max(workgroup_max(lane, largest), TINY);
    // |w|^2 and w . x, in units of the largest magnitude.
    var products = vec2(0.0);
    for (var d = lane; d < params.dim; d += WORKGROUP) {
        let w = table[base + d] * unit;
        products += vec2(w * w, w * x[row * params.dim + d]);
    }
    products = workgroup_sum(lane, products);
    if lane == 0u {
        // With eps at most 1, its product with `unit` does not overflow.
        cosine[row] = products.y / max(sqrt(products.x), params.eps * unit);
    }
}
