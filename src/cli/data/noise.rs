//! `epl data noise`: names the samples whose labels may be wrong.

use std::fmt::{self, Display};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indicatif::ProgressBar;
use serde::Serialize;

use super::csv_field;
use crate::Result;
use crate::cli::embed::{BATCH, Weights};
use crate::cli::output::{Align, Table, note, progress};
use crate::cli::{Context, Verdict};
use crate::data::{self, Dataset, Options};
use crate::eval::embedder::Embedder;
use crate::eval::noise::{self, OtherClass, Prototypes, Ranking, Suspect};
use crate::interchange::safetensors::{probe, write_atomically};
use crate::interchange::tensor_file::TensorSource;
use crate::model::{HEAD_QUEUE, HEAD_WEIGHT};
use crate::report::{NoiseRow, NoiseSheet, OtherPrototype, Portrait};

const EXAMPLES: &str = "\
Examples:
  epl data noise --weights runs/a/model.safetensors data/train
  epl data noise --weights w.safetensors --against mean --report noise.html faces
  epl data noise --weights w.safetensors --top 100 --out all.csv --json faces.rec";

/// What the samples are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Against {
    /// The empirical prototypes of the weights (loss.queue)
    Queue,
    /// The class weights (loss.weight)
    Weight,
    /// The mean of the features of each class, computed anew: takes twice as long
    Mean,
}

/// Name the samples that agree least with the prototype of their class
///
/// Every image is embedded with its mirrored one and compared with the prototype of the class that it is filed under.
/// Those with the least cosines are listed, each with the other class that it looks like most, and marked where that is
/// nearer than its own. They are mislabelled or hard: a person has to look, for which --report puts them beside examples
/// of both classes. Without --against the empirical prototypes count, and the class weights where the head has no EPL.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Noise {
    #[command(flatten)]
    weights: Weights,
    /// What the samples are compared with
    #[arg(long, value_enum)]
    against: Option<Against>,
    /// How many samples to name
    #[arg(long, value_name = "N", default_value = "50")]
    top: NonZeroUsize,
    /// Write the cosines of all samples, the least first
    #[arg(long, value_name = "F.csv")]
    out: Option<PathBuf>,
    /// Write a contact sheet of the samples that are named
    #[arg(long, value_name = "F.html")]
    report: Option<PathBuf>,
    /// Scale images of another size than the network's input by their short side and crop them at the centre, as
    /// data.resize = true does in training; otherwise they are an error
    #[arg(long)]
    resize: bool,
    /// Number of classes that the training was told by data.num_classes, where that is not the number in the data
    #[arg(long, value_name = "C")]
    num_classes: Option<usize>,
    /// A folder of one folder an identity, a .rec file, or a folder that holds train.rec
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// The result.
#[derive(Debug, Serialize)]
struct Found<'a> {
    images: usize,
    classes: usize,
    /// What the samples were compared with.
    prototypes: &'static str,
    /// How many of the suspects are nearer to another class than to their own.
    nearer_to_other: usize,
    suspects: Vec<NamedSuspect>,
    out: Option<&'a Path>,
    report: Option<&'a Path>,
}

#[derive(Debug, Serialize)]
struct NamedSuspect {
    index: usize,
    image: String,
    label: u32,
    cosine: f64,
    other: Option<OtherClass>,
    nearer_to_other: bool,
}

impl Noise {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let (file, spec) = self.weights.read()?;
        let classes_of_weights = self.stored_prototypes(&file, spec.network.embedding)?;
        let options = Options { size: spec.network.input, resize: self.resize, num_classes: None };
        let dataset = data::open(&self.path, &options)?;
        let dataset = dataset.as_ref();
        let place = self.path.display().to_string();
        let classes = classes_of_weights.classes();
        let labels = noise::labels(dataset, classes, self.num_classes, &place)?;
        // Weights and data are in order: now the files, before the long work whose result they take.
        self.out.iter().chain(&self.report).try_for_each(|path| probe(path))?;

        let model = self.weights.load_from(&file, spec, context)?;
        let mut embedder = Embedder::new(&model, BATCH.min(labels.len()))?;
        let means = self.against == Some(Against::Mean);
        let bar = progress(labels.len() * if means { 2 } else { 1 });
        let mut advance = advancing(&bar, 0);
        let prototypes = if means {
            let means = Prototypes::means(&mut embedder, dataset, &labels, classes, &mut advance)?;
            advance = advancing(&bar, labels.len());
            means
        } else {
            classes_of_weights
        };
        let top = self.top.get();
        let ranking = noise::rank(&mut embedder, dataset, labels, &prototypes, top, &mut advance)?;
        bar.finish_and_clear();

        if let Some(path) = &self.out {
            write_atomically(path, csv(dataset, &ranking).as_bytes())?;
        }
        let found = Found {
            images: ranking.order.len(),
            classes,
            prototypes: prototypes.name(),
            nearer_to_other: ranking.suspects.iter().filter(|suspect| suspect.is_nearer_to_other()).count(),
            suspects: ranking.suspects.iter().map(|suspect| NamedSuspect::new(suspect, dataset)).collect(),
            out: self.out.as_deref(),
            report: self.report.as_deref(),
        };
        if let Some(path) = &self.report {
            self.sheet(&found, &ranking, dataset)?.write(path)?;
        }
        context.present(&found)?;
        Ok(Verdict::Done)
    }

    /// The prototypes in the weights. Where means are to be computed they say at least how many classes there are.
    fn stored_prototypes(&self, file: &dyn TensorSource, dimension: usize) -> Result<Prototypes> {
        let names: &[&str] = match self.against {
            None | Some(Against::Mean) => &[HEAD_QUEUE, HEAD_WEIGHT],
            Some(Against::Queue) => &[HEAD_QUEUE],
            Some(Against::Weight) => &[HEAD_WEIGHT],
        };
        let prototypes = Prototypes::take(file, names, dimension, &self.weights.place())?;
        if self.against.is_none() && prototypes.name() == HEAD_WEIGHT {
            note(format_args!(
                "{} has no {HEAD_QUEUE}, as its head was trained without EPL: samples are compared with {HEAD_WEIGHT}",
                self.weights.place()
            ));
        }
        Ok(prototypes)
    }

    /// The suspects with examples of both classes.
    fn sheet(&self, found: &Found<'_>, ranking: &Ranking, dataset: &dyn Dataset) -> Result<NoiseSheet> {
        let portrait = |index: usize| -> Result<Portrait> {
            Ok(Portrait { picture: dataset.load(index)?.into(), name: dataset.name(index) })
        };
        let example = |class: u32, without: usize| ranking.exemplar(class, without).map(portrait).transpose();
        let row = |suspect: &Suspect| -> Result<NoiseRow> {
            let other = match suspect.other {
                Some(OtherClass { class, cosine }) => {
                    Some(OtherPrototype { class, cosine, example: example(class, suspect.index)? })
                }
                None => None,
            };
            Ok(NoiseRow {
                sample: portrait(suspect.index)?,
                label: suspect.label,
                cosine: suspect.cosine,
                example: example(suspect.label, suspect.index)?,
                other,
            })
        };
        let facts = [
            (
                "Data",
                format!("{}: {} images of {} classes", self.path.display(), found.images, found.classes),
            ),
            ("Weights", self.weights.place()),
            ("Compared with", found.prototypes.to_owned()),
        ];
        Ok(NoiseSheet {
            title: format!("epl: {}", self.path.display()),
            facts: facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            rows: ranking.suspects.iter().map(row).collect::<Result<_>>()?,
        })
    }
}

/// Moves `bar`, of which `before` images are already done.
fn advancing(bar: &ProgressBar, before: usize) -> impl FnMut(usize) {
    move |done| bar.set_position((before + done) as u64)
}

impl NamedSuspect {
    fn new(suspect: &Suspect, dataset: &dyn Dataset) -> Self {
        Self {
            index: suspect.index,
            image: dataset.name(suspect.index),
            label: suspect.label,
            cosine: suspect.cosine,
            other: suspect.other,
            nearer_to_other: suspect.is_nearer_to_other(),
        }
    }
}

impl Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            ("image", Align::Left),
            ("class", Align::Right),
            ("cosine", Align::Right),
            ("looks like class", Align::Right),
            ("cosine", Align::Right),
            ("", Align::Left),
        ]);
        let cosine = |value: f64| format!("{value:.4}");
        for suspect in &self.suspects {
            let (class, other) = match suspect.other {
                Some(other) => (other.class.to_string(), cosine(other.cosine)),
                None => ("-".to_owned(), "-".to_owned()),
            };
            let mark = if suspect.nearer_to_other { "nearer" } else { "" };
            let own = suspect.label.to_string();
            table.row([suspect.image.clone(), own, cosine(suspect.cosine), class, other, mark.to_owned()]);
        }
        write!(f, "{table}")?;
        writeln!(
            f,
            "{} of {} images, compared with {}; {} are nearer to another class than to their own",
            self.suspects.len(),
            self.images,
            self.prototypes,
            self.nearer_to_other
        )?;
        for (what, path) in [("cosines", self.out), ("report", self.report)] {
            if let Some(path) = path {
                writeln!(f, "{what:<8} {}", path.display())?;
            }
        }
        Ok(())
    }
}

/// All samples, the least cosine first; the other class for those for which it was looked for.
fn csv(dataset: &dyn Dataset, ranking: &Ranking) -> String {
    let mut text = "index,image,label,cosine,other,other_cosine\n".to_owned();
    let others = ranking.suspects.iter().map(|suspect| suspect.other).chain(std::iter::repeat(None));
    for (&index, other) in ranking.order.iter().zip(others) {
        let (Some(label), Some(cosine)) = (ranking.labels.get(index), ranking.cosines.get(index)) else {
            continue;
        };
        let image = csv_field(&dataset.name(index));
        let other = other.map_or(",".to_owned(), |other| format!("{},{:.6}", other.class, other.cosine));
        text += &format!("{index},{image},{label},{cosine:.6},{other}\n");
    }
    text
}
