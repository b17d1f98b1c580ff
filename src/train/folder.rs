//! The folder of a run and the files in it.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::interchange::safetensors::write_atomically;
use crate::train::metrics::MetricsLog;
use crate::{Error, Result};

/// The folder of a run.
pub struct RunFolder {
    path: PathBuf,
    /// `metrics.jsonl`.
    pub metrics: MetricsLog,
}

impl RunFolder {
    /// Makes the folder, writes `config.toml` as resolved, and starts `metrics.jsonl`. A folder that already holds a
    /// finished run is refused, so that nothing is overwritten by mistake.
    pub fn create(config: &Config) -> Result<Self> {
        let path = config.train.out.clone();
        std::fs::create_dir_all(&path).map_err(|source| Error::io(&path, source))?;
        let weights = path.join("model.safetensors");
        if weights.exists() {
            return Err(Error::usage(
                format!("{} already holds a finished run", path.display()),
                "choose another train.out, or move that folder away",
            ));
        }
        write_atomically(&path.join("config.toml"), config.to_toml()?.as_bytes())?;
        let log = path.join("metrics.jsonl");
        match std::fs::remove_file(&log) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(&log, source));
            }
            _ => {}
        }
        Ok(Self { metrics: MetricsLog::open(&log)?, path })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Final weights.
    pub fn weights_path(&self) -> PathBuf {
        self.path.join("model.safetensors")
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
