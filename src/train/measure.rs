//! The time of a training step, measured on made-up images: no data is read for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use epl_runtime::inspect::profile;
use epl_runtime::probe::roof::Roof;
use epl_runtime::tune::TuneOptions;
use epl_runtime::{Device, Session};
use rand::Rng;
use rand_pcg::Pcg64;
use serde::Serialize;

use crate::Result;
use crate::config::{Config, LearningRate, Precision};
use crate::data::Batch;
use crate::head::sampling::ClassSampler;
use crate::model::Model;
use crate::nn::input::packed_bytes;
use crate::train::kernels;
use crate::train::plan::{explain_memory, resolve_form};
use crate::train::run::Stop;
use crate::train::start::{StartClock, StartSeconds};
use crate::train::step::{ScaleState, StepInputs, class_sampler, record_step};
use crate::train::trainer::{spec_of, step_options};

/// Seconds of a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepSeconds {
    /// Steps that were measured.
    pub steps: usize,
    /// The median.
    pub median: f64,
    /// The shortest.
    pub min: f64,
    /// The longest.
    pub max: f64,
}

/// What a run will take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RunSeconds {
    /// A step without the empirical branch; `None` where every step has it.
    pub step: Option<StepSeconds>,
    /// A step with the empirical branch; `None` where none has it.
    pub step_with_epl: Option<StepSeconds>,
    /// Images a second of the slower of the two.
    pub images_per_second: f64,
    /// Steps of the run; `None` where the number of images is not known.
    pub total_steps: Option<u64>,
    /// Seconds of all of them, without evaluation and checkpoints, and as long as the loader keeps up.
    pub train_seconds: Option<f64>,
}

/// Measures `steps` steps, after one more that compiles what it needs, of each kind that the run has. `images` is the size
/// of its data, where that is known.
///
/// # Errors
/// What does not fit the device.
pub fn measure_run(
    config: &Config,
    classes: usize,
    images: Option<usize>,
    device: &Arc<Device>,
    steps: usize,
    say: &mut dyn FnMut(&str),
) -> Result<RunSeconds> {
    let config = &resolve_form(config, classes, device.caps())?;
    let train = &config.train;
    // Epochs before the branch starts.
    let plain = config.head.epl.map_or(train.epochs, |epl| (epl.start_epoch - 1).min(train.epochs));
    let mut measure = |empirical: bool, wanted: bool| {
        wanted.then(|| measure_step(config, classes, device, empirical, steps, say)).transpose()
    };
    let step = measure(false, plain > 0)?;
    let step_with_epl = measure(true, plain < train.epochs)?;
    let median = |seconds: Option<StepSeconds>| seconds.map_or(0.0, |seconds| seconds.median);
    let slower = median(step).max(median(step_with_epl));
    let steps_per_epoch = images.map(|images| (images / train.images_per_step()) as u64);
    let total_steps = steps_per_epoch.map(|steps| LearningRate::new(&config.optim, train).total_steps(steps));
    let train_seconds = steps_per_epoch.zip(total_steps).map(|(per_epoch, total)| {
        let before = (u64::from(plain) * per_epoch).min(total);
        before as f64 * median(step) + (total - before) as f64 * median(step_with_epl)
    });
    let images_per_second = train.images_per_step() as f64 / slower.max(1e-9);
    Ok(RunSeconds { step, step_with_epl, images_per_second, total_steps, train_seconds })
}

/// The time of all ops of one name in a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OpTime {
    /// The op.
    pub name: String,
    /// How often it is in a step.
    pub times: usize,
    /// Milliseconds of all of them.
    pub ms: f64,
    /// Billions of floating-point operations a second.
    pub gflops: f64,
    /// Billions of bytes a second, every operand counted once.
    pub gbytes_per_s: f64,
    /// Milliseconds below which the adapter's [`Roof`] lets none of their work be done: the sum of every op's floor.
    pub floor_ms: f64,
}

/// A step, whole and by op.
#[derive(Clone, Debug, PartialEq)]
pub struct StepProfile {
    /// Whole steps.
    pub seconds: StepSeconds,
    /// Every op in a pass of its own, the slowest first.
    pub ops: Vec<OpTime>,
    /// What the adapter's arithmetic, memory and matrix unit give at most.
    pub roof: Roof,
    /// Floating-point operations of a step.
    pub flops: f64,
    /// Launches of a step.
    pub launches: usize,
    /// Bytes that a GPU holds for it.
    pub peak_bytes: u64,
    /// Where the time until the first step went, without data and device.
    pub start: StartSeconds,
}

/// What all ops of one name take together, in seconds, FLOPs and bytes.
#[derive(Default)]
struct Summed {
    times: usize,
    seconds: f64,
    flops: f64,
    bytes: f64,
    floor: f64,
}

/// Measures `steps` steps of `config`, after one more that compiles what it needs, and then each of its ops; with the
/// empirical branch if the head has one.
///
/// # Errors
/// What does not fit the device.
pub fn profile_step(
    config: &Config,
    classes: usize,
    device: &Arc<Device>,
    steps: usize,
    say: &mut dyn FnMut(&str),
) -> Result<StepProfile> {
    let roof = Roof::measure(device)?;
    let mut clock = StartClock::since(Instant::now());
    let mut start = StartSeconds::default();
    let config = &resolve_form(config, classes, device.caps())?;
    start.plan = clock.lap();
    let mut measured = Measured::new(config, classes, device, config.head.epl.is_some(), say)?;
    let counted = device.counters();
    start.model = measured.model_seconds;
    start.tune = measured.tune_seconds;
    start.session = clock.lap() - start.model - start.tune;
    start.pipelines = counted.compiled_nanoseconds as f64 * 1e-9;
    start.pipelines_compiled = counted.pipelines;
    start.first_step = clock.total();
    measured.steps(0)?;
    start.first_result = clock.total();
    let seconds = measured.steps(steps.max(1))?;
    let session = &measured.session;
    let mut by_op: BTreeMap<&str, Summed> = BTreeMap::new();
    for timing in profile(session, 3)? {
        let sum = by_op.entry(timing.op).or_default();
        sum.times += 1;
        sum.seconds += timing.seconds;
        sum.flops += timing.cost.flops;
        sum.bytes += timing.cost.bytes;
        sum.floor += roof.of_unit(timing.matrices).floor(timing.cost.flops, timing.cost.bytes);
    }
    let of = |(name, sum): (&str, Summed)| {
        let rate = |amount: f64| amount / sum.seconds.max(1e-12) / 1e9;
        OpTime {
            name: name.to_owned(),
            times: sum.times,
            ms: sum.seconds * 1e3,
            gflops: rate(sum.flops),
            gbytes_per_s: rate(sum.bytes),
            floor_ms: sum.floor * 1e3,
        }
    };
    let mut ops: Vec<OpTime> = by_op.into_iter().map(of).collect();
    ops.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    Ok(StepProfile {
        seconds,
        ops,
        roof,
        flops: session.plan().cost(session.graph()).flops,
        launches: session.plan().dispatches(),
        start,
        peak_bytes: session.plan().memory.total(),
    })
}

fn measure_step(
    config: &Config,
    classes: usize,
    device: &Arc<Device>,
    empirical: bool,
    steps: usize,
    say: &mut dyn FnMut(&str),
) -> Result<StepSeconds> {
    Measured::new(config, classes, device, empirical, say)?.steps(steps.max(1))
}

/// A step that is measured.
struct Measured<'a> {
    config: &'a Config,
    classes: usize,
    inputs: StepInputs,
    sampler: Option<ClassSampler>,
    /// What measuring kernels took.
    tune_seconds: f64,
    /// What making the model took.
    model_seconds: f64,
    /// The session keeps the model's parameters alive.
    session: Session,
}

impl<'a> Measured<'a> {
    fn new(
        config: &'a Config,
        classes: usize,
        device: &Arc<Device>,
        empirical: bool,
        say: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let explain = |error: crate::Error| explain_memory(error, config, classes, device.caps());
        let options = step_options(config, empirical);
        let started = Instant::now();
        let spec = spec_of(config, classes)?;
        let choices = kernels::choose(config, &spec, device, &TuneOptions::default(), &Stop::default(), say)?;
        let tune_seconds = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let mut model = Model::new(spec, device, config.train.seed).map_err(explain)?;
        model.choices = Arc::new(choices);
        let model_seconds = started.elapsed().as_secs_f64();
        let recorded = record_step(&model.spec, &options)?;
        let session = Session::new(&recorded.graph, &model.store, model.session_options())
            .map_err(|error| explain(error.into()))?;
        if options.precision == Precision::Mixed {
            ScaleState::INITIAL.write(&model.store)?;
        }
        let sampler = class_sampler(&model.spec, &options);
        Ok(Self { config, classes, inputs: recorded.inputs, sampler, tune_seconds, model_seconds, session })
    }

    /// The time of `steps` steps, after one more.
    fn steps(&mut self, steps: usize) -> Result<StepSeconds> {
        let Self { config, classes, inputs, sampler, session, .. } = self;
        let count = config.train.images_per_step();
        let mut random = Pcg64::new(1, 1);
        let mut seconds = Vec::with_capacity(steps);
        for step in 0..=steps as u64 {
            let mut images = vec![0; packed_bytes(count, config.model.input)];
            images.chunks_mut(8).for_each(|chunk| {
                chunk.iter_mut().zip(random.next_u64().to_le_bytes()).for_each(|(byte, noise)| *byte = noise);
            });
            let label = |_| (random.next_u64() % (*classes).max(1) as u64) as u32;
            let batch = Batch {
                images,
                labels: (0..count).map(label).collect(),
                mirror: vec![0; count],
                indices: Vec::new(),
                epoch: 1,
                number: step as usize,
            };
            let started = Instant::now();
            // A small rate: what is measured must not grow out of the range of f32.
            inputs.write(session, &batch, step, config.train.seed, 1e-4, sampler.as_ref())?;
            session.step()?;
            session.flush()?;
            if step > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
        seconds.sort_by(f64::total_cmp);
        let at = |index: usize| seconds.get(index).copied().unwrap_or(f64::NAN);
        let steps = seconds.len();
        Ok(StepSeconds { steps, median: at(steps / 2), min: at(0), max: at(steps.saturating_sub(1)) })
    }
}
