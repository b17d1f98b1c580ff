// The weights of the convolutions that an input gradient is made of (see conv2d_grad_input.rs).
//
// With stride s, the rows of dx fall into s phases, and each tap of the kernel belongs to one of them, by its remainder
// modulo s. A phase is a convolution of dy at stride 1 with the phase's taps in reverse order and the roles of the
// channels exchanged. weight [kernel taps, in, groups, out] becomes, phase after phase,
// flipped [taps of the phase, out, groups, in], with the channels of a group filled up with zeros to padded_*.
// One invocation for 16 output channels of a tap and an input channel; grid folded into two dimensions.

struct Params {
    len: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride_y: u32,
    stride_x: u32,
    groups: u32,
    group_in: u32,
    group_out: u32,
    padded_in: u32,
    padded_out: u32,
}

// How the weights are stored.
alias Elem = f32;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> weight: array<Elem>;
@group(0) @binding(2) var<storage, read_write> flipped: array<Elem>;

override WORKGROUP: u32 = 64u;

// Output channels of an invocation.
const BLOCK: u32 = 16u;

// Taps of `size` whose remainder modulo `stride` is less than `remainder`.
fn taps_before(remainder: u32, size: u32, stride: u32) -> u32 {
    return remainder * (size / stride) + min(remainder, size % stride);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
) {
    let index = (group.x + group.y * groups.x) * WORKGROUP + local;
    if index >= params.len {
        return;
    }
    let i = index % params.padded_in;
    let channel_group = index / params.padded_in % params.groups;
    let blocks = (params.padded_out + BLOCK - 1u) / BLOCK;
    let first_o = index / params.padded_in / params.groups % blocks * BLOCK;
    let tap = index / params.padded_in / params.groups / blocks;
    let ky = tap / params.kernel_width;
    let kx = tap % params.kernel_width;

    let phase_y = ky % params.stride_y;
    let phase_x = kx % params.stride_x;
    let before_y = taps_before(phase_y, params.kernel_height, params.stride_y);
    let before_x = taps_before(phase_x, params.kernel_width, params.stride_x);
    let taps_y = taps_before(phase_y + 1u, params.kernel_height, params.stride_y) - before_y;
    let taps_x = taps_before(phase_x + 1u, params.kernel_width, params.stride_x) - before_x;
    let phase_first = before_y * params.kernel_width + taps_y * before_x;
    let to_tap = phase_first + (taps_y - 1u - ky / params.stride_y) * taps_x + (taps_x - 1u - kx / params.stride_x);

    let start = ((tap * params.group_in + i) * params.groups + channel_group) * params.group_out;
    for (var o = first_o; o < min(first_o + BLOCK, params.padded_out); o++) {
        var value = Elem();
        if i < params.group_in && o < params.group_out {
            value = weight[start + o];
        }
        flipped[((to_tap * params.padded_out + o) * params.groups + channel_group) * params.padded_in + i] = value;
    }
}
