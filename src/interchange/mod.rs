//! Weights in and out.

pub mod safetensors;
