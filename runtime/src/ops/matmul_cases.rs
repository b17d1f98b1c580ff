//! The products on which `matmul` is tried.

use crate::case::{Case, normal};
use crate::ops::matmul::{MatMul, Variant};

const EVERY_TRANSPOSE: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];
const EVERY_VARIANT: [Variant; 5] =
    [Variant::Tiled, Variant::TiledScalar, Variant::Large, Variant::Register, Variant::Subgroup];

fn name(op: MatMul) -> String {
    let letter = |transposed: bool| if transposed { 'T' } else { 'N' };
    format!("{}{} {:?}", letter(op.transpose_a), letter(op.transpose_b), op.variant)
}

/// The product of `m x k` by `k x n` with the given batch dimensions of `a` and `b`. Standard normal elements, `a`
/// times `scale`.
fn product(
    label: &str,
    op: MatMul,
    [m, n, k]: [usize; 3],
    batches: [&[usize]; 2],
    bias: bool,
    scale: f32,
) -> Case {
    let a = if op.transpose_a { [k, m] } else { [m, k] };
    let b = if op.transpose_b { [n, k] } else { [k, n] };
    let mut inputs =
        vec![normal([batches[0], &a].concat(), scale, 1), normal([batches[1], &b].concat(), 1.0, 2)];
    if bias {
        inputs.push(normal([n], scale, 3));
    }
    let terms = if op.sum_batch { k * batches[0].iter().product::<usize>() } else { k };
    // Terms of random signs cancel: the error of a sum of n terms, relative to the sum, grows up to the order of
    // sqrt(n) units of 6e-8.
    Case::new(label, op, inputs).relative(1e-5_f64.max(4e-7 * (terms as f64).sqrt()))
}

fn single(label: &str, op: MatMul, extents: [usize; 3]) -> Case {
    product(&format!("{label} {}", name(op)), op, extents, [&[], &[]], false, 1.0)
}

/// The cases of the op.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (transpose_a, transpose_b) in EVERY_TRANSPOSE {
        let plain = MatMul { transpose_a, transpose_b, ..MatMul::default() };
        for variant in EVERY_VARIANT {
            let op = MatMul { variant, ..plain };
            cases.push(single("aligned", op, [68, 72, 36]));
            cases.push(single("unaligned", op, [67, 35, 33]));
            cases.push(product(
                &format!("batch and bias {}", name(op)),
                op,
                [20, 36, 12],
                [&[3], &[3]],
                true,
                1.0,
            ));
        }
        cases.push(single("one term", plain, [5, 9, 1]));
        cases.push(single("one row", plain, [1, 37, 19]));
        cases.push(single("one column", plain, [37, 1, 19]));
        cases.push(single("one element", plain, [1, 1, 1]));
        cases.push(product(
            &format!("split, bias {}", name(plain)),
            plain,
            [3, 5, 2051],
            [&[], &[]],
            true,
            1.0,
        ));
        let split = MatMul { variant: Variant::Tiled, ..plain };
        cases.push(single("split", split, [8, 12, 1092]));
        cases.push(product(&format!("huge {}", name(plain)), plain, [9, 10, 11], [&[], &[]], true, 1e30));
        cases.push(product(&format!("tiny {}", name(plain)), plain, [9, 10, 11], [&[], &[]], true, 1e-15));

        // The gradient is linear in either operand: a large step loses nothing.
        let gradient = |label: &str, batches: [&[usize]; 2], bias: bool| {
            let case = product(&format!("{label} {}", name(plain)), plain, [3, 5, 4], batches, bias, 1.0)
                .epsilon(1e-2);
            case.differentiate(if bias { &[0, 1, 2] } else { &[0, 1] })
        };
        cases.push(gradient("gradient", [&[], &[]], false));
        cases.push(gradient("gradient with bias", [&[], &[]], true));
        cases.push(gradient("batched", [&[2, 2], &[2, 2]], true));
        cases.push(gradient("shared b", [&[3], &[]], true));
        cases.push(gradient("shared a", [&[], &[3]], false));

        let sum = MatMul { sum_batch: true, ..plain };
        for (label, batches) in [
            ("sum of a batch", [&[3][..], &[3]]),
            ("sum, shared a", [&[], &[3]]),
            ("sum, shared b", [&[3], &[]]),
        ] {
            cases.push(product(&format!("{label} {}", name(sum)), sum, [13, 10, 7], batches, false, 1.0));
        }
        for size in [512, 1024] {
            cases.push(single(&format!("perf {size}"), plain, [size; 3]).perf());
        }
    }
    let linear = MatMul { transpose_b: true, ..MatMul::default() };
    cases.push(single("perf fully connected", linear, [128, 512, 25_088]).perf());
    cases
}
