//! `epl convert`: weights of other programs, and of training, as safetensors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::output::note;
use super::{Context, Verdict};
use crate::interchange::files::distinct;
use crate::interchange::layout::{Step, check, plan};
use crate::interchange::safetensors::{Sink, StateDict, Value, probe};
use crate::interchange::tensor_file::{Kind, TensorSource};
use crate::interchange::weights::WeightsFile;
use crate::model::{HEAD_BIAS, HEAD_QUEUE, HEAD_WEIGHT};
use crate::nn::{Family, Network};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl convert backbone.pth backbone.safetensors
  epl convert checkpoint.pt ema.safetensors --key model_ema.state_dict
  epl convert runs/a/checkpoints/step-00001000 weights.safetensors
  epl convert backbone.pth whole.safetensors --head softmax_fc_gpu_0.pt --head softmax_fc_gpu_1.pt";

/// Whose network the weights are to be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Layout {
    /// That of the EPL release, as ir50
    Epl,
    /// InsightFace's, as iresnet50
    Insightface,
}

/// Convert weights to safetensors
///
/// IN is a .pth or .pt of PyTorch (a state dict, a checkpoint that holds one, or a whole module), a .safetensors, or the
/// folder of a checkpoint, whose momentum and training state are left out. Nothing in a file is ever run. What can be told of
/// the network from the names and shapes of the tensors is written into the metadata, so that other commands need no --arch.
/// Floats of any width become f32, integers i64.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Convert {
    /// The weights
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The file to write
    #[arg(value_name = "OUT.safetensors")]
    out: PathBuf,
    /// Write them as those of the other network, where both compute the same; kernels are padded or cut, fc.bias goes into a
    /// running mean, and a kernel with values where the other network has none is refused
    #[arg(long, value_enum)]
    layout: Option<Layout>,
    /// The architecture to name in the metadata, where the tensors do not show it
    #[arg(long, value_name = "A")]
    arch: Option<String>,
    /// The key that leads to the tensors, where a PyTorch file has several; a dot for the whole file
    #[arg(long, value_name = "K")]
    key: Option<String>,
    /// Class weights to add as loss.weight: files of InsightFace's partial_fc, in the order of their ranks
    #[arg(long, value_name = "FILE")]
    head: Vec<PathBuf>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Converted<'a> {
    #[serde(rename = "in")]
    input: &'a Path,
    out: &'a Path,
    format: &'static str,
    arch: Option<String>,
    input_size: Option<[usize; 2]>,
    embedding: Option<usize>,
    width: Option<usize>,
    blocks: Option<[usize; 4]>,
    tensors: usize,
    /// Tensors that the network has and the file has not, or in another shape.
    missing: Vec<String>,
    /// Tensors that the network does not have; they are kept.
    extra: Vec<String>,
    /// Tensors that were left out: momentum and state of training.
    left_out: usize,
    notes: Vec<String>,
}

impl Convert {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let file = WeightsFile::open_key(&self.input, self.key.as_deref())?;
        let place = self.input.display().to_string();
        self.check_out(&file)?;
        let mut notes = file.notes().to_vec();

        let names: Vec<&str> = file.names().filter(|name| self.is_kept(&file, name)).collect();
        if let Some(name) = names.iter().find(|name| file.describe(name).is_none()) {
            return Err(Error::data(
                format!("{place}: tensor {name}"),
                "elements of a type that cannot be read",
                "floats of 16 to 64 bits, or integers",
                "save the weights as f32",
            ));
        }
        let left_out = file.names().count() - names.len();
        let mut network = file.recognised().map(|found| found.network.clone());
        let (mut missing, mut extra) = match file.recognised() {
            Some(found) => (found.missing.clone(), found.extra.clone()),
            None => (Vec::new(), Vec::new()),
        };
        let kept: BTreeSet<&str> = names.iter().copied().collect();
        extra.retain(|name| kept.contains(name.as_str()) && !is_of_head(name));
        let mut steps = None;
        if let Some(layout) = self.layout {
            let (other, planned) = self.planned(layout, network.as_ref(), &missing, &file, &place)?;
            notes.push(format!("written as the network {}", other.arch()));
            network = Some(other);
            steps = Some(planned);
            missing.clear();
        }
        let heads = self.heads(network.as_ref())?;

        let mut dict = StateDict { metadata: file.metadata().clone(), ..StateDict::default() };
        self.describe(&mut dict, network.as_ref(), self.layout.is_some(), &mut notes)?;
        let mut outputs = outputs(&file, &names, steps, &extra);
        if let Some(rows) = heads.as_ref().map(|heads| heads.shape.clone()) {
            outputs.retain(|output| output.name() != HEAD_WEIGHT);
            outputs.push(Output::Head(rows));
        }
        for output in &outputs {
            if let Some((name, shape, source)) = output.integers(&file) {
                dict.tensors.insert(name.to_owned(), (shape.to_vec(), Value::I64(file.integers(source)?)));
            }
        }
        let floats: Vec<(&str, Vec<usize>)> = outputs
            .iter()
            .filter(|output| output.integers(&file).is_none())
            .map(|output| (output.name(), output.shape(&file)))
            .collect();
        if floats.is_empty() && dict.tensors.is_empty() {
            let hint = "use a file of weights";
            return Err(Error::data(place, "no tensor that can be read", "weights", hint));
        }
        let tensors = floats.len() + dict.tensors.len();
        let by_name: BTreeMap<&str, &Output> = outputs.iter().map(|output| (output.name(), output)).collect();
        dict.write_with(&self.out, &floats, |name, sink| match by_name.get(name) {
            Some(output) => output.write(&file, heads.as_ref(), &place, sink),
            None => Ok(()),
        })?;
        let converted = Converted {
            input: &self.input,
            out: &self.out,
            format: file.format(),
            arch: dict.metadata.get("arch").cloned(),
            input_size: network.as_ref().map(|network| network.input),
            embedding: network.as_ref().map(|network| network.embedding),
            width: network.as_ref().map(|network| network.width),
            blocks: network.as_ref().map(|network| network.blocks),
            tensors,
            missing,
            extra,
            left_out,
            notes,
        };
        if !converted.missing.is_empty() {
            note(format_args!(
                "warning: {place} lacks tensors of its network: {}",
                listed(&converted.missing)
            ));
        }
        context.present(&converted)?;
        Ok(Verdict::Done)
    }

    /// Whether tensor `name` is one of weights: a checkpoint also has what training goes on from.
    fn is_kept(&self, file: &WeightsFile, name: &str) -> bool {
        if !file.is_checkpoint() || is_of_head(name) {
            return true;
        }
        match file.recognised() {
            Some(found) => !found.extra.iter().any(|extra| extra == name),
            None => !name.ends_with(".momentum") && !name.starts_with("watch."),
        }
    }

    /// Checks that the file can be written, and is not one that is read.
    fn check_out(&self, file: &WeightsFile) -> Result<()> {
        let weights = file.file();
        distinct(&self.out, self.head.iter().chain([&self.input, &weights]).map(PathBuf::as_path))?;
        probe(&self.out)
    }

    fn planned(
        &self,
        layout: Layout,
        network: Option<&Network>,
        missing: &[String],
        file: &WeightsFile,
        place: &str,
    ) -> Result<(Network, Vec<Step>)> {
        let hint = "leave --layout out, or use whole weights of ir18 .. ir200 or iresnet18 .. iresnet200";
        let Some(network) = network else {
            return Err(Error::data(place, "a network that is not known", "one that has two layouts", hint));
        };
        if let Some(name) = missing.first() {
            let found = format!("no tensor {name} of the right shape");
            return Err(Error::data(place, found, format!("all tensors of {}", network.arch()), hint));
        }
        let to = match layout {
            Layout::Epl => Family::Ir,
            Layout::Insightface => Family::IResNet,
        };
        let (other, steps) = plan(network, to)?;
        check(&steps, file, place)?;
        Ok((other, steps))
    }

    /// Completes the metadata.
    fn describe(
        &self,
        dict: &mut StateDict,
        network: Option<&Network>,
        is_other: bool,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        if let Some(network) = network.filter(|_| is_other) {
            dict.metadata.extend(network.description(network.arch()));
        }
        dict.metadata.insert("producer".to_owned(), crate::checkpoint::producer());
        if let Some(arch) = &self.arch {
            match dict.metadata.get("arch") {
                Some(found) if found != arch => {
                    return Err(Error::usage(
                        format!("--arch {arch}: the weights are those of {found}"),
                        "leave --arch out; it is for weights that do not show their network",
                    ));
                }
                _ => drop(dict.metadata.insert("arch".to_owned(), arch.clone())),
            }
        }
        if !dict.metadata.contains_key("arch") {
            notes.push("the network is not known: other commands need --arch".to_owned());
        }
        Ok(())
    }

    fn heads(&self, network: Option<&Network>) -> Result<Option<Heads>> {
        let mut heads = Heads { files: Vec::new(), shape: Vec::new() };
        let (mut classes, mut dimension) = (0, network.map(|network| network.embedding));
        for path in &self.head {
            let file = WeightsFile::open(path)?;
            let name = ["weight", HEAD_WEIGHT].into_iter().find(|name| file.shape(name).is_some());
            let shape = name.and_then(|name| file.shape(name));
            let (Some(name), Some(&[rows, columns])) = (name, shape) else {
                let found =
                    shape.map_or("no tensor called weight".to_owned(), |shape| format!("shape {shape:?}"));
                let expected = "class weights, a tensor `weight` [classes, embedding]";
                let hint =
                    "use a file of InsightFace's partial_fc: softmax_fc_gpu_0.pt, rank_0_softmax_weight.pt";
                return Err(Error::data(path.display().to_string(), found, expected, hint));
            };
            if dimension.is_some_and(|dimension| dimension != columns) {
                return Err(Error::data(
                    format!("{}: tensor {name}", path.display()),
                    format!("shape [{rows}, {columns}]"),
                    format!("[classes, {}]", dimension.unwrap_or(columns)),
                    "use the head that the network was trained with",
                ));
            }
            dimension = Some(columns);
            classes += rows;
            heads.files.push((file, name));
        }
        heads.shape = vec![classes, dimension.unwrap_or(0)];
        Ok((!heads.files.is_empty()).then_some(heads))
    }
}

fn is_of_head(name: &str) -> bool {
    [HEAD_WEIGHT, HEAD_QUEUE, HEAD_BIAS].contains(&name)
}

/// Class weights in files of some classes each.
struct Heads {
    files: Vec<(WeightsFile, &'static str)>,
    shape: Vec<usize>,
}

/// A tensor of the result.
enum Output {
    /// As in the file.
    Same(String),
    /// As the network of another layout has it.
    Step(Step),
    /// The class weights, of this shape.
    Head(Vec<usize>),
}

/// The tensors of the result: those of the network, by `steps` where its layout changes, and what else there is.
fn outputs(file: &WeightsFile, names: &[&str], steps: Option<Vec<Step>>, extra: &[String]) -> Vec<Output> {
    let same = |name: &str| Output::Same(name.to_owned());
    let Some(steps) = steps else { return names.iter().map(|name| same(name)).collect() };
    let there = |step: &Step| !step.optional || step.sources().all(|name| file.describe(name).is_some());
    let steps: Vec<Step> = steps.into_iter().filter(there).collect();
    let made: BTreeSet<&str> = steps.iter().map(|step| step.name.as_str()).collect();
    let extra: BTreeSet<&str> = extra.iter().map(String::as_str).collect();
    let others = names.iter().copied().filter(|name| is_of_head(name) || extra.contains(name));
    let others: Vec<Output> = others.filter(|name| !made.contains(name)).map(same).collect();
    steps.into_iter().map(Output::Step).chain(others).collect()
}

impl Output {
    fn name(&self) -> &str {
        match self {
            Self::Same(name) => name,
            Self::Step(step) => &step.name,
            Self::Head(_) => HEAD_WEIGHT,
        }
    }

    fn shape(&self, file: &WeightsFile) -> Vec<usize> {
        match self {
            Self::Same(name) => file.describe(name).map(|(shape, _)| shape.to_vec()).unwrap_or_default(),
            Self::Step(step) => step.shape.clone(),
            Self::Head(shape) => shape.clone(),
        }
    }

    /// Name, shape and source of a tensor of integers.
    fn integers<'a>(&'a self, file: &'a WeightsFile) -> Option<(&'a str, &'a [usize], &'a str)> {
        let source = match self {
            Self::Same(name) => name,
            Self::Step(step) => step.source.as_ref()?,
            Self::Head(_) => return None,
        };
        let (shape, kind) = file.describe(source)?;
        (kind == Kind::Integer).then_some((self.name(), shape, source))
    }

    fn write(
        &self,
        file: &WeightsFile,
        heads: Option<&Heads>,
        place: &str,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        const PIECE: usize = 1 << 20;
        match self {
            Self::Same(name) => {
                file.for_each_part(name, PIECE, &mut |_, values| sink.write(bytemuck::cast_slice(values)))
            }
            Self::Step(step) => step.write(file, place, sink),
            Self::Head(_) => {
                heads.map_or(&[][..], |heads| &heads.files).iter().try_for_each(|(file, name)| {
                    file.for_each_part(name, PIECE, &mut |_, values| sink.write(bytemuck::cast_slice(values)))
                })
            }
        }
    }
}

/// Names in a line, shortened where there are many.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let list = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{list} and {} more", names.len() - SHOWN) } else { list }
}

impl Display for Converted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} tensors in {}", self.tensors, self.out.display())?;
        if let (Some(arch), Some(blocks), Some([height, width])) = (&self.arch, self.blocks, self.input_size)
        {
            let (channels, embedding) = (self.width.unwrap_or_default(), self.embedding.unwrap_or_default());
            writeln!(
                f,
                "network   {arch} {height}x{width} width {channels} blocks {blocks:?} embedding {embedding}"
            )?;
        }
        if self.left_out > 0 {
            writeln!(f, "left out  {} tensors of training", self.left_out)?;
        }
        if !self.extra.is_empty() && self.arch.is_some() {
            writeln!(f, "kept      not of the network: {}", listed(&self.extra))?;
        }
        self.notes.iter().try_for_each(|line| writeln!(f, "note      {line}"))
    }
}
