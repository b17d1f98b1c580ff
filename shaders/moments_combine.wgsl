// Merges the moments of parts of the rows, [splits, 2, channels], mean and sum of squared deviations, in a fixed order into mean and
// variance (divided by the rows) of each channel, [2, channels] (Chan, Golub, LeVeque 1983).

struct Params {
    rows: u32,
    channels: u32,
    rows_per_split: u32,
    splits: u32,
}

// How x is stored.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
// Where SHIFTED, means are less the first row of x.
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read> partial: array<f32>;
@group(0) @binding(3) var<storage, read_write> moments: array<f32>;

override COLUMNS: u32 = 8u;
// A power of two.
override LANES: u32 = 32u;
override SHIFTED: bool = false;

struct Moments {
    count: f32,
    mean: f32,
    squares: f32,
}

var<workgroup> parts: array<Moments, COLUMNS * LANES>;

fn merge(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    let delta = b.mean - a.mean;
    let share = b.count / max(count, 1.0);
    return Moments(count, a.mean + delta * share, a.squares + b.squares + delta * delta * (a.count * share));
}

@compute @workgroup_size(COLUMNS, LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    let channel = group.x * COLUMNS + local.x;
    var own = Moments(0.0, 0.0, 0.0);
    if channel < params.channels {
        for (var split = local.y; split < params.splits; split += LANES) {
            let i = split * 2u * params.channels + channel;
            let count = min(params.rows_per_split, params.rows - split * params.rows_per_split);
            own = merge(own, Moments(f32(count), partial[i], partial[i + params.channels]));
        }
    }
    let slot = local.y * COLUMNS + local.x;
    parts[slot] = own;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if local.y < stride {
            own = merge(own, parts[slot + stride * COLUMNS]);
            parts[slot] = own;
        }
    }
    if local.y == 0u && channel < params.channels {
        var mean = own.mean;
        if SHIFTED {
            mean += f32(x[channel]);
        }
        moments[channel] = mean;
        moments[params.channels + channel] = own.squares / f32(params.rows);
    }
}
