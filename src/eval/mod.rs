//! Evaluation protocols of the field, on embeddings that are already computed, and what compares runs.

pub mod all_pairs;
pub mod cache;
pub mod cached;
pub mod directions;
pub mod embedder;
pub mod ijb;
pub mod megaface;
pub mod noise;
pub mod ops;
pub mod pairs;
pub mod product;
pub mod roc;
pub mod spread;
pub mod verify;

pub use directions::Directions;
pub use spread::{Paired, Spread};
pub use verify::{VerificationReport, verify};
