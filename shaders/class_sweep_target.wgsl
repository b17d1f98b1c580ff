// The samples whose own class is in a tile: unit[row] = n(w_y) and cosine[row] = x[row] . n(w_y). The first tile also
// sets what no tile will: zeros, for labels that are no class. One workgroup a sample.

struct Params {
    // Samples.
    rows: u32,
    // The tile's first class, and how many it has.
    first: u32,
    classes: u32,
    // Vectors of four elements of a row.
    dim: u32,
    // 1 for the first tile.
    initial: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> prototypes: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> inverse: array<f32>;
@group(0) @binding(3) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> labels: array<u32>;
@group(0) @binding(5) var<storage, read_write> unit: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> cosine: array<f32>;

override WORKGROUP: u32 = 64u;

var<workgroup> sums: array<f32, WORKGROUP>;

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
    // A label below the tile wraps around and is past its end.
    let within = labels[row] - params.first;
    let inside = within < params.classes;
    if !inside && params.initial == 0u {
        return;
    }
    let base = row * params.dim;
    let source = within * params.dim;
    var sum = 0.0;
    for (var d = lane; d < params.dim; d += WORKGROUP) {
        var v = vec4(0.0);
        if inside {
            v = prototypes[source + d] * inverse[within];
        }
        unit[base + d] = v;
        sum += dot(x[base + d], v);
    }
    sums[lane] = sum;
    for (var width = WORKGROUP / 2u; width > 0u; width /= 2u) {
        workgroupBarrier();
        if lane < width {
            sums[lane] += sums[lane + width];
        }
    }
    if lane == 0u {
        cosine[row] = sums[0];
    }
}
