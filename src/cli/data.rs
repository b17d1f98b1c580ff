//! `epl data`: looks at training data.

mod augment;
mod noise;

use clap::{Args, Subcommand};

use super::absent::DataTools;
use super::{Context, Verdict};
use crate::Result;

const EXAMPLES: &str = "\
Examples:
  epl data noise --weights runs/a/model.safetensors --report noise.html data/train";

/// Look at training data
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Augment(augment::Augment),
    Noise(noise::Noise),
    #[command(flatten)]
    Absent(DataTools),
}

impl Data {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        match &self.command {
            Command::Augment(command) => command.run(context),
            Command::Noise(command) => command.run(context),
            Command::Absent(tool) => Err(tool.error()),
        }
    }
}
