//! `epl eval megaface`: FaceScrub's photos among distractors.

use std::collections::HashSet;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use rand::Rng;
use rand_pcg::Pcg64Mcg;
use serde::Serialize;

use super::cached::CacheOptions;
use crate::cli::embed::Weights;
use crate::cli::output::{Align, Table, note, progress};
use crate::cli::{Context, Verdict};
use crate::data::decode::PREPARATION;
use crate::eval::cached::CachedEmbedder;
use crate::eval::megaface::noise::{self, Treatment};
use crate::eval::megaface::photos::Photos;
use crate::eval::megaface::{self, Distractors, Identified, MegafaceReport, Probes, SIZES, to_unit_length};
use crate::eval::product::GpuProduct;
use crate::interchange::files::probe;
use crate::report::{CurveKind, EvaluationPage, ResultTable, RocChart};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl eval megaface --weights w.safetensors --facescrub facescrub --megaface megaface
  epl eval megaface --facescrub fs.safetensors --megaface mf.safetensors --distractors 1000,1000000
  epl eval megaface --weights w.safetensors --facescrub fs --megaface mf --megaface-noise noise.txt

The photos are aligned ones of the network's input size; others are scaled by their short side and
cropped at the centre. Published numbers are those of the cleaned set: of the 3530 photos of the
devkit's list of FaceScrub (--facescrub-list), with both noise lists (--facescrub-noise and
--megaface-noise).";

/// What becomes of photos on the noise lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Noise {
    /// InsightFace's way, for numbers to compare with published ones: a photo of FaceScrub becomes the centre of the person's
    /// clean photos, which makes it easy to find; a distractor counts, but no search finds it
    Replace,
    /// They are left out, which is the stricter test
    Drop,
}

/// Find FaceScrub's photos among up to a million distractors: rank-1, CMC, TAR at FAR 1e-6
///
/// By the protocol of MegaFace's devkit. Of each person every photo in turn is in the gallery, and every other photo of the
/// person is searched for; a search succeeds where the mate's score is above that of every distractor. Smaller sets of
/// distractors are the first ones of a random order. An equal score counts against the network; scores are in f32.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Megaface {
    /// The network's weights, a .safetensors, .pth or checkpoint's folder; not needed where both sets are embeddings
    #[arg(long, value_name = "W")]
    weights: Option<PathBuf>,
    /// The network's architecture, where the weights' metadata does not have it
    #[arg(long, value_name = "A", requires = "weights")]
    arch: Option<String>,
    #[command(flatten)]
    cache: CacheOptions,
    /// FaceScrub: a folder of one folder a person, or the embeddings that `epl embed` wrote of it
    #[arg(long, value_name = "DIR|F.safetensors")]
    facescrub: PathBuf,
    /// MegaFace: a folder of photos at any depth, or embeddings
    #[arg(long, value_name = "DIR|F.safetensors")]
    megaface: PathBuf,
    /// Only these photos of FaceScrub: a path a line, or the devkit's list in JSON [default: all]
    #[arg(long, value_name = "LIST")]
    facescrub_list: Option<PathBuf>,
    /// Only these distractors [default: all]
    #[arg(long, value_name = "LIST")]
    megaface_list: Option<PathBuf>,
    /// Photos of FaceScrub that show somebody else, by name
    #[arg(long, value_name = "LIST")]
    facescrub_noise: Option<PathBuf>,
    /// Distractors that show somebody of FaceScrub, by the last three parts of their paths
    #[arg(long, value_name = "LIST")]
    megaface_noise: Option<PathBuf>,
    /// What becomes of photos on the noise lists
    #[arg(long, value_enum, default_value_t = Noise::Replace)]
    noise: Noise,
    /// Numbers of distractors, besides all of them
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_values_t = SIZES, value_parser = at_least_one())]
    distractors: Vec<usize>,
    /// The random order that smaller sets of distractors are taken from
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write a page with the results and the curves
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Evaluated {
    #[serde(flatten)]
    report: MegafaceReport,
    /// Photos of FaceScrub that were on the noise list.
    noisy_probes: usize,
    /// Distractors that were on the noise list.
    noisy_distractors: usize,
    noise: &'static str,
}

/// Reads a number of distractors.
fn at_least_one() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..)
}

/// Noise lists go by the last part of a photo of FaceScrub, and by the last three of a distractor.
const PROBE_PARTS: usize = 1;
const DISTRACTOR_PARTS: usize = 3;

impl Megaface {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        // The sets first: a path that is wrong should not wait for the weights.
        let mut photos = Photos::open("FaceScrub", &self.facescrub, self.facescrub_list.as_deref())?;
        let mut others = Photos::open("MegaFace", &self.megaface, self.megaface_list.as_deref())?;
        let people = photos.people()?;
        let noisy_probes = noisy(&photos, self.facescrub_noise.as_deref(), PROBE_PARTS)?;
        let noisy_distractors = noisy(&others, self.megaface_noise.as_deref(), DISTRACTOR_PARTS)?;

        if let Some(report) = &self.report {
            probe(report)?;
        }
        let weights = self.weights.clone().map(|weights| Weights { weights, arch: self.arch.clone() });
        let mut embedder = self.embedder(weights.as_ref(), &[&photos, &others], context)?;
        let (probe_rows, dimension) = embed(&mut photos, embedder.as_mut())?;
        let (other_rows, other_dimension) = embed(&mut others, embedder.as_mut())?;
        drop(embedder);
        if dimension != other_dimension {
            return Err(Error::data(
                format!("{} and {}", self.facescrub.display(), self.megaface.display()),
                format!("embeddings of {dimension} and of {other_dimension}"),
                "embeddings of one network",
                "embed both sets with the same weights",
            ));
        }
        let treatment = match self.noise {
            Noise::Replace => Treatment::Replace,
            Noise::Drop => Treatment::Drop,
        };
        let name = |at: usize| photos.names().get(at).cloned().unwrap_or_default();
        let mut probes = Probes { embeddings: probe_rows, people };
        noise::clean_probes(&mut probes, dimension, &noisy_probes, treatment, &name)?;
        let mut distractors = shuffled(other_rows, dimension, &noisy_distractors, self.seed);
        let away = std::mem::replace(&mut distractors.unreachable, vec![false; noisy_distractors.len()]);
        noise::clean_distractors(&mut distractors, dimension, &away, treatment);

        let [rows, columns] = [probes.people.len(), distractors.unreachable.len()];
        let mut product = GpuProduct::new(&context.open()?, rows, columns, dimension)?;
        let bar = progress(columns);
        let sizes = &self.distractors;
        let report =
            megaface::evaluate(&mut product, dimension, &probes, &distractors, sizes, &mut |done| {
                bar.set_position(done as u64);
            })?;
        bar.finish_and_clear();
        let count = |noisy: &[bool]| noisy.iter().filter(|noisy| **noisy).count();
        let evaluated = Evaluated {
            report,
            noisy_probes: count(&noisy_probes),
            noisy_distractors: count(&noisy_distractors),
            noise: match self.noise {
                Noise::Replace => "replace",
                Noise::Drop => "drop",
            },
        };
        if let Some(report) = &self.report {
            evaluated.page(self.origin()).write(report)?;
        }
        context.present(&evaluated)?;
        Ok(Verdict::Done)
    }

    /// Where the embeddings are from.
    fn origin(&self) -> String {
        match &self.weights {
            Some(weights) => weights.display().to_string(),
            None => format!("{}, {}", self.facescrub.display(), self.megaface.display()),
        }
    }

    /// What embeds the images among `sets`; `None` where there are none.
    fn embedder<'a>(
        &self,
        weights: Option<&'a Weights>,
        sets: &[&Photos],
        context: &'a Context,
    ) -> Result<Option<CachedEmbedder<'a>>> {
        let images: Vec<usize> =
            sets.iter().filter(|set| set.are_images()).map(|set| set.names().len()).collect();
        if images.is_empty() {
            return Ok(None);
        }
        let Some(weights) = weights else {
            return Err(Error::usage(
                "there are images to embed, and no weights",
                "give --weights, or name two files of embeddings",
            ));
        };
        // One recipe for both sets: it has the size of a batch.
        let most = images.into_iter().max().unwrap_or(1);
        self.cache.embedder(weights, context, most, PREPARATION, true).map(Some)
    }
}

/// The embeddings of `photos`, of unit length, and how long each is.
fn embed(photos: &mut Photos, embedder: Option<&mut CachedEmbedder<'_>>) -> Result<(Vec<f32>, usize)> {
    let (mut rows, dimension) = match (photos.take_embeddings(), embedder) {
        (Some(embedded), _) => embedded,
        (None, Some(embedder)) => {
            let bar = progress(photos.names().len());
            let rows = embedder.embed(&*photos, &mut |done| bar.set_position(done as u64))?;
            bar.finish_and_clear();
            (rows, embedder.dimension())
        }
        (None, None) => {
            return Err(Error::usage("there are images to embed, and no weights", "give --weights"));
        }
    };
    let name = |at: usize| photos.names().get(at).cloned().unwrap_or_default();
    to_unit_length(&mut rows, dimension, &name)?;
    Ok((rows, dimension))
}

/// Which photos are on the list.
fn noisy(photos: &Photos, list: Option<&Path>, parts: usize) -> Result<Vec<bool>> {
    let names = match list {
        Some(list) => noise::read(list, parts)?,
        None => HashSet::new(),
    };
    let found: Vec<bool> =
        photos.names().iter().map(|name| names.contains(&noise::ending(name, parts))).collect();
    if let Some(list) = list.filter(|_| !found.contains(&true)) {
        note(format_args!("note: no photo is on the list {}", list.display()));
    }
    Ok(found)
}

/// The distractors in a random order, by Fisher and Yates; those that are noisy as unreachable.
fn shuffled(rows: Vec<f32>, dimension: usize, noisy: &[bool], seed: u64) -> Distractors {
    let mut random = Pcg64Mcg::new(0x6d65_6761_6661_6365_u128 << 64 | u128::from(seed));
    let mut order: Vec<usize> = (0..noisy.len()).collect();
    for last in (1..order.len()).rev() {
        let at = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
        order.swap(last, at as usize);
    }
    let row = |&at: &usize| rows.get(at * dimension..(at + 1) * dimension).unwrap_or_default();
    Distractors {
        embeddings: order.iter().flat_map(row).copied().collect(),
        unreachable: order.iter().map(|&at| noisy.get(at).copied().unwrap_or(false)).collect(),
    }
}

/// A fraction in percent.
fn percent(fraction: f64) -> String {
    format!("{:.2}", fraction * 100.0)
}

impl Evaluated {
    /// What is in the test.
    fn counts(&self) -> String {
        let MegafaceReport { probes, people, distractors, searches, .. } = &self.report;
        format!("{probes} photos of {people} people, {distractors} distractors, {searches} searches")
    }

    /// What became of noisy photos; `None` where there are none.
    fn noise(&self) -> Option<String> {
        let done = if self.noise == "drop" { "left out" } else { "replaced as InsightFace does" };
        let any = self.noisy_probes + self.noisy_distractors > 0;
        any.then(|| {
            format!("{} photos and {} distractors, {done}", self.noisy_probes, self.noisy_distractors)
        })
    }

    fn pairs(&self) -> String {
        let MegafaceReport { genuine_pairs, impostor_pairs, .. } = &self.report;
        format!("{genuine_pairs} pairs of one person and {impostor_pairs} of a photo and a distractor")
    }

    /// Identification by the number of distractors.
    fn identification(&self) -> Table {
        let mut table = Table::new(&[
            ("distractors", Align::Right),
            ("rank-1 %", Align::Right),
            ("rank-10 %", Align::Right),
        ]);
        for found in &self.report.identification {
            table.row([found.distractors.to_string(), percent(found.rank_1), percent(found.rank_10)]);
        }
        table
    }

    /// Verification by the false-accept rate.
    fn verification(&self) -> Table {
        let mut table =
            Table::new(&[("FAR", Align::Right), ("TAR %", Align::Right), ("threshold", Align::Right)]);
        for at in &self.report.verification {
            let dash = || "-".to_owned();
            let threshold = at.threshold.map_or_else(dash, |threshold| format!("{threshold:.4}"));
            table.row([format!("{:.0e}", at.far), at.tar.map_or_else(dash, percent), threshold]);
        }
        table
    }

    /// Why there are no rates where there are none.
    fn notes(&self) -> impl Iterator<Item = String> {
        let rates = self.report.verification.iter();
        rates.filter_map(|at| Some(format!("FAR {:.0e}: {}", at.far, at.note.as_ref()?)))
    }

    /// The page of results; `origin` is where the embeddings are from.
    fn page(&self, origin: String) -> EvaluationPage {
        let mut facts = vec![("Embeddings".to_owned(), origin), ("Test".to_owned(), self.counts())];
        facts.extend(self.noise().map(|noise| ("On the noise lists".to_owned(), noise)));
        facts.push(("1:1".to_owned(), self.pairs()));
        facts.extend(self.notes().map(|note| ("Note".to_owned(), note)));
        let table = |title: &str, reading: &str, table: Table| {
            let (columns, rows) = table.into_parts();
            ResultTable { title: title.to_owned(), reading: reading.to_owned(), columns, rows }
        };
        let tables = vec![
            table(
                "Identification",
                "The share of searches whose mate has a better score than all distractors, and than all but nine.",
                self.identification(),
            ),
            table(
                "Verification",
                "At most the share FAR of the pairs of a photo and a distractor is accepted. A dash: there are too few \
                 of them for this rate.",
                self.verification(),
            ),
        ];
        let curve = |found: &Identified| {
            let points = found.cmc.iter().map(|&(rank, rate)| (rank as f64, rate)).collect();
            (format!("{} distractors", found.distractors), points)
        };
        let charts = vec![RocChart {
            title: "Cumulative match characteristic".to_owned(),
            curves: self.report.identification.iter().map(curve).collect(),
            kind: CurveKind::Cmc,
        }];
        EvaluationPage {
            protocol: "MegaFace".to_owned(),
            title: "FaceScrub among distractors".to_owned(),
            facts,
            tables,
            charts,
        }
    }
}

impl Display for Evaluated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.counts())?;
        if let Some(noise) = self.noise() {
            writeln!(f, "noisy: {noise}")?;
        }
        writeln!(f, "\n{}\n1:1, {}", self.identification(), self.pairs())?;
        write!(f, "{}", self.verification())?;
        self.notes().try_for_each(|note| writeln!(f, "{note}"))
    }
}
