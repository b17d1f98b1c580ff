//! The release's improved residual network and a CosFace head, as burn's own layers.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Dropout, DropoutConfig, PRelu, PReluConfig, PaddingConfig2d};
use burn::tensor::activation::log_softmax;
use burn::tensor::backend::Backend;
use burn::tensor::{Distribution, Int, Tensor};

fn conv<B: Backend>(cin: usize, cout: usize, window: usize, stride: usize, device: &B::Device) -> Conv2d<B> {
    let padding = if window == 3 { PaddingConfig2d::Explicit(1, 1) } else { PaddingConfig2d::Valid };
    Conv2dConfig::new([cin, cout], [window, window])
        .with_stride([stride, stride])
        .with_padding(padding)
        .with_bias(false)
        .init(device)
}

fn norm<B: Backend>(channels: usize, device: &B::Device) -> BatchNorm<B> {
    BatchNormConfig::new(channels).init(device)
}

fn prelu<B: Backend>(channels: usize, device: &B::Device) -> PRelu<B> {
    PReluConfig::new().with_num_parameters(channels).init(device)
}

#[derive(Module, Debug)]
struct Shortcut<B: Backend> {
    conv: Conv2d<B>,
    norm: BatchNorm<B>,
}

#[derive(Module, Debug)]
struct Block<B: Backend> {
    norm0: BatchNorm<B>,
    conv1: Conv2d<B>,
    norm1: BatchNorm<B>,
    prelu: PRelu<B>,
    conv2: Conv2d<B>,
    norm2: BatchNorm<B>,
    shortcut: Option<Shortcut<B>>,
}

impl<B: Backend> Block<B> {
    fn new(cin: usize, cout: usize, first: bool, device: &B::Device) -> Self {
        let conv2 = if first { conv(cout, cout, 2, 2, device) } else { conv(cout, cout, 3, 1, device) };
        let shortcut =
            first.then(|| Shortcut { conv: conv(cin, cout, 2, 2, device), norm: norm(cout, device) });
        Self {
            norm0: norm(cin, device),
            conv1: conv(cin, cout, 3, 1, device),
            norm1: norm(cout, device),
            prelu: prelu(cout, device),
            conv2,
            norm2: norm(cout, device),
            shortcut,
        }
    }

    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let y = self.conv1.forward(self.norm0.forward(x.clone()));
        let y = self.prelu.forward(self.norm1.forward(y));
        let y = self.norm2.forward(self.conv2.forward(y));
        match &self.shortcut {
            Some(shortcut) => y + shortcut.norm.forward(shortcut.conv.forward(x)),
            None => y + x,
        }
    }
}

/// The network for images of 112 x 112, and the class weights.
#[derive(Module, Debug)]
pub struct Model<B: Backend> {
    conv1: Conv2d<B>,
    norm1: BatchNorm<B>,
    prelu: PRelu<B>,
    blocks: Vec<Block<B>>,
    norm4: BatchNorm<B>,
    dropout: Dropout,
    fc: Conv2d<B>,
    norm5: BatchNorm<B>,
    classes: Param<Tensor<B, 2>>,
}

impl<B: Backend> Model<B> {
    pub fn new(depths: [usize; 4], classes: usize, device: &B::Device) -> Self {
        let mut blocks = Vec::new();
        let mut cin = 64;
        for (layer, depth) in depths.into_iter().enumerate() {
            let cout = 64 << layer;
            for index in 0..depth {
                blocks.push(Block::new(cin, cout, index == 0, device));
                cin = cout;
            }
        }
        let fc = Conv2dConfig::new([512, 512], [7, 7]).with_bias(false).init(device);
        Self {
            conv1: conv(3, 64, 3, 1, device),
            norm1: norm(64, device),
            prelu: prelu(64, device),
            blocks,
            norm4: norm(512, device),
            dropout: DropoutConfig::new(0.4).init(),
            fc,
            norm5: norm(512, device),
            classes: class_weights(classes, 512, device),
        }
    }

    /// The loss of images `[N, 3, 112, 112]`.
    pub fn loss(&self, images: Tensor<B, 4>, labels: Tensor<B, 1, Int>) -> Tensor<B, 1> {
        let mut x = self.prelu.forward(self.norm1.forward(self.conv1.forward(images)));
        for block in &self.blocks {
            x = block.forward(x);
        }
        let x = self.fc.forward(self.dropout.forward(self.norm4.forward(x)));
        let x: Tensor<B, 2> = self.norm5.forward(x).flatten(1, 3);
        cosface(x, self.classes.val(), labels)
    }
}

pub fn class_weights<B: Backend>(classes: usize, dim: usize, device: &B::Device) -> Param<Tensor<B, 2>> {
    Param::from_tensor(Tensor::random([classes, dim], Distribution::Normal(0.0, 0.01), device))
}

fn normalized<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let norm = x.clone().powf_scalar(2.0).sum_dim(1).sqrt().clamp_min(1e-12);
    x / norm
}

/// Mean of `-log softmax(64 (cos - 0.4 at the label))` at the labels.
pub fn cosface<B: Backend>(
    embedding: Tensor<B, 2>,
    weight: Tensor<B, 2>,
    labels: Tensor<B, 1, Int>,
) -> Tensor<B, 1> {
    let cosines = normalized(embedding).matmul(normalized(weight).transpose());
    let [batch, _] = cosines.dims();
    let rows = labels.reshape([batch, 1]);
    // At the labels alone: a matrix of margins would be as large as the cosines.
    let margin = Tensor::full([batch, 1], -0.4, &cosines.device());
    let logits = cosines.scatter(1, rows.clone(), margin, burn::tensor::IndexingUpdateOp::Add) * 64.0;
    log_softmax(logits, 1).gather(1, rows).mean().neg()
}
