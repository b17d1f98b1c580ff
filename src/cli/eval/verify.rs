//! `epl eval verify`: the 1:1 protocol on sets of pairs.

use std::fmt::{self, Display};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::cached::CacheOptions;
use crate::Result;
use crate::cli::embed::Weights;
use crate::cli::output::{Align, Table, progress};
use crate::cli::{Context, Verdict};
use crate::eval::VerificationReport;
use crate::eval::pairs::PairSet;
use crate::interchange::safetensors::probe;
use crate::report::{EvaluationPage, ResultTable, RocChart};

const EXAMPLES: &str = "\
Examples:
  epl eval verify --weights runs/a/model.safetensors lfw.bin cfp_fp.bin agedb_30.bin
  epl eval verify --weights w.safetensors --arch ir50 --pairs pairs.txt --json";

/// Verify pairs of images: accuracy by ten folds, TAR at FAR 1e-3, AUC, EER
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Verify {
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    cache: CacheOptions,
    /// A list of pairs: two paths of images and 1 (the same person) or 0 a line; may be given more than once
    #[arg(long, value_name = "FILE")]
    pairs: Vec<PathBuf>,
    /// Write a page with ROC curves and the table
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Verification sets as InsightFace packs them
    #[arg(value_name = "BIN", required_unless_present = "pairs")]
    sets: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Verified {
    sets: Vec<VerificationReport>,
}

impl Verify {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        if let Some(report) = &self.report {
            probe(report)?;
        }
        // The sets first: a path that is wrong should not wait for the weights.
        let bins = self.sets.iter().map(|path| PairSet::open_bin(path));
        let lists = self.pairs.iter().map(|path| PairSet::open_pairs(path));
        let sets = bins.chain(lists).collect::<Result<Vec<_>>>()?;
        sets.iter().try_for_each(PairSet::check_pairs)?;
        let images = sets.iter().map(PairSet::images).sum();
        let mut embedder = self.cache.flip_embedder(&self.weights, context, images)?;

        let bar = progress(images);
        let mut verified = Verified { sets: Vec::with_capacity(sets.len()) };
        let mut done = 0;
        for set in &sets {
            bar.set_message(set.name().to_owned());
            let report =
                set.evaluate_cached(&mut embedder, &mut |here| bar.set_position((done + here) as u64))?;
            verified.sets.push(report);
            done += set.images();
        }
        bar.finish_and_clear();
        if let Some(report) = &self.report {
            verified.page(self.weights.place()).write(report)?;
        }
        context.present(&verified)?;
        Ok(Verdict::Done)
    }
}

/// Titles of the columns, of the table and the page.
const COLUMNS: [&str; 8] =
    ["set", "pairs", "accuracy %", "+-", "TAR % at FAR 1e-3", "AUC", "EER %", "threshold"];

/// The cells of a set, rates in percent.
fn cells(report: &VerificationReport) -> [String; 8] {
    let percent = |fraction: f64| format!("{:.2}", fraction * 100.0);
    [
        report.name.clone(),
        report.pairs.to_string(),
        percent(report.accuracy),
        percent(report.accuracy_std),
        percent(report.tar_at_far_1e3),
        format!("{:.4}", report.auc),
        percent(report.eer),
        format!("{:.2}", report.threshold),
    ]
}

impl Verified {
    fn page(&self, weights: String) -> EvaluationPage {
        let names: Vec<&str> = self.sets.iter().map(|set| set.name.as_str()).collect();
        let chart = |set: &VerificationReport| {
            let points = set.roc.iter().map(|&(far, tar)| (f64::from(far), f64::from(tar))).collect();
            RocChart {
                title: set.name.clone(),
                curves: vec![(set.name.clone(), points)],
                ..RocChart::default()
            }
        };
        EvaluationPage {
            protocol: "Verification".to_owned(),
            title: names.join(", "),
            facts: vec![("weights".to_owned(), weights)],
            tables: vec![ResultTable {
                title: "Accuracy by ten folds".to_owned(),
                reading: "The threshold, a squared distance of normalised embeddings, that is best on nine folds is \
                          applied to the tenth; the last column has the one that is best on all pairs."
                    .to_owned(),
                columns: COLUMNS.map(str::to_owned).to_vec(),
                rows: self.sets.iter().map(|set| cells(set).to_vec()).collect(),
            }],
            charts: self.sets.iter().map(chart).collect(),
        }
    }
}

impl Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", verification_table(&self.sets))
    }
}

/// Verification results as a table, rates in percent.
pub fn verification_table(reports: &[VerificationReport]) -> Table {
    let mut table =
        Table::new(&COLUMNS.map(|title| (title, if title == "set" { Align::Left } else { Align::Right })));
    reports.iter().for_each(|report| table.row(cells(report)));
    table
}
