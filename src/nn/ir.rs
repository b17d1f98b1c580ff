//! The improved residual network of the EPL release (`ir18` .. `ir200`), of any width, depth and input size divisible
//! by 16, with the release's state-dict names and initialisation.
//!
//! conv1 3x3 (3 -> w), bn1, prelu; four layers of w, 2w, 4w, 8w channels, each halving the resolution; bn4; dropout;
//! fc5, a convolution over all that is left; bn5 with its weight frozen at 1.

use epl_runtime::ops::{
    add, batch_norm, batch_norm_eval, conv2d,
    dropout::{self, Dropout},
    prelu, reshape,
};
use epl_runtime::{Graph, Record, Shape, TensorId};

use crate::nn::parameters::{Declared, Initial, Layout, ParameterSpec, Role};
use crate::{Error, Result};

/// Epsilon of every batch norm of the release.
const BATCH_NORM_EPS: f32 = 1e-5;
/// Momentum of the running statistics (PyTorch's convention: the share of the new batch).
const BATCH_NORM_MOMENTUM: f32 = 0.1;
/// Initial PReLU slope.
const SLOPE: f32 = 0.25;
/// Lower bound of PReLU slopes, applied after every step.
pub const MINIMUM_SLOPE: f32 = 0.01;

/// Bounds of the sizes, far beyond any network in use: within them no product of sizes overflows, and laying a
/// network out needs little memory whatever a configuration or the metadata of a weights file says.
pub const MAX_INPUT: usize = 4096;
/// Most channels of the first layer.
pub const MAX_WIDTH: usize = 4096;
/// Longest embedding.
pub const MAX_EMBEDDING: usize = 65_536;
/// Most blocks of a layer.
pub const MAX_BLOCKS: usize = 1000;

/// An improved residual network as data.
#[derive(Clone, Debug, PartialEq)]
pub struct IrNetwork {
    /// Height and width of the input, divisible by 16.
    pub input: [usize; 2],
    /// Channels of the first layer; the others have 2, 4 and 8 times as many.
    pub width: usize,
    /// Blocks of each layer.
    pub blocks: [usize; 4],
    /// Size of the embedding.
    pub embedding: usize,
    /// Probability of dropout before fc5.
    pub dropout: f32,
}

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

/// The depths of the release by name.
pub const DEPTHS: &[(&str, [usize; 4])] = &[
    ("ir18", [2, 2, 2, 2]),
    ("ir34", [3, 4, 6, 3]),
    ("ir50", [3, 4, 14, 3]),
    ("ir100", [3, 13, 30, 3]),
    ("ir200", [3, 33, 60, 3]),
];

impl IrNetwork {
    /// The network of the release called `arch`, at 112 x 112 with embeddings of 512.
    pub fn named(arch: &str) -> Result<Self> {
        let blocks = DEPTHS.iter().find(|(name, _)| *name == arch).map(|(_, blocks)| *blocks);
        let blocks = blocks.ok_or_else(|| {
            let known: Vec<&str> = DEPTHS.iter().map(|(name, _)| *name).collect();
            Error::usage(format!("unknown architecture {arch:?}"), format!("known: {}", known.join(", ")))
        })?;
        Ok(Self { input: [112, 112], width: 64, blocks, embedding: 512, dropout: 0.4 })
    }

    /// Checks what the layers need, and that no size is beyond its bound.
    pub fn validate(&self) -> Result<()> {
        let [height, width] = self.input;
        let whole = |extent: usize| (1..=MAX_INPUT).contains(&extent) && extent.is_multiple_of(16);
        if !whole(height) || !whole(width) {
            return Err(Error::usage(
                format!("model.input = [{height}, {width}]"),
                format!(
                    "use a height and a width divisible by 16 and at most {MAX_INPUT}, such as [112, 112]"
                ),
            ));
        }
        if !(1..=MAX_WIDTH).contains(&self.width)
            || !(1..=MAX_EMBEDDING).contains(&self.embedding)
            || !self.blocks.iter().all(|count| (1..=MAX_BLOCKS).contains(count))
        {
            return Err(Error::usage(
                format!(
                    "model.width = {}, model.embedding = {}, model.blocks = {:?}",
                    self.width, self.embedding, self.blocks
                ),
                format!(
                    "use at least 1 of each, a width of at most {MAX_WIDTH}, an embedding of at most {MAX_EMBEDDING} \
                     and at most {MAX_BLOCKS} blocks a layer"
                ),
            ));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::usage(
                format!("model.dropout = {}", self.dropout),
                "use a probability of at least 0 and less than 1",
            ));
        }
        Ok(())
    }

    fn channels(&self, layer: usize) -> usize {
        self.width << layer
    }

    /// Height and width that fc5 sees.
    fn last_extent(&self) -> [usize; 2] {
        self.input.map(|extent| extent / 16)
    }

    /// Every parameter, in the order of the release's state dict.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let mut list = SpecList::default();
        list.convolution("conv1", 3, self.width, [3, 3]);
        list.batch_norm("bn1", self.width, 1.0, Role::Weight);
        list.slope("prelu", self.width);
        let mut cin = self.width;
        for (layer, &blocks) in self.blocks.iter().enumerate() {
            let cout = self.channels(layer);
            for block in 0..blocks {
                let name = |part: &str| format!("layer{}.{block}.{part}", layer + 1);
                let (window, cin_block) = if block == 0 { ([2, 2], cin) } else { ([3, 3], cout) };
                list.batch_norm(&name("bn0"), cin_block, 1.0, Role::Weight);
                list.convolution(&name("conv1"), cin_block, cout, [3, 3]);
                list.batch_norm(&name("bn1"), cout, 1.0, Role::Weight);
                list.slope(&name("prelu"), cout);
                list.convolution(&name("conv2"), cout, cout, window);
                // A residual branch that starts at zero makes each block the identity to begin with.
                list.batch_norm(&name("bn2"), cout, 0.0, Role::Weight);
                if block == 0 {
                    list.convolution(&name("downsample.0"), cin_block, cout, [2, 2]);
                    list.batch_norm(&name("downsample.1"), cout, 1.0, Role::Weight);
                }
            }
            cin = cout;
        }
        list.batch_norm("bn4", cin, 1.0, Role::Weight);
        list.convolution("fc5", cin, self.embedding, self.last_extent());
        list.batch_norm("bn5", self.embedding, 1.0, Role::Statistic);
        list.specs
    }

    /// Records the network: images `[N, H, W, 3]` -> embeddings `[N, embedding]`.
    pub fn record(
        &self,
        graph: &mut Graph,
        parameters: &Declared,
        images: TensorId,
        mode: Mode,
    ) -> Result<TensorId> {
        let mut recorder = Recorder { graph, parameters, mode };
        let x = recorder.convolution("conv1", images, 1, 1)?;
        let x = recorder.batch_norm("bn1", x)?;
        let mut x = recorder.prelu("prelu", x)?;
        for (layer, &blocks) in self.blocks.iter().enumerate() {
            for block in 0..blocks {
                x = recorder.block(&format!("layer{}.{block}", layer + 1), x, block == 0)?;
            }
        }
        let x = recorder.batch_norm("bn4", x)?;
        let x = recorder.dropout(x, self.dropout)?;
        let x = recorder.convolution("fc5", x, 1, 0)?;
        let batch = recorder.graph.desc(x).shape.dim(0);
        let x = reshape::reshape(recorder.graph, x, [batch, self.embedding])?;
        recorder.batch_norm("bn5", x)
    }
}

#[derive(Default)]
struct SpecList {
    specs: Vec<ParameterSpec>,
}

impl SpecList {
    fn push(&mut self, name: String, shape: Shape, layout: Layout, role: Role, initial: Initial) {
        self.specs.push(ParameterSpec { name, shape, layout, role, initial });
    }

    fn convolution(&mut self, name: &str, cin: usize, cout: usize, [kh, kw]: [usize; 2]) {
        // Kaiming normal with fan_in and a = 1 (He et al. 2015): gain sqrt(2 / (1 + 1)) = 1.
        let deviation = 1.0 / ((cin * kh * kw) as f32).sqrt();
        self.push(
            format!("{name}.weight"),
            [cout, cin, kh, kw].into(),
            Layout::Convolution,
            Role::Weight,
            Initial::Normal(deviation),
        );
    }

    fn batch_norm(&mut self, name: &str, channels: usize, weight: f32, weight_role: Role) {
        let mut vector = |part: &str, role, value| {
            self.push(
                format!("{name}.{part}"),
                [channels].into(),
                Layout::Plain,
                role,
                Initial::Constant(value),
            );
        };
        vector("weight", weight_role, weight);
        vector("bias", Role::Weight, 0.0);
        vector("running_mean", Role::Statistic, 0.0);
        vector("running_var", Role::Statistic, 1.0);
    }

    fn slope(&mut self, name: &str, channels: usize) {
        self.push(
            format!("{name}.weight"),
            [channels].into(),
            Layout::Plain,
            Role::Slope,
            Initial::Constant(SLOPE),
        );
    }
}

struct Recorder<'a> {
    graph: &'a mut Graph,
    parameters: &'a Declared,
    mode: Mode,
}

impl Recorder<'_> {
    fn convolution(&mut self, name: &str, x: TensorId, stride: usize, padding: usize) -> Result<TensorId> {
        self.graph.set_scope(name);
        let weight = self.parameters.get(&format!("{name}.weight"))?;
        let attributes =
            conv2d::Conv2d { stride: [stride; 2], padding: [padding; 4], ..conv2d::Conv2d::default() };
        Ok(conv2d::conv2d(self.graph, x, weight, attributes)?)
    }

    fn batch_norm(&mut self, name: &str, x: TensorId) -> Result<TensorId> {
        self.graph.set_scope(name);
        let part = |part: &str| self.parameters.get(&format!("{name}.{part}"));
        let (weight, bias) = (part("weight")?, part("bias")?);
        let (mean, var) = (part("running_mean")?, part("running_var")?);
        Ok(match self.mode {
            Mode::Train { statistics, .. } => {
                let momentum = if statistics { BATCH_NORM_MOMENTUM } else { 0.0 };
                let attributes = batch_norm::BatchNorm { eps: BATCH_NORM_EPS, momentum };
                batch_norm::batch_norm_train(self.graph, x, weight, bias, mean, var, attributes)?
            }
            Mode::Evaluate => {
                batch_norm_eval::batch_norm_eval(self.graph, x, weight, bias, mean, var, BATCH_NORM_EPS)?
            }
        })
    }

    fn prelu(&mut self, name: &str, x: TensorId) -> Result<TensorId> {
        self.graph.set_scope(name);
        let slope = self.parameters.get(&format!("{name}.weight"))?;
        Ok(prelu::prelu(self.graph, x, slope)?)
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

    fn block(&mut self, name: &str, x: TensorId, first: bool) -> Result<TensorId> {
        let part = |part: &str| format!("{name}.{part}");
        let y = self.batch_norm(&part("bn0"), x)?;
        let y = self.convolution(&part("conv1"), y, 1, 1)?;
        let y = self.batch_norm(&part("bn1"), y)?;
        let y = self.prelu(&part("prelu"), y)?;
        let y = if first {
            self.convolution(&part("conv2"), y, 2, 0)?
        } else {
            self.convolution(&part("conv2"), y, 1, 1)?
        };
        let y = self.batch_norm(&part("bn2"), y)?;
        let shortcut = if first {
            let s = self.convolution(&part("downsample.0"), x, 2, 0)?;
            self.batch_norm(&part("downsample.1"), s)?
        } else {
            x
        };
        self.graph.set_scope(name);
        Ok(add::add(self.graph, y, shortcut)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Parameters;

    fn elements(arch: &str) -> usize {
        let network = IrNetwork::named(arch).expect("a known architecture");
        network
            .parameters()
            .iter()
            .filter(|spec| !spec.name.contains("running"))
            .map(|spec| spec.shape.elements())
            .sum()
    }

    #[test]
    fn parameter_counts_are_those_of_the_release() {
        // In millions, as the design of the release's network gives them.
        for (arch, millions) in [("ir18", 22.81), ("ir50", 42.38), ("ir100", 63.94)] {
            let found = elements(arch) as f64 / 1e6;
            assert!((found - millions).abs() < 0.005, "{arch}: {found}");
        }
    }

    #[test]
    fn slopes_lie_together_at_the_start_of_the_arena() {
        let network = IrNetwork::named("ir18").expect("a known architecture");
        let parameters = Parameters::new(network.parameters()).expect("unique names");
        let (offset, count) = parameters.slopes().expect("the network has slopes");
        for entry in parameters.entries() {
            let inside = entry.offset >= offset && entry.offset < offset + count as u64 * 4;
            match entry.spec.role {
                Role::Slope => assert!(inside, "{}", entry.spec.name),
                Role::Weight => assert!(!inside, "{}", entry.spec.name),
                Role::Statistic => {}
            }
        }
    }

    #[test]
    fn sizes_that_do_not_divide_are_refused() {
        let network = IrNetwork { input: [112, 100], ..IrNetwork::named("ir18").expect("known") };
        let error = network.validate().expect_err("100 is not divisible by 16");
        assert!(error.to_string().contains("[112, 100]"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn sizes_beyond_reason_are_refused() {
        let known = || IrNetwork::named("ir18").expect("known");
        const HUGE: usize = 9_000_000_000_000_000_000;
        for network in [
            IrNetwork { width: HUGE, ..known() },
            IrNetwork { embedding: HUGE, ..known() },
            IrNetwork { blocks: [HUGE, 1, 1, 1], ..known() },
            IrNetwork { input: [HUGE / 16 * 16, 16], ..known() },
        ] {
            let error = network.validate().expect_err("beyond the bounds");
            assert_eq!(error.exit_code(), 2);
        }
        let largest = IrNetwork {
            input: [MAX_INPUT; 2],
            width: MAX_WIDTH,
            blocks: [MAX_BLOCKS; 4],
            embedding: MAX_EMBEDDING,
            dropout: 0.0,
        };
        largest.validate().expect("within the bounds");
        // Nothing overflows: the sums of the arenas are computed with overflow checks here.
        Parameters::new(largest.parameters()).expect("laid out");
    }

    #[test]
    fn layouts_go_both_ways() {
        let spec = ParameterSpec {
            name: "c".into(),
            shape: [2, 3, 2, 1].into(),
            layout: Layout::Convolution,
            role: Role::Weight,
            initial: Initial::Constant(0.0),
        };
        let values: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let gpu = spec.to_gpu(&values);
        // [KH, KW, Cin, Cout]: the first two are output channels 0 and 1 of input 0, row 0.
        assert_eq!(gpu.get(..4), Some(&[0.0, 6.0, 2.0, 8.0][..]));
        assert_eq!(spec.to_state_dict(&gpu), values);
    }
}
