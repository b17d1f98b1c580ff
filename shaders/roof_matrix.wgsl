// Nothing but products of cooperative matrices: every subgroup adds the same product to eight sums of its own, again and again,
// which wait for nobody but themselves. All elements of both factors are `factor`, so that every element of a sum is known.
//
// y[invocation] is 1 where an element that the invocation looks at is not what it should be, else 0, so that none of the work can be
// left out; subgroups[workgroup] is how many there were, which where their size varies only the kernel knows.
//
// The 16x16 form is this text with that side in the lines that name it.
enable wgpu_cooperative_matrix;

struct Params {
    // Turns of the loop, each with one product for every sum.
    rounds: u32,
    factor: f32,
}

// What is multiplied; sums are f32.
alias Elem = f32;
// Rows and columns of a matrix.
const SIDE: u32 = 8u;
alias Left = coop_mat8x8<Elem, A>;
alias Right = coop_mat8x8<Elem, B>;
alias Sum = coop_mat8x8<f32, C>;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<storage, read_write> subgroups: array<u32>;

override WORKGROUP: u32 = 128u;

const SUMS: u32 = 8u;
// Subgroups whose sums are looked at. Others do the same work, and leave theirs where nobody reads it.
const JOBS: u32 = 4u;
const MATRIX: u32 = SIDE * SIDE;
const STAGED: u32 = JOBS * MATRIX;

var<workgroup> factors: array<Elem, MATRIX>;
// A matrix of each job, and one that is not read.
var<workgroup> staged: array<f32, STAGED + MATRIX>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) count: u32,
) {
    for (var at = local; at < MATRIX; at += WORKGROUP) {
        factors[at] = Elem(params.factor);
    }
    for (var at = local; at < STAGED + MATRIX; at += WORKGROUP) {
        staged[at] = 0.0;
    }
    workgroupBarrier();
    let stage = min(subgroup, JOBS) * MATRIX;
    var sum: array<Sum, SUMS>;
    for (var i = 0u; i < SUMS; i++) {
        sum[i] = coopLoadT<Sum>(&staged[stage], SIDE);
    }
    let left = coopLoadT<Left>(&factors[0], SIDE);
    let right = coopLoadT<Right>(&factors[0], SIDE);
    for (var round = 0u; round < params.rounds; round++) {
        // Written out, so that no driver has to find out that the sums can stay in registers.
        sum[0] = coopMultiplyAdd(left, right, sum[0]);
        sum[1] = coopMultiplyAdd(left, right, sum[1]);
        sum[2] = coopMultiplyAdd(left, right, sum[2]);
        sum[3] = coopMultiplyAdd(left, right, sum[3]);
        sum[4] = coopMultiplyAdd(left, right, sum[4]);
        sum[5] = coopMultiplyAdd(left, right, sum[5]);
        sum[6] = coopMultiplyAdd(left, right, sum[6]);
        sum[7] = coopMultiplyAdd(left, right, sum[7]);
    }
    let expected = f32(SIDE * params.rounds) * params.factor * params.factor;
    let looked_at = min(count, JOBS) * MATRIX;
    var wrong = 0.0;
    for (var i = 0u; i < SUMS; i++) {
        workgroupBarrier();
        coopStoreT(sum[i], &staged[stage], SIDE);
        workgroupBarrier();
        for (var at = local; at < looked_at; at += WORKGROUP) {
            wrong = select(1.0, wrong, staged[at] == expected);
        }
    }
    let index = group.x * WORKGROUP + local;
    if index < arrayLength(&y) {
        y[index] = wrong;
    }
    if local == 0u {
        subgroups[group.x] = count;
    }
}
