//! burn's side of `cargo xtask bench`: the same requests and answers as `benches/work.rs` of epl, which explains them.

mod network;

use std::io::{BufRead, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use burn::backend::wgpu::WgpuDevice;
use burn::backend::{Autodiff, Vulkan};
use burn::module::{Module, Param};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::tensor::backend::Backend;
use burn::tensor::module::conv2d;
use burn::tensor::ops::{ConvOptions, ModuleOps};
use burn::tensor::{Distribution, Int, Tensor, TensorData, TensorPrimitive};
use serde::{Deserialize, Serialize};

use crate::network::{Model, class_weights, cosface};

type Inner = Vulkan<f32, i32>;
type Diff = Autodiff<Inner>;

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Work {
    Hello,
    Matmul { m: usize, n: usize, k: usize },
    Conv { pass: Pass, batch: usize, size: usize, cin: usize, cout: usize, window: usize, stride: usize, padding: usize },
    Step { arch: String, batch: usize, classes: usize },
    Head { batch: usize, classes: usize, dim: usize },
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
    #[serde(default)]
    precision: Option<String>,
    samples: usize,
    seconds: f64,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Answer {
    Hello { peer: &'static str, version: &'static str, device: String },
    Measured { seconds: Vec<f64> },
    Failed { error: String },
}

fn main() {
    let device = device();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        let mut panicked = false;
        let answer = match serde_json::from_str::<Request>(&line) {
            Err(error) => Answer::Failed { error: error.to_string() },
            Ok(request) => match catch_unwind(AssertUnwindSafe(|| serve(&device, &request))) {
                Ok(answer) => answer,
                Err(_) => {
                    panicked = true;
                    Answer::Failed { error: "it panicked".into() }
                }
            },
        };
        let text = serde_json::to_string(&answer).expect("an answer is plain data");
        let mut out = std::io::stdout().lock();
        // burn panics where the device gives out, and cannot be used any more then: whoever asks starts it again.
        if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() || panicked {
            return;
        }
    }
}

/// The device that `EPL_BENCH_CPU` and burn's own variable choose.
fn device() -> WgpuDevice {
    if std::env::var_os("EPL_BENCH_CPU").is_some() { WgpuDevice::Cpu } else { WgpuDevice::DefaultDevice }
}

fn serve(device: &WgpuDevice, request: &Request) -> Answer {
    if request.precision.as_deref().is_some_and(|precision| precision != "f32") {
        return Answer::Failed { error: "in f32 alone".into() };
    }
    let random4 = |shape: [usize; 4]| Tensor::<Inner, 4>::random(shape, Distribution::Normal(0.0, 1.0), device);
    match request.work {
        Work::Hello => Answer::Hello { peer: "burn", version: "0.20.1", device: format!("{device:?}") },
        Work::Matmul { m, n, k } => {
            let random = |shape: [usize; 2]| Tensor::<Inner, 2>::random(shape, Distribution::Normal(0.0, 1.0), device);
            let (a, b) = (random([m, k]), random([k, n]));
            measure(request, device, || drop(settle(a.clone().matmul(b.clone()))))
        }
        Work::Conv { pass, batch, size, cin, cout, window, stride, padding } => {
            let options = || ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1);
            let out = (size + 2 * padding - window) / stride + 1;
            let x = random4([batch, cin, size, size]);
            let w = random4([cout, cin, window, window]);
            let dy = random4([batch, cout, out, out]);
            let raw = |tensor: &Tensor<Inner, 4>| tensor.clone().into_primitive().tensor();
            let cooked = |raw| Tensor::<Inner, 4>::from_primitive(TensorPrimitive::Float(raw));
            match pass {
                Pass::Forward => measure(request, device, || {
                    drop(settle(conv2d(x.clone(), w.clone(), None, options())));
                }),
                Pass::Dgrad => measure(request, device, || {
                    drop(settle(cooked(Inner::conv2d_x_backward(raw(&x), raw(&w), raw(&dy), options()))));
                }),
                Pass::Wgrad => measure(request, device, || {
                    drop(settle(cooked(Inner::conv2d_weight_backward(raw(&x), raw(&w), raw(&dy), options()))));
                }),
            }
        }
        Work::Step { ref arch, batch, classes } => {
            let depths = match arch.as_str() {
                "ir18" => [2, 2, 2, 2],
                "ir50" => [3, 4, 14, 3],
                _ => return Answer::Failed { error: format!("no network {arch}") },
            };
            let model = Model::<Diff>::new(depths, classes, device);
            let images =
                Tensor::<Diff, 4>::random([batch, 3, 112, 112], Distribution::Uniform(-1.0, 1.0), device);
            train(request, device, model, move |model| model.loss(images.clone(), labels(batch, classes, device)))
        }
        Work::Head { batch, classes, dim } => {
            let head = Head::<Diff> { classes: class_weights(classes, dim, device) };
            let embedding = Tensor::<Diff, 2>::random([batch, dim], Distribution::Normal(0.0, 1.0), device)
                .require_grad();
            train(request, device, head, move |head| {
                cosface(embedding.clone(), head.classes.val(), labels(batch, classes, device))
            })
        }
    }
}

#[derive(Module, Debug)]
struct Head<B: Backend> {
    classes: Param<Tensor<B, 2>>,
}

fn labels(batch: usize, classes: usize, device: &WgpuDevice) -> Tensor<Diff, 1, Int> {
    let values: Vec<i32> = (0..batch).map(|i| (i * 7919 % classes) as i32).collect();
    Tensor::from_data(TensorData::new(values, [batch]), device)
}

/// What is lazily recorded is handed to the device with the tensor, which is not read.
fn settle<const D: usize>(tensor: Tensor<Inner, D>) -> Tensor<Inner, D> {
    tensor
}

/// Steps of SGD with momentum and weight decay.
fn train<M: burn::module::AutodiffModule<Diff>>(
    request: &Request,
    device: &WgpuDevice,
    model: M,
    loss: impl Fn(&M) -> Tensor<Diff, 1>,
) -> Answer {
    let mut optimizer = SgdConfig::new()
        .with_weight_decay(Some(WeightDecayConfig::new(5e-4)))
        .with_momentum(Some(MomentumConfig::new().with_momentum(0.9).with_dampening(0.0)))
        .init();
    let mut model = Some(model);
    measure(request, device, || {
        let before = model.take().expect("it is put back");
        let gradients = GradientsParams::from_grads(loss(&before).backward(), &before);
        model = Some(optimizer.step(1e-4, before, gradients));
    })
}

/// Seconds of one execution from which on it is measured only twice.
const LONG: f64 = 5.0;

fn measure(request: &Request, device: &WgpuDevice, mut execute: impl FnMut()) -> Answer {
    let mut timed = |times: usize| {
        Inner::sync(device).expect("the device is there");
        let started = Instant::now();
        (0..times).for_each(|_| execute());
        Inner::sync(device).expect("the device is there");
        started.elapsed().as_secs_f64() / times as f64
    };
    // Kernels are tuned, and fused, in the first runs.
    timed(1);
    let second = timed(1);
    if second > LONG {
        return Answer::Measured { seconds: vec![timed(1), timed(1)] };
    }
    timed(1);
    let times = (request.seconds / timed(1)).ceil().clamp(1.0, 10_000.0) as usize;
    Answer::Measured { seconds: (0..request.samples.max(1)).map(|_| timed(times)).collect() }
}
