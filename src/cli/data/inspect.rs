//! `epl data inspect`: what a data set is.

use std::fmt::{self, Display};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::Result;
use crate::cli::output::bytes;
use crate::cli::{Context, Verdict};
use crate::data::survey::Survey;

const EXAMPLES: &str = "\
Examples:
  epl data inspect faces/
  epl data inspect ms1m/train.rec
  epl data inspect --json lfw.bin";

/// The longest bar of the histogram.
const BAR: usize = 40;

/// Say what a folder, record file or verification set holds
///
/// Reads the index and decodes a sample of the images, so that it is quick for sets of millions. What is
/// wrong with the others only `epl data check` finds.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Inspect {
    /// A folder of one folder an identity, a .rec file, a folder that holds train.rec, or a .bin verification
    /// set
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// The result.
#[derive(Debug, Serialize)]
struct Found {
    path: PathBuf,
    #[serde(flatten)]
    survey: Survey,
}

impl Inspect {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let survey = Survey::of(&self.path)?;
        context.present(&Found { path: self.path.clone(), survey })?;
        Ok(Verdict::Done)
    }
}

impl Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let survey = &self.survey;
        let mut line = |name: &str, value: String| writeln!(f, "{name:<11} {value}");
        line(
            "what",
            match survey.kind {
                "folder" => "a folder of one folder an identity".to_owned(),
                "insightface" => {
                    "a record file in InsightFace's form (record 0 says which records are images)".to_owned()
                }
                "im2rec" => "a record file in the form of im2rec (every record is an image)".to_owned(),
                _ => format!("a verification set (pickle protocol {})", survey.pickle.unwrap_or(0)),
            },
        )?;
        for (path, length) in &survey.files {
            line("file", format!("{}, {}", path.display(), bytes(*length)))?;
        }
        line("images", survey.images.to_string())?;
        if let Some([same, different]) = survey.pairs {
            line("pairs", format!("{}: {same} of one person, {different} of two", same + different))?;
        }
        if let Some(classes) = survey.classes {
            line("identities", classes.to_string())?;
        }
        if let Some(label) = &survey.label {
            line("label", label.clone())?;
        }
        if let Some(property) = &survey.property {
            line("property", property.clone())?;
        }
        let sample = &survey.sample;
        let of = |counts: Vec<String>| counts.join(", ");
        let sampled = if sample.images == survey.images {
            String::new()
        } else {
            format!(" of {} sampled", sample.images)
        };
        let all = |name: &str, count: usize| {
            if count == sample.images {
                format!("{name} (all{sampled})")
            } else {
                format!("{name} ({count}{sampled})")
            }
        };
        let shown = 6;
        let mut sizes: Vec<String> =
            sample.sizes.iter().take(shown).map(|(size, count)| all(size, *count)).collect();
        if sample.sizes.len() > shown {
            sizes.push(format!("{} more sizes", sample.sizes.len() - shown));
        }
        line("size", format!("{}, height x width", of(sizes)))?;
        line("format", of(sample.formats.iter().map(|(name, &count)| all(name, count)).collect()))?;
        let colour = sample.images - sample.grey - sample.undecodable;
        let kinds = [("RGB", colour), ("grey", sample.grey)].into_iter().filter(|&(_, count)| count > 0);
        line("colour", of(kinds.map(|(name, count)| all(name, count)).collect()))?;
        if sample.undecodable > 0 {
            line("damaged", all("cannot be decoded", sample.undecodable))?;
        }
        line("bytes", format!("{} an image on average", bytes(sample.mean_bytes)))?;
        if let Some(spread) = &survey.spread {
            let balance = spread.balance;
            if !survey.all_labels {
                line(
                    "note",
                    "the following is of a sample of the labels, so that classes look smaller".to_owned(),
                )?;
            }
            line(
                "spread",
                format!("{} to {} images an identity, median {}", balance.min, balance.max, balance.median),
            )?;
            let most = spread.histogram.iter().map(|bin| bin.classes).max().unwrap_or(0).max(1);
            for bin in &spread.histogram {
                let range =
                    if bin.from == bin.to { bin.to.to_string() } else { format!("{}-{}", bin.from, bin.to) };
                let bar = "#".repeat((bin.classes * BAR).div_ceil(most));
                line("", format!("{range:>13} {bar:<BAR$} {}", bin.classes))?;
            }
        }
        if !survey.names.is_empty() {
            line("first", of(survey.names.clone()))?;
        }
        if survey.skipped > 0 {
            line("skipped", format!("{} files that are no images", survey.skipped))?;
        }
        if survey.faults > 0 {
            line("faults", format!("{} in its structure; `epl data check` names them", survey.faults))?;
        }
        Ok(())
    }
}
