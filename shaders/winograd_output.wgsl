// The output of a 3x3 convolution by Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308): of the 16 products m of
// each tile, the 2x2 pixels of A^T m A.
//
// m [tiles, 16, O] -> y [N, OH, OW, O]. One invocation for four channels of a tile; grid folded into two dimensions.

struct Params {
    len: u32,
    first_tile: u32,
    tiles_y: u32,
    tiles_x: u32,
    out_height: u32,
    out_width: u32,
    vectors: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> m: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

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

    // A^T m, column by column.
    var half: array<array<vec4<f32>, 4>, 2>;
    for (var j = 0u; j < 4u; j++) {
        let at = (tile * 16u + j) * params.vectors + vector;
        let middle = m[at + 4u * params.vectors];
        let other = m[at + 8u * params.vectors];
        half[0][j] = m[at] + middle + other;
        half[1][j] = middle - other - m[at + 12u * params.vectors];
    }
    for (var i = 0u; i < 2u; i++) {
        let oy = 2u * (row - image * params.tiles_y) + i;
        if oy >= params.out_height {
            break;
        }
        let to = ((image * params.out_height + oy) * params.out_width + 2u * column) * params.vectors + vector;
        y[to] = half[i][0] + half[i][1] + half[i][2];
        if 2u * column + 1u < params.out_width {
            y[to + params.vectors] = half[i][1] - half[i][2] - half[i][3];
        }
    }
}
