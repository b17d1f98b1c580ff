//! `epl plan`: what a training run needs, without running it.

use std::fmt::{self, Display};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use epl_runtime::{Caps, Choices, Error as RuntimeError};
use indicatif::HumanDuration;
use serde::Serialize;

use super::output::{bytes, note, parse_bytes};
use super::train::Overrides;
use super::{Context, Verdict};
use crate::config::Config;
use crate::data::{self, Options};
use crate::head::HeadForm;
use crate::train::batch::{Room, decide};
use crate::train::kernels::{is_on, known};
use crate::train::measure::{RunSeconds, StepSeconds, measure_run};
use crate::train::plan::{RunPlan, Target, plan_for, resolve_form};
use crate::train::trainer::spec_of;
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl plan config.toml
  epl plan config.toml --set train.batch_size=256 --json | jq .max_batch
  epl plan config.toml --memory 8GiB
  epl plan config.toml --measure";

/// Tell the memory and the work that a training run needs, without training
///
/// The number of identities is data.num_classes, or counted in data.train.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Plan {
    /// The configuration
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Memory of the GPU that a run may take, such as 8GiB, for the largest batch
    ///
    /// No graphics interface tells the memory of every GPU: without this, only the adapter's limits of bindings and
    /// buffers bound the largest batch.
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Take STEPS training steps on made-up images, after one that compiles them, and tell how long the run will be
    #[arg(long, value_name = "STEPS", num_args = 0..=1, default_missing_value = "5")]
    measure: Option<NonZeroUsize>,
    /// Images of the training set, where it is not here to be counted
    #[arg(long, value_name = "N", requires = "measure")]
    images: Option<NonZeroUsize>,
}

impl Plan {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let config = Config::load(&self.config, &self.overrides.all())?;
        let (classes, images) = self.size_of_data(&config)?;
        let (device, caps) = match context.open() {
            Ok(device) => {
                let caps = device.caps().clone();
                (Some(device), caps)
            }
            // Without a GPU the limits that every adapter meets still say what a run needs.
            Err(Error::Runtime(RuntimeError::NoAdapter { .. })) if context.device.device.is_none() => {
                note("warning: there is no adapter; the plan is for the limits that every adapter meets");
                (None, Caps::WEBGPU)
            }
            Err(error) => return Err(error),
        };
        let room = match (self.memory, &device) {
            (Some(bytes), _) => Room::Bytes(bytes),
            (None, Some(device)) => Room::Device(device),
            (None, None) => Room::Unknown,
        };
        let config =
            decide(&config, classes, images.unwrap_or(usize::MAX), (&caps, &room), &mut |line| note(line))?;
        let kernels = match &device {
            Some(device) if is_on(&config, device) => {
                let config = resolve_form(&config, classes, &caps)?;
                known(&config, &spec_of(&config, classes)?, device)?
            }
            _ => Choices::new(),
        };
        let target = Target { caps: &caps, choices: Arc::new(kernels) };
        let plan = plan_for(&config, classes, &target, self.memory)?;
        let time = match (self.measure, &device) {
            (Some(steps), Some(device)) => {
                Some(measure_run(&config, classes, images, device, steps.get(), &mut |line| note(line))?)
            }
            (Some(_), None) => {
                return Err(Error::usage(
                    "without an adapter no step can be measured",
                    "leave --measure out",
                ));
            }
            (None, _) => None,
        };
        context.present(&Planned {
            device: device.map(|device| device.description().name.clone()),
            classes,
            batch: config.train.batch_size,
            accumulate: config.train.accumulate,
            plan,
            time,
        })?;
        Ok(Verdict::Done)
    }

    /// Identities and images. The images are needed for the time alone, and that the data are not here is no fault then.
    fn size_of_data(&self, config: &Config) -> Result<(usize, Option<usize>)> {
        let images = self.images.map(NonZeroUsize::get);
        let options = Options {
            size: config.model.input,
            resize: config.data.resize,
            num_classes: config.data.num_classes,
        };
        match config.data.num_classes {
            Some(classes) if self.measure.is_none() || images.is_some() => Ok((classes, images)),
            Some(classes) => match data::open(&config.data.train, &options) {
                Ok(data) => Ok((classes, Some(data.len()))),
                Err(error) => {
                    note(format_args!(
                        "warning: without the data only a step is measured, not the run: {error}"
                    ));
                    Ok((classes, None))
                }
            },
            None => {
                let data = data::open(&config.data.train, &options)?;
                Ok((data.num_classes(), images.or(Some(data.len()))))
            }
        }
    }
}

/// The plan and what it is for.
#[derive(Debug, Serialize)]
struct Planned {
    /// The adapter; none where there is none.
    device: Option<String>,
    classes: usize,
    batch: usize,
    accumulate: usize,
    #[serde(flatten)]
    plan: RunPlan,
    /// The time of a step and of the run, where it was measured.
    #[serde(flatten)]
    time: Option<RunSeconds>,
}

impl Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        let mut line = |key: &str, value: String| writeln!(f, "{key:<22}{value}");
        line("device", self.device.clone().unwrap_or_else(|| "none".to_owned()))?;
        line("identities", self.classes.to_string())?;
        if plan.classes_per_step < self.classes {
            line("  of them a step", plan.classes_per_step.to_string())?;
        }
        line("parameters", format!("{:.2} M", plan.parameters as f64 / 1e6))?;
        line("batch", self.batch.to_string())?;
        if self.accumulate > 1 {
            line("batches a step", self.accumulate.to_string())?;
        }
        let form = match plan.head_form {
            HeadForm::Tiled => "tiled: classes go by in tiles",
            HeadForm::Materialized | HeadForm::Auto => "materialized: all classes at once",
        };
        line("head", form.to_owned())?;
        if plan.head_form_to_be_set {
            line("", "(for this memory; a run does not know it, so set head.form = \"tiled\")".to_owned())?;
        }
        line("FLOPs a step", format!("{:.1} G", plan.flops_per_step / 1e9))?;
        line("launches a step", plan.dispatches.to_string())?;
        line("GPU memory", bytes(plan.peak_bytes))?;
        for (kind, count) in &plan.bytes {
            line(&format!("  {kind}"), bytes(*count))?;
        }
        line("one more image", bytes(plan.activation_bytes_per_image))?;
        line("without shared memory", bytes(plan.without_sharing))?;
        line("largest batch", plan.max_batch.to_string())?;
        let Some(time) = &self.time else { return Ok(()) };
        for (name, step) in [("time of a step", time.step), ("time of a step, EPL", time.step_with_epl)] {
            if let Some(StepSeconds { steps, median, min, max }) = step {
                line(name, format!("{median:.3} s (median of {steps}; {min:.3} to {max:.3})"))?;
            }
        }
        line("images a second", format!("{:.1}", time.images_per_second))?;
        if let (Some(steps), Some(seconds)) = (time.total_steps, time.train_seconds) {
            let duration = HumanDuration(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
            line("time to train", format!("{duration} ({steps} steps), evaluation not counted"))?;
        }
        Ok(())
    }
}
