//! `epl eval`: the field's evaluation protocols.

mod cached;
mod ijb;
mod megaface;
mod verify;

use clap::{Args, Subcommand};

use super::absent::Protocols;
use super::{Context, Verdict};
use crate::Result;

pub use verify::verification_table;

const EXAMPLES: &str = "\
Examples:
  epl eval verify --weights runs/a/model.safetensors lfw.bin cfp_fp.bin agedb_30.bin";

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
    Ijb(ijb::Ijb),
    Megaface(Box<megaface::Megaface>),
    #[command(flatten)]
    Absent(Protocols),
}

impl Eval {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        match &self.command {
            Command::Verify(command) => command.run(context),
            Command::Ijb(command) => command.run(context),
            Command::Megaface(command) => command.run(context),
            Command::Absent(protocol) => Err(protocol.error()),
        }
    }
}
