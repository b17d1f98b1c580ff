//! Lesson 2: how to trust a graph. The same graph by its references in f64, its gradient by finite differences, the
//! first op that is wrong, and what each op costs.
//!
//! cargo run --example lesson_2_check

use epl_runtime::autodiff::backward;
use epl_runtime::case::{Tolerance, normal, uniform};
use epl_runtime::check::compare;
use epl_runtime::inspect::{find_divergence, profile};
use epl_runtime::interpret::{Values, interpret};
use epl_runtime::ops::{l2_normalize, matmul, prelu, sum_all};
use epl_runtime::{Array, Device, DeviceOptions, Graph, Session, SessionOptions, Store, TensorDesc};

fn main() -> anyhow::Result<()> {
    // A layer of a network, composed of ops that are there: the unit-length rows of prelu(x w), summed.
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::f32([6, 5]))?;
    let weight = graph.persistent("weight", TensorDesc::f32([5, 4]), "weights")?;
    let slope = graph.persistent("slope", TensorDesc::f32([4]), "weights")?;
    let product = matmul::matmul(&mut graph, x, weight, None, matmul::MatMul::default())?;
    let active = prelu::prelu(&mut graph, product, slope)?;
    let unit = l2_normalize::l2_normalize(&mut graph, active, 1e-5)?;
    let loss = sum_all::sum_all(&mut graph, unit, 1.0)?;
    let gradient = backward(&mut graph, loss, &[weight])?[0];
    graph.fetch(gradient);
    let x_value = normal([6, 5], 1.0, 1).tensor();
    let (w_value, s_value) = (normal([5, 4], 0.5, 2).tensor(), uniform([4], 0.1, 0.4, 3).tensor());

    // By its references: every op has one, in naive loops and f64, so a whole graph runs on the CPU.
    let run = |w: &Array| -> epl_runtime::Result<Values> {
        let mut values = Values::new();
        values.set(&graph, x, Array::from(&x_value))?;
        values.set(&graph, weight, w.clone())?;
        values.set(&graph, slope, Array::from(&s_value))?;
        interpret(&graph, &mut values)?;
        Ok(values)
    };
    let at = Array::from(&w_value);
    let want = run(&at)?.get(&graph, gradient)?;

    // The recorded gradient against central differences of the loss. Being f64, they have digits to spare.
    let mut worst = 0.0f64;
    for element in 0..at.data.len() {
        let loss_at = |step: f64| {
            let mut moved = at.clone();
            moved.data[element] += step;
            run(&moved)?.get(&graph, loss).map(|loss| loss.item())
        };
        let difference = (loss_at(1e-6)? - loss_at(-1e-6)?) / 2e-6;
        worst = worst.max((difference - want.data[element]).abs());
    }
    println!("gradient against finite differences: off by at most {worst:.1e}");

    // On the GPU, every tensor filled with NaN before it is made: an element that no kernel writes would show.
    let device = Device::open(&DeviceOptions::default())?;
    let store = Store::new(&device);
    let options = SessionOptions { poison: true, ..SessionOptions::default() };
    let mut session = Session::new(&graph, &store, options)?;
    store.write("weight", &w_value)?;
    store.write("slope", &s_value)?;
    let got = Array::from(&session.run(&[(x, &x_value)])?[0]);
    // An element may be off by 1e-5 of itself, or of the tensor's root mean square where that is more.
    if let Some(found) = compare("gradient", &got.data, &want.data, Tolerance::default()) {
        println!("GPU against references: {:.3} of what is allowed, passes: {}", found.ratio, found.passes());
    }

    // Were it wrong: which op is the first? Each one's reference is given the GPU's own inputs of that op.
    session.write(x, x_value.bytes())?;
    match find_divergence(&mut session, Tolerance::default())? {
        Some(fault) => println!("wrong: {fault}"),
        None => println!("no op diverges"),
    }
    for timing in profile(&session, 3)? {
        println!("{:<20} {:8.1} us {:6.0} FLOP", timing.op, timing.seconds * 1e6, timing.cost.flops);
    }
    Ok(())
}
