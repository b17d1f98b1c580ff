//! Parameters by state-dict name, packed into arenas.
//!
//! All that the optimiser trains but the class weights of a head lies in one persistent tensor (`weights`), with gradients
//! and momentum in two more of the same length, so that SGD, the gradient norm and the finite check are one dispatch
//! each. Running statistics lie in `statistics`, frozen weights in `frozen`. Each parameter is a view. Class weights grow with the data and have a tensor of their own (`ModelSpec::declare_tables`).

use std::collections::HashMap;

use epl_runtime::graph::VIEW_ALIGNMENT;
use epl_runtime::ops::cast::cast;
use epl_runtime::{DType, Graph, HostTensor, Shape, Store, TensorDesc, TensorId};

use crate::{Error, Result};

/// What a parameter is to the trainer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Trained by gradient.
    Weight,
    /// The weights of a convolution: trained by gradient, and computed with in 16 bits where activations are stored so.
    Window,
    /// A PReLU slope: trained, then clamped from below after every step.
    Slope,
    /// A weight that stays as it is.
    Frozen,
    /// Running statistics, which move with every batch.
    Statistic,
}

impl Role {
    /// Whether it is trained by gradient.
    pub fn is_trained(self) -> bool {
        match self {
            Self::Weight | Self::Window | Self::Slope => true,
            Self::Frozen | Self::Statistic => false,
        }
    }
}

/// How a parameter is laid out on the GPU, compared with the state dict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As in the state dict.
    Plain,
    /// State dict `[Cout, Cin, KH, KW]`, GPU `[KH, KW, Cin, Cout]`.
    Convolution,
    /// State dict `[D, C * KH * KW]`, GPU `[KH, KW, C, D]`: a linear layer over flattened images of KH x KW pixels.
    Flattened([usize; 2]),
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// All elements the same.
    Constant(f32),
    /// Normal, mean 0, with this standard deviation.
    Normal(f32),
    /// Uniform between minus this and this.
    Uniform(f32),
}

/// A parameter of a network or a head.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Its name in the state dict.
    pub name: String,
    /// Its shape in the state dict.
    pub shape: Shape,
    /// How it is laid out on the GPU.
    pub layout: Layout,
    /// What it is to the trainer.
    pub role: Role,
    /// How it starts.
    pub initial: Initial,
}

impl ParameterSpec {
    /// Its shape and type on the GPU.
    pub fn desc(&self) -> TensorDesc {
        match self.window() {
            Some([cout, cin, kh, kw]) => TensorDesc::f32([kh, kw, cin, cout]),
            None => TensorDesc::f32(self.shape.clone()),
        }
    }

    /// The state-dict shape `[Cout, Cin, KH, KW]` of the weights of a window; `None` for what is laid out as it is.
    fn window(&self) -> Option<[usize; 4]> {
        match (self.layout, self.shape.dims()) {
            (Layout::Convolution, &[cout, cin, kh, kw]) => Some([cout, cin, kh, kw]),
            (Layout::Flattened([kh, kw]), &[cout, flat]) => Some([cout, flat / (kh * kw).max(1), kh, kw]),
            _ => None,
        }
    }

    /// Converts state-dict order to GPU order.
    pub fn to_gpu(&self, values: &[f32]) -> Vec<f32> {
        self.permute(values, true)
    }

    /// Converts GPU order to state-dict order.
    pub fn to_state_dict(&self, values: &[f32]) -> Vec<f32> {
        self.permute(values, false)
    }

    fn permute(&self, values: &[f32], to_gpu: bool) -> Vec<f32> {
        let Some([cout, cin, kh, kw]) = self.window() else { return values.to_vec() };
        let mut out = vec![0.0; values.len()];
        let window = kh * kw;
        // By blocks of output channels: on one side they are neighbours, on the other as many places walked side by side.
        const BLOCK: usize = 16;
        for first in (0..cout).step_by(BLOCK) {
            for (i, k) in (0..cin * window).map(|j| (j / window, j % window)) {
                for o in first..(first + BLOCK).min(cout) {
                    let dict = (o * cin + i) * window + k;
                    let gpu = (k * cin + i) * cout + o;
                    let (to, from) = if to_gpu { (gpu, dict) } else { (dict, gpu) };
                    if let (Some(to), Some(from)) = (out.get_mut(to), values.get(from)) {
                        *to = *from;
                    }
                }
            }
        }
        out
    }
}

/// Name of the arena of trained parameters.
pub const WEIGHTS: &str = "weights";
/// Name of the arena of gradients.
pub const GRADIENTS: &str = "gradients";
/// Name of the arena of momentum.
pub const MOMENTUM: &str = "momentum";
/// Name of the arena of running statistics.
pub const STATISTICS: &str = "statistics";
/// Name of the arena of weights that stay as they are. They are not in that of the statistics, since a launch that moves
/// statistics could not read them there.
pub const FROZEN: &str = "frozen";

/// Where a parameter lies.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The parameter.
    pub spec: ParameterSpec,
    /// Byte offset in its arena.
    pub offset: u64,
}

/// All parameters of a model, and their places in the arenas.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters {
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
    trained_bytes: u64,
    statistics_bytes: u64,
    frozen_bytes: u64,
    slopes: (u64, u64),
    windows: (u64, u64),
}

/// What offsets in an arena are multiples of: of a view's alignment, also where elements take half as many bytes.
const ALIGNMENT: u64 = 2 * VIEW_ALIGNMENT;

impl Parameters {
    /// Places `specs`: slopes first and together, then the windows of convolutions, then the other weights, all in the given
    /// order.
    pub fn new(specs: Vec<ParameterSpec>) -> Result<Self> {
        let mut placed = Self::default();
        let mut entries: Vec<Entry> = specs.into_iter().map(|spec| Entry { spec, offset: 0 }).collect();
        let (mut trained, mut statistics, mut frozen) = (0u64, 0u64, 0u64);
        for role in [Role::Slope, Role::Window, Role::Weight, Role::Frozen, Role::Statistic] {
            let first = trained;
            for entry in entries.iter_mut().filter(|entry| entry.spec.role == role) {
                let end = match role {
                    Role::Slope | Role::Window | Role::Weight => &mut trained,
                    Role::Frozen => &mut frozen,
                    Role::Statistic => &mut statistics,
                };
                entry.offset = *end;
                *end += entry.spec.desc().bytes().next_multiple_of(ALIGNMENT);
            }
            match role {
                Role::Slope => placed.slopes = (first, trained - first),
                Role::Window => placed.windows = (first, trained - first),
                Role::Weight | Role::Frozen | Role::Statistic => {}
            }
        }
        for (position, entry) in entries.iter().enumerate() {
            if placed.index.insert(entry.spec.name.clone(), position).is_some() {
                return Err(Error::usage(
                    format!("there are two parameters called {}", entry.spec.name),
                    "give every parameter its own name",
                ));
            }
        }
        placed.entries = entries;
        placed.trained_bytes = trained;
        placed.statistics_bytes = statistics;
        placed.frozen_bytes = frozen;
        Ok(placed)
    }

    /// All parameters, in state-dict order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// A parameter by name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.index.get(name).and_then(|&position| self.entries.get(position))
    }

    /// Number of trained elements.
    pub fn trained_elements(&self) -> usize {
        self.entries
            .iter()
            .filter(|entry| entry.spec.role.is_trained())
            .map(|entry| entry.spec.shape.elements())
            .sum()
    }

    /// Elements of an arena of trained parameters, with its padding.
    pub fn arena_elements(&self) -> usize {
        (self.trained_bytes / 4) as usize
    }

    /// Byte offset and elements of the PReLU slopes, which lie together; `None` where there are none.
    pub fn slopes(&self) -> Option<(u64, usize)> {
        let (offset, bytes) = self.slopes;
        (bytes > 0).then_some((offset, (bytes / 4) as usize))
    }

    /// Byte offset and elements of the windows of convolutions, which lie together; `None` where there are none.
    pub fn windows(&self) -> Option<(u64, usize)> {
        let (offset, bytes) = self.windows;
        (bytes > 0).then_some((offset, (bytes / 4) as usize))
    }

    /// Declares the arenas and a view of every parameter in `graph`.
    pub fn declare(&self, graph: &mut Graph) -> Result<Declared> {
        let weights = graph.persistent(WEIGHTS, TensorDesc::f32([self.arena_elements()]), "weights")?;
        // A graph needs the other arenas only if the network has what lies there.
        let mut arena = |name: &str, bytes: u64| match bytes {
            0 => Ok(weights),
            bytes => graph.persistent(name, TensorDesc::f32([bytes as usize / 4]), "statistics"),
        };
        let statistics = arena(STATISTICS, self.statistics_bytes)?;
        let frozen = arena(FROZEN, self.frozen_bytes)?;
        let mut views = HashMap::new();
        for entry in &self.entries {
            let base = match entry.spec.role {
                Role::Statistic => statistics,
                Role::Frozen => frozen,
                Role::Weight | Role::Window | Role::Slope => weights,
            };
            let id = graph.view(base, &entry.spec.name, entry.offset, entry.spec.desc())?;
            views.insert(entry.spec.name.clone(), id);
        }
        Ok(Declared { weights, views, halves: HashMap::new() })
    }

    fn arena(&self, entry: &Entry) -> &'static str {
        match entry.spec.role {
            Role::Statistic => STATISTICS,
            Role::Frozen => FROZEN,
            Role::Weight | Role::Window | Role::Slope => WEIGHTS,
        }
    }

    /// Sets a parameter from values in state-dict order.
    pub fn write(&self, store: &Store, name: &str, values: &[f32]) -> Result<()> {
        let entry = self.require(name)?;
        self.write_to(store, self.arena(entry), entry, values)
    }

    /// Sets a parameter from values in GPU order ([`ParameterSpec::to_gpu`]).
    pub(super) fn write_gpu(&self, store: &Store, entry: &Entry, gpu: &[f32]) -> Result<()> {
        Ok(store.write_range(self.arena(entry), entry.offset, bytemuck::cast_slice(gpu))?)
    }

    /// Sets the momentum of a trained parameter from values in state-dict order.
    pub fn write_momentum(&self, store: &Store, name: &str, values: &[f32]) -> Result<()> {
        self.write_to(store, MOMENTUM, self.require(name)?, values)
    }

    fn write_to(&self, store: &Store, arena: &str, entry: &Entry, values: &[f32]) -> Result<()> {
        if values.len() != entry.spec.shape.elements() {
            return Err(Error::data(
                entry.spec.name.as_str(),
                format!("{} values", values.len()),
                format!("shape {}", entry.spec.shape),
                "use weights of the same architecture",
            ));
        }
        let gpu = entry.spec.to_gpu(values);
        Ok(store.write_range(arena, entry.offset, bytemuck::cast_slice(&gpu))?)
    }

    /// Reads a parameter back in state-dict order.
    pub fn read(&self, store: &Store, name: &str) -> Result<Vec<f32>> {
        let entry = self.require(name)?;
        self.read_from(store, self.arena(entry), entry)
    }

    /// Reads the gradient of a trained parameter as the last step left it, in state-dict order.
    pub fn read_gradient(&self, store: &Store, name: &str) -> Result<Vec<f32>> {
        self.read_from(store, GRADIENTS, self.require(name)?)
    }

    /// Reads the momentum of a trained parameter, in state-dict order.
    pub fn read_momentum(&self, store: &Store, name: &str) -> Result<Vec<f32>> {
        self.read_from(store, MOMENTUM, self.require(name)?)
    }

    fn read_from(&self, store: &Store, arena: &str, entry: &Entry) -> Result<Vec<f32>> {
        let value: HostTensor = store.read_range(arena, entry.offset, &entry.spec.desc())?;
        Ok(entry.spec.to_state_dict(value.as_f32()?))
    }

    fn require(&self, name: &str) -> Result<&Entry> {
        self.get(name).ok_or_else(|| {
            Error::usage(format!("the model has no parameter {name}"), "check the architecture")
        })
    }
}

/// The parameters of a model as tensors of a graph.
#[derive(Clone, Debug)]
pub struct Declared {
    /// The arena of trained parameters.
    pub weights: TensorId,
    views: HashMap<String, TensorId>,
    /// Copies in 16 bits.
    halves: HashMap<String, TensorId>,
}

impl Declared {
    /// Records a copy of the windows of convolutions in 16 bits, one launch for all of them, and takes it where such are asked
    /// for from then on. It is made anew in every step, so that there is nothing else to keep in step with the weights.
    pub fn in_half(&mut self, graph: &mut Graph, parameters: &Parameters) -> Result<()> {
        let Some((first, elements)) = parameters.windows() else { return Ok(()) };
        graph.set_scope("weights in 16 bits");
        let windows = graph.view(self.weights, "windows", first, TensorDesc::f32([elements]))?;
        let all = cast(graph, windows, DType::F16)?;
        for entry in parameters.entries.iter().filter(|entry| entry.spec.role == Role::Window) {
            let name = &entry.spec.name;
            let desc = entry.spec.desc().with(DType::F16);
            let view = graph.view(all, &format!("{name} in 16 bits"), (entry.offset - first) / 2, desc)?;
            self.halves.insert(name.clone(), view);
        }
        Ok(())
    }

    /// The tensor that a convolution with the weights `name` computes with where activations have elements of type
    /// `element`: the parameter itself, or its copy in 16 bits. Gradients are of that.
    pub fn computed_with(&self, name: &str, element: DType) -> Result<TensorId> {
        match self.halves.get(name) {
            Some(&half) if element == DType::F16 => Ok(half),
            _ => self.get(name),
        }
    }

    /// The tensor of parameter `name`.
    pub fn get(&self, name: &str) -> Result<TensorId> {
        self.views.get(name).copied().ok_or_else(|| {
            Error::usage(format!("the model has no parameter {name}"), "check the architecture")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(shape: Shape, layout: Layout) -> ParameterSpec {
        ParameterSpec { name: "c".into(), shape, layout, role: Role::Weight, initial: Initial::Constant(0.0) }
    }

    #[test]
    fn layouts_go_both_ways() {
        let values: Vec<f32> = (0..12).map(|v| v as f32).collect();
        let window = spec([2, 3, 2, 1].into(), Layout::Convolution);
        // A linear layer over flattened images [3, 2, 1] has the same values, and the same product to compute.
        let flattened = spec([2, 6].into(), Layout::Flattened([2, 1]));
        for spec in [window, flattened] {
            assert_eq!(spec.desc(), TensorDesc::f32([2, 1, 3, 2]));
            let gpu = spec.to_gpu(&values);
            // [KH, KW, Cin, Cout]: the first two are output channels 0 and 1 of input 0, row 0.
            assert_eq!(gpu.get(..4), Some(&[0.0, 6.0, 2.0, 8.0][..]));
            assert_eq!(spec.to_state_dict(&gpu), values);
        }
    }
}
