// inverse[j] = 1 / max(|w_j|, eps) for the rows w of a tile of prototypes. One workgroup a row.
// The row is divided by its largest magnitude before it is squared, so that no square overflows or vanishes.

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
    var largest = vec4(0.0);
    for (var i = first + local.x; i < last; i += WORKGROUP) {
        largest = max(largest, abs(prototypes[i]));
    }
    let most = max(max(largest.x, largest.y), max(largest.z, largest.w));
    let unit = 1.0 / max(workgroup_max(local.x, most), TINY);
    var squares = 0.0;
    for (var i = first + local.x; i < last; i += WORKGROUP) {
        let v = prototypes[i] * unit;
        squares += dot(v, v);
    }
    // In units of the largest magnitude. With eps at most 1, its product with `unit` does not overflow.
    let norm = sqrt(workgroup_sum(local.x, squares));
    if local.x == 0u {
        inverse[row] = select(1.0 / params.eps, unit / norm, norm > params.eps * unit);
    }
}
