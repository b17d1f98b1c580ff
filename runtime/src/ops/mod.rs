//! The ops. One file an op; the registry below is the only list of them.

use crate::case::OpEntry;

pub mod add;
pub mod broadcast_scalar;
pub mod dropout;
pub mod fill;
pub mod l2_normalize;
pub mod matmul;
pub mod prelu;
pub mod reshape;
pub mod scale;
pub mod sum_all;
pub mod sum_rows;

/// Every op of the runtime, sorted by name.
pub const REGISTRY: &[OpEntry] = &[
    add::ENTRY,
    broadcast_scalar::ENTRY,
    dropout::ENTRY,
    fill::ENTRY,
    l2_normalize::ENTRY,
    l2_normalize::GRAD_ENTRY,
    matmul::ENTRY,
    prelu::ENTRY,
    prelu::GRAD_ENTRY,
    scale::ENTRY,
    sum_all::ENTRY,
    sum_rows::ENTRY,
];
