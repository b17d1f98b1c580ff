//! Choosing kernels by measuring them: what wins is right and faster, what is wrong never wins.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::ops::ControlFlow::{Break, Continue};
use std::sync::Arc;
use std::time::Duration;

use epl_runtime::case::{Case, normal};
use epl_runtime::check::run_case_with;
use epl_runtime::choice::{Choices, RULE, key};
use epl_runtime::kernel::{Kernel, Needs, ParamBlock, read, write};
use epl_runtime::op::{Bound, Cost, Lowering, Op, Operand, push_one};
use epl_runtime::ops::conv2d::{Conv2d, conv2d};
use epl_runtime::ops::conv2d_grad_input::Conv2dGradInput;
use epl_runtime::ops::conv2d_grad_weight::Conv2dGradWeight;
use epl_runtime::ops::matmul::{MatMul, matmul};
use epl_runtime::tune::{Progress, TuneOptions, tune};
use epl_runtime::{
    Array, Caps, DType, Device, DeviceOptions, Graph, Plan, PlanOptions, Result, Session, SessionOptions,
    Store, TensorDesc,
};

/// All of the time that it may take on a busy machine.
const LONG: TuneOptions = TuneOptions { time: Duration::from_secs(600), bytes: 2 << 30, gain: 0.03 };

fn device(gpu_kernels: bool) -> Arc<Device> {
    Device::open(&DeviceOptions { gpu_kernels, ..DeviceOptions::default() }).unwrap()
}

epl_runtime::param_block! {
    /// As `scale.wgsl` has them.
    struct ScaleParams {
        /// Number of elements.
        len: u32,
        /// Factor.
        factor: f32,
    }
}

static SCALE: Kernel = Kernel {
    shader: "scale",
    entry: "main",
    params: ScaleParams::FIELDS,
    bindings: &[read("x"), write("y")],
    constants: &[],
    needs: Needs::Nothing,
};

/// `y = 2 x`, by rule with much work for nothing, and with variants of which one is right.
#[derive(Debug)]
struct Double;

impl Op for Double {
    fn name(&self) -> &'static str {
        "double"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        Ok(inputs.to_vec())
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let len = lowering.input(0)?.shape.elements();
        let (times, len, factor) = match lowering.choice() {
            None => (40, len, 2.0),
            Some("wrong factor") => (1, len, 2.001),
            Some("half of it") => (1, len / 2, 2.0),
            // Right for the many elements that are timed, wrong for few: what the reference alone sees.
            Some("wrong when small") => (1, len, if len > 100_000 { 2.0 } else { 2.1 }),
            Some("right") => (4, len, 2.0),
            Some(other) => panic!("{other}"),
        };
        let params = ScaleParams { len: lowering.size(len)?, factor };
        let operands = [Operand::Input(0), Operand::Output(0)].map(Bound::from);
        for _ in 0..times {
            let grid = lowering.fold(len.div_ceil(64))?;
            lowering.dispatch_ranges(&SCALE, &[], &params, &operands, grid)?;
        }
        Ok(())
    }

    fn variants(&self, _caps: &Caps, _inputs: &[TensorDesc]) -> Vec<String> {
        ["wrong factor", "half of it", "wrong when small", "right"].map(str::to_owned).to_vec()
    }

    fn smaller(&self, inputs: &[TensorDesc]) -> Option<(Arc<dyn Op>, Vec<TensorDesc>)> {
        let elements = inputs.first()?.shape.elements();
        (elements > 64).then(|| (Arc::new(Self) as Arc<dyn Op>, vec![TensorDesc::f32([elements / 2])]))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let mut y = inputs[0].clone();
        y.data.iter_mut().for_each(|value| *value *= 2.0);
        vec![y]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        // So many that the reference is asked on less.
        Cost::once(1e3 * inputs[0].shape.elements() as f64, inputs, outputs)
    }
}

/// A graph that doubles a vector of so many elements.
fn doubling(elements: usize) -> Graph {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::f32([elements])).unwrap();
    let y = push_one(&mut graph, Double, &[x]).unwrap();
    graph.keep(y);
    graph
}

#[test]
fn what_is_wrong_never_wins_however_fast_it_is() {
    let graph = doubling(1 << 19);
    let device = device(false);
    let tuned = tune(&device, &[&graph], &Choices::new(), &[], &LONG, &mut |_| Continue(())).unwrap();
    let [op] = tuned.ops.as_slice() else { panic!("{tuned:?}") };
    assert_eq!(op.choice, "right", "{op:?}");
    assert_eq!(op.key, key(&Double, &[TensorDesc::f32([1 << 19])]));
    assert!(op.seconds["right"] < op.seconds[RULE], "{op:?}");
    let rejected = |name: &str| op.rejected.get(name).unwrap_or_else(|| panic!("{name} in {op:?}"));
    assert!(rejected("wrong factor").contains("that of the rule's kernel"), "{op:?}");
    assert!(rejected("half of it").contains("that of the rule's kernel"), "{op:?}");
    assert!(rejected("wrong when small").contains("the reference makes it"), "{op:?}");

    // What was found is used, known choices are not measured again, and another name means the rule.
    let mut choices: Choices = tuned.ops.iter().map(|op| (op.key.as_str(), op.choice.as_str())).collect();
    let launches = |choices: &Choices| {
        let options = PlanOptions { choices: Arc::new(choices.clone()), ..PlanOptions::default() };
        Plan::new(&graph, device.caps(), options).unwrap().dispatches()
    };
    assert_eq!((launches(&Choices::new()), launches(&choices)), (40, 4));
    let again = tune(&device, &[&graph], &choices, &[], &LONG, &mut |_| panic!("known")).unwrap();
    assert!(again.ops.is_empty() && again.left_out.is_empty(), "{again:?}");
    choices.set(op.key.as_str(), RULE);
    assert_eq!(launches(&choices), 40);
}

#[test]
fn without_time_or_memory_the_rules_stay() {
    let mut graph = Graph::new();
    let a = graph.input("a", TensorDesc::f32([64, 64])).unwrap();
    let c = matmul(&mut graph, a, a, None, MatMul::default()).unwrap();
    graph.keep(c);
    let device = device(false);
    for options in [TuneOptions { time: Duration::ZERO, ..LONG }, TuneOptions { bytes: 1000, ..LONG }] {
        let tuned = tune(&device, &[&graph], &Choices::new(), &[], &options, &mut |_| Continue(())).unwrap();
        assert!(tuned.ops.is_empty(), "{tuned:?}");
        assert_eq!(tuned.left_out.len(), 1, "{tuned:?}");
    }
}

#[test]
fn it_breaks_off_where_it_is_told_to() {
    let graph = doubling(1 << 19);
    // The rule's kernel, then the first of four variants.
    let mut tries = 0;
    let mut progress = |progress: Progress<'_>| match progress {
        Progress::Tries { .. } if tries < 2 => {
            tries += 1;
            Continue(())
        }
        _ => Break(()),
    };
    let tuned = tune(&device(false), &[&graph], &Choices::new(), &[], &LONG, &mut progress).unwrap();
    // It was faster, and not looked at again: it stays open as the others do.
    assert_eq!((tuned.ops[0].open.len(), tuned.ops[0].seconds.len()), (4, 2), "{tuned:?}");
    assert_eq!(tuned.ops[0].choice, RULE);
}

#[test]
fn an_op_over_the_memory_is_timed_on_less() {
    let graph = doubling(1 << 20);
    let options = TuneOptions { bytes: 5 << 20, ..LONG };
    let tuned =
        tune(&device(false), &[&graph], &Choices::new(), &[], &options, &mut |_| Continue(())).unwrap();
    assert_eq!(tuned.ops[0].key, key(&Double, &[TensorDesc::f32([1 << 20])]));
    assert_eq!(tuned.ops[0].choice, "right");
}

#[test]
fn an_instant_at_a_time_all_is_measured_in_the_end() {
    let graph = doubling(1 << 19);
    let device = device(false);
    let options = TuneOptions { time: Duration::from_nanos(1), ..LONG };
    let mut begun = Vec::new();
    // Of four variants each call settles one.
    for left in [3, 2, 1, 0] {
        let tuned =
            tune(&device, &[&graph], &Choices::new(), &begun, &options, &mut |_| Continue(())).unwrap();
        assert_eq!((tuned.ops.len(), tuned.ops[0].open.len()), (1, left), "{tuned:?}");
        begun = tuned.ops;
    }
    let [op] = begun.as_slice() else { panic!("{begun:?}") };
    assert_eq!((op.choice.as_str(), op.rejected.len()), ("right", 3), "{op:?}");
    assert!(op.seconds["right"] < op.seconds[RULE], "{op:?}");
}

/// As [`Double`], with a variant that is right and takes much memory.
#[derive(Debug)]
struct Roomy;

impl Op for Roomy {
    fn name(&self) -> &'static str {
        "roomy"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        Ok(inputs.to_vec())
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        let len = lowering.input(0)?.shape.elements();
        let params = ScaleParams { len: lowering.size(len)?, factor: 2.0 };
        let grid = lowering.fold(len.div_ceil(64))?;
        let (times, between) = match lowering.choice() {
            None => (12, None),
            Some("roomy") => (1, Some(lowering.workspace(48 << 20))),
            Some(_) => (2, None),
        };
        for _ in 0..times {
            let outputs = between.into_iter().chain([Operand::Output(0)]);
            for output in outputs {
                let operands = [Operand::Input(0), output].map(Bound::from);
                lowering.dispatch_ranges(&SCALE, &[], &params, &operands, grid)?;
            }
        }
        Ok(())
    }

    fn variants(&self, _caps: &Caps, _inputs: &[TensorDesc]) -> Vec<String> {
        ["roomy", "right"].map(str::to_owned).to_vec()
    }

    fn smaller(&self, inputs: &[TensorDesc]) -> Option<(Arc<dyn Op>, Vec<TensorDesc>)> {
        let elements = inputs.first()?.shape.elements();
        (elements > 64).then(|| (Arc::new(Self) as Arc<dyn Op>, vec![TensorDesc::f32([elements / 2])]))
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        Double.reference(inputs)
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Double.cost(inputs, outputs)
    }
}

#[test]
fn two_kernels_beside_each_other_stay_within_the_memory() {
    let mut graph = Graph::new();
    // 8 MiB, and as much for the result of each kernel.
    let x = graph.input("x", TensorDesc::f32([2 << 20])).unwrap();
    let y = push_one(&mut graph, Roomy, &[x]).unwrap();
    graph.keep(y);
    let bytes = 20 << 20;
    // Beside them what is read back is staged.
    let limited = |bytes: u64| {
        let max_memory_bytes = Some(bytes + (8 << 20));
        Device::open(&DeviceOptions { max_memory_bytes, ..DeviceOptions::default() }).unwrap()
    };
    let options = TuneOptions { bytes, ..LONG };
    let tuned =
        tune(&limited(bytes), &[&graph], &Choices::new(), &[], &options, &mut |_| Continue(())).unwrap();
    let [op] = tuned.ops.as_slice() else { panic!("{tuned:?}") };
    // The other one takes more than the cap: it is not tried at all.
    assert_eq!((op.choice.as_str(), op.seconds.len(), op.open.len()), ("right", 2, 0), "{op:?}");

    // A device that has less than the cap: that is no fault of the kernel's, and may be otherwise another time.
    let mut begun = Vec::new();
    for _ in 0..2 {
        let device = limited(32 << 20);
        let tuned = tune(&device, &[&graph], &Choices::new(), &begun, &LONG, &mut |_| Continue(())).unwrap();
        begun = tuned.ops;
        let [op] = begun.as_slice() else { panic!("{:?}", tuned.left_out) };
        assert_eq!((op.choice.as_str(), op.open.as_slice()), ("right", &["roomy".to_owned()][..]), "{op:?}");
        assert!(op.rejected.is_empty(), "{op:?}");
    }
    let tuned =
        tune(&device(false), &[&graph], &Choices::new(), &begun, &LONG, &mut |_| Continue(())).unwrap();
    assert!(tuned.ops[0].open.is_empty() && tuned.ops[0].seconds.contains_key("roomy"), "{tuned:?}");
}

/// Ops as a training step has them, small: an aligned convolution, one with three channels and one of stride 2, and a product.
fn ops() -> Vec<(Arc<dyn Op>, Vec<TensorDesc>)> {
    let mut all: Vec<(Arc<dyn Op>, Vec<TensorDesc>)> = Vec::new();
    let padded = Conv2d { padding: [1; 4], ..Conv2d::default() };
    let strided = Conv2d { stride: [2, 2], ..padded };
    for (conv, [cin, cout]) in [(padded, [16, 24]), (padded, [3, 8]), (strided, [8, 40])] {
        let (x, weight) = (TensorDesc::f32([4, 14, 13, cin]), TensorDesc::f32([3, 3, cin, cout]));
        let dy = conv.infer(&[x.clone(), weight.clone()]).unwrap().remove(0);
        all.push((Arc::new(conv), vec![x.clone(), weight.clone()]));
        all.push((Arc::new(Conv2dGradInput { conv, input: [14, 13] }), vec![weight, dy.clone()]));
        all.push((Arc::new(Conv2dGradWeight { conv, kernel: [3, 3] }), vec![x, dy]));
    }
    for transpose_b in [false, true] {
        let op = MatMul { transpose_b, ..MatMul::default() };
        all.push((Arc::new(op), vec![TensorDesc::f32([72, 72]); 2]));
    }
    all
}

#[test]
fn every_variant_computes_what_the_reference_computes() {
    for gpu_kernels in [false, true] {
        let device = device(gpu_kernels);
        let mut tried = 0;
        for (op, inputs) in ops() {
            let variants = op.variants(device.caps(), &inputs);
            assert!(variants.len() > 3, "{op:?}: {variants:?}");
            for variant in &variants {
                let drawn = inputs.iter().zip(1..).map(|(desc, seed)| normal(desc.shape.clone(), 1.0, seed));
                let case = Case::shared("variant", op.clone(), drawn.collect()).relative(2e-5);
                let run = |case: &Case, inputs: &[TensorDesc]| {
                    let choices = Choices::from_iter([(key(op.as_ref(), inputs), variant.as_str())]);
                    let worst = run_case_with(&device, case, Arc::new(choices)).unwrap();
                    assert!(worst.passes(), "{op:?} {variant}: {worst:?}");
                };
                run(&case, &inputs);
                let halves: Vec<TensorDesc> = inputs.iter().map(|desc| desc.with(DType::F16)).collect();
                if device.caps().f16 && op.infer(&halves).is_ok() {
                    let mut case = case.half(&[0, 1]);
                    // A unit in the last of 11 bits.
                    case.tolerance.rounding = 1e-3;
                    run(&case, &halves);
                }
                tried += 1;
            }
            // The same op on less keeps what its kernels are chosen by.
            let (less, fewer) = op.smaller(&inputs).unwrap();
            assert_eq!(less.name(), op.name());
            assert!(less.infer(&fewer).is_ok(), "{fewer:?}");
            assert_eq!(less.variants(device.caps(), &fewer), variants);
        }
        assert!(tried > 60, "{tried}");
    }
}

#[test]
fn tuned_kernels_train_to_the_same_up_to_rounding_and_the_plan_knows_them() {
    for gpu_kernels in [false, true] {
        let device = device(gpu_kernels);
        let mut graph = Graph::new();
        let x = graph.input("x", TensorDesc::f32([2, 16, 16, 8])).unwrap();
        let weight = graph.input("weight", TensorDesc::f32([3, 3, 8, 32])).unwrap();
        let conv = Conv2d { padding: [1; 4], ..Conv2d::default() };
        let y = conv2d(&mut graph, x, weight, conv).unwrap();
        let dw = push_one(&mut graph, Conv2dGradWeight { conv, kernel: [3, 3] }, &[x, y]).unwrap();
        [y, dw].into_iter().for_each(|id| graph.fetch(id));
        let tuned = tune(&device, &[&graph], &Choices::new(), &[], &LONG, &mut |_| Continue(())).unwrap();
        assert_eq!(tuned.ops.len(), 2, "{tuned:?}");
        assert!(tuned.ops.iter().all(|op| op.rejected.is_empty()), "{tuned:?}");
        let run = |choices: Choices| {
            let plan = PlanOptions { choices: Arc::new(choices), ..PlanOptions::default() };
            device.finish().unwrap();
            let before = device.buffer_bytes();
            let options = SessionOptions { plan, ..SessionOptions::default() };
            let mut session = Session::new(&graph, &Store::new(&device), options).unwrap();
            device.finish().unwrap();
            assert_eq!(device.buffer_bytes() - before, session.plan().memory.total());
            let inputs = [
                (x, &normal([2, 16, 16, 8], 1.0, 1).tensor()),
                (weight, &normal([3, 3, 8, 32], 1.0, 2).tensor()),
            ];
            let results = session.run(&inputs).unwrap();
            device.finish().unwrap();
            results.into_iter().map(|value| value.into_f32().unwrap()).collect::<Vec<_>>()
        };
        let rules = run(Choices::new());
        // Each variant in turn, so that the test does not depend on which won.
        let of_weight = Conv2dGradWeight { conv, kernel: [3, 3] };
        let inputs = [TensorDesc::f32([2, 16, 16, 8]), TensorDesc::f32([2, 16, 16, 32])];
        for variant in of_weight.variants(device.caps(), &inputs) {
            let found = run(Choices::from_iter([(key(&of_weight, &inputs), variant.as_str())]));
            assert_eq!(found[0], rules[0], "the other op keeps its kernel");
            let rms = (rules[1].iter().map(|v| v * v).sum::<f32>() / rules[1].len() as f32).sqrt();
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4 * rms;
            assert!(found[1].iter().zip(&rules[1]).all(close), "{variant}");
        }
        run(tuned.ops.iter().map(|op| (op.key.as_str(), op.choice.as_str())).collect());
    }
}
