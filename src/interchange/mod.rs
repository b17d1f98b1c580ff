//! Weights in and out.

pub mod files;
pub mod safetensors;
pub mod tensor_file;
