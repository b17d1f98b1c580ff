//! `epl eval all-pairs`: every image of a set against every other.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;

use super::cached::CacheOptions;
use crate::cli::embed::Weights;
use crate::cli::output::{Align, Table, bytes, note, progress, rate_progress};
use crate::cli::{Context, Verdict};
use crate::eval::all_pairs::plan::{Plan, Timing, measure};
use crate::eval::all_pairs::set::{EmbeddedSet, ImageSet};
use crate::eval::all_pairs::{self, Far, Limits, Members, Outcome, Progress, Rate, Unit, groups};
use crate::eval::cached::Pictures;
use crate::interchange::safetensors::probe;
use crate::report::{EvaluationPage, ResultTable, RocChart};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl eval all-pairs --weights runs/a/model.safetensors faces/
  epl eval all-pairs --weights w.safetensors mfr/train.rec --groups race.csv --report mfr.html
  epl eval all-pairs --embeddings faces.safetensors --far 1e-4
  epl eval all-pairs --plan 1000000";

/// Verify every image of a set against every other: TAR at FAR 1e-6 to 1e-1, exactly
///
/// The score of a pair is the cosine of its embeddings, to each of which that of the mirrored image is added. At a FAR the
/// threshold is the lowest at which no larger share of the impostor pairs is accepted, ties included. Where the set has
/// fewer impostor pairs than 1 / FAR nothing is said. The result does not depend on the adapter.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct AllPairs {
    /// The network's weights: a .safetensors as `epl train` writes them, a .pth or .pt of PyTorch, or a checkpoint's folder
    #[arg(long, value_name = "W")]
    weights: Option<PathBuf>,
    /// The network's architecture, where the weights' metadata does not have it
    #[arg(long, value_name = "A", requires = "weights")]
    arch: Option<String>,
    #[command(flatten)]
    cache: CacheOptions,
    /// Embeddings with labels, as `epl embed` writes them, in the place of images
    #[arg(long, value_name = "F.safetensors", conflicts_with_all = ["path", "weights"])]
    embeddings: Option<PathBuf>,
    /// A CSV file of groups, such as by race or age: image or identity, group, below a row of titles; each group is
    /// measured on its own
    #[arg(long, value_name = "FILE.csv")]
    groups: Option<PathBuf>,
    /// A false-accept rate; may be given more than once [default: 1e-6 to 1e-1]
    #[arg(long, value_name = "RATE")]
    far: Vec<Far>,
    /// Write a page with ROC curves and tables
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Tell what a set of N images will take instead, from steps measured on this device
    #[arg(long, value_name = "N", conflicts_with_all = ["path", "embeddings", "weights", "groups", "report", "far"])]
    plan: Option<usize>,
    /// With --plan, the length of an embedding
    #[arg(
        long,
        value_name = "D",
        default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=16384),
        requires = "plan"
    )]
    dimension: u32,
    /// A folder of one folder an identity, a .rec file, or a folder with train.rec
    #[arg(value_name = "PATH", required_unless_present_any = ["embeddings", "plan"], requires = "weights")]
    path: Option<PathBuf>,
}

/// A set that is ready to be measured.
struct Ready {
    name: String,
    unit: Unit,
    labels: Vec<u32>,
    unlabelled: usize,
    groups: Vec<groups::Group>,
}

#[derive(Debug, Serialize)]
struct Measured {
    set: String,
    #[serde(flatten)]
    outcome: Outcome,
    /// Embeddings that are all zeros: like nobody.
    zero_embeddings: usize,
    /// Images that were left out, having no label.
    unlabelled: usize,
    groups: Vec<MeasuredGroup>,
}

#[derive(Debug, Serialize)]
struct MeasuredGroup {
    group: String,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Serialize)]
struct Planned {
    device: String,
    #[serde(flatten)]
    plan: Plan,
    measured: Timing,
}

impl AllPairs {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        if let Some(images) = self.plan {
            return self.plan(images, context);
        }
        if let Some(report) = &self.report {
            probe(report)?;
        }
        let ready = self.ready(context)?;
        let fars = if self.far.is_empty() { Far::decades() } else { self.far.clone() };
        let device = context.open()?;
        let measure = |name: &str, rows: Vec<u32>| -> Result<Outcome> {
            let members = Members::new(&ready.unit, &ready.labels, rows);
            let bar = rate_progress(members.pairs().iter().sum());
            let outcome = all_pairs::evaluate(&device, &members, &fars, &Limits::default(), &mut |state| {
                show(&bar, name, state);
            });
            bar.finish_and_clear();
            outcome
        };
        let outcome = measure(&ready.name, (0..ready.unit.len() as u32).collect())?;
        if outcome.genuine_pairs == 0 || outcome.impostor_pairs == 0 {
            return Err(Error::data(
                ready.name,
                format!("{} genuine and {} impostor pairs", outcome.genuine_pairs, outcome.impostor_pairs),
                "both kinds",
                "give a set of several identities, some with several images",
            ));
        }
        let mut measured = Measured {
            set: ready.name.clone(),
            outcome,
            zero_embeddings: ready.unit.zeros(),
            unlabelled: ready.unlabelled,
            groups: Vec::with_capacity(ready.groups.len()),
        };
        if measured.zero_embeddings > 0 {
            note(format_args!("{} embeddings are all zeros: like nobody", measured.zero_embeddings));
        }
        for group in &ready.groups {
            let outcome = measure(&group.name, group.rows.clone())?;
            measured.groups.push(MeasuredGroup { group: group.name.clone(), outcome });
        }
        if let Some(report) = &self.report {
            measured.page(self.origin()).write(report)?;
        }
        context.present(&measured)?;
        Ok(Verdict::Done)
    }

    /// Where the embeddings come from, for the report.
    fn origin(&self) -> (&'static str, String) {
        match (&self.embeddings, &self.weights) {
            (Some(path), _) => ("embeddings", path.display().to_string()),
            (None, weights) => ("weights", weights.clone().unwrap_or_default().display().to_string()),
        }
    }

    /// Embeddings, labels and groups, all checked.
    fn ready(&self, context: &Context) -> Result<Ready> {
        if let Some(path) = &self.embeddings {
            let set = EmbeddedSet::open(path)?;
            let groups = match &self.groups {
                Some(file) => set.names()?.read_groups(file)?,
                None => Vec::new(),
            };
            if set.unlabelled > 0 {
                note(format_args!(
                    "{}: {} embeddings without a label are left out",
                    set.name, set.unlabelled
                ));
            }
            let EmbeddedSet { name, unit, labels, unlabelled, .. } = set;
            return Ok(Ready { name, unit, labels, unlabelled, groups });
        }
        let (Some(path), Some(weights)) = (&self.path, &self.weights) else {
            return Err(Error::usage("no images", "name a set and --weights, or --embeddings"));
        };
        let weights = Weights { weights: weights.clone(), arch: self.arch.clone() };
        let set = ImageSet::open(path)?;
        let labels = set.labels()?;
        check_identities(path, &labels)?;
        let groups = match &self.groups {
            Some(file) => set.names()?.read_groups(file)?,
            None => Vec::new(),
        };
        let mut embedder = self.cache.flip_embedder(&weights, context, set.len())?;
        let bar = progress(set.len());
        bar.set_message("images embedded");
        let embeddings = embedder.embed(&set, &mut |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let unit = Unit::new(set.name(), embeddings, embedder.dimension())?;
        Ok(Ready { name: set.name().to_owned(), unit, labels, unlabelled: 0, groups })
    }

    fn plan(&self, images: usize, context: &Context) -> Result<Verdict> {
        let device = context.open()?;
        let plan = Plan::new(device.caps(), images, self.dimension as usize)?;
        let measured = measure(&device, &plan)?;
        context.present(&Planned { device: device.description().name.clone(), plan, measured })?;
        Ok(Verdict::Done)
    }
}

fn show(bar: &ProgressBar, name: &str, state: Progress) {
    if bar.position() > state.done {
        // The next pass: its speed is its own.
        bar.reset();
    }
    bar.set_message(format!("{name}, pass {}", state.pass));
    bar.set_position(state.done);
}

/// A rate as it is asked for: `1e-6`.
/// Checks that there are pairs of both kinds, before anything is embedded.
fn check_identities(path: &Path, labels: &[u32]) -> Result<()> {
    let different: BTreeSet<u32> = labels.iter().copied().collect();
    let found = match different.len() {
        0 | 1 => "images of one identity".to_owned(),
        identities if identities == labels.len() => format!("{identities} images of as many identities"),
        _ => return Ok(()),
    };
    let expected = "several identities, and two images of at least one";
    Err(Error::data(path.display().to_string(), found, expected, "there is nothing to verify without both"))
}

fn far_name(far: f64) -> String {
    format!("{far:e}")
}

fn percent(rate: &Rate) -> String {
    rate.tar.map_or_else(|| "-".to_owned(), |tar| format!("{:.2}", 100.0 * tar))
}

/// The cells of a rate: FAR, TAR in percent, threshold, genuine pairs and impostors accepted.
fn rate_cells(rate: &Rate) -> [String; 5] {
    let count = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
    let threshold = rate.threshold.map_or_else(|| "-".to_owned(), |threshold| format!("{threshold:.6}"));
    [far_name(rate.far), percent(rate), threshold, count(rate.accepted), count(rate.false_accepts)]
}

const RATE_COLUMNS: [&str; 5] = ["FAR", "TAR %", "threshold", "genuine accepted", "impostors accepted"];

impl Measured {
    /// What the set is and its groups are: name, images, identities, pairs, and the rates in percent.
    fn group_rows(&self) -> Vec<Vec<String>> {
        let whole = std::iter::once((&self.set, &self.outcome));
        let groups = self.groups.iter().map(|group| (&group.group, &group.outcome));
        whole
            .chain(groups)
            .map(|(name, outcome)| {
                let counts = [outcome.images as u64, outcome.identities as u64];
                let pairs = [outcome.genuine_pairs, outcome.impostor_pairs];
                let mut row = vec![name.clone()];
                row.extend(counts.into_iter().chain(pairs).map(|count| count.to_string()));
                row.extend(outcome.tar_at_far.iter().map(percent));
                row
            })
            .collect()
    }

    fn page(&self, (what, place): (&str, String)) -> EvaluationPage {
        let outcome = &self.outcome;
        let mut facts = vec![
            ("set".to_owned(), self.set.clone()),
            (what.to_owned(), place),
            ("images".to_owned(), outcome.images.to_string()),
            ("identities".to_owned(), outcome.identities.to_string()),
            ("genuine pairs".to_owned(), outcome.genuine_pairs.to_string()),
            ("impostor pairs".to_owned(), outcome.impostor_pairs.to_string()),
            ("seconds".to_owned(), format!("{:.1}", outcome.seconds)),
        ];
        for (name, count) in
            [("embeddings of zeros", self.zero_embeddings), ("left out, without a label", self.unlabelled)]
        {
            if count > 0 {
                facts.push((name.to_owned(), count.to_string()));
            }
        }
        let mut tables = vec![ResultTable {
            title: format!("True accepts at given false accepts, {}", self.set),
            reading: "A pair is accepted if its cosine is above the threshold, the lowest at which no larger share of \
                      the impostor pairs is accepted. A dash: the set has too few pairs for this rate."
                .to_owned(),
            columns: RATE_COLUMNS.map(str::to_owned).to_vec(),
            rows: outcome.tar_at_far.iter().map(|rate| rate_cells(rate).to_vec()).collect(),
        }];
        let mut charts = vec![RocChart {
            title: self.set.clone(),
            curves: vec![(self.set.clone(), outcome.roc.clone())],
            ..RocChart::default()
        }];
        if !self.groups.is_empty() {
            let mut columns =
                ["group", "images", "identities", "genuine", "impostors"].map(str::to_owned).to_vec();
            columns.extend(outcome.tar_at_far.iter().map(|rate| far_name(rate.far).to_string()));
            tables.push(ResultTable {
                title: "By group".to_owned(),
                reading: "TAR % at each FAR. The pairs of a group are those of its images, with thresholds of their own."
                    .to_owned(),
                columns,
                rows: self.group_rows(),
            });
            let curves = self.groups.iter().filter(|group| !group.outcome.roc.is_empty());
            let curves = curves.map(|group| (group.group.clone(), group.outcome.roc.clone())).collect();
            charts.push(RocChart { title: "By group".to_owned(), curves, ..RocChart::default() });
        }
        EvaluationPage {
            protocol: "Verification over all pairs".to_owned(),
            title: self.set.clone(),
            facts,
            tables,
            charts,
        }
    }
}

impl Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = &self.outcome;
        writeln!(
            f,
            "{}: {} images of {} identities, {} genuine and {} impostor pairs\n",
            self.set, outcome.images, outcome.identities, outcome.genuine_pairs, outcome.impostor_pairs
        )?;
        let mut table = Table::new(&RATE_COLUMNS.map(|name| (name, Align::Right)));
        outcome.tar_at_far.iter().for_each(|rate| table.row(rate_cells(rate)));
        write!(f, "{table}")?;
        for rate in &outcome.tar_at_far {
            if let Some(why) = &rate.note {
                writeln!(f, "FAR {}: {why}", far_name(rate.far))?;
            }
        }
        if self.groups.is_empty() {
            return Ok(());
        }
        let counts = ["images", "identities", "genuine", "impostors"].map(|name| (name, Align::Right));
        let mut columns = vec![("group", Align::Left)];
        columns.extend(counts);
        let rates: Vec<String> = outcome.tar_at_far.iter().map(|rate| far_name(rate.far)).collect();
        columns.extend(rates.iter().map(|rate| (rate.as_str(), Align::Right)));
        let mut table = Table::new(&columns);
        self.group_rows().into_iter().for_each(|row| table.row(row));
        write!(f, "\nTAR % at each FAR, by group:\n{table}")
    }
}

impl Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, measured, .. } = self;
        let mut line = |name: &str, value: String| writeln!(f, "{name:<18} {value}");
        line("device", self.device.clone())?;
        line("images", format!("{}, embeddings of {}", plan.images, plan.dimension))?;
        line("pairs", plan.pairs.to_string())?;
        line("steps a pass", format!("{} of two panels of {}", plan.steps, plan.panel))?;
        line("operations a pass", format!("{:.3e}", plan.flops))?;
        line("uploaded a pass", bytes(plan.upload_bytes as u64))?;
        line("memory", format!("{} for the embeddings", bytes(plan.host_bytes)))?;
        line("measured", format!("{} images in panels of that size", measured.images))?;
        line("a step", format!("{:.4} s, {:.1} GFLOP/s", measured.step_seconds, measured.gflops))?;
        line("pairs a second", format!("{:.3e}", measured.pairs_per_second))?;
        line(
            "a pass",
            format!("{:.0} s; the rates take two, or three for very large sets", measured.pass_seconds),
        )
    }
}
