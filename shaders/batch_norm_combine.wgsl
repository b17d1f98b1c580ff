// Second stage of the batch statistics: merges the splits of batch_norm_stats in a fixed order, leaves what normalises each
// channel, and moves the running statistics. The variance that normalises is the biased one,
// the running variance takes the unbiased one, as in PyTorch.

struct Params {
    rows: u32,
    channels: u32,
    rows_per_split: u32,
    splits: u32,
    eps: f32,
    momentum: f32,
}

// How activations are stored.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
// Only its first row is read: what batch_norm_stats subtracted.
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read> partial: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read> bias: array<f32>;
// The slopes of the PReLU that follows; anything where none does.
@group(0) @binding(5) var<storage, read> slope: array<f32>;
@group(0) @binding(6) var<storage, read_write> running_mean: array<f32>;
@group(0) @binding(7) var<storage, read_write> running_var: array<f32>;
// [5, channels]: mean, 1 / sqrt(var + eps), that times the weight, bias, slope.
@group(0) @binding(8) var<storage, read_write> constants: array<f32>;

override COLUMNS: u32 = 16u;
// A power of two.
override LANES: u32 = 16u;

struct Moments {
    count: f32,
    mean: f32,
    squares: f32,
}

var<workgroup> moments: array<Moments, COLUMNS * LANES>;

fn merge(a: Moments, b: Moments) -> Moments {
    let count = a.count + b.count;
    let delta = b.mean - a.mean;
    let share = b.count / max(count, 1.0);
    return Moments(count, a.mean + delta * share, a.squares + b.squares + delta * delta * (a.count * share));
}

// By its bits: a test on floats may be folded away by a compiler that assumes that there are no NaNs.
fn finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u;
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
    moments[slot] = own;
    for (var stride = LANES / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if local.y < stride {
            own = merge(own, moments[slot + stride * COLUMNS]);
            moments[slot] = own;
        }
    }
    if local.y == 0u && channel < params.channels {
        let batch_mean = f32(x[channel]) + own.mean;
        let rows = f32(params.rows);
        let inverse = inverseSqrt(own.squares / rows + params.eps);
        constants[channel] = batch_mean;
        constants[params.channels + channel] = inverse;
        constants[2u * params.channels + channel] = inverse * weight[channel];
        constants[3u * params.channels + channel] = bias[channel];
        constants[4u * params.channels + channel] = slope[channel];
        let keep = 1.0 - params.momentum;
        let unbiased = own.squares / max(rows - 1.0, 1.0);
        // A batch that overflowed must not spoil what outlives it.
        if finite(batch_mean) && finite(unbiased) {
            running_mean[channel] = keep * running_mean[channel] + params.momentum * batch_mean;
            running_var[channel] = keep * running_var[channel] + params.momentum * unbiased;
        }
    }
}
