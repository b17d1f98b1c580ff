//! `epl eval`: the field's evaluation protocols.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::absent::Protocols;
use super::embed::Weights;
use super::{Context, Verdict};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl eval verify --weights runs/a/model.safetensors lfw.bin cfp_fp.bin agedb_30.bin";

const VERIFY_EXAMPLES: &str = "\
Examples:
  epl eval verify --weights runs/a/model.safetensors lfw.bin cfp_fp.bin agedb_30.bin
  epl eval verify --weights w.safetensors --arch ir50 --pairs pairs.txt --json";

/// Evaluate a trained network by the field's protocols
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Eval {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Verify(Verify),
    #[command(flatten)]
    Absent(Protocols),
}

/// Verify pairs of images: accuracy by ten folds, TAR at FAR 1e-3, AUC, EER
#[derive(Debug, Args)]
#[command(after_help = VERIFY_EXAMPLES)]
struct Verify {
    #[command(flatten)]
    weights: Weights,
    /// A list of pairs: two paths of images and 1 (the same person) or 0 a line; may be given more than once
    #[arg(long, value_name = "FILE")]
    pairs: Vec<PathBuf>,
    /// Verification sets as InsightFace packs them
    #[arg(value_name = "BIN", required_unless_present = "pairs")]
    sets: Vec<PathBuf>,
}

impl Eval {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        match &self.command {
            Command::Verify(command) => command.run(context),
            Command::Absent(protocol) => Err(protocol.error()),
        }
    }
}

impl Verify {
    fn run(&self, _context: &Context) -> Result<Verdict> {
        Err(Error::usage("verify", "x"))
    }
}
