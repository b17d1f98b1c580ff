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
        // The sets first: a path that is wrong should not wait for the weights.
        let bins = self.sets.iter().map(|path| PairSet::open_bin(path));
        let lists = self.pairs.iter().map(|path| PairSet::open_pairs(path));
        let sets = bins.chain(lists).collect::<Result<Vec<_>>>()?;
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
        context.present(&verified)?;
        Ok(Verdict::Done)
    }
}

impl Display for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", verification_table(&self.sets))
    }
}

/// Verification results as a table, rates in percent.
pub fn verification_table(reports: &[VerificationReport]) -> Table {
    let mut table = Table::new(&[
        ("set", Align::Left),
        ("pairs", Align::Right),
        ("accuracy %", Align::Right),
        ("+-", Align::Right),
        ("TAR % at FAR 1e-3", Align::Right),
        ("AUC", Align::Right),
        ("EER %", Align::Right),
        ("threshold", Align::Right),
    ]);
    let percent = |fraction: f64| format!("{:.2}", fraction * 100.0);
    for report in reports {
        table.row([
            report.name.clone(),
            report.pairs.to_string(),
            percent(report.accuracy),
            percent(report.accuracy_std),
            percent(report.tar_at_far_1e3),
            format!("{:.4}", report.auc),
            percent(report.eer),
            format!("{:.2}", report.threshold),
        ]);
    }
    table
}
