//! Lesson 3: where the time of a training step goes. Records the demo's step (32 x 32, width 16, batch 64, CosFace + EPL),
//! runs it, and prints milliseconds, GFLOP/s and GB/s by op.
//!
//! cargo run --release --example lesson_3_profile

use std::collections::BTreeMap;
use std::time::Instant;

use epl::config::Precision;
use epl::head::{EplSettings, HeadSettings};
use epl::model::{Head, Model, ModelSpec};
use epl::nn::input::packed_bytes;
use epl::nn::{Family, Network};
use epl::train::step::{StepOptions, record_step};
use epl_runtime::inspect::profile;
use epl_runtime::{Device, DeviceOptions, Session, SessionOptions};

const BATCH: usize = 64;
const CLASSES: usize = 200;
const REPEATS: usize = 20;

fn main() -> anyhow::Result<()> {
    let device = Device::open(&DeviceOptions::default())?;
    let network = Network {
        family: Family::Ir,
        input: [32, 32],
        width: 16,
        blocks: [1; 4],
        embedding: 128,
        dropout: 0.2,
    };
    let settings = HeadSettings { epl: Some(EplSettings::default()), ..HeadSettings::default() };
    let spec = ModelSpec::new("ir18", network, Some(Head { settings, classes: CLASSES }))?;
    let model = Model::new(spec, &device, 1)?;

    // One graph holds the whole step: images, network, head, gradients, optimiser.
    let options = StepOptions {
        batch: BATCH,
        accumulate: 1,
        momentum: 0.9,
        weight_decay: 5e-4,
        clip_norm: 0.0,
        clip_head: true,
        halt: true,
        empirical: true,
        precision: Precision::F32,
        seed: 1,
    };
    let recorded = record_step(&model.spec, &options)?;
    let mut session = Session::new(&recorded.graph, &model.store, SessionOptions::default())?;
    let inputs = recorded.inputs;
    let images: Vec<u8> = (0..packed_bytes(BATCH, [32, 32])).map(|i| (i * 31 % 251) as u8).collect();
    let labels: Vec<u32> = (0..BATCH as u32).map(|i| i * 3 % CLASSES as u32).collect();
    let mut step = || -> epl_runtime::Result<()> {
        session.write(inputs.images.bytes, &images)?;
        session.write(inputs.images.mirror, bytemuck::cast_slice(&[0u32; BATCH]))?;
        session.write(inputs.labels, bytemuck::cast_slice(&labels))?;
        session.write(inputs.lr, bytemuck::bytes_of(&0.01f32))?;
        session.write(inputs.seed, bytemuck::cast_slice(&[1u32, 0]))?;
        session.step().map(|_| ())
    };

    // Whole steps as in training, a few of them in flight.
    step()?;
    device.finish()?;
    let start = Instant::now();
    for _ in 0..REPEATS {
        step()?;
    }
    device.finish()?;
    let seconds = start.elapsed().as_secs_f64() / REPEATS as f64;
    let plan = session.plan();
    println!(
        "{}: {:.1} ms a step, {:.0} images/s, {} launches, {:.2} GFLOP",
        device.description().name,
        seconds * 1e3,
        BATCH as f64 / seconds,
        plan.dispatches(),
        plan.cost(session.graph()).flops / 1e9
    );

    // Each op in a pass of its own, by the GPU's clock where it has one; summed by the op's name.
    let mut by_op: BTreeMap<&str, [f64; 3]> = BTreeMap::new();
    for timing in profile(&session, 5)? {
        let sums = by_op.entry(timing.op).or_default();
        for (sum, value) in sums.iter_mut().zip([timing.seconds, timing.cost.flops, timing.cost.bytes]) {
            *sum += value;
        }
    }
    let mut rows: Vec<_> = by_op.into_iter().collect();
    rows.sort_by(|a, b| b.1[0].total_cmp(&a.1[0]));
    for (op, [seconds, flops, bytes]) in rows {
        let rate = |amount: f64| amount / seconds.max(1e-12) / 1e9;
        println!("{op:<26} {:>9.3} ms {:>8.2} GFLOP/s {:>8.2} GB/s", seconds * 1e3, rate(flops), rate(bytes));
    }
    Ok(())
}
