//! The time of a training step, measured on made-up images: no data is read for it.

use std::sync::Arc;
use std::time::Instant;

use epl_runtime::{Device, Session, SessionOptions};
use rand::Rng;
use rand_pcg::Pcg64;
use serde::Serialize;

use crate::Result;
use crate::config::{Config, LearningRate};
use crate::data::Batch;
use crate::model::Model;
use crate::nn::input::packed_bytes;
use crate::train::plan::{explain_memory, resolve_form};
use crate::train::step::{class_sampler, record_step};
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
) -> Result<RunSeconds> {
    let config = &resolve_form(config, classes, device.caps())?;
    let train = &config.train;
    // Epochs before the branch starts.
    let plain = config.head.epl.map_or(train.epochs, |epl| (epl.start_epoch - 1).min(train.epochs));
    let measure = |empirical: bool, wanted: bool| {
        wanted.then(|| measure_step(config, classes, device, empirical, steps)).transpose()
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

fn measure_step(
    config: &Config,
    classes: usize,
    device: &Arc<Device>,
    empirical: bool,
    steps: usize,
) -> Result<StepSeconds> {
    let explain = |error: crate::Error| explain_memory(error, config, classes, device.caps());
    let options = step_options(config, empirical);
    let model = Model::new(spec_of(config, classes)?, device, config.train.seed).map_err(explain)?;
    let recorded = record_step(&model.spec, &options)?;
    let mut session = Session::new(&recorded.graph, &model.store, SessionOptions::default())
        .map_err(|error| explain(error.into()))?;
    let sampler = class_sampler(&model.spec, &options);
    let mut random = Pcg64::new(1, 1);
    let mut seconds = Vec::with_capacity(steps);
    for step in 0..=steps.max(1) as u64 {
        let mut images = vec![0; packed_bytes(options.images(), config.model.input)];
        images.chunks_mut(8).for_each(|chunk| {
            chunk.iter_mut().zip(random.next_u64().to_le_bytes()).for_each(|(byte, noise)| *byte = noise);
        });
        let label = |_| (random.next_u64() % classes.max(1) as u64) as u32;
        let batch = Batch {
            images,
            labels: (0..options.images()).map(label).collect(),
            mirror: vec![0; options.images()],
            indices: Vec::new(),
            epoch: 1,
            number: step as usize,
        };
        let started = Instant::now();
        // A small rate: what is measured must not grow out of the range of f32.
        recorded.inputs.write(&mut session, &batch, step, config.train.seed, 1e-4, sampler.as_ref())?;
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
