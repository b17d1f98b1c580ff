// What normalises each channel, from the moments of the batch, [2, channels], mean and variance; and the running statistics moved.
// The variance that normalises is the biased one, the running variance takes the unbiased one, as in PyTorch.

struct Params {
    rows: u32,
    channels: u32,
    eps: f32,
    momentum: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> moments: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
// The slopes of the PReLU that follows; anything where none does.
@group(0) @binding(4) var<storage, read> slope: array<f32>;
@group(0) @binding(5) var<storage, read_write> running_mean: array<f32>;
@group(0) @binding(6) var<storage, read_write> running_var: array<f32>;
// [5, channels]: mean, 1 / sqrt(var + eps), that times the weight, bias, slope.
@group(0) @binding(7) var<storage, read_write> constants: array<f32>;

// By its bits: a test on floats may be folded away by a compiler that assumes that there are no NaNs.
fn finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) global: vec3<u32>) {
    let channel = global.x;
    if channel >= params.channels {
        return;
    }
    let mean = moments[channel];
    let variance = moments[params.channels + channel];
    let inverse = inverseSqrt(variance + params.eps);
    constants[channel] = mean;
    constants[params.channels + channel] = inverse;
    constants[2u * params.channels + channel] = inverse * weight[channel];
    constants[3u * params.channels + channel] = bias[channel];
    constants[4u * params.channels + channel] = slope[channel];
    let rows = f32(params.rows);
    let unbiased = variance * (rows / max(rows - 1.0, 1.0));
    let keep = 1.0 - params.momentum;
    // A batch that overflowed must not spoil what outlives it.
    if finite(mean) && finite(unbiased) {
        running_mean[channel] = keep * running_mean[channel] + params.momentum * mean;
        running_var[channel] = keep * running_var[channel] + params.momentum * unbiased;
    }
}
