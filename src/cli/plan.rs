//! `epl plan`: what a training run needs, without running it.

use std::path::PathBuf;

use clap::Args;

use super::train::Overrides;
use super::{Context, Verdict};
use crate::config::Config;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl plan config.toml
  epl plan config.toml --set train.batch_size=256 --json | jq .max_batch";

/// Tell the memory and the work that a training run needs, without training
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Plan {
    /// The configuration
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
}

impl Plan {
    pub fn run(&self, _context: &Context) -> Result<Verdict> {
        let _config = Config::load(&self.config, &self.overrides.set)?;
        Err(Error::usage("plan", "x"))
    }
}
