//! Single training steps: what they cost, what they compute, and what their options change.

use std::sync::Arc;

use epl::config::{Config, HeadKind};
use epl::eval::embedder::Embedder;
use epl::head::HeadForm;
use epl::head::sampling::ClassSampler;
use epl::interchange::safetensors::StateDict;
use epl::model::{HEAD_MOMENTUM, HEAD_QUEUE, HEAD_WEIGHT, Model, ModelSpec};
use epl::nn::Network;
use epl::nn::init::initialize;
use epl::nn::input::packed_bytes;
use epl::train::step::{StepInputs, StepOptions, StepResult, class_sampler, record_step};
use epl::train::trainer::{spec_of, step_options};
use epl_runtime::case::Tolerance;
use epl_runtime::inspect::find_divergence;
use epl_runtime::{Caps, Device, DeviceOptions, Plan, PlanOptions, Session, SessionOptions};

use super::{BATCH, IDENTITIES, config, device, faces, fresh_device, head};

/// A model with a session of its training step.
pub(super) struct Stepper {
    pub(super) model: Model,
    inputs: StepInputs,
    session: Session,
    sampler: Option<ClassSampler>,
    lr: f32,
    written: usize,
    last_labels: Vec<u32>,
    /// The class that each of the dataset's people is filed under.
    class_of: [u32; IDENTITIES as usize],
}

impl Stepper {
    pub(super) fn new(config: &Config, options: &StepOptions, device: &Arc<Device>) -> Self {
        Self::with_classes(config, IDENTITIES as usize, options, device)
    }

    /// For more classes than the data has.
    fn with_classes(config: &Config, classes: usize, options: &StepOptions, device: &Arc<Device>) -> Self {
        let spec = spec_of(config, classes).unwrap();
        let model = Model::new(spec, device, config.train.seed).unwrap();
        let recorded = record_step(&model.spec, options).unwrap();
        let session = Session::new(&recorded.graph, &model.store, SessionOptions::default()).unwrap();
        let sampler = class_sampler(&model.spec, options);
        let lr = config.optim.lr as f32;
        Self {
            model,
            inputs: recorded.inputs,
            session,
            sampler,
            lr,
            written: 0,
            last_labels: Vec::new(),
            class_of: [0, 1, 2, 3, 4, 5],
        }
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
            labels.push(self.class_of[data.label(index).unwrap() as usize]);
            self.written += 1;
        }
        self.last_labels.clone_from(&labels);
        let session = &mut self.session;
        session.write(self.inputs.images.bytes, &bytes).unwrap();
        session.write(self.inputs.images.mirror, bytemuck::cast_slice(&[0u32; BATCH])).unwrap();
        session.write(self.inputs.labels, bytemuck::cast_slice(&labels)).unwrap();
        if let (Some(sampled), Some(sampler)) = (self.inputs.sampled, &self.sampler) {
            let sample = sampler.sample(u64::from(seed[1]), &labels).unwrap();
            session.write(sampled.classes, bytemuck::cast_slice(&sample.classes)).unwrap();
            session.write(sampled.positions, bytemuck::cast_slice(&sample.positions)).unwrap();
        }
        session.write(self.inputs.lr, bytemuck::bytes_of(&self.lr)).unwrap();
        session.write(self.inputs.seed, bytemuck::bytes_of(&seed)).unwrap();
    }

    pub(super) fn step(&mut self, seed: [u32; 2]) -> StepResult {
        self.write(seed);
        self.session.step().unwrap();
        let done = self.session.flush().unwrap();
        StepResult::unpack(&done.last().expect("the step is done").values).unwrap()
    }

    /// All trained parameters, one after the other.
    pub(super) fn weights(&self) -> Vec<f32> {
        let parameters = &self.model.spec.parameters;
        let trained = parameters.entries().iter().filter(|entry| entry.spec.role.is_trained());
        let head = self.model.store.read(HEAD_WEIGHT).unwrap();
        let of_head = head.as_f32().unwrap().to_vec();
        trained
            .flat_map(|entry| parameters.read(&self.model.store, &entry.spec.name).unwrap())
            .chain(of_head)
            .collect()
    }
}

/// The tiny run's configuration; nothing is written to its folder.
pub(super) fn tiny(epl: bool) -> Config {
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
    assert_eq!(
        epl_runtime::counters::CounterSnapshot {
            submits: before.submits,
            waited_nanoseconds: before.waited_nanoseconds,
            ..after
        },
        before
    );
    // wgpu's own count of buffers, bind groups and device memory allocations.
    assert_eq!(live_after, live_before);
    assert_eq!(stepper.session.flush().unwrap().len(), 3);
}

#[test]
fn clipping_bounds_the_update() {
    // Without momentum and weight decay the update is the learning rate times the gradient.
    for form in [HeadForm::Materialized, HeadForm::Tiled] {
        clipping_bounds_the_update_of(form);
    }
}

fn clipping_bounds_the_update_of(form: HeadForm) {
    let update = |clip_norm: f32| {
        let mut config = tiny(true);
        config.head.form = form;
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
const TOLERANCE: Tolerance = Tolerance { relative: 2e-5, rounding: 0.0, absolute: 1e-6 };

#[test]
fn every_op_of_a_training_step_agrees_with_its_reference() {
    let (all, tiled) = (HeadForm::Materialized, HeadForm::Tiled);
    let kinds = [HeadKind::CosFace, HeadKind::ArcFace, HeadKind::UniFace];
    for (kind, form) in kinds.into_iter().flat_map(|kind| [(kind, all), (kind, tiled)]) {
        let mut config = tiny(true);
        config.head.kind = kind;
        config.head.form = form;
        config.model.dropout = 0.3;
        let options = StepOptions { clip_norm: 1.0, ..step_options(&config, true) };
        let mut stepper = Stepper::new(&config, &options, &device());
        // Not the first step: momentum, statistics and prototypes then hold what training puts there.
        for step in 0..2 {
            stepper.step([1, step]);
        }
        stepper.write([1, 2]);
        let found = find_divergence(&mut stepper.session, TOLERANCE).unwrap();
        assert!(found.is_none(), "{kind:?}, {form:?}: {}", found.unwrap());

        // No f32 kernel meets an f64 reference exactly, so the tool must object to a tolerance of nothing.
        stepper.write([1, 3]);
        let nothing = Tolerance { relative: 0.0, rounding: 0.0, absolute: 0.0 };
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
        let unshared = plan(&config, PlanOptions { no_sharing: true, ..PlanOptions::default() }).memory;
        assert_eq!(unshared.slots, unshared.without_sharing);
        assert_eq!(unshared.without_sharing, memory.without_sharing);
    }
}

/// At 112 x 112 the first layer of 64 images does not fit one binding of 128 MiB. Evaluation must not fail for it.
#[test]
fn the_evaluation_batch_halves_until_it_fits() {
    let spec = ModelSpec::new("ir18", Network::named("ir18").unwrap(), None).unwrap();
    let device = Device::open(&DeviceOptions { webgpu_limits: true, ..DeviceOptions::default() }).unwrap();
    let model = Model::allocate(spec, &device).unwrap();
    let embedder = Embedder::new(&model, 64).unwrap();
    assert!((1..64).contains(&embedder.batch()), "{}", embedder.batch());
}

/// Loss, weights, momentum and empirical prototypes after three steps with 50 classes.
fn after_three_steps(config: &Config, device: &Arc<Device>) -> (f32, [Vec<f32>; 4]) {
    let mut stepper = Stepper::with_classes(config, 50, &step_options(config, true), device);
    let mut loss = 0.0;
    for step in 0..3 {
        let result = stepper.step([1, step]);
        assert_eq!(result.nonfinite, 0);
        loss = result.loss;
    }
    let table = |name: &str| stepper.model.store.read(name).unwrap().as_f32().unwrap().to_vec();
    (loss, [stepper.weights(), table(HEAD_WEIGHT), table(HEAD_MOMENTUM), table(HEAD_QUEUE)])
}

fn read_table(stepper: &Stepper, name: &str) -> Vec<f32> {
    stepper.model.store.read(name).unwrap().into_f32().unwrap()
}

fn norm_of_difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    a.iter().zip(b).map(square).sum::<f64>().sqrt()
}

#[test]
fn both_forms_of_the_head_train_the_same() {
    for kind in [HeadKind::CosFace, HeadKind::ArcFace, HeadKind::UniFace] {
        let run = |form: HeadForm| {
            let mut config = tiny(true);
            config.head.kind = kind;
            config.head.form = form;
            after_three_steps(&config, &device())
        };
        let (loss, all) = run(HeadForm::Materialized);
        let (tiled_loss, tiled) = run(HeadForm::Tiled);
        assert!((loss - tiled_loss).abs() < 1e-5 * loss.abs(), "{kind:?}: {loss}, {tiled_loss}");
        for (all, tiled) in all.iter().zip(&tiled) {
            let error = norm_of_difference(all, tiled) / norm_of_difference(all, &vec![0.0; all.len()]);
            // Three steps through a batch-normalised network carry a rounding of the first one on.
            assert!(error < 1e-4, "{kind:?}: {error}");
        }
    }
}

#[test]
fn tables_in_several_buffers_and_bindings_train_the_same() {
    let settings =
        [(HeadKind::CosFace, 1.0, 0.0), (HeadKind::CosFace, 0.3, 0.5), (HeadKind::UniFace, 1.0, 0.5)];
    for (kind, rate, clip_norm) in settings {
        let mut config = tiny(true);
        config.head.kind = kind;
        config.optim.clip_norm = clip_norm;
        // A row of 64 elements is 256 bytes, so that every row is where a binding may begin.
        config.model.embedding = 64;
        config.head.form = HeadForm::Tiled;
        config.head.sample_rate = rate;
        let stepper = |limits: DeviceOptions| {
            let device = Device::open(&limits).unwrap();
            Stepper::with_classes(&config, 2000, &step_options(&config, true), &device)
        };
        let mut whole = stepper(DeviceOptions::default());
        let limits = DeviceOptions {
            max_binding_bytes: Some(1 << 18),
            max_buffer_bytes: Some(3 << 17),
            ..DeviceOptions::default()
        };
        let mut split = stepper(limits);
        // Both ends of each of the three ranges, the last of which is in the second buffer.
        whole.class_of = [0, 1023, 1024, 1535, 1536, 1999];
        split.class_of = whole.class_of;
        let (caps, table) = (split.session.device().caps(), split.model.spec.weight_desc().unwrap());
        let ranges: Vec<(usize, usize)> =
            caps.row_ranges(&table).iter().map(|range| (range.first, range.rows)).collect();
        assert_eq!((caps.shards(&table).len(), ranges), (2, vec![(0, 1024), (1024, 512), (1536, 464)]));
        let untouched = read_table(&split, HEAD_QUEUE);
        for step in 0..2 {
            let (a, b) = (whole.step([1, step]).loss, split.step([1, step]).loss);
            // Tiles end where bindings do, so that sums are made in another order.
            assert!((a - b).abs() <= 1e-5 * a, "{kind:?}, rate {rate}: {a}, {b}");
        }
        for name in [HEAD_WEIGHT, HEAD_MOMENTUM, HEAD_QUEUE] {
            let (a, b) = (read_table(&whole, name), read_table(&split, name));
            let error = norm_of_difference(&a, &b) / norm_of_difference(&a, &vec![0.0; a.len()]);
            assert!(error < 1e-5, "{kind:?}, rate {rate}, {name}: {error}");
        }
        let moved = read_table(&split, HEAD_QUEUE);
        for class in 0..2000u32 {
            let row = class as usize * 64..(class as usize + 1) * 64;
            let same = untouched[row.clone()] == moved[row];
            assert_eq!(same, !split.class_of.contains(&class), "{kind:?}, rate {rate}: Q of class {class}");
        }
    }
}

#[test]
fn sampling_touches_the_classes_that_take_part_and_no_others() {
    let mut config = tiny(true);
    config.head.sample_rate = 0.5;
    let mut stepper = Stepper::with_classes(&config, 50, &step_options(&config, true), &device());
    let table =
        |stepper: &Stepper, name: &str| stepper.model.store.read(name).unwrap().as_f32().unwrap().to_vec();
    let dim = config.model.embedding;
    stepper.step([1, 0]);
    for step in 1..4 {
        let before = [HEAD_WEIGHT, HEAD_MOMENTUM].map(|name| table(&stepper, name));
        let result = stepper.step([1, step]);
        assert_eq!(result.nonfinite, 0);
        let labels: Vec<u32> = stepper.last_labels.clone();
        let sample = stepper.sampler.unwrap().sample(u64::from(step), &labels).unwrap();
        assert_eq!(sample.classes.len(), 25);
        for (name, before) in [HEAD_WEIGHT, HEAD_MOMENTUM].into_iter().zip(&before) {
            let after = table(&stepper, name);
            for class in 0..50usize {
                let row = class * dim..(class + 1) * dim;
                let same = before[row.clone()] == after[row];
                // Decay and momentum alone move every row that takes part.
                assert_eq!(
                    same,
                    !sample.classes.contains(&(class as u32)),
                    "{name}, class {class}, step {step}"
                );
            }
        }
    }
}

#[test]
fn a_rate_of_one_and_sampling_all_classes_give_the_bits_of_no_sampling() {
    let run = |rate: f64| {
        let mut config = tiny(true);
        config.head.form = HeadForm::Tiled;
        config.head.sample_rate = rate;
        after_three_steps(&config, &device())
    };
    let (loss, tables) = run(1.0);
    // So near to 1 that all 50 classes take part, through the list of those that do.
    let (sampled_loss, sampled) = run(0.999);
    assert_eq!(loss.to_bits(), sampled_loss.to_bits());
    assert!(tables == sampled, "sampling every class changes the bits");
}

#[test]
fn a_weight_that_is_no_number_is_noticed_in_both_forms() {
    for (form, clip_norm) in [
        (HeadForm::Materialized, 0.0),
        (HeadForm::Materialized, 1.0),
        (HeadForm::Tiled, 0.0),
        (HeadForm::Tiled, 1.0),
    ] {
        for table in [HEAD_WEIGHT, HEAD_QUEUE] {
            let mut config = tiny(true);
            config.head.form = form;
            config.optim.clip_norm = clip_norm;
            let mut stepper = Stepper::new(&config, &step_options(&config, true), &device());
            // Of a class that the batch has, so that its row of Q is read and written too.
            stepper.model.store.write_range(table, 0, bytemuck::bytes_of(&f32::NAN)).unwrap();
            let result = stepper.step([1, 0]);
            assert!(!result.loss.is_finite() || result.nonfinite > 0, "{form:?}, {clip_norm}, {table}");
        }
    }
}

#[test]
fn a_saved_model_is_the_file_of_its_state_dict() {
    let mut config = tiny(true);
    config.head.kind = HeadKind::UniFace;
    let stepper = Stepper::new(&config, &step_options(&config, true), &device());
    let folder = tempfile::tempdir().unwrap();
    let [streamed, whole] = ["streamed", "whole"].map(|name| folder.path().join(name));
    stepper.model.save(&streamed, 3).unwrap();
    let dict = stepper.model.state_dict(3).unwrap();
    dict.write(&whole).unwrap();
    assert!(std::fs::read(&streamed).unwrap() == std::fs::read(&whole).unwrap());
    assert_eq!(StateDict::read(&streamed).unwrap(), dict);
}

/// WebFace12M's 617,970 classes by 512 floats: tables of 1.2 GiB each, in ten bindings where one holds 128 MiB.
#[test]
fn a_step_with_the_classes_of_webface12m() {
    const CLASSES: usize = 617_970;
    const DIM: usize = 512;
    let mut config = tiny(true);
    config.model.embedding = DIM;
    config.head.form = HeadForm::Tiled;
    let device = fresh_device();
    let options = step_options(&config, true);
    let model = Model::allocate(spec_of(&config, CLASSES).unwrap(), &device).unwrap();
    initialize(&model.spec.parameters, &model.store, 1).unwrap();
    // Rows of one pattern with a shift of their own, which costs less to make than noise.
    let pattern: Vec<f32> = (0..9973u32).map(|i| ((i * 7919) % 9973) as f32 / 9973.0 - 0.5).collect();
    const ROWS: usize = 8192;
    for (table, shift) in [(HEAD_WEIGHT, 1usize), (HEAD_QUEUE, 5000)] {
        for first in (0..CLASSES).step_by(ROWS) {
            let count = ROWS.min(CLASSES - first) * DIM;
            let values: Vec<f32> =
                pattern.iter().cycle().skip((first * 31 + shift) % 9973).take(count).copied().collect();
            let offset = (first * DIM * 4) as u64;
            model.store.write_range(table, offset, bytemuck::cast_slice(&values)).unwrap();
        }
    }
    let recorded = record_step(&model.spec, &options).unwrap();
    let session = Session::new(&recorded.graph, &model.store, SessionOptions::default()).unwrap();
    let tables = 3 * (CLASSES * DIM * 4) as u64;
    let planned = session.plan().memory.total();
    assert!(planned < tables + (64 << 20), "{planned} bytes for tables of {tables}");
    let class_of = [0, 65_535, 65_536, 300_001, 617_968, 617_969];
    let mut stepper = Stepper {
        model,
        inputs: recorded.inputs,
        session,
        sampler: None,
        lr: 0.1,
        written: 0,
        last_labels: Vec::new(),
        class_of,
    };
    let rows = [0, 1, 65_535, 65_536, 300_001, 300_002, 617_968, 617_969];
    let read = |stepper: &Stepper| stepper.model.prototype_rows(&rows).unwrap();
    let before = read(&stepper);
    let result = stepper.step([1, 0]);
    assert!(result.loss.is_finite() && result.loss > 1.0, "{}", result.loss);
    assert!(result.grad_norm > 0.0 && result.nonfinite == 0, "{}", result.grad_norm);
    let after = read(&stepper);
    let moved =
        |a: &[f32], b: &[f32], row: usize| a[row * DIM..(row + 1) * DIM] != b[row * DIM..(row + 1) * DIM];
    let (queue_before, queue_after) = (before.queue.unwrap(), after.queue.unwrap());
    for (index, class) in rows.into_iter().enumerate() {
        // Decay alone moves every row of W; Q moves for the classes of the batch.
        assert!(moved(&before.weight, &after.weight, index), "W of class {class}");
        assert_eq!(
            moved(&queue_before, &queue_after, index),
            class_of.contains(&class),
            "Q of class {class}"
        );
    }
}
