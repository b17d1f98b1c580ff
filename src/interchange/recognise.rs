//! Which network weights are of, from the names and shapes of their tensors.

use std::collections::{BTreeMap, BTreeSet};

use crate::nn::IrNetwork;
use crate::nn::ir::DEPTHS;

/// The kinds of networks that are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// The improved residual network of the EPL release.
    Release,
    /// InsightFace's improved residual network (`recognition/arcface_torch/backbones/iresnet.py`).
    InsightFace,
    /// InsightFace's MobileFaceNet (`recognition/arcface_torch/backbones/mobilefacenet.py`).
    MobileFaceNet,
}

/// A network as its weights show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its kind.
    pub family: Family,
    /// Height and width of the input. Taken for a square where the weights only tell the product.
    pub input: [usize; 2],
    /// Size of the embedding.
    pub embedding: usize,
    /// Channels of the first layer.
    pub width: usize,
    /// Blocks of each layer.
    pub blocks: [usize; 4],
}

/// A tensor that a network has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its name in the state dict.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether weights are whole without it: the counters of batches, which nothing computes with.
    pub optional: bool,
}

/// What was recognised, and how the tensors fit it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The network.
    pub description: Description,
    /// The names of its tensors that are missing or have another shape.
    pub missing: Vec<String>,
    /// The names of further tensors.
    pub extra: Vec<String>,
}

/// Depths of InsightFace's networks by name.
const INSIGHTFACE_DEPTHS: &[(&str, [usize; 4])] = &[
    ("iresnet18", [2, 2, 2, 2]),
    ("iresnet34", [3, 4, 6, 3]),
    ("iresnet50", [3, 4, 14, 3]),
    ("iresnet100", [3, 13, 30, 3]),
    ("iresnet200", [6, 26, 60, 6]),
];

/// InsightFace's MobileFaceNet, whatever its size.
const MOBILE: &str = "mobilefacenet";
/// Channels before its global depthwise convolution, at every width.
const MOBILE_LAST: usize = 512;
/// Channels of each depthwise stage in its blocks, at every width.
const MOBILE_GROUPS: [usize; 3] = [128, 256, 512];

impl Description {
    /// The architecture's name. A depth that has none goes by the nearest name of its kind; `blocks` tells its depth.
    pub fn arch(&self) -> &'static str {
        let depths = match self.family {
            Family::Release => DEPTHS,
            Family::InsightFace => INSIGHTFACE_DEPTHS,
            Family::MobileFaceNet => return MOBILE,
        };
        let all: usize = self.blocks.iter().sum();
        let distance =
            |blocks: &[usize; 4]| (*blocks != self.blocks, blocks.iter().sum::<usize>().abs_diff(all));
        depths.iter().min_by_key(|(_, blocks)| distance(blocks)).map_or("", |(name, _)| name)
    }

    /// What the metadata of a weights file says about the network, as `ModelSpec::metadata` writes it.
    pub fn metadata(&self) -> Vec<(String, String)> {
        [
            ("arch", self.arch().to_owned()),
            ("input", format!("[{}, {}]", self.input[0], self.input[1])),
            ("embedding", self.embedding.to_string()),
            ("width", self.width.to_string()),
            ("blocks", format!("{:?}", self.blocks)),
            ("channel_order", "RGB".to_owned()),
            ("normalization", "(x/255 - 0.5)/0.5".to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// All tensors of the network, in the order of its state dict.
    pub fn tensors(&self) -> Vec<Expected> {
        let mut list = List::default();
        match self.family {
            Family::Release => return self.release(),
            Family::InsightFace => self.insightface(&mut list),
            Family::MobileFaceNet => self.mobilefacenet(&mut list),
        }
        list.0
    }

    fn release(&self) -> Vec<Expected> {
        let network = IrNetwork {
            input: self.input,
            width: self.width,
            blocks: self.blocks,
            embedding: self.embedding,
            dropout: 0.0,
        };
        let mut list = List::default();
        for spec in network.parameters() {
            list.tensor(&spec.name, spec.shape.dims());
            if let Some(layer) = spec.name.strip_suffix("running_var") {
                list.counter(layer);
            }
        }
        list.0
    }

    fn insightface(&self, list: &mut List) {
        list.convolution("conv1", [self.width, 3, 3, 3]);
        list.batch_norm("bn1", self.width);
        list.slope("prelu", self.width);
        let mut cin = self.width;
        for (layer, &blocks) in self.blocks.iter().enumerate() {
            let cout = self.width << layer;
            for block in 0..blocks {
                let name = |part: &str| format!("layer{}.{block}.{part}", layer + 1);
                let first = if block == 0 { cin } else { cout };
                list.batch_norm(&name("bn1"), first);
                list.convolution(&name("conv1"), [cout, first, 3, 3]);
                list.batch_norm(&name("bn2"), cout);
                list.slope(&name("prelu"), cout);
                list.convolution(&name("conv2"), [cout, cout, 3, 3]);
                list.batch_norm(&name("bn3"), cout);
                if block == 0 {
                    list.convolution(&name("downsample.0"), [cout, cin, 1, 1]);
                    list.batch_norm(&name("downsample.1"), cout);
                }
            }
            cin = cout;
        }
        list.batch_norm("bn2", cin);
        let [height, width] = self.input.map(|extent| extent / 16);
        list.tensor("fc.weight", &[self.embedding, cin * height * width]);
        list.tensor("fc.bias", &[self.embedding]);
        list.batch_norm("features", self.embedding);
    }

    fn mobilefacenet(&self, list: &mut List) {
        let (first, second) = (self.width, 2 * self.width);
        let [one, two, three] = MOBILE_GROUPS;
        list.block("layers.0", [first, 3, 3, 3], true);
        if self.blocks[0] == 1 {
            list.block("layers.1", [first, first / 64, 3, 3], true);
        } else {
            list.residual("layers.1", self.blocks[0], first, one);
        }
        list.depthwise("layers.2", first, first, one);
        list.residual("layers.3", self.blocks[1], first, one);
        list.depthwise("layers.4", first, second, two);
        list.residual("layers.5", self.blocks[2], second, two);
        list.depthwise("layers.6", second, second, three);
        list.residual("layers.7", self.blocks[3], second, two);
        list.block("conv_sep", [MOBILE_LAST, second, 1, 1], true);
        let [height, width] = self.input.map(|extent| extent / 16);
        list.block("features.layers.0", [MOBILE_LAST, 1, height, width], false);
        list.tensor("features.layers.2.weight", &[self.embedding, MOBILE_LAST]);
        list.batch_norm("features.layers.3", self.embedding);
    }
}

#[derive(Default)]
struct List(Vec<Expected>);

impl List {
    fn tensor(&mut self, name: &str, shape: &[usize]) {
        self.0.push(Expected { name: name.to_owned(), shape: shape.to_vec(), optional: false });
    }

    fn counter(&mut self, layer: &str) {
        let name = format!("{layer}num_batches_tracked");
        self.0.push(Expected { name, shape: Vec::new(), optional: true });
    }

    fn convolution(&mut self, name: &str, shape: [usize; 4]) {
        self.tensor(&format!("{name}.weight"), &shape);
    }

    fn slope(&mut self, name: &str, channels: usize) {
        self.tensor(&format!("{name}.weight"), &[channels]);
    }

    fn batch_norm(&mut self, name: &str, channels: usize) {
        for part in ["weight", "bias", "running_mean", "running_var"] {
            self.tensor(&format!("{name}.{part}"), &[channels]);
        }
        self.counter(&format!("{name}."));
    }

    /// Of MobileFaceNet: convolution, batch norm and, unless the block is linear, a PReLU.
    fn block(&mut self, name: &str, shape: [usize; 4], slope: bool) {
        self.convolution(&format!("{name}.layers.0"), shape);
        self.batch_norm(&format!("{name}.layers.1"), shape[0]);
        if slope {
            self.slope(&format!("{name}.layers.2"), shape[0]);
        }
    }

    /// Of MobileFaceNet: to `groups` channels, a depthwise convolution, to `cout` channels.
    fn depthwise(&mut self, name: &str, cin: usize, cout: usize, groups: usize) {
        self.block(&format!("{name}.layers.0"), [groups, cin, 1, 1], true);
        self.block(&format!("{name}.layers.1"), [groups, 1, 3, 3], true);
        self.block(&format!("{name}.layers.2"), [cout, groups, 1, 1], false);
    }

    fn residual(&mut self, name: &str, blocks: usize, channels: usize, groups: usize) {
        for block in 0..blocks {
            self.depthwise(&format!("{name}.layers.{block}"), channels, channels, groups);
        }
    }
}

/// Says which network tensors of these names and shapes are of; `None` where they are of none that is known.
pub fn recognise(shapes: &BTreeMap<&str, &[usize]>) -> Option<Recognised> {
    let description = guess(shapes)?;
    let expected = description.tensors();
    let known: BTreeSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    let missing = expected.iter().filter(|tensor| match shapes.get(tensor.name.as_str()) {
        Some(shape) => **shape != tensor.shape && !tensor.optional,
        None => !tensor.optional,
    });
    let missing = missing.map(|tensor| tensor.name.clone()).collect();
    let extra = shapes.keys().filter(|name| !known.contains(**name)).map(|name| (*name).to_owned()).collect();
    Some(Recognised { description, missing, extra })
}

fn guess(shapes: &BTreeMap<&str, &[usize]>) -> Option<Description> {
    let shape = |name: &str| shapes.get(name).copied();
    let count = |name: &dyn Fn(usize) -> String| (0..).take_while(|&at| shape(&name(at)).is_some()).count();
    let layers = || [1, 2, 3, 4].map(|layer| count(&|at| format!("layer{layer}.{at}.conv1.weight")));
    let description = if let (Some(&[embedding, _, height, width]), Some(&[channels, 3, 3, 3])) =
        (shape("fc5.weight"), shape("conv1.weight"))
    {
        shape("layer1.0.bn0.weight")?;
        let input = [height.checked_mul(16)?, width.checked_mul(16)?];
        Description { family: Family::Release, input, embedding, width: channels, blocks: layers() }
    } else if let (Some(&[embedding, inputs]), Some(&[channels, 3, 3, 3])) =
        (shape("fc.weight"), shape("conv1.weight"))
    {
        shape("layer1.0.bn3.weight")?;
        shape("features.running_mean")?;
        let last = channels.checked_mul(8).filter(|&last| last > 0 && inputs.is_multiple_of(last))?;
        let side = (inputs / last).isqrt();
        if side * side != inputs / last {
            return None;
        }
        let input = [side.checked_mul(16)?; 2];
        Description { family: Family::InsightFace, input, embedding, width: channels, blocks: layers() }
    } else if let (Some(&[channels, 3, 3, 3]), Some(&[_, 1, height, width]), Some(&[embedding, _])) = (
        shape("layers.0.layers.0.weight"),
        shape("features.layers.0.layers.0.weight"),
        shape("features.layers.2.weight"),
    ) {
        let blocks = [1, 3, 5, 7]
            .map(|layer| count(&|at| format!("layers.{layer}.layers.{at}.layers.0.layers.0.weight")));
        let first = if shape("layers.1.layers.0.weight").is_some() { 1 } else { blocks[0] };
        let blocks = [first, blocks[1], blocks[2], blocks[3]];
        let input = [height.checked_mul(16)?, width.checked_mul(16)?];
        Description { family: Family::MobileFaceNet, input, embedding, width: channels, blocks }
    } else {
        return None;
    };
    // The same bounds for all: no size below can overflow then.
    let Description { input, width, blocks, embedding, .. } = description;
    let bounded = IrNetwork { input, width, blocks, embedding, dropout: 0.0 }.validate().is_ok();
    bounded.then_some(description)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(family: Family, blocks: [usize; 4]) -> Description {
        Description { family, input: [112, 112], embedding: 512, width: 64, blocks }
    }

    /// What is recognised in the tensors of `description`, changed by `change`.
    fn of(
        description: &Description,
        change: impl FnOnce(&mut BTreeMap<String, Vec<usize>>),
    ) -> Option<Recognised> {
        let mut shapes: BTreeMap<String, Vec<usize>> =
            description.tensors().into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
        change(&mut shapes);
        recognise(&shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect())
    }

    #[test]
    fn networks_are_recognised_by_names_and_shapes() {
        let mobile = |width, blocks| Description { width, ..describe(Family::MobileFaceNet, blocks) };
        for (description, arch) in [
            (describe(Family::Release, [3, 4, 14, 3]), "ir50"),
            (describe(Family::Release, [3, 33, 60, 3]), "ir200"),
            (describe(Family::InsightFace, [2, 2, 2, 2]), "iresnet18"),
            (describe(Family::InsightFace, [3, 13, 30, 3]), "iresnet100"),
            (describe(Family::InsightFace, [6, 26, 60, 6]), "iresnet200"),
            (mobile(128, [1, 4, 6, 2]), "mobilefacenet"),
            (mobile(256, [2, 8, 12, 4]), "mobilefacenet"),
            // Depths that have no name.
            (describe(Family::Release, [1, 1, 1, 1]), "ir18"),
            (describe(Family::InsightFace, [3, 4, 15, 3]), "iresnet50"),
            (
                Description {
                    input: [96, 128],
                    embedding: 7,
                    width: 8,
                    ..describe(Family::Release, [1, 2, 3, 1])
                },
                "ir18",
            ),
            (
                Description { input: [32, 32], width: 4, ..describe(Family::InsightFace, [1, 2, 1, 1]) },
                "iresnet18",
            ),
        ] {
            let found = of(&description, |_| {}).unwrap();
            assert_eq!(found.description, description);
            assert_eq!((found.description.arch(), &found.missing, &found.extra), (arch, &vec![], &vec![]));
        }
    }

    #[test]
    fn the_counts_are_those_of_insightface() {
        // Parameters without running statistics, in millions, as InsightFace states them.
        for (description, millions) in [
            (describe(Family::InsightFace, [3, 4, 14, 3]), 43.59),
            (describe(Family::InsightFace, [3, 13, 30, 3]), 65.16),
            (Description { width: 128, ..describe(Family::MobileFaceNet, [1, 4, 6, 2]) }, 2.05),
        ] {
            let tensors = description.tensors().into_iter();
            let trained = tensors.filter(|tensor| !tensor.name.contains("running") && !tensor.optional);
            let count: usize = trained.map(|tensor| tensor.shape.iter().product::<usize>()).sum();
            assert!((count as f64 / 1e6 - millions).abs() < 0.01, "{:?}: {count}", description.family);
        }
    }

    #[test]
    fn what_is_missing_and_what_is_more_is_named() {
        let found = of(&describe(Family::InsightFace, [2, 2, 2, 2]), |shapes| {
            shapes.remove("layer2.1.prelu.weight");
            shapes.insert("bn2.bias".into(), vec![5]);
            shapes.remove("features.num_batches_tracked");
            shapes.insert("head.kernel".into(), vec![512, 10]);
        });
        let found = found.unwrap();
        assert_eq!(found.missing, ["layer2.1.prelu.weight", "bn2.bias"]);
        assert_eq!(found.extra, ["head.kernel"]);
    }

    #[test]
    fn others_are_not() {
        let ir = describe(Family::Release, [1, 1, 1, 1]);
        assert_eq!(of(&ir, |shapes| drop(shapes.remove("fc5.weight"))), None);
        assert_eq!(of(&ir, |shapes| drop(shapes.insert("fc5.weight".into(), vec![512, 512, 0, 7]))), None);
        let huge = vec![usize::MAX, 512, usize::MAX, 7];
        assert_eq!(of(&ir, |shapes| drop(shapes.insert("fc5.weight".into(), huge))), None);
        let insightface = describe(Family::InsightFace, [1, 1, 1, 1]);
        assert_eq!(of(&insightface, |s| drop(s.insert("fc.weight".into(), vec![512, 512 * 48]))), None);
        assert_eq!(recognise(&BTreeMap::from([("weight", &[10, 512][..])])), None);
        assert_eq!(recognise(&BTreeMap::new()), None);
    }
}
