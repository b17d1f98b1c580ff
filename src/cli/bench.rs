//! `epl bench`: how fast a training step is, or the data loader.

mod loader;
mod step;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use super::{Context, Verdict};
use crate::Result;

const EXAMPLES: &str = "\
Examples:
  epl bench --arch ir50 --batch 64
  epl bench --arch mobilefacenet --classes 85742 --epl --json
  epl bench --loader                       on drawn faces
  epl bench --loader data/train.rec --batch 512
  epl bench --loader --augment '[\"mirror\",{kind=\"erase\",probability=0.3}]'";

/// Measure a training step on made-up images: images a second, time by op; or the data loader
///
/// The step is that of `epl train` with the defaults of a configuration: forward, head, backward, optimiser. Whole steps are
/// timed first, then every op in a pass of its own. With --loader nothing but decoding, augmenting and batching runs; without a
/// PATH the images are drawn faces of 112 x 112, as JPEG of quality 95 with full colour resolution, in memory.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Bench {
    /// The network
    #[arg(long, value_name = "A", default_value = "ir50", conflicts_with = "loader")]
    arch: String,
    /// Images a batch [default: 32; of the loader: 128]
    #[arg(long, value_name = "N")]
    batch: Option<NonZeroUsize>,
    /// What activations are stored as
    #[arg(long, value_name = "P", default_value = "f32", conflicts_with = "loader")]
    precision: String,
    /// Identities
    #[arg(long, value_name = "C", default_value = "10572", conflicts_with = "loader")]
    classes: NonZeroUsize,
    /// With empirical prototypes, after their branch has started
    #[arg(long, conflicts_with = "loader")]
    epl: bool,
    /// Steps to time, after one that compiles what they need
    #[arg(long, value_name = "N", default_value = "10", conflicts_with = "loader")]
    steps: NonZeroUsize,
    /// Any other key of a configuration, such as head.kind=arcface
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "loader")]
    set: Vec<String>,
    /// Take the kernels that the rules choose, measured or not
    #[arg(long, conflicts_with = "loader")]
    no_autotune: bool,
    /// Measure the loader, on the images of a folder or a .rec file if one is named
    #[arg(long, value_name = "PATH", num_args = 0..=1)]
    loader: Option<Option<PathBuf>>,
    /// The augmentations, as data.augment has them
    #[arg(long, value_name = "TOML", default_value = "[\"mirror\"]", requires = "loader")]
    augment: String,
    /// Threads that decode [default: as many as there are cores]
    #[arg(long, value_name = "N", requires = "loader")]
    threads: Option<NonZeroUsize>,
    /// How long to measure the loader
    #[arg(
        long,
        value_name = "S",
        default_value = "5",
        value_parser = clap::value_parser!(u32).range(1..=3600),
        requires = "loader"
    )]
    seconds: u32,
    /// Scale images of another size than 112 x 112 and crop them; otherwise they are an error
    #[arg(long, requires = "loader")]
    resize: bool,
}

impl Bench {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        match &self.loader {
            Some(path) => self.measure_loader(path.as_ref(), context),
            None => self.measure_step(context),
        }
    }
}
