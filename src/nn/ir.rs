//! The improved residual network of the EPL release (`ir18` .. `ir200`), with the release's state-dict names and
//! initialisation.
//!
//! conv1 3x3 (3 -> w), bn1, prelu; four layers of w, 2w, 4w, 8w channels, each halving the resolution; bn4; dropout;
//! fc5, a convolution over all that is left; bn5 with its weight frozen at 1.

use crate::Result;
use crate::nn::layers::{BatchNorm, Convolution, Layers, Prelu};
use crate::nn::network::Network;
use crate::nn::parameters::Initial;

/// Lower bound of PReLU slopes, applied after every step.
pub const MINIMUM_SLOPE: f32 = 0.01;

/// The depths of the release by name.
pub const DEPTHS: &[(&str, [usize; 4])] = &[
    ("ir18", [2, 2, 2, 2]),
    ("ir34", [3, 4, 6, 3]),
    ("ir50", [3, 4, 14, 3]),
    ("ir100", [3, 13, 30, 3]),
    ("ir200", [3, 33, 60, 3]),
];

/// The forward pass: images -> embeddings.
pub fn forward<L: Layers>(network: &Network, layers: &mut L, images: L::Tensor) -> Result<L::Tensor> {
    let x = layers.convolution("conv1", images, convolution(3, network.width, [3, 3], 1, 1))?;
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
    let x = layers.batch_norm("bn4", x, BatchNorm::new(cin))?;
    let x = layers.single(x)?;
    let x = layers.dropout(x, network.dropout)?;
    let window = network.last_extent();
    let x = layers.convolution("fc5", x, convolution(cin, network.embedding, window, 1, 0))?;
    let x = layers.flatten(x, network.embedding)?;
    layers.batch_norm("bn5", x, BatchNorm { channels: network.embedding, weight: 1.0, frozen: true })
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
    let y = layers.batch_norm(&part("bn0"), x, BatchNorm::new(cin))?;
    let y = layers.convolution(&part("conv1"), y, convolution(cin, cout, [3, 3], 1, 1))?;
    let y = layers.batch_norm_prelu([&part("bn1"), &part("prelu")], y, BatchNorm::new(cout), prelu(cout))?;
    let second =
        if first { convolution(cout, cout, [2, 2], 2, 0) } else { convolution(cout, cout, [3, 3], 1, 1) };
    let y = layers.convolution(&part("conv2"), y, second)?;
    // A residual branch that starts at zero makes each block the identity to begin with.
    let zero = BatchNorm { channels: cout, weight: 0.0, frozen: false };
    layers.batch_norm_add([&part("bn2"), name], y, zero, |layers| {
        if !first {
            return Ok(x);
        }
        let s = layers.convolution(&part("downsample.0"), x, convolution(cin, cout, [2, 2], 2, 0))?;
        layers.batch_norm(&part("downsample.1"), s, BatchNorm::new(cout))
    })
}

fn prelu(channels: usize) -> Prelu {
    Prelu { channels, clamped: true }
}

fn convolution(cin: usize, cout: usize, kernel: [usize; 2], stride: usize, padding: usize) -> Convolution {
    // Kaiming normal with fan_in and a = 1 (He et al. 2015): gain sqrt(2 / (1 + 1)) = 1.
    let deviation = 1.0 / ((cin * kernel[0] * kernel[1]) as f32).sqrt();
    Convolution { cin, cout, kernel, stride, padding, groups: 1, initial: Initial::Normal(deviation) }
}
