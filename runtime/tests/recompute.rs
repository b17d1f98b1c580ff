//! Tensors that are made again for gradients: the same bits, less memory, and nothing that happens twice.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::Arc;

use epl_runtime::autodiff::backward;
use epl_runtime::case::normal;
use epl_runtime::ops::batch_norm::{BatchNorm, Then, batch_norm_train};
use epl_runtime::ops::conv2d::{Conv2d, conv2d};
use epl_runtime::ops::{add, prelu, reshape, sum_all};
use epl_runtime::{
    Caps, Device, DeviceOptions, Graph, HostTensor, Plan, PlanOptions, Session, SessionOptions, Shape, Store,
    TensorDesc, TensorId,
};

const IMAGES: [usize; 4] = [3, 9, 7, 8];
const CHANNELS: usize = 8;
const BLOCKS: usize = 6;

/// Records blocks, and remembers what they are made of.
struct Recorder {
    graph: Graph,
    /// Persistent tensors.
    names: Vec<(String, Shape)>,
    trained: Vec<TensorId>,
}

impl Recorder {
    fn persistent(&mut self, name: String, shape: impl Into<Shape>, trained: bool) -> TensorId {
        let shape = shape.into();
        let id = self.graph.persistent(&name, TensorDesc::f32(shape.clone()), "weights").unwrap();
        self.names.push((name, shape));
        if trained {
            self.trained.push(id);
        }
        id
    }

    fn norm(&mut self, name: &str, x: TensorId) -> TensorId {
        let [weight, bias, mean, var] = ["weight", "bias", "mean", "var"].map(|part| {
            let trained = part == "weight" || part == "bias";
            self.persistent(format!("{name} {part}"), [CHANNELS], trained)
        });
        let config = BatchNorm { eps: 1e-5, momentum: 0.5, then: Then::Nothing, moments: false };
        batch_norm_train(&mut self.graph, x, [weight, bias, mean, var], None, None, config).unwrap()
    }

    fn convolution(&mut self, name: &str, x: TensorId) -> TensorId {
        let weight = self.persistent(name.into(), [3, 3, CHANNELS, CHANNELS], true);
        conv2d(&mut self.graph, x, weight, Conv2d { padding: [1; 4], ..Conv2d::default() }).unwrap()
    }
}

struct Stack {
    graph: Graph,
    x: TensorId,
    names: Vec<(String, Shape)>,
    gradients: Vec<TensorId>,
}

/// Residual blocks of batch norm, convolution, batch norm, PReLU, convolution, with the gradients of all that is trained.
fn stack(recomputes: bool) -> Stack {
    let mut recorder = Recorder { graph: Graph::new(), names: Vec::new(), trained: Vec::new() };
    recorder.graph.set_recomputes(recomputes);
    let x = recorder.graph.input("x", TensorDesc::f32(IMAGES)).unwrap();
    let mut y = x;
    for block in 0..BLOCKS {
        let z = recorder.norm(&format!("{block} first"), y);
        let z = recorder.convolution(&format!("{block} one"), z);
        let z = recorder.norm(&format!("{block} second"), z);
        let slope = recorder.persistent(format!("{block} slope"), [CHANNELS], true);
        let z = prelu::prelu(&mut recorder.graph, z, slope).unwrap();
        let z = recorder.convolution(&format!("{block} two"), z);
        y = add::add(&mut recorder.graph, z, y).unwrap();
    }
    let Recorder { mut graph, names, trained } = recorder;
    let flat = reshape::reshape(&mut graph, y, [IMAGES.iter().product::<usize>()]).unwrap();
    let loss = sum_all::sum_all(&mut graph, flat, 0.25).unwrap();
    let gradients = backward(&mut graph, loss, &trained).unwrap();
    for &gradient in &gradients {
        graph.keep(gradient);
    }
    Stack { graph, x, names, gradients }
}

/// Gradients and persistent tensors after a step.
fn step(device: &Arc<Device>, stack: &Stack) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let store = Store::new(device);
    let options = SessionOptions { poison: true, ..SessionOptions::default() };
    let mut session = Session::new(&stack.graph, &store, options).unwrap();
    for (seed, (name, shape)) in stack.names.iter().enumerate() {
        store.write(name, &normal(shape.clone(), 0.3, seed as u64 + 3).tensor()).unwrap();
    }
    let x: HostTensor = normal(IMAGES, 1.0, 1).tensor();
    session.run(&[(stack.x, &x)]).unwrap();
    let gradients = stack.gradients.iter().map(|&id| session.read(id).unwrap().into_f32().unwrap());
    let gradients = gradients.collect();
    (gradients, stack.names.iter().map(|(name, _)| store.read(name).unwrap().into_f32().unwrap()).collect())
}

#[test]
fn gradients_are_the_same_bits_and_statistics_move_once() {
    for shader_checks in [true, false] {
        let device = Device::open(&DeviceOptions { shader_checks, ..DeviceOptions::default() }).unwrap();
        let (kept, again) = (step(&device, &stack(false)), step(&device, &stack(true)));
        assert!(kept.0.iter().flatten().all(|value| value.is_finite()));
        assert!(kept.0.iter().all(|gradient| gradient.iter().any(|&value| value != 0.0)));
        assert!(kept == again);
    }
}

#[test]
fn half_of_what_a_block_keeps_is_made_again() {
    let device = Device::open(&DeviceOptions::default()).unwrap();
    let transient = |recomputes: bool| {
        let plan = Plan::new(&stack(recomputes).graph, device.caps(), PlanOptions::default()).unwrap();
        plan.slots.iter().sum::<u64>()
    };
    // Of a block's six tensors the input, and what the two convolutions make, stay: here the last block's second one does
    // not, and some more live at the peak.
    let (kept, again) = (transient(false), transient(true));
    assert!(again as f64 <= 0.65 * kept as f64, "{again} bytes instead of {kept}");
}

#[test]
fn what_is_kept_is_not_made_again() {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::f32([4, 3])).unwrap();
    let slopes = ["a", "b"].map(|name| graph.persistent(name, TensorDesc::f32([3]), "weights").unwrap());
    let y = prelu::prelu(&mut graph, x, slopes[0]).unwrap();
    graph.keep(y);
    let z = prelu::prelu(&mut graph, y, slopes[1]).unwrap();
    let flat = reshape::reshape(&mut graph, z, [12]).unwrap();
    let loss = sum_all::sum_all(&mut graph, flat, 1.0).unwrap();
    graph.keep(loss);
    for gradient in backward(&mut graph, loss, &slopes).unwrap() {
        graph.keep(gradient);
    }
    // Nobody needs z again either, so that what would make it does not run.
    let plan = Plan::new(&graph, &Caps::WEBGPU, PlanOptions::default()).unwrap();
    let ops = plan.steps.iter().map(|step| graph.nodes()[step.node].op.name());
    assert_eq!(ops.filter(|&name| name == "prelu").count(), 2);
}
