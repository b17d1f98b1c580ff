//! `epl eval`: the field's evaluation protocols.

mod all_pairs;
mod cached;
mod ijb;
mod megaface;
mod verify;

use clap::{Args, Subcommand};

use super::{Context, Verdict};
use crate::Result;

pub use verify::verification_table;

const EXAMPLES: &str = "\
Examples:
  epl eval verify --weights runs/a/model.safetensors lfw.bin cfp_fp.bin agedb_30.bin
  epl eval all-pairs --weights runs/a/model.safetensors faces/ --groups race.csv";

/// Evaluate a trained network by the field's protocols
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Eval {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Verify(verify::Verify),
    AllPairs(all_pairs::AllPairs),
    Ijb(ijb::Ijb),
    Megaface(Box<megaface::Megaface>),
}

impl Eval {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        match &self.command {
            Command::Verify(command) => command.run(context),
            Command::AllPairs(command) => command.run(context),
            Command::Ijb(command) => command.run(context),
            Command::Megaface(command) => command.run(context),
        }
    }
}
