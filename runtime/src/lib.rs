//! A small tensor runtime on wgpu: WGSL kernels, ops with references, a static graph that is
//! differentiated, planned once and replayed.
//!
//! Layers, lowest first; a lower one never names a higher one:
//!
//! - L0 [`shape`], [`dtype`], [`host`], [`error`]: data on the host
//! - L1 [`caps`], [`kernel`]: the GPU; no ops
//! - L2 [`op`], [`case`], [`ops`]: one file an op
//! - L3: record, differentiate, plan, replay

// The macro `param_block!` names this crate by its outside name, inside as well as outside.
extern crate self as epl_runtime;

pub use bytemuck;

pub mod caps;
pub mod case;
pub mod dtype;
pub mod error;
pub mod host;
pub mod kernel;
pub mod op;
pub mod ops;
pub mod shape;

pub use caps::Caps;
pub use dtype::{DType, TensorDesc};
pub use error::{Error, Result};
pub use host::{Array, HostTensor};
pub use op::TensorId;
pub use shape::Shape;
