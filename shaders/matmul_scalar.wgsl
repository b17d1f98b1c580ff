// C = op(A) op(B) (+ bias) as matmul.wgsl does it, with scalar loads, for extents that are no multiples of 4.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    batch: u32,
    splits: u32,
    k_per_split: u32,
    a_stride: u32,
    b_stride: u32,
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;

const TILE: u32 = 64u;
const TILE_K: u32 = 32u;
const QUADS: u32 = TILE / 4u;

// [k][quad of rows or columns], the quads permuted by an exclusive or with k / 4: the stores of a block that was
// read along k would otherwise all fall into the same banks.
var<workgroup> tile_a: array<vec4<f32>, 512>;
var<workgroup> tile_b: array<vec4<f32>, 512>;

fn element_a(base: u32, row: u32, k: u32, last: u32) -> f32 {
    if row < params.m && k < last {
        return a[base + select(row * params.k + k, k * params.m + row, TRANSPOSE_A)];
    }
    return 0.0;
}

fn element_b(base: u32, column: u32, k: u32, last: u32) -> f32 {
    if column < params.n && k < last {
        return b[base + select(k * params.n + column, column * params.k + k, TRANSPOSE_B)];
    }
    return 0.0;
}

fn rows_a(base: u32, row: u32, k: u32, last: u32) -> vec4<f32> {
    return vec4(
        element_a(base, row, k, last),
        element_a(base, row + 1u, k, last),
        element_a(base, row + 2u, k, last),
        element_a(base, row + 3u, k, last),
    );
}

fn columns_b(base: u32, column: u32, k: u32, last: u32) -> vec4<f32> {
    return vec4(
        element_b(base, column, k, last),
        element_b(base, column + 1u, k, last),
        element_b(base, column + 2u, k, last),
        element_b(base, column + 3u, k, last),
    );
}

// op(A) at `row..row + 4`, `k..k + 4`, a column of the matrix for each k; zero outside.
fn load_a(base: u32, row: u32, k: u32, last: u32) -> mat4x4<f32> {
    return mat4x4(
        rows_a(base, row, k, last),
        rows_a(base, row, k + 1u, last),
        rows_a(base, row, k + 2u, last),
        rows_a(base, row, k + 3u, last),
    );
}

// op(B) at `k..k + 4`, `column..column + 4`, a column of the matrix for each k; zero outside.
fn load_b(base: u32, column: u32, k: u32, last: u32) -> mat4x4<f32> {
    return mat4x4(
        columns_b(base, column, k, last),
        columns_b(base, column, k + 1u, last),
        columns_b(base, column, k + 2u, last),
        columns_b(base, column, k + 3u, last),
    );
}

fn store_row(slab: u32, row: u32, column: u32, v: vec4<f32>) {
    if row >= params.m {
        return;
    }
    let at = (slab * params.m + row) * params.n + column;
    for (var j = 0u; j < 4u; j++) {
        if column + j < params.n {
            c[at + j] = v[j];
        }
    }
}

fn bias_at(column: u32, split: u32) -> vec4<f32> {
    var v = vec4(0.0);
    if params.has_bias != 0u && split == 0u {
        for (var j = 0u; j < 4u; j++) {
            v[j] = bias[min(column + j, params.n - 1u)];
        }
    }
    return v;
}

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tiles_m = (params.m + TILE - 1u) / TILE;
    let tiles_n = (params.n + TILE - 1u) / TILE;
    let tile = group.x + group.y * groups.x;
    let slab = tile / (tiles_m * tiles_n);
    if slab >= params.batch * params.splits {
        return;
    }
    let split = slab / params.batch;
    let image = slab % params.batch;
    // The side with fewer tiles goes fastest: its operand stays in the cache, the other is read once.
    let by_row = tiles_m <= tiles_n;
    let row0 = TILE * select(tile / tiles_n % tiles_m, tile % tiles_m, by_row);
    let column0 = TILE * select(tile % tiles_n, tile / tiles_m % tiles_n, by_row);
    let first = split * params.k_per_split;
    let last = min(first + params.k_per_split, params.k);
    let base_a = image * params.a_stride;
    let base_b = image * params.b_stride;

    // A block of 4 x 4 elements an invocation: the first half reads A, the second B, along the contiguous extent.
    let index = lane % 128u;
    let reads_a = lane < 128u;
    let along_k = select(TRANSPOSE_B, !TRANSPOSE_A, reads_a);
    let quad = select(index % QUADS, index / 8u, along_k);
    let quad_k = select(index / QUADS, index % 8u, along_k);
    let store_at = 4u * quad_k * QUADS + (quad ^ quad_k);
    let x = lane % QUADS;
    let y = lane / QUADS;

    var s0 = vec4(0.0);
    var s1 = vec4(0.0);
    var s2 = vec4(0.0);
    var s3 = vec4(0.0);
    for (var k = first; k < last; k += TILE_K) {
        if reads_a {
            let block = load_a(base_a, row0 + 4u * quad, k + 4u * quad_k, last);
            tile_a[store_at] = block[0];
            tile_a[store_at + QUADS] = block[1];
            tile_a[store_at + 2u * QUADS] = block[2];
            tile_a[store_at + 3u * QUADS] = block[3];
        } else {
            let block = load_b(base_b, column0 + 4u * quad, k + 4u * quad_k, last);
            tile_b[store_at] = block[0];
            tile_b[store_at + QUADS] = block[1];
            tile_b[store_at + 2u * QUADS] = block[2];
            tile_b[store_at + 3u * QUADS] = block[3];
        }
        workgroupBarrier();
        for (var step = 0u; step < TILE_K; step++) {
            let u = tile_a[step * QUADS + (y ^ (step / 4u))];
            let v = tile_b[step * QUADS + (x ^ (step / 4u))];
            s0 += u.x * v;
            s1 += u.y * v;
            s2 += u.z * v;
            s3 += u.w * v;
        }
        workgroupBarrier();
    }

    let row = row0 + 4u * y;
    let column = column0 + 4u * x;
    let offset = bias_at(column, split);
    store_row(slab, row, column, s0 + offset);
    store_row(slab, row + 1u, column, s1 + offset);
    store_row(slab, row + 2u, column, s2 + offset);
    store_row(slab, row + 3u, column, s3 + offset);
}
