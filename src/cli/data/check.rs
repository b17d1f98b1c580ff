//! `epl data check`: names what will make a training fail or go wrong.

use std::fmt::{self, Display};
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::{csv_field, parse_size};
use crate::cli::output::{note, progress};
use crate::cli::{Context, Verdict};
use crate::data::aside::AsideFile;
use crate::data::doctor::{self, Balance, Checking, Named, NamedMarks, Report, Severity, Stage};
use crate::data::stored::{Source, Stored};
use crate::data::{VerificationSet, has_extension};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl data check faces/
  epl data check --size 112,112 --list findings.csv ms1m/train.rec
  epl data check --json lfw.bin";

/// Read every image and name what will make a training fail or go wrong
///
/// Errors: damaged records, images that cannot be decoded or have another size than most, labels that are no
/// class, the same pixels under two labels. Warnings: repeated and nearly repeated images, classes without an
/// image or with one, imbalance, grey or blank images, channels that look swapped. Damage is listed and
/// passed over. Exit code 0: no errors; 1: errors.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Check {
    /// The network's input size, height and width [default: that of most images]
    #[arg(long, value_name = "H,W", value_parser = parse_size)]
    size: Option<[usize; 2]>,
    /// Let images of other sizes pass, as the training will scale them (data.resize = true)
    #[arg(long)]
    resize: bool,
    /// The number of classes that the training will be told (data.num_classes)
    #[arg(long, value_name = "C")]
    num_classes: Option<usize>,
    /// Do not look for images that are nearly the same
    #[arg(long)]
    no_near: bool,
    /// How many examples to name of each finding
    #[arg(long, value_name = "N", default_value_t = 5)]
    examples: usize,
    /// Write everything that was found, one thing a line: CSV, or JSON lines where the name ends in .jsonl
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// A folder of one folder an identity, a .rec file, a folder that holds train.rec, or a .bin verification
    /// set
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// The result.
struct Checked<'a> {
    path: String,
    report: &'a Report,
    stored: &'a dyn Stored,
    examples: usize,
    seconds: f64,
    list: Option<String>,
}

impl Check {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        // Before the long work: whether its result can be written.
        let list = self.list.as_ref().map(|path| AsideFile::create(path, true)).transpose()?;
        let started = Instant::now();
        if has_extension(&self.path, "bin") {
            let set = VerificationSet::open_bin(&self.path)?;
            let report = self.with_bar(|progress| doctor::check_set(&set, &self.checking(), progress));
            return self.finish(context, &report, &set, started, list);
        }
        let mut faults = Vec::new();
        let source = Source::open(&self.path, &mut |fault| {
            faults.push(fault);
            Ok(())
        })?;
        let report = self.with_bar(|progress| doctor::check(&source, faults, &self.checking(), progress));
        self.finish(context, &report, source.stored(), started, list)
    }

    fn checking(&self) -> Checking {
        Checking { size: self.size, resize: self.resize, num_classes: self.num_classes, near: !self.no_near }
    }

    /// Shows how far `work` is.
    fn with_bar(&self, work: impl FnOnce(doctor::Progress<'_>) -> Report) -> Report {
        let bar = progress(0);
        let report = work(&|stage, done, all| {
            // Drawing for every image would slow small ones down.
            if done % 64 == 1 || done == all {
                bar.set_message(match stage {
                    Stage::Reading => "images",
                    Stage::Comparing => "pairs that look alike",
                });
                bar.set_length(all as u64);
                bar.set_position(done as u64);
            }
        });
        bar.finish_and_clear();
        report
    }

    fn finish(
        &self,
        context: &Context,
        report: &Report,
        stored: &dyn Stored,
        started: Instant,
        list: Option<AsideFile>,
    ) -> Result<Verdict> {
        if let (Some(mut file), Some(path)) = (list, &self.list) {
            write_list(&mut file, has_extension(path, "jsonl"), report, stored)?;
            file.seal()?.publish()?;
        }
        if report.images == 0 && report.findings.is_empty() {
            return Err(Error::data(
                self.path.display().to_string(),
                "no images",
                "at least one",
                "look at it with `epl data inspect`",
            ));
        }
        context.present(&Checked {
            path: self.path.display().to_string(),
            report,
            stored,
            examples: self.examples,
            seconds: started.elapsed().as_secs_f64(),
            list: self.list.as_ref().map(|path| path.display().to_string()),
        })?;
        if report.count(Severity::Error) == 0 {
            return Ok(Verdict::Done);
        }
        note(format_args!("{} kinds of errors", report.count(Severity::Error)));
        Ok(Verdict::Failed)
    }
}

/// A line of the list.
#[derive(Serialize)]
struct Line<'a> {
    severity: Severity,
    kind: &'a str,
    #[serde(flatten)]
    named: Named,
}

fn write_list(file: &mut AsideFile, json: bool, report: &Report, stored: &dyn Stored) -> Result<()> {
    if !json {
        file.write(b"severity,kind,place,label,identity,other,other_label,detail\n")?;
    }
    let mut text = Vec::new();
    for finding in &report.findings {
        for mark in &finding.marks {
            let line =
                Line { severity: finding.severity, kind: finding.kind, named: Named::new(mark, stored) };
            text.clear();
            if json {
                // Strings and numbers can always be written.
                text = serde_json::to_vec(&line).unwrap_or_default();
                text.push(b'\n');
            } else {
                let number = |label: Option<u32>| label.map(|label| label.to_string()).unwrap_or_default();
                let named = &line.named;
                let fields = [
                    line.severity.to_string(),
                    line.kind.to_owned(),
                    named.place.clone(),
                    number(named.label),
                    named.identity.clone().unwrap_or_default(),
                    named.other.clone().unwrap_or_default(),
                    number(named.other_label),
                    named.detail.clone(),
                ];
                // Writing to memory cannot fail.
                drop(writeln!(text, "{}", fields.map(|field| csv_field(&field)).join(",")));
            }
            file.write(&text)?;
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct JsonReport<'a> {
    path: &'a str,
    images: usize,
    decoded: usize,
    classes: usize,
    size: Option<[usize; 2]>,
    balance: Option<Balance>,
    errors: usize,
    warnings: usize,
    findings: Vec<JsonFinding<'a>>,
    seconds: f64,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    kind: &'a str,
    severity: Severity,
    count: usize,
    what: &'a str,
    advice: &'a str,
    items: NamedMarks<'a>,
}

impl Serialize for Checked<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let findings = self.report.findings.iter().map(|finding| JsonFinding {
            kind: finding.kind,
            severity: finding.severity,
            count: finding.marks.len(),
            what: &finding.what,
            advice: &finding.advice,
            items: NamedMarks { marks: &finding.marks, stored: self.stored },
        });
        let report = self.report;
        JsonReport {
            path: &self.path,
            images: report.images,
            decoded: report.decoded,
            classes: report.classes,
            size: report.size,
            balance: report.balance,
            errors: report.count(Severity::Error),
            warnings: report.count(Severity::Warning),
            findings: findings.collect(),
            seconds: self.seconds,
        }
        .serialize(serializer)
    }
}

impl Display for Checked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        write!(f, "{}: {} images", self.path, report.images)?;
        if report.classes > 0 {
            write!(f, " of {} classes", report.classes)?;
        }
        if let Some([height, width]) = report.size {
            write!(f, ", {height} x {width}")?;
        }
        writeln!(f, ", read in {:.1} s", self.seconds)?;
        if let Some(balance) = report.balance {
            writeln!(
                f,
                "{} to {} images a class, median {}; Gini {:.2}; the largest 1 % of the classes hold {:.1} %",
                balance.min,
                balance.max,
                balance.median,
                balance.gini,
                100.0 * balance.largest_percent_share
            )?;
        }
        for finding in &report.findings {
            writeln!(
                f,
                "\n{:<8} {} {}  [{}]",
                finding.severity,
                finding.marks.len(),
                finding.what,
                finding.kind
            )?;
            for mark in finding.marks.iter().take(self.examples) {
                let named = Named::new(mark, self.stored).to_string();
                if !named.is_empty() {
                    writeln!(f, "         {named}")?;
                }
            }
            if finding.marks.len() > self.examples {
                let more = finding.marks.len() - self.examples;
                let hint = if self.list.is_some() { "" } else { " (--list FILE writes all)" };
                writeln!(f, "         and {more} more{hint}")?;
            }
            writeln!(f, "         -> {}", finding.advice)?;
        }
        if let Some(list) = &self.list {
            writeln!(f, "\nlist     {list}")?;
        }
        match (report.count(Severity::Error), report.count(Severity::Warning)) {
            (0, 0) => writeln!(f, "\nnothing is wrong with it"),
            (errors, warnings) => writeln!(f, "\nerrors: {errors} kinds, warnings: {warnings} kinds"),
        }
    }
}
