//! The folder of a run and the files in it.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoints;
use crate::config::Config;
use crate::interchange::files::{remove, write_atomically};
use crate::train::metrics::{MetricsLog, Record};
use crate::train::tensorboard::{EventFile, remove_event_files};
use crate::{Error, Result};

/// The folder of a run.
pub struct RunFolder {
    path: PathBuf,
    metrics: MetricsLog,
    /// `None` once it could not be written.
    events: Option<EventFile>,
    /// Something worth a line that has not been told yet.
    warning: Option<String>,
    /// Whether the log waits for room on the disk.
    waiting: bool,
    _lock: RunLock,
}

/// Keeps two runs out of one folder, as long as it lives. The file `run.lock` stays: one that is removed could be locked
/// by one run, and a new one of its name by another.
#[derive(Debug)]
struct RunLock {
    _file: File,
}

impl RunLock {
    fn take(folder: &Path) -> Result<Self> {
        let path = folder.join("run.lock");
        let options = File::options().create(true).truncate(false).write(true).open(&path);
        let file = options.map_err(|source| Error::io(&path, source))?;
        match file.try_lock() {
            // Some network file systems have no locks: one more reason not to start two runs there.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::usage(
                format!("{} is being written by another run", folder.display()),
                "wait until it has ended, stop it, or choose another folder (train.out)",
            )),
        }
    }
}

impl RunFolder {
    /// Makes the folder, writes `config.toml` as resolved, and starts `metrics.jsonl`. A folder that already holds a
    /// finished run is refused, so that nothing is overwritten by mistake, unless `replace` is set and that run was
    /// trained on the same `data.train`: then its files go.
    pub fn create(config: &Config, replace: bool) -> Result<Self> {
        let path = config.train.out.clone();
        std::fs::create_dir_all(&path).map_err(|source| Error::io(&path, source))?;
        let lock = RunLock::take(&path)?;
        let weights = path.join("model.safetensors");
        if weights.exists() {
            if !(replace && holds_run_on(&path, &config.data.train)) {
                let found = if replace { "a finished run on other data" } else { "a finished run" };
                return Err(Error::usage(
                    format!("{} already holds {found}", path.display()),
                    "choose another folder (train.out, or --out where there is one), or move that folder away",
                ));
            }
            // The weights last: until they are gone the folder is that of a finished run.
            remove_event_files(&path)?;
            for name in
                ["report.html", "metrics.jsonl", "model_best.safetensors", "checkpoints", "model.safetensors"]
            {
                remove(&path.join(name))?;
            }
        }
        let checkpoints = Checkpoints::of(&path);
        if checkpoints.any()? {
            if !(replace && holds_run_on(&path, &config.data.train)) {
                return Err(Error::usage(
                    format!("{} already holds an interrupted run", path.display()),
                    "go on with it (--resume), choose another folder (train.out), or move that folder away",
                ));
            }
            remove(checkpoints.folder())?;
        }
        let log = path.join("metrics.jsonl");
        remove(&log)?;
        remove_event_files(&path)?;
        Self::open(path, lock, MetricsLog::open(&log)?, config, None)
    }

    /// Opens the folder of an interrupted run that goes on after `step` steps and `epochs` whole epochs: what the log has
    /// beyond them goes, `config.toml` is written as resolved now, and a new event file tells TensorBoard to forget what the
    /// interrupted part has beyond that step.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file that could not be read or written, [`Error::Data`] for a line of `metrics.jsonl`
    /// that is not a record.
    pub fn resume(config: &Config, step: u64, epochs: u32) -> Result<Self> {
        let path = config.train.out.clone();
        let lock = RunLock::take(&path)?;
        let log = path.join("metrics.jsonl");
        let (metrics, spoiled) = MetricsLog::cut(&log, step, epochs)?;
        let mut folder = Self::open(path, lock, metrics, config, Some(step))?;
        if spoiled > 0 {
            let lines = format!(
                "warning: {spoiled} lines of {} were no records; the log as it was is metrics.damaged.jsonl",
                log.display()
            );
            folder.warning.get_or_insert(lines);
        }
        Ok(folder)
    }

    fn open(
        path: PathBuf,
        lock: RunLock,
        metrics: MetricsLog,
        config: &Config,
        resumed: Option<u64>,
    ) -> Result<Self> {
        let config = config.to_toml()?;
        write_atomically(&path.join("config.toml"), config.as_bytes())?;
        let mut folder = Self { path, metrics, events: None, warning: None, waiting: false, _lock: lock };
        let events = EventFile::create(&folder.path, &config, resumed);
        folder.events = folder.or_warn(events);
        Ok(folder)
    }

    /// Logs what was measured.
    ///
    /// # Errors
    /// [`Error::Io`] naming `metrics.jsonl`, if it could not be written. What TensorBoard shows is all in there as
    /// well, so an event file that cannot be written is given up with a [warning](Self::take_warning).
    pub fn record(&mut self, record: &Record) -> Result<()> {
        let written = self.metrics.append(record)?;
        if !written && !self.waiting {
            let log = self.metrics_path();
            self.warning = Some(format!(
                "warning: the disk has no room for {}; the log goes on when there is some",
                log.display()
            ));
        }
        self.waiting = !written;
        if let Some(mut events) = self.events.take() {
            let written = events.record(record);
            self.events = self.or_warn(written.map(|()| events));
        }
        Ok(())
    }

    /// Fails where another run is writing into `out`, if there is such a folder.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the folder.
    pub fn check_free(out: &Path) -> Result<()> {
        if out.is_dir() { RunLock::take(out).map(drop) } else { Ok(()) }
    }

    /// Makes what was logged so far durable, so that no checkpoint is ahead of the log.
    ///
    /// # Errors
    /// [`Error::Io`] naming the log.
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync()
    }

    /// Whether the run in `out` has everything that a run leaves: its report comes last.
    pub fn is_finished(out: &Path) -> bool {
        out.join("report.html").is_file()
    }

    /// Makes sure that everything logged is in its file, at the end of a run.
    ///
    /// # Errors
    /// [`Error::Io`] naming the log, where the disk still has no room for it.
    pub fn finish(&mut self) -> Result<()> {
        if self.metrics.flush()? {
            return Ok(());
        }
        Err(Error::io(self.metrics_path(), std::io::ErrorKind::StorageFull.into()))
    }

    /// What went wrong since the last call without ending the run.
    pub fn take_warning(&mut self) -> Option<String> {
        self.warning.take()
    }

    fn or_warn<T>(&mut self, outcome: Result<T>) -> Option<T> {
        outcome
            .map_err(|error| {
                self.warning =
                    Some(format!("warning: {error}; TensorBoard will not be told of this run any more"));
            })
            .ok()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Final weights.
    pub fn weights_path(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// The weights of the epoch with the best mean accuracy on the verification sets, where they were kept.
    pub fn best_path(&self) -> PathBuf {
        self.path.join("model_best.safetensors")
    }

    /// The report.
    pub fn report_path(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// The log.
    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }
}

/// Whether the configuration in `folder` says that its run was trained on `data`. One that cannot be read says nothing.
fn holds_run_on(folder: &Path, data: &Path) -> bool {
    Config::load(&folder.join("config.toml"), &[]).is_ok_and(|config| config.data.train == data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::StepPoint;
    use crate::train::metrics;

    fn step(step: u64) -> Record {
        Record::Step(StepPoint {
            step,
            epoch: 1,
            loss: 1.0,
            lr: 0.1,
            images_per_second: 1.0,
            grad_norm: 1.0,
            loss_scale: 1.0,
            data_wait: 0.0,

            device_wait: 0.9,
            skipped: 0,
        })
    }

    fn config(out: &Path) -> Config {
        let mut config = Config::default();
        config.data.train = "faces".into();
        config.train.out = out.to_path_buf();
        config
    }

    fn event_files(folder: &Path) -> Vec<PathBuf> {
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut found: Vec<_> = paths.filter(|path| path.to_string_lossy().contains("tfevents")).collect();
        found.sort();
        found
    }

    #[test]
    fn a_resumed_run_keeps_what_was_measured_up_to_its_step() {
        let temporary = tempfile::tempdir().unwrap();
        let out = temporary.path().join("run");
        let mut config = config(&out);
        let mut folder = RunFolder::create(&config, false).unwrap();
        for done in [20, 40, 60] {
            folder.record(&step(done)).unwrap();
        }
        drop(folder);
        let before = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();

        config.optim.lr = 0.05;
        let mut folder = RunFolder::resume(&config, 40, 1).unwrap();
        assert_eq!(folder.take_warning(), None);
        let kept = std::fs::read_to_string(folder.metrics_path()).unwrap();
        assert_eq!(kept.lines().collect::<Vec<_>>(), before.lines().take(2).collect::<Vec<_>>());
        folder.record(&step(60)).unwrap();
        assert_eq!(metrics::read(&folder.metrics_path()).unwrap(), [step(20), step(40), step(60)]);
        assert_eq!(Config::load(&out.join("config.toml"), &[]).unwrap(), config);
        assert_eq!(event_files(&out).len(), 2, "the events of the first part stay");
        assert!(!out.join(".metrics.jsonl.epl.partial").exists());

        drop(folder);
        // A new run in the same folder starts with nothing; files of other programs are not its business.
        std::fs::write(out.join("events.out.tfevents.1700000000.host.1"), "").unwrap();
        drop(RunFolder::create(&config, false).unwrap());
        assert_eq!(std::fs::read_to_string(out.join("metrics.jsonl")).unwrap(), "");
        assert_eq!(event_files(&out).len(), 2);
        assert!(out.join("events.out.tfevents.1700000000.host.1").exists());
    }

    #[test]
    fn a_finished_run_is_replaced_whole() {
        let temporary = tempfile::tempdir().unwrap();
        let config = config(temporary.path());
        drop(RunFolder::create(&config, false).unwrap());
        for name in ["model.safetensors", "model_best.safetensors", "report.html"] {
            std::fs::write(temporary.path().join(name), "").unwrap();
        }
        assert!(RunFolder::create(&config, false).is_err());
        let folder = RunFolder::create(&config, true).unwrap();
        assert!(!folder.weights_path().exists() && !folder.best_path().exists());
        assert!(!folder.report_path().exists());
        assert_eq!(event_files(temporary.path()).len(), 1);
    }

    #[test]
    fn two_runs_do_not_share_a_folder() {
        let temporary = tempfile::tempdir().unwrap();
        let config = config(temporary.path());
        let folder = RunFolder::create(&config, false).unwrap();
        for second in [RunFolder::create(&config, true), RunFolder::resume(&config, 0, 0)] {
            let error = second.err().unwrap();
            assert!(error.to_string().contains("being written by another run"), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
        drop(folder);
        drop(RunFolder::resume(&config, 0, 0).unwrap());
    }

    /// `/dev/full` is a disk that is always full.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_costs_the_events_and_one_warning() {
        let temporary = tempfile::tempdir().unwrap();
        let mut folder = RunFolder::create(&config(temporary.path()), false).unwrap();
        folder.events = Some(EventFile::on(Path::new("/dev/full")).unwrap());
        folder.record(&step(20)).unwrap();
        let warning = folder.take_warning().unwrap();
        assert!(warning.contains("/dev/full") && warning.contains("TensorBoard"), "{warning}");
        folder.record(&step(40)).unwrap();
        assert_eq!(folder.take_warning(), None);
        assert_eq!(metrics::read(&folder.metrics_path()).unwrap().len(), 2);
    }
}
