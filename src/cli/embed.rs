//! `epl embed`: images to embeddings.

mod sources;

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use epl_runtime::Device;
use serde::Serialize;

use super::output::{note, progress};
use super::{Context, Verdict};
use crate::eval::embedder::Embedder;
use crate::interchange::files::distinct;
use crate::interchange::safetensors::{StateDict, Value, probe};
use crate::interchange::tensor_file::TensorSource;
use crate::interchange::weights::WeightsFile;
use crate::model::{Model, ModelSpec};
use crate::{Error, Result};
use sources::Sources;

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
/// The file has the tensor `embeddings` [N, D], not normalised, its rows in the order of PATH, and the metadata `paths`,
/// a JSON list of N names. Where a PATH has labels there is the tensor `labels` [N] as well; the labels of a further
/// PATH go on after those of the one before, and -1 is an image without. Images of another size than the network's
/// input are scaled by their short side and cropped at the centre.
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
    /// The network's weights: a .safetensors as `epl train` writes them, a .pth or .pt of PyTorch, or a checkpoint's folder
    #[arg(long, value_name = "W")]
    pub weights: PathBuf,
    /// The network's architecture, where the weights' metadata does not have it
    #[arg(long, value_name = "A")]
    pub arch: Option<String>,
}

/// Images embedded at once, unless there are fewer.
pub const BATCH: usize = 64;

impl Weights {
    /// The network with its weights on the chosen device.
    pub fn load(&self, context: &Context) -> Result<Model> {
        let (file, spec) = self.read()?;
        self.load_from(&file, spec, context)
    }

    /// The file's tensors and the network that it is of, without a device.
    pub fn read(&self) -> Result<(WeightsFile, ModelSpec)> {
        let file = WeightsFile::open(&self.weights)?;
        for line in file.notes() {
            note(format_args!("{}: {line}", self.place()));
        }
        let spec = ModelSpec::from_metadata(file.metadata(), self.arch.as_deref(), &self.place())?;
        Ok((file, spec))
    }

    /// The network with the tensors that were read on the chosen device.
    pub fn load_from(&self, source: &dyn TensorSource, spec: ModelSpec, context: &Context) -> Result<Model> {
        self.load_on(source, spec, &context.open()?)
    }

    /// The same on a device that is open.
    pub fn load_on(&self, source: &dyn TensorSource, spec: ModelSpec, device: &Arc<Device>) -> Result<Model> {
        let model = Model::allocate(spec, device)?;
        model.load(source, &self.place())?;
        Ok(model)
    }

    /// What messages call the file.
    pub fn place(&self) -> String {
        self.weights.display().to_string()
    }
}

#[derive(Debug, Serialize)]
struct Embedded<'a> {
    out: &'a Path,
    images: usize,
    dimension: usize,
    /// Whether the file has labels.
    labels: bool,
}

impl Embed {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let read = self.paths.iter().chain([&self.weights.weights]).map(PathBuf::as_path);
        distinct(&self.out, read)?;
        let model = self.weights.load(context)?;
        let sources = Sources::open(&self.paths, model.spec.network.input)?;
        let count = sources.len();
        // Images and weights are in order: now the file, before the long work whose result it takes.
        probe(&self.out)?;
        let mut embedder = Embedder::new(&model, BATCH.min(count))?;
        let bar = progress(count);
        let embeddings =
            embedder.embed(count, &|index| sources.load(index), self.flip == Flip::Sum, &mut |done| {
                bar.set_position(done as u64)
            })?;
        bar.finish_and_clear();

        let dimension = embedder.dimension();
        if let Some(at) = embeddings.iter().position(|value| !value.is_finite()) {
            return Err(Error::data(
                self.weights.place(),
                format!("an embedding of {} that is not finite", sources.name(at / dimension.max(1))),
                "finite numbers",
                "use the weights of a run that ended well",
            ));
        }
        let mut dict = StateDict::default();
        dict.insert("embeddings", &[count, dimension], embeddings);
        let labels = sources.labels()?;
        let has_labels = labels.is_some();
        if let Some(labels) = labels {
            dict.tensors.insert("labels".to_owned(), (vec![count], Value::I64(labels)));
        }
        let names: Vec<String> = (0..count).map(|index| sources.name(index)).collect();
        dict.metadata.insert("paths".to_owned(), serde_json::Value::from(names).to_string());
        dict.write(&self.out)?;
        context.present(&Embedded { out: &self.out, images: count, dimension, labels: has_labels })?;
        Ok(Verdict::Done)
    }
}

impl Display for Embedded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = if self.labels { " with labels" } else { "" };
        writeln!(f, "{} embeddings of {}{labels} in {}", self.images, self.dimension, self.out.display())
    }
}
