//! The graph, its differentiation, its plan and its replay.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use epl_runtime::autodiff::backward;
use epl_runtime::case::{Tolerance, normal};
use epl_runtime::inspect::{find_divergence, profile};
use epl_runtime::interpret::{Values, interpret};
use epl_runtime::kernel::Kernel;
use epl_runtime::op::{Cost, Lowering, Op, Operand, push_one};
use epl_runtime::ops::batch_norm::{BatchNorm, Then, batch_norm_train};
use epl_runtime::ops::{add, prelu, reshape, sum_all};
use epl_runtime::plan::Place;
use epl_runtime::{
    Array, Caps, Device, DeviceOptions, Graph, HostTensor, Plan, PlanOptions, Record, Result, Session,
    SessionOptions, Shape, Store, TensorDesc, TensorId,
};

fn device() -> Arc<Device> {
    Device::open(&DeviceOptions::default()).unwrap()
}

fn drawn(shape: impl Into<Shape>, deviation: f32, seed: u64) -> HostTensor {
    normal(shape, deviation, seed).tensor()
}

struct Chain {
    graph: Graph,
    x: TensorId,
    slopes: Vec<TensorId>,
    loss: TensorId,
}

/// A chain of PReLUs and residual sums over x `[6, 5]`, with a scalar loss.
fn chain(length: usize) -> Chain {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::f32([6, 5])).unwrap();
    let mut slopes = Vec::new();
    let mut y = x;
    for index in 0..length {
        graph.set_scope(format!("layer {index}"));
        let slope = graph.persistent(&format!("slope {index}"), TensorDesc::f32([5]), "weights").unwrap();
        slopes.push(slope);
        let z = prelu::prelu(&mut graph, y, slope).unwrap();
        y = add::add(&mut graph, z, y).unwrap();
    }
    let flat = reshape::reshape(&mut graph, y, [30]).unwrap();
    let loss = sum_all::sum_all(&mut graph, flat, 0.25).unwrap();
    graph.fetch(loss);
    Chain { graph, x, slopes, loss }
}

fn write_slopes(store: &Store, length: usize) {
    for index in 0..length {
        store.write(&format!("slope {index}"), &drawn([5], 0.3, index as u64 + 10)).unwrap();
    }
}

#[test]
fn gradients_of_a_graph_equal_finite_differences_of_the_graph() {
    let Chain { mut graph, x, slopes, loss } = chain(3);
    let mut wrt = slopes.clone();
    wrt.push(x);
    let gradients = backward(&mut graph, loss, &wrt).unwrap();
    let run = |overrides: Option<(usize, usize, f64)>| {
        let mut values = Values::new();
        for (index, &id) in wrt.iter().enumerate() {
            let mut value = Array::from(&drawn(graph.desc(id).shape.clone(), 1.0, index as u64));
            if let Some((_, element, step)) = overrides.filter(|(tensor, ..)| *tensor == index) {
                value.data[element] += step;
            }
            values.set(&graph, id, value).unwrap();
        }
        interpret(&graph, &mut values).unwrap();
        values
    };
    let base = run(None);
    for (index, &gradient) in gradients.iter().enumerate() {
        let got = base.get(&graph, gradient).unwrap();
        for element in 0..got.data.len() {
            let at = |step| run(Some((index, element, step))).get(&graph, loss).unwrap().item();
            let want = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((got.data[element] - want).abs() < 1e-6, "tensor {index}[{element}]");
        }
    }
}

#[test]
fn a_planned_session_computes_what_the_references_compute() {
    let Chain { mut graph, x, slopes, loss } = chain(4);
    let gradients = backward(&mut graph, loss, &slopes).unwrap();
    gradients.iter().for_each(|&id| graph.fetch(id));
    let device = device();
    for no_sharing in [false, true] {
        let store = Store::new(&device);
        let plan = PlanOptions { no_sharing, ..PlanOptions::default() };
        let options = SessionOptions { plan, poison: true, ..SessionOptions::default() };
        let mut session = Session::new(&graph, &store, options).unwrap();
        write_slopes(&store, 4);
        let input = drawn([6, 5], 1.0, 1);
        let got = session.run(&[(x, &input)]).unwrap();
        let mut values = Values::new();
        values.set(&graph, x, Array::from(&input)).unwrap();
        for (index, &slope) in slopes.iter().enumerate() {
            values.set(&graph, slope, Array::from(&drawn([5], 0.3, index as u64 + 10))).unwrap();
        }
        interpret(&graph, &mut values).unwrap();
        for (&id, got) in graph.fetched().iter().zip(&got) {
            let want = values.get(&graph, id).unwrap();
            for (g, w) in got.as_f32().unwrap().iter().zip(&want.data) {
                assert!((f64::from(*g) - w).abs() < 1e-4 * w.abs().max(1.0), "{g} {w}");
            }
        }
    }
}

#[test]
fn tensors_of_one_dispatch_never_share_a_slot_and_lives_never_overlap() {
    let Chain { mut graph, slopes, loss, .. } = chain(12);
    backward(&mut graph, loss, &slopes).unwrap().into_iter().for_each(|id| graph.keep(id));
    let plan = Plan::new(&graph, &Caps::WEBGPU, PlanOptions::default()).unwrap();
    let lives = plan.lifetimes();
    for (i, a) in lives.iter().enumerate() {
        for b in &lives[i + 1..] {
            let overlap = a.first <= b.last && b.first <= a.last;
            let apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
            assert!(!(overlap && a.slot == b.slot) || apart, "{a:?} and {b:?}");
        }
    }
    let slot_of = |place: Option<Place>| match place {
        Some(Place::Slot { slot, .. }) => Some(slot),
        _ => None,
    };
    for step in &plan.steps {
        let node = &graph.nodes()[step.node];
        let mut operands: Vec<_> =
            node.inputs.iter().chain(&node.outputs).map(|&id| graph.root(id).0).collect();
        operands.sort();
        operands.dedup();
        let places = operands.iter().map(|&id| plan.place(id));
        let mut slots: Vec<usize> =
            places.chain(step.workspaces.iter().map(|&(place, _)| Some(place))).filter_map(slot_of).collect();
        let count = slots.len();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), count, "{} binds two of one slot", node.op.name());
    }
    assert!(plan.slots.iter().sum::<u64>() < plan.memory.without_sharing / 2, "{:?}", plan.memory);
    assert!(plan.explain(&graph).contains("layer 3"));
}

#[test]
fn dead_nodes_do_not_run() {
    let Chain { mut graph, x, .. } = chain(2);
    let live = Plan::new(&graph, &Caps::WEBGPU, PlanOptions::default()).unwrap().steps.len();
    add::add(&mut graph, x, x).unwrap();
    assert_eq!(Plan::new(&graph, &Caps::WEBGPU, PlanOptions::default()).unwrap().steps.len(), live);
}

#[test]
fn what_is_planned_is_what_the_driver_counts() {
    // Devices of their own, since what other tests allocate is counted as well. The table is in several buffers on the second.
    for (max_buffer_bytes, in_flight, poison) in [(None, 3, false), (Some(1 << 14), 1, true)] {
        let device = Device::open(&DeviceOptions { max_buffer_bytes, ..DeviceOptions::default() }).unwrap();
        device.finish().unwrap();
        let before = device.buffer_bytes();
        let Chain { mut graph, x, slopes, loss } = chain(5);
        let table = graph.persistent("table", TensorDesc::f32([200, 37]), "tables").unwrap();
        graph.keep(table);
        backward(&mut graph, loss, &slopes).unwrap().into_iter().for_each(|id| graph.fetch(id));
        let store = Store::new(&device);
        let options = SessionOptions { in_flight, poison, ..SessionOptions::default() };
        let mut session = Session::new(&graph, &store, options).unwrap();
        write_slopes(&store, 5);
        for _ in 0..4 {
            session.run(&[(x, &drawn([6, 5], 1.0, 1))]).unwrap();
        }
        let planned = session.plan().memory.clone();
        assert_eq!(device.buffer_bytes() - before, planned.total(), "{planned:?}");
        assert_eq!(planned.poison > 0, poison);
        if !poison {
            let plan = Plan::new(&graph, device.caps(), PlanOptions::default()).unwrap();
            assert_eq!(plan.memory, planned, "without a device as with one");
        }
        drop((session, store));
        device.finish().unwrap();
        assert_eq!(device.buffer_bytes(), before, "all of it is freed");
    }
}

#[test]
fn a_step_allocates_nothing_and_waits_for_nothing() {
    let Chain { graph, x, .. } = chain(4);
    let device = device();
    let store = Store::new(&device);
    let mut session = Session::new(&graph, &store, SessionOptions::default()).unwrap();
    write_slopes(&store, 4);
    let input = drawn([6, 5], 1.0, 1);
    // The first round fills the ring of staging buffers.
    for _ in 0..4 {
        session.write(x, input.bytes()).unwrap();
        session.step().unwrap();
    }
    session.flush().unwrap();
    let (before, live_before) = (device.counters(), device.live_objects());
    for _ in 0..3 {
        session.write(x, input.bytes()).unwrap();
        session.step().unwrap();
    }
    let (after, live_after) = (device.counters(), device.live_objects());
    assert_eq!(after.submits - before.submits, 3, "one submission a step");
    assert_eq!(after.buffers, before.buffers);
    assert_eq!(after.bind_groups, before.bind_groups);
    assert_eq!(after.pipelines, before.pipelines);
    assert_eq!(after.waits, before.waits);
    assert_eq!(after.throttles, before.throttles);
    // wgpu's own count of buffers, bind groups and device memory allocations.
    assert_eq!(live_after, live_before);
    session.flush().unwrap();
}

#[test]
fn sessions_of_several_threads_share_a_device() {
    // A thread's poll of the device runs the callbacks of the others' steps too.
    let Chain { graph, x, .. } = chain(1);
    let device = device();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (graph, device) = (&graph, &device);
            scope.spawn(move || {
                let store = Store::new(device);
                let options = SessionOptions { in_flight: 1 + thread % 3, ..SessionOptions::default() };
                let mut session = Session::new(graph, &store, options).unwrap();
                write_slopes(&store, 1);
                let mut steps = Vec::new();
                for step in 0..400 {
                    session.write(x, drawn([6, 5], 1.0, step).bytes()).unwrap();
                    session.step().unwrap();
                    let done = if step % 7 == 0 { session.flush() } else { session.finished() };
                    steps.extend(done.unwrap().into_iter().map(|done| done.step));
                    assert!(step % 7 != 0 || steps.len() as u64 == step + 1, "a flush leaves nothing behind");
                }
                steps.extend(session.flush().unwrap().into_iter().map(|done| done.step));
                assert!(steps.into_iter().eq(0..400));
            });
        }
    });
}

#[test]
fn a_batch_that_is_not_finite_leaves_the_running_statistics_alone() {
    let device = device();
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::f32([5, 3])).unwrap();
    let vector =
        |graph: &mut Graph, name: &str| graph.persistent(name, TensorDesc::f32([3]), "weights").unwrap();
    let [weight, bias, mean, var] = ["weight", "bias", "mean", "var"].map(|name| vector(&mut graph, name));
    let config = BatchNorm { eps: 1e-5, momentum: 0.5, then: Then::Nothing, moments: false };
    let y = batch_norm_train(&mut graph, x, [weight, bias, mean, var], None, None, config).unwrap();
    graph.fetch(y);
    let store = Store::new(&device);
    let mut session = Session::new(&graph, &store, SessionOptions::default()).unwrap();
    let mut values = drawn([5, 3], 1.0, 4).into_f32().unwrap();
    // The first column overflows, and the second one's squares do.
    (values[0], values[1]) = (f32::INFINITY, 3e38);
    let input = HostTensor::from_f32([5, 3], values).unwrap();
    session.run(&[(x, &input)]).unwrap();
    let mean = store.read("mean").unwrap().into_f32().unwrap();
    let var = store.read("var").unwrap().into_f32().unwrap();
    assert_eq!((&mean[..2], &var[..2]), (&[0.0; 2][..], &[0.0; 2][..]));
    assert!(mean[2] != 0.0 && var[2] > 0.0, "the third column is as ever");
}

#[test]
fn results_arrive_in_order_with_the_step_that_made_them() {
    let Chain { graph, x, .. } = chain(1);
    let device = device();
    let store = Store::new(&device);
    let mut session = Session::new(&graph, &store, SessionOptions::default()).unwrap();
    write_slopes(&store, 1);
    let mut results = Vec::new();
    for step in 0..10u64 {
        let input = drawn([6, 5], (step + 1) as f32, 1);
        session.write(x, input.bytes()).unwrap();
        assert_eq!(session.step().unwrap(), step);
        results.extend(session.finished().unwrap());
    }
    results.extend(session.flush().unwrap());
    let steps: Vec<u64> = results.iter().map(|done| done.step).collect();
    assert_eq!(steps, (0..10).collect::<Vec<u64>>());
    // The chain is homogeneous of degree one in its input.
    let loss = |index: usize| results[index].values[0].as_f32().unwrap()[0];
    for step in 1..10 {
        assert!((loss(step) / loss(0) - (step + 1) as f32).abs() < 1e-4 * (step + 1) as f32);
    }
}

#[test]
fn an_input_that_was_not_written_is_an_error_that_names_it() {
    let Chain { graph, x, .. } = chain(1);
    let device = device();
    let store = Store::new(&device);
    let mut session = Session::new(&graph, &store, SessionOptions::default()).unwrap();
    let error = session.step().unwrap_err();
    assert!(error.to_string().contains("input x"), "{error}");
    let error = session.write(x, &[0; 8]).unwrap_err();
    assert!(error.to_string().contains("120 bytes"), "{error}");
}

#[test]
fn wrong_shapes_name_the_op_and_where_it_was_recorded() {
    let mut graph = Graph::new();
    let a = graph.input("a", TensorDesc::f32([2, 3])).unwrap();
    let b = graph.input("b", TensorDesc::f32([3, 2])).unwrap();
    graph.set_scope("layer7.conv1");
    let error = add::add(&mut graph, a, b).unwrap_err().to_string();
    for part in ["add", "layer7.conv1", "[2, 3]", "[3, 2]"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(graph.input("a", TensorDesc::f32([1])).is_err(), "a name is given twice");
}

#[test]
fn a_tensor_over_the_binding_limit_is_refused_with_both_sizes() {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::f32([5000, 5000, 4])).unwrap();
    let y = add::add(&mut graph, x, x).unwrap();
    graph.keep(y);
    let error = Plan::new(&graph, &Caps::WEBGPU, PlanOptions::default()).unwrap_err();
    assert!(error.to_string().contains("400000000"), "{error}");
    assert!(error.to_string().contains("134217728"), "{error}");
    assert!(error.hint().is_some());
}

/// PReLU on the GPU with a reference that is wrong by a factor.
#[derive(Debug)]
struct Wrong;

impl Op for Wrong {
    fn name(&self) -> &'static str {
        "wrong"
    }
    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        prelu::Prelu.infer(inputs)
    }
    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        prelu::Prelu.lower(lowering)
    }
    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let mut results = prelu::Prelu.reference(inputs);
        results[0].data.iter_mut().for_each(|v| *v *= 1.01);
        results
    }
    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        prelu::Prelu.cost(inputs, outputs)
    }
}

#[test]
fn the_first_op_that_diverges_is_found() {
    for broken in [true, false] {
        let mut graph = Graph::new();
        let x = graph.input("x", TensorDesc::f32([6, 5])).unwrap();
        let slope = graph.persistent("slope", TensorDesc::f32([5]), "weights").unwrap();
        let y = prelu::prelu(&mut graph, x, slope).unwrap();
        graph.set_scope("the faulty one");
        let z = if broken {
            push_one(&mut graph, Wrong, &[y, slope]).unwrap()
        } else {
            prelu::prelu(&mut graph, y, slope).unwrap()
        };
        graph.set_scope("after it");
        let z = prelu::prelu(&mut graph, z, slope).unwrap();
        graph.keep(z);
        let store = Store::new(&device());
        let mut session = Session::new(&graph, &store, SessionOptions::default()).unwrap();
        store.write("slope", &drawn([5], 0.3, 2)).unwrap();
        session.write(x, drawn([6, 5], 1.0, 3).bytes()).unwrap();
        let found = find_divergence(&mut session, Tolerance::default()).unwrap();
        if broken {
            let found = found.expect("the wrong reference is noticed");
            assert_eq!((found.op, found.scope.as_str(), found.node), ("wrong", "the faulty one", 1));
        } else {
            assert!(found.is_none(), "{found:?}");
        }
    }
}

#[test]
fn every_op_is_timed() {
    let Chain { graph, x, .. } = chain(3);
    let store = Store::new(&device());
    let mut session = Session::new(&graph, &store, SessionOptions::default()).unwrap();
    session.run(&[(x, &drawn([6, 5], 1.0, 1))]).unwrap();
    let timings = profile(&session, 3).unwrap();
    assert_eq!(timings.len(), session.plan().steps.len());
    assert!(timings.iter().filter(|t| t.op == "prelu").all(|t| t.seconds > 0.0), "{timings:?}");
    assert!(timings.iter().any(|t| t.scope == "layer 2" && t.cost.bytes > 0.0));
}

#[test]
fn the_same_inputs_give_the_same_bits() {
    let bits = || {
        let Chain { mut graph, x, slopes, loss } = chain(5);
        let gradients = backward(&mut graph, loss, &slopes).unwrap();
        gradients.iter().for_each(|&id| graph.fetch(id));
        let store = Store::new(&device());
        let mut session = Session::new(&graph, &store, SessionOptions::default()).unwrap();
        write_slopes(&store, 5);
        let values = session.run(&[(x, &drawn([6, 5], 1.0, 1))]).unwrap();
        values.iter().flat_map(|value| value.bytes().to_vec()).collect::<Vec<u8>>()
    };
    assert_eq!(bits(), bits());
}

#[test]
fn a_tensor_that_shares_its_memory_cannot_be_placed() {
    let mut graph = Graph::new();
    let arena = graph.persistent("arena", TensorDesc::f32([256]), "gradients").unwrap();
    let x = graph.input("x", TensorDesc::f32([6, 5])).unwrap();
    let y = add::add(&mut graph, x, x).unwrap();
    let z = add::add(&mut graph, x, y).unwrap();
    reshape::reshape(&mut graph, y, [30]).unwrap();
    let error = graph.place(y, arena, 0).unwrap_err();
    assert!(error.to_string().contains("shares its memory"), "{error}");
    assert!(graph.place(z, arena, 4).is_err(), "an offset that no adapter accepts");
    graph.place(z, arena, 256).unwrap();
    assert!(graph.place(z, arena, 512).is_err(), "placed twice");
}

#[test]
fn a_session_without_inputs_and_results_does_not_run_away() {
    let mut graph = Graph::new();
    let slope = graph.persistent("slope", TensorDesc::f32([5]), "weights").unwrap();
    let y = add::add(&mut graph, slope, slope).unwrap();
    graph.keep(y);
    let device = device();
    let store = Store::new(&device);
    let mut session = Session::new(&graph, &store, SessionOptions::default()).unwrap();
    store.write("slope", &drawn([5], 1.0, 1)).unwrap();
    for step in 0..50 {
        assert_eq!(session.step().unwrap(), step);
    }
    session.flush().unwrap();
    let (got, slope) = (session.read(y).unwrap(), drawn([5], 1.0, 1));
    for (y, x) in got.as_f32().unwrap().iter().zip(slope.as_f32().unwrap()) {
        assert_eq!(*y, 2.0 * x);
    }
}

/// An op that needs a workspace of a gigabyte.
#[derive(Debug)]
struct Greedy;

impl Op for Greedy {
    fn name(&self) -> &'static str {
        "greedy"
    }
    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        add::Add.infer(inputs)
    }
    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let workspace = lowering.workspace(1 << 30);
        let kernel: &'static Kernel = add::ENTRY.kernels[0];
        let params = add::AddParams::default();
        let operands = [workspace, Operand::Input(0), Operand::Output(0)];
        lowering.dispatch(kernel, &[], &params, &operands, [1, 1, 1])
    }
    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        add::Add.reference(inputs)
    }
    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        add::Add.cost(inputs, outputs)
    }
}

#[test]
fn a_workspace_over_the_binding_limit_is_refused_when_planned() {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::f32([6])).unwrap();
    graph.set_scope("here");
    let y = push_one(&mut graph, Greedy, &[x, x]).unwrap();
    graph.keep(y);
    let error = Plan::new(&graph, &Caps::WEBGPU, PlanOptions::default()).unwrap_err().to_string();
    for part in ["greedy", "here", "workspace", "1073741824", "134217728"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_persistent_tensor_over_the_largest_buffer_is_refused_when_planned() {
    let mut graph = Graph::new();
    graph.persistent("weights", TensorDesc::f32([1 << 28]), "weights").unwrap();
    let error = Plan::new(&graph, &Caps::WEBGPU, PlanOptions::default()).unwrap_err().to_string();
    assert!(error.contains("weights takes 1073741824 bytes"), "{error}");
}
