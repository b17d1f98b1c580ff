// y[split, c] = factor * sum over the rows of the split of x[row, c]; with one split, the whole sum.
// A workgroup of 64 columns x 4 row lanes: lanes stride through the rows, then lane 0 adds the four in order.

struct Params {
    rows: u32,
    columns: u32,
    rows_per_split: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const COLUMNS: u32 = 64u;
const LANES: u32 = 4u;

var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let column = group.x * COLUMNS + local.x;
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    var sum = 0.0;
    if column < params.columns {
        for (var row = first + local.y; row < last; row += LANES) {
            sum += x[row * params.columns + column];
        }
    }
    sums[local.y * COLUMNS + local.x] = sum;
    workgroupBarrier();
    if local.y == 0u && column < params.columns {
        let total = (sums[local.x] + sums[COLUMNS + local.x])
            + (sums[2u * COLUMNS + local.x] + sums[3u * COLUMNS + local.x]);
        y[group.y * params.columns + column] = params.factor * total;
    }
}
