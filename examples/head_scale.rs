//! What a head costs as classes grow: time and memory of its two forms, against the speed of the matrix product that it
//! is made of; and a whole training step with as many classes as WebFace12M has.
//!
//! cargo run --release --example head_scale
//! cargo run --release --example head_scale -- --classes 85742 --batch 512
//! cargo run --release --example head_scale -- --step 617970

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use epl::cli::DeviceArguments;
use epl::config::Config;
use epl::head::sampling::ClassSampler;
use epl::head::{EplSettings, HeadForm, HeadInputs, HeadPass, HeadSettings, SampledClasses, head_loss};
use epl::model::Model;
use epl::train::step::{StepResult, class_sampler, record_step};
use epl::train::trainer::{spec_of, step_options};
use epl_runtime::autodiff::backward;
use epl_runtime::inspect::kernel_seconds;
use epl_runtime::ops::matmul::{MatMul, matmul};
use epl_runtime::ops::sgd::{Sgd, sgd};
use epl_runtime::{Device, Error, Graph, Result, Session, SessionOptions, Store, TensorDesc};

/// Time and memory of a head in both forms, as classes grow.
#[derive(Parser)]
struct Arguments {
    /// Numbers of classes.
    #[arg(long, value_delimiter = ',', default_values_t = [10_572, 85_742])]
    classes: Vec<usize>,
    /// Samples a step.
    #[arg(long, default_value_t = 128)]
    batch: usize,
    /// Length of an embedding, a multiple of 4.
    #[arg(long, default_value_t = 512)]
    dim: usize,
    /// Share of the classes that take part in a step; below 1 in the tiled form alone.
    #[arg(long, default_value_t = 1.0)]
    sample_rate: f64,
    /// Leave the empirical branch out.
    #[arg(long)]
    no_epl: bool,
    /// Steps that are timed, after one that is not.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Also print the time of each kernel.
    #[arg(long)]
    kernels: bool,
    /// Instead: a few training steps of a small network with this many classes.
    #[arg(long, value_name = "CLASSES")]
    step: Option<usize>,
    #[command(flatten)]
    device: DeviceArguments,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> epl::Result<()> {
    let device = Device::open(&arguments.device.options())?;
    println!("{} ({})", device.description().name, device.description().driver);
    if let Some(classes) = arguments.step {
        return whole_step(arguments, classes, &device);
    }
    println!("batch {}, dimension {}", arguments.batch, arguments.dim);
    println!("classes    form           ms a step  GFLOP/s  of products  peak MiB  tables MiB");
    for &classes in &arguments.classes {
        let share = if arguments.sample_rate < 1.0 { arguments.sample_rate } else { 1.0 };
        let taking_part = (classes as f64 * share).ceil() as usize;
        let products = Products::measure(arguments, taking_part, &device)?;
        let flops = 2.0 * arguments.batch as f64 * arguments.dim as f64 * taking_part as f64;
        for (name, seconds) in
            [("x W^T", products.cosines), ("F W", products.of_embeddings), ("F^T x", products.of_prototypes)]
        {
            println!("{classes:<10} {name:<13}  {:>9.1}  {:>7.1}", seconds * 1e3, flops / seconds / 1e9);
        }
        for form in [HeadForm::Materialized, HeadForm::Tiled] {
            if form == HeadForm::Materialized && arguments.sample_rate < 1.0 {
                continue;
            }
            match Head::new(arguments, classes, form, &device) {
                Ok(mut head) => {
                    let seconds = head.seconds(arguments.repeats)?;
                    let plan = head.session.plan();
                    let speed = plan.cost(head.session.graph()).flops / seconds;
                    let branches = if arguments.no_epl { 1 } else { 2 };
                    println!(
                        "{classes:<10} {:<13}  {:>9.1}  {:>7.1}  {:>10.0}%  {:>8.1}  {:>10.1}",
                        format!("{form:?}").to_lowercase(),
                        seconds * 1e3,
                        speed / 1e9,
                        100.0 * products.of_step(form, branches) / seconds,
                        plan.memory.total() as f64 / f64::from(1 << 20),
                        plan.memory.persistent.values().sum::<u64>() as f64 / f64::from(1 << 20),
                    );
                    if arguments.kernels {
                        for kernel in kernel_seconds(&head.session, arguments.repeats)? {
                            let ms = kernel.seconds * 1e3;
                            println!(
                                "    {:<24} {:>5} launches {ms:>9.2} ms",
                                kernel.kernel, kernel.launches
                            );
                        }
                    }
                }
                // What does not fit the adapter is a result as well.
                Err(error @ Error::Limit { .. }) => println!("{classes:<10} {form:?}: {error}"),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Numbers in -1/2 .. 1/2 that are quick to make.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..count).map(|_| draw()).collect()
}

fn fill(store: &Store, name: &str, elements: usize, seed: u64) -> Result<()> {
    const CHUNK: usize = 1 << 22;
    for (index, start) in (0..elements).step_by(CHUNK).enumerate() {
        let values = noise(CHUNK.min(elements - start), seed + index as u64);
        store.write_range(name, 4 * start as u64, bytemuck::cast_slice(&values))?;
    }
    Ok(())
}

/// Median seconds of a step, after one that warms up.
fn median(
    session: &mut Session,
    repeats: usize,
    mut write: impl FnMut(&mut Session) -> Result<()>,
) -> Result<f64> {
    let mut seconds = Vec::with_capacity(repeats);
    for repeat in 0..=repeats.max(1) {
        write(session)?;
        let start = Instant::now();
        session.step()?;
        session.flush()?;
        if repeat > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN))
}

/// Seconds of the three products that a head is made of, each alone and at its own shape: embeddings times prototypes,
/// factors times prototypes, factors times embeddings.
struct Products {
    cosines: f64,
    of_embeddings: f64,
    of_prototypes: f64,
}

impl Products {
    /// Measured with the tables that one binding holds, and scaled to `classes`.
    fn measure(arguments: &Arguments, classes: usize, device: &Arc<Device>) -> Result<Self> {
        let most = device.caps().max_binding_bytes as usize / 4 / arguments.dim.max(arguments.batch);
        let (rows, batch, dim) = (classes.min(most), arguments.batch, arguments.dim);
        let plain = MatMul::default();
        let cosines = MatMul { transpose_b: true, ..plain };
        let of_prototypes = MatMul { transpose_a: true, ..plain };
        let seconds = |a: [usize; 2], b: [usize; 2], product: MatMul| -> Result<f64> {
            let mut graph = Graph::new();
            let x = graph.persistent("a", TensorDesc::f32(a), "product")?;
            let y = graph.persistent("b", TensorDesc::f32(b), "product")?;
            let product = matmul(&mut graph, x, y, None, product)?;
            graph.keep(product);
            let store = Store::new(device);
            let mut session = Session::new(&graph, &store, SessionOptions::default())?;
            fill(&store, "a", a[0] * a[1], 1)?;
            fill(&store, "b", b[0] * b[1], 2)?;
            Ok(median(&mut session, arguments.repeats, |_| Ok(()))? * classes as f64 / rows as f64)
        };
        Ok(Self {
            cosines: seconds([batch, dim], [rows, dim], cosines)?,
            of_embeddings: seconds([batch, rows], [rows, dim], plain)?,
            of_prototypes: seconds([batch, rows], [batch, dim], of_prototypes)?,
        })
    }

    /// Seconds of all products of a step: the tiled form makes the cosines of the trained prototypes twice.
    fn of_step(&self, form: HeadForm, branches: usize) -> f64 {
        let again = if form == HeadForm::Tiled { self.cosines } else { 0.0 };
        branches as f64 * (self.cosines + self.of_embeddings) + self.of_prototypes + again
    }
}

/// A head alone, with its gradients and the step of its prototypes.
struct Head {
    session: Session,
    sampled: Option<(SampledClasses, ClassSampler)>,
    labels: Vec<u32>,
}

impl Head {
    fn new(arguments: &Arguments, classes: usize, form: HeadForm, device: &Arc<Device>) -> Result<Self> {
        let (batch, dim) = (arguments.batch, arguments.dim);
        let epl = (!arguments.no_epl).then(EplSettings::default);
        let settings = HeadSettings { form, epl, ..HeadSettings::default() };
        let mut graph = Graph::new();
        let table = TensorDesc::f32([classes, dim]);
        let embedding = graph.persistent("embedding", TensorDesc::f32([batch, dim]), "inputs")?;
        let labels = graph.persistent("labels", TensorDesc::u32([batch]), "inputs")?;
        let lr = graph.persistent("lr", TensorDesc::f32([1]), "inputs")?;
        let weight = graph.persistent("weight", table.clone(), "weights")?;
        let momentum = graph.persistent("momentum", table.clone(), "optimizer")?;
        let queue = match epl {
            Some(_) => Some(graph.persistent("queue", table, "prototypes")?),
            None => None,
        };
        let sampler = ClassSampler::new(classes, batch, arguments.sample_rate, 1);
        let sampled = match sampler {
            Some(sampler) => {
                let classes = graph.input("classes", TensorDesc::u32([sampler.count()]))?;
                let positions = graph.input("positions", TensorDesc::u32([batch]))?;
                Some((SampledClasses { classes, positions }, sampler))
            }
            None => None,
        };
        let tensors = sampled.map(|(tensors, _)| tensors);
        let inputs = HeadInputs { embedding, labels, weight, queue, bias: None, sampled: tensors };
        let pass = HeadPass { empirical_branch: epl.is_some(), tile: None };
        let outputs = head_loss(&mut graph, inputs, &settings, pass)?;
        let rule = Sgd { momentum: 0.9, weight_decay: 5e-4, floor: None };
        let gradient = match outputs.prototypes {
            Some(prototypes) => {
                let gradients = backward(&mut graph, outputs.loss, &[embedding])?;
                prototypes.apply(&mut graph, momentum, lr, rule, None)?;
                gradients
            }
            None => {
                let mut gradients = backward(&mut graph, outputs.loss, &[embedding, weight])?;
                if let Some(gradient) = gradients.pop() {
                    sgd(&mut graph, weight, gradient, momentum, lr, None, rule)?;
                }
                gradients
            }
        };
        gradient.into_iter().for_each(|tensor| graph.keep(tensor));
        graph.fetch(outputs.loss);
        let store = Store::new(device);
        let session = Session::new(&graph, &store, SessionOptions::default())?;
        let labels: Vec<u32> = (0..batch).map(|i| (i * 7919 % classes) as u32).collect();
        fill(&store, "embedding", batch * dim, 1)?;
        store.write_range("labels", 0, bytemuck::cast_slice(&labels))?;
        store.write_range("lr", 0, bytemuck::bytes_of(&0.01f32))?;
        fill(&store, "weight", classes * dim, 2)?;
        if queue.is_some() {
            fill(&store, "queue", classes * dim, 3)?;
        }
        Ok(Self { session, sampled, labels })
    }

    fn seconds(&mut self, repeats: usize) -> Result<f64> {
        let mut step = 0;
        let (sampled, labels) = (&self.sampled, &self.labels);
        median(&mut self.session, repeats, |session| {
            if let Some((tensors, sampler)) = sampled {
                let sample = sampler
                    .sample(step, labels)
                    .map_err(|error| Error::graph(error.to_string(), "check the labels"))?;
                session.write(tensors.classes, bytemuck::cast_slice(&sample.classes))?;
                session.write(tensors.positions, bytemuck::cast_slice(&sample.positions))?;
                step += 1;
            }
            Ok(())
        })
    }
}

/// Training steps of a small network whose head has `classes` classes, on noise.
fn whole_step(arguments: &Arguments, classes: usize, device: &Arc<Device>) -> epl::Result<()> {
    const BATCH: usize = 8;
    let mut config = Config::default();
    config.model.arch = "ir18".into();
    config.model.input = [32, 32];
    config.model.width = 8;
    config.model.blocks = Some([1; 4]);
    config.model.embedding = arguments.dim;
    config.head.epl = Some(EplSettings::default());
    config.head.sample_rate = arguments.sample_rate;
    config.head.form = HeadForm::Tiled;
    config.train.batch_size = BATCH;
    let options = step_options(&config, true);
    let started = Instant::now();
    let model = Model::new(spec_of(&config, classes)?, device, 1)?;
    println!("{classes} classes: initial values in {:.1} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let recorded = record_step(&model.spec, &options)?;
    let mut session = Session::new(&recorded.graph, &model.store, SessionOptions::default())?;
    let shards = model.spec.weight_desc().map_or(0, |desc| device.caps().shards(&desc).len());
    let ranges = model.spec.weight_desc().map_or(0, |desc| device.caps().row_ranges(&desc).len());
    println!(
        "a session of {} launches in {:.1} s; a table takes {shards} buffers and {ranges} bindings",
        session.plan().dispatches(),
        started.elapsed().as_secs_f64()
    );
    for (kind, bytes) in &session.plan().memory.persistent {
        println!("    {kind:<12} {:>9.1} MiB", *bytes as f64 / f64::from(1 << 20));
    }
    println!("    {:<12} {:>9.1} MiB", "all", session.plan().memory.total() as f64 / f64::from(1 << 20));
    let sampler = class_sampler(&model.spec, &options);
    for step in 0..3u64 {
        let inputs = &recorded.inputs;
        let images: Vec<u8> =
            noise(BATCH * 32 * 32 * 3, step).iter().map(|v| ((v + 0.5) * 255.0) as u8).collect();
        // From the first class to the last.
        let labels: Vec<u32> = (0..BATCH).map(|i| (i * (classes - 1) / (BATCH - 1)) as u32).collect();
        session.write(inputs.images.bytes, &images)?;
        session.write(inputs.images.mirror, bytemuck::cast_slice(&[0u32; BATCH]))?;
        session.write(inputs.labels, bytemuck::cast_slice(&labels))?;
        if let (Some(sampled), Some(sampler)) = (inputs.sampled, &sampler) {
            let sample = sampler.sample(step, &labels)?;
            session.write(sampled.classes, bytemuck::cast_slice(&sample.classes))?;
            session.write(sampled.positions, bytemuck::cast_slice(&sample.positions))?;
        }
        session.write(inputs.lr, bytemuck::bytes_of(&0.1f32))?;
        session.write(inputs.seed, bytemuck::cast_slice(&[1u32, step as u32]))?;
        let start = Instant::now();
        session.step()?;
        for done in session.flush()? {
            let result = StepResult::unpack(&done.values)?;
            println!(
                "step {step}: loss {:.4}, gradient norm {:.4}, cos(x, W_y) {:.4}, cos(x, Q_y) {:.4}, {:.2} s",
                result.loss,
                result.grad_norm,
                mean(&result.target_cosine),
                mean(&result.empirical_cosine),
                start.elapsed().as_secs_f64()
            );
        }
    }
    if let Some(peak) = peak_memory() {
        println!("peak memory of the process: {peak}");
    }
    Ok(())
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len().max(1) as f64
}

/// Largest resident size of this process, where the system tells it as Linux does. On a CPU adapter it holds what would
/// be GPU memory.
fn peak_memory() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().to_owned())
}
