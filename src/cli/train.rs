//! `epl train`: trains what a configuration describes.

use std::fmt::{self, Display};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::eval::verification_table;
use super::{Context, Verdict};
use crate::config::Config;
use crate::eval::VerificationReport;
use crate::train::{self, Console};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl train config.toml
  epl train config.toml --set optim.lr=0.05 --set train.out=runs/half-rate
  epl train config.toml --set 'data.augment=[]' --json 2> train.log";

/// Train what a configuration describes
///
/// The configuration's required keys are data.train and train.out; every other key has a default. The run's folder
/// (train.out) gets config.toml as resolved, metrics.jsonl, model.safetensors and report.html.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Train {
    /// The configuration
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Not in this version: go on where an interrupted run left off
    #[arg(long)]
    resume: bool,
}

/// Changes to a configuration file.
#[derive(Debug, Args)]
pub struct Overrides {
    /// Use VALUE for the dotted KEY instead of what the file says; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// How the run ended.
#[derive(Debug, Serialize)]
struct Summary {
    /// The run's folder.
    out: PathBuf,
    steps: u64,
    epochs: u32,
    /// Mean loss of the last epoch.
    loss: f64,
    train_seconds: f64,
    images_per_second: f64,
    /// The last evaluation of each set.
    evaluations: Vec<VerificationReport>,
}

impl Train {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let config = Config::load(&self.config, &self.overrides.set)?;
        let out = config.train.out.clone();
        if self.resume {
            return Err(Error::usage(
                "--resume is not available in this version of epl",
                format!("start anew, with another train.out than {}", out.display()),
            ));
        }
        let outcome = train::run(config, &context.open()?, &mut Console::new())?;
        context.present(&Summary {
            out,
            steps: outcome.steps,
            epochs: outcome.epochs,
            loss: outcome.loss,
            train_seconds: outcome.train_seconds,
            images_per_second: outcome.images_per_second,
            evaluations: outcome.evaluations,
        })?;
        Ok(Verdict::Done)
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} steps in {} epochs, {:.1} s, {:.1} images/s; mean loss of the last epoch {:.4}",
            self.steps, self.epochs, self.train_seconds, self.images_per_second, self.loss
        )?;
        if !self.evaluations.is_empty() {
            write!(f, "{}", verification_table(&self.evaluations))?;
        }
        for (what, file) in
            [("weights", "model.safetensors"), ("metrics", "metrics.jsonl"), ("report", "report.html")]
        {
            writeln!(f, "{what:<8} {}", self.out.join(file).display())?;
        }
        Ok(())
    }
}
