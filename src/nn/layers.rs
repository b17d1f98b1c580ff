//! The layers that the networks are made of, and their parameters.
//!
//! A network's forward pass is written once, over the trait [`Layers`]. What a layer then does is for the implementation
//! to say: list parameters ([`ParameterList`]), record ops into a graph (`Recorder`), or write nodes of an ONNX model.

use crate::Result;
use crate::nn::parameters::{Initial, Layout, ParameterSpec, Role};

/// Epsilon of every batch norm of the networks.
pub const BATCH_NORM_EPS: f32 = 1e-5;
/// Initial PReLU slope.
const SLOPE: f32 = 0.25;

/// A convolution without bias, of images `[N, Cin, H, W]` as PyTorch sees them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Convolution {
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// Height and width of the window.
    pub kernel: [usize; 2],
    /// Stride in both directions.
    pub stride: usize,
    /// Zeros on every side.
    pub padding: usize,
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// How its weights start.
    pub initial: Initial,
}

/// A batch norm over `channels`, with [`BATCH_NORM_EPS`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// Channels, or features.
    pub channels: usize,
    /// What its weights start as.
    pub weight: f32,
    /// Whether its weights stay so.
    pub frozen: bool,
}

impl BatchNorm {
    /// A batch norm whose weights start at 1 and are trained.
    pub fn new(channels: usize) -> Self {
        Self { channels, weight: 1.0, frozen: false }
    }
}

/// PReLU with a slope a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prelu {
    /// Channels.
    pub channels: usize,
    /// Whether the trainer keeps the slopes from below [`MINIMUM_SLOPE`](super::ir::MINIMUM_SLOPE).
    pub clamped: bool,
}

/// A fully connected layer over all that is left of an image: `[N, C, H, W]` -> `[N, features]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// Input channels C.
    pub channels: usize,
    /// H and W.
    pub extent: [usize; 2],
    /// Output features.
    pub features: usize,
    /// Whether it has a bias, which starts as its weights do.
    pub bias: bool,
    /// How its weights start.
    pub initial: Initial,
}

/// What a network's forward pass is written over. Layers are called by the name of their module in the PyTorch state dict.
pub trait Layers {
    /// What goes from layer to layer.
    type Tensor: Copy;

    /// `[N, Cin, H, W]` -> `[N, Cout, H', W']`.
    fn convolution(&mut self, name: &str, x: Self::Tensor, layer: Convolution) -> Result<Self::Tensor>;

    /// Batch norm over all but the channels.
    fn batch_norm(&mut self, name: &str, x: Self::Tensor, layer: BatchNorm) -> Result<Self::Tensor>;

    /// PReLU with a slope a channel.
    fn prelu(&mut self, name: &str, x: Self::Tensor, layer: Prelu) -> Result<Self::Tensor>;

    /// The sum of two tensors, recorded as a part of module `name`.
    fn add(&mut self, name: &str, a: Self::Tensor, b: Self::Tensor) -> Result<Self::Tensor>;

    /// Batch norm `names[0]`, then PReLU `names[1]`: in one pass where that can be.
    fn batch_norm_prelu(
        &mut self,
        names: [&str; 2],
        x: Self::Tensor,
        layer: BatchNorm,
        prelu: Prelu,
    ) -> Result<Self::Tensor> {
        let [norm, activation] = names;
        let x = self.batch_norm(norm, x, layer)?;
        self.prelu(activation, x, prelu)
    }

    /// Batch norm `names[0]`, then the sum with what `shortcut` gives, as a part of module `names[1]`: in one pass where that can
    /// be. The layers of the shortcut come after the batch norm in the state dict.
    fn batch_norm_add(
        &mut self,
        names: [&str; 2],
        x: Self::Tensor,
        layer: BatchNorm,
        shortcut: impl FnOnce(&mut Self) -> Result<Self::Tensor>,
    ) -> Result<Self::Tensor>
    where
        Self: Sized,
    {
        let [norm, sum] = names;
        let x = self.batch_norm(norm, x, layer)?;
        let shortcut = shortcut(self)?;
        self.add(sum, x, shortcut)
    }

    /// What comes next is computed in 32 bits, whatever came before: from here to the embedding, where there is little to
    /// compute and rounding shows.
    fn single(&mut self, x: Self::Tensor) -> Result<Self::Tensor> {
        Ok(x)
    }

    /// Dropout, where the network is trained.
    fn dropout(&mut self, x: Self::Tensor, probability: f32) -> Result<Self::Tensor>;

    /// A fully connected layer over the flattened image.
    fn linear(&mut self, name: &str, x: Self::Tensor, layer: Linear) -> Result<Self::Tensor>;

    /// `[N, C, 1, 1]` -> `[N, C]`.
    fn flatten(&mut self, x: Self::Tensor, channels: usize) -> Result<Self::Tensor>;
}

/// Lists the parameters of the layers, in the order of the forward pass, which is that of the state dict.
#[derive(Debug, Default)]
pub struct ParameterList {
    /// The parameters so far.
    pub specs: Vec<ParameterSpec>,
    /// Whether 32 bits were asked for.
    single: bool,
}

impl ParameterList {
    fn push(&mut self, name: String, shape: &[usize], layout: Layout, role: Role, initial: Initial) {
        self.specs.push(ParameterSpec { name, shape: shape.into(), layout, role, initial });
    }
}

impl Layers for ParameterList {
    type Tensor = ();

    fn convolution(&mut self, name: &str, (): (), layer: Convolution) -> Result<()> {
        let Convolution { cin, cout, kernel: [kh, kw], groups, initial, .. } = layer;
        let shape = [cout, cin / groups.max(1), kh, kw];
        let role = if self.single { Role::Weight } else { Role::Window };
        self.push(format!("{name}.weight"), &shape, Layout::Convolution, role, initial);
        Ok(())
    }

    fn batch_norm(&mut self, name: &str, (): (), layer: BatchNorm) -> Result<()> {
        let weight_role = if layer.frozen { Role::Frozen } else { Role::Weight };
        for (part, role, value) in [
            ("weight", weight_role, layer.weight),
            ("bias", Role::Weight, 0.0),
            ("running_mean", Role::Statistic, 0.0),
            ("running_var", Role::Statistic, 1.0),
        ] {
            let (name, initial) = (format!("{name}.{part}"), Initial::Constant(value));
            self.push(name, &[layer.channels], Layout::Plain, role, initial);
        }
        Ok(())
    }

    fn prelu(&mut self, name: &str, (): (), layer: Prelu) -> Result<()> {
        let role = if layer.clamped { Role::Slope } else { Role::Weight };
        let initial = Initial::Constant(SLOPE);
        self.push(format!("{name}.weight"), &[layer.channels], Layout::Plain, role, initial);
        Ok(())
    }

    fn add(&mut self, _name: &str, (): (), (): ()) -> Result<()> {
        Ok(())
    }

    fn single(&mut self, (): ()) -> Result<()> {
        self.single = true;
        Ok(())
    }

    fn dropout(&mut self, (): (), _probability: f32) -> Result<()> {
        Ok(())
    }

    fn linear(&mut self, name: &str, (): (), layer: Linear) -> Result<()> {
        let Linear { channels, extent, features, bias, initial } = layer;
        let shape = [features, channels * extent[0] * extent[1]];
        self.push(format!("{name}.weight"), &shape, Layout::Flattened(extent), Role::Weight, initial);
        if bias {
            self.push(format!("{name}.bias"), &[features], Layout::Plain, Role::Weight, initial);
        }
        Ok(())
    }

    fn flatten(&mut self, (): (), _channels: usize) -> Result<()> {
        Ok(())
    }
}
