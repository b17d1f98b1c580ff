//! epl's side of `cargo xtask bench`: does the work that it is asked for on standard input, a JSON object a line, and answers
//! with the seconds that it took. The peers in `benches/peers` speak the same.
//!
//! A request names the work and its sizes; `samples` and `seconds` say how often, and how long at least, it is measured. Every
//! sample is a number of executions that takes at least so long, after those that warm up and one that tells how many; what
//! takes more than five seconds is measured twice. The clock starts and stops with an idle device. `{"kind": "hello"}` is answered with who this is.
//!
//! Kernels are chosen by measuring where `epl train` would, on GPUs, and beforehand, as the peers tune in the runs that warm up:
//! `--tune on` and `--tune off` override that, and `--kernel-cache FOLDER` is where what was found is kept.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use epl::config::{Autotune, Config};
use epl::data::Batch;
use epl::head::{HeadForm, HeadInputs, HeadPass, HeadSettings, head_loss};
use epl::model::Model;
use epl::nn::input::packed_bytes;
use epl::train::Stop;
use epl::train::kernels::{choose_for, measures};
use epl::train::plan::resolve_form;
use epl::train::step::{ScaleState, StepInputs, record_step};
use epl::train::trainer::{spec_of, step_options};
use epl_runtime::autodiff::backward;
use epl_runtime::case::{integers, normal};
use epl_runtime::inspect::node_seconds;
use epl_runtime::op::push_one;
use epl_runtime::ops::conv2d::{Conv2d, conv2d};
use epl_runtime::ops::conv2d_grad_input::Conv2dGradInput;
use epl_runtime::ops::conv2d_grad_weight::Conv2dGradWeight;
use epl_runtime::ops::matmul::{MatMul, matmul};
use epl_runtime::ops::sgd::{Sgd, sgd};
use epl_runtime::tune::TuneOptions;
use epl_runtime::{
    DType, Device, DeviceOptions, Graph, PlanOptions, Session, SessionOptions, Store, TensorDesc, TensorId,
};
use serde::{Deserialize, Serialize};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Work {
    Hello,
    /// `[m, k] x [k, n]`
    Matmul {
        m: usize,
        n: usize,
        k: usize,
    },
    Conv {
        pass: Pass,
        batch: usize,
        /// Height and width of the input.
        size: usize,
        cin: usize,
        cout: usize,
        /// Height and width of the window.
        window: usize,
        stride: usize,
        padding: usize,
    },
    /// A training step with CosFace.
    Step {
        arch: String,
        batch: usize,
        classes: usize,
    },
    /// CosFace over all classes: loss, gradients of embeddings and class weights, and the step of the latter.
    Head {
        batch: usize,
        classes: usize,
        dim: usize,
    },
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Pass {
    Forward,
    Dgrad,
    Wgrad,
}

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(flatten)]
    work: Work,
    /// `f32` or `mixed`.
    #[serde(default)]
    precision: Option<String>,
    #[serde(default = "samples")]
    samples: usize,
    #[serde(default = "seconds")]
    seconds: f64,
}

fn samples() -> usize {
    5
}

fn seconds() -> f64 {
    0.3
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer {
    Hello {
        peer: &'static str,
        version: &'static str,
        device: String,
        driver: String,
        /// Whether the device is a CPU.
        cpu: bool,
        /// How kernels are chosen.
        kernels: &'static str,
    },
    Measured {
        /// Of one execution, for every sample.
        seconds: Vec<f64>,
        /// Of the kernels of one execution, by the GPU's clock, each alone.
        kernels: f64,
        /// Bytes of GPU memory that the plan takes.
        bytes: u64,
    },
    Failed {
        error: String,
    },
}

fn main() {
    // `cargo bench` passes `--bench`; only the one who asks knows what to measure.
    if !std::env::args().any(|argument| argument == "--serve") {
        println!("`cargo xtask bench` measures epl and its peers; this is its part of that");
        return;
    }
    let bench = match Bench::open() {
        Ok(bench) => bench,
        Err(error) => {
            answer(&Answer::Failed { error: error.to_string() });
            return;
        }
    };
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let asked = serde_json::from_str::<Request>(&line).map_err(Into::into);
        answer(
            &asked.and_then(|request| serve(&bench, &request)).unwrap_or_else(
                |error: Box<dyn std::error::Error>| Answer::Failed { error: error.to_string() },
            ),
        );
    }
}

/// What all work is done with.
struct Bench {
    device: Arc<Device>,
    /// Whether kernels are chosen by measuring.
    tunes: bool,
}

impl Bench {
    /// How long the kernels of an item may be measured: the peers take what time they want, and what is not finished in a
    /// start of `epl train` is so in a later one.
    const TIME: Duration = Duration::from_secs(600);

    fn open() -> Outcome<Self> {
        let value = |name: &str| std::env::args().skip_while(|argument| argument != name).nth(1);
        let device = Device::open(&DeviceOptions {
            select: std::env::var("EPL_DEVICE").ok(),
            cache: value("--kernel-cache").map(PathBuf::from),
            ..DeviceOptions::default()
        })?;
        let autotune = match value("--tune").as_deref() {
            None | Some("auto") => Autotune::Auto,
            Some("on") => Autotune::On,
            Some("off") => Autotune::Off,
            Some(other) => return Err(format!("--tune {other}; expected auto, on or off").into()),
        };
        Ok(Self { tunes: measures(autotune, &device), device })
    }

    /// A session of `graph` with the kernels that are chosen for it.
    fn session(&self, graph: &Graph, store: &Store) -> Outcome<Session> {
        let mut plan = PlanOptions::default();
        if self.tunes {
            let options = TuneOptions { time: Self::TIME, ..TuneOptions::default() };
            let choices = choose_for(&self.device, &[graph], &options, &Stop::default(), &mut |line| {
                eprintln!("{line}")
            })?;
            plan.choices = Arc::new(choices);
        }
        Ok(Session::new(graph, store, SessionOptions { plan, ..SessionOptions::default() })?)
    }
}

fn answer(answer: &Answer) {
    let text = serde_json::to_string(answer).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    // Whoever asked is gone where this fails.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

fn serve(bench: &Bench, request: &Request) -> Outcome<Answer> {
    let element = match request.precision.as_deref() {
        None | Some("f32") => DType::F32,
        Some("mixed") => DType::F16,
        Some(other) => return Err(format!("precision {other:?}; expected f32 or mixed").into()),
    };
    let mut ready = match &request.work {
        Work::Hello => {
            let description = bench.device.description();
            return Ok(Answer::Hello {
                peer: "epl",
                version: env!("CARGO_PKG_VERSION"),
                device: description.name.clone(),
                driver: description.driver.clone(),
                cpu: description.caps.cpu,
                kernels: if bench.tunes { "kernels measured" } else { "kernels by rule" },
            });
        }
        Work::Matmul { .. } if element == DType::F16 => return Err("matrix products are in f32".into()),
        &Work::Matmul { m, n, k } => {
            op(bench, &[(vec![m, k], DType::F32), (vec![k, n], DType::F32)], |graph, x| {
                Ok(matmul(graph, x[0], x[1], None, MatMul::default())?)
            })?
        }
        &Work::Conv { pass, batch, size, cin, cout, window, stride, padding } => {
            let conv = Conv2d { stride: [stride; 2], padding: [padding; 4], ..Conv2d::default() };
            let out = (size + 2 * padding - window) / stride + 1;
            let x = (vec![batch, size, size, cin], element);
            let w = (vec![window, window, cin, cout], element);
            let dy = (vec![batch, out, out, cout], element);
            match pass {
                Pass::Forward => op(bench, &[x, w], |graph, x| Ok(conv2d(graph, x[0], x[1], conv)?))?,
                Pass::Dgrad => op(bench, &[w, dy], |graph, x| {
                    Ok(push_one(graph, Conv2dGradInput { conv, input: [size; 2] }, x)?)
                })?,
                Pass::Wgrad => op(bench, &[x, dy], |graph, x| {
                    Ok(push_one(graph, Conv2dGradWeight { conv, kernel: [window; 2] }, x)?)
                })?,
            }
        }
        Work::Step { arch, batch, classes } => step(bench, arch, *batch, *classes, element)?,
        &Work::Head { batch, classes, dim } => head(bench, batch, classes, dim)?,
    };
    ready.measure(request.samples, request.seconds)
}

/// Seconds of one execution from which on it is measured only twice.
const LONG: f64 = 5.0;

/// Work that is ready to be done.
struct Ready {
    device: Arc<Device>,
    session: Session,
    /// Keeps the tensors of a model alive, and what to write before each step.
    step: Option<(Model, StepInputs, Batch)>,
}

impl Ready {
    /// Does it `times` times.
    fn execute(&mut self, times: usize) -> Outcome<f64> {
        self.device.finish()?;
        let started = Instant::now();
        for number in 0..times {
            if let Some((_, inputs, batch)) = &self.step {
                // A small rate: what is measured must not grow out of range.
                inputs.write(&mut self.session, batch, number as u64, 1, 1e-4, None)?;
            }
            self.session.step()?;
            self.session.finished()?;
        }
        self.session.flush()?;
        Ok(started.elapsed().as_secs_f64() / times as f64)
    }

    fn measure(&mut self, samples: usize, seconds: f64) -> Outcome<Answer> {
        self.execute(1)?;
        let once = self.execute(1)?;
        let times = (seconds / once).ceil().clamp(1.0, 10_000.0) as usize;
        // What takes long is seen well enough by two.
        let seconds = if once > LONG {
            vec![once, self.execute(1)?]
        } else {
            (0..samples.max(1)).map(|_| self.execute(times)).collect::<Outcome<Vec<f64>>>()?
        };
        let kernels = node_seconds(&self.session, 1)?.seconds.iter().sum();
        Ok(Answer::Measured { seconds, kernels, bytes: self.session.plan().memory.total() })
    }
}

/// A graph of one op on random tensors.
fn op(
    bench: &Bench,
    inputs: &[(Vec<usize>, DType)],
    record: impl Fn(&mut Graph, &[TensorId]) -> Outcome<TensorId>,
) -> Outcome<Ready> {
    let mut graph = Graph::new();
    let mut ids = Vec::new();
    for (index, (shape, dtype)) in inputs.iter().enumerate() {
        let desc = TensorDesc { shape: shape.clone().into(), dtype: *dtype };
        ids.push(graph.persistent(&format!("input {index}"), desc, "inputs")?);
    }
    let output = record(&mut graph, &ids)?;
    graph.keep(output);
    let store = Store::new(&bench.device);
    let session = bench.session(&graph, &store)?;
    for (index, (shape, dtype)) in inputs.iter().enumerate() {
        let values = normal(shape.clone(), 1.0, index as u64 + 1).tensor();
        let values = if *dtype == DType::F16 { values.to_half() } else { values };
        store.write(&format!("input {index}"), &values)?;
    }
    Ok(Ready { device: bench.device.clone(), session, step: None })
}

fn step(bench: &Bench, arch: &str, batch: usize, classes: usize, element: DType) -> Outcome<Ready> {
    let precision = if element == DType::F16 { "mixed" } else { "f32" };
    let overrides = [
        format!("model.arch={arch}"),
        format!("train.batch_size={batch}"),
        format!("train.precision={precision}"),
    ];
    let config = Config::from_toml("data.train = \"-\"\ntrain.out = \"-\"", &overrides)?;
    let config = resolve_form(&config, classes, bench.device.caps())?;
    let model = Model::new(spec_of(&config, classes)?, &bench.device, 1)?;
    let recorded = record_step(&model.spec, &step_options(&config, false))?;
    let session = bench.session(&recorded.graph, &model.store)?;
    if element == DType::F16 {
        ScaleState::INITIAL.write(&model.store)?;
    }
    let words = integers([packed_bytes(batch, config.model.input) / 4], u32::MAX, 1).tensor();
    let batch = Batch {
        images: words.bytes().to_vec(),
        labels: (0..batch).map(|i| (i * 7919 % classes) as u32).collect(),
        mirror: vec![0; batch],
        indices: Vec::new(),
        epoch: 1,
        number: 0,
    };
    Ok(Ready { device: bench.device.clone(), session, step: Some((model, recorded.inputs, batch)) })
}

fn head(bench: &Bench, batch: usize, classes: usize, dim: usize) -> Outcome<Ready> {
    let mut config = Config::from_toml(
        "data.train = \"-\"\ntrain.out = \"-\"",
        // The form is chosen for a whole step; a network that fits any adapter stands for the rest of it.
        &[
            format!("train.batch_size={batch}"),
            format!("model.embedding={dim}"),
            "model.arch=ir18".into(),
            "model.input=[32,32]".into(),
            "model.width=8".into(),
        ],
    )?;
    config = resolve_form(&config, classes, bench.device.caps())?;
    let settings = HeadSettings { form: config.head.form, ..HeadSettings::default() };
    let mut graph = Graph::new();
    let table = TensorDesc::f32([classes, dim]);
    let embedding = graph.persistent("embedding", TensorDesc::f32([batch, dim]), "inputs")?;
    let labels = graph.persistent("labels", TensorDesc::u32([batch]), "inputs")?;
    let lr = graph.persistent("lr", TensorDesc::f32([1]), "inputs")?;
    let weight = graph.persistent("weight", table.clone(), "weights")?;
    let momentum = graph.persistent("momentum", table, "optimizer")?;
    let inputs = HeadInputs { embedding, labels, weight, queue: None, bias: None, sampled: None };
    let outputs = head_loss(&mut graph, inputs, &settings, HeadPass { empirical_branch: false, tile: None })?;
    let rule = Sgd { momentum: 0.9, weight_decay: 5e-4, floor: None };
    let of_embedding = match outputs.prototypes {
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
    of_embedding.into_iter().for_each(|tensor| graph.keep(tensor));
    graph.keep(outputs.loss);
    debug_assert_ne!(settings.form, HeadForm::Auto);
    let store = Store::new(&bench.device);
    let session = bench.session(&graph, &store)?;
    let of_samples: Vec<u32> = (0..batch).map(|i| (i * 7919 % classes) as u32).collect();
    store.write("embedding", &normal([batch, dim], 1.0, 1).tensor())?;
    store.write_range("labels", 0, bytemuck::cast_slice(&of_samples))?;
    store.write_range("lr", 0, bytemuck::bytes_of(&1e-4f32))?;
    store.write("weight", &normal([classes, dim], 0.01, 2).tensor())?;
    Ok(Ready { device: bench.device.clone(), session, step: None })
}
