//! Cases of the matrix product.

use super::{MatMul, Variant};
use crate::case::{Case, normal};

const TRANSPOSES: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// The shapes of `a` and `b` as stored, for a product of `m x k` by `k x n`.
fn stored(op: MatMul, m: usize, n: usize, k: usize) -> ([usize; 2], [usize; 2]) {
    let a = if op.transpose_a { [k, m] } else { [m, k] };
    let b = if op.transpose_b { [n, k] } else { [k, n] };
    (a, b)
}

fn product(label: String, op: MatMul, m: usize, n: usize, k: usize) -> Case {
    let (a, b) = stored(op, m, n, k);
    Case::new(label, op, vec![normal(a, 1.0, 1), normal(b, 1.0, 2)])
}

fn batched(label: &str, op: MatMul, a: &[usize], b: &[usize]) -> Case {
    Case::new(label, op, vec![normal(a.to_vec(), 1.0, 3), normal(b.to_vec(), 1.0, 4)])
}

pub(super) fn cases() -> Vec<Case> {
    let name = |(a, b): (bool, bool)| format!("{}{}", if a { "T" } else { "N" }, if b { "T" } else { "N" });
    let mut cases = Vec::new();
    for pair in TRANSPOSES {
        let op = MatMul { transpose_a: pair.0, transpose_b: pair.1, ..MatMul::default() };
        for variant in [Variant::Auto, Variant::Tiled, Variant::TiledScalar, Variant::Large, Variant::Register, Variant::Subgroup] {
            for s in [512usize, 1024] {
                cases.push(product(format!("perf {} {variant:?} {s}", name(pair)), MatMul { variant, ..op }, s, s, s).perf());
            }
        }
    }
    let _ = batched;
    cases
}
