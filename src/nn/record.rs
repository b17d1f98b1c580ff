//! Networks as ops of a graph: images and activations are `[N, H, W, C]` there.

use std::collections::HashMap;

use epl_runtime::ops::{
    add, add_bias,
    batch_norm::{self, Then},
    batch_norm_eval,
    cast::cast,
    conv2d,
    dropout::{self, Dropout},
    prelu, reshape,
};
use epl_runtime::{DType, Graph, Record, TensorId};

use crate::Result;
use crate::nn::layers::{BATCH_NORM_EPS, BatchNorm, Convolution, Layers, Linear, Prelu};
use crate::nn::parameters::Declared;

/// Momentum of the running statistics (PyTorch's convention: the share of the new batch).
const BATCH_NORM_MOMENTUM: f32 = 0.1;

/// Whether a network is recorded for training or for evaluation.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// Batch statistics, which also move the running ones; dropout from the seed tensor (u32 `[2]`: seed, step).
    Train {
        /// The seed tensor.
        seed: TensorId,
        /// The images' place in the batch of the step, of which they may be a part.
        first: usize,
        /// Whether the running statistics move: not where the same images go through the network a second time.
        statistics: bool,
    },
    /// Running statistics, no dropout.
    Evaluate,
}

/// Records layers into a graph.
pub struct Recorder<'a> {
    /// The graph.
    pub graph: &'a mut Graph,
    /// The parameters there.
    pub parameters: &'a Declared,
    /// What for.
    pub mode: Mode,
    /// Moments of the results of convolutions, for the batch norm that follows each.
    pub moments: HashMap<TensorId, TensorId>,
}

impl Recorder<'_> {
    /// Weight, bias, running mean and running variance of batch norm `name`.
    fn of_batch_norm(&self, name: &str) -> Result<[TensorId; 4]> {
        let part = |part: &str| self.parameters.get(&format!("{name}.{part}"));
        Ok([part("weight")?, part("bias")?, part("running_mean")?, part("running_var")?])
    }

    /// Batch norm in training, and what follows it in the same pass.
    fn batch_norm_then(
        &mut self,
        name: &str,
        x: TensorId,
        then: Then,
        more: Option<TensorId>,
    ) -> Result<TensorId> {
        self.graph.set_scope(name);
        let moves = matches!(self.mode, Mode::Train { statistics: true, .. });
        let momentum = if moves { BATCH_NORM_MOMENTUM } else { 0.0 };
        let attributes = batch_norm::BatchNorm { eps: BATCH_NORM_EPS, momentum, then, moments: false };
        let parameters = self.of_batch_norm(name)?;
        let moments = self.moments.get(&x).copied();
        Ok(batch_norm::batch_norm_train(self.graph, x, parameters, more, moments, attributes)?)
    }
}

impl Layers for Recorder<'_> {
    type Tensor = TensorId;

    fn convolution(&mut self, name: &str, x: TensorId, layer: Convolution) -> Result<TensorId> {
        self.graph.set_scope(name);
        let element = self.graph.desc(x).dtype;
        let weight = self.parameters.computed_with(&format!("{name}.weight"), element)?;
        let attributes = conv2d::Conv2d {
            stride: [layer.stride; 2],
            padding: [layer.padding; 4],
            groups: layer.groups,
            ..conv2d::Conv2d::default()
        };
        if matches!(self.mode, Mode::Evaluate) {
            return Ok(conv2d::conv2d(self.graph, x, weight, attributes)?);
        }
        let [y, moments] = conv2d::conv2d_moments(self.graph, x, weight, attributes)?;
        self.moments.insert(y, moments);
        Ok(y)
    }

    fn batch_norm(&mut self, name: &str, x: TensorId, _layer: BatchNorm) -> Result<TensorId> {
        match self.mode {
            Mode::Train { .. } => self.batch_norm_then(name, x, Then::Nothing, None),
            Mode::Evaluate => {
                self.graph.set_scope(name);
                let [weight, bias, mean, var] = self.of_batch_norm(name)?;
                Ok(batch_norm_eval::batch_norm_eval(self.graph, x, weight, bias, mean, var, BATCH_NORM_EPS)?)
            }
        }
    }

    fn prelu(&mut self, name: &str, x: TensorId, _layer: Prelu) -> Result<TensorId> {
        // The optimiser keeps clamped slopes where they belong.
        self.graph.set_scope(name);
        let slope = self.parameters.get(&format!("{name}.weight"))?;
        Ok(prelu::prelu(self.graph, x, slope)?)
    }

    fn batch_norm_prelu(
        &mut self,
        [norm, activation]: [&str; 2],
        x: TensorId,
        layer: BatchNorm,
        prelu: Prelu,
    ) -> Result<TensorId> {
        match self.mode {
            Mode::Train { .. } => {
                let slope = self.parameters.get(&format!("{activation}.weight"))?;
                self.batch_norm_then(norm, x, Then::Prelu, Some(slope))
            }
            Mode::Evaluate => {
                let x = self.batch_norm(norm, x, layer)?;
                self.prelu(activation, x, prelu)
            }
        }
    }

    fn batch_norm_add(
        &mut self,
        [norm, sum]: [&str; 2],
        x: TensorId,
        layer: BatchNorm,
        shortcut: impl FnOnce(&mut Self) -> Result<TensorId>,
    ) -> Result<TensorId> {
        let shortcut = shortcut(self)?;
        match self.mode {
            Mode::Train { .. } => self.batch_norm_then(norm, x, Then::Add, Some(shortcut)),
            Mode::Evaluate => {
                let x = self.batch_norm(norm, x, layer)?;
                self.add(sum, x, shortcut)
            }
        }
    }

    fn add(&mut self, name: &str, a: TensorId, b: TensorId) -> Result<TensorId> {
        self.graph.set_scope(name);
        Ok(add::add(self.graph, a, b)?)
    }

    fn single(&mut self, x: TensorId) -> Result<TensorId> {
        Ok(cast(self.graph, x, DType::F32)?)
    }

    fn dropout(&mut self, x: TensorId, probability: f32) -> Result<TensorId> {
        match self.mode {
            Mode::Train { seed, first, .. } if probability > 0.0 => {
                self.graph.set_scope("dropout");
                let shape = &self.graph.desc(x).shape;
                let first = first * (shape.elements() / shape.dim(0));
                Ok(dropout::dropout(self.graph, x, seed, Dropout { salt: 0, probability, first })?)
            }
            _ => Ok(x),
        }
    }

    fn linear(&mut self, name: &str, x: TensorId, layer: Linear) -> Result<TensorId> {
        // A window over all that is left is the same product, and the kernel brings the operands into its order.
        self.graph.set_scope(name);
        let weight = self.parameters.get(&format!("{name}.weight"))?;
        let y = conv2d::conv2d(self.graph, x, weight, conv2d::Conv2d::default())?;
        let y = self.flatten(y, layer.features)?;
        if !layer.bias {
            return Ok(y);
        }
        let bias = self.parameters.get(&format!("{name}.bias"))?;
        Ok(add_bias::add_bias(self.graph, y, bias)?)
    }

    fn flatten(&mut self, x: TensorId, channels: usize) -> Result<TensorId> {
        let batch = self.graph.desc(x).shape.dim(0);
        let flat = reshape::reshape(self.graph, x, [batch, channels])?;
        // Where an image is one pixel, its moments are those of the vectors.
        if let Some(&moments) = self.moments.get(&x) {
            self.moments.insert(flat, moments);
        }
        Ok(flat)
    }
}
