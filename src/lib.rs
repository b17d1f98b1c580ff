//! Face recognition training with empirical prototype learning, on any GPU that wgpu reaches.

pub mod data;
pub mod error;

pub use error::{Error, Result};
