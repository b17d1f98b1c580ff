//! `epl train`: trains what a configuration describes.

use std::fmt::{self, Display};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::eval::verification_table;
use super::output::note;
use super::{Context, Verdict};
use crate::Result;
use crate::config::Config;
use crate::eval::VerificationReport;
use crate::train::state::Best;
use crate::train::{self, Console, RunOptions, StartSeconds, Stop};

const EXAMPLES: &str = "\
Examples:
  epl train config.toml
  epl train config.toml --resume
  epl train config.toml --set optim.lr=0.05 --set train.out=runs/half-rate
  epl train config.toml --set 'data.augment=[]' --json 2> train.log";

/// Train what a configuration describes
///
/// The configuration's required keys are data.train and train.out; every other key has a default. The run's folder
/// (train.out) gets config.toml as resolved, metrics.jsonl, checkpoints, model.safetensors and report.html. Ctrl-C stops
/// after the current step with a checkpoint, from which --resume goes on. Where the GPU is lost, the run takes it up again,
/// or the best other one, and goes on from the newest checkpoint by itself.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Train {
    /// The configuration
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Go on from the newest checkpoint in train.out that is whole; where there is none yet, start
    ///
    /// The result has the same bits as that of a run that was never interrupted.
    #[arg(long)]
    resume: bool,
}

/// Changes to a configuration file.
#[derive(Debug, Args)]
pub struct Overrides {
    /// Use VALUE for the dotted KEY instead of what the file says; may be given more than once
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Take the kernels that the rules choose, measured or not: train.autotune=off
    #[arg(long)]
    pub no_autotune: bool,
}

impl Overrides {
    /// Every change, as KEY=VALUE.
    pub fn all(&self) -> Vec<String> {
        let mut all = self.set.clone();
        all.extend(self.no_autotune.then(|| NO_AUTOTUNE.to_owned()));
        all
    }
}

/// What `--no-autotune` stands for.
pub const NO_AUTOTUNE: &str = "train.autotune=off";

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
    /// Steps whose update was left out because something in them was not finite.
    skipped: u64,
    /// The best evaluation of all epochs.
    best: Option<Best>,
    /// Where the run was asked to stop: the checkpoint that it can go on from.
    interrupted: Option<PathBuf>,
    /// How often the device was lost and another one took its place.
    device_losses: u32,
    /// The last evaluation of each set.
    evaluations: Vec<VerificationReport>,
    /// Where the time until the first step went.
    start_seconds: Option<StartSeconds>,
}

impl Train {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let config = Config::load(&self.config, &self.overrides.all())?;
        let out = config.train.out.clone();
        let options =
            RunOptions { resume: self.resume, started: Some(context.started), ..RunOptions::default() };
        stop_on_signals(options.stop.clone());
        let outcome = train::run(config, context.open()?, &options, &mut Console::new())?;
        let verdict = match &outcome.interrupted {
            None => Verdict::Done,
            Some(checkpoint) => {
                note(format_args!(
                    "stopped after step {}; the checkpoint is {}\nto go on: {}",
                    outcome.steps,
                    checkpoint.display(),
                    self.resumption()
                ));
                Verdict::Failed
            }
        };
        context.present(&Summary {
            out,
            interrupted: outcome.interrupted,
            device_losses: outcome.device_losses,
            best: outcome.best,
            skipped: outcome.skipped,
            steps: outcome.steps,
            epochs: outcome.epochs,
            loss: outcome.loss,
            train_seconds: outcome.train_seconds,
            images_per_second: outcome.images_per_second,
            evaluations: outcome.evaluations,
            start_seconds: outcome.start,
        })?;
        Ok(verdict)
    }

    /// The command that goes on with this run.
    fn resumption(&self) -> String {
        let mut command = format!("epl train {}", quoted(&self.config.to_string_lossy()));
        for set in &self.overrides.set {
            command += &format!(" --set {}", quoted(set));
        }
        if self.overrides.no_autotune {
            command += " --no-autotune";
        }
        command + " --resume"
    }
}

/// An argument as a shell takes it.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', "'\\''"))
}

/// Has Ctrl-C, and the signal by which systems end processes, ask the run to stop. A second one ends it at once: what was
/// saved before stays. The end of a terminal is left alone, so that `nohup` keeps its meaning.
fn stop_on_signals(stop: Stop) {
    let asked = move || {
        if stop.requested() {
            std::process::exit(130);
        }
        stop.request();
        note("stopping after this step, with a checkpoint; once more to end at once");
    };
    if let Err(error) = on_signals(asked) {
        note(format_args!("warning: Ctrl-C will end the run at once, without a checkpoint ({error})"));
    }
}

#[cfg(unix)]
fn on_signals(mut asked: impl FnMut() + Send + 'static) -> std::io::Result<()> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM])?;
    let wait = move || signals.forever().for_each(|_| asked());
    std::thread::Builder::new().name("epl-signals".to_owned()).spawn(wait).map(|_| ())
}

#[cfg(not(unix))]
fn on_signals(asked: impl FnMut() + Send + 'static) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(asked)
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} steps in {} epochs, {:.1} s, {:.1} images/s; mean loss of the last epoch {:.4}",
            self.steps, self.epochs, self.train_seconds, self.images_per_second, self.loss
        )?;
        match self.device_losses {
            0 => {}
            1 => writeln!(f, "the GPU was lost once, and the run went on")?,
            times => writeln!(f, "the GPU was lost {times} times, and the run went on each time")?,
        }
        if !self.evaluations.is_empty() {
            write!(f, "{}", verification_table(&self.evaluations))?;
        }
        if self.interrupted.is_some() {
            return Ok(());
        }
        let mut files =
            vec![("weights", "model.safetensors"), ("metrics", "metrics.jsonl"), ("report", "report.html")];
        if let Some(best) = &self.best {
            writeln!(f, "best mean accuracy {:.4}, in epoch {}", best.accuracy, best.epoch)?;
            files.insert(1, ("best", "model_best.safetensors"));
        }
        for (what, file) in files {
            writeln!(f, "{what:<8} {}", self.out.join(file).display())?;
        }
        Ok(())
    }
}
