//! The two forms of a head against each other: the same loss, gradients and prototypes from the same inputs, for every
//! head, margin mode and update, with classes that fill no tile, labels in the first and the last one, at both sides of
//! an edge, and several samples of a class.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use epl::head::{
    ArcMode, Duplicates, EplSettings, EplUpdate, HeadForm, HeadInputs, HeadKind, HeadPass, HeadSettings,
    head_loss, initial_bias,
};
use epl_runtime::autodiff::backward;
use epl_runtime::case::{Input, normal};
use epl_runtime::ops::sgd::Sgd;
use epl_runtime::{Device, DeviceOptions, Graph, HostTensor, Session, SessionOptions, Store, TensorDesc};

const SAMPLES: usize = 13;
const CLASSES: usize = 203;
const DIM: usize = 20;
/// Tiles of 64 classes, the last of 11.
const TILE: usize = 64;
/// The first and the last class, both sides of two edges, and three classes that occur more than once.
const LABELS: [u32; SAMPLES] = [0, 202, 63, 64, 127, 128, 0, 202, 64, 191, 192, 5, 64];

/// What a step computes: loss, gradients of embeddings, prototypes and bias, and the empirical prototypes.
struct Computed {
    loss: f32,
    tensors: Vec<(&'static str, Vec<f32>)>,
}

fn compute(device: &Arc<Device>, settings: &HeadSettings, branch: bool, form: HeadForm) -> Computed {
    let mut graph = Graph::new();
    let table = TensorDesc::f32([CLASSES, DIM]);
    let mut inputs: Vec<(&str, HostTensor)> = Vec::new();
    let mut add = |graph: &mut Graph, name: &'static str, value: Input| {
        let value = value.tensor();
        let id = graph.persistent(name, value.desc(), "test").unwrap();
        inputs.push((name, value));
        id
    };
    let deviation = 1.0 / (DIM as f32).sqrt();
    let tensors = HeadInputs {
        embedding: add(&mut graph, "embedding", normal([SAMPLES, DIM], 2.0, 1)),
        labels: add(&mut graph, "labels", HostTensor::from_u32([SAMPLES], LABELS.to_vec()).unwrap().into()),
        weight: add(&mut graph, "weight", normal([CLASSES, DIM], deviation, 2)),
        queue: settings.epl.map(|_| add(&mut graph, "queue", normal([CLASSES, DIM], 1.0, 3))),
        bias: (settings.kind == HeadKind::UniFace).then(|| {
            let bias = HostTensor::from_f32([1], vec![initial_bias(CLASSES)]).unwrap();
            add(&mut graph, "bias", bias.into())
        }),
        sampled: None,
    };
    let settings = HeadSettings { form, ..*settings };
    let pass = HeadPass { empirical_branch: branch, tile: Some(TILE) };
    let outputs = head_loss(&mut graph, tensors, &settings, pass).unwrap();
    assert_eq!(outputs.prototypes.is_some(), form == HeadForm::Tiled);

    let mut wanted = vec![("gradient of the embeddings", tensors.embedding)];
    wanted.extend(tensors.bias.map(|bias| ("gradient of the bias", bias)));
    if outputs.prototypes.is_none() {
        wanted.push(("gradient of the prototypes", tensors.weight));
    }
    let wrt: Vec<_> = wanted.iter().map(|&(_, id)| id).collect();
    let gradients = backward(&mut graph, outputs.loss, &wrt).unwrap();
    let mut read: Vec<_> = wanted.iter().zip(gradients).map(|(&(name, _), id)| (name, id)).collect();
    if let Some(prototypes) = outputs.prototypes {
        // Without momentum and decay, the velocity after the step is the gradient.
        let velocity = graph.persistent("velocity", table, "test").unwrap();
        let lr = graph.persistent("lr", TensorDesc::f32([1]), "test").unwrap();
        let rule = Sgd { momentum: 0.0, weight_decay: 0.0, floor: None };
        prototypes.apply(&mut graph, velocity, lr, rule, None).unwrap();
        read.push(("gradient of the prototypes", velocity));
    }
    read.extend(tensors.queue.map(|queue| ("empirical prototypes", queue)));
    read.push(("target cosines", outputs.target_cosine));
    read.extend(outputs.empirical_cosine.map(|cosine| ("empirical cosines", cosine)));
    for &(_, id) in &read {
        graph.keep(id);
    }
    graph.keep(outputs.loss);

    let store = Store::new(device);
    let options = SessionOptions { poison: true, ..SessionOptions::default() };
    let mut session = Session::new(&graph, &store, options).unwrap();
    for (name, value) in &inputs {
        store.write(name, value).unwrap();
    }
    session.run(&[]).unwrap();
    let floats = |id| session.read(id).unwrap().into_f32().unwrap();
    let mut tensors: Vec<_> = read.into_iter().map(|(name, id)| (name, floats(id))).collect();
    tensors.sort_by_key(|&(name, _)| name);
    Computed { loss: floats(outputs.loss)[0], tensors }
}

/// The norm of the difference over the norm; NaN where anything is.
fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    difference / norm(&mut expected.iter().map(|&v| f64::from(v)))
}

/// Every head, margin mode, update and way with duplicates.
fn every_setting() -> Vec<HeadSettings> {
    let plain = HeadSettings::default();
    let mut all = vec![
        HeadSettings { kind: HeadKind::Softmax, ..plain },
        plain,
        HeadSettings { kind: HeadKind::UniFace, ..plain },
    ];
    for arc_mode in [ArcMode::StraightThrough, ArcMode::Easy, ArcMode::Hard, ArcMode::Exact] {
        all.push(HeadSettings { kind: HeadKind::ArcFace, arc_mode, ..plain });
    }
    let with_epl: Vec<HeadSettings> =
        all.iter().map(|head| HeadSettings { epl: Some(EplSettings::default()), ..*head }).collect();
    all.extend(with_epl);
    for update in [EplUpdate::Sigmoid, EplUpdate::SigmoidPaper, EplUpdate::Direct] {
        for duplicates in [Duplicates::Last, Duplicates::Sequential] {
            let epl = EplSettings { update, duplicates, ..EplSettings::default() };
            all.push(HeadSettings { epl: Some(epl), ..plain });
        }
    }
    all
}

fn forms_agree(options: &DeviceOptions) {
    let device = Device::open(options).expect("a GPU, or a software Vulkan driver");
    let mut worst = 0.0f64;
    for settings in every_setting() {
        for branch in [false, true].into_iter().filter(|&branch| !branch || settings.epl.is_some()) {
            let all = compute(&device, &settings, branch, HeadForm::Materialized);
            let tiled = compute(&device, &settings, branch, HeadForm::Tiled);
            let error = f64::from((all.loss - tiled.loss).abs() / all.loss);
            assert!(error <= 1e-5, "{settings:?}, branch {branch}: loss {} and {}", all.loss, tiled.loss);
            assert_eq!(all.tensors.len(), tiled.tensors.len());
            for ((name, expected), (of_tiled, found)) in all.tensors.iter().zip(&tiled.tensors) {
                assert_eq!(name, of_tiled);
                let error = relative(found, expected);
                // A NaN compares false, and so fails.
                assert!(error <= 1e-5, "{settings:?}, branch {branch}: {name} differ by {error:e}");
                worst = worst.max(error);
            }
        }
    }
    println!("worst difference {worst:.1e}");
    assert!(worst > 0.0, "two forms that round alike are one");
}

#[test]
fn both_forms_agree_with_shader_checks() {
    forms_agree(&DeviceOptions { shader_checks: true, ..DeviceOptions::default() });
}

#[test]
fn both_forms_agree_without_shader_checks() {
    forms_agree(&DeviceOptions::default());
}

#[test]
fn both_forms_agree_with_the_kernels_of_gpus() {
    forms_agree(&DeviceOptions { gpu_kernels: true, ..DeviceOptions::default() });
}

#[test]
fn both_forms_agree_within_the_limits_of_webgpu() {
    forms_agree(&DeviceOptions { webgpu_limits: true, ..DeviceOptions::default() });
}
