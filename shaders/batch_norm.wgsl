// Normalisation with the statistics of the batch, and what follows it in the same pass:
// y[r, c] = (x[r, c] - mean[c]) * inv_std[c] * weight[c] + bias[c], then PReLU, then the sum with a residual, where told.
// A workgroup is COLUMNS channels x LANES rows that walk a split of the rows: a column's constants are read once.

struct Params {
    rows: u32,
    // Channels.
    columns: u32,
    rows_per_split: u32,
}

// How activations are stored.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
// [5, columns]: mean, inv_std, inv_std * weight, bias, slope.
@group(0) @binding(2) var<storage, read> constants: array<f32>;
// Anything where nothing is added.
@group(0) @binding(3) var<storage, read> residual: array<Elem>;
@group(0) @binding(4) var<storage, read_write> y: array<Elem>;

override COLUMNS: u32 = 64u;
override LANES: u32 = 4u;
override PRELU: bool = false;
override RESIDUAL: bool = false;

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let column = group.x * COLUMNS + local.x;
    if column >= params.columns {
        return;
    }
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    let center = constants[column];
    let scale = constants[2u * params.columns + column];
    let offset = constants[3u * params.columns + column];
    let slope = constants[4u * params.columns + column];
    for (var row = first + local.y; row < last; row += LANES) {
        let i = row * params.columns + column;
        // Not folded into one multiply-add: mean * scale may be far larger than y.
        var v = (f32(x[i]) - center) * scale + offset;
        if PRELU {
            v = select(slope * v, v, v > f32(0.0));
        }
        if RESIDUAL {
            v += f32(residual[i]);
        }
        y[i] = Elem(v);
    }
}
