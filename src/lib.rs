//! Face recognition training with empirical prototype learning, on any GPU that wgpu reaches.
//!
//! Layers, lowest first; a lower one never names a higher one: [`nn`]; [`head`]; [`data`], [`interchange`] and
//! [`config`]; [`model`]; [`eval`]; [`report`]; [`train`]; and the command line.

pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod error;
pub mod eval;
pub mod head;
pub mod interchange;
pub mod model;
pub mod nn;
pub mod pickle;
pub mod report;
pub mod train;

pub use error::{Error, Result};
