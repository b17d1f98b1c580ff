// Gradient of batch norm with respect to x, given those of weight and bias, with h = (x - mean) * inv_std:
// dx[r, c] = weight[c] * inv_std[c] * (dz[r, c] - dbias[c] / rows - h[r, c] * dweight[c] / rows), where dz is dy, or where a PReLU
// follows in the same pass dy * (1 or slope).
// A workgroup is COLUMNS vectors of four channels x LANES rows that walk a split of the rows: a column's constants are read once.

struct Params {
    rows: u32,
    // Channels / 4.
    columns: u32,
    rows_per_split: u32,
}

// How activations are stored.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;
// [5, columns]: mean, inv_std, inv_std * weight, bias, slope.
@group(0) @binding(2) var<storage, read> constants: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> dy: array<vec4<Elem>>;
@group(0) @binding(4) var<storage, read> dweight: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> dbias: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> dx: array<vec4<Elem>>;

override COLUMNS: u32 = 64u;
override LANES: u32 = 4u;
override PRELU: bool = false;

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let column = group.x * COLUMNS + local.x;
    if column >= params.columns {
        return;
    }
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    let rows = f32(params.rows);
    let center = constants[column];
    let inverse = constants[params.columns + column];
    let scale = constants[2u * params.columns + column];
    let offset = constants[3u * params.columns + column];
    let slope = constants[4u * params.columns + column];
    let mean_bias = dbias[column] / rows;
    let mean_weight = inverse * (dweight[column] / rows);
    for (var row = first + local.y; row < last; row += LANES) {
        let i = row * params.columns + column;
        let centered = vec4<f32>(x[i]) - center;
        var d = vec4<f32>(dy[i]);
        if PRELU {
            d = select(slope * d, d, centered * scale + offset > vec4<f32>(0.0));
        }
        dx[i] = vec4<Elem>(scale * ((d - mean_bias) - centered * mean_weight));
    }
}
