//! A small tensor runtime on wgpu: WGSL kernels, ops with references, a static graph that is
//! differentiated, planned once and replayed.
//!
//! Layers, lowest first; a lower one never names a higher one:
//!
//! - L0 [`shape`], [`dtype`], [`host`], [`error`]: data on the host
//! - L1 [`caps`], [`counters`], [`device`], [`faults`], [`guard`], [`kernel`], [`pipeline_file`], [`store`]: the GPU; no ops
//! - L2 [`op`], [`case`], [`choice`], [`ops`]: one file an op
//! - L3 [`graph`], [`autodiff`], [`memory`], [`plan`], [`session`]: record, differentiate, plan, replay
//! - L4 [`interpret`], [`inspect`], [`check`], [`tune`]: references of whole graphs, timings, faults, cases, choice of kernels

// The macro `param_block!` names this crate by its outside name, inside as well as outside.
extern crate self as epl_runtime;

pub use bytemuck;

mod adapters;
pub mod autodiff;
pub mod caps;
pub mod case;
pub mod check;
pub mod choice;
pub mod counters;
pub mod device;
pub mod dtype;
mod emulate;
pub mod error;
pub mod faults;
pub mod features;
mod flight;
pub mod graph;
pub mod guard;
mod health;
pub mod host;
pub mod inspect;
pub mod interpret;
pub mod kernel;
pub mod memory;
pub mod op;
pub mod ops;
mod pace;
pub mod pipeline_file;
mod pipelines;
pub mod plan;
pub mod probe;
pub mod reopen;
pub mod session;
pub mod shape;
mod slots;
pub mod store;
pub mod tune;

pub use caps::Caps;
pub use choice::Choices;
pub use device::{Device, DeviceOptions};
pub use dtype::{DType, TensorDesc};
pub use error::{Error, Result};
pub use features::Feature;
pub use graph::Graph;
pub use host::{Array, HostTensor};
pub use op::{Record, TensorId};
pub use plan::{Plan, PlanOptions};
pub use session::{Session, SessionOptions};
pub use shape::Shape;
pub use store::Store;
