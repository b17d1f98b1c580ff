//! Weights in and out.

pub mod files;
pub mod onnx;
pub mod safetensors;
pub mod tensor_file;
