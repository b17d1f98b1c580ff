//! Networks: their parameters by state-dict name, and how they are recorded into a graph.

pub mod init;
pub mod input;
pub mod ir;
pub mod parameters;

pub use ir::IrNetwork;
pub use parameters::{Layout, ParameterSpec, Parameters, Role};
