//! Looking into a session: the time of a node, the first node whose result is not what its reference says, and the first
//! value that is not finite.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use crate::case::Tolerance;
use crate::check::{Deviation, compare};
use crate::graph::Storage;
use crate::host::Array;
use crate::op::{Cost, TensorId};
use crate::session::{Piece, Session};
use crate::{DType, Error, Result};

/// Seconds of each step of a plan.
#[derive(Clone, Debug)]
pub struct NodeSeconds {
    /// Mean seconds of each step over the repeats.
    pub seconds: Vec<f64>,
    /// Whether the GPU's own clock was used; otherwise each node was submitted alone and timed from outside.
    pub gpu_clock: bool,
}

/// Time and work of one node.
#[derive(Clone, Debug)]
pub struct NodeTiming {
    /// The op's name.
    pub op: &'static str,
    /// Where in the model it was recorded.
    pub scope: String,
    /// Mean seconds.
    pub seconds: f64,
    /// The least work that it is.
    pub cost: Cost,
    /// What it multiplies in the adapter's matrix unit, if anything.
    pub matrices: Option<DType>,
}

/// A query set holds 4096 timestamps (WebGPU), two a piece.
const MOST_PIECES: usize = 2048;

/// Times every node of the session's plan with the inputs last uploaded, over `repeats` runs. Running it repeats
/// updates of persistent tensors.
pub fn node_seconds(session: &Session, repeats: usize) -> Result<NodeSeconds> {
    let repeats = repeats.max(1);
    let mut pieces: Vec<Piece> = Vec::new();
    for (position, step) in session.plan().steps.iter().enumerate() {
        let whole = Piece { position, launch: None };
        if session.seconds_of(whole) > session.longest_submission() && step.dispatches.len() > 1 {
            // As many submissions as it takes.
            pieces.extend((0..step.dispatches.len()).map(|index| Piece { position, launch: Some(index) }));
        } else {
            pieces.push(whole);
        }
    }
    let mut seconds = vec![0.0; session.plan().steps.len()];
    let mut gpu_clock = session.device().has_timestamps();
    for _ in 0..repeats {
        for pieces in pieces.chunks(MOST_PIECES) {
            for (piece, s) in pieces.iter().zip(by_either(session, pieces, &mut gpu_clock)?) {
                if let Some(sum) = seconds.get_mut(piece.position) {
                    *sum += s / repeats as f64;
                }
            }
        }
    }
    Ok(NodeSeconds { seconds, gpu_clock })
}

/// Like [`node_seconds`], with names and costs.
pub fn profile(session: &Session, repeats: usize) -> Result<Vec<NodeTiming>> {
    let times = node_seconds(session, repeats)?;
    let graph = session.graph();
    let timing = |(step, seconds): (&crate::plan::Step, f64)| {
        let node = graph.nodes().get(step.node)?;
        Some(NodeTiming {
            op: node.op.name(),
            scope: node.scope.clone(),
            seconds,
            cost: node.op.cost(&graph.descs(&node.inputs), &graph.descs(&node.outputs)),
            matrices: step.matrices(),
        })
    };
    Ok(session.plan().steps.iter().zip(times.seconds).filter_map(timing).collect())
}

/// Time of all launches of one kernel in a step.
#[derive(Clone, Debug)]
pub struct KernelTiming {
    /// The shader's name.
    pub kernel: &'static str,
    /// Launches a step.
    pub launches: usize,
    /// Mean seconds of all of them in a step.
    pub seconds: f64,
}

/// Times every launch of the session's plan alone, with the inputs last uploaded, over `repeats` runs, and adds them up
/// by kernel, the slowest first. Running it repeats updates of persistent tensors.
pub fn kernel_seconds(session: &Session, repeats: usize) -> Result<Vec<KernelTiming>> {
    let steps = session.plan().steps.iter().enumerate();
    let (names, pieces): (Vec<&'static str>, Vec<Piece>) = steps
        .flat_map(|(position, step)| {
            let launches = step.dispatches.iter().enumerate();
            launches.map(move |(index, dispatch)| {
                (dispatch.kernel.shader, Piece { position, launch: Some(index) })
            })
        })
        .unzip();
    let repeats = repeats.max(1);
    let mut kernels: BTreeMap<&'static str, (usize, f64)> = BTreeMap::new();
    let mut gpu_clock = session.device().has_timestamps();
    for _ in 0..repeats {
        for (names, pieces) in names.chunks(MOST_PIECES).zip(pieces.chunks(MOST_PIECES)) {
            let seconds = by_either(session, pieces, &mut gpu_clock)?;
            for (&kernel, seconds) in names.iter().zip(seconds) {
                let entry = kernels.entry(kernel).or_default();
                *entry = (entry.0 + 1, entry.1 + seconds / repeats as f64);
            }
        }
    }
    let timing =
        |(kernel, (launches, seconds))| KernelTiming { kernel, launches: launches / repeats, seconds };
    let mut timings: Vec<KernelTiming> = kernels.into_iter().map(timing).collect();
    timings.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    Ok(timings)
}

/// By the GPU's clock as long as it is there and runs, else from outside.
fn by_either(session: &Session, pieces: &[Piece], gpu_clock: &mut bool) -> Result<Vec<f64>> {
    if *gpu_clock {
        let seconds = by_timestamps(session, pieces)?;
        // A clock that stands still (seen on macOS 26) is no clock.
        if seconds.iter().any(|&s| s != 0.0) {
            return Ok(seconds);
        }
        *gpu_clock = false;
    }
    by_wall_clock(session, pieces)
}

fn by_timestamps(session: &Session, pieces: &[Piece]) -> Result<Vec<f64>> {
    let device = session.device();
    let count = (pieces.len() * 2) as u32;
    let queries = device.device.create_query_set(&wgpu::QuerySetDescriptor {
        label: Some("timestamps"),
        ty: wgpu::QueryType::Timestamp,
        count: count.max(2),
    });
    let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
    let resolved = device.buffer("timestamps", u64::from(count.max(2)) * 8, usage)?;
    let begin = || device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let (mut encoder, mut sum) = (begin(), 0.0);
    for (index, &piece) in (0..).zip(pieces) {
        // As a step is cut.
        let seconds = session.seconds_of(piece);
        if sum > 0.0 && sum + seconds > session.longest_submission() {
            device.submit(std::mem::replace(&mut encoder, begin()))?;
            sum = 0.0;
        }
        sum += seconds;
        let writes = wgpu::ComputePassTimestampWrites {
            query_set: &queries,
            beginning_of_pass_write_index: Some(index * 2),
            end_of_pass_write_index: Some(index * 2 + 1),
        };
        session.encode_piece(&mut encoder, piece, Some(writes));
    }
    encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
    device.submit(encoder)?;
    let bytes = device.read(&resolved, 0, u64::from(count) * 8)?;
    let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
    let period = f64::from(device.queue.get_timestamp_period()) * 1e-9;
    Ok(ticks
        .chunks_exact(2)
        .map(|pair| match pair {
            [begin, end] => end.saturating_sub(*begin) as f64 * period,
            _ => 0.0,
        })
        .collect())
}

fn by_wall_clock(session: &Session, pieces: &[Piece]) -> Result<Vec<f64>> {
    let device = session.device();
    device.finish()?;
    pieces
        .iter()
        .map(|&piece| {
            let mut encoder =
                device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            session.encode_piece(&mut encoder, piece, None);
            let start = Instant::now();
            device.submit(encoder)?;
            device.finish()?;
            Ok(start.elapsed().as_secs_f64())
        })
        .collect()
}

/// A node whose result on the GPU is not what its reference makes of the GPU's own inputs.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// Index of the node in the graph.
    pub node: usize,
    /// The op's name.
    pub op: &'static str,
    /// Where in the model it was recorded.
    pub scope: String,
    /// The worst element.
    pub deviation: Deviation,
}

impl std::fmt::Display for Divergence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Deviation { tensor, index, got, want, .. } = &self.deviation;
        write!(
            f,
            "node {} {} (in {}): {tensor}[{index}] is {got}; the reference makes {want} of the same inputs",
            self.node, self.op, self.scope
        )
    }
}

/// Runs one step node by node with the inputs written before, gives every op's reference the GPU's own inputs, and
/// returns the first node that differs by more than `tolerance`. Updates persistent tensors as a step does.
pub fn find_divergence(session: &mut Session, tolerance: Tolerance) -> Result<Option<Divergence>> {
    session.upload_only()?;
    let session = &*session;
    let device = session.device();
    for (position, step) in session.plan().steps.iter().enumerate() {
        let Some(node) = session.graph().nodes().get(step.node) else { continue };
        let read = |id: &TensorId| session.read(*id).map(|value| Array::from(&value));
        let inputs: Vec<Array> = node.inputs.iter().map(read).collect::<Result<_>>()?;
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        session.encode_node(&mut encoder, position);
        device.submit(encoder)?;
        let wants = node.op.reference(&inputs);
        let updated = node.op.updates().iter().filter_map(|&index| node.inputs.get(index));
        let targets: Vec<TensorId> = node.outputs.iter().chain(updated).copied().collect();
        for (id, want) in targets.iter().zip(&wants) {
            // Outputs that nothing needs have no place.
            if session.plan().place(*id).is_none() {
                continue;
            }
            let name = &session.graph().tensor(*id).name;
            let deviation = compare(name, &read(id)?.data, &want.data, tolerance);
            if let Some(deviation) = deviation.filter(|found| !found.passes()) {
                return Ok(Some(Divergence {
                    node: step.node,
                    op: node.op.name(),
                    scope: node.scope.clone(),
                    deviation,
                }));
            }
        }
        if targets.len() != wants.len() {
            return Err(Error::graph(
                format!("the reference of {} gives {} tensors", node.op.name(), wants.len()),
                format!("it should give {}", targets.len()),
            ));
        }
    }
    Ok(None)
}

/// The first value of a step that is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// The name of the op that made it, or that reads it where a persistent tensor has it.
    pub op: &'static str,
    /// Where in the model that op was recorded.
    pub scope: String,
    /// The tensor.
    pub tensor: String,
    /// Flat index in it.
    pub index: usize,
    /// The value.
    pub value: f32,
    /// Whether it was there before the step: in a persistent tensor.
    pub before: bool,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { op, scope, tensor, index, value, before } = self;
        let place = if scope.is_empty() { String::new() } else { format!(" in {scope}") };
        if *before {
            write!(f, "{tensor}[{index}], which {op}{place} reads, was {value} before the step")
        } else {
            write!(f, "{op}{place} made {tensor}[{index}] = {value}")
        }
    }
}

/// Runs one step node by node with the inputs written before, and returns the first value that is not finite; `None` where
/// all are. Updates persistent tensors as a step does, up to that node.
pub fn first_nonfinite(session: &mut Session) -> Result<Option<Origin>> {
    session.upload_only()?;
    let session = &*session;
    let device = session.device();
    let mut checked = HashSet::new();
    for (position, step) in session.plan().steps.iter().enumerate() {
        let Some(node) = session.graph().nodes().get(step.node) else { continue };
        let found = |id: TensorId, before: bool| -> Result<Option<Origin>> {
            let name = session.graph().tensor(id).name.clone();
            let found = session.find_nonfinite(id)?;
            Ok(found.map(|(index, value)| Origin {
                op: node.op.name(),
                scope: node.scope.clone(),
                tensor: name,
                index,
                value,
                before,
            }))
        };
        for &id in &node.inputs {
            let (root, _) = session.graph().root(id);
            let persistent = matches!(session.graph().tensor(root).storage, Storage::Persistent(_));
            // What a step makes in a persistent tensor is checked as its output.
            if persistent
                && checked.insert(id)
                && let Some(origin) = found(id, true)?
            {
                return Ok(Some(origin));
            }
        }
        let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        session.encode_node(&mut encoder, position);
        device.submit(encoder)?;
        for &id in node.outputs.iter().filter(|&&id| session.plan().place(id).is_some()) {
            checked.insert(id);
            if let Some(origin) = found(id, false)? {
                return Ok(Some(origin));
            }
        }
    }
    Ok(None)
}
