// C = op(A) op(B) (+ bias) for adapters that cache memory (CPUs), any extents, no subgroup operations.
// An invocation owns 8 rows x 4 neighbouring columns, all of a workgroup the same rows: the addresses of A are
// uniform, which such adapters turn into one load a workgroup. See matmul.wgsl for the slabs.

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

override LANES: u32 = 8u;
override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;

const ROWS: u32 = 8u;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_id) local: vec3<u32>,
) {
    let tiles_m = (params.m + ROWS - 1u) / ROWS;
    let tiles_n = (params.n + 4u * LANES - 1u) / (4u * LANES);
    let tile = group.x + group.y * groups.x;
    let slab = tile / (tiles_m * tiles_n);
    if slab >= params.batch * params.splits {
        return;
    }
    let split = slab / params.batch;
    let image = slab % params.batch;
    // The side with fewer tiles goes fastest: its operand stays in the cache, the other is read once.
    let by_row = tiles_m <= tiles_n;
    let row0 = ROWS * select(tile / tiles_n % tiles_m, tile % tiles_m, by_row);
    let column0 = 4u * LANES * select(tile % tiles_n, tile / tiles_m % tiles_n, by_row) + 4u * local.x;
    let first = split * params.k_per_split;
    let last = min(first + params.k_per_split, params.k);

    // Addresses past the edge are moved onto it; what they yield is not stored.
    let a_row = select(params.k, 1u, TRANSPOSE_A);
    let a_step = select(1u, params.m, TRANSPOSE_A);
    let b_step = select(params.n, 1u, TRANSPOSE_B);
    let columns = min(vec4(column0) + vec4(0u, 1u, 2u, 3u), vec4(params.n - 1u));
    let a_first = vec4(image * params.a_stride + first * a_step);
    let low = a_first + min(vec4(row0) + vec4(0u, 1u, 2u, 3u), vec4(params.m - 1u)) * a_row;
    let high = a_first + min(vec4(row0) + vec4(4u, 5u, 6u, 7u), vec4(params.m - 1u)) * a_row;
    let b_column = select(1u, params.k, TRANSPOSE_B);
    var at_b = vec4(image * params.b_stride + first * b_step) + columns * b_column;

    // Named one by one: an array with an index that is not constant would be kept in memory.
    var s0 = vec4(0.0);
    var s1 = vec4(0.0);
    var s2 = vec4(0.0);
    var s3 = vec4(0.0);
    var s4 = vec4(0.0);
    var s5 = vec4(0.0);
    var s6 = vec4(0.0);
    var s7 = vec4(0.0);
    var at_a = 0u;
    for (var p = first; p < last; p++) {
        let v = vec4(b[at_b.x], b[at_b.y], b[at_b.z], b[at_b.w]);
        s0 += a[low.x + at_a] * v;
        s1 += a[low.y + at_a] * v;
        s2 += a[low.z + at_a] * v;
        s3 += a[low.w + at_a] * v;
        s4 += a[high.x + at_a] * v;
        s5 += a[high.y + at_a] * v;
        s6 += a[high.z + at_a] * v;
        s7 += a[high.w + at_a] * v;
        at_a += a_step;
        at_b += b_step;
    }

    var offset = vec4(0.0);
    if params.has_bias != 0u && split == 0u {
        offset = vec4(bias[columns.x], bias[columns.y], bias[columns.z], bias[columns.w]);
    }
    let rows = array(s0, s1, s2, s3, s4, s5, s6, s7);
    for (var r = 0u; r < ROWS && row0 + r < params.m; r++) {
        let v = rows[r] + offset;
        let at = (slab * params.m + row0 + r) * params.n + column0;
        for (var j = 0u; j < 4u && column0 + j < params.n; j++) {
            c[at + j] = v[j];
        }
    }
}
