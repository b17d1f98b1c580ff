// Partial sums of the gradients of batch norm's weight and bias, and of the slopes of a PReLU that follows in the same pass.
// With h = (x - mean) * inv_std, z = h * weight + bias, and dz = dy, or where there is a PReLU dy * (1 or slope): per split of
// the rows and channel, sum dz * h, sum dz, and sum dy * min(z, 0). The splits are added in order by `sum_rows`.
// A workgroup is COLUMNS vectors of four channels x LANES rows; the lanes stride through the split, then a tree adds them.

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
// All [splits, columns]; the last is not written where there is no PReLU.
@group(0) @binding(4) var<storage, read_write> partial_weight: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> partial_bias: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read_write> partial_slope: array<vec4<f32>>;

override COLUMNS: u32 = 64u;
// A power of two.
override LANES: u32 = 4u;
override PRELU: bool = false;

struct Sums {
    weight: vec4<f32>,
    bias: vec4<f32>,
    slope: vec4<f32>,
}

var<workgroup> sums: array<Sums, COLUMNS * LANES>;

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let column = group.x * COLUMNS + local.x;
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    var own = Sums(vec4<f32>(), vec4<f32>(), vec4<f32>());
    if column < params.columns {
        let center = constants[column];
        let inverse = constants[params.columns + column];
        let scale = constants[2u * params.columns + column];
        let offset = constants[3u * params.columns + column];
        let slope = constants[4u * params.columns + column];
        for (var row = first + local.y; row < last; row += LANES) {
            let i = row * params.columns + column;
            let centered = vec4<f32>(x[i]) - center;
            var d = vec4<f32>(dy[i]);
            if PRELU {
                let z = centered * scale + offset;
                own.slope += d * min(z, vec4<f32>(0.0));
                d = select(slope * d, d, z > vec4<f32>(0.0));
            }
            own.weight += d * (centered * inverse);
            own.bias += d;
        }
    }
    let slot = local.y * COLUMNS + local.x;
    sums[slot] = own;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if local.y < stride {
            let other = sums[slot + stride * COLUMNS];
            own = Sums(own.weight + other.weight, own.bias + other.bias, own.slope + other.slope);
            sums[slot] = own;
        }
    }
    if local.y == 0u && column < params.columns {
        let i = group.y * params.columns + column;
        partial_weight[i] = own.weight;
        partial_bias[i] = own.bias;
        if PRELU {
            partial_slope[i] = own.slope;
        }
    }
}
