// C = op(A) op(B) (+ bias) for adapters that run a subgroup as one vector and cache memory (CPUs), where the
// contiguous extent of B is a multiple of 4.
// A workgroup is one subgroup; a lane owns 16 rows x 4 neighbouring columns. Lane l reads rows l and l + 8 of A for
// 4 steps of k, and each value is handed round by a broadcast: memory accesses are gathers there, broadcasts are
// not. Workgroup memory would only be a copy of the cache. See matmul.wgsl for the slabs.

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
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read_write> c: array<f32>;

// The number of lanes, at least 8: every subgroup of the adapter has exactly this size.
override LANES: u32 = 8u;
override TRANSPOSE_A: bool = false;
override TRANSPOSE_B: bool = false;

const ROWS: u32 = 16u;

// Adds one step of k: `u` and `w` hold A of rows l and l + 8 in lane l, `v` is B of this lane's columns.
// Written out, because only constant indices keep the sums in registers.
fn add_step(sum: ptr<function, array<vec4<f32>, 16>>, u: f32, w: f32, v: vec4<f32>) {
    (*sum)[0] += subgroupBroadcast(u, 0u) * v;
    (*sum)[1] += subgroupBroadcast(u, 1u) * v;
    (*sum)[2] += subgroupBroadcast(u, 2u) * v;
    (*sum)[3] += subgroupBroadcast(u, 3u) * v;
    (*sum)[4] += subgroupBroadcast(u, 4u) * v;
    (*sum)[5] += subgroupBroadcast(u, 5u) * v;
    (*sum)[6] += subgroupBroadcast(u, 6u) * v;
    (*sum)[7] += subgroupBroadcast(u, 7u) * v;
    (*sum)[8] += subgroupBroadcast(w, 0u) * v;
    (*sum)[9] += subgroupBroadcast(w, 1u) * v;
    (*sum)[10] += subgroupBroadcast(w, 2u) * v;
    (*sum)[11] += subgroupBroadcast(w, 3u) * v;
    (*sum)[12] += subgroupBroadcast(w, 4u) * v;
    (*sum)[13] += subgroupBroadcast(w, 5u) * v;
    (*sum)[14] += subgroupBroadcast(w, 6u) * v;
    (*sum)[15] += subgroupBroadcast(w, 7u) * v;
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_invocation_id) lane: u32,
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
    let column0 = 4u * LANES * select(tile % tiles_n, tile / tiles_m % tiles_n, by_row) + 4u * lane;
    let first = split * params.k_per_split;
    let last = min(first + params.k_per_split, params.k);

    // Addresses past the edge are moved onto it; what they yield is not stored.
    let low = min(row0 + lane % 8u, params.m - 1u);
    let high = min(row0 + lane % 8u + 8u, params.m - 1u);
    let columns = min(vec4(column0) + vec4(0u, 1u, 2u, 3u), vec4(params.n - 1u));
    let a_step = select(1u, params.m, TRANSPOSE_A);
    let a_row = select(params.k, 1u, TRANSPOSE_A);
    var at_low = image * params.a_stride + low * a_row + first * a_step;
    var at_high = image * params.a_stride + high * a_row + first * a_step;

    var sum: array<vec4<f32>, 16>;
    var p = first;
    for (; p + 4u <= last; p += 4u) {
        let u = vec4(a[at_low], a[at_low + a_step], a[at_low + 2u * a_step], a[at_low + 3u * a_step]);
        let w = vec4(a[at_high], a[at_high + a_step], a[at_high + 2u * a_step], a[at_high + 3u * a_step]);
        at_low += 4u * a_step;
        at_high += 4u * a_step;
        var v: mat4x4<f32>;
        if TRANSPOSE_B {
            let at = (vec4(image * params.b_stride + p) + columns * params.k) / 4u;
            v = transpose(mat4x4(b[at.x], b[at.y], b[at.z], b[at.w]));
        } else {
            let at = (image * params.b_stride + p * params.n + columns.x) / 4u;
            let step = params.n / 4u;
            v = mat4x4(b[at], b[at + step], b[at + 2u * step], b[at + 3u * step]);
        }
        add_step(&sum, u.x, w.x, v[0]);
        add_step(&sum, u.y, w.y, v[1]);
        add_step(&sum, u.z, w.z, v[2]);
        add_step(&sum, u.w, w.w, v[3]);
    }
    // Fewer than 4 steps are left only where k is no multiple of 4, and then B is not transposed.
    for (; p < last; p++) {
        let v = b[(image * params.b_stride + p * params.n + columns.x) / 4u];
        add_step(&sum, a[at_low], a[at_high], v);
        at_low += a_step;
        at_high += a_step;
    }

    var offset = vec4(0.0);
    if params.has_bias != 0u && split == 0u {
        offset = vec4(bias[columns.x], bias[columns.y], bias[columns.z], bias[columns.w]);
    }
    // A copy, as an index that is not constant would keep the sums themselves in memory.
    var rows = array(
        sum[0], sum[1], sum[2], sum[3], sum[4], sum[5], sum[6], sum[7],
        sum[8], sum[9], sum[10], sum[11], sum[12], sum[13], sum[14], sum[15],
    );
    for (var r = 0u; r < ROWS && row0 + r < params.m; r++) {
        let v = rows[r] + offset;
        let at = (slab * params.m + row0 + r) * params.n + column0;
        for (var j = 0u; j < 4u && column0 + j < params.n; j++) {
            c[at + j] = v[j];
        }
    }
}
