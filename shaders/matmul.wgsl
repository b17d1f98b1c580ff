// C = op(A) op(B) (+ bias) in 64 x 64 tiles held in workgroup memory, 4 x 4 elements an invocation. The
// contiguous extents of A and B are multiples of 4. 16 KiB of workgroup memory.
// Slab z = split * batch + image of c is the product number `image` over the terms of `split`; slabs are added
// afterwards, in order. The grid walks the tiles of one slab after another, folded into two dimensions.

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
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
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

fn quad_a(at: u32, inside: bool) -> vec4<f32> {
    if inside {
        return a[at / 4u];
    }
    return vec4(0.0);
}

fn quad_b(at: u32, inside: bool) -> vec4<f32> {
    if inside {
        return b[at / 4u];
    }
    return vec4(0.0);
}

// op(A) at `row..row + 4`, `k..k + 4`, a column of the matrix for each k. Zero from `last` on in k; rows past the
// edge repeat the last ones, and what they yield is not stored.
fn load_a(base: u32, row: u32, k: u32, last: u32) -> mat4x4<f32> {
    if TRANSPOSE_A {
        let at = base + k * params.m + min(row, params.m - 4u);
        return mat4x4(
            quad_a(at, k < last),
            quad_a(at + params.m, k + 1u < last),
            quad_a(at + 2u * params.m, k + 2u < last),
            quad_a(at + 3u * params.m, k + 3u < last),
        );
    }
    let rows = min(vec4(row) + vec4(0u, 1u, 2u, 3u), vec4(params.m - 1u));
    let at = vec4(base + k) + rows * params.k;
    let inside = k < last;
    let block = mat4x4(
        quad_a(at.x, inside),
        quad_a(at.y, inside),
        quad_a(at.z, inside),
        quad_a(at.w, inside),
    );
    return transpose(block);
}

// op(B) at `k..k + 4`, `column..column + 4`, a column of the matrix for each k; see load_a.
fn load_b(base: u32, column: u32, k: u32, last: u32) -> mat4x4<f32> {
    if !TRANSPOSE_B {
        let at = base + k * params.n + min(column, params.n - 4u);
        return mat4x4(
            quad_b(at, k < last),
            quad_b(at + params.n, k + 1u < last),
            quad_b(at + 2u * params.n, k + 2u < last),
            quad_b(at + 3u * params.n, k + 3u < last),
        );
    }
    let columns = min(vec4(column) + vec4(0u, 1u, 2u, 3u), vec4(params.n - 1u));
    let at = vec4(base + k) + columns * params.k;
    let inside = k < last;
    let block = mat4x4(
        quad_b(at.x, inside),
        quad_b(at.y, inside),
        quad_b(at.z, inside),
        quad_b(at.w, inside),
    );
    return transpose(block);
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
