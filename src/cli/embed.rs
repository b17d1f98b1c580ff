//! `epl embed`: images to embeddings.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Context, Verdict};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl embed --weights runs/a/model.safetensors --out faces.safetensors photos/
  epl embed --weights w.safetensors --arch ir50 --flip none --out two.safetensors one.jpg two.jpg";

/// What becomes of the mirrored image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Flip {
    /// Its embedding is added to the image's
    Sum,
    /// It is not looked at
    None,
}

/// Write the embeddings of images
///
/// The file has the tensor `embeddings` [N, D], not normalised, its rows in the order of PATH, the tensor `labels` [N]
/// where the images have them, and the metadata `paths`, a JSON list of N names.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Embed {
    #[command(flatten)]
    weights: Weights,
    /// The file to write
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
    /// What becomes of the mirrored image
    #[arg(long, value_enum, default_value_t = Flip::Sum)]
    flip: Flip,
    /// Images, folders of images or of a folder an identity, .rec files
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
}

/// A trained network.
#[derive(Debug, Args)]
pub struct Weights {
    /// The network's weights, as `epl train` writes them
    #[arg(long, value_name = "W.safetensors")]
    pub weights: PathBuf,
    /// The network's architecture, where the weights' metadata does not have it
    #[arg(long, value_name = "A")]
    pub arch: Option<String>,
}

impl Embed {
    pub fn run(&self, _context: &Context) -> Result<Verdict> {
        Err(Error::usage("embed", "x"))
    }
}
