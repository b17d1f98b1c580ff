//! Networks: their layers, their parameters by state-dict name, and how they are recorded into a graph.

pub mod init;
pub mod input;
pub mod ir;
pub mod iresnet;
pub mod layers;
pub mod mobilefacenet;
pub mod network;
pub mod parameters;
pub mod record;

pub use network::{Family, Network};
pub use parameters::{Layout, ParameterSpec, Parameters, Role};
