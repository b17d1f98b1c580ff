//! MobileFaceNet (Chen et al. 2018, arXiv 1804.07573) in the form of InsightFace's arcface_torch with `scale=2` and
//! `blocks=(1,4,6,2)`, its `mbf`, under the names of its state dict.
//!
//! 3x3 stride 2 to w channels (128); 3x3 in w/2 groups; then bottlenecks of a 1x1, a depthwise 3x3 and a linear 1x1
//! convolution: three that halve the resolution, to w, 2w and 2w channels, each followed by residual ones; 1x1 to 4w;
//! a depthwise convolution over all that is left, linear to the embedding without bias, batch norm. Every convolution has
//! its batch norm, and a PReLU where it is not linear.

use crate::Result;
use crate::nn::layers::{BatchNorm, Convolution, Layers, Linear, Prelu};
use crate::nn::network::Network;
use crate::nn::parameters::Initial;

/// Its depths by name.
pub const DEPTHS: &[(&str, [usize; 4])] = &[("mobilefacenet", [1, 4, 6, 2])];

/// A group of layers within a network: the place of its modules, and its channels.
struct Bottleneck<'a> {
    name: &'a str,
    cin: usize,
    /// Channels of the depthwise convolution.
    inner: usize,
    cout: usize,
    stride: usize,
}

/// The forward pass: images -> embeddings.
pub fn forward<L: Layers>(network: &Network, layers: &mut L, images: L::Tensor) -> Result<L::Tensor> {
    let width = network.width;
    let [first, second, third, fourth] = network.blocks;
    let x = unit(layers, "layers.0", images, convolution(3, width, [3, 3], 2, 1, 1))?;
    let x = if first == 1 {
        unit(layers, "layers.1", x, convolution(width, width, [3, 3], 1, 1, width / 2))?
    } else {
        residual(layers, "layers.1", x, width, width, first)?
    };
    let halve = |name, cin, inner, cout| Bottleneck { name, cin, inner, cout, stride: 2 };
    let x = bottleneck(layers, &halve("layers.2", width, width, width), x)?;
    let x = residual(layers, "layers.3", x, width, width, second)?;
    let x = bottleneck(layers, &halve("layers.4", width, 2 * width, 2 * width), x)?;
    let x = residual(layers, "layers.5", x, 2 * width, 2 * width, third)?;
    let x = bottleneck(layers, &halve("layers.6", 2 * width, 4 * width, 2 * width), x)?;
    let x = residual(layers, "layers.7", x, 2 * width, 2 * width, fourth)?;

    let last = 4 * width;
    let x = unit(layers, "conv_sep", x, convolution(2 * width, last, [1, 1], 1, 0, 1))?;
    let all = convolution(last, last, network.last_extent(), 1, 0, last);
    let x = linear_unit(layers, "features.layers.0", x, all)?;
    let x = layers.single(x)?;
    let x = layers.dropout(x, network.dropout)?;
    let features = network.embedding;
    let initial = Initial::Normal((2.0 / features as f32).sqrt());
    let linear = Linear { channels: last, extent: [1, 1], features, bias: false, initial };
    let x = layers.linear("features.layers.2", x, linear)?;
    layers.batch_norm("features.layers.3", x, BatchNorm::new(features))
}

/// Bottlenecks of `channels`, each added to its input.
fn residual<L: Layers>(
    layers: &mut L,
    name: &str,
    mut x: L::Tensor,
    channels: usize,
    inner: usize,
    blocks: usize,
) -> Result<L::Tensor> {
    for index in 0..blocks {
        let name = format!("{name}.layers.{index}");
        let block = Bottleneck { name: &name, cin: channels, inner, cout: channels, stride: 1 };
        let y = widened(layers, &block, x)?;
        let narrow = convolution(inner, channels, [1, 1], 1, 0, 1);
        let (last, norm) = (format!("{name}.layers.2.layers.0"), format!("{name}.layers.2.layers.1"));
        let y = layers.convolution(&last, y, narrow)?;
        x = layers.batch_norm_add([&norm, &name], y, BatchNorm::new(channels), |_| Ok(x))?;
    }
    Ok(x)
}

fn bottleneck<L: Layers>(layers: &mut L, block: &Bottleneck<'_>, x: L::Tensor) -> Result<L::Tensor> {
    let x = widened(layers, block, x)?;
    let narrow = convolution(block.inner, block.cout, [1, 1], 1, 0, 1);
    linear_unit(layers, &format!("{}.layers.2", block.name), x, narrow)
}

/// All of a bottleneck but its last, linear unit.
fn widened<L: Layers>(layers: &mut L, block: &Bottleneck<'_>, x: L::Tensor) -> Result<L::Tensor> {
    let part = |index: usize| format!("{}.layers.{index}", block.name);
    let &Bottleneck { cin, inner, stride, .. } = block;
    let x = unit(layers, &part(0), x, convolution(cin, inner, [1, 1], 1, 0, 1))?;
    unit(layers, &part(1), x, convolution(inner, inner, [3, 3], stride, 1, inner))
}

/// Convolution, batch norm, PReLU.
fn unit<L: Layers>(layers: &mut L, name: &str, x: L::Tensor, layer: Convolution) -> Result<L::Tensor> {
    let part = |index: usize| format!("{name}.layers.{index}");
    let x = layers.convolution(&part(0), x, layer)?;
    let prelu = Prelu { channels: layer.cout, clamped: false };
    layers.batch_norm_prelu([&part(1), &part(2)], x, BatchNorm::new(layer.cout), prelu)
}

/// Convolution, batch norm.
fn linear_unit<L: Layers>(layers: &mut L, name: &str, x: L::Tensor, layer: Convolution) -> Result<L::Tensor> {
    let x = layers.convolution(&format!("{name}.layers.0"), x, layer)?;
    layers.batch_norm(&format!("{name}.layers.1"), x, BatchNorm::new(layer.cout))
}

fn convolution(
    cin: usize,
    cout: usize,
    kernel: [usize; 2],
    stride: usize,
    padding: usize,
    groups: usize,
) -> Convolution {
    // Kaiming normal for ReLU with fan_out as PyTorch counts it, from the weight's first extent: gain sqrt(2).
    let deviation = (2.0 / (cout * kernel[0] * kernel[1]) as f32).sqrt();
    Convolution { cin, cout, kernel, stride, padding, groups, initial: Initial::Normal(deviation) }
}
