//! The plan of a graph on an adapter: which nodes run, what they are lowered to, and where every tensor lives.
//! Made without a GPU; everything that can go wrong with shapes, limits or memory goes wrong here.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::caps::Caps;
use crate::choice::Choices;
use crate::graph::{Graph, Node, Storage, VIEW_ALIGNMENT};
use crate::kernel::{Access, Needs};
use crate::memory::{IN_FLIGHT, Memory, parameter_layout};
use crate::op::{Cost, Dispatch, Lowered, Lowering, Operand, TensorId};
use crate::slots;
use crate::{DType, Error, Result};

/// A place in GPU memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A slot.
    Slot {
        /// Its index.
        slot: usize,
        /// First byte.
        offset: u64,
    },
    /// The packed buffer of inputs.
    Input {
        /// First byte.
        offset: u64,
    },
    /// A persistent tensor.
    Persistent {
        /// The tensor.
        tensor: TensorId,
        /// First byte.
        offset: u64,
    },
}

/// A node that runs, and what it was lowered to.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its index in [`Graph::nodes`].
    pub node: usize,
    /// Its launches.
    pub dispatches: Vec<Dispatch>,
    /// Where its workspaces live, and their bytes.
    pub workspaces: Vec<(Place, u64)>,
}

impl Step {
    /// What it multiplies in the adapter's matrix unit, if anything.
    pub fn matrices(&self) -> Option<DType> {
        let unit = |launch: &&Dispatch| matches!(launch.kernel.needs, Needs::Matrices(_));
        let launch = self.dispatches.iter().find(unit)?;
        Some(if launch.half { DType::F16 } else { DType::F32 })
    }
}

/// How to plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanOptions {
    /// Give every tensor a slot of its own. For finding faults.
    pub no_sharing: bool,
    /// Which variants of ops to take, where their rules are not to decide.
    pub choices: Arc<Choices>,
}

/// A graph, ordered, lowered and placed.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The nodes that run, in order.
    pub steps: Vec<Step>,
    /// Bytes of each slot.
    pub slots: Vec<u64>,
    /// Bytes of the packed inputs.
    pub input_bytes: u64,
    /// Memory by kind.
    pub memory: Memory,
    places: Vec<Option<Place>>,
    /// First and last step of each transient, for explanations.
    lifetimes: Vec<Lifetime>,
}

/// The life of a transient tensor or a workspace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// The tensor; `None` for a workspace.
    pub tensor: Option<TensorId>,
    /// Its bytes.
    pub bytes: u64,
    /// The step that makes it.
    pub first: usize,
    /// The last step that uses it; `usize::MAX` where it is kept.
    pub last: usize,
    /// Its slot.
    pub slot: usize,
    /// Its first byte there.
    pub offset: u64,
}

impl Lifetime {
    fn new(tensor: Option<TensorId>, bytes: u64, position: usize) -> Self {
        Self { tensor, bytes, first: position, last: position, slot: 0, offset: 0 }
    }

    fn place(&self) -> Place {
        Place::Slot { slot: self.slot, offset: self.offset }
    }
}

impl Plan {
    /// Plans `graph` for an adapter with `caps`.
    pub fn new(graph: &Graph, caps: &Caps, options: PlanOptions) -> Result<Self> {
        let live = live_nodes(graph);
        let mut lifetimes: Vec<Lifetime> = Vec::new();
        let mut lifetime_of: Vec<Option<usize>> = vec![None; graph.tensors().count()];
        let mut steps = Vec::with_capacity(live.len());
        let mut workspace_lives: Vec<Vec<usize>> = Vec::new();
        for (position, &index) in live.iter().enumerate() {
            let node = &graph.nodes()[index];
            let (inputs, outputs) = (graph.descs(&node.inputs), graph.descs(&node.outputs));
            let choice = options.choices.of(node.op.as_ref(), &inputs);
            let lowered = Lowering::run_choice(node.op.as_ref(), caps, &inputs, &outputs, choice)?;
            check_bindings(graph, node, &lowered, caps)?;
            check_aliases(graph, node, &lowered, caps)?;
            for &id in &node.outputs {
                let (root, _) = graph.root(id);
                let transient = graph.tensor(root).storage == Storage::Transient;
                // An alias of a tensor that lives already does not live twice.
                if transient && lifetime_of[root.0 as usize].is_none() {
                    lifetime_of[root.0 as usize] = Some(lifetimes.len());
                    let bytes = graph.tensor(root).desc.bytes();
                    lifetimes.push(Lifetime::new(Some(root), bytes, position));
                }
            }
            for &id in &node.inputs {
                let (root, _) = graph.root(id);
                match lifetime_of[root.0 as usize] {
                    Some(life) => lifetimes[life].last = position,
                    None if graph.tensor(root).storage == Storage::Transient => {
                        return Err(Error::graph(
                            format!("{} reads a tensor that nothing has made yet", node.op.name()),
                            "record ops in the order in which they run",
                        ));
                    }
                    None => {}
                }
            }
            workspace_lives.push(
                lowered
                    .workspaces
                    .iter()
                    .map(|&bytes| {
                        lifetimes.push(Lifetime::new(None, bytes, position));
                        lifetimes.len() - 1
                    })
                    .collect(),
            );
            steps.push(Step { node: index, dispatches: lowered.dispatches, workspaces: Vec::new() });
        }
        for &id in graph.kept() {
            if let Some(life) = lifetime_of[graph.root(id).0.0 as usize] {
                lifetimes[life].last = usize::MAX;
            }
        }
        let together: Vec<Vec<usize>> = live
            .iter()
            .zip(&workspace_lives)
            .map(|(&index, workspaces)| {
                let node = &graph.nodes()[index];
                let operands = node.inputs.iter().chain(&node.outputs).map(|&id| graph.root(id).0);
                let mut lives: Vec<usize> = operands
                    .filter_map(|root| lifetime_of[root.0 as usize])
                    .chain(workspaces.clone())
                    .collect();
                lives.sort_unstable();
                lives.dedup();
                lives
            })
            .collect();
        let slots = slots::assign(&mut lifetimes, &together, options.no_sharing);
        for (step, lives) in steps.iter_mut().zip(workspace_lives) {
            step.workspaces =
                lives.into_iter().map(|life| (lifetimes[life].place(), lifetimes[life].bytes)).collect();
        }

        let mut input_bytes = 0u64;
        let mut places: Vec<Option<Place>> = vec![None; lifetime_of.len()];
        for (id, tensor) in graph.tensors() {
            places[id.0 as usize] = match tensor.storage {
                Storage::Transient => lifetime_of[id.0 as usize].map(|life| lifetimes[life].place()),
                Storage::Input => {
                    let offset = input_bytes;
                    input_bytes += tensor.desc.bytes().next_multiple_of(VIEW_ALIGNMENT);
                    Some(Place::Input { offset })
                }
                Storage::Persistent(_) => Some(Place::Persistent { tensor: id, offset: 0 }),
                Storage::View { .. } => None,
            };
        }
        // Views come last, because their base may have been declared after them.
        for (id, tensor) in graph.tensors() {
            if let Storage::View { base, offset } = tensor.storage {
                places[id.0 as usize] = match places[base.0 as usize] {
                    Some(Place::Input { offset: first }) => Some(Place::Input { offset: first + offset }),
                    Some(Place::Persistent { tensor, .. }) => Some(Place::Persistent { tensor, offset }),
                    Some(Place::Slot { slot, offset: first }) => {
                        Some(Place::Slot { slot, offset: first + offset })
                    }
                    None => None,
                };
            }
        }

        let mut memory = Memory {
            inputs: if input_bytes > 0 { caps.buffer_bytes(input_bytes) } else { 0 },
            slots: slots.iter().map(|&bytes| caps.buffer_bytes(bytes)).sum(),
            ..Memory::default()
        };
        memory.without_sharing = lifetimes.iter().map(|life| caps.buffer_bytes(life.bytes)).sum();
        let (_, blocks) = parameter_layout(steps.iter().flat_map(|step| &step.dispatches));
        memory.parameters = caps.buffer_bytes(blocks);
        memory.count_persistent(graph, caps);
        memory.count_staging(graph, caps, input_bytes, IN_FLIGHT);
        let plan = Self { steps, slots, input_bytes, memory, places, lifetimes };
        check_buffers(graph, &plan, caps)?;
        Ok(plan)
    }

    /// Where `tensor` lives; `None` where no node that runs makes it.
    pub fn place(&self, tensor: TensorId) -> Option<Place> {
        self.places.get(tensor.0 as usize).copied().flatten()
    }

    /// The lives of transients and workspaces.
    pub fn lifetimes(&self) -> &[Lifetime] {
        &self.lifetimes
    }

    /// Kernel launches a step.
    pub fn dispatches(&self) -> usize {
        self.steps.iter().map(|step| step.dispatches.len()).sum()
    }

    /// The work of a step: that of its ops, each for itself.
    pub fn cost(&self, graph: &Graph) -> Cost {
        self.steps.iter().map(|step| self.cost_of(graph, step)).fold(Cost::default(), |sum, cost| Cost {
            flops: sum.flops + cost.flops,
            bytes: sum.bytes + cost.bytes,
        })
    }

    /// The work of one of the steps.
    pub(crate) fn cost_of(&self, graph: &Graph, step: &Step) -> Cost {
        let node = &graph.nodes()[step.node];
        node.op.cost(&graph.descs(&node.inputs), &graph.descs(&node.outputs))
    }

    /// A table of what runs, what it touches and where that lives.
    pub fn explain(&self, graph: &Graph) -> String {
        Explanation { plan: self, graph }.to_string()
    }
}

/// Nodes whose results matter: kept tensors, updates of persistent tensors, and what these need, in recorded order.
///
/// The recorded order is the order of execution. It is a valid one by construction, and the only one in which an op
/// that updates a persistent tensor in place is sure to come between the reads that were recorded before and after it.
fn live_nodes(graph: &Graph) -> Vec<usize> {
    let mut wanted: HashSet<TensorId> = graph.kept().iter().copied().collect();
    let persistent =
        |id: &TensorId| matches!(graph.tensor(graph.root(*id).0).storage, Storage::Persistent(_));
    let mut live: Vec<usize> = Vec::new();
    for (index, node) in graph.nodes().iter().enumerate().rev() {
        let matters = !node.op.updates().is_empty()
            || node.outputs.iter().any(|id| wanted.contains(id) || persistent(id));
        if matters {
            // Whoever makes the memory that a view shows is wanted as well.
            wanted.extend(node.inputs.iter().flat_map(|&id| [id, graph.root(id).0]));
            live.push(index);
        }
    }
    live.reverse();
    live
}

/// Every part of a tensor or workspace that a dispatch binds must fit the adapter's largest binding.
fn check_bindings(graph: &Graph, node: &Node, lowered: &Lowered, caps: &Caps) -> Result<()> {
    let tensor = |id: Option<&TensorId>| id.map(|&id| graph.tensor(id));
    for bound in lowered.dispatches.iter().flat_map(|dispatch| &dispatch.bindings) {
        let (what, whole, id) = match bound.operand {
            Operand::Input(index) | Operand::Output(index) => {
                let ids =
                    if matches!(bound.operand, Operand::Input(_)) { &node.inputs } else { &node.outputs };
                let id = ids.get(index);
                let Some(tensor) = tensor(id) else { return Err(missing(node, bound.operand)) };
                (format!("tensor {} {}", tensor.name, tensor.desc), tensor.desc.bytes(), id)
            }
            Operand::Workspace(index) => match lowered.workspaces.get(index) {
                Some(&bytes) => (format!("workspace {index}"), bytes, None),
                None => return Err(missing(node, bound.operand)),
            },
        };
        let (first, bytes) = bound.range.unwrap_or((0, whole));
        if id.is_some_and(|&id| !lies_in_one_buffer(graph, id, first, bytes, caps)) {
            return Err(Error::Limit {
                what: format!(
                    "op {} (in {}) binds {bytes} bytes of {what}, which lie in several buffers; this adapter has \
                     buffers of at most {}",
                    node.op.name(),
                    node.scope,
                    caps.max_buffer_bytes
                ),
                hint: "use fewer rows or a narrower network".into(),
            });
        }
        if bytes > caps.max_binding_bytes {
            return Err(Error::Limit {
                what: format!(
                    "op {} (in {}): {what} takes {bytes} bytes; this adapter binds at most {}",
                    node.op.name(),
                    node.scope,
                    caps.max_binding_bytes
                ),
                hint: "use a smaller batch or a narrower network".into(),
            });
        }
    }
    Ok(())
}

/// No launch may read from a buffer that it also writes to: what it updates and what it reads must not lie in one persistent
/// tensor, unless that takes several buffers.
fn check_aliases(graph: &Graph, node: &Node, lowered: &Lowered, caps: &Caps) -> Result<()> {
    for dispatch in &lowered.dispatches {
        let mut bound: Vec<(TensorId, TensorId, Access)> = Vec::new();
        for (operand, binding) in dispatch.bindings.iter().zip(dispatch.kernel.bindings) {
            let id = match operand.operand {
                Operand::Input(index) => node.inputs.get(index),
                Operand::Output(index) => node.outputs.get(index),
                Operand::Workspace(_) => None,
            };
            let Some(&id) = id else { continue };
            let root = graph.root(id).0;
            let tensor = graph.tensor(root);
            let whole =
                matches!(tensor.storage, Storage::Persistent(_)) && caps.shards(&tensor.desc).len() == 1;
            if !whole {
                continue;
            }
            let clash = |&&(_, other, access): &&(TensorId, TensorId, Access)| {
                other == root && access != binding.access
            };
            if let Some(&(other, ..)) = bound.iter().find(clash) {
                let name = |id: TensorId| graph.tensor(id).name.as_str();
                return Err(Error::graph(
                    format!(
                        "op {} (in {}) reads one of {} and {} and updates the other, and both lie in {}",
                        node.op.name(),
                        node.scope,
                        name(other),
                        name(id),
                        name(root)
                    ),
                    "put what an op updates and what it reads into tensors of their own",
                ));
            }
            bound.push((id, root, binding.access));
        }
    }
    Ok(())
}

/// Whether `bytes` bytes of a tensor from `first` on are in one buffer. All but large persistent tensors always are.
fn lies_in_one_buffer(graph: &Graph, id: TensorId, first: u64, bytes: u64, caps: &Caps) -> bool {
    let (root, offset) = graph.root(id);
    let tensor = graph.tensor(root);
    let first = offset + first;
    !matches!(tensor.storage, Storage::Persistent(_))
        || caps
            .shards(&tensor.desc)
            .iter()
            .any(|&(start, length)| start <= first && first + bytes <= start + length)
}

/// Every buffer must fit the adapter's largest.
fn check_buffers(graph: &Graph, plan: &Plan, caps: &Caps) -> Result<()> {
    let persistent = graph
        .tensors()
        .filter(|(_, tensor)| matches!(tensor.storage, Storage::Persistent(_)))
        .map(|(_, tensor)| {
            let largest = caps.shards(&tensor.desc).iter().map(|&(_, bytes)| bytes).max().unwrap_or(0);
            (tensor.name.as_str(), largest, "fewer classes or a narrower network")
        });
    let slots = plan.slots.iter().map(|&bytes| ("a slot of activations", bytes, "a smaller batch"));
    let inputs = ("the inputs of a step", plan.input_bytes, "a smaller batch");
    for (what, bytes, remedy) in persistent.chain(slots).chain([inputs]) {
        if bytes > caps.max_buffer_bytes {
            return Err(Error::Limit {
                what: format!(
                    "{what} takes {bytes} bytes; this adapter has buffers of at most {}",
                    caps.max_buffer_bytes
                ),
                hint: format!("use {remedy}"),
            });
        }
    }
    Ok(())
}

struct Explanation<'a> {
    plan: &'a Plan,
    graph: &'a Graph,
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = &self.plan.memory;
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        writeln!(
            f,
            "{} nodes, {} dispatches, {} slots",
            self.plan.steps.len(),
            self.plan.dispatches(),
            self.plan.slots.len()
        )?;
        for (category, bytes) in &memory.persistent {
            writeln!(f, "{:>10.2} MiB {category}", mib(*bytes))?;
        }
        writeln!(f, "{:>10.2} MiB inputs", mib(memory.inputs))?;
        writeln!(
            f,
            "{:>10.2} MiB slots ({:.2} without sharing)",
            mib(memory.slots),
            mib(memory.without_sharing)
        )?;
        writeln!(f, "{:>10.2} MiB parameter blocks and staging", mib(memory.parameters + memory.staging))?;
        writeln!(f, "{:>10.2} MiB total", mib(memory.total()))?;
        for (position, step) in self.plan.steps.iter().enumerate() {
            let node = &self.graph.nodes()[step.node];
            let name = |id: &TensorId| {
                let tensor = self.graph.tensor(*id);
                let place = match self.plan.place(*id) {
                    Some(Place::Slot { slot, offset }) => format!("slot {slot} + {offset}"),
                    Some(Place::Input { .. }) => "input".into(),
                    Some(Place::Persistent { .. }) => "persistent".into(),
                    None => "nowhere".into(),
                };
                format!("{} {} ({place})", tensor.name, tensor.desc)
            };
            let inputs: Vec<String> = node.inputs.iter().map(name).collect();
            let outputs: Vec<String> = node.outputs.iter().map(name).collect();
            writeln!(
                f,
                "{position:>5} {:<24} {:<28} {} -> {}",
                node.op.name(),
                node.scope,
                inputs.join(", "),
                outputs.join(", ")
            )?;
        }
        Ok(())
    }
}

/// The place and size of an operand of a step.
pub(crate) fn operand_place(
    plan: &Plan,
    graph: &Graph,
    step: &Step,
    operand: Operand,
) -> Result<(Place, u64)> {
    let node = &graph.nodes()[step.node];
    let tensor = match operand {
        Operand::Input(index) => node.inputs.get(index),
        Operand::Output(index) => node.outputs.get(index),
        Operand::Workspace(index) => {
            return step.workspaces.get(index).copied().ok_or_else(|| missing(node, operand));
        }
    };
    let id = *tensor.ok_or_else(|| missing(node, operand))?;
    let place = plan.place(id).ok_or_else(|| missing(node, operand))?;
    Ok((place, graph.tensor(id).desc.bytes()))
}

fn missing(node: &Node, operand: Operand) -> Error {
    Error::graph(
        format!("op {} binds {operand:?}, which it does not have", node.op.name()),
        "check the op's lower function",
    )
}
