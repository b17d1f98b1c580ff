//! What a training run will need, before anything is allocated.

use std::collections::BTreeMap;
use std::sync::Arc;

use epl_runtime::op::Cost;
use epl_runtime::{Caps, Choices, Plan, PlanOptions};
use serde::Serialize;

use crate::config::{Config, Precision};
use crate::eval::embedder::record_embedder;
use crate::head::HeadForm;
use crate::head::sampling::ClassSampler;
use crate::train::step::{StepOptions, record_step};
use crate::train::trainer::{EVALUATION_BATCH, spec_of, step_options};
use crate::{Error, Result};

/// The figures of `epl plan`, named as in its JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunPlan {
    /// Trained parameters, the head included.
    pub parameters: usize,
    /// The form of the head, as configured or chosen.
    pub head_form: HeadForm,
    /// Whether that form was chosen for the memory that was given. A run does not know it: `head.form` has to be set.
    pub head_form_to_be_set: bool,
    /// Identities that take part in a step: all, unless they are sampled.
    pub classes_per_step: usize,
    /// Floating-point operations of a training step.
    pub flops_per_step: f64,
    /// Peak bytes of GPU memory, to the byte what a run allocates: its step, and the evaluation beside it.
    pub peak_bytes: u64,
    /// The same by kind.
    pub bytes: BTreeMap<&'static str, u64>,
    /// Bytes of activations that one more image costs.
    pub activation_bytes_per_image: u64,
    /// Largest batch whose tensors fit the adapter's bindings and, where it is known, its memory.
    pub max_batch: usize,
    /// Kernel launches a step.
    pub dispatches: usize,
    /// Bytes that the activations would take without sharing.
    pub without_sharing: u64,
}

/// A step that fits the adapter's limits.
struct Planned {
    plan: Plan,
    cost: Cost,
    parameters: usize,
    form: HeadForm,
}

/// What is planned for.
pub struct Target<'a> {
    /// What the adapter can do.
    pub caps: &'a Caps,
    /// Which kernels are taken, where the rules of ops are not to decide.
    pub choices: Arc<Choices>,
}

impl<'a> Target<'a> {
    /// An adapter with `caps`, with the kernels of the rules.
    pub fn by_rule(caps: &'a Caps) -> Self {
        Self { caps, choices: Arc::default() }
    }

    fn options(&self) -> PlanOptions {
        PlanOptions { choices: self.choices.clone(), ..PlanOptions::default() }
    }
}

/// Plans a step of `config` with a batch of `batch` in one form of the head.
fn plan_form(
    config: &Config,
    classes: usize,
    target: &Target<'_>,
    batch: usize,
    form: HeadForm,
) -> Result<Planned> {
    let mut spec = spec_of(config, classes)?;
    if let Some(head) = &mut spec.head {
        head.settings.form = form;
    }
    let empirical = config.head.epl.is_some();
    let options = StepOptions { batch, ..step_options(config, empirical) };
    let recorded = record_step(&spec, &options)?;
    let plan = Plan::new(&recorded.graph, target.caps, target.options())?;
    Ok(Planned { cost: plan.cost(&recorded.graph), plan, parameters: spec.trained_elements(), form })
}

/// Fails where `config` asks for 16-bit floats that an adapter with `caps` does not have.
fn check_precision(config: &Config, caps: &Caps) -> Result<()> {
    if config.train.precision == Precision::F32 || caps.f16 {
        return Ok(());
    }
    Err(Error::usage(
        "`train.precision` is \"mixed\", and this adapter's shaders have no 16-bit floats",
        "set train.precision = \"f32\", or choose another device: `epl devices` tells which have them",
    ))
}

/// Floating-point operations in the time that it takes to move a byte. Both forms of the head do nearly the same
/// products; what tells them apart is that the tiled form multiplies once more and moves less. Of a GPU: typical of single
/// precision without matrix units (60 TFLOP/s and 3 TB/s, or 10 TFLOP/s and 0.4 TB/s). Of a CPU adapter: as measured on
/// llvmpipe, see docs/performance.md.
fn balance(caps: &Caps) -> f64 {
    if caps.cpu { 13.0 } else { 20.0 }
}

/// Plans a step with a batch of `batch`. Where the form of the head is open: of those that fit the adapter and
/// `memory`, the one that should take less time.
fn plan_batch(
    config: &Config,
    classes: usize,
    target: &Target<'_>,
    batch: usize,
    memory: Option<u64>,
) -> Result<Planned> {
    let settings = &config.head;
    let plan = |form| plan_form(config, classes, target, batch, form);
    if settings.form != HeadForm::Auto {
        return plan(settings.form);
    }
    if settings.sample_rate < 1.0 {
        return plan(HeadForm::Tiled);
    }
    if !config.model.embedding.is_multiple_of(4) {
        return plan(HeadForm::Materialized);
    }
    let fits = |planned: &Planned| memory.is_none_or(|limit| planned.plan.memory.total() <= limit);
    let time = |planned: &Planned| planned.cost.flops / balance(target.caps) + planned.cost.bytes;
    match (plan(HeadForm::Materialized), plan(HeadForm::Tiled)) {
        (Ok(all), Ok(tiled)) => {
            let better = fits(&all) && (!fits(&tiled) || time(&all) <= time(&tiled));
            Ok(if better { all } else { tiled })
        }
        (Ok(all), Err(_)) => Ok(all),
        (Err(_), tiled) => tiled,
    }
}

/// The configuration with the form of the head decided, for a run on an adapter with `caps`.
///
/// # Errors
/// Where no form fits the adapter's limits: what [`plan`] says then. Where the network is impossible.
pub fn resolve_form(config: &Config, classes: usize, caps: &Caps) -> Result<Config> {
    check_precision(config, caps)?;
    let form = match plan_batch(config, classes, &Target::by_rule(caps), config.train.batch_size, None) {
        Ok(planned) => planned.form,
        Err(error) => return Err(plan(config, classes, caps, None).err().unwrap_or(error)),
    };
    let mut resolved = config.clone();
    resolved.head.form = form;
    Ok(resolved)
}

/// What makes a step fit that is over the adapter's limits: the tiled form where that is it, or a smaller batch.
fn remedy(config: &Config, classes: usize, target: &Target<'_>, fits: impl Fn(usize) -> bool) -> String {
    let mut tiled = config.clone();
    tiled.head.form = HeadForm::Tiled;
    tiled.model.embedding = config.model.embedding.next_multiple_of(4);
    if tiled != *config && plan_batch(&tiled, classes, target, config.train.batch_size, None).is_ok() {
        return match tiled.model.embedding {
            length if length == config.model.embedding => "set head.form = \"tiled\"".to_string(),
            length => format!(
                "set head.form = \"tiled\" and model.embedding = {length}: tables of this size can only be walked in \
                 tiles, whose kernels take four elements at a time"
            ),
        };
    }
    match largest(fits) {
        0 => "no batch fits this adapter: use a narrower network or smaller images".to_string(),
        most => format!("the largest batch that fits this adapter is {most}; set train.batch_size"),
    }
}

/// Plans the run that `config` describes for `classes` identities on an adapter with `caps`. The larger of the two
/// step graphs counts: that with the empirical branch, where the head has EPL.
pub fn plan(config: &Config, classes: usize, caps: &Caps, memory: Option<u64>) -> Result<RunPlan> {
    plan_for(config, classes, &Target::by_rule(caps), memory)
}

/// [`plan`] with kernels that were chosen by measuring.
pub fn plan_for(
    config: &Config,
    classes: usize,
    target: &Target<'_>,
    memory: Option<u64>,
) -> Result<RunPlan> {
    let caps = target.caps;
    config.validate()?;
    check_precision(config, caps)?;
    let batch = config.train.batch_size;
    let fits = |batch: usize| -> bool {
        // A plan that fails for its limits does not fit; other failures are reported by the plan below.
        plan_batch(config, classes, target, batch, memory)
            .is_ok_and(|planned| memory.is_none_or(|limit| planned.plan.memory.total() <= limit))
    };
    let Planned { plan, cost, parameters, form } = match plan_batch(config, classes, target, batch, memory) {
        Err(Error::Runtime(epl_runtime::Error::Limit { what, .. })) => {
            let hint = remedy(config, classes, target, fits);
            return Err(Error::Runtime(epl_runtime::Error::Limit { what, hint }));
        }
        other => other?,
    };
    let per_image = |smaller: &Plan, other: usize| {
        let (a, b) = (plan.memory.slots, smaller.memory.slots);
        a.saturating_sub(b) / (batch - other).max(1) as u64
    };
    let half = (batch / 2).max(2);
    let activation = if half < batch {
        per_image(&plan_form(config, classes, target, half, form)?.plan, half)
    } else {
        plan.memory.slots / batch as u64
    };
    let evaluation = evaluation_bytes(config, classes, target)?;
    let persistent = |category: &str| plan.memory.persistent.get(category).copied().unwrap_or(0);
    let mut bytes = BTreeMap::from([
        ("weights", persistent("weights") + persistent("statistics")),
        ("optimizer", persistent("optimizer")),
        ("gradients", persistent("gradients")),
        ("prototypes", persistent("prototypes")),
        ("activations", plan.memory.slots),
        ("workspace", plan.memory.inputs + plan.memory.parameters + plan.memory.staging),
    ]);
    if evaluation > 0 {
        bytes.insert("evaluation", evaluation);
    }
    Ok(RunPlan {
        parameters,
        head_form: form,
        head_form_to_be_set: memory.is_some()
            && plan_batch(config, classes, target, batch, None).is_ok_and(|planned| planned.form != form),
        classes_per_step: ClassSampler::new(classes, batch, config.head.sample_rate, config.train.seed)
            .map_or(classes, |sampler| sampler.count()),
        flops_per_step: cost.flops,
        peak_bytes: plan.memory.total() + evaluation,
        bytes,
        activation_bytes_per_image: activation,
        max_batch: largest(fits),
        dispatches: plan.dispatches(),
        without_sharing: plan.memory.without_sharing,
    })
}

/// Bytes that the evaluation at an epoch's end takes beside the training step: its activations; the weights are the same. Of
/// the batch that [`Embedder::new`](crate::eval::embedder::Embedder::new) will take as far as limits decide on it.
fn evaluation_bytes(config: &Config, classes: usize, target: &Target<'_>) -> Result<u64> {
    if config.train.eval.is_empty() {
        return Ok(0);
    }
    let spec = spec_of(config, classes)?;
    let mut batch = EVALUATION_BATCH;
    loop {
        let (graph, _) = record_embedder(&spec, batch)?;
        match Plan::new(&graph, target.caps, target.options()) {
            Err(epl_runtime::Error::Limit { .. }) if batch > 1 => batch /= 2,
            planned => {
                let memory = planned?.memory;
                return Ok(memory.total() - memory.persistent.values().sum::<u64>());
            }
        }
    }
}

/// An error, with what the whole run needs and what would fit where it is one of memory.
pub fn explain_memory(error: Error, config: &Config, classes: usize, caps: &Caps) -> Error {
    let Error::Runtime(epl_runtime::Error::OutOfMemory { allocated, .. }) = &error else { return error };
    // Where no plan can be made, the error as it is must do.
    let Ok(found) = plan(config, classes, caps, Some(*allocated)) else { return error };
    let parts: Vec<String> = found
        .bytes
        .iter()
        .filter(|(_, bytes)| **bytes > 0)
        .map(|(kind, bytes)| format!("{kind} {}", readable(*bytes)))
        .collect();
    let what = format!(
        "{error}; the run needs {} in all with a batch of {}: {}",
        readable(found.peak_bytes),
        config.train.batch_size,
        parts.join(", ")
    );
    // The largest that divides the step, so that it stays the same one.
    let images = config.train.images_per_step();
    let most = (2..=found.max_batch.min(images)).rev().find(|batch| images.is_multiple_of(*batch));
    let to_be_had = readable(*allocated);
    let hint = match most {
        None => format!(
            "no batch fits the {to_be_had} that could be allocated: close what else uses the GPU, or use a narrower network, \
             smaller images, head.sample_rate, or another device"
        ),
        Some(most) => format!(
            "set train.batch_size = {most} and train.accumulate = {} for the same step of {images} images, which fits the \
             {to_be_had} that could be allocated; or close what else uses the GPU",
            images / most
        ),
    };
    Error::Runtime(epl_runtime::Error::Limit { what, hint })
}

/// Peak bytes of a run, as [`RunPlan::peak_bytes`] has them.
///
/// # Errors
/// Where a limit of the adapter is in the way, or the network is impossible.
pub(super) fn peak_bytes(config: &Config, classes: usize, caps: &Caps) -> Result<u64> {
    let target = Target::by_rule(caps);
    let planned = plan_batch(config, classes, &target, config.train.batch_size, None)?;
    Ok(planned.plan.memory.total() + evaluation_bytes(config, classes, &target)?)
}

/// Bytes in units of 2^20 or 2^30.
pub(super) fn readable(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

/// The largest batch that fits, by doubling and then halving the gap; 0 where none does.
fn largest(fits: impl Fn(usize) -> bool) -> usize {
    const MOST: usize = 1 << 16;
    let mut low = 1;
    while low < MOST && fits(low * 2) {
        low *= 2;
    }
    if low == 1 {
        // A batch of one cannot be normalised, so two is the least that trains.
        return 0;
    }
    let mut high = low * 2;
    while high - low > (low / 64).max(1) {
        let middle = (low + high) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Model;
    use crate::head::{EplSettings, HeadSettings};

    /// A GPU with 2 GiB a binding and a buffer.
    const GPU: Caps = Caps { max_binding_bytes: (1 << 31) - 4, max_buffer_bytes: 1 << 31, ..Caps::WEBGPU };

    /// The release's recipe with EPL, a small network so that the plan is quick.
    fn config(batch: usize) -> Config {
        let mut config = Config::default();
        config.model.arch = "ir18".into();
        config.model.input = [32, 32];
        config.model.width = 8;
        config.head.epl = Some(EplSettings::default());
        config.data.train = "data".into();
        config.train.out = "out".into();
        config.train.batch_size = batch;
        config
    }

    #[test]
    fn nothing_grows_with_the_classes_but_weights_momentum_and_empirical_prototypes() {
        let mut config = config(128);
        config.head.form = HeadForm::Tiled;
        for caps in [GPU, Caps::WEBGPU, Caps { cpu: true, ..GPU }] {
            let peak = |classes: usize| plan(&config, classes, &caps, None).unwrap().peak_bytes as f64;
            let (small, large) = (peak(10_572), peak(617_970));
            let matrix = (617_970.0 - 10_572.0) * 512.0 * 4.0;
            let matrices = (large - small) / matrix;
            // What is above 3 is that 10,572 classes do not fill the largest tile, and parameter blocks of launches.
            assert!((3.0..3.02).contains(&matrices), "{matrices}");
        }
    }

    #[test]
    fn an_image_of_ir50_takes_no_more_memory_than_is_promised() {
        let caps = Caps { f16: true, ..GPU };
        for (precision, batch, most) in [
            (Precision::F32, 32, 45e6),
            (Precision::F32, 128, 45e6),
            (Precision::Mixed, 32, 23e6),
            (Precision::Mixed, 128, 23e6),
        ] {
            let mut config = config(batch);
            config.model = Model { arch: "ir50".into(), ..Model::default() };
            config.train.precision = precision;
            assert_eq!(config.model.input, [112, 112]);
            let planned = plan(&config, 10_572, &caps, None).unwrap();
            // Of all activations and workspaces, the head's among them, and in mixed the 16-bit copy of the weights.
            let bytes = planned.bytes["activations"] as f64 / batch as f64;
            assert!(bytes <= most, "{precision:?}, batch {batch}: {bytes} bytes an image");
        }
    }

    #[test]
    fn two_million_classes_can_be_planned() {
        let found = plan(&config(128), 2_059_906, &GPU, None).unwrap();
        assert_eq!(found.head_form, HeadForm::Tiled);
        let table = 2_059_906u64 * 512 * 4;
        assert_eq!(found.bytes["prototypes"], table);
        assert!(found.bytes["weights"] > table && found.bytes["optimizer"] > table);
        assert!(found.peak_bytes < 3 * table + (200 << 20), "{}", found.peak_bytes);
    }

    #[test]
    fn the_form_is_what_fits_and_of_that_the_faster() {
        let form = |config: &Config, classes: usize, caps: &Caps, memory: Option<u64>| {
            plan(config, classes, caps, memory).unwrap().head_form
        };
        // A table that no binding holds can only be walked.
        assert_eq!(form(&config(64), 617_970, &Caps::WEBGPU, None), HeadForm::Tiled);
        // With a large batch products outweigh the tables, and the tiled form makes one more of them.
        let cpu = Caps { cpu: true, ..GPU };
        assert_eq!(form(&config(2048), 10_572, &cpu, None), HeadForm::Materialized);
        // With a small one they do not.
        assert_eq!(form(&config(16), 85_742, &GPU, None), HeadForm::Tiled);
        // What is faster does not count where it does not fit.
        let all = {
            let mut config = config(2048);
            config.head.form = HeadForm::Materialized;
            plan(&config, 10_572, &cpu, None).unwrap().peak_bytes
        };
        assert_eq!(form(&config(2048), 10_572, &cpu, Some(all)), HeadForm::Materialized);
        let tight = plan(&config(2048), 10_572, &cpu, Some(all - 1)).unwrap();
        assert_eq!((tight.head_form, tight.head_form_to_be_set), (HeadForm::Tiled, true));
        assert!(!plan(&config(2048), 10_572, &cpu, Some(all)).unwrap().head_form_to_be_set);
        // It can be told.
        let mut told = config(64);
        told.head.form = HeadForm::Tiled;
        assert_eq!(form(&told, 200, &GPU, None), HeadForm::Tiled);
        // Some of the classes are walked, and an odd length is not.
        let sampled = HeadSettings { sample_rate: 0.1, ..config(64).head };
        assert_eq!(form(&Config { head: sampled, ..config(2048) }, 10_572, &cpu, None), HeadForm::Tiled);
        let mut odd = config(16);
        odd.model.embedding = 510;
        assert_eq!(form(&odd, 10_572, &GPU, None), HeadForm::Materialized);
    }

    #[test]
    fn tables_that_no_binding_holds_are_refused_with_the_remedy() {
        let hint = |change: fn(&mut Config)| {
            let mut config = config(64);
            change(&mut config);
            let planned = plan(&config, 617_970, &Caps::WEBGPU, None).unwrap_err();
            let resolved = resolve_form(&config, 617_970, &Caps::WEBGPU).unwrap_err();
            assert_eq!(planned.hint(), resolved.hint());
            planned.hint().unwrap().to_owned()
        };
        assert_eq!(hint(|config| config.head.form = HeadForm::Materialized), "set head.form = \"tiled\"");
        let odd = hint(|config| config.model.embedding = 510);
        assert!(odd.starts_with("set head.form = \"tiled\" and model.embedding = 512"), "{odd}");
        // What no form helps against: activations of a batch.
        let large = hint(|config| (config.model.width, config.train.batch_size) = (64, 4096));
        assert!(large.starts_with("the largest batch"), "{large}");
    }

    #[test]
    fn a_decided_form_stands_in_the_configuration() {
        let resolved = resolve_form(&config(64), 617_970, &Caps::WEBGPU).unwrap();
        assert_eq!(resolved.head.form, HeadForm::Tiled);
        assert_eq!(resolve_form(&resolved, 10, &GPU).unwrap(), resolved);
    }

    #[test]
    fn the_largest_batch_is_found() {
        for limit in [2, 3, 5, 64, 65, 100] {
            assert_eq!(largest(|batch| batch <= limit), limit, "limit {limit}");
        }
        assert_eq!(largest(|batch| batch <= 1), 0);
        let found = largest(|batch| batch <= 10_000);
        assert!((9_800..=10_000).contains(&found), "{found}");
    }
}
