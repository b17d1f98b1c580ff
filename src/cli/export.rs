//! `epl export`: the network in a form to deploy.

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::embed::Weights;
use super::output::bytes;
use super::{Context, Verdict};
use crate::Result;
use crate::interchange::files::{distinct, probe};
use crate::interchange::onnx::{self, INPUT, OPSET, OUTPUT};

const EXAMPLES: &str = "\
Examples:
  epl export onnx --weights runs/a/model.safetensors --out model.onnx
  epl export onnx --weights runs/a/model.safetensors --out model.onnx --flip --fold --f16";

/// Write the network as a deployment model
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Export {
    #[command(subcommand)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Format {
    Onnx(Onnx),
}

/// As an ONNX model: standard operators of set 17, any batch; needs no GPU
///
/// The input is `input` [N, 3, H, W] f32, RGB, (x/255 - 0.5)/0.5; the output is `embedding` [N, D], not normalised. That is
/// what InsightFace's tools expect of a model. The head is left out.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
struct Onnx {
    #[command(flatten)]
    weights: Weights,
    /// The file to write
    #[arg(long, value_name = "M.onnx")]
    out: PathBuf,
    /// Add the embedding of the mirrored image, as evaluations do; takes twice the time
    #[arg(long)]
    flip: bool,
    /// Store the weights of convolutions and linear layers as 16-bit floats, in half the room; arithmetic stays f32
    #[arg(long)]
    f16: bool,
    /// Fold batch norms into the layers beside them where that is exact: fewer nodes, the same numbers but for rounding
    #[arg(long)]
    fold: bool,
}

#[derive(Debug, Serialize)]
struct Written<'a> {
    out: &'a Path,
    arch: &'a str,
    opset: i64,
    input: &'static str,
    output: &'static str,
    /// `[H, W]` of the input.
    size: [usize; 2],
    dimension: usize,
    nodes: usize,
    folded: usize,
    parameters: usize,
    bytes: usize,
}

impl Export {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let Format::Onnx(command) = &self.format;
        command.run(context)
    }
}

impl Onnx {
    fn run(&self, context: &Context) -> Result<Verdict> {
        let (file, spec) = self.weights.read()?;
        distinct(&self.out, [file.file().as_path()])?;
        probe(&self.out)?;
        let options = onnx::Options { flip: self.flip, f16: self.f16, fold: self.fold };
        // The file's own words first (its step, its head, its licence), then what the network is in any case.
        let mut metadata = file.metadata().clone();
        metadata.extend(spec.description());
        let metadata: Vec<_> = metadata.into_iter().collect();
        let place = self.weights.place();
        let exported = onnx::export(&self.out, &spec.network, &file, &place, &metadata, options)?;
        context.present(&Written {
            out: &self.out,
            arch: &spec.arch,
            opset: OPSET,
            input: INPUT,
            output: OUTPUT,
            size: spec.network.input,
            dimension: spec.network.embedding,
            nodes: exported.nodes,
            folded: exported.folded,
            parameters: exported.parameters,
            bytes: exported.bytes,
        })?;
        Ok(Verdict::Done)
    }
}

impl Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [height, width] = self.size;
        writeln!(
            f,
            "{} in {}: {} nodes of opset {}, {:.2} M parameters, {}",
            self.arch,
            self.out.display(),
            self.nodes,
            self.opset,
            self.parameters as f64 / 1e6,
            bytes(self.bytes as u64),
        )?;
        if self.folded > 0 {
            writeln!(f, "{} batch norms folded", self.folded)?;
        }
        writeln!(f, "input  {} [N, 3, {height}, {width}] f32, RGB, (x/255 - 0.5)/0.5", self.input)?;
        writeln!(f, "output {} [N, {}] f32, not normalised", self.output, self.dimension)
    }
}
