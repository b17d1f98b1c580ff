//! Steps of several batches: the same as one large batch.

use epl::config::{Config, HeadKind};
use epl::head::{Duplicates, HeadForm};
use epl::model::{HEAD_BIAS, HEAD_MOMENTUM, HEAD_QUEUE, HEAD_WEIGHT, Model};
use epl::train::step::{StepOptions, StepResult, class_sampler, record_step};
use epl::train::trainer::{spec_of, step_options};
use epl::train::{RunOptions, Silent, run_on};
use epl_runtime::{Caps, Plan, PlanOptions, Session, SessionOptions};

use super::{config, device, faces, head};

/// Different images of a step.
const IMAGES: usize = 5;
/// How often each of them is in it, under several labels.
const COPIES: usize = 3;
const CLASSES: usize = 30;

/// Takes three steps on `COPIES` times the same images, in batches of `batch`, and returns the results and everything
/// that was trained. Batch normalisation sees the same statistics in each copy, so that it does not tell them apart.
fn three_steps(config: &Config, batch: usize) -> (Vec<StepResult>, Vec<(String, Vec<f32>)>) {
    let accumulate = IMAGES * COPIES / batch;
    let options = StepOptions { batch, accumulate, ..step_options(config, config.head.epl.is_some()) };
    let model = Model::new(spec_of(config, CLASSES).unwrap(), &device(), 3).unwrap();
    let recorded = record_step(&model.spec, &options).unwrap();
    let mut session = Session::new(
        &recorded.graph,
        &model.store,
        SessionOptions { poison: true, ..SessionOptions::default() },
    )
    .unwrap();
    let sampler = class_sampler(&model.spec, &options);
    let inputs = recorded.inputs;
    let mut results = Vec::new();
    for step in 0..3u32 {
        let data = faces();
        let images: Vec<u8> = (0..IMAGES)
            .flat_map(|i| data.load((11 * i + 17 * step as usize) % data.len()).unwrap().rgb)
            .collect();
        // The copies have other labels, some of which come twice.
        let labels: Vec<u32> =
            (0..IMAGES * COPIES).map(|i| ((i * i + 7 * step as usize) % CLASSES) as u32).collect();
        let mirror: Vec<u32> = (0..IMAGES * COPIES).map(|i| (i % IMAGES % 2) as u32).collect();
        session.write(inputs.images.bytes, &images.repeat(COPIES)).unwrap();
        session.write(inputs.images.mirror, bytemuck::cast_slice(&mirror)).unwrap();
        session.write(inputs.labels, bytemuck::cast_slice(&labels)).unwrap();
        if let (Some(sampled), Some(sampler)) = (inputs.sampled, &sampler) {
            let sample = sampler.sample(u64::from(step), &labels).unwrap();
            session.write(sampled.classes, bytemuck::cast_slice(&sample.classes)).unwrap();
            session.write(sampled.positions, bytemuck::cast_slice(&sample.positions)).unwrap();
        }
        session.write(inputs.lr, bytemuck::bytes_of(&0.05f32)).unwrap();
        session.write(inputs.seed, bytemuck::cast_slice(&[1, step])).unwrap();
        session.step().unwrap();
        results.push(StepResult::unpack(&session.flush().unwrap()[0].values).unwrap());
    }
    let mut trained = Vec::new();
    for entry in model.spec.parameters.entries().iter().filter(|entry| entry.spec.role.is_trained()) {
        let name = &entry.spec.name;
        trained.push((name.clone(), model.spec.parameters.read(&model.store, name).unwrap()));
        trained.push((
            format!("{name}.momentum"),
            model.spec.parameters.read_momentum(&model.store, name).unwrap(),
        ));
    }
    for table in
        [Some(HEAD_WEIGHT), Some(HEAD_MOMENTUM), config.head.epl.map(|_| HEAD_QUEUE)].into_iter().flatten()
    {
        trained.push((table.into(), model.store.read(table).unwrap().into_f32().unwrap()));
    }
    (results, trained)
}

/// Fails unless `found` is `expected` up to the rounding of other orders of summation.
fn near(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let rms = (expected.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / expected.len() as f64).sqrt();
    for (a, b) in found.iter().zip(expected) {
        let error = f64::from((a - b).abs());
        assert!(error <= tolerance * rms.max(f64::from(b.abs())) + 1e-6, "{what}: {a} instead of {b}");
    }
}

#[test]
fn several_batches_are_one_large_batch() {
    let epl = |kind, form| {
        let mut config = config("nowhere".as_ref(), head(kind, true), 1);
        config.head.form = form;
        config
    };
    let mut clipped = epl(HeadKind::CosFace, HeadForm::Tiled);
    clipped.optim.clip_norm = 0.5;
    let mut sequential = epl(HeadKind::ArcFace, HeadForm::Materialized);
    sequential.head.epl.as_mut().unwrap().duplicates = Duplicates::Sequential;
    let mut sampled = epl(HeadKind::CosFace, HeadForm::Tiled);
    sampled.head.sample_rate = 0.7;
    let plain = config("nowhere".as_ref(), head(HeadKind::Softmax, false), 1);
    let mut backbone = epl(HeadKind::UniFace, HeadForm::Materialized);
    (backbone.optim.clip_norm, backbone.optim.clip_head) = (0.5, false);
    for config in [
        epl(HeadKind::CosFace, HeadForm::Materialized),
        clipped,
        sequential,
        sampled,
        plain,
        epl(HeadKind::UniFace, HeadForm::Tiled),
        backbone,
    ] {
        let (large, expected) = three_steps(&config, IMAGES * COPIES);
        let (small, found) = three_steps(&config, IMAGES);
        let name = format!("{:?} {:?}", config.head.kind, config.head.form);
        for (step, (a, b)) in small.iter().zip(&large).enumerate() {
            // Training amplifies the rounding of other orders of summation from step to step.
            near(&format!("{name} loss"), &[a.loss], &[b.loss], [2e-6, 1e-4, 1e-4][step]);
            near(&format!("{name} norm"), &[a.grad_norm], &[b.grad_norm], 1e-4);
            near(&format!("{name} cosines"), &a.target_cosine, &b.target_cosine, 1e-4);
            near(&format!("{name} cosines"), &a.cosine_before_update, &b.cosine_before_update, 1e-4);
            assert_eq!((a.nonfinite, b.nonfinite), (0, 0));
        }
        assert!(
            expected.iter().any(|(name, _)| name == HEAD_BIAS) == (config.head.kind == HeadKind::UniFace)
        );
        for ((tensor, a), (_, b)) in found.iter().zip(&expected) {
            near(&format!("{name} {tensor}"), a, b, 2e-3);
        }
    }
}

#[test]
fn a_step_of_many_batches_needs_the_activations_of_one() {
    let mut config = config("nowhere".as_ref(), head(HeadKind::CosFace, true), 1);
    config.model.input = [48, 48];
    let spec = spec_of(&config, CLASSES).unwrap();
    let slots = |batch: usize, accumulate: usize| {
        let options = StepOptions { batch, accumulate, ..step_options(&config, true) };
        let recorded = record_step(&spec, &options).unwrap();
        Plan::new(&recorded.graph, &Caps::WEBGPU, PlanOptions::default()).unwrap().memory.slots as f64
    };
    let (one, many, large) = (slots(16, 1), slots(16, 8), slots(128, 1));
    assert!(many < 1.2 * one, "{many} bytes for eight batches, {one} for one");
    assert!(large > 6.0 * one, "{large} bytes for a large one");
}

#[test]
fn a_run_accumulates() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder.path().join("run"), head(HeadKind::CosFace, true), 3);
    config.train.batch_size = 6;
    config.train.accumulate = 4;
    config.model.dropout = 0.3;
    let outcome =
        run_on(config.clone(), &device(), faces(), Vec::new(), &RunOptions::default(), &mut Silent).unwrap();
    assert_eq!(outcome.steps, 3 * 2, "48 images in steps of 24");
    assert!(outcome.loss.is_finite());
}
