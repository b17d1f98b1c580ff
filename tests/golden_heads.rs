//! Every head against numbers made by running the released PyTorch code (`tests/fixtures/golden/README.md`): first
//! the recorded graph through the references in f64, then on the GPU.
//!
//! The promise that is kept here: the loss within 1e-5 relative, gradients within 1e-4 in norm, prototypes within 1e-5.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use epl::head::{
    ArcMode, Duplicates, EplSettings, EplUpdate, HeadForm, HeadInputs, HeadKind, HeadPass, HeadSettings,
    head_loss, initial_bias,
};
use epl_runtime::autodiff::backward;
use epl_runtime::interpret::{Values, interpret};
use epl_runtime::ops::sgd::Sgd;
use epl_runtime::{
    Array, Device, DeviceOptions, Graph, HostTensor, Session, SessionOptions, Store, TensorDesc, TensorId,
};
use safetensors::{Dtype, SafeTensors};

/// The files, and what their metadata does not say: the head and how its prototypes are updated.
const FILES: [(&str, HeadKind, EplUpdate); 14] = [
    ("arcface", HeadKind::ArcFace, EplUpdate::Softsign),
    ("arcface_epl", HeadKind::ArcFace, EplUpdate::Softsign),
    ("arcface_epl_before_start", HeadKind::ArcFace, EplUpdate::Softsign),
    ("arcface_epl_duplicate_labels", HeadKind::ArcFace, EplUpdate::Softsign),
    ("cosface", HeadKind::CosFace, EplUpdate::Softsign),
    ("cosface_epl", HeadKind::CosFace, EplUpdate::Softsign),
    ("cosface_epl_before_start", HeadKind::CosFace, EplUpdate::Softsign),
    ("cosface_epl_direct", HeadKind::CosFace, EplUpdate::Direct),
    ("cosface_epl_duplicate_labels", HeadKind::CosFace, EplUpdate::Softsign),
    ("cosface_epl_sigmoid", HeadKind::CosFace, EplUpdate::Sigmoid),
    ("uniface", HeadKind::UniFace, EplUpdate::Softsign),
    ("uniface_epl", HeadKind::UniFace, EplUpdate::Softsign),
    ("uniface_epl_before_start", HeadKind::UniFace, EplUpdate::Softsign),
    ("uniface_epl_duplicate_labels", HeadKind::UniFace, EplUpdate::Softsign),
];

/// The file that is a training run and not a head.
const TRAINING: &str = "tiny_ir_training";

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden")
}

/// One file.
struct Golden {
    name: &'static str,
    settings: HeadSettings,
    active: bool,
    tensors: HashMap<String, HostTensor>,
}

impl Golden {
    fn read((name, kind, update): (&'static str, HeadKind, EplUpdate)) -> Self {
        let path = folder().join(format!("{name}.safetensors"));
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = header.metadata().clone().unwrap();
        let mut tensors = HashMap::new();
        let mut epoch = 0;
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let words: Vec<u32> =
                view.data().chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let shape = view.shape().to_vec();
            let tensor = match view.dtype() {
                Dtype::F32 => HostTensor::from_f32(shape, words.iter().map(|&w| f32::from_bits(w)).collect()),
                Dtype::I32 => HostTensor::from_u32(shape, words.clone()),
                other => panic!("{}: {name} is {other:?}", path.display()),
            };
            if name == "epoch" {
                epoch = words[0];
            } else {
                tensors.insert(name.to_owned(), tensor.unwrap());
            }
        }

        let mut settings = HeadSettings {
            kind,
            margin: metadata["margin"].parse().unwrap(),
            scale: metadata["scale"].parse().unwrap(),
            arc_mode: match metadata["mode"].as_str() {
                "easy_margin" => ArcMode::Easy,
                "" | "characteristic_gradient_detachment" => ArcMode::StraightThrough,
                other => panic!("{}: unknown mode {other}", path.display()),
            },
            ..HeadSettings::default()
        };
        let mut active = false;
        if tensors.contains_key("queue_in") {
            let epl = EplSettings {
                update,
                duplicates: Duplicates::Last,
                k: metadata["k"].parse().unwrap(),
                ..EplSettings::default()
            };
            // The file counts epochs from 0.
            active = epoch + 1 >= epl.start_epoch;
            settings.epl = Some(epl);
        }
        Self { name, settings, active, tensors }
    }

    fn tensor(&self, name: &str) -> &HostTensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("{} has no tensor {name}", self.name))
    }

    /// The tensors that a step must give: the loss, the gradients and the prototypes.
    fn check(&self, found: &HashMap<&'static str, Array>) {
        let expected: BTreeSet<&str> = self
            .tensors
            .keys()
            .map(String::as_str)
            .filter(|name| *name == "loss" || *name == "queue_out" || name.starts_with("grad_"))
            .collect();
        assert_eq!(found.keys().copied().collect::<BTreeSet<_>>(), expected, "{}", self.name);
        for (&name, found) in found {
            let want = Array::from(self.tensor(name));
            assert_eq!(found.shape, want.shape, "{}: {name}", self.name);
            let pairs = || found.data.iter().zip(&want.data);
            let norm = want.data.iter().map(|v| v * v).sum::<f64>().sqrt();
            let (error, allowed) = match name {
                "loss" => ((found.item() - want.item()).abs() / want.item().abs(), 1e-5),
                "queue_out" => (pairs().map(|(a, b)| (a - b).abs()).fold(0.0, nan_max), 1e-5),
                _ => (pairs().map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt() / norm, 1e-4),
            };
            println!("{} {name}: {error:.1e}", self.name);
            // A NaN compares false, and so fails.
            assert!(error <= allowed, "{}: {name} is off by {error:e}, allowed {allowed:e}", self.name);
        }
    }
}

/// The larger of two, and NaN where either is.
fn nan_max(a: f64, b: f64) -> f64 {
    if a >= b { a } else { b }
}

/// A head recorded with its gradients: what goes in and what comes out, by the names of the files.
struct Recorded {
    graph: Graph,
    inputs: Vec<(&'static str, TensorId)>,
    outputs: Vec<(&'static str, TensorId)>,
}

/// How the classes are walked: all at once, or in tiles of so many.
type Form = Option<usize>;

/// The classes of the files, 20, at once, in one tile, in several of which the last is shorter, and two at a time.
const FORMS: [Form; 4] = [None, Some(64), Some(6), Some(2)];

fn record(golden: &Golden, form: Form) -> Recorded {
    let mut graph = Graph::new();
    let mut inputs = Vec::new();
    let mut add = |graph: &mut Graph, name| {
        let id = graph.persistent(name, golden.tensor(name).desc(), "test").unwrap();
        inputs.push((name, id));
        id
    };
    let head = HeadInputs {
        embedding: add(&mut graph, "x"),
        labels: add(&mut graph, "labels"),
        weight: add(&mut graph, "weight"),
        queue: golden.settings.epl.map(|_| add(&mut graph, "queue_in")),
        bias: (golden.settings.kind == HeadKind::UniFace).then(|| add(&mut graph, "bias")),
        sampled: None,
    };
    let mut settings = golden.settings;
    settings.form = if form.is_some() { HeadForm::Tiled } else { HeadForm::Materialized };
    let pass = HeadPass { empirical_branch: golden.active, tile: form };
    let result = head_loss(&mut graph, head, &settings, pass).unwrap();
    assert_eq!(result.empirical_cosine.is_some(), golden.settings.epl.is_some(), "{}", golden.name);
    assert_eq!(result.prototypes.is_some(), form.is_some());
    let trained: Vec<(&'static str, TensorId)> = [
        Some(("grad_x", head.embedding)),
        result.prototypes.is_none().then_some(("grad_weight", head.weight)),
        head.bias.map(|bias| ("grad_bias", bias)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let wrt: Vec<TensorId> = trained.iter().map(|&(_, id)| id).collect();
    let gradients = backward(&mut graph, result.loss, &wrt).unwrap();
    let mut outputs = vec![("loss", result.loss)];
    outputs.extend(trained.iter().zip(gradients).map(|(&(name, _), id)| (name, id)));
    outputs.extend(head.queue.map(|queue| ("queue_out", queue)));
    if let Some(prototypes) = result.prototypes {
        // Without momentum and decay, the velocity after the step is the gradient.
        let velocity = graph.persistent("velocity", golden.tensor("weight").desc(), "test").unwrap();
        let lr = graph.persistent("lr", TensorDesc::f32([1]), "test").unwrap();
        let rule = Sgd { momentum: 0.0, weight_decay: 0.0, floor: None };
        prototypes.apply(&mut graph, velocity, lr, rule, None).unwrap();
        outputs.push(("grad_weight", velocity));
    }
    Recorded { graph, inputs, outputs }
}

fn by_reference(golden: &Golden, form: Form) -> HashMap<&'static str, Array> {
    let Recorded { graph, inputs, outputs } = record(golden, form);
    let mut values = Values::new();
    for name in ["velocity", "lr"] {
        if let Some(id) = graph.find(name) {
            values.set(&graph, id, Array::zeros(graph.tensor(id).desc.shape.clone())).unwrap();
        }
    }
    for (name, id) in inputs {
        values.set(&graph, id, Array::from(golden.tensor(name))).unwrap();
    }
    interpret(&graph, &mut values).unwrap();
    outputs.into_iter().map(|(name, id)| (name, values.get(&graph, id).unwrap())).collect()
}

fn on_gpu(golden: &Golden, form: Form, device: &Arc<Device>) -> HashMap<&'static str, HostTensor> {
    let Recorded { mut graph, inputs, outputs } = record(golden, form);
    for &(_, id) in &outputs {
        graph.keep(id);
    }
    let store = Store::new(device);
    let options = SessionOptions { poison: true, ..SessionOptions::default() };
    let mut session = Session::new(&graph, &store, options).unwrap();
    for (name, _) in inputs {
        store.write(name, golden.tensor(name)).unwrap();
    }
    session.run(&[]).unwrap();
    outputs.into_iter().map(|(name, id)| (name, session.read(id).unwrap())).collect()
}

#[test]
fn every_file_is_used() {
    let found: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".safetensors").map(str::to_owned))
        .collect();
    let used = FILES.iter().map(|(name, ..)| *name).chain([TRAINING]).map(str::to_owned).collect();
    assert_eq!(found, used);
}

#[test]
fn references_match_the_released_code() {
    for file in FILES {
        let golden = Golden::read(file);
        for form in FORMS {
            golden.check(&by_reference(&golden, form));
        }
    }
}

#[test]
fn the_gpu_matches_the_released_code_and_repeats_itself() {
    let device = Device::open(&DeviceOptions::default()).expect("a GPU, or a software Vulkan driver");
    for file in FILES {
        let golden = Golden::read(file);
        for form in FORMS {
            let found = on_gpu(&golden, form, &device);
            golden.check(&found.iter().map(|(&name, value)| (name, Array::from(value))).collect());
            let again = on_gpu(&golden, form, &device);
            for (name, value) in &found {
                let same = value.bytes() == again[name].bytes();
                assert!(same, "{}, {form:?}: {name} is not the same twice", golden.name);
            }
        }
    }
}

#[test]
fn unifaces_bias_starts_at_the_logarithm_of_ten_times_the_classes() {
    assert!((initial_bias(10_572) - 11.568_55).abs() < 1e-4);
}

#[test]
fn a_head_says_what_it_lacks() {
    let golden = Golden::read(("uniface_epl", HeadKind::UniFace, EplUpdate::Softsign));
    let mut graph = Graph::new();
    let mut add = |name| graph.persistent(name, golden.tensor(name).desc(), "test").unwrap();
    let complete = HeadInputs {
        embedding: add("x"),
        labels: add("labels"),
        weight: add("weight"),
        queue: Some(add("queue_in")),
        bias: Some(add("bias")),
        sampled: None,
    };
    let plain = HeadSettings { epl: None, ..golden.settings };
    let mut fails = |inputs, settings: &HeadSettings, active, what: &str| {
        let pass = HeadPass { empirical_branch: active, tile: None };
        let error = head_loss(&mut graph, inputs, settings, pass).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(error.hint().is_some(), "{error}");
    };
    fails(HeadInputs { queue: None, ..complete }, &golden.settings, false, "no empirical prototypes");
    fails(HeadInputs { bias: None, ..complete }, &golden.settings, false, "no bias");
    fails(complete, &plain, true, "without EPL");
}
