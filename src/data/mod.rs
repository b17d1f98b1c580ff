//! Where training and evaluation pictures come from.

pub mod synth;
