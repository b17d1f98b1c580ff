// Copies the rows of the sampled classes of a tile: tile[j] = table[classes[first + j]]. The table may be bound in
// several ranges, one launch each: a launch copies the rows that lie in its own. One workgroup a row.

struct Params {
    // Classes of the tile.
    rows: u32,
    // Place of the tile's first class in `classes`.
    first: u32,
    // Vectors of four elements of a row.
    dim: u32,
    // First class of the table's range, and how many it has.
    range_first: u32,
    range_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> classes: array<u32>;
@group(0) @binding(3) var<storage, read_write> tile: array<vec4<f32>>;

override WORKGROUP: u32 = 128u;

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
    // A class below the range wraps around and is past its end.
    let within = classes[params.first + row] - params.range_first;
    if within >= params.range_rows {
        return;
    }
    for (var d = local.x; d < params.dim; d += WORKGROUP) {
        tile[row * params.dim + d] = table[within * params.dim + d];
    }
}
