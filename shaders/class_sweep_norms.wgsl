// inverse[j] = 1 / max(|w_j|, eps) for the rows w of a tile of prototypes. One workgroup a row.
// Where squares might overflow or vanish, the row is divided by its largest magnitude first.

struct Params {
    rows: u32,
    // Vectors of four elements of a row.
    dim: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> prototypes: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> inverse: array<f32>;

override WORKGROUP: u32 = 64u;

// The smallest normal number: its reciprocal is finite.
const TINY: f32 = 1.1754944e-38;
// Sums of squares within which no square that matters has overflowed or vanished.
const LOW: f32 = 0x1p-60;
const HIGH: f32 = 0x1p100;

var<workgroup> cells: array<f32, WORKGROUP>;

fn workgroup_max(lane: u32, value: f32) -> f32 {
    cells[lane] = value;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            cells[lane] = max(cells[lane], cells[lane + width]);
        }
    }
    return workgroupUniformLoad(&cells[0]);
}

fn workgroup_sum(lane: u32, value: f32) -> f32 {
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
    let row = group.x + group.y * groups.x;
    if row >= params.rows {
        return;
    }
    let first = row * params.dim;
    let last = first + params.dim;
    var squares = 0.0;
    for (var i = first + local.x; i < last; i += WORKGROUP) {
        squares += dot(prototypes[i], prototypes[i]);
    }
    var unit = 1.0;
    var total = workgroup_sum(local.x, squares);
    if !(total > LOW && total < HIGH) {
        var largest = vec4(0.0);
        for (var i = first + local.x; i < last; i += WORKGROUP) {
            largest = max(largest, abs(prototypes[i]));
        }
        let most = max(max(largest.x, largest.y), max(largest.z, largest.w));
        unit = 1.0 / max(workgroup_max(local.x, most), TINY);
        squares = 0.0;
        for (var i = first + local.x; i < last; i += WORKGROUP) {
            let v = prototypes[i] * unit;
            squares += dot(v, v);
        }
        total = workgroup_sum(local.x, squares);
    }
    // In units of the largest magnitude. With eps at most 1, its product with `unit` does not overflow.
    let norm = sqrt(total);
    if local.x == 0u {
        inverse[row] = select(1.0 / params.eps, unit / norm, norm > params.eps * unit);
    }
}
