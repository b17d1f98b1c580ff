//! Every architecture against PyTorch, whose numbers `tests/reference/networks.py` wrote, and as an ONNX model.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod formula;
mod onnx;
mod parity;
mod training;
