// The input of a 3x3 convolution as Winograd's F(2x2, 3x3) multiplies it (Lavin and Gray, arXiv 1509.09308): of each 4x4
// window d, two pixels from the next, the 16 values of B^T d B.
//
// x [N, H, W, C] -> v [tiles, 16, C]. One invocation for four channels of a tile; grid folded into two dimensions.

struct Params {
    len: u32,
    first_tile: u32,
    tiles_y: u32,
    tiles_x: u32,
    in_height: u32,
    in_width: u32,
    vectors: u32,
    origin_y: i32,
    origin_x: i32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> v: array<vec4<f32>>;

override WORKGROUP: u32 = 64u;

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
    let vector = index % params.vectors;
    let tile = index / params.vectors;
    let column = (params.first_tile + tile) % params.tiles_x;
    let row = (params.first_tile + tile) / params.tiles_x;
    let image = row / params.tiles_y;
    let first_y = i32(2u * (row - image * params.tiles_y)) + params.origin_y;
    let first_x = i32(2u * column) + params.origin_x;

    // B^T d, column by column.
    var half: array<array<vec4<f32>, 4>, 4>;
    for (var j = 0; j < 4; j++) {
        let ix = u32(first_x + j);
        var d: array<vec4<f32>, 4>;
        for (var i = 0; i < 4; i++) {
            let iy = u32(first_y + i);
            if iy < params.in_height && ix < params.in_width {
                d[i] = x[((image * params.in_height + iy) * params.in_width + ix) * params.vectors + vector];
            }
        }
        half[0][j] = d[0] - d[2];
        half[1][j] = d[1] + d[2];
        half[2][j] = d[2] - d[1];
        half[3][j] = d[1] - d[3];
    }
    let to = tile * 16u * params.vectors + vector;
    for (var i = 0u; i < 4u; i++) {
        let at = to + 4u * i * params.vectors;
        v[at] = half[i][0] - half[i][2];
        v[at + params.vectors] = half[i][1] + half[i][2];
        v[at + 2u * params.vectors] = half[i][2] - half[i][1];
        v[at + 3u * params.vectors] = half[i][1] - half[i][3];
    }
}
