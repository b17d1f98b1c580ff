//! `epl plan`: what a training run needs, without running it.

use std::fmt::{self, Display};
use std::path::PathBuf;

use clap::Args;
use epl_runtime::{Caps, Error as RuntimeError};
use serde::Serialize;

use super::output::{bytes, note, parse_bytes};
use super::train::Overrides;
use super::{Context, Verdict};
use crate::config::Config;
use crate::data::{self, Options};
use crate::head::HeadForm;
use crate::train::plan::{RunPlan, plan};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl plan config.toml
  epl plan config.toml --set train.batch_size=256 --json | jq .max_batch
  epl plan config.toml --memory 8GiB";

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
}

impl Plan {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let config = Config::load(&self.config, &self.overrides.set)?;
        let classes = match config.data.num_classes {
            Some(classes) => classes,
            None => {
                let size = config.model.input;
                let options = Options { size, resize: config.data.resize, num_classes: None };
                data::open(&config.data.train, &options)?.num_classes()
            }
        };
        let (adapter, caps) = match context.open() {
            Ok(device) => (Some(device.description().name.clone()), device.caps().clone()),
            // Without a GPU the limits that every adapter meets still say what a run needs.
            Err(Error::Runtime(RuntimeError::NoAdapter { .. })) if context.device.is_none() => {
                note("warning: there is no adapter; the plan is for the limits that every adapter meets");
                (None, Caps::WEBGPU)
            }
            Err(error) => return Err(error),
        };
        let plan = plan(&config, classes, &caps, self.memory)?;
        context.present(&Planned { device: adapter, classes, batch: config.train.batch_size, plan })?;
        Ok(Verdict::Done)
    }
}

/// The plan and what it is for.
#[derive(Debug, Serialize)]
struct Planned {
    /// The adapter; none where there is none.
    device: Option<String>,
    classes: usize,
    batch: usize,
    #[serde(flatten)]
    plan: RunPlan,
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
        line("largest batch", plan.max_batch.to_string())
    }
}
