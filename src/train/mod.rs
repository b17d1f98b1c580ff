//! Training: the run's folder and what is written into it.

pub mod metrics;
