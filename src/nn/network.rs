//! A backbone as data: which network, how wide, how deep, for which images.

use std::collections::HashMap;

use std::collections::BTreeMap;

use epl_runtime::{Graph, TensorId};

use crate::nn::layers::{Layers, ParameterList};
use crate::nn::parameters::{Declared, ParameterSpec};
use crate::nn::record::{Mode, Recorder};
use crate::nn::{ir, iresnet, mobilefacenet};
use crate::{Error, Result};

/// Bounds of the sizes, far beyond any network in use: within them no product of sizes overflows, and laying a
/// network out needs little memory whatever a configuration or the metadata of a weights file says.
pub const MAX_INPUT: usize = 4096;
/// Most channels of the first layer.
pub const MAX_WIDTH: usize = 4096;
/// Longest embedding.
pub const MAX_EMBEDDING: usize = 65_536;
/// Most blocks of a layer.
pub const MAX_BLOCKS: usize = 1000;

/// A kind of network, of any width and depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// The network of the EPL release.
    Ir,
    /// InsightFace's IResNet.
    IResNet,
    /// InsightFace's MobileFaceNet.
    MobileFaceNet,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 3] = [Self::Ir, Self::IResNet, Self::MobileFaceNet];

    /// The architectures of the family by name, with the blocks of their layers.
    pub fn depths(self) -> &'static [(&'static str, [usize; 4])] {
        match self {
            Self::Ir => ir::DEPTHS,
            Self::IResNet => iresnet::DEPTHS,
            Self::MobileFaceNet => mobilefacenet::DEPTHS,
        }
    }

    /// Channels of the first layer, as published.
    pub fn width(self) -> usize {
        match self {
            Self::Ir | Self::IResNet => 64,
            Self::MobileFaceNet => 128,
        }
    }

    /// Probability of dropout before the last layer, as published.
    pub fn dropout(self) -> f32 {
        match self {
            Self::Ir => 0.4,
            Self::IResNet | Self::MobileFaceNet => 0.0,
        }
    }

    /// What a width must be a multiple of.
    pub fn width_step(self) -> usize {
        match self {
            Self::Ir | Self::IResNet => 1,
            // Its second convolution has half as many groups.
            Self::MobileFaceNet => 2,
        }
    }
}

/// The names of all architectures.
pub fn architectures() -> Vec<&'static str> {
    Family::ALL.iter().flat_map(|family| family.depths()).map(|(name, _)| *name).collect()
}

/// A backbone as data.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    /// What kind of network it is.
    pub family: Family,
    /// Height and width of the input, divisible by 16.
    pub input: [usize; 2],
    /// Channels of the first layer; the others keep their ratio to it.
    pub width: usize,
    /// Blocks of each of the four layers.
    pub blocks: [usize; 4],
    /// Size of the embedding.
    pub embedding: usize,
    /// Probability of dropout before the last layer.
    pub dropout: f32,
}

impl Network {
    /// The network called `arch`, at 112 x 112 with embeddings of 512.
    ///
    /// # Errors
    /// [`Error::Usage`] for a name that is not known, with those that are.
    pub fn named(arch: &str) -> Result<Self> {
        for family in Family::ALL {
            if let Some((_, blocks)) = family.depths().iter().find(|(name, _)| *name == arch) {
                return Ok(Self {
                    family,
                    input: [112, 112],
                    width: family.width(),
                    blocks: *blocks,
                    embedding: 512,
                    dropout: family.dropout(),
                });
            }
        }
        let known = architectures().join(", ");
        Err(Error::usage(format!("unknown architecture {arch:?}"), format!("known: {known}")))
    }

    /// The network `arch` with the sizes that the metadata of weights say, as [`Self::description`] wrote them; errors call
    /// them `place`.
    ///
    /// # Errors
    /// An architecture that is not known, and a size that cannot be read.
    pub fn described(arch: &str, metadata: &BTreeMap<String, String>, place: &str) -> Result<Self> {
        let mut network = Self::named(arch)?;
        let text = |key: &str| metadata.get(key).map(String::as_str);
        let wrong = |key: &str, found: &str| {
            Error::data(
                format!("{place}: metadata {key}"),
                format!("{found:?}"),
                "what epl writes there",
                "use an unaltered weights file",
            )
        };
        fn parse<T: serde::de::DeserializeOwned>(found: &str) -> Option<T> {
            serde_json::from_str(found).ok()
        }
        if let Some(found) = text("input") {
            network.input = parse(found).ok_or_else(|| wrong("input", found))?;
        }
        if let Some(found) = text("embedding") {
            network.embedding = parse(found).ok_or_else(|| wrong("embedding", found))?;
        }
        if let Some(found) = text("width") {
            network.width = parse(found).ok_or_else(|| wrong("width", found))?;
        }
        if let Some(found) = text("blocks") {
            network.blocks = parse(found).ok_or_else(|| wrong("blocks", found))?;
        }
        Ok(network)
    }

    /// The name of its architecture; of another depth than those that have one, that of the nearest.
    pub fn arch(&self) -> &'static str {
        let all: usize = self.blocks.iter().sum();
        let distance =
            |blocks: &[usize; 4]| (*blocks != self.blocks, blocks.iter().sum::<usize>().abs_diff(all));
        let depths = self.family.depths();
        depths.iter().min_by_key(|(_, blocks)| distance(blocks)).map_or("", |(name, _)| name)
    }

    /// What metadata say about it under the name `arch`.
    pub fn description(&self, arch: &str) -> Vec<(String, String)> {
        [
            ("arch", arch.to_owned()),
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
        if !self.width.is_multiple_of(self.family.width_step()) {
            return Err(Error::usage(
                format!("model.width = {} for a {:?}", self.width, self.family),
                format!("use a multiple of {}", self.family.width_step()),
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

    /// Height and width that the last layer sees.
    pub fn last_extent(&self) -> [usize; 2] {
        self.input.map(|extent| extent / 16)
    }

    /// The forward pass, images -> embeddings, over any kind of layers.
    pub fn forward<L: Layers>(&self, layers: &mut L, images: L::Tensor) -> Result<L::Tensor> {
        match self.family {
            Family::Ir => ir::forward(self, layers, images),
            Family::IResNet => iresnet::forward(self, layers, images),
            Family::MobileFaceNet => mobilefacenet::forward(self, layers, images),
        }
    }

    /// Every parameter, in the order of the state dict.
    pub fn parameters(&self) -> Result<Vec<ParameterSpec>> {
        let mut list = ParameterList::default();
        self.forward(&mut list, ())?;
        Ok(list.specs)
    }

    /// Records the network: images `[N, H, W, 3]` -> embeddings `[N, embedding]`.
    pub fn record(
        &self,
        graph: &mut Graph,
        parameters: &Declared,
        images: TensorId,
        mode: Mode,
    ) -> Result<TensorId> {
        self.forward(&mut Recorder { graph, parameters, mode, moments: HashMap::new() }, images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Parameters, Role};

    fn elements(arch: &str) -> usize {
        let network = Network::named(arch).expect("a known architecture");
        let parameters = network.parameters().expect("it is valid");
        parameters
            .iter()
            .filter(|spec| !spec.name.contains("running"))
            .map(|spec| spec.shape.elements())
            .sum()
    }

    #[test]
    fn parameter_counts_are_those_of_the_release() {
        // In millions, as published.
        for (arch, millions) in [("ir18", 22.81), ("ir50", 42.38), ("ir100", 63.94)] {
            let found = elements(arch) as f64 / 1e6;
            assert!((found - millions).abs() < 0.005, "{arch}: {found}");
        }
    }

    #[test]
    fn every_architecture_is_laid_out_with_its_own_names() {
        let names = architectures();
        assert_eq!(names.len(), 11);
        for arch in names {
            let network = Network::named(arch).expect("known");
            network.validate().expect("published sizes are valid");
            Parameters::new(network.parameters().expect("valid")).expect("unique names");
        }
        let error = Network::named("ir51").expect_err("unknown");
        assert!(error.hint().is_some_and(|hint| hint.contains("iresnet200, mobilefacenet")), "{error}");
    }

    #[test]
    fn slopes_lie_together_at_the_start_of_the_arena() {
        let network = Network::named("ir18").expect("a known architecture");
        let parameters = Parameters::new(network.parameters().expect("valid")).expect("unique names");
        let (offset, count) = parameters.slopes().expect("the network has slopes");
        for entry in parameters.entries() {
            let inside = entry.offset >= offset && entry.offset < offset + count as u64 * 4;
            match entry.spec.role {
                Role::Slope => assert!(inside, "{}", entry.spec.name),
                Role::Weight | Role::Window => assert!(!inside, "{}", entry.spec.name),
                Role::Statistic | Role::Frozen => {}
            }
        }
    }

    #[test]
    fn sizes_that_do_not_divide_are_refused() {
        let network = Network { input: [112, 100], ..Network::named("ir18").expect("known") };
        let error = network.validate().expect_err("100 is not divisible by 16");
        assert!(error.to_string().contains("[112, 100]"), "{error}");
        assert_eq!(error.exit_code(), 2);
        let network = Network { width: 7, ..Network::named("mobilefacenet").expect("known") };
        assert!(network.validate().expect_err("7 is odd").to_string().contains("width = 7"));
    }

    #[test]
    fn sizes_beyond_reason_are_refused() {
        let known = || Network::named("ir18").expect("known");
        const HUGE: usize = 9_000_000_000_000_000_000;
        for network in [
            Network { width: HUGE, ..known() },
            Network { embedding: HUGE, ..known() },
            Network { blocks: [HUGE, 1, 1, 1], ..known() },
            Network { input: [HUGE / 16 * 16, 16], ..known() },
        ] {
            let error = network.validate().expect_err("beyond the bounds");
            assert_eq!(error.exit_code(), 2);
        }
        for family in Family::ALL {
            let largest = Network {
                family,
                input: [MAX_INPUT; 2],
                width: MAX_WIDTH,
                blocks: [MAX_BLOCKS; 4],
                embedding: MAX_EMBEDDING,
                dropout: 0.0,
            };
            largest.validate().expect("within the bounds");
            let elements: usize =
                largest.parameters().expect("valid").iter().map(|spec| spec.shape.elements()).sum();
            assert!(elements < usize::MAX / 16);
        }
    }
}
