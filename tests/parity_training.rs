//! Four training steps of a small network of the release, against numbers from the release's own PyTorch code
//! (`fixtures/golden/tiny_ir_training.safetensors`): losses, gradients, final weights, running statistics, embeddings.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use epl::config::Precision;
use epl::data::Image;
use epl::eval::embedder::Embedder;
use epl::head::{EplSettings, HeadForm, HeadSettings};
use epl::interchange::safetensors::{StateDict, Value};
use epl::model::{HEAD_MOMENTUM, HEAD_QUEUE, HEAD_WEIGHT, Head, Model, ModelSpec};
use epl::nn::{Family, Network};
use epl::train::step::{StepGraph, StepInputs, StepOptions, StepResult, record_step};
use epl_runtime::case::Tolerance;
use epl_runtime::inspect::find_divergence;
use epl_runtime::{Device, DeviceOptions, Session, SessionOptions};

const STEPS: usize = 4;
/// The empirical branch is on from this step.
const EMPIRICAL_FROM: usize = 2;
const BATCH: usize = 8;
const LR: f32 = 0.05;
/// A bias whose sum goes straight into another batch norm (bn4's, each block's bn2's) has a gradient of exactly zero:
/// the next batch norm takes the mean away. What PyTorch and we compute for it is rounding alone, about 1e-8 of the
/// whole gradient, and nothing can be compared there. A tensor's error is therefore measured against its own norm,
/// but against no less than this share of the norm of all tensors together.
const NOISE: f64 = 1e-4;

fn golden() -> StateDict {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/tiny_ir_training.safetensors");
    StateDict::read(&path).expect("the golden file is part of the repository")
}

fn with_prefix(dict: &StateDict, prefix: &str) -> StateDict {
    let mut found = StateDict::default();
    for (name, value) in &dict.tensors {
        if let Some(rest) = name.strip_prefix(prefix) {
            found.tensors.insert(rest.to_string(), value.clone());
        }
    }
    found
}

fn floats<'a>(dict: &'a StateDict, name: &str) -> &'a [f32] {
    dict.floats(name).unwrap_or_else(|| panic!("the golden file has no {name}")).1
}

fn integers<'a>(dict: &'a StateDict, name: &str) -> &'a [i64] {
    match dict.tensors.get(name) {
        Some((_, Value::I64(values))) => values,
        _ => panic!("the golden file has no {name}"),
    }
}

/// `[N, 3, H, W]` bytes to `[N, H, W, 3]`.
fn nhwc(values: &[i64], size: usize) -> Vec<u8> {
    let plane = size * size;
    let mut bytes = Vec::with_capacity(values.len());
    for image in values.chunks_exact(3 * plane) {
        for pixel in 0..plane {
            for channel in 0..3 {
                bytes.push(u8::try_from(image[channel * plane + pixel]).unwrap());
            }
        }
    }
    bytes
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// `|got - want| / scale` in the L2 norm.
fn relative(got: &[f32], want: &[f32], scale: f64) -> f64 {
    assert_eq!(got.len(), want.len());
    norm(got.iter().zip(want).map(|(&g, &w)| f64::from(g) - f64::from(w))) / scale
}

fn spec(form: HeadForm) -> ModelSpec {
    let network = Network {
        family: Family::Ir,
        input: [32, 32],
        width: 8,
        blocks: [1, 2, 1, 1],
        embedding: 32,
        dropout: 0.0,
    };
    let settings = HeadSettings { form, epl: Some(EplSettings::default()), ..HeadSettings::default() };
    ModelSpec::new("ir18", network, Some(Head { settings, classes: 10 })).unwrap()
}

fn step_options(empirical: bool) -> StepOptions {
    StepOptions {
        batch: BATCH,
        accumulate: 1,
        momentum: 0.9,
        weight_decay: 5e-4,
        clip_norm: 0.0,
        clip_head: true,
        halt: true,
        empirical,
        precision: Precision::F32,
        seed: 1,
    }
}

/// Writes the inputs of golden step `step`.
fn write_inputs(session: &mut Session, inputs: &StepInputs, golden: &StateDict, step: usize) {
    let bytes = nhwc(integers(golden, &format!("step{step}.images")), 32);
    let labels = integers(golden, &format!("step{step}.labels")).iter();
    let labels: Vec<u32> = labels.map(|&v| u32::try_from(v).unwrap()).collect();
    session.write(inputs.images.bytes, &bytes).unwrap();
    session.write(inputs.images.mirror, bytemuck::cast_slice(&[0u32; BATCH])).unwrap();
    session.write(inputs.labels, bytemuck::cast_slice(&labels)).unwrap();
    session.write(inputs.lr, bytemuck::bytes_of(&LR)).unwrap();
    session.write(inputs.seed, bytemuck::cast_slice(&[1u32, step as u32])).unwrap();
}

/// Relative error of the evaluation embeddings of the first step's images.
fn embedding_error(model: &Model, golden: &StateDict) -> f64 {
    let bytes = nhwc(integers(golden, "step0.images"), 32);
    let mut embedder = Embedder::new(model, 3).unwrap();
    let load = |index: usize| {
        let rgb = bytes[index * 3072..(index + 1) * 3072].to_vec();
        Ok(Image { rgb, height: 32, width: 32 })
    };
    let got = embedder.embed(BATCH, &load, true, &mut |_| {}).unwrap();
    let want = floats(golden, "eval.embedding_flip_sum");
    relative(&got, want, norm(want.iter().map(|&v| f64::from(v))))
}

fn table(model: &Model, name: &str) -> Vec<f32> {
    model.store.read(name).unwrap().as_f32().unwrap().to_vec()
}

/// The gradient of the class weights, which no tensor holds in the tiled form: what SGD has added to their momentum,
/// from weights and momentum before the step and the momentum after it.
fn head_gradient([weights, momentum]: &[Vec<f32>; 2], after: &[f32]) -> Vec<f32> {
    let StepOptions { momentum: factor, weight_decay, .. } = step_options(false);
    let parts = weights.iter().zip(momentum).zip(after);
    parts.map(|((w, before), after)| after - factor * before - weight_decay * w).collect()
}

fn run_parity(options: &DeviceOptions, form: HeadForm, embedding_tolerance: f64) {
    let golden = golden();
    let device = Device::open(options).unwrap();
    let model = Model::allocate(spec(form), &device).unwrap();
    let initial = with_prefix(&golden, "init.");
    assert_eq!(model.load(&initial, "golden").unwrap(), Vec::<String>::new());

    let mut sessions: Vec<(StepGraph, Session)> = [false, true]
        .into_iter()
        .map(|empirical| {
            let recorded = record_step(&model.spec, &step_options(empirical)).unwrap();
            let session_options = SessionOptions { poison: true, ..SessionOptions::default() };
            let session = Session::new(&recorded.graph, &model.store, session_options).unwrap();
            (recorded, session)
        })
        .collect();

    let mut failures = Vec::new();
    let mut worst = 0.0f64;
    let mut check = |what: String, error: f64, allowed: f64| {
        worst = worst.max(error / allowed);
        // A NaN fails too.
        if error.is_nan() || error > allowed {
            failures.push(format!("{what}: {error:.3e}, allowed {allowed:.0e}"));
        }
    };
    let want_losses = floats(&golden, "losses");
    for step in 0..STEPS {
        let (recorded, session) = &mut sessions[usize::from(step >= EMPIRICAL_FROM)];
        write_inputs(session, &recorded.inputs, &golden, step);
        let before = [HEAD_WEIGHT, HEAD_MOMENTUM].map(|name| table(&model, name));
        session.step().unwrap();
        let done = session.flush().unwrap();
        let result = StepResult::unpack(&done.last().expect("one step is done").values).unwrap();
        assert_eq!(result.nonfinite, 0);
        let want = f64::from(want_losses[step]);
        check(format!("loss of step {step}"), (f64::from(result.loss) - want).abs() / want.abs(), 1e-4);

        let gradients = with_prefix(&golden, &format!("step{step}.grad."));
        let whole =
            norm(gradients.tensors.keys().flat_map(|name| floats(&gradients, name)).map(|&v| f64::from(v)));
        for name in gradients.tensors.keys() {
            let got = match name.as_str() {
                HEAD_WEIGHT => head_gradient(&before, &table(&model, HEAD_MOMENTUM)),
                name => model.spec.parameters.read_gradient(&model.store, name).unwrap(),
            };
            let want = floats(&gradients, name);
            let scale = norm(want.iter().map(|&v| f64::from(v))).max(NOISE * whole);
            check(format!("gradient of {name}, step {step}"), relative(&got, want, scale), 1e-3);
        }
    }
    assert!(!with_prefix(&golden, "step0.grad.").tensors.is_empty());
    assert!(!with_prefix(&golden, "step2.grad.").tensors.is_empty());

    let finals = with_prefix(&golden, "final.");
    let got = model.state_dict(STEPS as u64).unwrap();
    let mut compared = 0;
    let update = |name: &str| {
        let (want, start) = (floats(&finals, name), floats(&initial, name));
        norm(want.iter().zip(start).map(|(&w, &s)| f64::from(w) - f64::from(s)))
    };
    let trained = model.spec.parameters.entries().iter().filter(|entry| entry.spec.role.is_trained());
    let names = trained.map(|entry| entry.spec.name.as_str()).chain([HEAD_WEIGHT]);
    let whole = norm(names.map(update));
    for entry in model.spec.parameters.entries() {
        let name = &entry.spec.name;
        let (got, want) = (floats(&got, name), floats(&finals, name));
        compared += 1;
        if let Some(layer) = name.strip_suffix("running_mean") {
            // A mean counts in units of its deviation: where the layer before is a batch norm, the mean itself is
            // rounding alone.
            let variance = floats(&finals, &format!("{layer}running_var"));
            let deviation = norm(variance.iter().map(|&v| f64::from(v).sqrt()));
            check(format!("final {name}"), relative(got, want, deviation), 1e-4);
        } else if !entry.spec.role.is_trained() {
            let scale = norm(want.iter().map(|&v| f64::from(v)));
            check(format!("final {name}"), relative(got, want, scale), 1e-4);
        } else {
            // In norm of the update, which is what training did.
            check(format!("final {name}"), relative(got, want, update(name).max(NOISE * whole)), 1e-3);
        }
    }
    assert_eq!(compared, model.spec.parameters.entries().len());
    let (found, want) = (floats(&got, HEAD_WEIGHT), floats(&finals, HEAD_WEIGHT));
    check("final class weights".into(), relative(found, want, update(HEAD_WEIGHT)), 1e-3);
    let want = floats(&finals, HEAD_QUEUE);
    let scale = norm(want.iter().map(|&v| f64::from(v)));
    check("final prototypes".into(), relative(floats(&got, HEAD_QUEUE), want, scale), 1e-4);
    for (name, (_, value)) in &finals.tensors {
        if let Value::I64(_) = value {
            assert_eq!(got.tensors.get(name).map(|(_, v)| v), Some(value), "{name}");
        }
    }

    check("embeddings after training".into(), embedding_error(&model, &golden), embedding_tolerance);
    assert_eq!(model.load(&finals, "golden").unwrap(), Vec::<String>::new());
    check("embeddings of the release's weights".into(), embedding_error(&model, &golden), 1e-4);
    println!("worst error: {worst:.3} of what is allowed");
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn four_steps_equal_the_release_with_shader_checks() {
    let options = DeviceOptions { shader_checks: true, ..DeviceOptions::default() };
    run_parity(&options, HeadForm::Materialized, 1e-4);
}

#[test]
fn four_steps_equal_the_release_with_the_classes_in_tiles() {
    for shader_checks in [true, false] {
        let options = DeviceOptions { shader_checks, ..DeviceOptions::default() };
        run_parity(&options, HeadForm::Tiled, 1e-4);
    }
}

#[test]
fn four_steps_equal_the_release_without_shader_checks() {
    run_parity(&DeviceOptions::default(), HeadForm::Materialized, 1e-4);
}

#[test]
fn four_steps_equal_the_release_within_the_limits_of_webgpu() {
    let options = DeviceOptions { webgpu_limits: true, ..DeviceOptions::default() };
    run_parity(&options, HeadForm::Materialized, 1e-4);
}

/// What a GPU would run: its kernels, its tiles, its split counts.
///
/// Sums in another order round differently, and this run (eight images, loss 54 to 23 in three steps) has points where
/// rounding decides. Measured on the kernels of the tests above, with each initial weight moved by at most one unit in
/// the last place: of 23 such runs 17 keep the embeddings within 5e-5, three give 3.5e-4 and three 2.5e-2. The kernels of
/// GPUs give that same 3.5e-4 here, with every other number within its tolerance, every op within 2e-5 of its reference
/// (the next test), and the release's own weights embedded within 1e-4. Hence 1e-3 for the embeddings after training.
#[test]
fn four_steps_equal_the_release_with_the_kernels_of_gpus() {
    let options = DeviceOptions { gpu_kernels: true, ..DeviceOptions::default() };
    run_parity(&options, HeadForm::Materialized, 1e-3);
}

#[test]
fn no_op_of_the_four_steps_diverges_from_its_reference_with_the_kernels_of_gpus() {
    let golden = golden();
    let device = Device::open(&DeviceOptions { gpu_kernels: true, ..DeviceOptions::default() }).unwrap();
    let model = Model::allocate(spec(HeadForm::Materialized), &device).unwrap();
    model.load(&with_prefix(&golden, "init."), "golden").unwrap();
    // Twice the default for sums of up to 8192 terms, and an absolute part for means that cancel to nothing.
    let tolerance = Tolerance { relative: 2e-5, rounding: 0.0, absolute: 1e-6 };
    for step in 0..STEPS {
        let recorded = record_step(&model.spec, &step_options(step >= EMPIRICAL_FROM)).unwrap();
        let mut session = Session::new(&recorded.graph, &model.store, SessionOptions::default()).unwrap();
        write_inputs(&mut session, &recorded.inputs, &golden, step);
        let found = find_divergence(&mut session, tolerance).unwrap();
        assert!(found.is_none(), "step {step}: {}", found.unwrap());
    }
}
