//! Which kernels a run takes: those of the ops' rules, or those that were measured to be the fastest on its device.
//!
//! What was measured is kept in a file of the kernel cache, `FINGERPRINT.tuning.json`, for people to read and for later runs
//! on the same adapter, driver and shaders. A run's checkpoints hold the choices that it was started with, so that it goes on
//! with the same ones, bit for bit, whatever became of the file.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use epl_runtime::choice::{Choices, RULE};
use epl_runtime::tune::{Progress, TuneOptions, TunedOp, keys, tune};
use epl_runtime::{Caps, Device, Graph, Plan, PlanOptions};
use serde::{Deserialize, Serialize};

use crate::config::{Autotune, Config};
use crate::eval::embedder::record_embedder;
use crate::interchange::files::write_atomically;
use crate::model::ModelSpec;
use crate::train::run::Stop;
use crate::train::step::record_step;
use crate::train::trainer::{EVALUATION_BATCH, step_options};
use crate::train::trial::{Trial, Tried};
use crate::{Error, Result};

/// Counts changes of the file's format.
const FORMAT: u32 = 1;

/// What was measured on an adapter.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measurements {
    format: u32,
    adapter: String,
    driver: String,
    /// Adapter, driver, what is used of them, versions and shaders: see [`Device::fingerprint`].
    fingerprint: String,
    ops: BTreeMap<String, Measurement>,
}

/// What was measured of an op.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measurement {
    choice: String,
    /// Milliseconds of each variant that was timed to the end.
    milliseconds: BTreeMap<String, f64>,
    /// Variants that were faster but wrong, and how; and those that the driver refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    rejected: BTreeMap<String, String>,
    /// Variants that the next start tries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    open: Vec<String>,
}

impl Measurements {
    /// Takes a kernel that was not outlived out of the running.
    fn pass_over(&mut self, tried: &Tried) -> TunedOp {
        let why = "the GPU or the program did not outlive it";
        let mut op = TunedOp::without(&tried.op, &tried.variant, why);
        if let Some(known) = self.ops.get(&tried.op) {
            op = known.tuned(&tried.op);
            op.open.retain(|variant| *variant != tried.variant);
            op.seconds.remove(&tried.variant);
            op.rejected.insert(tried.variant.clone(), why.to_owned());
            if op.choice == tried.variant {
                RULE.clone_into(&mut op.choice);
            }
        }
        self.ops.insert(tried.op.clone(), Measurement::of(&op));
        op
    }
}

impl Measurement {
    fn of(op: &TunedOp) -> Self {
        Self {
            choice: op.choice.clone(),
            milliseconds: op.seconds.iter().map(|(name, seconds)| (name.clone(), seconds * 1e3)).collect(),
            rejected: op.rejected.clone(),
            open: op.open.clone(),
        }
    }

    /// What was found about the op `key`; how often it is in a graph is not kept.
    fn tuned(&self, key: &str) -> TunedOp {
        TunedOp {
            key: key.to_owned(),
            times: 0,
            choice: self.choice.clone(),
            seconds: self.milliseconds.iter().map(|(name, ms)| (name.clone(), ms / 1e3)).collect(),
            rejected: self.rejected.clone(),
            open: self.open.clone(),
        }
    }
}

/// Whether a run of `config` on `device` measures kernels.
pub fn is_on(config: &Config, device: &Device) -> bool {
    measures(config.train.autotune, device)
}

/// Whether kernels are measured on `device` where `autotune` is said.
pub fn measures(autotune: Autotune, device: &Device) -> bool {
    match autotune {
        Autotune::On => true,
        Autotune::Off => false,
        // The rules for CPU adapters were made by measuring; and what is not kept would be measured at every start.
        Autotune::Auto => device.description().kind != "Cpu" && device.cache_folder().is_some(),
    }
}

fn path(device: &Device) -> Option<PathBuf> {
    path_of(device, "tuning")
}

fn path_of(device: &Device, what: &str) -> Option<PathBuf> {
    let name: String = device.fingerprint().chars().take(16).collect();
    Some(device.cache_folder()?.join(format!("{name}.{what}.json")))
}

/// What the file has, and a line about it where it is no use.
fn read(device: &Device) -> (Measurements, Option<String>) {
    let Some(path) = path(device) else { return (Measurements::default(), None) };
    let found = match std::fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return (Measurements::default(), None),
        Err(error) => Err(error.to_string()),
        Ok(bytes) => serde_json::from_slice::<Measurements>(&bytes).map_err(|error| error.to_string()),
    };
    match found {
        Ok(found) if found.format == FORMAT && found.fingerprint == device.fingerprint() => (found, None),
        Ok(_) => {
            (Measurements::default(), Some(format!("{}: of another adapter or version", path.display())))
        }
        Err(why) => (Measurements::default(), Some(format!("{}: {why}", path.display()))),
    }
}

/// Adds what was measured to the file. Another process may have added to it meanwhile.
fn keep(device: &Device, ops: &[TunedOp]) -> Result<()> {
    let Some(path) = path(device) else { return Ok(()) };
    let (mut all, _) = read(device);
    all.format = FORMAT;
    all.adapter = device.description().name.clone();
    all.driver = device.description().driver.clone();
    all.fingerprint = device.fingerprint().to_owned();
    for op in ops {
        all.ops.insert(op.key.clone(), Measurement::of(op));
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
    }
    let mut bytes = serde_json::to_vec_pretty(&all).map_err(|error| Error::io(&path, error.into()))?;
    bytes.push(b'\n');
    write_atomically(&path, &bytes)
}

/// The graphs of a run: its steps, and the evaluation where it has one that fits in one go.
fn graphs(config: &Config, spec: &ModelSpec, caps: &Caps) -> Result<Vec<Graph>> {
    let branch = config.head.epl.map(|epl| epl.start_epoch);
    let mut graphs = Vec::new();
    for empirical in [false, true] {
        let has = match branch {
            None => !empirical,
            Some(start) => {
                if empirical {
                    start <= config.train.epochs
                } else {
                    start > 1
                }
            }
        };
        if has {
            graphs.push(record_step(spec, &step_options(config, empirical))?.graph);
        }
    }
    if !config.train.eval.is_empty() {
        let (graph, _) = record_embedder(spec, EVALUATION_BATCH)?;
        graphs.extend(Plan::new(&graph, caps, PlanOptions::default()).is_ok().then_some(graph));
    }
    Ok(graphs)
}

/// The choices for a run of `config`, measured as far as they are not known yet and until `stop` is asked for; none where the run measures nothing. `say` gets
/// a line about what was measured.
///
/// # Errors
/// A network that is impossible, a device that is lost, a stop before all is measured.
pub fn choose(
    config: &Config,
    spec: &ModelSpec,
    device: &Arc<Device>,
    options: &TuneOptions,
    stop: &Stop,
    say: &mut dyn FnMut(&str),
) -> Result<Choices> {
    if !is_on(config, device) {
        return Ok(Choices::new());
    }
    let graphs = graphs(config, spec, device.caps())?;
    choose_for(device, &graphs.iter().collect::<Vec<_>>(), options, stop, say)
}

/// [`choose`] for any graphs on `device`.
///
/// # Errors
/// A device that is lost, a stop before all is measured.
pub fn choose_for(
    device: &Arc<Device>,
    graphs: &[&Graph],
    options: &TuneOptions,
    stop: &Stop,
    say: &mut dyn FnMut(&str),
) -> Result<Choices> {
    let (mut known, warning) = read(device);
    if let Some(warning) = warning {
        say(&format!("warning: {warning}; kernels are measured anew"));
    }
    let mut trial = Trial::open(path_of(device, "trying").as_deref());
    let mut kept = Ok(());
    if let Some(tried) = trial.fatal() {
        kept = keep(device, &[known.pass_over(tried)]);
        say(&passed_over(device, tried));
        trial.came_back();
    }
    let known: Vec<TunedOp> = known.ops.iter().map(|(key, op)| op.tuned(key)).collect();
    let (begun, done): (Vec<_>, Vec<_>) = known.into_iter().partition(TunedOp::is_begun);
    let pairs =
        |of: &[TunedOp]| -> Choices { of.iter().map(|op| (op.key.as_str(), op.choice.as_str())).collect() };
    let phase = device.enter("tuning");
    let mut progress = |progress: Progress<'_>| {
        match progress {
            // Training needs it, whatever comes of it.
            Progress::Tries { variant: RULE, .. } => {}
            Progress::Tries { key, variant } => trial.tries(key, variant),
            Progress::Measured(op) => {
                trial.came_back();
                if kept.is_ok() {
                    kept = keep(device, std::slice::from_ref(op));
                }
            }
        }
        if stop.requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let tuned = tune(device, graphs, &pairs(&done), &begun, options, &mut progress);
    device.enter(phase);
    if device.lost().is_some()
        && let Some(tried) = trial.now()
    {
        // The program is still there to know for certain.
        say(&passed_over(device, tried));
        if let Err(error) = keep(device, &[read(device).0.pass_over(tried)]) {
            say(&format!("warning: {error}; it is measured again at the next start"));
        }
    }
    trial.came_back();
    let tuned = tuned?;
    if stop.requested() && (!tuned.left_out.is_empty() || tuned.ops.iter().any(|op| !op.open.is_empty())) {
        // A run keeps for good what it begins with: not what happened to be measured by then.
        return Err(Error::usage(
            "interrupted while kernels were measured, before the first step",
            "start again: what was measured so far is kept",
        ));
    }
    if !tuned.ops.is_empty() || !tuned.left_out.is_empty() {
        say(&summary(&tuned.ops, tuned.left_out.len()));
    }
    if let Err(error) = kept {
        say(&format!("warning: {error}; kernels are measured again at the next start"));
    }
    let mut choices = pairs(&done);
    // An op that was not gone on with keeps what was found before.
    let found = begun.into_iter().chain(tuned.ops);
    found.for_each(|op| choices.set(op.key, op.choice));
    Ok(of_graphs(&choices, device.caps(), graphs))
}

/// A line about a kernel that is not tried again.
fn passed_over(device: &Device, tried: &Tried) -> String {
    let again = path(device).map_or_else(String::new, |file| {
        format!("; to have it tried again, remove the op from {}", file.display())
    });
    format!(
        "warning: the GPU or the program did not outlive the kernel `{}` of {} while it was measured: it is passed over \
         from now on{again}",
        tried.variant, tried.op
    )
}

/// The choices that are known for a run of `config`, without measuring any.
///
/// # Errors
/// A network that is impossible.
pub fn known(config: &Config, spec: &ModelSpec, device: &Device) -> Result<Choices> {
    if !is_on(config, device) {
        return Ok(Choices::new());
    }
    let graphs = graphs(config, spec, device.caps())?;
    let (known, _) = read(device);
    let choices = known.ops.into_iter().map(|(key, op)| (key, op.choice)).collect();
    Ok(of_graphs(&choices, device.caps(), &graphs.iter().collect::<Vec<_>>()))
}

/// Those of `choices` that matter to `graphs`.
fn of_graphs(choices: &Choices, caps: &Caps, graphs: &[&Graph]) -> Choices {
    let keys = keys(caps, graphs).into_iter();
    keys.filter_map(|key| Some((choices.get(&key)?.to_owned(), key)))
        .map(|(choice, key)| (key, choice))
        .collect()
}

fn summary(ops: &[TunedOp], left_out: usize) -> String {
    let time = |op: &TunedOp, name: &str| op.times as f64 * op.seconds.get(name).copied().unwrap_or_default();
    let (rules, chosen) = ops
        .iter()
        .fold((0.0, 0.0), |(rules, chosen), op| (rules + time(op, RULE), chosen + time(op, &op.choice)));
    let other = ops.iter().filter(|op| op.choice != RULE).count();
    let mut text = format!(
        "measured the kernels of {} ops: for {other} another than by rule, {:.1} ms instead of {:.1} ms in all",
        ops.len(),
        chosen * 1e3,
        rules * 1e3
    );
    let wrong: usize = ops.iter().map(|op| op.rejected.len()).sum();
    if wrong > 0 {
        text += &format!(
            "; {wrong} kernels were refused by the driver, gave wrong results or were not outlived, and were passed over"
        );
    }
    let open = ops.iter().filter(|op| !op.open.is_empty()).count();
    if open > 0 {
        text += &format!("; {open} ops have kernels that the next start measures");
    }
    if left_out > 0 {
        text += &format!("; {left_out} ops keep their kernels for lack of time or memory");
    }
    text
}
