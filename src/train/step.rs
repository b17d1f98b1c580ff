//! The training step as a graph: images -> embedding -> head -> gradients -> optimiser. One graph without the
//! empirical branch and one with it; both work on the same persistent tensors.

use epl_runtime::autodiff::{backward, backward_from};
use epl_runtime::ops::add::add;
use epl_runtime::ops::concat_rows::concat_rows;
use epl_runtime::ops::fill::fill;
use epl_runtime::ops::loss_scale::{LossScale, loss_scale};
use epl_runtime::ops::scale_by::{divide_by, scale_by};
use epl_runtime::ops::slice_rows::slice_rows;
use epl_runtime::ops::{check_finite, grad_norm, sgd, step_factor};
use epl_runtime::{DType, Graph, HostTensor, Session, Store, TensorDesc, TensorId};

use crate::config::Precision;
use crate::data::Batch;
use crate::head::sampling::ClassSampler;
use crate::head::{HeadInputs, HeadPass, SampledClasses, head_loss};
use crate::model::{HEAD_BIAS, ModelSpec, Tables};
use crate::nn::input::{Images, record_images};
use crate::nn::ir::MINIMUM_SLOPE;
use crate::nn::parameters::{Declared, Entry, GRADIENTS, MOMENTUM};
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
    /// How activations and the weights of convolutions are stored.
    pub precision: Precision,
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

/// Names of the persistent loss scale of mixed precision, and of the count of steps since it last changed.
const LOSS_SCALE: &str = "loss scale";
const FINITE_STEPS: &str = "finite steps";

/// What a run in mixed precision keeps beside its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleState {
    /// The loss scale of the next step.
    pub scale: f32,
    /// Finite steps since it last changed.
    pub finite_steps: u32,
}

impl ScaleState {
    /// That of a new run.
    pub const INITIAL: Self = Self { scale: LossScale::INITIAL, finite_steps: 0 };

    /// Sets it in `store`, where a session of a step in mixed precision has declared it.
    ///
    /// # Errors
    /// A lost device; no such session.
    pub fn write(self, store: &Store) -> Result<()> {
        store.write(LOSS_SCALE, &HostTensor::from_f32([1], vec![self.scale])?)?;
        Ok(store.write(FINITE_STEPS, &HostTensor::from_u32([1], vec![self.finite_steps])?)?)
    }

    /// Reads it from `store`, waiting for the GPU.
    ///
    /// # Errors
    /// As for [`ScaleState::write`].
    pub fn read(store: &Store) -> Result<Self> {
        let missing = || Error::usage("the loss scale has no value", "this is a fault of the program");
        let scale = store.read(LOSS_SCALE)?.as_f32()?.first().copied().ok_or_else(missing)?;
        let finite_steps = store.read(FINITE_STEPS)?.as_u32()?.first().copied().ok_or_else(missing)?;
        Ok(Self { scale, finite_steps })
    }
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
    /// What the gradient of the embeddings was multiplied by before it went on through the network; 1 in single precision.
    pub loss_scale: f32,
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

    /// Whether the step says nothing but that the loss scale was too large, which it is no longer: it was not taken, and that
    /// is all.
    pub fn is_overflow(&self) -> bool {
        !self.is_finite() && self.loss_scale > LossScale::default().smallest
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
            loss_scale: first(3)?,
            target_cosine: get(4)?.as_f32()?.to_vec(),
            empirical_cosine: optional(5)?,
            cosine_before_update: optional(6)?,
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
    let mut parameters = spec.parameters.declare(&mut graph)?;
    let scale = match options.precision {
        Precision::F32 => None,
        Precision::Mixed => {
            parameters.in_half(&mut graph, &spec.parameters)?;
            Some(graph.persistent(LOSS_SCALE, TensorDesc::f32([1]), "statistics")?)
        }
    };
    let parameters = parameters;
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

    let mut passes =
        Passes { graph: &mut graph, spec, parameters: &parameters, images, seed, scale, options };
    let embedding = passes.embeddings()?;
    graph.set_scope("head");
    let bias = spec.parameters.get(HEAD_BIAS).map(|_| parameters.get(HEAD_BIAS)).transpose()?;
    let inputs = HeadInputs { embedding, labels, weight, queue, bias, sampled };
    let pass = HeadPass { empirical_branch: options.empirical, tile: None };
    let outputs = head_loss(&mut graph, inputs, &head.settings, pass)?;

    let mut passes =
        Passes { graph: &mut graph, spec, parameters: &parameters, images, seed, scale, options };
    let (computed, weight_gradient) =
        passes.gradients(embedding, outputs.loss, Some(weight).filter(|_| outputs.prototypes.is_none()))?;
    for (entry, gradient) in trained(spec).zip(computed) {
        graph.place(gradient, gradients, entry.offset)?;
    }

    graph.set_scope("optimizer");
    let rule = sgd::Sgd { momentum: options.momentum, weight_decay: options.weight_decay, floor: None };
    let halted = graph.persistent(HALTED, TensorDesc::u32([1]), "statistics")?;
    let rescale = LossScale::default();
    let factor_of = |graph: &mut Graph, norm: TensorId, nonfinite: TensorId, max_norm: f32| {
        let smallest_scale = rescale.smallest;
        let config = step_factor::StepFactor { max_norm, latch: options.halt, smallest_scale };
        step_factor::step_factor(graph, norm, nonfinite, halted, scale, config)
    };
    let unscaled = |graph: &mut Graph, x: TensorId| match scale {
        None => Ok(x),
        Some(scale) => divide_by(graph, x, scale),
    };
    // The gradients of the network have the loss scale in them; the norm, and what it is compared with, have not.
    let of_network = grad_norm::grad_norm(&mut graph, &[gradients])?;
    let of_network = unscaled(&mut graph, of_network)?;
    let clips_head = options.clip_norm > 0.0 && options.clip_head;
    let (norm, nonfinite);
    let mut factor = None;
    match (&outputs.prototypes, weight_gradient) {
        (None, Some(gradient)) => {
            let of_head = if scale.is_some() { of_network } else { gradients };
            norm = grad_norm::grad_norm(&mut graph, &[of_head, gradient])?;
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
    // PReLU slopes come first among the weights.
    let floor = spec.parameters.slopes().map(|(first, elements)| {
        debug_assert_eq!(first, 0);
        sgd::Floor { elements, least: MINIMUM_SLOPE }
    });
    let factor = unscaled(&mut graph, factor)?;
    let rule = sgd::Sgd { floor, ..rule };
    sgd::sgd(&mut graph, parameters.weights, gradients, momentum, lr, Some(factor), rule)?;
    let scale_used = match scale {
        None => fill(&mut graph, [1].into(), 1.0)?,
        Some(scale) => {
            let finite = graph.persistent(FINITE_STEPS, TensorDesc::u32([1]), "statistics")?;
            loss_scale(&mut graph, nonfinite, scale, finite, rescale)?
        }
    };

    graph.fetch(outputs.loss);
    graph.fetch(norm);
    graph.fetch(nonfinite);
    graph.fetch(scale_used);
    graph.fetch(outputs.target_cosine);
    for cosine in [outputs.empirical_cosine, outputs.cosine_before_update].into_iter().flatten() {
        graph.fetch(cosine);
    }
    Ok(StepGraph { graph, inputs: StepInputs { images, labels, sampled, lr, seed } })
}

/// The parameters that are trained by gradient, but for the class weights.
fn trained(spec: &ModelSpec) -> impl Iterator<Item = &Entry> {
    spec.parameters.entries().iter().filter(|entry| entry.spec.role.is_trained())
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
    /// The loss scale, where there is one.
    scale: Option<TensorId>,
    options: &'a StepOptions,
}

impl Passes<'_> {
    /// The embeddings of batch `index`; `again` where they were recorded before.
    fn embed(&mut self, index: usize, again: bool) -> Result<TensorId> {
        let first = index * self.options.batch;
        let element = if self.scale.is_some() { DType::F16 } else { DType::F32 };
        let images = self.images.normalized(self.graph, first, self.options.batch, element)?;
        let mode = Mode::Train { seed: self.seed, first, statistics: !again };
        self.spec.network.record(self.graph, self.parameters, images, mode)
    }

    /// The tensor whose gradient is that of parameter `name`.
    fn trained_as(&self, name: &str) -> Result<TensorId> {
        let element = if self.scale.is_some() { DType::F16 } else { DType::F32 };
        self.parameters.computed_with(name, element)
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
        let of = |names: &[&str]| names.iter().map(|name| self.trained_as(name)).collect::<Result<Vec<_>>>();
        if self.options.accumulate == 1 && self.scale.is_none() {
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
        // The head is computed in 32 bits and needs no scale; what is stored in 16 bits begins behind it. The gradient of
        // its bias lies among those of the network, which all have the scale in them.
        self.graph.set_scope("loss scale");
        let scaled = |graph: &mut Graph, x: TensorId| match self.scale {
            None => Ok(x),
            Some(scale) => scale_by(graph, x, scale),
        };
        let of_embedding = scaled(self.graph, of_embedding)?;
        let rest: Vec<TensorId> =
            rest.into_iter().map(|x| scaled(self.graph, x)).collect::<Result<_, _>>()?;
        let mut sums: Vec<TensorId> = Vec::new();
        for index in 0..self.options.accumulate {
            let whole = self.options.accumulate == 1;
            let part = if whole { embedding } else { self.embed(index, true)? };
            self.graph.set_scope("embeddings");
            let batch = self.options.batch;
            let upstream = if whole {
                of_embedding
            } else {
                slice_rows(self.graph, of_embedding, index * batch, batch)?
            };
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
