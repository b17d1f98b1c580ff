//! Weights in and out.

pub mod files;
pub mod layout;
pub mod onnx;
pub mod recognise;
pub mod safetensors;
mod sniff;
pub mod tensor_file;
pub mod torch;
pub mod weights;
