//! The kernels, and the variants of each that cases and real training steps give the adapters.

use std::collections::{BTreeMap, BTreeSet};

use epl::config::{Config, Precision};
use epl::head::{EplSettings, HeadForm};
use epl::train::step::{StepOptions, record_step};
use epl::train::trainer::{spec_of, step_options};
use epl_runtime::caps::{MatrixSides, SubgroupSizes};
use epl_runtime::case::{Case, OpEntry};
use epl_runtime::choice::key as choice_key;
use epl_runtime::kernel::Kernel;
use epl_runtime::op::{Dispatch, Lowering, Op};
use epl_runtime::{Caps, DType, Graph, Plan, PlanOptions, TensorDesc};
use naga::AddressSpace;
use naga::proc::Layouter;

use super::modules::{Module, parse_kernel, specialize};
use super::rules::{Part, alias_faults, parts_of_op, parts_of_step};

/// Storage buffers of a stage that WebGPU grants.
pub const STORAGE_BUFFERS: usize = 8;
/// Images of the training step that is planned. The largest activation of IR-50 at 112x112 then fits the binding
/// that WebGPU grants, so that the step can be planned for every adapter.
const BATCH: usize = 32;

/// The adapters that kernels are chosen for: WebGPU's floor, and the kinds of adapters that choices depend on.
pub fn adapters() -> [(&'static str, Caps); 5] {
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
pub fn kernels() -> Vec<&'static Kernel> {
    let mut seen = BTreeSet::new();
    let all = registry().flat_map(|entry| entry.kernels).chain(&epl_runtime::probe::KERNELS).copied();
    all.filter(|kernel| seen.insert((kernel.shader, kernel.entry, kernel.needs))).collect()
}

/// Every kernel, once in each form that it has: with elements in 32 bits, and in 16.
pub fn forms() -> impl Iterator<Item = (&'static Kernel, bool)> {
    kernels().into_iter().flat_map(|kernel| kernel.halves().map(move |half| (kernel, half)))
}

/// What of a specialised module exceeds an adapter's limits.
pub fn beyond_limits(module: &naga::Module, caps: &Caps) -> Vec<String> {
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
pub fn dispatch_faults(dispatch: &Dispatch, caps: &Caps) -> Vec<String> {
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
pub struct Variant {
    /// As `epl ops dump` names it.
    pub module: String,
    pub entry: &'static str,
    /// Names, and the bits of values.
    constants: Vec<(&'static str, u64)>,
}

impl Variant {
    fn new(dispatch: &Dispatch) -> Self {
        Self {
            module: dispatch.kernel.module_name(dispatch.half),
            entry: dispatch.kernel.entry,
            constants: dispatch.constants.iter().map(|&(name, value)| (name, value.to_bits())).collect(),
        }
    }

    pub fn constants(&self) -> Vec<(&'static str, f64)> {
        self.constants.iter().map(|&(name, bits)| (name, f64::from_bits(bits))).collect()
    }
}

/// A variant that an adapter gets, specialised.
pub struct Used<'a> {
    pub variant: &'a Variant,
    pub kernel: &'static Kernel,
    pub module: &'a Module,
    pub caps: &'a Caps,
    /// Whether its elements are stored in 16 bits.
    pub half: bool,
    /// Whether no adapter before got it.
    pub first: bool,
}

/// The distinct variants among the dispatches that an adapter gets, with one of the places that use each, and what is wrong
/// with dispatches whatever their modules say.
struct Collection<'a> {
    adapter: &'static str,
    caps: &'a Caps,
    variants: BTreeMap<Variant, (&'static Kernel, bool, String)>,
    faults: Vec<String>,
}

impl Collection<'_> {
    fn add(&mut self, dispatch: &Dispatch, parts: &[Part], place: &str) {
        let faults = dispatch_faults(dispatch, self.caps).into_iter().chain(alias_faults(parts));
        let shader = dispatch.kernel.shader;
        self.faults.extend(faults.map(|fault| format!("{shader} ({}, {place}): {fault}", self.adapter)));
        self.variants
            .entry(Variant::new(dispatch))
            .or_insert_with(|| (dispatch.kernel, dispatch.half, format!("{}, {place}", self.adapter)));
    }

    /// What an op becomes by its rules where `rules`, and by every choice that a tuner has.
    fn op(
        &mut self,
        op: &dyn Op,
        (inputs, outputs): (&[TensorDesc], &[TensorDesc]),
        rules: bool,
        place: &str,
    ) {
        let choices = op.variants(self.caps, inputs);
        for choice in rules.then_some(None).into_iter().chain(choices.iter().map(Some)) {
            match Lowering::run_choice(op, self.caps, inputs, outputs, choice.map(String::as_str)) {
                Ok(lowered) => {
                    for dispatch in &lowered.dispatches {
                        self.add(dispatch, &parts_of_op(inputs, outputs, &lowered, dispatch), place);
                    }
                }
                Err(error) => self.faults.push(format!("{}, {place}, {choice:?}: {error}", self.adapter)),
            }
        }
    }

    /// What the cases of all registries are lowered to.
    fn cases(&mut self, cases: &[(&str, Case)]) {
        for (op, case) in cases.iter().filter(|(_, case)| case.runs_on(self.caps)) {
            let place = format!("{op}: {}", case.label);
            let inputs: Vec<TensorDesc> = case.inputs.iter().map(|input| input.desc().clone()).collect();
            let outputs = case.op.infer(&inputs).unwrap_or_else(|error| panic!("{place}: {error}"));
            self.op(case.op.as_ref(), (&inputs, &outputs), true, &place);
        }
    }

    /// The kernels by which the runtime finds out about the adapter, and that give a step's receipt. None is an op's.
    fn probes(&mut self) {
        for &kernel in &epl_runtime::probe::KERNELS {
            for half in kernel.halves().filter(|&half| !half || self.caps.f16) {
                let element = if half { DType::F16 } else { DType::F32 };
                if kernel.needs.met_by(self.caps, element) {
                    let (module, entry) = (kernel.module_name(half), kernel.entry);
                    let place = format!("{}, outside any op", self.adapter);
                    let variant = Variant { module, entry, constants: Vec::new() };
                    self.variants.entry(variant).or_insert((kernel, half, place));
                }
            }
        }
    }

    /// What a training step is planned as, and what its ops become by other choices.
    fn step(&mut self, graph: &Graph, name: &str) {
        let plan = match Plan::new(graph, self.caps, PlanOptions::default()) {
            Ok(plan) => plan,
            Err(error) => {
                self.faults.push(format!("{}, {name}: {error}", self.adapter));
                return;
            }
        };
        let mut seen = BTreeSet::new();
        for step in &plan.steps {
            let node = &graph.nodes()[step.node];
            let place = format!("{name}, {} in {}", node.op.name(), node.scope);
            for dispatch in &step.dispatches {
                self.add(dispatch, &parts_of_step(graph, self.caps, &plan, step, dispatch), &place);
            }
            let (inputs, outputs) = (graph.descs(&node.inputs), graph.descs(&node.outputs));
            // Many nodes of a network are the same op on the same shapes.
            if seen.insert(choice_key(node.op.as_ref(), &inputs)) {
                self.op(node.op.as_ref(), (&inputs, &outputs), false, &place);
            }
        }
    }
}

/// Training steps of IR-50 with CosFace + EPL: on CASIA-WebFace with all classes at once, and on WebFace12M in tiles, whose tables
/// take several buffers within the limits of WebGPU, all classes and sampled ones; in 32 bits and mixed, as the flag says.
fn steps() -> Vec<(&'static str, bool, Graph)> {
    let mut all = Vec::new();
    for (name, form, classes, rate) in [
        ("training step", HeadForm::Materialized, 10_572, 1.0),
        ("tiled step", HeadForm::Tiled, 617_970, 1.0),
        ("sampled step", HeadForm::Tiled, 617_970, 0.1),
    ] {
        for precision in [Precision::F32, Precision::Mixed] {
            let mut config = Config::default();
            config.head.epl = Some(EplSettings::default());
            config.head.form = form;
            config.head.sample_rate = rate;
            config.train.batch_size = BATCH;
            config.train.precision = precision;
            let spec = spec_of(&config, classes).expect("the default network");
            let options = StepOptions { clip_norm: 1.0, ..step_options(&config, true) };
            let graph = record_step(&spec, &options).expect("the default step").graph;
            all.push((name, precision == Precision::Mixed, graph));
        }
    }
    all
}

/// Calls `visit` with every variant of every kernel that some adapter gets, for each adapter. What is wrong with a dispatch, or
/// with a variant in the eyes of `visit`, is added to `faults`.
pub fn visit_variants(faults: &mut Vec<String>, visit: &mut dyn FnMut(&Used<'_>) -> Vec<String>) {
    let mut modules = BTreeMap::new();
    for (kernel, half) in forms() {
        // A module that does not parse is the finding of the test of defaults.
        let parsed = parse_kernel(kernel, half).ok();
        modules.extend(parsed.map(|parsed| ((kernel.module_name(half), kernel.entry), parsed)));
    }
    let (cases, steps) = (cases(), steps());
    let mut seen = BTreeSet::new();
    for (adapter, caps) in adapters() {
        let mut found = Collection { adapter, caps: &caps, variants: BTreeMap::new(), faults: Vec::new() };
        found.cases(&cases);
        found.probes();
        for (name, _, graph) in steps.iter().filter(|(_, mixed, _)| caps.f16 || !mixed) {
            found.step(graph, name);
        }
        faults.append(&mut found.faults);
        for (variant, &(kernel, half, ref place)) in &found.variants {
            let Some(parsed) = modules.get(&(variant.module.clone(), variant.entry)) else { continue };
            let constants = variant.constants();
            let own = match specialize(parsed, kernel.entry, &constants) {
                Ok(module) => {
                    let first = seen.insert(variant.clone());
                    visit(&Used { variant, kernel, module: &module, caps: &caps, half, first })
                }
                Err(error) => vec![error],
            };
            faults.extend(
                own.iter().map(|fault| format!("{} {constants:?} ({place}): {fault}", variant.module)),
            );
        }
    }
}
