//! The training step as a graph: images -> embedding -> head -> gradients -> optimiser. One graph without the
//! empirical branch and one with it; both work on the same persistent tensors.

use epl_runtime::autodiff::{backward, backward_from};
use epl_runtime::graph::VIEW_ALIGNMENT;
use epl_runtime::ops::add::add;
use epl_runtime::ops::concat_rows::concat_rows;
use epl_runtime::ops::slice_rows::slice_rows;
use epl_runtime::ops::{check_finite, clamp_min, grad_norm, sgd, step_factor};
use epl_runtime::{Graph, Session, TensorDesc, TensorId};

use crate::data::Batch;
use crate::head::sampling::ClassSampler;
use crate::head::{HeadInputs, HeadPass, SampledClasses, head_loss};
use crate::model::{HEAD_BIAS, ModelSpec, Tables};
use crate::nn::input::{Images, record_images};
use crate::nn::ir::MINIMUM_SLOPE;
use crate::nn::parameters::{Declared, Entry, GRADIENTS, MOMENTUM, Role};
use crate::nn::record::Mode;
use crate::{Error, Result};

/// What the step needs to know beside the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOptions {
    /// Images that go through the network at once.
    pub batch: usize,
    /// Such batches in a step: it is that of one large batch, but for batch normalisation.
    pub accumulate: usize,
    /// Momentum of SGD.
    pub momentum: f32,
    /// Weight decay of SGD, on every trained parameter.
    pub weight_decay: f32,
    /// Largest gradient norm; 0 for no clipping.
    pub clip_norm: f32,
    /// Whether the class weights take part in that norm and are clipped.
    pub clip_head: bool,
    /// Whether no step after the first one that is not finite is taken; otherwise that one alone is left out.
    pub halt: bool,
    /// Whether the empirical branch takes part in the loss.
    pub empirical: bool,
    /// Seed of the classes that are sampled.
    pub seed: u64,
}

impl StepOptions {
    /// Images in a step.
    pub fn images(&self) -> usize {
        self.batch * self.accumulate
    }
}

/// A recorded training step.
pub struct StepGraph {
    /// The graph.
    pub graph: Graph,
    /// What to write before each step.
    pub inputs: StepInputs,
}

/// The inputs of a training step.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs {
    /// The images.
    pub images: Images,
    /// u32 `[images]`: classes.
    pub labels: TensorId,
    /// The classes that take part, where they are sampled.
    pub sampled: Option<SampledClasses>,
    /// f32 `[1]`: the learning rate.
    pub lr: TensorId,
    /// u32 `[2]`: seed and step, for dropout.
    pub seed: TensorId,
}

impl StepInputs {
    /// Writes the inputs of step `step` (counted from 0) with the random numbers of `seed` and the rate `lr`.
    ///
    /// # Errors
    /// A batch of another size, a label that is no class where classes are sampled, a lost device.
    pub fn write(
        &self,
        session: &mut Session,
        batch: &Batch,
        step: u64,
        seed: u64,
        lr: f64,
        sampler: Option<&ClassSampler>,
    ) -> Result<()> {
        let bytes = 4 * session.graph().tensor(self.images.bytes).desc.shape.elements();
        if batch.images.len() == bytes {
            session.write(self.images.bytes, &batch.images)?;
        } else {
            let mut padded = batch.images.clone();
            padded.resize(bytes, 0);
            session.write(self.images.bytes, &padded)?;
        }
        session.write(self.images.mirror, bytemuck::cast_slice(&batch.mirror))?;
        session.write(self.labels, bytemuck::cast_slice(&batch.labels))?;
        if let (Some(sampled), Some(sampler)) = (self.sampled, sampler) {
            let sample = sampler.sample(step, &batch.labels)?;
            session.write(sampled.classes, bytemuck::cast_slice(&sample.classes))?;
            session.write(sampled.positions, bytemuck::cast_slice(&sample.positions))?;
        }
        session.write(self.lr, bytemuck::bytes_of(&(lr as f32)))?;
        session.write(self.seed, bytemuck::bytes_of(&[fold(seed), fold(step)]))?;
        Ok(())
    }
}

/// A 64-bit number folded into the 32 bits that the GPU's generator takes as a key.
fn fold(value: u64) -> u32 {
    (value ^ (value >> 32)) as u32
}

/// The sampler of a model's classes for batches of `batch`; `None` where all take part in every step.
pub fn class_sampler(spec: &ModelSpec, options: &StepOptions) -> Option<ClassSampler> {
    let head = spec.head.as_ref()?;
    ClassSampler::new(head.classes, options.images(), head.settings.sample_rate, options.seed)
}

/// Name of the persistent count of what was not finite.
const HALTED: &str = "halted";

/// Results of a step, as fetched.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    /// Mean loss of all rows.
    pub loss: f32,
    /// L2 norm of the whole gradient, before clipping.
    pub grad_norm: f32,
    /// Elements of loss and gradient that are not finite, in the tiled form of the head without those of the class weights.
    /// Where there are any, the step was not taken.
    pub nonfinite: u32,
    /// Cosine of each sample and its class's prototype.
    pub target_cosine: Vec<f32>,
    /// Cosine of each sample and its class's empirical prototype, with EPL.
    pub empirical_cosine: Vec<f32>,
    /// The same before the update of the step.
    pub cosine_before_update: Vec<f32>,
}

impl StepResult {
    /// Whether loss and gradient are finite. Where they are not the step was not taken.
    pub fn is_finite(&self) -> bool {
        self.nonfinite == 0 && self.loss.is_finite() && self.grad_norm.is_finite()
    }

    /// Unpacks the fetched tensors, in the order in which [`record_step`] fetches them.
    pub fn unpack(values: &[epl_runtime::HostTensor]) -> Result<Self> {
        let missing = || Error::usage("a step gave too few results", "this is a fault of the program");
        let get = |index: usize| values.get(index).ok_or_else(missing);
        let first =
            |index: usize| -> Result<f32> { get(index)?.as_f32()?.first().copied().ok_or_else(missing) };
        let optional = |index: usize| -> Result<Vec<f32>> {
            Ok(match values.get(index) {
                Some(value) => value.as_f32()?.to_vec(),
                None => Vec::new(),
            })
        };
        Ok(Self {
            loss: first(0)?,
            grad_norm: first(1)?,
            nonfinite: get(2)?.as_u32()?.first().copied().ok_or_else(missing)?,
            target_cosine: get(3)?.as_f32()?.to_vec(),
            empirical_cosine: optional(4)?,
            cosine_before_update: optional(5)?,
        })
    }
}

fn without_head() -> Error {
    Error::usage("a model without a head cannot be trained", "give it a head")
}

/// Records a whole training step of a model that has a head.
pub fn record_step(spec: &ModelSpec, options: &StepOptions) -> Result<StepGraph> {
    let head = spec.head.as_ref().ok_or_else(without_head)?;
    let mut graph = Graph::new();
    let parameters = spec.parameters.declare(&mut graph)?;
    let arena = TensorDesc::f32([spec.parameters.arena_elements()]);
    let gradients = graph.persistent(GRADIENTS, arena.clone(), "gradients")?;
    let momentum = graph.persistent(MOMENTUM, arena, "optimizer")?;
    let tables = spec.declare_tables(&mut graph)?;
    let Tables { weight, momentum: weight_momentum, queue } = tables.ok_or_else(without_head)?;
    let images = record_images(&mut graph, options.images(), spec.network.input)?;
    let labels = graph.input("labels", TensorDesc::u32([options.images()]))?;
    let sampled = match class_sampler(spec, options) {
        Some(sampler) => Some(SampledClasses {
            classes: graph.input("classes", TensorDesc::u32([sampler.count()]))?,
            positions: graph.input("positions", TensorDesc::u32([options.images()]))?,
        }),
        None => None,
    };
    let lr = graph.input("lr", TensorDesc::f32([1]))?;
    let seed = graph.input("seed", TensorDesc::u32([2]))?;

    let mut passes = Passes { graph: &mut graph, spec, parameters: &parameters, images, seed, options };
    let embedding = passes.embeddings()?;
    graph.set_scope("head");
    let bias = spec.parameters.get(HEAD_BIAS).map(|_| parameters.get(HEAD_BIAS)).transpose()?;
    let inputs = HeadInputs { embedding, labels, weight, queue, bias, sampled };
    let pass = HeadPass { empirical_branch: options.empirical, tile: None };
    let outputs = head_loss(&mut graph, inputs, &head.settings, pass)?;

    let mut passes = Passes { graph: &mut graph, spec, parameters: &parameters, images, seed, options };
    let (computed, weight_gradient) =
        passes.gradients(embedding, outputs.loss, Some(weight).filter(|_| outputs.prototypes.is_none()))?;
    for (entry, gradient) in trained(spec).zip(computed) {
        graph.place(gradient, gradients, entry.offset)?;
    }

    graph.set_scope("optimizer");
    let rule = sgd::Sgd { momentum: options.momentum, weight_decay: options.weight_decay };
    let halted = graph.persistent(HALTED, TensorDesc::u32([1]), "statistics")?;
    let factor_of = |graph: &mut Graph, norm: TensorId, nonfinite: TensorId, max_norm: f32| {
        let config = step_factor::StepFactor { max_norm, latch: options.halt };
        step_factor::step_factor(graph, norm, nonfinite, halted, config)
    };
    let of_network = grad_norm::grad_norm(&mut graph, &[gradients])?;
    let clips_head = options.clip_norm > 0.0 && options.clip_head;
    let (norm, nonfinite);
    let mut factor = None;
    match (&outputs.prototypes, weight_gradient) {
        (None, Some(gradient)) => {
            norm = grad_norm::grad_norm(&mut graph, &[gradients, gradient])?;
            nonfinite = check_finite::check_finite(&mut graph, &[outputs.loss, gradients, gradient])?;
            let limit = if clips_head { options.clip_norm } else { 0.0 };
            let of_weight = factor_of(&mut graph, norm, nonfinite, limit)?;
            sgd::sgd(&mut graph, weight, gradient, weight_momentum, lr, Some(of_weight), rule)?;
            factor = Some(of_weight).filter(|_| limit == options.clip_norm);
        }
        // In the tiled form the gradient of the class weights is gone as soon as it has been applied. Whether it will be
        // finite the loss and the network's gradient tell; a norm counts in the whole one as the tensor would. What clipping
        // needs to know before that takes a pass of its own.
        (Some(prototypes), _) => {
            nonfinite = check_finite::check_finite(&mut graph, &[outputs.loss, gradients])?;
            if clips_head {
                let of_weight = prototypes.norm(&mut graph, weight_momentum, lr)?;
                norm = grad_norm::grad_norm(&mut graph, &[of_network, of_weight])?;
                let both = factor_of(&mut graph, norm, nonfinite, options.clip_norm)?;
                prototypes.apply(&mut graph, weight_momentum, lr, rule, Some(both))?;
                factor = Some(both);
            } else {
                let unclipped = factor_of(&mut graph, of_network, nonfinite, 0.0)?;
                let of_weight = prototypes.apply(&mut graph, weight_momentum, lr, rule, Some(unclipped))?;
                norm = grad_norm::grad_norm(&mut graph, &[of_network, of_weight])?;
            }
        }
        (None, None) => return Err(without_head()),
    }
    let clipped = if options.clip_head { norm } else { of_network };
    let factor = match factor {
        Some(factor) => factor,
        None => factor_of(&mut graph, clipped, nonfinite, options.clip_norm)?,
    };
    sgd::sgd(&mut graph, parameters.weights, gradients, momentum, lr, Some(factor), rule)?;
    if let Some((offset, elements)) = spec.parameters.slopes() {
        debug_assert!(offset.is_multiple_of(VIEW_ALIGNMENT));
        let slopes = graph.view(parameters.weights, "slopes", offset, TensorDesc::f32([elements]))?;
        clamp_min::clamp_min(&mut graph, slopes, MINIMUM_SLOPE)?;
    }

    graph.fetch(outputs.loss);
    graph.fetch(norm);
    graph.fetch(nonfinite);
    graph.fetch(outputs.target_cosine);
    for cosine in [outputs.empirical_cosine, outputs.cosine_before_update].into_iter().flatten() {
        graph.fetch(cosine);
    }
    Ok(StepGraph { graph, inputs: StepInputs { images, labels, sampled, lr, seed } })
}

/// The parameters that are trained by gradient, but for the class weights.
fn trained(spec: &ModelSpec) -> impl Iterator<Item = &Entry> {
    spec.parameters.entries().iter().filter(|entry| entry.spec.role != Role::Statistic)
}

/// The ways of a step's images through the network.
///
/// Where a step has several batches, its head sees all of them as one: empirical prototypes, sampled classes, margins and
/// the norm that clips are those of the large batch, exactly. What would keep the activations of all batches at once, the
/// gradient, takes each batch through the network a second time instead, when the gradient of its embeddings is known
/// (as in gradient checkpointing: Chen et al., arXiv 1604.06174; for losses over large batches, Gao et al., arXiv 2101.06983).
struct Passes<'a> {
    graph: &'a mut Graph,
    spec: &'a ModelSpec,
    parameters: &'a Declared,
    images: Images,
    seed: TensorId,
    options: &'a StepOptions,
}

impl Passes<'_> {
    /// The embeddings of batch `index`; `again` where they were recorded before.
    fn embed(&mut self, index: usize, again: bool) -> Result<TensorId> {
        let first = index * self.options.batch;
        let images = self.images.normalized(self.graph, first, self.options.batch)?;
        let mode = Mode::Train { seed: self.seed, first, statistics: !again };
        self.spec.network.record(self.graph, self.parameters, images, mode)
    }

    /// The embeddings of all images, `[images, D]`.
    fn embeddings(&mut self) -> Result<TensorId> {
        let parts: Vec<TensorId> =
            (0..self.options.accumulate).map(|index| self.embed(index, false)).collect::<Result<_>>()?;
        match parts.as_slice() {
            [all] => Ok(*all),
            parts => {
                self.graph.set_scope("embeddings");
                Ok(concat_rows(self.graph, parts)?)
            }
        }
    }

    /// The gradients of the trained parameters, in their order, and of `weight`.
    fn gradients(
        &mut self,
        embedding: TensorId,
        loss: TensorId,
        weight: Option<TensorId>,
    ) -> Result<(Vec<TensorId>, Option<TensorId>)> {
        let names: Vec<&str> = trained(self.spec).map(|entry| entry.spec.name.as_str()).collect();
        let of =
            |names: &[&str]| names.iter().map(|name| self.parameters.get(name)).collect::<Result<Vec<_>>>();
        if self.options.accumulate == 1 {
            let mut wrt = of(&names)?;
            wrt.extend(weight);
            let mut found = backward(self.graph, loss, &wrt)?;
            let of_weight = weight.and_then(|_| found.pop());
            return Ok((found, of_weight));
        }
        let (of_head, of_network): (Vec<&str>, Vec<&str>) =
            names.iter().partition(|name| **name == HEAD_BIAS);
        let (of_head, of_network) = (of(&of_head)?, of(&of_network)?);
        let mut wrt = vec![embedding];
        wrt.extend(&of_head);
        wrt.extend(weight);
        let mut found = backward(self.graph, loss, &wrt)?;
        let of_weight = weight.and_then(|_| found.pop());
        let rest = found.split_off(1);
        let Some(of_embedding) = found.pop() else { return Err(without_head()) };
        let mut sums: Vec<TensorId> = Vec::new();
        for index in 0..self.options.accumulate {
            let part = self.embed(index, true)?;
            self.graph.set_scope("embeddings");
            let batch = self.options.batch;
            let upstream = slice_rows(self.graph, of_embedding, index * batch, batch)?;
            let parts = backward_from(self.graph, part, upstream, &of_network)?;
            self.graph.set_scope("accumulated gradients");
            sums = if sums.is_empty() {
                parts
            } else {
                let pairs = sums.into_iter().zip(parts);
                pairs.map(|(sum, part)| add(self.graph, sum, part)).collect::<Result<_, _>>()?
            };
        }
        let mut of_network = sums.into_iter();
        let mut of_head = rest.into_iter();
        let in_order = names
            .iter()
            .filter_map(|name| if *name == HEAD_BIAS { of_head.next() } else { of_network.next() });
        Ok((in_order.collect(), of_weight))
    }
}
