//! `metrics.jsonl`: what a run measured, one JSON object a line, for the report and for other programs.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::interchange::files::write_atomically;
use crate::report::{EvalPoint, PrototypePoint, Report, StepPoint};
use crate::{Error, Result};

/// A line of the log. The object has the keys of the point, and `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// A logged step.
    Step(StepPoint),
    /// A verification set, evaluated.
    Eval(EvalPoint),
    /// What the prototypes did in an epoch.
    Prototypes(Box<PrototypePoint>),
}

/// Appends records to a file. Each line reaches the operating system whole before [`MetricsLog::append`] returns, so
/// that a run can be watched, and what a crash leaves is readable.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    /// What a full disk had no room for yet.
    pending: Vec<u8>,
}

impl MetricsLog {
    /// Opens the log at `path` for appending, and makes it if there is none. A last line that a crash cut off is
    /// removed.
    ///
    /// # Errors
    /// [`Error::Io`] naming `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let at = |source| Error::io(path, source);
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(at)?;
        let contents = std::fs::read(path).map_err(at)?;
        let whole = contents.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        if whole < contents.len() {
            file.set_len(whole as u64).map_err(at)?;
            file.seek(SeekFrom::End(0)).map_err(at)?;
        }
        Ok(Self { path: path.to_path_buf(), file, pending: Vec::new() })
    }

    /// Opens the log of a run that goes on after `step` steps and `epochs` whole epochs, and takes out what it has beyond
    /// them: steps that will be taken again, and what was measured at the end of an epoch that will end again. Every other
    /// line stays as it is. Where a power cut spoiled lines, they go too, and the
    /// whole log is kept as `metrics.damaged.jsonl`; returns how many they were.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read or written; then the log is as it was.
    pub fn cut(path: &Path, step: u64, epochs: u32) -> Result<(Self, usize)> {
        let bytes = match std::fs::read(path) {
            Err(source) if source.kind() == ErrorKind::NotFound => Vec::new(),
            bytes => bytes.map_err(|source| Error::io(path, source))?,
        };
        let (mut kept, mut spoiled) = (Vec::with_capacity(bytes.len()), 0);
        for line in bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            let stays = match serde_json::from_slice(line) {
                Ok(Record::Step(point)) => point.step <= step,
                Ok(Record::Eval(point)) => point.epoch <= epochs,
                Ok(Record::Prototypes(point)) => point.epoch <= epochs,
                Err(_) => {
                    spoiled += 1;
                    false
                }
            };
            if stays {
                kept.extend_from_slice(line);
            }
        }
        if spoiled > 0 {
            // Whatever they were, they may be somebody's.
            write_atomically(&path.with_extension("damaged.jsonl"), &bytes)?;
        }
        write_atomically(path, &kept)?;
        Ok((Self::open(path)?, spoiled))
    }

    /// Makes what was appended durable.
    ///
    /// # Errors
    /// [`Error::Io`] naming the log's path.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|source| Error::io(&self.path, source))
    }

    /// Appends a line. Values that are not finite become `null`. Returns whether everything is in the file: what a full disk
    /// has no room for is kept, and written with a later line.
    ///
    /// # Errors
    /// [`Error::Io`] naming the log's path, but for a full disk.
    pub fn append(&mut self, record: &Record) -> Result<bool> {
        let line = serde_json::to_string(record).map_err(|error| Error::io(&self.path, error.into()))?;
        self.pending.extend_from_slice(line.as_bytes());
        self.pending.push(b'\n');
        self.flush()
    }

    /// Writes what is kept. Returns whether everything is in the file.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn flush(&mut self) -> Result<bool> {
        while !self.pending.is_empty() {
            match self.file.write(&self.pending) {
                Ok(0) => return Err(Error::io(&self.path, ErrorKind::WriteZero.into())),
                // Part of a line may have found room: the rest goes behind it.
                Ok(written) => drop(self.pending.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_full(&error) => return Ok(false),
                Err(source) => return Err(Error::io(&self.path, source)),
            }
        }
        Ok(true)
    }
}

/// Whether a write failed for want of room.
fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

/// Reads a log. A last line without a line break is what a crash leaves, and is passed over.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, [`Error::Data`] naming the line that is not a record.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    lines(path, &text).map(|line| Ok(line?.1)).collect()
}

/// The whole lines of a log, each with its record.
fn lines<'a>(path: &'a Path, text: &'a str) -> impl Iterator<Item = Result<(&'a str, Record)>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().enumerate().map(move |(index, line)| {
        let record = serde_json::from_str(line).map_err(|error| {
            Error::data(
                format!("{}, line {}", path.display(), index + 1),
                format!("a line that is not a record ({error})"),
                "a JSON object with kind \"step\", \"eval\" or \"prototypes\"",
                "remove the line, or the file if it is not the log of a run",
            )
        })?;
        Ok((line, record))
    })
}

/// Adds what a log holds to a report.
pub fn add_to_report(report: &mut Report, records: impl IntoIterator<Item = Record>) {
    for record in records {
        match record {
            Record::Step(point) => report.steps.push(point),
            Record::Eval(point) => report.evals.push(point),
            Record::Prototypes(point) => report.prototypes.push(*point),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64, loss: f64) -> Record {
        Record::Step(StepPoint {
            step,
            epoch: 1,
            loss,
            lr: 0.1,
            images_per_second: 250.5,
            grad_norm: f64::NAN,
            loss_scale: 1.0,
            data_wait: 0.0,

            device_wait: 0.9,
            skipped: 0,
        })
    }

    fn records() -> Vec<Record> {
        vec![
            step(20, 12.5),
            Record::Eval(EvalPoint {
                step: 40,
                epoch: 1,
                set: "lfw".to_owned(),
                accuracy: 0.99,
                accuracy_std: 0.004,
                tar_at_far_1e3: 0.95,
                auc: 0.999,
                eer: 0.01,
                threshold: 1.5,
                roc: Vec::new(),
            }),
            Record::Prototypes(Box::new(PrototypePoint {
                step: 40,
                epoch: 1,
                cos_weight: 0.5,
                cos_weight_percentiles: Some([0.125, 0.25, 0.5, 0.75, 0.875]),
                cos_empirical: 0.625,
                cos_empirical_percentiles: Some([0.25, 0.5, 0.625, 0.75, 0.875]),
                cos_before_update: 0.625,
                cos_before_update_percentiles: Some([0.25, 0.5, 0.625, 0.75, 0.875]),
                adaptive_margin: 0.4375,
                adaptive_margin_percentiles: Some([0.125, 0.25, 0.375, 0.5, 0.625]),
                angle_degrees: 31.0,
                angle_degrees_percentiles: Some([20.0, 25.0, 30.0, 35.0, 40.5]),
                drift_degrees: 12.5,
                drift_degrees_percentiles: None,
                hard_cosine: 0.3,
                hard_share: 0.0625,
                classes_unvisited: Some(2),
            })),
        ]
    }

    #[test]
    fn lines_have_the_keys_of_the_interface() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path).unwrap();
        let mut expected = Vec::new();
        for (record, keys) in records().iter().zip([
            "data_wait device_wait epoch grad_norm images_per_second kind loss loss_scale lr skipped step",
            "accuracy accuracy_std auc eer epoch kind set step tar_at_far_1e-3 threshold",
            "adaptive_margin adaptive_margin_percentiles angle_degrees angle_degrees_percentiles \
             classes_unvisited cos_before_update cos_before_update_percentiles cos_empirical \
             cos_empirical_percentiles cos_weight cos_weight_percentiles \
             drift_degrees drift_degrees_percentiles epoch hard_cosine hard_share kind step",
        ]) {
            log.append(record).unwrap();
            expected.push(keys);
            // Read while the log is still open: every line must be there at once.
            let text = std::fs::read_to_string(&path).unwrap();
            let found: Vec<String> = text
                .lines()
                .map(|line| {
                    let object: serde_json::Map<_, _> = serde_json::from_str(line).unwrap();
                    let mut keys: Vec<_> = object.keys().cloned().collect();
                    keys.sort();
                    keys.join(" ")
                })
                .collect();
            assert_eq!(found, expected);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(r#"{"kind":"step","step":20,"#), "{text}");
    }

    #[test]
    fn reads_back_and_fills_a_report() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path).unwrap();
        for record in records() {
            log.append(&record).unwrap();
        }
        drop(log);
        MetricsLog::open(&path).unwrap().append(&step(60, f64::INFINITY)).unwrap();

        let mut report = Report::default();
        add_to_report(&mut report, read(&path).unwrap());
        assert_eq!((report.steps.len(), report.evals.len(), report.prototypes.len()), (2, 1, 1));
        assert_eq!(Record::Eval(report.evals[0].clone()), records()[1]);
        assert_eq!(Record::Prototypes(Box::new(report.prototypes[0].clone())), records()[2]);
        assert_eq!(report.steps[0].loss, 12.5);
        assert!(report.steps[0].grad_norm.is_nan());
        assert!(report.steps[1].loss.is_nan(), "what is not finite is null, and null is NaN");
    }

    #[test]
    fn a_line_of_an_earlier_version_is_read() {
        let line = r#"{"kind":"prototypes","step":40,"epoch":1,"cos_weight":0.5,"cos_empirical":null,"adaptive_margin":null,"angle_degrees":31.0}"#;
        let Record::Prototypes(point) = serde_json::from_str(line).unwrap() else { panic!("another kind") };
        assert_eq!((point.cos_weight, point.angle_degrees), (0.5, 31.0));
        let absent = [point.cos_empirical, point.drift_degrees, point.hard_share, point.hard_cosine];
        assert!(absent.iter().all(|value| value.is_nan()), "{point:?}");
        assert_eq!((point.cos_weight_percentiles, point.classes_unvisited), (None, None));
    }

    #[test]
    fn a_line_cut_off_by_a_crash_is_passed_over_and_then_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        MetricsLog::open(&path).unwrap().append(&step(20, 3.0)).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"kind\":\"st").unwrap();
        assert_eq!(read(&path).unwrap().len(), 1);
        MetricsLog::open(&path).unwrap().append(&step(40, 2.0)).unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
    }

    #[test]
    fn what_was_measured_later_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        drop(MetricsLog::cut(&path, 40, 1).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");

        let mut log = MetricsLog::open(&path).unwrap();
        for record in [step(20, 3.0), step(40, 2.0), step(60, 1.0)].iter().chain(&records()[1..]) {
            log.append(record).unwrap();
        }
        // A key that this version does not know stays where it is.
        log.file
            .write_all(b"{\"kind\":\"step\",\"step\":40,\"epoch\":1,\"loss\":1,\"lr\":1,\"new\":[1,  2]")
            .unwrap();
        log.file.write_all(b",\"images_per_second\":1,\"grad_norm\":1}\n{\"kind\":").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        drop(MetricsLog::cut(&path, 40, 1).unwrap());
        let left = std::fs::read_to_string(&path).unwrap();
        assert_eq!(left.lines().collect::<Vec<_>>(), [&lines[..2], &lines[3..6]].concat());
        assert!(left.ends_with('\n') && left.contains("[1,  2]"));
        // Within the epoch: what its end measured will be measured again.
        MetricsLog::cut(&path, 20, 0).unwrap().0.append(&step(40, 2.5)).unwrap();
        let left = read(&path).unwrap();
        assert!(
            matches!(&left[..], [Record::Step(a), Record::Step(b)] if (a.step, b.loss) == (20, 2.5)),
            "{left:?}"
        );
    }

    #[test]
    fn spoiled_lines_go_and_the_log_with_them_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        MetricsLog::open(&path).unwrap().append(&step(20, 3.0)).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(b"shopping list\n\0\0\0\xff\n");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(MetricsLog::cut(&path, 40, 1).unwrap().1, 2);
        assert_eq!(read(&path).unwrap().len(), 1);
        assert_eq!(std::fs::read(folder.path().join("metrics.damaged.jsonl")).unwrap(), bytes);
    }

    /// `/dev/full` is a disk that is always full.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_full_disk_has_no_room_for_is_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path).unwrap();
        assert!(log.append(&step(20, 3.0)).unwrap());
        let disk =
            std::mem::replace(&mut log.file, OpenOptions::new().write(true).open("/dev/full").unwrap());
        for done in [40, 60] {
            assert!(!log.append(&step(done, 3.0)).unwrap());
        }
        log.file = disk;
        assert!(log.append(&step(80, 3.0)).unwrap());
        let steps = read(&path).unwrap().into_iter().map(|record| match record {
            Record::Step(point) => point.step,
            other => panic!("{other:?}"),
        });
        assert!(steps.eq([20, 40, 60, 80]));
    }

    #[test]
    fn a_line_that_is_no_record_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        MetricsLog::open(&path).unwrap().append(&step(20, 3.0)).unwrap();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"nonsense\n").unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("metrics.jsonl, line 2"), "{message}");
    }
}
