//! Face recognition training with empirical prototype learning, on any GPU that wgpu reaches.

pub mod cli;
pub mod config;
pub mod data;
pub mod error;
pub mod head;
pub mod report;
pub mod train;

pub use error::{Error, Result};
