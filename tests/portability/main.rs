//! Every shader on every backend, without a GPU: naga's validator with the capabilities of plain WebGPU, its SPIR-V,
//! HLSL and MSL writers, WebGPU's limits, and rules of our own, for each kernel with its default constants and with those that
//! real cases and a real training step give it on different adapters. `cargo xtask gate` hands the same modules to more compilers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod export;
mod modules;
mod rules;
mod uniformity;
mod variants;

use std::collections::BTreeSet;

use epl_runtime::kernel::{Kernel, Needs};
use epl_runtime::op::{Cost, Lowering, Op, Operand};
use epl_runtime::{Array, Caps, Result as RuntimeResult, TensorDesc};
use naga::AddressSpace;
use naga::valid::{Capabilities, ValidationFlags, Validator};

use modules::{Module, parse, parse_kernel, specialize, spir_v, translate};
use rules::matrix_faults;
use uniformity::uniformity_faults;
use variants::{STORAGE_BUFFERS, adapters, beyond_limits, dispatch_faults, forms, kernels, visit_variants};

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_module_passes_the_validator_and_every_writer_with_its_defaults() {
    let mut faults = Vec::new();
    for (kernel, half) in forms() {
        let checked = parse_kernel(kernel, half).and_then(|parsed| {
            let storage = |space| matches!(space, AddressSpace::Storage { .. });
            let buffers = parsed.module.global_variables.iter().filter(|(_, v)| storage(v.space)).count();
            if buffers > STORAGE_BUFFERS {
                return Err(format!("{buffers} storage buffers"));
            }
            let module = specialize(&parsed, kernel.entry, &[])?;
            let mut faults = matrix_faults(&module, false);
            faults.extend(uniformity_faults(&module.module));
            if let Some(fault) = faults.pop() {
                return Err(fault);
            }
            translate(&module, kernel.entry, true)?;
            translate(&module, kernel.entry, false)
        });
        faults.extend(checked.err().map(|error| format!("{} / {}: {error}", kernel.shader, kernel.entry)));
    }
    report(&faults);
}

#[test]
fn every_variant_that_an_adapter_gets_is_translated_and_within_its_limits() {
    let mut faults = Vec::new();
    let mut dispatched = BTreeSet::new();
    let mut variants = 0;
    visit_variants(&mut faults, &mut |used| {
        let mut found = beyond_limits(&used.module.module, used.caps);
        // Only Metal has matrices of 32-bit elements of this size.
        let metal = used.caps.matrices.f32 == Some(8);
        found.extend(matrix_faults(used.module, metal));
        if used.first {
            variants += 1;
            dispatched.insert((used.variant.module.clone(), used.variant.entry));
            found.extend(uniformity_faults(&used.module.module));
            for checks in [true, false] {
                found.extend(translate(used.module, used.kernel.entry, checks).err());
            }
        }
        found
    });
    report(&faults);
    let never: Vec<_> = forms()
        // A cast between types that are the same is not recorded.
        .filter(|(kernel, half)| *half || !kernel.shader.starts_with("cast_"))
        .map(|(kernel, half)| (kernel.module_name(half), kernel.entry))
        .filter(|key| !dispatched.contains(key))
        .collect();
    assert!(never.is_empty(), "no case and no training step dispatches {never:?} on any adapter");
    println!("{} kernels in {variants} variants", dispatched.len());
}

/// A small kernel for the checks below; `LEN` is the length of a workgroup array of vec4.
const EXAMPLE: &str = "
override LEN: u32 = 64u;
override SIZE: u32 = 64u;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
var<workgroup> tile: array<vec4<f32>, LEN>;
@compute @workgroup_size(SIZE)
fn main(@builtin(local_invocation_index) i: u32) {
    tile[i] = vec4<f32>(y[i]);
    workgroupBarrier();
    y[i] = tile[i].y;
}";

#[test]
fn what_is_not_wgsl_or_not_plain_webgpu_is_refused() {
    assert!(parse(EXAMPLE, Needs::Nothing).is_ok());
    let broken = EXAMPLE.replace("workgroupBarrier();", "workgroupBarrier()");
    assert!(parse(&broken, Needs::Nothing).err().unwrap().contains("expected"));
    let invalid = EXAMPLE.replace("= tile[i].y", "= 1u");
    assert!(parse(&invalid, Needs::Nothing).is_err(), "a wrong type");
    let subgroups = EXAMPLE.replace("= tile[i].y", "= subgroupAdd(tile[i].y)");
    assert!(parse(&subgroups, Needs::Nothing).is_err(), "an undeclared optional feature");
    assert!(parse(&subgroups, Needs::Subgroups).is_ok());
    let wide = EXAMPLE.replace("array<f32>", "array<f64>");
    assert!(parse(&wide, Needs::Subgroups).is_err(), "64-bit floats are an optional feature");
}

#[test]
fn what_a_writer_cannot_translate_is_noticed() {
    let module = specialize(&parse(EXAMPLE, Needs::Nothing).unwrap(), "main", &[]).unwrap();
    assert!(translate(&module, "main", true).is_ok());
    assert!(translate(&module, "absent", true).is_err(), "an entry point that is not there");
    // A module whose overrides are not processed cannot be written.
    assert!(translate(&parse(EXAMPLE, Needs::Nothing).unwrap(), "main", true).is_err());
    assert!(specialize(&parse(EXAMPLE, Needs::Nothing).unwrap(), "main", &[("WIDTH", 4.0)]).is_err());
    assert!(specialize(&parse(EXAMPLE, Needs::Nothing).unwrap(), "main", &[("SIZE", -1.0)]).is_err());
    // 64-bit floats pass a validator that is told to allow them, but the device was not asked for them.
    let module = naga::front::wgsl::parse_str(&EXAMPLE.replace("f32", "f64")).unwrap();
    let info = Validator::new(ValidationFlags::all(), Capabilities::all()).validate(&module).unwrap();
    let wide = specialize(&Module { module, info }, "main", &[]).unwrap();
    assert!(spir_v(&wide, "main", true).is_err(), "a capability that the device was not asked for");
}

#[test]
fn what_exceeds_the_limits_is_noticed() {
    let parsed = parse(EXAMPLE, Needs::Nothing).unwrap();
    let faults = |constants: &[(&str, f64)]| {
        let module = specialize(&parsed, "main", constants).unwrap();
        beyond_limits(&module.module, &Caps::WEBGPU)
    };
    assert_eq!(faults(&[("LEN", 1024.0), ("SIZE", 256.0)]), Vec::<String>::new());
    let found = faults(&[("LEN", 1025.0)]);
    assert!(found.len() == 1 && found[0].contains("16400 bytes of workgroup memory"), "{found:?}");
    let found = faults(&[("SIZE", 257.0)]);
    assert!(found.len() == 1 && found[0].contains("workgroup size [257, 1, 1]"), "{found:?}");
}

/// Dispatches whatever it is told.
#[derive(Debug)]
struct Launch(&'static Kernel);

impl Op for Launch {
    fn name(&self) -> &'static str {
        "launch"
    }
    fn infer(&self, inputs: &[TensorDesc]) -> RuntimeResult<Vec<TensorDesc>> {
        Ok(inputs.to_vec())
    }
    fn lower(&self, lowering: &mut Lowering<'_>) -> RuntimeResult<()> {
        let operands = vec![Operand::Input(0); self.0.bindings.len()];
        lowering.dispatch(self.0, &[], &NoParams { unused: 0 }, &operands, [1, 1, 1])
    }
    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        inputs.to_vec()
    }
    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(0.0, inputs, outputs)
    }
}

epl_runtime::param_block! {
    /// An empty parameter block.
    struct NoParams {
        /// Not used.
        unused: u32,
    }
}

#[test]
fn a_subgroup_kernel_is_never_launched_without_subgroups() {
    let kernel = kernels()
        .into_iter()
        .find(|kernel| kernel.needs == Needs::Subgroups)
        .expect("a kernel with subgroups");
    let inputs = [TensorDesc::f32([4])];
    let (_, discrete) = &adapters()[1];
    let lowered = Lowering::run(&Launch(kernel), discrete, &inputs, &inputs).unwrap();
    assert!(dispatch_faults(&lowered.dispatches[0], discrete).is_empty());
    assert_eq!(dispatch_faults(&lowered.dispatches[0], &Caps::WEBGPU).len(), 1);
    // The runtime itself refuses it before any test could see it.
    let error = Lowering::run(&Launch(kernel), &Caps::WEBGPU, &inputs, &inputs).unwrap_err();
    assert!(error.to_string().contains("needs subgroups"), "{error}");
}
