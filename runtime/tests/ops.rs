//! Every op over its cases: kernels against declarations, the GPU against the reference with the shader checks on and
//! off, gradients against finite differences. `EPL_OPS=name,name` limits the run to some ops.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use epl_runtime::caps::SubgroupSizes;
use epl_runtime::case::{Case, OpEntry, uniform};
use epl_runtime::check::{check_kernel, run_case, run_gradient, select};
use epl_runtime::kernel::Needs;
use epl_runtime::ops::REGISTRY;
use epl_runtime::ops::batch_norm_eval::BatchNormEval;
use epl_runtime::{Caps, Device, DeviceOptions, TensorDesc};

fn chosen() -> Vec<&'static OpEntry> {
    let names = std::env::var("EPL_OPS").unwrap_or_default();
    let names: Vec<String> = names.split(',').filter(|name| !name.is_empty()).map(String::from).collect();
    select(REGISTRY, &names).expect("EPL_OPS names ops")
}

#[test]
fn the_registry_is_sorted_and_every_op_has_cases() {
    assert!(REGISTRY.windows(2).all(|pair| pair[0].name < pair[1].name), "sort ops::REGISTRY by name");
    for entry in REGISTRY {
        let cases = (entry.cases)();
        assert!(cases.iter().any(|case| !case.perf), "{} has no case", entry.name);
        for case in cases {
            assert_eq!(case.op.name(), entry.name, "a case of {} is of another op", entry.name);
        }
    }
}

#[test]
fn declarations_match_the_shaders() {
    for entry in chosen() {
        for kernel in entry.kernels {
            let faults = check_kernel(kernel);
            assert!(faults.is_empty(), "{}: {}", kernel.shader, faults.join("; "));
        }
    }
}

fn gpu_matches_reference(options: DeviceOptions) {
    matches_reference(&options, |_, _| true);
}

fn matches_reference(options: &DeviceOptions, wanted: fn(&OpEntry, &Case) -> bool) {
    let device = Device::open(options).unwrap();
    let mut failures = Vec::new();
    for entry in chosen() {
        for case in (entry.cases)()
            .iter()
            .filter(|case| !case.perf && case.runs_on(device.caps()) && wanted(entry, case))
        {
            match run_case(&device, case) {
                Ok(worst) if worst.passes() => {}
                Ok(worst) => failures.push(format!("{} / {}: {worst:?}", entry.name, case.label)),
                Err(error) => failures.push(format!("{} / {}: {error}", entry.name, case.label)),
            }
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// Operations of the largest cases that are emulated: each broadcast is two barriers there.
const MOST_EMULATED: f64 = 1e6;

fn flops(case: &Case) -> f64 {
    let inputs: Vec<TensorDesc> = case.inputs.iter().map(|input| input.desc().clone()).collect();
    case.op.infer(&inputs).map_or(0.0, |outputs| case.op.cost(&inputs, &outputs).flops)
}

/// Subgroups of one size have kernels of their own; of several, or of fewer than eight, they have not.
#[test]
fn no_kernel_assumes_a_size_of_subgroups() {
    for (min, max) in [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (4, 128)] {
        let emulate_subgroups = Some(SubgroupSizes { min, max });
        let options = DeviceOptions { emulate_subgroups, ..DeviceOptions::default() };
        matches_reference(&options, |op, case| {
            op.kernels.iter().any(|kernel| kernel.needs == Needs::Subgroups) && flops(case) < MOST_EMULATED
        });
    }
}

#[test]
fn gpu_matches_reference_with_shader_checks() {
    gpu_matches_reference(DeviceOptions { shader_checks: true, ..DeviceOptions::default() });
}

#[test]
fn gpu_matches_reference_without_shader_checks() {
    gpu_matches_reference(DeviceOptions::default());
}

/// Bindings of 128 MiB, 256 invocations, 16 KiB of workgroup memory, no optional feature; with the kernels of GPUs, and with
/// those of CPUs.
#[test]
fn gpu_matches_reference_within_the_limits_of_webgpu() {
    for gpu_kernels in [false, true] {
        let options = DeviceOptions { webgpu_limits: true, gpu_kernels, ..DeviceOptions::default() };
        let device = Device::open(&options).unwrap();
        assert_eq!(*device.caps(), Caps { cpu: device.caps().cpu, ..Caps::WEBGPU });
        assert!(!device.has_timestamps());
        gpu_matches_reference(options);
    }
}

#[test]
fn gpu_matches_reference_with_the_kernels_of_gpus() {
    gpu_matches_reference(DeviceOptions { gpu_kernels: true, ..DeviceOptions::default() });
}

#[test]
fn gradients_match_finite_differences() {
    let mut failures = Vec::new();
    for entry in chosen() {
        for case in (entry.cases)().iter().filter(|case| !case.perf) {
            match run_gradient(case) {
                Ok(Some(worst)) if !worst.passes() => {
                    failures.push(format!("{} / {}: {worst:?}", entry.name, case.label));
                }
                Ok(_) => {}
                Err(error) => failures.push(format!("{} / {}: {error}", entry.name, case.label)),
            }
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_gradient_that_does_not_exist_is_named() {
    let mut inputs = vec![uniform([4, 3], -1.0, 1.0, 1)];
    inputs.extend((2..6).map(|seed| uniform([3], 0.5, 1.5, seed)));
    for (input, name) in [(1, "weight"), (3, "mean"), (4, "var")] {
        let case = Case::new("constant", BatchNormEval { eps: 1e-5 }, inputs.clone()).differentiate(&[input]);
        let error = run_gradient(&case).unwrap_err().to_string();
        assert!(error.ends_with(name), "{error}");
    }
}
