// First stage of the batch statistics of x [rows, channels]: mean and sum of squared deviations of each split of rows.
// Values are taken relative to the channel's first row, so that a mean far larger than the deviation costs no digits,
// and gathered by Welford's method (blocks of rows merged as in Chan, Golub, LeVeque 1983), so that a first row that is
// an outlier does no harm either. As batch_norm_stats.wgsl with vectors of four channels: a workgroup is COLUMNS
// vectors x LANES rows; COLUMNS neighbours load neighbours.

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
// [splits, 2, columns]: the mean less the channel's first value, then the sum of squared deviations.
@group(0) @binding(2) var<storage, read_write> partial: array<vec4<f32>>;

override COLUMNS: u32 = 64u;
// A power of two.
override LANES: u32 = 4u;

struct Moments {
    mean: vec4<f32>,
    squares: vec4<f32>,
    count: f32,
}

var<workgroup> moments: array<Moments, COLUMNS * LANES>;

fn merge(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    let delta = b.mean - a.mean;
    let share = b.count / max(count, 1.0);
    return Moments(a.mean + delta * share, a.squares + b.squares + delta * delta * (a.count * share), count);
}

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let column = group.x * COLUMNS + local.x;
    let first = group.y * params.rows_per_split;
    let last = min(first + params.rows_per_split, params.rows);
    var own = Moments(vec4<f32>(0.0), vec4<f32>(0.0), 0.0);
    if column < params.columns {
        let shift = vec4<f32>(x[column]);
        let step = LANES * params.columns;
        var row = first + local.y;
        // Four rows at a time: four loads in flight and one division.
        for (; row + 3u * LANES < last; row += 4u * LANES) {
            let i = row * params.columns + column;
            let a = vec4<f32>(x[i]) - shift;
            let b = vec4<f32>(x[i + step]) - shift;
            let c = vec4<f32>(x[i + 2u * step]) - shift;
            let d = vec4<f32>(x[i + 3u * step]) - shift;
            let mean = 0.25 * ((a + b) + (c + d));
            let squares = ((a - mean) * (a - mean) + (b - mean) * (b - mean))
                + ((c - mean) * (c - mean) + (d - mean) * (d - mean));
            own = merge(own, Moments(mean, squares, 4.0));
        }
        for (; row < last; row += LANES) {
            own = merge(own, Moments(vec4<f32>(x[row * params.columns + column]) - shift, vec4<f32>(0.0), 1.0));
        }
    }
    let slot = local.y * COLUMNS + local.x;
    moments[slot] = own;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if local.y < stride {
            own = merge(own, moments[slot + stride * COLUMNS]);
            moments[slot] = own;
        }
    }
    if local.y == 0u && column < params.columns {
        let i = group.y * 2u * params.columns + column;
        partial[i] = own.mean;
        partial[i + params.columns] = own.squares;
    }
}
