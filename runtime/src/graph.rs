//! The recorded graph: tensors, and the ops that make them, in the order in which they run.

use std::collections::HashMap;
use std::sync::Arc;

use crate::op::{Op, Record, TensorId};
use crate::{Error, Result, TensorDesc};

/// Offset alignment of views and packed inputs: the largest that any adapter asks of a binding.
pub const VIEW_ALIGNMENT: u64 = 256;

/// Where a tensor lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Made and used within a step; shares slots with others.
    Transient,
    /// Written by the host before a step.
    Input,
    /// Outlives the step, in the [`Store`](crate::store::Store); of a category for memory reports.
    Persistent(&'static str),
    /// A part of another tensor, starting at a byte offset.
    View {
        /// The tensor that it is a part of.
        base: TensorId,
        /// First byte.
        offset: u64,
    },
}

/// A tensor of a graph.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Its name, unique among inputs and persistent tensors.
    pub name: String,
    /// Shape and element type.
    pub desc: TensorDesc,
    /// Where it lives.
    pub storage: Storage,
}

/// An op with its operands.
#[derive(Clone, Debug)]
pub struct Node {
    /// The op.
    pub op: Arc<dyn Op>,
    /// Its inputs.
    pub inputs: Vec<TensorId>,
    /// Its outputs.
    pub outputs: Vec<TensorId>,
    /// Where in the model it was recorded, for messages.
    pub scope: String,
}

/// A static graph. Recorded once, then planned and replayed.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    tensors: Vec<Tensor>,
    nodes: Vec<Node>,
    names: HashMap<String, TensorId>,
    kept: Vec<TensorId>,
    fetched: Vec<TensorId>,
    scope: String,
    keeps_all: bool,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Names the part of the model that is recorded next, for messages and timings.
    pub fn set_scope(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    fn add(&mut self, name: String, desc: TensorDesc, storage: Storage) -> TensorId {
        let id = TensorId(self.tensors.len() as u32);
        self.tensors.push(Tensor { name, desc, storage });
        id
    }

    fn add_named(&mut self, name: &str, desc: TensorDesc, storage: Storage) -> Result<TensorId> {
        if self.names.contains_key(name) {
            return Err(Error::graph(
                format!("there are two tensors called {name}"),
                "give each input, persistent tensor and view its own name",
            ));
        }
        if desc.shape.elements() == 0 {
            return Err(Error::graph(format!("tensor {name} {desc} is empty"), "use extents of at least 1"));
        }
        let id = self.add(name.to_string(), desc, storage);
        self.names.insert(name.to_string(), id);
        Ok(id)
    }

    /// A tensor that the host writes before each step.
    pub fn input(&mut self, name: &str, desc: TensorDesc) -> Result<TensorId> {
        self.add_named(name, desc, Storage::Input)
    }

    /// A tensor that outlives the step, zero until written. `category` groups it in memory reports.
    pub fn persistent(&mut self, name: &str, desc: TensorDesc, category: &'static str) -> Result<TensorId> {
        self.add_named(name, desc, Storage::Persistent(category))
    }

    /// The part of `base` that starts at byte `offset` (a multiple of [`VIEW_ALIGNMENT`]), as a tensor of its own.
    pub fn view(&mut self, base: TensorId, name: &str, offset: u64, desc: TensorDesc) -> Result<TensorId> {
        self.check_view(base, name, offset, &desc)?;
        self.add_named(name, desc, Storage::View { base, offset })
    }

    fn check_view(&self, base: TensorId, name: &str, offset: u64, desc: &TensorDesc) -> Result<()> {
        let whole = self.tensor(base);
        if matches!(whole.storage, Storage::View { .. }) {
            return Err(Error::graph(format!("{name} would be a view of a view"), "view its base instead"));
        }
        if !offset.is_multiple_of(VIEW_ALIGNMENT) || offset + desc.bytes() > whole.desc.bytes() {
            return Err(Error::graph(
                format!("view {name} {desc} at byte {offset} does not fit {} {}", whole.name, whole.desc),
                format!("keep inside the base, at a multiple of {VIEW_ALIGNMENT} bytes"),
            ));
        }
        Ok(())
    }

    /// Makes the transient `tensor` live in `base` at byte `offset` (gradients are gathered in an arena this way).
    pub fn place(&mut self, tensor: TensorId, base: TensorId, offset: u64) -> Result<()> {
        let Tensor { name, desc, storage } = self.tensor(tensor).clone();
        self.check_view(base, &name, offset, &desc)?;
        if storage != Storage::Transient {
            return Err(Error::graph(
                format!("{name} cannot be placed: it is not a transient tensor"),
                "copy it with an op first",
            ));
        }
        let alias = self
            .tensors
            .iter()
            .find(|other| matches!(other.storage, Storage::View { base, .. } if base == tensor));
        if let Some(alias) = alias {
            return Err(Error::graph(
                format!("{name} cannot be placed: {} shares its memory", alias.name),
                "place it before it is reshaped, or copy it with an op first",
            ));
        }
        if let Some(tensor) = self.tensors.get_mut(tensor.0 as usize) {
            tensor.storage = Storage::View { base, offset };
        }
        Ok(())
    }

    /// Whether [`backward`](crate::autodiff::backward) has tensors made again whose making costs little, rather than
    /// keeping them for the gradients; as it is unless it was told otherwise. The results are the same, bit for bit.
    pub fn recomputes(&self) -> bool {
        !self.keeps_all
    }

    /// Says so.
    pub fn set_recomputes(&mut self, recomputes: bool) {
        self.keeps_all = !recomputes;
    }

    /// Keeps the tensor readable after the step: its memory is not reused.
    pub fn keep(&mut self, tensor: TensorId) {
        if !self.kept.contains(&tensor) {
            self.kept.push(tensor);
        }
    }

    /// Copies the tensor to the host after each step, to be read some steps later without waiting.
    pub fn fetch(&mut self, tensor: TensorId) {
        self.keep(tensor);
        if !self.fetched.contains(&tensor) {
            self.fetched.push(tensor);
        }
    }

    /// The tensors that are fetched, in the order in which they were asked for.
    pub fn fetched(&self) -> &[TensorId] {
        &self.fetched
    }

    /// The tensors that are kept.
    pub fn kept(&self) -> &[TensorId] {
        &self.kept
    }

    /// All nodes, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All tensors; a [`TensorId`] counts along this list.
    pub fn tensors(&self) -> impl Iterator<Item = (TensorId, &Tensor)> {
        self.tensors.iter().enumerate().map(|(index, tensor)| (TensorId(index as u32), tensor))
    }

    /// A tensor. Ids come from this graph, so that they are always in range; a foreign one names the first tensor.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        debug_assert!((id.0 as usize) < self.tensors.len(), "tensor {} of another graph", id.0);
        &self.tensors[(id.0 as usize).min(self.tensors.len() - 1)]
    }

    /// The input, persistent tensor or view called `name`.
    pub fn find(&self, name: &str) -> Option<TensorId> {
        self.names.get(name).copied()
    }

    /// The tensor whose memory `id` lives in, and the byte offset there.
    pub fn root(&self, id: TensorId) -> (TensorId, u64) {
        match self.tensor(id).storage {
            Storage::View { base, offset } => (base, offset),
            _ => (id, 0),
        }
    }

    /// Descriptions of several tensors.
    pub fn descs(&self, ids: &[TensorId]) -> Vec<TensorDesc> {
        ids.iter().map(|&id| self.tensor(id).desc.clone()).collect()
    }
}

impl Record for Graph {
    fn push(&mut self, op: Arc<dyn Op>, inputs: &[TensorId]) -> Result<Vec<TensorId>> {
        let located = |error: Error, scope: &str| match error {
            Error::Shape { op, found, expected } if !scope.is_empty() => {
                Error::Shape { op: format!("{op} (in {scope})"), found, expected }
            }
            other => other,
        };
        let descs = op.infer(&self.descs(inputs)).map_err(|error| located(error, &self.scope))?;
        for &index in op.updates() {
            let id = inputs.get(index).copied();
            let fits =
                id.is_some_and(|id| matches!(self.tensor(self.root(id).0).storage, Storage::Persistent(_)));
            if !fits {
                return Err(Error::graph(
                    format!("op {} updates its input {index}, which is not persistent", op.name()),
                    "give it a persistent tensor",
                ));
            }
        }
        let shared = match inputs.first() {
            Some(&input) if op.aliases_input() => {
                let (base, offset) = self.root(input);
                Some(Storage::View { base, offset })
            }
            _ => None,
        };
        let outputs: Vec<TensorId> = descs
            .into_iter()
            .enumerate()
            .map(|(index, desc)| {
                let name = format!("{}#{}.{index}", op.name(), self.nodes.len());
                let storage = shared.clone().filter(|_| index == 0).unwrap_or(Storage::Transient);
                self.add(name, desc, storage)
            })
            .collect();
        self.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            scope: self.scope.clone(),
        });
        Ok(outputs)
    }

    fn desc(&self, tensor: TensorId) -> &TensorDesc {
        &self.tensor(tensor).desc
    }
}
