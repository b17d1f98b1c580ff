//! The ops of evaluation: what is asked of the scores of all pairs of two sets of embeddings, without keeping them.
//!
//! They are written against the runtime's public op trait, as those of `src/head/` are.

pub mod score_histogram;
pub mod score_select;
mod tiles;

use epl_runtime::case::OpEntry;

pub use tiles::{Bins, MAX_PANEL, WINDOW};

/// Every op of evaluation, sorted by name.
pub const REGISTRY: &[OpEntry] = &[score_histogram::ENTRY, score_select::ENTRY];
