//! Every shader on every backend, without a GPU: naga's validator with the capabilities of plain WebGPU, its SPIR-V,
//! HLSL and MSL writers, and WebGPU's limits, for each kernel with its default constants and with those that real
//! cases and a real training step give it on different adapters.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod modules;

use std::collections::{BTreeMap, BTreeSet};

use epl::config::Config;
use epl::head::{EplSettings, HeadForm};
use epl::train::step::{StepOptions, record_step};
use epl::train::trainer::{spec_of, step_options};
use epl_runtime::caps::{MatrixSides, SubgroupSizes};
use epl_runtime::case::{Case, OpEntry};
use epl_runtime::kernel::{Kernel, Needs};
use epl_runtime::op::{Cost, Dispatch, Lowering, Op, Operand};
use epl_runtime::{Array, Caps, DType, Plan, PlanOptions, Result as RuntimeResult, TensorDesc};
use naga::AddressSpace;
use naga::proc::Layouter;
use naga::valid::{Capabilities, ValidationFlags, Validator};

use modules::{Module, parse, parse_kernel, specialize, spir_v, translate};

/// Storage buffers of a stage that WebGPU grants.
const STORAGE_BUFFERS: usize = 8;
/// Images of the training step that is planned. The largest activation of IR-50 at 112x112 then fits the binding
/// that WebGPU grants, so that the step can be planned for every adapter.
const BATCH: usize = 32;

/// The adapters that kernels are chosen for: WebGPU's floor, and the kinds of adapters that choices depend on.
fn adapters() -> [(&'static str, Caps); 5] {
    let discrete = Caps {
        subgroups: Some(SubgroupSizes { min: 32, max: 32 }),
        f16: true,
        matrices: MatrixSides { f32: None, f16: Some(16) },
        max_binding_bytes: (1 << 31) - 4,
        max_buffer_bytes: 1 << 34,
        max_invocations: 1024,
        max_workgroup_bytes: 49_152,
        ..Caps::WEBGPU
    };
    [
        ("webgpu", Caps::WEBGPU),
        ("discrete", discrete.clone()),
        (
            "software",
            Caps {
                cpu: true,
                matrices: MatrixSides::default(),
                subgroups: Some(SubgroupSizes { min: 8, max: 8 }),
                max_binding_bytes: 128 << 20,
                max_workgroup_bytes: 32_768,
                ..discrete.clone()
            },
        ),
        (
            "8x8 matrices",
            Caps {
                matrices: MatrixSides { f32: Some(8), f16: Some(8) },
                max_workgroup_bytes: 32_768,
                ..discrete.clone()
            },
        ),
        (
            "wave32 and wave64",
            Caps {
                subgroups: Some(SubgroupSizes { min: 32, max: 64 }),
                max_workgroup_bytes: 32_768,
                ..discrete
            },
        ),
    ]
}

fn registry() -> impl Iterator<Item = &'static OpEntry> {
    epl_runtime::ops::REGISTRY.iter().chain(epl::head::REGISTRY).chain(epl::eval::ops::REGISTRY)
}

/// The cases of both registries, those for speed included, with their op's name.
fn cases() -> Vec<(&'static str, Case)> {
    let of = |entry: &'static OpEntry| (entry.cases)().into_iter().map(|case| (entry.name, case));
    registry().flat_map(of).collect()
}

/// Every kernel of both registries, once.
fn kernels() -> Vec<&'static Kernel> {
    let mut seen = BTreeSet::new();
    let all = registry().flat_map(|entry| entry.kernels).chain(&epl_runtime::probe::KERNELS).copied();
    all.filter(|kernel| seen.insert((kernel.shader, kernel.entry, kernel.needs))).collect()
}

/// Every kernel, once in each form that it has: with elements in 32 bits, and in 16.
fn forms() -> impl Iterator<Item = (&'static Kernel, bool)> {
    kernels().into_iter().flat_map(|kernel| kernel.halves().map(move |half| (kernel, half)))
}

/// What of a specialised module exceeds an adapter's limits.
fn beyond_limits(module: &naga::Module, caps: &Caps) -> Vec<String> {
    let mut faults = Vec::new();
    for entry in &module.entry_points {
        let size = entry.workgroup_size;
        let invocations: u32 = size.iter().product();
        // Adapters grant as many along the first dimension as in all (`Caps::max_invocations`), and WebGPU's along the others.
        let limits = [caps.max_invocations, 256, 64];
        if invocations > caps.max_invocations || size.iter().zip(limits).any(|(&n, limit)| n > limit) {
            faults.push(format!("workgroup size {size:?}; {} invocations are allowed", caps.max_invocations));
        }
    }
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).expect("a valid module has a layout");
    let bytes: u32 = module
        .global_variables
        .iter()
        .filter(|(_, variable)| variable.space == AddressSpace::WorkGroup)
        // As WebGPU counts: every variable is rounded up to 16 bytes.
        .map(|(_, variable)| layouter[variable.ty].size.next_multiple_of(16))
        .sum();
    if bytes > caps.max_workgroup_bytes {
        faults.push(format!("{bytes} bytes of workgroup memory; {} are allowed", caps.max_workgroup_bytes));
    }
    faults
}

/// What of a dispatch an adapter does not allow, whatever its module says.
fn dispatch_faults(dispatch: &Dispatch, caps: &Caps) -> Vec<String> {
    let mut faults = Vec::new();
    let element = if dispatch.half { DType::F16 } else { DType::F32 };
    if !dispatch.kernel.needs.met_by(caps, element) {
        faults.push(format!("{} on an adapter without them", dispatch.kernel.needs));
    }
    if dispatch.kernel.bindings.len() > STORAGE_BUFFERS {
        faults.push(format!("{} storage buffers", dispatch.kernel.bindings.len()));
    }
    if dispatch.grid.iter().any(|&n| n == 0 || n > caps.max_grid) {
        faults.push(format!("grid {:?}", dispatch.grid));
    }
    for (offset, length) in dispatch.bindings.iter().filter_map(|bound| bound.range) {
        if length > caps.max_binding_bytes || offset % caps.offset_alignment != 0 {
            faults.push(format!("a binding of {length} bytes at {offset}"));
        }
    }
    faults
}

/// A kernel with the constants of a dispatch.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Variant {
    module: String,
    entry: &'static str,
    half: bool,
    /// Names, and the bits of values.
    constants: Vec<(&'static str, u64)>,
}

/// The distinct variants among the dispatches that an adapter gets, with one of the places that use each.
type Variants = BTreeMap<Variant, (&'static Kernel, String)>;

/// Adds dispatches to `variants`, and their faults to `faults`.
fn collect(
    dispatches: &[Dispatch],
    caps: &Caps,
    place: &str,
    variants: &mut Variants,
    faults: &mut Vec<String>,
) {
    for dispatch in dispatches {
        let kernel = dispatch.kernel;
        faults.extend(
            dispatch_faults(dispatch, caps)
                .into_iter()
                .map(|fault| format!("{} ({place}): {fault}", kernel.shader)),
        );
        let constants = dispatch.constants.iter().map(|&(name, value)| (name, value.to_bits())).collect();
        let variant = Variant {
            module: kernel.module_name(dispatch.half),
            entry: kernel.entry,
            half: dispatch.half,
            constants,
        };
        variants.entry(variant).or_insert_with(|| (kernel, place.to_string()));
    }
}

/// Every variant that the cases of both registries are lowered to.
fn case_variants(
    cases: &[(&str, Case)],
    name: &str,
    caps: &Caps,
    variants: &mut Variants,
    faults: &mut Vec<String>,
) {
    for (op, case) in cases.iter().filter(|(_, case)| case.runs_on(caps)) {
        let place = format!("{name}, {op}: {}", case.label);
        let inputs: Vec<TensorDesc> = case.inputs.iter().map(|input| input.desc().clone()).collect();
        let outputs = case.op.infer(&inputs).unwrap_or_else(|error| panic!("{place}: {error}"));
        match Lowering::run(case.op.as_ref(), caps, &inputs, &outputs) {
            Ok(lowered) => collect(&lowered.dispatches, caps, &place, variants, faults),
            Err(error) => faults.push(format!("{place}: {error}")),
        }
    }
}

/// Every variant of training steps of IR-50 with CosFace + EPL: on CASIA-WebFace with all classes at once, and on
/// WebFace12M in tiles, whose tables take several buffers within the limits of WebGPU, all classes and sampled ones.
fn step_variants(name: &str, caps: &Caps, variants: &mut Variants, faults: &mut Vec<String>) {
    for (form, classes, rate) in [
        (HeadForm::Materialized, 10_572, 1.0),
        (HeadForm::Tiled, 617_970, 1.0),
        (HeadForm::Tiled, 617_970, 0.1),
    ] {
        let mut config = Config::default();
        config.head.epl = Some(EplSettings::default());
        config.head.form = form;
        config.head.sample_rate = rate;
        config.train.batch_size = BATCH;
        variants_of_step(&config, classes, (name, caps), variants, faults);
    }
}

fn variants_of_step(
    config: &Config,
    classes: usize,
    (name, caps): (&str, &Caps),
    variants: &mut Variants,
    faults: &mut Vec<String>,
) {
    let spec = spec_of(config, classes).expect("the default network");
    let options = StepOptions { clip_norm: 1.0, ..step_options(config, true) };
    let recorded = record_step(&spec, &options).expect("the default step");
    match Plan::new(&recorded.graph, caps, PlanOptions::default()) {
        Ok(plan) => {
            for step in &plan.steps {
                let node = &recorded.graph.nodes()[step.node];
                let place = format!("{name}, training step, {} in {}", node.op.name(), node.scope);
                collect(&step.dispatches, caps, &place, variants, faults);
            }
        }
        Err(error) => faults.push(format!("{name}, training step: {error}")),
    }
}

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
    let mut translated = BTreeSet::new();
    let mut modules = BTreeMap::new();
    for (kernel, half) in forms() {
        // A module that does not parse is the other test's finding.
        let parsed = parse_kernel(kernel, half).ok();
        modules.extend(parsed.map(|parsed| ((kernel.module_name(half), kernel.entry), parsed)));
    }
    let cases = cases();
    for (name, caps) in adapters() {
        let mut variants = Variants::new();
        case_variants(&cases, name, &caps, &mut variants, &mut faults);
        step_variants(name, &caps, &mut variants, &mut faults);
        for (variant, (kernel, place)) in variants {
            let Some(parsed) = modules.get(&(variant.module.clone(), variant.entry)) else { continue };
            let constants: Vec<(&str, f64)> =
                variant.constants.iter().map(|&(name, bits)| (name, f64::from_bits(bits))).collect();
            let mut fault = |text: String| {
                faults.push(format!("{} {constants:?} ({place}): {text}", kernel.shader));
            };
            let module = match specialize(parsed, kernel.entry, &constants) {
                Ok(module) => module,
                Err(error) => {
                    fault(error);
                    continue;
                }
            };
            beyond_limits(&module.module, &caps).into_iter().for_each(&mut fault);
            if translated.insert(variant.clone()) {
                for checks in [true, false] {
                    translate(&module, kernel.entry, checks).err().into_iter().for_each(&mut fault);
                }
            }
        }
    }
    report(&faults);
    let dispatched: BTreeSet<_> = translated.iter().map(|v| (v.module.clone(), v.entry)).collect();
    let never: Vec<_> = forms()
        // A cast between types that are the same is not recorded.
        .filter(|(kernel, half)| *half || !kernel.shader.starts_with("cast_"))
        // Those by which the runtime finds out about an adapter are no op's.
        .filter(|(kernel, _)| !epl_runtime::probe::KERNELS.iter().any(|probe| probe.shader == kernel.shader))
        .map(|(kernel, half)| (kernel.module_name(half), kernel.entry))
        .filter(|key| !dispatched.contains(key))
        .collect();
    assert!(never.is_empty(), "no case and no training step dispatches {never:?} on any adapter");
    println!("{} kernels in {} variants", dispatched.len(), translated.len());
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
    assert_eq!(translate(&module, "main", true), Ok(()));
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
