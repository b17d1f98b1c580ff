//! Whole runs.

use std::path::Path;
use std::sync::Arc;

use epl::config::{Config, HeadKind};
use epl::data::InMemory;
use epl::data::synth::{SynthConfig, draw_all};
use epl::interchange::safetensors::{StateDict, Value};
use epl::model::{Model, PrototypeRows};
use epl::report::{Percentiles, PrototypePoint, StepPoint};
use epl::train::metrics::{self, Record};
use epl::train::trainer::spec_of;
use epl::train::{Observer, Outcome, RunOptions, Silent, run_on};
use epl_runtime::Device;

use super::{Heard, IDENTITIES, STEPS_PER_EPOCH, config, device, faces, fresh_device, head, resolved};

pub(super) fn train(config: &Config, device: &Arc<Device>) -> Outcome {
    run_on(config.clone(), device, faces(), Vec::new(), &RunOptions::default(), &mut Silent).unwrap()
}

fn records(config: &Config) -> (Vec<StepPoint>, Vec<PrototypePoint>) {
    let (mut steps, mut prototypes) = (Vec::new(), Vec::new());
    for record in metrics::read(&config.train.out.join("metrics.jsonl")).unwrap() {
        match record {
            Record::Step(point) => steps.push(point),
            Record::Prototypes(point) => prototypes.push(*point),
            Record::Eval(point) => panic!("there is no verification set to evaluate: {point:?}"),
        }
    }
    (steps, prototypes)
}

/// Mean of the logged losses of an epoch.
fn epoch_loss(steps: &[StepPoint], epoch: u32) -> f64 {
    let losses: Vec<f64> =
        steps.iter().filter(|point| point.epoch == epoch).map(|point| point.loss).collect();
    assert_eq!(losses.len() as u64, STEPS_PER_EPOCH);
    losses.iter().sum::<f64>() / losses.len() as f64
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let weights = |seed: u64| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&folder.path().join("run"), head(HeadKind::CosFace, true), 2);
        config.head.epl.as_mut().unwrap().start_epoch = 2;
        config.model.dropout = 0.3;
        config.optim.clip_norm = 5.0;
        config.train.seed = seed;
        train(&config, &fresh_device());
        std::fs::read(config.train.out.join("model.safetensors")).unwrap()
    };
    let first = weights(1);
    assert!(first == weights(1), "two runs of one seed differ");
    assert!(first != weights(2), "the seed changes nothing");
}

#[test]
fn the_last_step_is_logged_whatever_the_interval() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder.path().join("run"), head(HeadKind::CosFace, true), 1);
    config.train.log_every = 3;
    train(&config, &device());
    let logged = |config: &Config| records(config).0.iter().map(|point| point.step).collect::<Vec<_>>();
    assert_eq!(logged(&config), [3, STEPS_PER_EPOCH]);
    config.train.out = folder.path().join("short");
    config.train.max_steps = 2;
    train(&config, &device());
    assert_eq!(logged(&config), [2]);
}

/// What a finished run must have left in its folder.
fn check_folder(config: &Config, outcome: &Outcome) {
    let out = &config.train.out;
    assert_eq!(resolved(out, config), *config);
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("<svg") && page.trim_end().ends_with("</html>"), "a page with charts");

    let dict = StateDict::read(&out.join("model.safetensors")).unwrap();
    let (width, dimension, classes) = (config.model.width, config.model.embedding, IDENTITIES as usize);
    let shape = |name: &str| {
        dict.floats(name).map(|(shape, values)| {
            assert!(values.iter().all(|value| value.is_finite()), "{name}");
            shape.to_vec()
        })
    };
    assert_eq!(shape("conv1.weight"), Some(vec![width, 3, 3, 3]));
    assert_eq!(shape("bn1.running_var"), Some(vec![width]));
    assert_eq!(shape("loss.weight"), Some(vec![classes, dimension]));
    assert_eq!(shape("loss.queue"), config.head.epl.map(|_| vec![classes, dimension]));
    assert_eq!(shape("loss.bias"), (config.head.kind == HeadKind::UniFace).then(|| vec![1]));
    let tracked = dict.tensors.get("bn1.num_batches_tracked").map(|(_, value)| value);
    assert_eq!(tracked, Some(&Value::I64(vec![outcome.steps as i64])));
    assert_eq!(dict.metadata.get("arch"), Some(&config.model.arch));

    let mut names: Vec<String> = std::fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["checkpoints", "run.lock"].contains(&name.as_str()))
        .filter(|name| !name.starts_with("events.out.tfevents."))
        .collect();
    names.sort();
    assert_eq!(names, ["config.toml", "metrics.jsonl", "model.safetensors", "report.html"]);
}

#[test]
fn every_head_learns_with_and_without_epl() {
    const EPOCHS: u32 = 15;
    let folder = tempfile::tempdir().unwrap();
    let device = device();
    for kind in [HeadKind::Softmax, HeadKind::CosFace, HeadKind::ArcFace, HeadKind::UniFace] {
        for epl in [false, true] {
            let name = format!("{kind:?} {epl}");
            let config = config(&folder.path().join(&name), head(kind, epl), EPOCHS);
            let outcome = train(&config, &device);
            assert_eq!((outcome.steps, outcome.epochs), (STEPS_PER_EPOCH * u64::from(EPOCHS), EPOCHS));
            let (steps, prototypes) = records(&config);
            assert_eq!(steps.len() as u64, outcome.steps, "{name}");
            assert!(steps.iter().all(|p| p.loss.is_finite() && p.grad_norm > 0.0), "{name}: {steps:?}");
            let (first, last) = (epoch_loss(&steps, 1), epoch_loss(&steps, EPOCHS));
            println!("{name}: {first:.3} -> {last:.3}; {:?}", prototypes.last());
            assert!((last - outcome.loss).abs() < 1e-9 * last.abs().max(1.0), "{name}: {last} {outcome:?}");
            assert!(last < 0.5 * first, "{name} does not learn: {first} -> {last}");
            assert_eq!(prototypes.len() as u32, EPOCHS);
            for point in &prototypes {
                assert!(point.cos_weight.abs() <= 1.001, "{name}: {point:?}");
                let means =
                    [point.cos_empirical, point.adaptive_margin, point.angle_degrees, point.drift_degrees];
                assert!(means.iter().all(|mean| mean.is_finite() == epl), "{name}: {point:?}");
                let spread = |mean: f64, percentiles: Option<Percentiles>| {
                    assert_eq!(percentiles.is_some(), mean.is_finite(), "{name}: {point:?}");
                    let ordered = percentiles.is_none_or(|values| values.is_sorted());
                    let around =
                        percentiles.is_none_or(|[low, .., high]| low <= high && (low..=high).contains(&mean));
                    assert!(ordered && around, "{name}: {mean} {percentiles:?}");
                };
                spread(point.cos_weight, point.cos_weight_percentiles);
                spread(point.cos_empirical, point.cos_empirical_percentiles);
                spread(point.adaptive_margin, point.adaptive_margin_percentiles);
                spread(point.angle_degrees, point.angle_degrees_percentiles);
                spread(point.drift_degrees, point.drift_degrees_percentiles);
                assert!((0.0..=1.0).contains(&point.hard_share), "{name}: {point:?}");
                // 48 samples, all of them in every epoch.
                assert_eq!(point.classes_unvisited, Some(0), "{name}");
            }
            let (before, after) = (&prototypes[0], &prototypes[EPOCHS as usize - 1]);
            assert!(after.cos_weight > before.cos_weight, "{name}: {before:?} {after:?}");
            assert!(after.hard_share < before.hard_share, "{name}: {before:?} {after:?}");
            // Q starts as noise, from which everything is about 90 degrees away, and settles.
            assert!(!epl || before.drift_degrees > 45.0, "{name}: {before:?}");
            assert!(!epl || after.drift_degrees < 0.5 * before.drift_degrees, "{name}: {after:?}");
            check_folder(&config, &outcome);
        }
    }
}

/// Bind groups that the device had made by the end of the first epoch and in the second.
struct Sessions {
    device: Arc<Device>,
    first: u64,
    second: u64,
}

impl Observer for Sessions {
    fn step(&mut self, point: &StepPoint) {
        if point.epoch == 2 {
            self.second = self.device.counters().bind_groups;
        }
    }
    fn epoch(&mut self, epoch: u32, _: f64, _: Option<&PrototypePoint>) {
        if epoch == 1 {
            self.first = self.device.counters().bind_groups;
        }
    }
}

#[test]
fn the_empirical_branch_joins_at_its_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, start_epoch: u32| {
        let mut config = config(&folder.path().join(name), head(HeadKind::CosFace, true), 2);
        config.head.epl.as_mut().unwrap().start_epoch = start_epoch;
        let device = fresh_device();
        let mut sessions = Sessions { device: device.clone(), first: 0, second: 0 };
        run_on(config.clone(), &device, faces(), Vec::new(), &RunOptions::default(), &mut sessions).unwrap();
        (sessions, config)
    };
    // Only sessions make bind groups.
    let (steady, _) = run("from the start", 1);
    assert_eq!(steady.first, steady.second, "one session for both epochs");
    let (switched, config) = run("from the second", 2);
    assert!(switched.second > switched.first, "a session of its own for the second epoch");

    let (steps, prototypes) = records(&config);
    // The empirical prototypes move from the first step on, and so are known before they count.
    for point in &prototypes {
        assert!(point.cos_empirical.is_finite() && point.adaptive_margin.is_finite());
        assert!(point.angle_degrees.is_finite());
    }
    assert_eq!(
        steps.iter().map(|p| p.step).collect::<Vec<_>>(),
        (1..=2 * STEPS_PER_EPOCH).collect::<Vec<_>>()
    );
}

#[test]
fn a_run_can_start_from_the_weights_of_another() {
    let folder = tempfile::tempdir().unwrap();
    let first = config(&folder.path().join("first"), head(HeadKind::CosFace, true), 8);
    train(&first, &device());
    let weights = first.train.out.join("model.safetensors");
    let mut second = config(&folder.path().join("second"), head(HeadKind::CosFace, true), 1);
    second.model.init = Some(weights.clone());
    train(&second, &device());
    let (of_first, _) = records(&first);
    let (of_second, _) = records(&second);
    // The head's weights come along, so that the loss goes on where it was, not where it began.
    let (start, end, on) = (epoch_loss(&of_first, 1), epoch_loss(&of_first, 8), epoch_loss(&of_second, 1));
    assert!(on < end + 0.25 * (start - end), "{start} -> {end}, then {on}");
    assert_same_names(&weights, &second.train.out.join("model.safetensors"));
}

#[test]
fn weights_are_tuned_on_other_identities() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = config(&folder.path().join("first"), head(HeadKind::CosFace, true), 1);
    train(&first, &device());
    let weights = first.train.out.join("model.safetensors");
    let stem = |path: &Path| StateDict::read(path).unwrap().floats("conv1.weight").unwrap().1.to_vec();
    let started = |config: &Config, identities: u32| {
        let settings = SynthConfig {
            seed: 9,
            identities,
            first_identity: 100,
            images_per_identity: 6,
            size: [16, 16],
            hard_share: 0.0,
            mislabelled_share: 0.0,
        };
        let faces = draw_all(&settings, &|_| {}).into_iter().map(|face| (face.rgb, face.label)).collect();
        let dataset = Arc::new(InMemory::new([16, 16], faces, None).unwrap());
        let mut heard = Heard::default();
        let options = RunOptions::default();
        run_on(config.clone(), &device(), dataset, Vec::new(), &options, &mut heard).unwrap();
        let lines = heard.0.into_iter().filter(|line| line.starts_with("starting from "));
        lines.collect::<Vec<_>>().join("\n")
    };
    // A rate at which nothing moves shows what a run begins with.
    let mut tuned = config(&folder.path().join("tuned"), head(HeadKind::CosFace, true), 1);
    tuned.model.init = Some(weights.clone());
    tuned.optim.lr = 1e-12;
    let said = started(&tuned, 4);
    assert!(said.contains("its network, and a new head of 4 identities; its own has 6"), "{said}");
    let result = tuned.train.out.join("model.safetensors");
    assert_eq!(stem(&result), stem(&weights));
    assert_eq!(StateDict::read(&result).unwrap().floats("loss.weight").unwrap().0, [4, 16]);

    // A backbone alone, and a head that only lacks what EPL adds.
    let mut dict = StateDict::read(&weights).unwrap();
    dict.tensors.remove("loss.queue");
    let without_queue = folder.path().join("plain.safetensors");
    dict.write(&without_queue).unwrap();
    tuned.train.out = folder.path().join("with EPL");
    tuned.model.init = Some(without_queue);
    let said = started(&tuned, 6);
    assert!(said.contains("network and head, but for loss.queue, which is new"), "{said}");
    dict.tensors.remove("loss.weight");
    let backbone = folder.path().join("backbone.safetensors");
    dict.write(&backbone).unwrap();
    tuned.train.out = folder.path().join("from the backbone");
    tuned.model.init = Some(backbone);
    let said = started(&tuned, 6);
    assert!(said.contains("a new head of 6 identities; it has none"), "{said}");

    first.train.out = folder.path().join("all of it");
    first.model.init = Some(weights);
    assert!(started(&first, 6).contains("network and head of 6 identities"));
}

fn assert_same_names(a: &Path, b: &Path) {
    let names = |path: &Path| StateDict::read(path).unwrap().tensors.into_keys().collect::<Vec<_>>();
    assert_eq!(names(a), names(b));
}

#[test]
fn rows_of_prototypes_are_those_of_the_state_dict() {
    const CLASSES: usize = 50;
    // Alone, neighbours, across a gap that is read through and one that is not, backwards, twice.
    let classes = [3, 4, 5, 9, 30, 49, 2, 2, 0];
    for epl in [true, false] {
        let config = config(Path::new("nowhere"), head(HeadKind::CosFace, epl), 1);
        let model = Model::new(spec_of(&config, CLASSES).unwrap(), &device(), 1).unwrap();
        let dict = model.state_dict(0).unwrap();
        let rows_of = |name: &str| {
            let (shape, values) = dict.floats(name)?;
            assert_eq!(shape, [CLASSES, config.model.embedding]);
            let row = |&class: &u32| &values[class as usize * shape[1]..][..shape[1]];
            Some(classes.iter().flat_map(row).copied().collect::<Vec<f32>>())
        };
        let expected =
            PrototypeRows { weight: rows_of("loss.weight").unwrap(), queue: rows_of("loss.queue") };
        assert_eq!(expected.queue.is_some(), epl);
        assert_eq!(model.prototype_rows(&classes).unwrap(), expected);
        let error = model.prototype_rows(&[1, CLASSES as u32]).unwrap_err().to_string();
        assert!(error.contains("class 50") && error.contains("below 50"), "{error}");
    }
}

#[test]
fn classes_that_were_not_seen_are_counted_down() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder.path().join("run"), head(HeadKind::CosFace, true), 2);
    // In the order of the data, half of the people come in the first two steps.
    config.data.shuffle = false;
    config.train.max_steps = 2;
    config.train.epochs = 1;
    train(&config, &device());
    let (_, prototypes) = records(&config);
    assert_eq!(prototypes[0].classes_unvisited, Some(u64::from(IDENTITIES) / 2), "{prototypes:?}");
}
