//! Lesson 1: a graph from recording to training. Fits y = X w by gradient descent, on the GPU.
//!
//! cargo run --example lesson_1_graph

use epl_runtime::autodiff::backward;
use epl_runtime::case::normal;
use epl_runtime::ops::{add, matmul, scale, sgd};
use epl_runtime::{Device, DeviceOptions, Graph, Session, SessionOptions, Store, TensorDesc};
use matmul::MatMul;

const SAMPLES: usize = 64;
const FEATURES: usize = 3;

fn main() -> anyhow::Result<()> {
    // 1. Record. Nothing runs yet: a graph is a list of ops over tensors whose shapes are known. Inputs are written
    //    before every step; persistent tensors outlive steps, and belong to a category for memory reports.
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::f32([SAMPLES, FEATURES]))?;
    let y = graph.input("y", TensorDesc::f32([SAMPLES, 1]))?;
    let lr = graph.input("lr", TensorDesc::f32([1]))?;
    let weight = graph.persistent("weight", TensorDesc::f32([FEATURES, 1]), "weights")?;
    let momentum = graph.persistent("momentum", TensorDesc::f32([FEATURES, 1]), "optimizer")?;

    // The scope says where in the model an op was recorded; errors, plans and timings show it.
    graph.set_scope("model");
    let predicted = matmul::matmul(&mut graph, x, weight, None, MatMul::default())?;
    graph.set_scope("loss");
    let negative = scale::scale(&mut graph, y, -1.0)?;
    let difference = add::add(&mut graph, predicted, negative)?;
    // The sum of squares of a column d is the 1 x 1 product of its transpose and itself.
    let square = MatMul { transpose_a: true, ..MatMul::default() };
    let sum = matmul::matmul(&mut graph, difference, difference, None, square)?;
    let loss = scale::scale(&mut graph, sum, 1.0 / SAMPLES as f32)?;

    // 2. Differentiate: appends the ops that lead from the loss to the gradients asked for, and no others.
    let forward = graph.nodes().len();
    let gradients = backward(&mut graph, loss, &[weight])?;
    println!("{forward} ops forward, {} for the gradient", graph.nodes().len() - forward);

    // The update is an op that writes its persistent inputs in place. It was recorded last, so it runs last.
    graph.set_scope("optimizer");
    let rule = sgd::Sgd { momentum: 0.5, weight_decay: 0.0, floor: None };
    for gradient in gradients {
        sgd::sgd(&mut graph, weight, gradient, momentum, lr, None, rule)?;
    }
    // What is fetched comes back to the host after each step. What nothing needs would not run at all.
    graph.fetch(loss);

    // 3. Plan and build. A session allocates everything; a step allocates nothing.
    let device = Device::open(&DeviceOptions::default())?;
    let store = Store::new(&device);
    let mut session = Session::new(&graph, &store, SessionOptions::default())?;
    println!("\nThe plan on {}:\n{}", device.description().name, session.plan().explain(&graph));

    // 4. Run. Persistent tensors start at zero; the data is made from a known weight.
    let truth = [2.0f32, -1.0, 0.5];
    let data = normal([SAMPLES, FEATURES], 1.0, 1).tensor();
    let rows = data.as_f32()?.chunks_exact(FEATURES);
    let targets: Vec<f32> = rows.map(|row| row.iter().zip(truth).map(|(x, w)| x * w).sum()).collect();
    for _ in 0..20 {
        session.write(x, data.bytes())?;
        session.write(y, bytemuck::cast_slice(&targets))?;
        session.write(lr, bytemuck::bytes_of(&0.1f32))?;
        session.step()?;
        // Does not wait: the results of a step arrive some steps later.
        for done in session.finished()? {
            println!("step {:2}: loss {:.6}", done.step, done.values[0].as_f32()?[0]);
        }
    }
    for done in session.flush()? {
        println!("step {:2}: loss {:.6} (waited for)", done.step, done.values[0].as_f32()?[0]);
    }
    println!("weight {:?}, expected {truth:?}", store.read("weight")?.as_f32()?);
    Ok(())
}
