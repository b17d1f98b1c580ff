//! `epl train`: trains what a configuration describes.

use std::path::PathBuf;

use clap::Args;

use super::{Context, Verdict};
use crate::config::Config;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl train config.toml
  epl train config.toml --set optim.lr=0.05 --set train.out=runs/half-rate
  epl train config.toml --set 'data.augment=[]' --json 2> train.log";

/// Train what a configuration describes
///
/// The configuration's required keys are data.train and train.out; every other key has a default. The run's folder
/// (train.out) gets config.toml as resolved, metrics.jsonl, model.safetensors and report.html.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Train {
    /// The configuration
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Not in this version: go on where an interrupted run left off
    #[arg(long)]
    resume: bool,
}

/// Changes to a configuration file.
#[derive(Debug, Args)]
pub struct Overrides {
    /// Use VALUE for the dotted KEY instead of what the file says; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Train {
    pub fn run(&self, _context: &Context) -> Result<Verdict> {
        let config = Config::load(&self.config, &self.overrides.set)?;
        if self.resume {
            return Err(Error::usage(
                "--resume is not available in this version of epl",
                format!("start anew, with another train.out than {}", config.train.out.display()),
            ));
        }
        Err(Error::usage("training", "x"))
    }
}
