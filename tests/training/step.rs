//! Single training steps: what they cost, what they compute, and what their options change.

use std::sync::Arc;

use epl::config::{Config, HeadKind};
use epl::eval::embedder::Embedder;
use epl::model::{Model, ModelSpec};
use epl::nn::input::packed_bytes;
use epl::nn::{IrNetwork, Role};
use epl::train::step::{StepInputs, StepOptions, StepResult, record_step};
use epl::train::trainer::{spec_of, step_options};
use epl_runtime::case::Tolerance;
use epl_runtime::inspect::find_divergence;
use epl_runtime::{Caps, Device, DeviceOptions, Plan, PlanOptions, Session, SessionOptions};

use super::{BATCH, IDENTITIES, config, device, faces, fresh_device, head};

/// A model with a session of its training step.
struct Stepper {
    model: Model,
    inputs: StepInputs,
    session: Session,
    lr: f32,
    written: usize,
}

impl Stepper {
    fn new(config: &Config, options: &StepOptions, device: &Arc<Device>) -> Self {
        let spec = spec_of(config, IDENTITIES as usize).unwrap();
        let model = Model::new(spec, device, config.train.seed).unwrap();
        let recorded = record_step(&model.spec, options).unwrap();
        let session = Session::new(&recorded.graph, &model.store, SessionOptions::default()).unwrap();
        Self { model, inputs: recorded.inputs, session, lr: config.optim.lr as f32, written: 0 }
    }

    /// Uploads the next batch, in the order of the dataset's people, with `seed` for dropout.
    fn write(&mut self, seed: [u32; 2]) {
        let (data, size) = (faces(), self.model.spec.network.input);
        let mut bytes = Vec::with_capacity(packed_bytes(BATCH, size));
        let mut labels = Vec::with_capacity(BATCH);
        for _ in 0..BATCH {
            // Coprime to the number of images, so that every batch has several people.
            let index = (self.written * 7) % data.len();
            bytes.extend(data.load(index).unwrap().rgb);
            labels.push(data.label(index).unwrap());
            self.written += 1;
        }
        let session = &mut self.session;
        session.write(self.inputs.images.bytes, &bytes).unwrap();
        session.write(self.inputs.images.mirror, bytemuck::cast_slice(&[0u32; BATCH])).unwrap();
        session.write(self.inputs.labels, bytemuck::cast_slice(&labels)).unwrap();
        session.write(self.inputs.lr, bytemuck::bytes_of(&self.lr)).unwrap();
        session.write(self.inputs.seed, bytemuck::bytes_of(&seed)).unwrap();
    }

    fn step(&mut self, seed: [u32; 2]) -> StepResult {
        self.write(seed);
        self.session.step().unwrap();
        let done = self.session.flush().unwrap();
        StepResult::unpack(&done.last().expect("the step is done").values).unwrap()
    }

    /// All trained parameters, one after the other.
    fn weights(&self) -> Vec<f32> {
        let parameters = &self.model.spec.parameters;
        let trained = parameters.entries().iter().filter(|entry| entry.spec.role != Role::Statistic);
        trained.flat_map(|entry| parameters.read(&self.model.store, &entry.spec.name).unwrap()).collect()
    }
}

/// The tiny run's configuration; nothing is written to its folder.
fn tiny(epl: bool) -> Config {
    config("nowhere".as_ref(), head(HeadKind::CosFace, epl), 1)
}

#[test]
fn a_training_step_allocates_nothing_and_waits_for_nothing() {
    let device = fresh_device();
    let mut config = tiny(true);
    config.model.dropout = 0.3;
    let options = StepOptions { clip_norm: 1.0, ..step_options(&config, true) };
    let mut stepper = Stepper::new(&config, &options, &device);
    // The first round fills the ring of staging buffers.
    for step in 0..4 {
        stepper.write([1, step]);
        stepper.session.step().unwrap();
    }
    stepper.session.flush().unwrap();
    let (before, live_before) = (device.counters(), device.live_objects());
    for step in 4..7 {
        stepper.write([1, step]);
        stepper.session.step().unwrap();
    }
    let (after, live_after) = (device.counters(), device.live_objects());
    assert_eq!(after.submits, before.submits + 3, "one submission a step");
    // Everything else stands still: buffers, bind groups, pipelines, waits, throttles.
    assert_eq!(epl_runtime::counters::CounterSnapshot { submits: before.submits, ..after }, before);
    // wgpu's own count of buffers, bind groups and device memory allocations.
    assert_eq!(live_after, live_before);
    assert_eq!(stepper.session.flush().unwrap().len(), 3);
}

#[test]
fn clipping_bounds_the_update() {
    // Without momentum and weight decay the update is the learning rate times the gradient.
    let update = |clip_norm: f32| {
        let config = tiny(true);
        let options =
            StepOptions { clip_norm, momentum: 0.0, weight_decay: 0.0, ..step_options(&config, true) };
        let mut stepper = Stepper::new(&config, &options, &device());
        let before = stepper.weights();
        let result = stepper.step([1, 0]);
        let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
        let moved = stepper.weights().iter().zip(&before).map(square).sum::<f64>().sqrt();
        (f64::from(result.grad_norm), moved / f64::from(stepper.lr))
    };
    // Weights are rounded to f32 after the update, which is small against them.
    let close = |a: f64, b: f64| (a - b).abs() < 1e-3 * b;
    let (norm, moved) = update(0.0);
    assert!(norm > 0.0 && close(moved, norm), "no clipping: gradient {norm}, update {moved}");
    for factor in [0.01, 0.5] {
        let limit = (norm * factor) as f32;
        let (reported, moved) = update(limit);
        assert!(close(reported, norm), "the norm is that before clipping: {reported}, {norm}");
        assert!(close(moved, f64::from(limit)), "limit {limit}, update {moved}");
    }
    let (_, moved) = update((norm * 2.0) as f32);
    assert!(close(moved, norm), "a gradient below the limit is left alone: {moved}, {norm}");
}

#[test]
fn dropout_depends_on_seed_and_step_alone() {
    let loss = |dropout: f64, seed: [u32; 2]| {
        let mut config = tiny(false);
        config.model.dropout = dropout;
        let options = step_options(&config, false);
        let result = Stepper::new(&config, &options, &device()).step(seed);
        assert_eq!(result.nonfinite, 0);
        result.loss.to_bits()
    };
    assert_eq!(loss(0.0, [1, 0]), loss(0.0, [2, 5]), "without dropout the seed is not used");
    let first = loss(0.5, [1, 0]);
    assert_eq!(first, loss(0.5, [1, 0]));
    for other in [loss(0.0, [1, 0]), loss(0.5, [2, 0]), loss(0.5, [1, 1])] {
        assert_ne!(first, other);
    }
}

/// How far an op may be from its reference on the GPU's own inputs. The longest sums are of a thousand products (12
/// images of 8x8 pixels), whose rounding is a few 1e-6 of their size; where terms cancel, as in the mean of what a
/// batch norm has just centred, what is left is rounding of terms of about one.
const TOLERANCE: Tolerance = Tolerance { relative: 2e-5, absolute: 1e-6 };

#[test]
fn every_op_of_a_training_step_agrees_with_its_reference() {
    for kind in [HeadKind::CosFace, HeadKind::ArcFace, HeadKind::UniFace] {
        let mut config = tiny(true);
        config.head.kind = kind;
        config.model.dropout = 0.3;
        let options = StepOptions { clip_norm: 1.0, ..step_options(&config, true) };
        let mut stepper = Stepper::new(&config, &options, &device());
        // Not the first step: momentum, statistics and prototypes then hold what training puts there.
        for step in 0..2 {
            stepper.step([1, step]);
        }
        stepper.write([1, 2]);
        let found = find_divergence(&mut stepper.session, TOLERANCE).unwrap();
        assert!(found.is_none(), "{kind:?}: {}", found.unwrap());

        // No f32 kernel meets an f64 reference exactly, so the tool must object to a tolerance of nothing.
        stepper.write([1, 3]);
        let nothing = Tolerance { relative: 0.0, absolute: 0.0 };
        assert!(find_divergence(&mut stepper.session, nothing).unwrap().is_some());
    }
}

#[test]
fn a_training_step_shares_its_memory() {
    let plan = |config: &Config, options: PlanOptions| {
        let spec = spec_of(config, 1000).unwrap();
        let recorded = record_step(&spec, &step_options(config, true)).unwrap();
        Plan::new(&recorded.graph, &Caps::WEBGPU, options).unwrap()
    };
    let mut release = Config { head: head(HeadKind::CosFace, true), ..Config::default() };
    release.train.batch_size = 16;
    for (config, share) in [(tiny(true), 0.6), (release, 0.4)] {
        let memory = plan(&config, PlanOptions::default()).memory;
        let ratio = memory.slots as f64 / memory.without_sharing as f64;
        println!("{}: {ratio:.3} of {} bytes", config.model.arch, memory.without_sharing);
        assert!(ratio < share, "{ratio} of what it takes without sharing");
        let unshared = plan(&config, PlanOptions { no_sharing: true }).memory;
        assert_eq!(unshared.slots, unshared.without_sharing);
        assert_eq!(unshared.without_sharing, memory.without_sharing);
    }
}

/// At 112 x 112 the first layer of 64 images does not fit one binding of 128 MiB. Evaluation must not fail for it.
#[test]
fn the_evaluation_batch_halves_until_it_fits() {
    let spec = ModelSpec::new("ir18", IrNetwork::named("ir18").unwrap(), None).unwrap();
    let device = Device::open(&DeviceOptions { webgpu_limits: true, ..DeviceOptions::default() }).unwrap();
    let model = Model::allocate(spec, &device).unwrap();
    let embedder = Embedder::new(&model, 64).unwrap();
    assert!((1..64).contains(&embedder.batch()), "{}", embedder.batch());
}
