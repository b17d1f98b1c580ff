//! InsightFace's IResNet (`iresnet18` .. `iresnet200`; `r18` .. `r200` in its configurations), with the state-dict names
//! and the initialisation of arcface_torch.
//!
//! It differs from the release's network in the first block of a layer, which halves with a padded 3x3 window and a 1x1
//! shortcut, in its last layer, which is linear with a bias, in how it starts, and in that its slopes are not clamped.

use crate::Result;
use crate::nn::layers::{BatchNorm, Convolution, Layers, Linear, Prelu};
use crate::nn::network::Network;
use crate::nn::parameters::Initial;

/// InsightFace's depths by name.
pub const DEPTHS: &[(&str, [usize; 4])] = &[
    ("iresnet18", [2, 2, 2, 2]),
    ("iresnet34", [3, 4, 6, 3]),
    ("iresnet50", [3, 4, 14, 3]),
    ("iresnet100", [3, 13, 30, 3]),
    ("iresnet200", [6, 26, 60, 6]),
];

/// The forward pass: images -> embeddings.
pub fn forward<L: Layers>(network: &Network, layers: &mut L, images: L::Tensor) -> Result<L::Tensor> {
    let x = layers.convolution("conv1", images, convolution(3, network.width, 3, 1))?;
    let mut x =
        layers.batch_norm_prelu(["bn1", "prelu"], x, BatchNorm::new(network.width), prelu(network.width))?;
    let mut cin = network.width;
    for (layer, &blocks) in network.blocks.iter().enumerate() {
        let cout = network.width << layer;
        for index in 0..blocks {
            x = block(layers, &format!("layer{}.{index}", layer + 1), x, cin, cout, index == 0)?;
            cin = cout;
        }
    }
    let x = layers.batch_norm("bn2", x, BatchNorm::new(cin))?;
    let x = layers.single(x)?;
    let x = layers.dropout(x, network.dropout)?;
    let extent = network.last_extent();
    // PyTorch's default for a linear layer: Kaiming uniform with a = sqrt(5), which is this bound for weights and bias.
    let bound = 1.0 / ((cin * extent[0] * extent[1]) as f32).sqrt();
    let initial = Initial::Uniform(bound);
    let fc = Linear { channels: cin, extent, features: network.embedding, bias: true, initial };
    let x = layers.linear("fc", x, fc)?;
    layers.batch_norm("features", x, BatchNorm { channels: network.embedding, weight: 1.0, frozen: true })
}

fn block<L: Layers>(
    layers: &mut L,
    name: &str,
    x: L::Tensor,
    cin: usize,
    cout: usize,
    first: bool,
) -> Result<L::Tensor> {
    let part = |part: &str| format!("{name}.{part}");
    let stride = if first { 2 } else { 1 };
    let y = layers.batch_norm(&part("bn1"), x, BatchNorm::new(cin))?;
    let y = layers.convolution(&part("conv1"), y, convolution(cin, cout, 3, 1))?;
    let y = layers.batch_norm_prelu([&part("bn2"), &part("prelu")], y, BatchNorm::new(cout), prelu(cout))?;
    let y = layers.convolution(&part("conv2"), y, convolution(cout, cout, 3, stride))?;
    layers.batch_norm_add([&part("bn3"), name], y, BatchNorm::new(cout), |layers| {
        if !first {
            return Ok(x);
        }
        let s = layers.convolution(&part("downsample.0"), x, convolution(cin, cout, 1, stride))?;
        layers.batch_norm(&part("downsample.1"), s, BatchNorm::new(cout))
    })
}

fn prelu(channels: usize) -> Prelu {
    Prelu { channels, clamped: false }
}

/// A convolution that keeps the extent but for its stride.
fn convolution(cin: usize, cout: usize, window: usize, stride: usize) -> Convolution {
    Convolution {
        cin,
        cout,
        kernel: [window; 2],
        stride,
        padding: window / 2,
        groups: 1,
        initial: Initial::Normal(0.1),
    }
}
