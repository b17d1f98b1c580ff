//! The ops of the heads and of evaluation over their cases, as the runtime's own: declarations against shaders, the GPU against the
//! references with the shader checks on and off, gradients against finite differences.
//! `EPL_OPS=name,name` limits the run to some ops.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use epl::{eval, head};
use epl_runtime::case::{Case, OpEntry};
use epl_runtime::check::{Deviation, check_kernel, run_case, run_gradient, select};
use epl_runtime::{Device, DeviceOptions, Result};

/// The ops outside the runtime.
const REGISTRIES: [&[OpEntry]; 2] = [head::REGISTRY, eval::ops::REGISTRY];

fn chosen() -> Vec<OpEntry> {
    let names = std::env::var("EPL_OPS").unwrap_or_default();
    let names: Vec<String> = names.split(',').filter(|name| !name.is_empty()).map(String::from).collect();
    let all = REGISTRIES.concat();
    select(&all, &names).expect("EPL_OPS names ops").into_iter().copied().collect()
}

/// Runs `check` on every case but those for speed, and fails with all deviations at once.
fn every_case(check: impl Fn(&Case) -> Result<Option<Deviation>>) {
    let mut failures = Vec::new();
    for entry in chosen() {
        for case in (entry.cases)().iter().filter(|case| !case.perf) {
            match check(case) {
                Ok(None) => {}
                Ok(Some(worst)) if worst.passes() => {}
                Ok(Some(worst)) => failures.push(format!("{} / {}: {worst:?}", entry.name, case.label)),
                Err(error) => failures.push(format!("{} / {}: {error}", entry.name, case.label)),
            }
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_registry_is_sorted_and_every_op_has_cases() {
    for registry in REGISTRIES {
        assert!(registry.windows(2).all(|pair| pair[0].name < pair[1].name), "sort the registry by name");
    }
    for entry in REGISTRIES.concat() {
        let cases = (entry.cases)();
        assert!(cases.iter().any(|case| !case.perf), "{} has no case", entry.name);
        assert!(cases.iter().any(|case| case.perf), "{} has no case for speed", entry.name);
        assert!(cases.iter().all(|case| case.op.name() == entry.name), "{} has a foreign case", entry.name);
    }
}

#[test]
fn declarations_match_the_shaders() {
    for kernel in chosen().iter().flat_map(|entry| entry.kernels) {
        let faults = check_kernel(kernel);
        assert!(faults.is_empty(), "{}: {}", kernel.shader, faults.join("; "));
    }
}

fn gpu_matches_reference(options: DeviceOptions) {
    let device = Device::open(&options).expect("a GPU, or a software Vulkan driver");
    every_case(|case| run_case(&device, case).map(Some));
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
        gpu_matches_reference(DeviceOptions { webgpu_limits: true, gpu_kernels, ..DeviceOptions::default() });
    }
}

#[test]
fn gradients_match_finite_differences() {
    every_case(run_gradient);
}
