//! What cases are for: GPU against reference, gradients against finite differences, speed, and the match of every
//! kernel's declaration with its WGSL.

use std::sync::Arc;

use half::f16;

use crate::case::{Case, Input, OpEntry, Tolerance, normal};
use crate::choice::Choices;
use crate::device::Device;
use crate::graph::Graph;
use crate::host::{Array, HostTensor};
use crate::inspect::node_seconds;
use crate::interpret::{Values, interpret};
use crate::kernel::{Access, FieldType, Kernel};
use crate::op::{Cost, Gradient, Record, TensorId};
use crate::plan::PlanOptions;
use crate::session::{Session, SessionOptions};
use crate::store::Store;
use crate::{DType, Error, Result};

/// The worst element of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Deviation {
    /// What was compared.
    pub tensor: String,
    /// Flat index of the worst element.
    pub index: usize,
    /// What the kernel gave.
    pub got: f64,
    /// What the reference gave.
    pub want: f64,
    /// `|got - want| / allowed`; more than 1 (or NaN) is a failure.
    pub ratio: f64,
}

impl Deviation {
    fn worse_than(&self, other: &Self) -> bool {
        self.ratio.is_nan() || self.ratio > other.ratio
    }

    /// Whether the worst element is within the tolerance.
    pub fn passes(&self) -> bool {
        // A NaN compares false, and so fails.
        self.ratio <= 1.0
    }
}

/// Compares `got` with `want` element by element; `None` where there are no elements.
pub fn compare(tensor: &str, got: &[f64], want: &[f64], tolerance: Tolerance) -> Option<Deviation> {
    if got.len() != want.len() {
        return Some(Deviation {
            tensor: format!("{tensor}: {} elements, expected {}", got.len(), want.len()),
            index: 0,
            got: f64::NAN,
            want: f64::NAN,
            ratio: f64::NAN,
        });
    }
    let finite: Vec<f64> = want.iter().copied().filter(|v| v.is_finite()).collect();
    // Scaled by the largest element, so that squares of huge or tiny values neither overflow nor vanish.
    let peak = finite.iter().fold(0.0f64, |peak, v| peak.max(v.abs()));
    let rms = if peak == 0.0 {
        0.0
    } else {
        peak * (finite.iter().map(|v| (v / peak).powi(2)).sum::<f64>() / finite.len() as f64).sqrt()
    };
    let ratio = |g: f64, w: f64| {
        // Equal infinities are equal; a NaN on either side is not, and fails.
        if g == w {
            return 0.0;
        }
        (g - w).abs()
            / (tolerance.relative * w.abs().max(rms) + tolerance.rounding * w.abs() + tolerance.absolute)
    };
    got.iter()
        .zip(want)
        .enumerate()
        .map(|(index, (&got, &want))| Deviation {
            tensor: tensor.into(),
            index,
            got,
            want,
            ratio: ratio(got, want),
        })
        // NaN counts as the worst of all.
        .max_by(|a, b| {
            let key = |d: &Deviation| if d.ratio.is_nan() { f64::INFINITY } else { d.ratio };
            key(a).total_cmp(&key(b))
        })
}

/// A case recorded as a graph, all of its inputs persistent.
struct Recorded {
    graph: Graph,
    inputs: Vec<TensorId>,
    outputs: Vec<TensorId>,
}

fn record(case: &Case) -> Result<Recorded> {
    let mut graph = Graph::new();
    graph.set_scope(case.label.clone());
    let inputs: Vec<TensorId> = case
        .inputs
        .iter()
        .enumerate()
        .map(|(index, value)| graph.persistent(&format!("input {index}"), value.desc().clone(), "case"))
        .collect::<Result<_>>()?;
    let outputs = graph.push(case.op.clone(), &inputs)?;
    for &id in &outputs {
        graph.keep(id);
    }
    Ok(Recorded { graph, inputs, outputs })
}

/// What is left of a reference where its type holds nothing so large: an infinity.
fn stored(want: &[f64], dtype: DType) -> Vec<f64> {
    // Half a unit in the last place above the largest: from there on, the nearest 16-bit float is an infinity.
    let limit = if dtype == DType::F16 { f64::from(f16::MAX) + 16.0 } else { f64::INFINITY };
    want.iter().map(|&v| if v.abs() >= limit { f64::INFINITY.copysign(v) } else { v }).collect()
}

/// The tolerance for results of a type. What is stored in 16 bits is rounded once more than what a case's tolerance is about;
/// WGSL leaves the direction open, and lets numbers below the smallest normal one be taken for zero.
fn as_stored(tolerance: Tolerance, dtype: DType) -> Tolerance {
    match dtype {
        DType::F16 => Tolerance {
            rounding: f64::from(f16::EPSILON),
            absolute: tolerance.absolute.max(f64::from(f16::MIN_POSITIVE)),
            ..tolerance
        },
        DType::F32 | DType::U32 => tolerance,
    }
}

/// Runs a case on the GPU and compares every output and every updated input with the reference.
/// Returns the worst deviation.
pub fn run_case(device: &Arc<Device>, case: &Case) -> Result<Deviation> {
    run_case_with(device, case, Arc::default())
}

/// [`run_case`] with the variants that `choices` name.
pub fn run_case_with(device: &Arc<Device>, case: &Case, choices: Arc<Choices>) -> Result<Deviation> {
    let recorded = record(case)?;
    let store = Store::new(device);
    let plan = PlanOptions { choices, ..PlanOptions::default() };
    let options = SessionOptions { plan, poison: true, in_flight: 1, ..SessionOptions::default() };
    let mut session = Session::new(&recorded.graph, &store, options)?;
    let values: Vec<HostTensor> = case.inputs.iter().map(Input::tensor).collect();
    for (index, value) in values.iter().enumerate() {
        store.write(&format!("input {index}"), value)?;
    }
    session.step()?;
    device.finish()?;

    let arrays: Vec<Array> = values.iter().map(Array::from).collect();
    let wants = case.op.reference(&arrays);
    let updates = case.op.updates();
    let updated = updates.iter().filter_map(|&index| recorded.inputs.get(index).copied());
    let targets: Vec<TensorId> = recorded.outputs.iter().copied().chain(updated).collect();
    if targets.len() != wants.len() {
        return Err(Error::graph(
            format!(
                "the reference of {} gives {} tensors, not {}",
                case.op.name(),
                wants.len(),
                targets.len()
            ),
            "return the outputs, then the updated inputs",
        ));
    }
    let mut worst: Option<Deviation> = None;
    let mut consider = |found: Option<Deviation>| {
        if let Some(found) = found
            && worst.as_ref().is_none_or(|worst| found.worse_than(worst))
        {
            worst = Some(found);
        }
    };
    for (number, (&id, want)) in targets.iter().zip(&wants).enumerate() {
        let desc = recorded.graph.desc(id);
        let got = Array::from(&session.read(id)?);
        if want.shape != desc.shape {
            return Err(Error::shape(case.op.name(), format!("reference {}", want.shape), format!("{desc}")));
        }
        let name = if number < recorded.outputs.len() {
            format!("output {number}")
        } else {
            format!("updated input {}", updates[number - recorded.outputs.len()])
        };
        consider(compare(
            &name,
            &got.data,
            &stored(&want.data, desc.dtype),
            as_stored(case.tolerance, desc.dtype),
        ));
    }
    // What the op only reads must still be there.
    for (index, (&id, value)) in recorded.inputs.iter().zip(&values).enumerate() {
        if !updates.contains(&index) && session.read(id)?.bytes() != value.bytes() {
            return Err(Error::gpu(format!("{} changed its input {index}", case.op.name())));
        }
    }
    worst.ok_or_else(|| Error::graph(format!("{} has no outputs to compare", case.op.name()), "give it one"))
}

/// Compares the gradients of a case with central differences, both in f64, with an upstream gradient that is random.
/// Returns the worst deviation, or `None` where the case asks for no gradient.
pub fn run_gradient(case: &Case) -> Result<Option<Deviation>> {
    if case.differentiate.is_empty() {
        return Ok(None);
    }
    let Recorded { mut graph, inputs, outputs } = record(case)?;
    let Some(&output) = outputs.first() else { return Ok(None) };
    let desc = graph.desc(output).clone();
    let upstream_value = normal(desc.shape.clone(), 1.0, 0xd1ff).tensor();
    let upstream = graph.persistent("upstream", desc, "case")?;
    let mut arriving = vec![None; outputs.len()];
    if let Some(first) = arriving.first_mut() {
        *first = Some(upstream);
    }
    let needed: Vec<bool> = (0..inputs.len()).map(|index| case.differentiate.contains(&index)).collect();
    let mut gradient = Gradient {
        record: &mut graph,
        inputs: &inputs,
        outputs: &outputs,
        upstream: &arriving,
        needed: &needed,
        result: vec![None; inputs.len()],
    };
    case.op.gradient(&mut gradient)?;
    let gradients = gradient.result;

    let mut values = Values::new();
    let arrays: Vec<Array> = case.inputs.iter().map(|input| Array::from(&input.tensor())).collect();
    for (&id, value) in inputs.iter().zip(&arrays) {
        values.set(&graph, id, value.clone())?;
    }
    values.set(&graph, upstream, Array::from(&upstream_value))?;
    let upstream_array = Array::from(&upstream_value);
    interpret(&graph, &mut values)?;

    // Differences use the op's own reference alone, so that they share nothing with the gradient ops.
    let forward = |arrays: &[Array]| -> f64 {
        let results = case.op.reference(arrays);
        results
            .first()
            .map_or(f64::NAN, |y| y.data.iter().zip(&upstream_array.data).map(|(a, b)| a * b).sum())
    };
    let mut worst: Option<Deviation> = None;
    for &index in &case.differentiate {
        let (Some(&id), Some(&Some(gradient))) = (inputs.get(index), gradients.get(index)) else {
            return Err(Error::graph(
                format!("{} gave no gradient for input {index}", case.op.name()),
                "set it in the op's gradient, or leave it out of the case's differentiate list",
            ));
        };
        let got = values.get(&graph, gradient)?;
        let mut arrays = arrays.clone();
        let count = graph.desc(id).shape.elements();
        let mut want = Vec::with_capacity(count);
        for element in 0..count {
            let at = arrays[index].data[element];
            let step = case.epsilon * at.abs().max(1.0);
            arrays[index].data[element] = at + step;
            let above = forward(&arrays);
            arrays[index].data[element] = at - step;
            let below = forward(&arrays);
            arrays[index].data[element] = at;
            want.push((above - below) / (2.0 * step));
        }
        let tolerance = Tolerance { relative: case.gradient_tolerance, rounding: 0.0, absolute: 1e-9 };
        let found = compare(&format!("gradient of input {index}"), &got.data, &want, tolerance);
        if let Some(found) = found
            && worst.as_ref().is_none_or(|worst| found.worse_than(worst))
        {
            worst = Some(found);
        }
    }
    Ok(worst)
}

/// Speed of a case.
#[derive(Clone, Debug)]
pub struct Speed {
    /// Median seconds of one execution.
    pub seconds: f64,
    /// The least work that it is.
    pub cost: Cost,
    /// Whether the GPU's own clock was used.
    pub gpu_clock: bool,
    /// What it multiplies in the adapter's matrix unit, if anything.
    pub matrices: Option<DType>,
}

/// Measures a case: a few executions to warm up, then the median of `repeats`.
pub fn run_speed(device: &Arc<Device>, case: &Case, repeats: usize) -> Result<Speed> {
    let recorded = record(case)?;
    let store = Store::new(device);
    let session = Session::new(&recorded.graph, &store, SessionOptions::default())?;
    for (index, input) in case.inputs.iter().enumerate() {
        store.write(&format!("input {index}"), &input.tensor())?;
    }
    node_seconds(&session, 2)?;
    let (mut samples, mut gpu_clock) = (Vec::with_capacity(repeats), false);
    for _ in 0..repeats.max(1) {
        let timings = node_seconds(&session, 1)?;
        gpu_clock = timings.gpu_clock;
        samples.push(timings.seconds.iter().sum::<f64>());
    }
    samples.sort_by(f64::total_cmp);
    let inputs: Vec<_> = case.inputs.iter().map(|input| input.desc().clone()).collect();
    let outputs = recorded.graph.descs(&recorded.outputs);
    let seconds = samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN);
    let matrices = session.plan().steps.iter().find_map(crate::plan::Step::matrices);
    Ok(Speed { seconds, cost: case.op.cost(&inputs, &outputs), gpu_clock, matrices })
}

/// Differences between a kernel's Rust declaration and its WGSL; empty where they agree.
pub fn check_kernel(kernel: &Kernel) -> Vec<String> {
    let mut faults = Vec::new();
    for half in kernel.halves() {
        let Some(source) = kernel.source_for(half) else {
            return vec![format!("shader {} is not in the table", kernel.shader)];
        };
        let name = kernel.module_name(half);
        faults.extend(check_module(kernel, &source).into_iter().map(|fault| format!("{name}: {fault}")));
    }
    faults
}

fn check_module(kernel: &Kernel, source: &str) -> Vec<String> {
    let module = match naga::front::wgsl::parse_str(source) {
        Ok(module) => module,
        Err(error) => return vec![error.emit_to_string(source)],
    };
    let mut faults = Vec::new();
    if !module.entry_points.iter().any(|entry| entry.name == kernel.entry) {
        faults.push(format!("there is no entry point {}", kernel.entry));
    }
    for name in kernel.constants {
        if !module.overrides.iter().any(|(_, item)| item.name.as_deref() == Some(name)) {
            faults.push(format!("there is no override constant {name}"));
        }
    }
    let mut seen = vec![false; kernel.bindings.len() + 1];
    for (_, variable) in module.global_variables.iter() {
        let Some(binding) = &variable.binding else { continue };
        let name = variable.name.as_deref().unwrap_or("");
        if binding.group != 0 {
            faults.push(format!("{name} is in group {}, not 0", binding.group));
            continue;
        }
        match seen.get_mut(binding.binding as usize) {
            Some(flag) => *flag = true,
            None => {
                faults.push(format!("{name} at binding {} is not declared", binding.binding));
                continue;
            }
        }
        if binding.binding == 0 {
            faults.extend(check_params(kernel, &module, variable));
            continue;
        }
        let Some(declared) = kernel.bindings.get(binding.binding as usize - 1) else { continue };
        if declared.name != name {
            faults.push(format!("binding {} is {name}; declared {}", binding.binding, declared.name));
        }
        let want = match declared.access {
            Access::Read => naga::StorageAccess::LOAD,
            Access::ReadWrite => naga::StorageAccess::LOAD | naga::StorageAccess::STORE,
        };
        if variable.space != (naga::AddressSpace::Storage { access: want }) {
            faults.push(format!("{name} is {:?}; declared {:?}", variable.space, declared.access));
        }
    }
    for (binding, seen) in seen.iter().enumerate() {
        if !seen {
            faults.push(format!("binding {binding} is declared but not in the shader"));
        }
    }
    faults
}

fn check_params(kernel: &Kernel, module: &naga::Module, variable: &naga::GlobalVariable) -> Vec<String> {
    let mut faults = Vec::new();
    if variable.space != naga::AddressSpace::Uniform {
        faults.push(format!("binding 0 is {:?}, not uniform", variable.space));
    }
    let naga::TypeInner::Struct { members, .. } = &module.types[variable.ty].inner else {
        faults.push("binding 0 is not a struct".into());
        return faults;
    };
    if members.len() != kernel.params.len() {
        faults.push(format!(
            "the parameter block has {} fields; declared {}",
            members.len(),
            kernel.params.len()
        ));
    }
    for (member, field) in members.iter().zip(kernel.params) {
        let name = member.name.as_deref().unwrap_or("");
        let kind = match field.ty {
            FieldType::U32 => naga::ScalarKind::Uint,
            FieldType::I32 => naga::ScalarKind::Sint,
            FieldType::F32 => naga::ScalarKind::Float,
        };
        let same_type = matches!(
            module.types[member.ty].inner,
            naga::TypeInner::Scalar(scalar) if scalar.kind == kind && scalar.width == 4
        );
        if name != field.name || !same_type || member.offset as usize != field.offset {
            faults.push(format!(
                "field {name} at {} differs from the declared {} {:?} at {}",
                member.offset, field.name, field.ty, field.offset
            ));
        }
    }
    faults
}

/// The entries of `registry` called `names`, or all of them where no names are given.
pub fn select<'a>(registry: &'a [OpEntry], names: &[String]) -> Result<Vec<&'a OpEntry>> {
    if let Some(unknown) = names.iter().find(|name| !registry.iter().any(|entry| entry.name == **name)) {
        let known: Vec<&str> = registry.iter().map(|entry| entry.name).collect();
        return Err(Error::graph(
            format!("there is no op {unknown}"),
            format!("known: {}", known.join(", ")),
        ));
    }
    Ok(registry.iter().filter(|entry| names.is_empty() || names.iter().any(|n| n == entry.name)).collect())
}
