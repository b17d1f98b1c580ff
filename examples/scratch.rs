use epl::head::class_sweep::*;
use epl::head::class_update::*;
use epl_runtime::ops::matmul::*;
use epl_runtime::ops::sgd::Sgd;
use epl_runtime::*;
fn main() {
    let device = Device::open(&DeviceOptions::default()).unwrap();
    let mut graph = Graph::new();
    let arg = |i: usize, d: usize| std::env::args().nth(i).and_then(|v| v.parse().ok()).unwrap_or(d);
    let n: usize = arg(1, 2048);
    let tile: usize = arg(2, 2048);
    let b: usize = arg(3, 128);
    let x = graph.persistent("x", TensorDesc::f32([b, 512]), "t").unwrap();
    let y = graph.persistent("y", TensorDesc::u32([b]), "t").unwrap();
    let lr = graph.persistent("lr", TensorDesc::f32([1]), "t").unwrap();
    let w = graph.persistent("w", TensorDesc::f32([n, 512]), "t").unwrap();
    let v = graph.persistent("v", TensorDesc::f32([n, 512]), "t").unwrap();
    let a = matmul(&mut graph, x, w, None, MatMul { transpose_b: true, ..MatMul::default() }).unwrap();
    let loss = ClassLoss::Margin(epl::head::margin_loss::MarginLoss {
        target: epl::head::margin_loss::TargetMargin::Subtract(0.4),
        scale: 64.0,
        k: 0.0,
    });
    let s =
        class_sweep(&mut graph, ClassSweep { loss, sampled: false, tile: Some(tile) }, [w, x, y], None, None)
            .unwrap();
    let op = ClassUpdate {
        loss,
        upstream: 0.1,
        rule: Sgd { momentum: 0.9, weight_decay: 0.0 },
        sampled: false,
        tile: Some(tile),
    };
    let o = UpdateOperands { weight: w, velocity: v, x, labels: y, context: s.state, lr, classes: None };
    let norm = class_update(&mut graph, op, o, None).unwrap();
    for t in [a, s.loss, norm] {
        graph.keep(t);
    }
    let store = Store::new(&device);
    let mut session = Session::new(&graph, &store, SessionOptions::default()).unwrap();
    let mut seed = 1u64;
    let mut noise = |count: usize| -> Vec<f32> {
        (0..count)
            .map(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (seed >> 40) as f32 / 16777216.0 - 0.5
            })
            .collect()
    };
    store
        .write_range(
            "x",
            0,
            bytemuck::cast_slice(&noise(b * 512).iter().map(|v| v / 6.5).collect::<Vec<f32>>()),
        )
        .unwrap();
    store.write_range("w", 0, bytemuck::cast_slice(&noise(n * 512))).unwrap();
    session.run(&[]).unwrap();
    for t in epl_runtime::inspect::profile(&session, 5).unwrap() {
        println!("{} {:.2} ms {:.1} GFLOP/s", t.op, t.seconds * 1e3, t.cost.flops / t.seconds / 1e9);
    }
    for t in epl_runtime::inspect::kernel_seconds(&session, 3).unwrap() {
        println!("    {} x{} {:.2} ms", t.kernel, t.launches, t.seconds * 1e3);
    }
}
