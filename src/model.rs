//! A model on a device: network and head, their parameters in a store, and their way to and from state dicts.

use std::path::Path;
use std::sync::Arc;

use epl_runtime::{Device, Graph, Session, SessionOptions, Store, TensorDesc, TensorId};

use crate::head::{self, HeadKind, HeadSettings};
use crate::interchange::safetensors::{StateDict, Value};
use crate::nn::init::{initialize, normal};
use crate::nn::parameters::{Initial, Layout, MOMENTUM, Parameters, Role};
use crate::nn::{IrNetwork, ParameterSpec};
use crate::{Error, Result};

/// Name of the class weights in the state dict.
pub const HEAD_WEIGHT: &str = "loss.weight";
/// Name of the momentum of the class weights among the persistent tensors.
pub const HEAD_MOMENTUM: &str = "loss.weight.momentum";
/// Name of the empirical prototypes in the state dict.
pub const HEAD_QUEUE: &str = "loss.queue";
/// Name of UniFace's bias in the state dict.
pub const HEAD_BIAS: &str = "loss.bias";

/// A classification head over a number of classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Its kind, margin, scale and EPL.
    pub settings: HeadSettings,
    /// Number of classes.
    pub classes: usize,
}

/// Network and head as data, with the places of their parameters.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    /// The backbone.
    pub network: IrNetwork,
    /// The architecture's name, for metadata.
    pub arch: String,
    /// The head; `None` for a model that only embeds.
    pub head: Option<Head>,
    /// The parameters of both that lie in arenas: all but the class weights and the empirical prototypes. These are
    /// persistent tensors of their own, since they may be larger than a buffer.
    pub parameters: Parameters,
}

impl ModelSpec {
    /// Lays out a network and a head.
    pub fn new(arch: &str, network: IrNetwork, head: Option<Head>) -> Result<Self> {
        network.validate()?;
        let mut specs = network.parameters();
        if let Some(head) = head.as_ref().filter(|head| head.settings.kind == HeadKind::UniFace) {
            specs.push(ParameterSpec {
                name: HEAD_BIAS.into(),
                shape: [1].into(),
                layout: Layout::Plain,
                role: Role::Weight,
                initial: Initial::Constant(head::initial_bias(head.classes)),
            });
        }
        Ok(Self { network, arch: arch.into(), head, parameters: Parameters::new(specs)? })
    }

    /// Shape of the class weights, where there is a head: `[classes, embedding]`.
    pub fn weight_desc(&self) -> Option<TensorDesc> {
        self.head.as_ref().map(|head| TensorDesc::f32([head.classes, self.network.embedding]))
    }

    /// Shape of the empirical prototypes, where the head has them: `[classes, embedding]`.
    pub fn queue_desc(&self) -> Option<TensorDesc> {
        self.head.as_ref()?.settings.epl.as_ref()?;
        self.weight_desc()
    }

    /// The tensors `[classes, embedding]` of the head, with the deviation of the noise that they start as.
    fn tables(&self) -> Vec<(&'static str, TensorDesc, f32)> {
        // Empirical prototypes are unit-variance noise, not normalised, as the release starts them.
        let weight =
            self.weight_desc().map(|desc| (HEAD_WEIGHT, desc, 1.0 / (self.network.embedding as f32).sqrt()));
        let queue = self.queue_desc().map(|desc| (HEAD_QUEUE, desc, 1.0));
        weight.into_iter().chain(queue).collect()
    }

    /// Declares the class weights, their momentum and the empirical prototypes in `graph`, as far as the head has them.
    pub fn declare_tables(&self, graph: &mut Graph) -> Result<Option<Tables>> {
        let Some(desc) = self.weight_desc() else { return Ok(None) };
        Ok(Some(Tables {
            weight: graph.persistent(HEAD_WEIGHT, desc.clone(), "weights")?,
            momentum: graph.persistent(HEAD_MOMENTUM, desc, "optimizer")?,
            queue: match self.queue_desc() {
                Some(desc) => Some(graph.persistent(HEAD_QUEUE, desc, "prototypes")?),
                None => None,
            },
        }))
    }

    /// Number of trained elements of network and head.
    pub fn trained_elements(&self) -> usize {
        let weight = self.weight_desc().map_or(0, |desc| desc.shape.elements());
        self.parameters.trained_elements() + weight
    }

    /// What the metadata of a weights file says about the network.
    pub fn metadata(&self, step: u64) -> Vec<(String, String)> {
        let network = &self.network;
        let mut pairs = vec![
            ("arch".into(), self.arch.clone()),
            ("input".into(), format!("[{}, {}]", network.input[0], network.input[1])),
            ("embedding".into(), network.embedding.to_string()),
            ("width".into(), network.width.to_string()),
            ("blocks".into(), format!("{:?}", network.blocks)),
            ("channel_order".into(), "RGB".into()),
            ("normalization".into(), "(x/255 - 0.5)/0.5".into()),
            ("step".into(), step.to_string()),
            ("producer".into(), format!("epl {}", env!("CARGO_PKG_VERSION"))),
        ];
        if let Some(head) = &self.head {
            // Settings are plain data; a failure to print them would only leave the entry out.
            if let Ok(text) = serde_json::to_string(&head.settings) {
                pairs.push(("head".into(), text));
            }
            pairs.push(("classes".into(), head.classes.to_string()));
        }
        pairs
    }

    /// The network that a weights file describes in its metadata. `arch` stands in where it says nothing.
    pub fn from_state_dict(dict: &StateDict, arch: Option<&str>, place: &str) -> Result<Self> {
        let text = |key: &str| dict.metadata.get(key).map(String::as_str);
        let name = arch.or_else(|| text("arch")).ok_or_else(|| {
            Error::usage(
                format!("{place} does not say its architecture"),
                "name it with --arch, such as ir50",
            )
        })?;
        let mut network = IrNetwork::named(name)?;
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
        Self::new(name, network, None)
    }
}

/// The tensors `[classes, embedding]` of a head in a graph.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// The class weights.
    pub weight: TensorId,
    /// Their momentum.
    pub momentum: TensorId,
    /// The empirical prototypes, with EPL.
    pub queue: Option<TensorId>,
}

/// Elements of a table that are on their way between host and device at once: the host never holds all of it.
const CHUNK: usize = 4 << 20;

/// A model with its parameters on a device.
pub struct Model {
    /// What it is.
    pub spec: ModelSpec,
    /// Its parameters.
    pub store: Store,
}

/// Rows of the prototypes of some classes.
#[derive(Clone, Debug, PartialEq)]
pub struct PrototypeRows {
    /// Of the learned prototypes W, `[classes, D]`.
    pub weight: Vec<f32>,
    /// Of the empirical prototypes Q, `[classes, D]`; `None` for a head without EPL.
    pub queue: Option<Vec<f32>>,
}

impl Model {
    /// A model with initial parameters, a function of `seed` alone.
    pub fn new(spec: ModelSpec, device: &Arc<Device>, seed: u64) -> Result<Self> {
        let model = Self::allocate(spec, device)?;
        initialize(&model.spec.parameters, &model.store, seed)?;
        for (name, desc, deviation) in model.spec.tables() {
            let mut offset = 0;
            for values in normal(name, desc.shape.elements(), deviation, seed)?.chunks(CHUNK) {
                model.store.write_range(name, offset, bytemuck::cast_slice(&values))?;
                offset += 4 * values.len() as u64;
            }
        }
        Ok(model)
    }

    /// A model whose backbone comes from a state dict; a head is initialised where the dict has none that fits.
    pub fn allocate(spec: ModelSpec, device: &Arc<Device>) -> Result<Self> {
        let store = Store::new(device);
        let mut graph = Graph::new();
        spec.parameters.declare(&mut graph)?;
        if spec.head.is_some() {
            let arena = TensorDesc::f32([spec.parameters.arena_elements()]);
            graph.persistent(MOMENTUM, arena, "optimizer")?;
        }
        spec.declare_tables(&mut graph)?;
        // A session of a graph without ops allocates what it declares and nothing else.
        Session::new(&graph, &store, SessionOptions::default())?;
        Ok(Self { spec, store })
    }

    /// Sets parameters from a state dict. Backbone tensors must all be there with their shapes; those of the head are
    /// taken where they fit. Returns the names of head tensors that were not taken.
    pub fn load(&self, dict: &StateDict, place: &str) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for entry in self.spec.parameters.entries() {
            let name = &entry.spec.name;
            let of_head = name.starts_with("loss.");
            match dict.floats(name) {
                Some((shape, values)) if shape == entry.spec.shape.dims() => {
                    self.spec.parameters.write(&self.store, name, values)?;
                }
                _ if of_head => left.push(name.clone()),
                Some((shape, _)) => {
                    return Err(Error::data(
                        format!("{place}: tensor {name}"),
                        format!("shape {shape:?}"),
                        format!("shape {}", entry.spec.shape),
                        "use weights of the same architecture, width, depth and input size",
                    ));
                }
                None => {
                    return Err(Error::data(
                        place,
                        format!("no tensor {name}"),
                        format!("the state dict of {}", self.spec.arch),
                        "use weights of the same architecture",
                    ));
                }
            }
        }
        for (name, desc, _) in self.spec.tables() {
            match dict.floats(name) {
                Some((shape, values)) if shape == desc.shape.dims() => {
                    self.store.write_range(name, 0, bytemuck::cast_slice(values))?;
                }
                _ => left.push(name.into()),
            }
        }
        Ok(left)
    }

    /// Writes all parameters to `path`, as [`Self::state_dict`] has them, without ever holding a whole table.
    ///
    /// # Errors
    /// Where the file cannot be written, or the device was lost.
    pub fn save(&self, path: &Path, step: u64) -> Result<()> {
        let tables = self.spec.tables();
        let shapes: Vec<_> =
            tables.iter().map(|(name, desc, _)| (*name, desc.shape.dims().to_vec())).collect();
        self.state_dict_without_tables(step)?.write_with(path, &shapes, |name, sink| {
            self.for_each_part(name, |_, values| sink.write(bytemuck::cast_slice(values)))
        })
    }

    /// Hands the rows of a table (class weights, empirical prototypes) to `each` in order, some thousands at a time, with
    /// the class of the first: `[n, D]`, row-major. The host never holds the whole table.
    ///
    /// # Errors
    /// Where the model has no such table, the device was lost, or `each` fails.
    pub fn for_each_part(
        &self,
        table: &str,
        mut each: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let Some((_, desc, _)) = self.spec.tables().into_iter().find(|(name, ..)| *name == table) else {
            return Err(Error::usage(format!("the model has no table {table}"), "check its head"));
        };
        let (classes, dimension) = (desc.shape.dim(0), desc.shape.dim(1));
        let rows = (CHUNK / dimension).max(1);
        for first in (0..classes).step_by(rows) {
            let part = TensorDesc::f32([rows.min(classes - first), dimension]);
            let values = self.store.read_range(table, (first * dimension * 4) as u64, &part)?;
            each(first, values.as_f32()?)?;
        }
        Ok(())
    }

    /// All parameters as a state dict, with `num_batches_tracked` as PyTorch has it, after `step` steps.
    pub fn state_dict(&self, step: u64) -> Result<StateDict> {
        let mut dict = self.state_dict_without_tables(step)?;
        for (name, desc, _) in self.spec.tables() {
            dict.insert(name, desc.shape.dims(), self.store.read(name)?.into_f32()?);
        }
        Ok(dict)
    }

    fn state_dict_without_tables(&self, step: u64) -> Result<StateDict> {
        let mut dict = StateDict::default();
        for entry in self.spec.parameters.entries() {
            let name = &entry.spec.name;
            let values = self.spec.parameters.read(&self.store, name)?;
            dict.insert(name, entry.spec.shape.dims(), values);
            if let Some(layer) = name.strip_suffix("running_mean") {
                let tracked = i64::try_from(step).unwrap_or(i64::MAX);
                dict.tensors
                    .insert(format!("{layer}num_batches_tracked"), (vec![], Value::I64(vec![tracked])));
            }
        }
        dict.metadata.extend(self.spec.metadata(step));
        Ok(dict)
    }

    /// The prototypes of `classes`, row by row as they are listed; reads in ascending order are the fastest. Waits for
    /// the GPU.
    ///
    /// # Errors
    /// A model without a head, and a class that it does not have.
    pub fn prototype_rows(&self, classes: &[u32]) -> Result<PrototypeRows> {
        let Some(head) = &self.spec.head else {
            return Err(Error::usage("a model without a head has no prototypes", "give it a head"));
        };
        if let Some(class) = classes.iter().find(|&&class| class as usize >= head.classes) {
            return Err(Error::data(
                "prototypes",
                format!("class {class}"),
                format!("a class below {}", head.classes),
                "this is a fault of the program; please report it",
            ));
        }
        let rows = |name: &str| -> Result<Vec<f32>> { Ok(self.store.read_rows(name, classes)?.into_f32()?) };
        let queue = match self.spec.queue_desc() {
            Some(_) => Some(rows(HEAD_QUEUE)?),
            None => None,
        };
        Ok(PrototypeRows { weight: rows(HEAD_WEIGHT)?, queue })
    }
}
