//! A model on a device: network and head, their parameters in a store, and their way to and from state dicts.

use std::collections::BTreeMap;
use std::sync::Arc;

use epl_runtime::{
    Choices, Device, Graph, PlanOptions, Session, SessionOptions, Store, TensorDesc, TensorId,
};

use crate::head::{self, HeadKind, HeadSettings};
use crate::nn::init::{initialize, normal};
use crate::nn::parameters::{Initial, Layout, MOMENTUM, Parameters, Role};
use crate::nn::{Network, ParameterSpec};
use crate::{Error, Result};

mod state;

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
    pub network: Network,
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
    pub fn new(arch: &str, network: Network, head: Option<Head>) -> Result<Self> {
        network.validate()?;
        let mut specs = network.parameters()?;
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

    /// What metadata say about the network.
    pub fn description(&self) -> Vec<(String, String)> {
        let mut pairs = self.network.description(&self.arch);
        pairs.push(("producer".into(), format!("epl {}", env!("CARGO_PKG_VERSION"))));
        pairs
    }

    /// What the metadata of a weights file say, after `step` steps: the network, and what it was trained with.
    pub fn metadata(&self, step: u64) -> Vec<(String, String)> {
        let mut pairs = self.description();
        pairs.push(("step".into(), step.to_string()));
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
    pub fn from_metadata(
        metadata: &BTreeMap<String, String>,
        arch: Option<&str>,
        place: &str,
    ) -> Result<Self> {
        let text = |key: &str| metadata.get(key).map(String::as_str);
        let name = arch.or_else(|| text("arch")).ok_or_else(|| {
            Error::usage(
                format!("{place} does not say its architecture"),
                "name it with --arch, such as ir50",
            )
        })?;
        let network = Network::described(name, metadata, place)?;
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
    /// Which kernels its sessions take, where the rules of ops are not to decide.
    pub choices: Arc<Choices>,
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
        Ok(Self { spec, store, choices: Arc::default() })
    }

    /// How its sessions are built: with its choices of kernels.
    pub fn session_options(&self) -> SessionOptions {
        let plan = PlanOptions { choices: self.choices.clone(), ..PlanOptions::default() };
        SessionOptions { plan, ..SessionOptions::default() }
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
