//! A small tensor runtime on wgpu: WGSL kernels, ops with references, a static graph that is
//! differentiated, planned once and replayed.
pub mod error;
pub use error::{Error, Result};
