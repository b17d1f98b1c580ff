// What a matrix unit does, in the ways that the kernels on cooperative matrices rely on, for comparison with whole numbers.
//
// Every subgroup takes one of two jobs, as there: a[i, j] and b[i, j] are small whole numbers of a job, laid out in workgroup
// memory with rows that are longer than a matrix. The first result of a job is a b + a b, the second transpose(a) b, where a
// is read by columns. result[job][which][i][j]
//
// The 16x16 form is this text with that side in the lines that name it.
enable wgpu_cooperative_matrix;

struct Params {
    seed: u32,
}

// What is multiplied; sums are f32.
alias Elem = f32;
// Rows and columns of a matrix.
const SIDE: u32 = 8u;
alias Left = coop_mat8x8<Elem, A>;
alias Right = coop_mat8x8<Elem, B>;
alias Sum = coop_mat8x8<f32, C>;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> result: array<f32>;

override WORKGROUP: u32 = 64u;

const JOBS: u32 = 2u;
const MATRIX: u32 = SIDE * SIDE;
const STRIDE: u32 = SIDE + 8u;
const TILE: u32 = JOBS * SIDE * STRIDE;
const RESULTS: u32 = JOBS * MATRIX;

var<workgroup> a: array<Elem, TILE>;
var<workgroup> b: array<Elem, TILE>;
// A matrix of each job, and one that is not read.
var<workgroup> staged: array<f32, RESULTS + MATRIX>;

// A whole number from -7 to 7.
fn small(n: u32) -> Elem {
    var hash = (n * 2654435769u) ^ (params.seed * 2246822507u);
    hash = (hash ^ (hash >> 15u)) * 739982445u;
    return Elem(i32(hash >> 24u) % 15 - 7);
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_index) local: u32, @builtin(subgroup_id) subgroup: u32) {
    for (var at = local; at < TILE; at += WORKGROUP) {
        a[at] = small(2u * at);
        b[at] = small(2u * at + 1u);
    }
    for (var at = local; at < RESULTS + MATRIX; at += WORKGROUP) {
        staged[at] = 0.0;
    }
    workgroupBarrier();
    let first = min(subgroup, JOBS - 1u) * SIDE * STRIDE;
    let stage = min(subgroup, JOBS) * MATRIX;
    let stride = STRIDE;
    var sum: array<Sum, 2>;
    for (var i = 0u; i < 2u; i++) {
        sum[i] = coopLoadT<Sum>(&staged[stage], SIDE);
    }
    let right = coopLoadT<Right>(&b[first], stride);
    let left = coopLoadT<Left>(&a[first], stride);
    let columns = coopLoad<Left>(&a[first], stride);
    for (var i = 0u; i < 2u; i++) {
        sum[0] = coopMultiplyAdd(left, right, sum[0]);
    }
    sum[1] = coopMultiplyAdd(columns, right, sum[1]);
    for (var i = 0u; i < 2u; i++) {
        workgroupBarrier();
        coopStoreT(sum[i], &staged[stage], SIDE);
        workgroupBarrier();
        for (var at = local; at < RESULTS; at += WORKGROUP) {
            result[(at / MATRIX * 2u + i) * MATRIX + at % MATRIX] = staged[at];
        }
    }
}
