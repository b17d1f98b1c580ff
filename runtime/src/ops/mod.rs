//! The ops. One file an op; the registry below is the only list of them.

use crate::case::OpEntry;

pub mod matmul;
pub mod prelu;
pub mod sum_rows;

/// Every op of the runtime, sorted by name.
pub const REGISTRY: &[OpEntry] = &[matmul::ENTRY, prelu::ENTRY, prelu::GRAD_ENTRY, sum_rows::ENTRY];
