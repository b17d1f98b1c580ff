//! `epl eval ijb`: templates of IJB-B and IJB-C, 1:1 and 1:N.

use std::fmt::{self, Display};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::cached::CacheOptions;
use crate::Result;
use crate::cli::embed::Weights;
use crate::cli::output::{Align, Table, note, progress};
use crate::cli::{Context, Verdict};
use crate::eval::ijb::identify::GalleryReport;
use crate::eval::ijb::meta::{self, Meta};
use crate::eval::ijb::pictures::{Crops, PREPARATION};
use crate::eval::ijb::{self, IjbReport, Settings};
use crate::interchange::files::probe;
use crate::report::{CurveKind, EvaluationPage, ResultTable, RocChart};

const EXAMPLES: &str = "\
Examples:
  epl eval ijb --weights runs/a/model.safetensors --ijb ijb --target IJBC
  epl eval ijb --weights w.safetensors --ijb ijb/IJBB --target IJBB --report ijbb.html --json

The folder is InsightFace's release of the set: meta/ with ijbc_name_5pts_score.txt,
ijbc_face_tid_mid.txt and ijbc_template_pair_label.txt, and loose_crop/ with the images. With
ijbc_1N_gallery_G1.csv, ijbc_1N_gallery_G2.csv and ijbc_1N_probe_mixed.csv in meta/ there is 1:N as
well (ijbb_ and S1, S2 for IJB-B).";

/// Which set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// IARPA Janus Benchmark-C
    #[value(name = "IJBC")]
    Ijbc,
    /// IARPA Janus Benchmark-B
    #[value(name = "IJBB")]
    Ijbb,
}

/// Evaluate templates of IJB-B or IJB-C: TAR at FAR 1e-6 to 1e-1, and identification in the galleries
///
/// By the protocol of InsightFace, whose numbers papers print. Faces are aligned by the landmarks of the lists. The feature
/// of an image is the sum with its mirror image's, with its length kept, times the detector's score; features are averaged
/// within a photo or video, added over a template and normalised. TAR is that at the point of the ROC curve which is nearest
/// to the FAR. 1:N is given with both galleries as one, and with each alone.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Ijb {
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    cache: CacheOptions,
    /// The folder of meta and loose_crop, or the one that holds it under the set's name
    #[arg(long, value_name = "DIR")]
    ijb: PathBuf,
    /// Which set
    #[arg(long, value_enum, ignore_case = true, default_value_t = Target::Ijbc)]
    target: Target,
    /// Leave out the detector's score, InsightFace's D0
    #[arg(long)]
    no_detector_score: bool,
    /// Bring each image's feature to unit length first, InsightFace's N0
    #[arg(long)]
    no_norm: bool,
    /// Leave out the mirrored images, InsightFace's F0
    #[arg(long)]
    no_flip: bool,
    /// Write a page with the results and the curves
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Evaluated {
    target: &'static str,
    #[serde(flatten)]
    report: IjbReport,
    /// What the user should know about the lists.
    remarks: Vec<String>,
}

impl Ijb {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let target = match self.target {
            Target::Ijbb => meta::Target::Ijbb,
            Target::Ijbc => meta::Target::Ijbc,
        };
        // The lists first: a path that is wrong should not wait for the weights.
        let meta = Meta::read(&self.ijb, target)?;
        meta.remarks.iter().for_each(|remark| note(format_args!("note: {remark}")));
        if let Some(report) = &self.report {
            probe(report)?;
        }
        let crops = Crops::new(target.name(), &meta);
        let count = meta.faces.names.len();
        let mut embedder = self.cache.embedder(&self.weights, context, count, PREPARATION, !self.no_flip)?;
        let bar = progress(count);
        let embeddings = embedder.embed(&crops, &mut |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        let settings =
            Settings { norm: !self.no_norm, detector_score: !self.no_detector_score, flip: !self.no_flip };
        let lists = meta.identification.as_ref();
        let dimension = embedder.dimension();
        let report = ijb::evaluate(&embeddings, dimension, &meta.faces, &meta.pairs, lists, settings)?;
        let evaluated = Evaluated { target: target.name(), report, remarks: meta.remarks };
        if let Some(report) = &self.report {
            evaluated.page(self.weights.place()).write(report)?;
        }
        context.present(&evaluated)?;
        Ok(Verdict::Done)
    }
}

const VERIFICATION_READING: &str =
    "TAR is that at the point of the ROC curve whose FAR is nearest to the one that is asked for.";

const IDENTIFICATION_READING: &str = "With all galleries as one, the threshold of an FPIR comes from all scores with somebody \
     else. With each gallery alone, it comes from the searches for people who are not in it.";

fn table(title: &str, reading: &str, table: Table) -> ResultTable {
    let (columns, rows) = table.into_parts();
    ResultTable { title: title.to_owned(), reading: reading.to_owned(), columns, rows }
}

/// A fraction in percent.
fn percent(fraction: f64) -> String {
    format!("{:.2}", fraction * 100.0)
}

impl Evaluated {
    /// The page of results; `weights` is where the network is from.
    fn page(&self, weights: String) -> EvaluationPage {
        let IjbReport { faces, templates, verification, identification, .. } = &self.report;
        let mut facts = vec![
            ("Weights".to_owned(), weights),
            ("Set".to_owned(), format!("{}, {faces} faces in {templates} templates", self.target)),
            ("Features".to_owned(), self.test_mode()),
            (
                "1:1".to_owned(),
                format!(
                    "{} pairs, of which {} match; AUC {:.6}",
                    verification.pairs, verification.matching, verification.auc
                ),
            ),
        ];
        let mut tables = vec![table("Verification of templates", VERIFICATION_READING, self.verification())];
        let mut charts = vec![RocChart {
            title: "Verification of templates".to_owned(),
            curves: vec![(self.target.to_owned(), verification.roc.clone())],
            kind: CurveKind::Roc,
        }];
        if let Some(found) = identification {
            facts.push(("1:N".to_owned(), format!("{} probe templates", found.probes)));
            tables.push(table("Identification", IDENTIFICATION_READING, self.identification()));
            let galleries = found.galleries.iter().chain([&found.mean]);
            charts.push(RocChart {
                title: "Identification in each gallery alone".to_owned(),
                curves: galleries.map(|gallery| (gallery.name.clone(), gallery.curve.clone())).collect(),
                kind: CurveKind::Identification,
            });
        }
        facts.extend(self.remarks.iter().map(|remark| ("Note".to_owned(), remark.clone())));
        EvaluationPage {
            protocol: self.target.to_owned(),
            title: "Templates, 1:1 and 1:N".to_owned(),
            facts,
            tables,
            charts,
        }
    }

    /// InsightFace's name for what of the features counts.
    fn test_mode(&self) -> String {
        let Settings { norm, detector_score, flip } = self.report.settings;
        format!("N{}D{}F{}", u8::from(norm), u8::from(detector_score), u8::from(flip))
    }

    /// 1:1 as a table.
    fn verification(&self) -> Table {
        let mut table = Table::new(&[
            ("FAR", Align::Right),
            ("TAR %", Align::Right),
            ("FAR of the point", Align::Right),
            ("threshold", Align::Right),
        ]);
        for at in &self.report.verification.tar_at_far {
            let threshold =
                at.threshold.map_or_else(|| "-".to_owned(), |threshold| format!("{threshold:.4}"));
            table.row([
                format!("{:.0e}", at.far),
                percent(at.tar),
                format!("{:.3e}", at.far_of_point),
                threshold,
            ]);
        }
        table
    }

    /// 1:N as a table; empty where there is none.
    fn identification(&self) -> Table {
        let mut table = Table::new(&[
            ("gallery", Align::Left),
            ("templates", Align::Right),
            ("probes", Align::Right),
            ("top-1 %", Align::Right),
            ("top-5 %", Align::Right),
            ("top-10 %", Align::Right),
            ("TPIR % at FPIR 0.01", Align::Right),
            ("TPIR % at FPIR 0.1", Align::Right),
        ]);
        let galleries = self.report.identification.iter();
        let galleries = galleries
            .flat_map(|found| std::iter::once(&found.together).chain(&found.galleries).chain([&found.mean]));
        for gallery in galleries {
            table.row(gallery_row(gallery));
        }
        table
    }
}

fn gallery_row(gallery: &GalleryReport) -> Vec<String> {
    let mut row = vec![gallery.name.clone(), gallery.gallery.to_string(), gallery.mated.to_string()];
    row.extend([gallery.top_1, gallery.top_5, gallery.top_10].map(percent));
    row.extend(gallery.tpir_at_fpir.iter().map(|at| at.tpir.map_or_else(|| "-".to_owned(), percent)));
    row
}

impl Display for Evaluated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let IjbReport { faces, templates, verification, identification, .. } = &self.report;
        writeln!(f, "{} {}: {faces} faces in {templates} templates", self.target, self.test_mode())?;
        writeln!(
            f,
            "\n1:1, {} pairs of which {} match, AUC {:.6}",
            verification.pairs, verification.matching, verification.auc
        )?;
        write!(f, "{}", self.verification())?;
        if let Some(found) = identification {
            writeln!(f, "\n1:N, {} probes", found.probes)?;
            write!(f, "{}", self.identification())?;
        }
        Ok(())
    }
}
