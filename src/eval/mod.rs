//! Evaluation protocols of the field, on embeddings that are already computed.

pub mod embedder;
pub mod noise;
pub mod pairs;
pub mod verify;

pub use verify::{VerificationReport, verify};
