//! Steps whose loss or gradient is not finite.

use std::sync::Arc;

use epl::config::{Config, HeadKind, NonFinite, Schedule};
use epl::data::{Batch, Dataset, InMemory, Loader, LoaderOptions};
use epl::head::HeadForm;
use epl::interchange::safetensors::{StateDict, Value};
use epl::interchange::tensor_file::{TensorFile, TensorSource};
use epl::model::{HEAD_MOMENTUM, HEAD_QUEUE, HEAD_WEIGHT, Model};
use epl::train::metrics::{self, Record};
use epl::train::step::{StepOptions, StepResult, record_step};
use epl::train::trainer::{spec_of, step_options};
use epl::train::{RunOptions, Silent, run_on};
use epl::{Error, Result};
use epl_runtime::{Session, SessionOptions};

use super::{BATCH, Heard, config, device, faces, head};

/// Grey pictures, of which these few are magenta: with the weights of [`overflowing`] every batch that has one overflows.
const MAGENTA: [usize; 3] = [5, 17, 40];
const IMAGES: usize = 96;

fn grey_and_magenta() -> Arc<dyn Dataset> {
    let colour = |index: usize| {
        let grey = 100 + (index % 50) as u8;
        if MAGENTA.contains(&index) { [255, 0, 255] } else { [grey; 3] }
    };
    let picture = |index: usize| colour(index).repeat(256);
    let samples = (0..IMAGES).map(|index| (picture(index), index as u32 % 6)).collect();
    Arc::new(InMemory::new([16, 16], samples, None).unwrap())
}

/// Two epochs of those pictures, in which the first convolution of a magenta one is beyond the range of f32.
fn overflowing(folder: &std::path::Path, form: HeadForm) -> Config {
    let plain = config(&folder.join("plain"), head(HeadKind::CosFace, true), 1);
    run_on(plain.clone(), &device(), faces(), Vec::new(), &RunOptions::default(), &mut Silent).unwrap();
    let mut dict = StateDict::read(&plain.train.out.join("model.safetensors")).unwrap();
    let Some((_, Value::F32(weights))) = dict.tensors.get_mut("conv1.weight") else { panic!("no conv1") };
    // The difference of red and green, times a power of two: exactly 0 for grey.
    weights.fill(0.0);
    for filter in weights.chunks_exact_mut(27) {
        (filter[4], filter[9 + 4]) = (2f32.powi(127), -(2f32.powi(127)));
    }
    let init = folder.join("huge.safetensors");
    dict.write(&init).unwrap();
    let mut config = config(&folder.join("run"), head(HeadKind::CosFace, true), 2);
    config.head.form = form;
    config.model.init = Some(init);
    // So that nothing moves the weights of the first layer.
    config.optim.weight_decay = 0.0;
    config.optim.lr = 1e-3;
    config.data.augment = Vec::new();
    config
}

/// The batches of an epoch that have a magenta picture: their numbers.
fn batches_with_magenta(config: &Config, epoch: u32) -> Vec<u64> {
    let options =
        LoaderOptions { batch_size: BATCH, seed: config.train.seed, shuffle: true, augment: Vec::new() };
    let loader = Loader::new(grey_and_magenta(), options).unwrap();
    let batches = loader.epoch(epoch, 0).unwrap().map(|batch| batch.unwrap().indices);
    let magenta = |indices: &Vec<usize>| indices.iter().any(|index| MAGENTA.contains(index));
    (0..).zip(batches).filter(|(_, indices)| magenta(indices)).map(|(number, _)| number).collect()
}

fn refusal(config: Config) -> (Error, Heard) {
    let mut heard = Heard::default();
    let ended: Result<_> =
        run_on(config, &device(), grey_and_magenta(), Vec::new(), &RunOptions::default(), &mut heard);
    (ended.map(|_| ()).unwrap_err(), heard)
}

#[test]
fn the_step_the_op_and_the_samples_are_named() {
    for form in [HeadForm::Materialized, HeadForm::Tiled] {
        let folder = tempfile::tempdir().unwrap();
        let config = overflowing(folder.path(), form);
        let first = batches_with_magenta(&config, 1)[0];
        let (error, _) = refusal(config.clone());
        let message = error.to_string();
        assert_eq!(error.exit_code(), 1);
        let place = format!("step {} (epoch 1): found the loss is NaN; first, conv2d", first + 1);
        assert!(message.starts_with(&place), "{place} is not in {message}");
        assert!(message.contains("conv1") && message.contains("= inf"), "{message}");
        assert!(message.contains("(label ") && message.contains("8 more"), "{message}");
        let hint = error.hint().unwrap();
        for part in ["nonfinite.json", "0.001", "clip_norm", "nonfinite = \"skip\"", "--resume"] {
            assert!(hint.contains(part), "{part} is not in {hint}");
        }
        let text = std::fs::read_to_string(config.train.out.join("nonfinite.json")).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["step"], first + 1);
        assert_eq!(report["samples"].as_array().unwrap().len(), BATCH);
    }
}

#[test]
fn what_is_skipped_is_counted_and_leaves_nothing_that_is_not_finite() {
    for form in [HeadForm::Materialized, HeadForm::Tiled] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = overflowing(folder.path(), form);
        config.train.nonfinite = NonFinite::Skip;
        let expected = [1, 2].map(|epoch| batches_with_magenta(&config, epoch).len() as u64);
        let mut heard = Heard::default();
        let options = RunOptions::default();
        let outcome =
            run_on(config.clone(), &device(), grey_and_magenta(), Vec::new(), &options, &mut heard).unwrap();
        assert_eq!(outcome.skipped, expected[0] + expected[1]);
        assert!(outcome.loss.is_finite());
        let left_out = heard.0.iter().filter(|line| line.contains("was left out")).count() as u64;
        assert_eq!(left_out, outcome.skipped, "{:?}", heard.0);
        let mut steps = Vec::new();
        for record in metrics::read(&config.train.out.join("metrics.jsonl")).unwrap() {
            if let Record::Step(point) = record {
                steps.push(point);
            }
        }
        assert_eq!(steps.last().unwrap().skipped, outcome.skipped);
        let lost = steps.iter().filter(|point| point.loss.is_nan()).count() as u64;
        assert_eq!(lost, outcome.skipped, "a step that was left out has no loss");
        // Nothing that outlives a step has been touched by it.
        let file = TensorFile::open(&config.train.out.join("model.safetensors")).unwrap();
        for name in file.names().filter(|name| file.shape(name).is_some()) {
            let values = file.floats_of(name).unwrap();
            assert!(values.iter().all(|value| value.is_finite()), "{name}");
        }
    }
}

#[test]
fn weights_that_have_gone_astray_end_the_run_even_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder.path().join("run"), head(HeadKind::CosFace, false), 100);
    config.train.nonfinite = NonFinite::Skip;
    config.optim.lr = 1e30;
    config.optim.schedule = Schedule::Constant;
    let mut heard = Heard::default();
    let ended = run_on(config, &device(), faces(), Vec::new(), &RunOptions::default(), &mut heard);
    let message = ended.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("the last of 50 such steps in a row"), "{message}");
    assert_eq!(heard.0.iter().filter(|line| line.contains("was left out")).count(), 49);
}

#[test]
fn a_run_whose_last_epoch_was_skipped_is_no_success() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder.path().join("run"), head(HeadKind::CosFace, false), 3);
    config.train.nonfinite = NonFinite::Skip;
    config.optim.lr = 1e30;
    let ended = run_on(config, &device(), faces(), Vec::new(), &RunOptions::default(), &mut Silent);
    let message = ended.map(|_| ()).unwrap_err().to_string();
    assert!(message.contains("epoch 3, the last one: found not one step that was finite"), "{message}");
    assert!(!folder.path().join("run/model.safetensors").exists());
}

/// Everything that the optimiser moves, as bits.
fn optimised(model: &Model) -> Vec<u32> {
    let parameters = &model.spec.parameters;
    let trained = parameters.entries().iter().filter(|entry| entry.spec.role.is_trained());
    let mut values: Vec<f32> = trained
        .flat_map(|entry| {
            let name = &entry.spec.name;
            let momentum = parameters.read_momentum(&model.store, name).unwrap();
            parameters.read(&model.store, name).unwrap().into_iter().chain(momentum)
        })
        .collect();
    for table in [HEAD_WEIGHT, HEAD_MOMENTUM] {
        values.extend(model.store.read(table).unwrap().into_f32().unwrap());
    }
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_step_that_is_not_finite_moves_no_weight_and_no_momentum() {
    for form in [HeadForm::Materialized, HeadForm::Tiled] {
        for (clip_norm, clip_head, halt) in [(0.0, true, true), (1.0, true, false), (1.0, false, false)] {
            let folder = tempfile::tempdir().unwrap();
            let config = overflowing(folder.path(), form);
            let model = Model::new(spec_of(&config, 6).unwrap(), &device(), 1).unwrap();
            model.load(&TensorFile::open(config.model.init.as_ref().unwrap()).unwrap(), "weights").unwrap();
            let options = StepOptions { clip_norm, clip_head, halt, ..step_options(&config, true) };
            let recorded = record_step(&model.spec, &options).unwrap();
            let mut session = Session::new(&recorded.graph, &model.store, SessionOptions::default()).unwrap();
            let mut step = |magenta: bool, number: u64| {
                let picture = |i: usize| {
                    let pixel = if magenta && i == 3 { [255, 0, 255] } else { [90 + i as u8; 3] };
                    pixel.repeat(256)
                };
                let batch = Batch {
                    images: (0..BATCH).flat_map(picture).collect(),
                    labels: (0..BATCH as u32).map(|i| i % 6).collect(),
                    mirror: vec![0; BATCH],
                    indices: Vec::new(),
                    epoch: 1,
                    number: 0,
                };
                recorded.inputs.write(&mut session, &batch, number, 1, 0.01, None).unwrap();
                session.step().unwrap();
                StepResult::unpack(&session.flush().unwrap()[0].values).unwrap()
            };
            assert!(step(false, 0).is_finite());
            let before = optimised(&model);
            let prototype = |class: usize| {
                model.store.read_rows(HEAD_QUEUE, &[class as u32]).unwrap().into_f32().unwrap()
            };
            assert!(!step(true, 1).is_finite());
            assert!(optimised(&model) == before, "{form:?} {clip_norm} {clip_head}: something moved");
            // Of the class of the bad sample alone: the last of the others came after it.
            assert!((0..6).all(|class| prototype(class).iter().all(|value| value.is_finite())));
            let after = step(false, 2);
            assert!(after.is_finite());
            assert_eq!(
                optimised(&model) == before,
                halt,
                "after a bad step nothing moves where the run halts"
            );
        }
    }
}
