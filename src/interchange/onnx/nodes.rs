//! A network's layers as nodes of an ONNX graph, in evaluation: `[N, C, H, W]`.

use super::proto::{Attribute, NodeProto};
use crate::interchange::tensor_file::TensorSource;
use crate::nn::layers::{BATCH_NORM_EPS, BatchNorm, Convolution, Layers, Linear, Prelu};
use crate::{Error, Result};

/// A constant tensor of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Its name: that of the state dict, where it is as there.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub values: Vec<f32>,
}

/// A value between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge(usize);

/// Nodes in the order in which they run, and their constants.
pub struct Nodes<'a> {
    source: &'a dyn TensorSource,
    /// What errors call the source.
    place: &'a str,
    names: Vec<String>,
    /// The nodes.
    pub nodes: Vec<NodeProto>,
    /// Their constants.
    pub weights: Vec<Weight>,
}

impl<'a> Nodes<'a> {
    /// No nodes yet; constants will come from `source`, which errors call `place`.
    pub fn new(source: &'a dyn TensorSource, place: &'a str) -> Self {
        Self { source, place, names: Vec::new(), nodes: Vec::new(), weights: Vec::new() }
    }

    /// A value that comes from outside, called `name`.
    pub fn outside(&mut self, name: &str) -> Edge {
        self.names.push(name.into());
        Edge(self.names.len() - 1)
    }

    /// What a value is called.
    pub fn name(&self, edge: Edge) -> &str {
        self.names.get(edge.0).map_or("", String::as_str)
    }

    /// Appends a node of module `module` with `inputs` and then `constants`, and one output.
    pub fn push(
        &mut self,
        operator: &str,
        module: &str,
        inputs: &[Edge],
        constants: &[String],
        attribute: Vec<Attribute>,
    ) -> Edge {
        // Not `Sub` or `Mul` first: InsightFace's loader takes that for a model that normalises its input itself.
        let name = format!("{module}/{operator}");
        let inputs = inputs.iter().map(|&edge| self.name(edge).to_owned());
        let input = inputs.chain(constants.iter().cloned()).collect();
        let output = vec![name.clone()];
        self.nodes.push(NodeProto { input, output, name: name.clone(), op_type: operator.into(), attribute });
        self.outside(&name)
    }

    /// Calls the value `from` `to`, wherever it stands.
    pub fn rename(&mut self, from: &str, to: &str) {
        let values = self.nodes.iter_mut().flat_map(|node| node.input.iter_mut().chain(&mut node.output));
        for value in values.chain(&mut self.names).filter(|value| *value == from) {
            to.clone_into(value);
        }
    }

    /// Takes tensor `name` of the source as a constant, whose shape there must be `shape`, as one of `shaped`. Returns its
    /// name.
    fn weight(&mut self, name: String, shape: &[usize], shaped: &[usize]) -> Result<String> {
        let found = self.source.shape(&name);
        if found != Some(shape) {
            return Err(Error::data(
                format!("{}: tensor {name}", self.place),
                found.map_or("nothing".into(), |found| format!("shape {found:?}")),
                format!("shape {shape:?}"),
                "export weights of that architecture, width, depth and input size",
            ));
        }
        let values = self.source.floats_of(&name)?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::data(
                format!("{}: tensor {name}, element {at}", self.place),
                format!("{}", values.get(at).copied().unwrap_or_default()),
                "finite numbers",
                "export weights of a run that ended well",
            ));
        }
        self.weights.push(Weight { name: name.clone(), shape: shaped.to_vec(), values });
        Ok(name)
    }
}

impl Layers for Nodes<'_> {
    type Tensor = Edge;

    fn convolution(&mut self, name: &str, x: Edge, layer: Convolution) -> Result<Edge> {
        let Convolution { cin, cout, kernel, stride, padding, groups, .. } = layer;
        let shape = [cout, cin / groups.max(1), kernel[0], kernel[1]];
        let weight = self.weight(format!("{name}.weight"), &shape, &shape)?;
        let attributes = vec![
            Attribute::int("group", groups as i64),
            Attribute::ints("kernel_shape", &kernel),
            Attribute::ints("pads", &[padding; 4]),
            Attribute::ints("strides", &[stride; 2]),
        ];
        Ok(self.push("Conv", name, &[x], &[weight], attributes))
    }

    fn batch_norm(&mut self, name: &str, x: Edge, layer: BatchNorm) -> Result<Edge> {
        let shape = [layer.channels];
        let parts = ["weight", "bias", "running_mean", "running_var"];
        let constants: Vec<String> = parts
            .iter()
            .map(|part| self.weight(format!("{name}.{part}"), &shape, &shape))
            .collect::<Result<_>>()?;
        let variances = self.weights.last().map(|weight| weight.values.as_slice()).unwrap_or_default();
        if let Some(value) = variances.iter().find(|&&value| value + BATCH_NORM_EPS <= 0.0) {
            return Err(Error::data(
                format!("{}: tensor {name}.running_var", self.place),
                format!("{value}"),
                "variances, which are not below 0",
                "export weights of a run that ended well",
            ));
        }
        let epsilon = Attribute::float("epsilon", BATCH_NORM_EPS);
        Ok(self.push("BatchNormalization", name, &[x], &constants, vec![epsilon]))
    }

    fn prelu(&mut self, name: &str, x: Edge, layer: Prelu) -> Result<Edge> {
        let channels = layer.channels;
        let slope = self.weight(format!("{name}.weight"), &[channels], &[channels, 1, 1])?;
        Ok(self.push("PRelu", name, &[x], &[slope], Vec::new()))
    }

    fn add(&mut self, name: &str, a: Edge, b: Edge) -> Result<Edge> {
        Ok(self.push("Add", name, &[a, b], &[], Vec::new()))
    }

    fn dropout(&mut self, x: Edge, _probability: f32) -> Result<Edge> {
        Ok(x)
    }

    fn linear(&mut self, name: &str, x: Edge, layer: Linear) -> Result<Edge> {
        let Linear { channels, extent, features, bias, .. } = layer;
        let shape = [features, channels * extent[0] * extent[1]];
        let mut constants = vec![self.weight(format!("{name}.weight"), &shape, &shape)?];
        if bias {
            constants.push(self.weight(format!("{name}.bias"), &[features], &[features])?);
        }
        let flat = self.push("Flatten", name, &[x], &[], vec![Attribute::int("axis", 1)]);
        Ok(self.push("Gemm", name, &[flat], &constants, vec![Attribute::int("transB", 1)]))
    }

    fn flatten(&mut self, x: Edge, _channels: usize) -> Result<Edge> {
        let module = self.name(x).to_owned();
        Ok(self.push("Flatten", &module, &[x], &[], vec![Attribute::int("axis", 1)]))
    }
}
