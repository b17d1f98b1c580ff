//! The heads: what turns a batch of embeddings into a loss (margin losses, with or without EPL).
//!
//! The ops are written against the runtime's public op trait, as ops of any other crate would be. [`head_loss`]
//! records a whole head. `docs/epl.md` has the method, formula by formula.

mod build;
pub mod class_sweep;
mod class_sweep_cases;
pub mod class_update;
mod class_update_cases;
pub mod epl_update;
pub mod margin_loss;
mod rows;
pub mod sampling;
mod settings;
pub mod target_cosine;
mod tiles;
pub mod uniface_loss;

use epl_runtime::case::OpEntry;

pub use build::{HeadInputs, HeadOutputs, HeadPass, PrototypeStep, SampledClasses, head_loss, initial_bias};
pub use settings::{ArcMode, Duplicates, EplSettings, EplUpdate, HeadForm, HeadKind, HeadSettings};

/// Every op of the heads, sorted by name.
pub const REGISTRY: &[OpEntry] = &[
    class_update::NORM_ENTRY,
    class_sweep::ENTRY,
    class_update::ENTRY,
    epl_update::ENTRY,
    margin_loss::ENTRY,
    margin_loss::GRAD_ENTRY,
    target_cosine::ENTRY,
    uniface_loss::ENTRY,
    uniface_loss::GRAD_ENTRY,
];
