//! Mixed precision: activations and windows in 16 bits, the loss scale, and steps that overflow.

use epl::config::{Config, HeadKind, Precision};
use epl::head::HeadForm;
use epl::train::step::{ScaleState, StepOptions, StepResult};
use epl::train::trainer::step_options;
use epl_runtime::{Device, DeviceOptions};

use super::run::train;
use super::step::{Stepper, tiny};
use super::{config, device, fresh_device, head};

fn mixed(epl: bool, form: HeadForm) -> Config {
    let mut config = tiny(epl);
    config.train.precision = Precision::Mixed;
    config.head.form = form;
    config
}

fn stepper(config: &Config, options: &StepOptions, scale: f32) -> Stepper {
    let stepper = Stepper::new(config, options, &device());
    if options.precision == Precision::Mixed {
        ScaleState { scale, finite_steps: 0 }.write(&stepper.model.store).unwrap();
    }
    stepper
}

/// The gradient of every parameter of the network, with the loss scale taken out.
fn gradients(stepper: &Stepper, scale: f32) -> Vec<(String, Vec<f64>)> {
    let parameters = &stepper.model.spec.parameters;
    let trained = parameters.entries().iter().filter(|entry| entry.spec.role.is_trained());
    trained
        .map(|entry| {
            let name = entry.spec.name.clone();
            let found = parameters.read_gradient(&stepper.model.store, &name).unwrap();
            (name, found.into_iter().map(|g| f64::from(g) / f64::from(scale)).collect())
        })
        .collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[test]
fn the_gradient_is_that_of_single_precision_to_what_16_bits_hold() {
    const SCALE: f32 = 4096.0;
    for form in [HeadForm::Materialized, HeadForm::Tiled] {
        let run = |precision: Precision| {
            let mut config = mixed(true, form);
            config.train.precision = precision;
            // Clipping sees the gradient without its scale.
            let options = StepOptions { clip_norm: 1.0, ..step_options(&config, true) };
            let mut stepper = stepper(&config, &options, SCALE);
            let result = stepper.step([1, 0]);
            let scale = if precision == Precision::Mixed { SCALE } else { 1.0 };
            assert_eq!(result.loss_scale, scale);
            (result, gradients(&stepper, scale), stepper.weights())
        };
        let (single, want, weights) = run(Precision::F32);
        let (half, got, moved) = run(Precision::Mixed);
        assert!((single.loss - half.loss).abs() < 5e-3 * single.loss, "{} {}", single.loss, half.loss);
        assert!(
            (single.grad_norm - half.grad_norm).abs() < 0.02 * single.grad_norm,
            "{} {}",
            single.grad_norm,
            half.grad_norm
        );
        let whole = norm(&want.iter().map(|(_, values)| norm(values)).collect::<Vec<_>>());
        for ((name, want), (_, got)) in want.iter().zip(&got) {
            let error = norm(&want.iter().zip(got).map(|(w, g)| w - g).collect::<Vec<_>>());
            // A gradient that is itself next to nothing is measured against all of it.
            assert!(error < 0.02 * norm(want).max(0.02 * whole), "{name}: {error} of {}", norm(want));
        }
        let difference =
            |a: &[f32], b: &[f32]| norm(&a.iter().zip(b).map(|(a, b)| f64::from(a - b)).collect::<Vec<_>>());
        // The step is clipped to a norm of 1, times the rate.
        let step = f64::from(tiny(true).optim.lr as f32);
        assert!(difference(&weights, &moved) < 0.02 * step, "{}", difference(&weights, &moved));
    }
}

#[test]
fn a_scale_that_is_too_large_costs_steps_and_nothing_else() {
    for form in [HeadForm::Materialized, HeadForm::Tiled] {
        let config = mixed(true, form);
        let options = step_options(&config, true);
        assert!(options.halt, "the first bad step would halt the run");
        let mut stepper = stepper(&config, &options, 2f32.powi(40));
        let before = stepper.weights();
        let mut overflows = 0;
        let taken: StepResult = loop {
            let result = stepper.step([1, overflows]);
            if result.is_finite() {
                break result;
            }
            assert!(result.is_overflow() && result.loss.is_finite());
            assert_eq!(result.loss_scale, 2f32.powi(40 - overflows as i32));
            assert!(stepper.weights() == before, "{form:?}: a step that overflowed moved the weights");
            overflows += 1;
            let now = ScaleState::read(&stepper.model.store).unwrap();
            assert_eq!(now, ScaleState { scale: 2f32.powi(40 - overflows as i32), finite_steps: 0 });
            assert!(overflows < 40, "it never came down");
        };
        assert!(overflows > 3, "{overflows} overflows from a scale of 2^40");
        assert!(!taken.is_overflow());
        assert!(stepper.weights() != before, "{form:?}: a finite step moved nothing");
        let now = ScaleState::read(&stepper.model.store).unwrap();
        assert_eq!(now, ScaleState { scale: taken.loss_scale, finite_steps: 1 });
    }
}

#[test]
fn at_the_smallest_scale_a_step_that_is_not_finite_halts_the_run() {
    let config = mixed(false, HeadForm::Materialized);
    let options = step_options(&config, false);
    let mut stepper = stepper(&config, &options, 1.0);
    let spoiled = "conv1.weight";
    let values = stepper.model.spec.parameters.read(&stepper.model.store, spoiled).unwrap();
    let parameters = stepper.model.spec.parameters.clone();
    parameters.write(&stepper.model.store, spoiled, &vec![f32::INFINITY; values.len()]).unwrap();
    let bad = stepper.step([1, 0]);
    assert!(!bad.is_finite() && !bad.is_overflow());
    parameters.write(&stepper.model.store, spoiled, &values).unwrap();
    let before = stepper.weights();
    assert!(stepper.step([1, 1]).is_finite());
    assert!(stepper.weights() == before, "nothing moves after a bad step, where the run halts");
}

#[test]
fn a_run_learns_and_the_same_seed_gives_the_same_bytes() {
    let run = |precision: Precision| {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&folder.path().join("run"), head(HeadKind::CosFace, true), 3);
        config.train.precision = precision;
        config.model.dropout = 0.3;
        let outcome = train(&config, &fresh_device());
        (outcome, std::fs::read(config.train.out.join("model.safetensors")).unwrap())
    };
    let (outcome, bytes) = run(Precision::Mixed);
    assert!(bytes == run(Precision::Mixed).1, "two runs of one seed differ");
    let (single, _) = run(Precision::F32);
    assert!(
        (outcome.loss - single.loss).abs() < 0.1 * single.loss,
        "after {} steps: {} in mixed, {} in single precision",
        outcome.steps,
        outcome.loss,
        single.loss
    );
}

#[test]
fn an_adapter_without_16_bit_floats_is_named_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&folder.path().join("run"), head(HeadKind::CosFace, false), 1);
    config.train.precision = Precision::Mixed;
    let device = Device::open(&DeviceOptions { webgpu_limits: true, ..DeviceOptions::default() }).unwrap();
    let options = epl::train::RunOptions::default();
    let ended =
        epl::train::run_on(config, &device, super::faces(), Vec::new(), &options, &mut epl::train::Silent);
    let error = ended.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("no 16-bit floats"), "{error}");
    assert!(error.hint().unwrap().contains("train.precision"), "{error:?}");
    assert!(!folder.path().join("run").join("config.toml").exists());
}
