// y = x / max(|x|, eps) for every row. A workgroup a row.
// The row is divided by its largest magnitude before it is squared, so that no square overflows or vanishes.

struct Params {
    rows: u32,
    columns: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const LANES: u32 = 64u;
// The smallest normal number: its reciprocal is finite.
const TINY: f32 = 1.1754944e-38;

var<workgroup> cells: array<f32, LANES>;

fn max_of_lanes(lane: u32, value: f32) -> f32 {
    cells[lane] = value;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lane < half {
            cells[lane] = max(cells[lane], cells[lane + half]);
        }
        workgroupBarrier();
    }
    let result = cells[0];
    workgroupBarrier();
    return result;
}

fn sum_of_lanes(lane: u32, value: f32) -> f32 {
    cells[lane] = value;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lane < half {
            cells[lane] += cells[lane + half];
        }
        workgroupBarrier();
    }
    let result = cells[0];
    workgroupBarrier();
    return result;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.columns;
    let last = first + params.columns;
    var largest = 0.0;
    for (var i = first + local.x; i < last; i += LANES) {
        largest = max(largest, abs(x[i]));
    }
    let inverse = 1.0 / max(max_of_lanes(local.x, largest), TINY);
    var squares = 0.0;
    for (var i = first + local.x; i < last; i += LANES) {
        let v = x[i] * inverse;
        squares += v * v;
    }
    // In units of the largest magnitude. With eps at most 1, its product with `inverse` does not overflow.
    let norm = sqrt(sum_of_lanes(local.x, squares));
    let normal = norm > params.eps * inverse;
    for (var i = first + local.x; i < last; i += LANES) {
        if normal {
            y[i] = x[i] * inverse / norm;
        } else {
            y[i] = x[i] / params.eps;
        }
    }
}
