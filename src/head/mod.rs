//! The heads: what turns a batch of embeddings into a loss (margin losses, with or without EPL).

mod settings;

pub use settings::{ArcMode, Duplicates, EplSettings, EplUpdate, HeadKind, HeadSettings};
