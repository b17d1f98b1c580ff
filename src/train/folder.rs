//! The folder of a run and the files in it.

use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoints;
use crate::config::Config;
use crate::interchange::files::{remove, write_atomically};
use crate::train::metrics::{MetricsLog, Record};
use crate::{Error, Result};

/// The folder of a run.
pub struct RunFolder {
    path: PathBuf,
    metrics: MetricsLog,
}

impl RunFolder {
    /// Makes the folder, writes `config.toml` as resolved, and starts `metrics.jsonl`. A folder that already holds a
    /// finished run is refused, so that nothing is overwritten by mistake, unless `replace` is set and that run was
    /// trained on the same `data.train`: then its files go.
    pub fn create(config: &Config, replace: bool) -> Result<Self> {
        let path = config.train.out.clone();
        std::fs::create_dir_all(&path).map_err(|source| Error::io(&path, source))?;
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
        write_atomically(&path.join("config.toml"), config.to_toml()?.as_bytes())?;
        let log = path.join("metrics.jsonl");
        remove(&log)?;
        Ok(Self { metrics: MetricsLog::open(&log)?, path })
    }

    /// Opens the folder of an interrupted run that goes on after `step` steps and `epochs` whole epochs: what the log has
    /// beyond them goes.
    ///
    /// # Errors
    /// A log that cannot be read or written.
    pub fn resume(config: &Config, step: u64, epochs: u32) -> Result<Self> {
        let path = config.train.out.clone();
        write_atomically(&path.join("config.toml"), config.to_toml()?.as_bytes())?;
        let metrics = MetricsLog::cut(&path.join("metrics.jsonl"), step, epochs)?;
        Ok(Self { metrics, path })
    }

    /// Logs what was measured.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file that could not be written.
    pub fn record(&mut self, record: &Record) -> Result<()> {
        self.metrics.append(record)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Final weights.
    pub fn weights_path(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// Weights of the epoch with the best evaluation.
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
