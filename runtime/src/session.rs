//! A plan with its buffers, pipelines and bind groups, replayed step by step.
//!
//! [`Session::step`] encodes the prebuilt launches into one compute pass and submits it; one that would keep the GPU busy
//! for long goes in several submissions. It creates no buffer and no bind group and never waits for the step that it
//! submits, but for the one whose submissions are measured. A few steps may be in flight; when all are, writing the inputs
//! of the next one waits for the oldest (a *throttle*, counted apart from waits).

mod receipt;
mod submit;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::counters::Counters;
use crate::device::{Device, LONGEST_SUBMISSION};
use crate::flight::{Flight, Signal, Submitted};
use crate::graph::{Graph, Storage};
use crate::memory::{IN_FLIGHT, RECEIPT, RECEIPT_PLACE, download_layout, has_receipts, parameter_layout};
use crate::op::{Dispatch, TensorId};
use crate::pace::{Pace, slow_seconds};
use crate::pipelines::{Pipeline, PipelineSpec};
use crate::plan::{Place, Plan, PlanOptions, Step, operand_place};
use receipt::Receipts;

use crate::store::{Shard, Store, read_shards, shard_of};
use crate::{DType, Error, HostTensor, Result};

/// How to build a session.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// How to plan.
    pub plan: PlanOptions,
    /// Steps that may be queued before the host waits for the oldest.
    pub in_flight: usize,
    /// Fill each transient with NaN before the op that makes it runs, so that an element that the op forgets to
    /// write, or a tensor that is used after its life, is seen. Tests always do.
    pub poison: bool,
    /// The longest that one submission should keep the GPU busy: see [`Session::submissions`].
    pub longest_submission: Duration,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            plan: PlanOptions::default(),
            in_flight: IN_FLIGHT,
            poison: false,
            longest_submission: LONGEST_SUBMISSION,
        }
    }
}

/// A prebuilt kernel launch.
struct Launch {
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    grid: [u32; 3],
}

/// Fetched tensors of a finished step.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The number of the step, as [`Session::step`] returned it.
    pub step: u64,
    /// The fetched tensors, in the order of [`Graph::fetched`].
    pub values: Vec<HostTensor>,
}

/// A planned graph with everything allocated, ready to run.
pub struct Session {
    device: Arc<Device>,
    graph: Graph,
    plan: Plan,
    slots: Vec<wgpu::Buffer>,
    persistent: HashMap<TensorId, Vec<Shard>>,
    inputs: Option<wgpu::Buffer>,
    launches: Vec<Vec<Launch>>,
    poison: Option<wgpu::Buffer>,
    flights: Vec<Flight>,
    next: usize,
    written: HashMap<TensorId, bool>,
    steps: u64,
    download_offsets: Vec<u64>,
    /// The length of what is fetched: behind it is the receipt of the step.
    download_bytes: u64,
    receipts: Option<Receipts>,
    /// What tells its tokens from those of other sessions.
    number: u32,
    finished: VecDeque<Finished>,
    pace: Pace,
    /// When the last step ended, where the device has been busy with the next one since.
    busy_since: Option<Instant>,
}

/// A node of a plan, or one of its launches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// The node's place in the plan.
    pub(crate) position: usize,
    /// The launch; `None` for all of the node's.
    pub(crate) launch: Option<usize>,
}

/// A buffer, and the bytes of it that a tensor takes.
pub(crate) struct Region<'a> {
    pub(crate) buffer: &'a wgpu::Buffer,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl Session {
    /// Plans `graph`, allocates its slots, and takes its persistent tensors from `store` (made there if new).
    pub fn new(graph: &Graph, store: &Store, options: SessionOptions) -> Result<Self> {
        let device = store.device().clone();
        let mut plan = Plan::new(graph, device.caps(), options.plan)?;
        let in_flight = options.in_flight.max(1);
        plan.memory.count_staging(graph, device.caps(), plan.input_bytes, in_flight);
        let copy = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let storage = wgpu::BufferUsages::STORAGE | copy;
        let mut slots = Vec::with_capacity(plan.slots.len());
        for (index, &bytes) in plan.slots.iter().enumerate() {
            slots.push(device.buffer(&format!("slot {index}"), bytes, storage)?);
        }
        let mut persistent = HashMap::new();
        let mut written = HashMap::new();
        for (id, tensor) in graph.tensors() {
            match tensor.storage {
                Storage::Persistent(_) => {
                    persistent.insert(id, store.shards(&tensor.name, &tensor.desc)?);
                }
                Storage::Input => {
                    written.insert(id, false);
                }
                Storage::Transient | Storage::View { .. } => {}
            }
        }
        let inputs = match plan.input_bytes {
            0 => None,
            bytes => Some(device.buffer("inputs", bytes, storage)?),
        };
        let poison = match plan.slots.iter().max() {
            Some(&bytes) if options.poison => {
                plan.memory.poison = device.caps().buffer_bytes(bytes);
                let buffer = device.buffer("poison", bytes, storage)?;
                // All bits set are NaN in either width of float.
                let words = vec![u32::MAX; (bytes as usize).div_ceil(4)];
                device.write("poison", &buffer, 0, bytemuck::cast_slice(&words))?;
                Some(buffer)
            }
            _ => None,
        };
        let mut session = Self {
            pace: Pace::new(Duration::ZERO, Vec::new()),
            busy_since: None,
            device,
            graph: graph.clone(),
            plan,
            slots,
            persistent,
            inputs,
            launches: Vec::new(),
            poison,
            flights: Vec::new(),
            next: 0,
            written,
            steps: 0,
            download_offsets: Vec::new(),
            download_bytes: 0,
            receipts: None,
            number: receipt::number(),
            finished: VecDeque::new(),
        };
        session.launches = session.build_launches()?;
        let longest = options.longest_submission.min(session.device.longest_submission());
        session.pace = Pace::new(longest, session.slow_seconds());
        session.build_flights(in_flight)?;
        session.device.check()?;
        Ok(session)
    }

    fn build_launches(&self) -> Result<Vec<Vec<Launch>>> {
        self.device.prepare(self.plan.steps.iter().flat_map(|step| &step.dispatches).map(spec_of))?;
        let dispatches = || self.plan.steps.iter().flat_map(|step| &step.dispatches);
        let (offsets, length) = parameter_layout(dispatches());
        let mut blocks = vec![0; length as usize];
        for (dispatch, &(first, _)) in dispatches().zip(&offsets) {
            let block = blocks.get_mut(first as usize..).unwrap_or_default();
            block.iter_mut().zip(&dispatch.params).for_each(|(to, byte)| *to = *byte);
        }
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let uniforms = self.device.buffer("parameter blocks", blocks.len() as u64, usage)?;
        self.device.write("parameter blocks", &uniforms, 0, &blocks)?;

        let mut offsets = offsets.into_iter();
        let mut launches = Vec::with_capacity(self.plan.steps.len());
        for step in &self.plan.steps {
            let mut of_step = Vec::with_capacity(step.dispatches.len());
            for dispatch in &step.dispatches {
                let (offset, bytes) = offsets.next().unwrap_or((0, 16));
                let block = Region { buffer: &uniforms, offset, bytes };
                of_step.push(self.build_launch(step, dispatch, &block)?);
            }
            launches.push(of_step);
        }
        Ok(launches)
    }

    fn build_launch(&self, step: &Step, dispatch: &Dispatch, block: &Region<'_>) -> Result<Launch> {
        let pipeline = self.device.pipeline(&spec_of(dispatch))?;
        let mut regions = vec![Region { buffer: block.buffer, offset: block.offset, bytes: block.bytes }];
        for bound in &dispatch.bindings {
            let (place, bytes) = operand_place(&self.plan, &self.graph, step, bound.operand)?;
            let (first, length) = bound.range.unwrap_or((0, bytes));
            if first + length > bytes {
                return Err(Error::graph(
                    format!(
                        "kernel {} binds bytes {first}..{} of {bytes}",
                        dispatch.kernel.shader,
                        first + length
                    ),
                    "check the op's lower function",
                ));
            }
            regions.push(self.region_at(place, first, length)?);
        }
        let resources: Vec<wgpu::BindingResource<'_>> = regions
            .iter()
            .map(|region| {
                wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: region.buffer,
                    offset: region.offset,
                    size: std::num::NonZeroU64::new(region.bytes),
                })
            })
            .collect();
        let group = self.device.bind_group(dispatch.kernel.shader, &pipeline.layout, &resources)?;
        Ok(Launch { pipeline, group, grid: dispatch.grid })
    }

    /// What each launch takes on a slow GPU, in seconds.
    fn slow_seconds(&self) -> Vec<f64> {
        let of_node = |(step, launches): (&Step, &Vec<Launch>)| {
            slow_seconds(self.plan.cost_of(&self.graph, step), launches.len())
        };
        self.plan.steps.iter().zip(&self.launches).flat_map(of_node).collect()
    }

    fn build_flights(&mut self, count: usize) -> Result<()> {
        let (offsets, bytes) = download_layout(&self.graph);
        (self.download_offsets, self.download_bytes) = (offsets, bytes);
        let mut token = 0;
        if has_receipts(self.plan.input_bytes, bytes) {
            self.receipts = Some(Receipts::new(&self.device)?);
            token = RECEIPT_PLACE;
        }
        for _ in 0..count {
            let staging = |label: &str, bytes: u64, usage, map| -> Result<_> {
                if bytes == 0 {
                    return Ok(None);
                }
                let buffer = self.device.buffer(label, bytes + token, usage)?;
                let mapping = Arc::new(Signal::default());
                if map {
                    mapping.map(&buffer, wgpu::MapMode::Write);
                }
                Ok(Some((buffer, mapping)))
            };
            let write = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
            let read = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
            let upload = staging("upload", self.plan.input_bytes, write, true)?;
            let download = staging("download", bytes, read, false)?;
            self.flights.push(Flight { upload, download, done: Arc::default(), submitted: None });
        }
        self.device.poll()
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The graph.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// `bytes` bytes from byte `first` of what lies at `place`.
    fn region_at(&self, place: Place, first: u64, bytes: u64) -> Result<Region<'_>> {
        let lost = || Error::graph("a planned buffer is missing", "this is a fault of the planner");
        let (buffer, offset) = match place {
            Place::Slot { slot, offset } => (self.slots.get(slot).ok_or_else(lost)?, offset),
            Place::Input { offset } => (self.inputs.as_ref().ok_or_else(lost)?, offset),
            Place::Persistent { tensor, offset } => {
                let shards = self.persistent.get(&tensor).ok_or_else(lost)?;
                let shard = shard_of(shards, offset + first, bytes).ok_or_else(|| {
                    Error::graph(
                        format!("{bytes} bytes of {} lie in several buffers", self.graph.tensor(tensor).name),
                        "read it from the store, or by ranges",
                    )
                })?;
                return Ok(Region { buffer: &shard.buffer, offset: offset + first - shard.offset, bytes });
            }
        };
        Ok(Region { buffer, offset: offset + first, bytes })
    }

    /// Where a tensor lies, and its bytes.
    fn place_of(&self, tensor: TensorId) -> Result<(Place, u64)> {
        let info = self.graph.tensor(tensor);
        let place = self.plan.place(tensor).ok_or_else(|| {
            Error::graph(
                format!("{} is not computed by this plan", info.name),
                "keep it, or something that depends on it",
            )
        })?;
        Ok((place, info.desc.bytes()))
    }

    pub(crate) fn region(&self, tensor: TensorId) -> Result<Region<'_>> {
        let (place, bytes) = self.place_of(tensor)?;
        self.region_at(place, 0, bytes)
    }

    /// Makes the staging buffers of the next step writable, waiting for the oldest step in flight if need be.
    fn prepare(&mut self) -> Result<()> {
        let Some(flight) = self.flights.get(self.next) else { return Ok(()) };
        if let Some(submitted) = &flight.submitted {
            self.device.poll()?;
            if !flight.ready(&self.device)? {
                Counters::count(&self.device.counters.throttles);
                self.device.wait(Some(submitted.last.clone()))?;
                let now = Instant::now();
                let before = self.busy_since.replace(now).filter(|_| self.flights.len() > 1);
                if let Some(before) = before {
                    self.pace.observe(now.duration_since(before));
                }
            } else {
                self.busy_since = None;
            }
        }
        flight.wait_for_callbacks(&self.device)?;
        self.collect(self.next)
    }

    /// Takes the results of a finished flight out of its staging buffer.
    fn collect(&mut self, index: usize) -> Result<()> {
        let unmapped = |error: wgpu::MapRangeError| self.device.cause(Error::gpu(error.to_string()));
        let taken = self.flights.get_mut(index).and_then(|flight| flight.submitted.take());
        let Some(Submitted { step, parts, .. }) = taken else { return Ok(()) };
        let flight = self.flights.get(index);
        let Some((buffer, _)) = flight.and_then(|flight| flight.download.as_ref()) else { return Ok(()) };
        let mut values = Vec::with_capacity(self.download_offsets.len());
        {
            let view = buffer.get_mapped_range(..).map_err(unmapped)?;
            for (&id, &offset) in self.graph.fetched().iter().zip(&self.download_offsets) {
                let desc = &self.graph.tensor(id).desc;
                let bytes = view.get(offset as usize..(offset + desc.bytes()) as usize).unwrap_or(&[]);
                values.push(HostTensor::from_bytes(desc, bytes)?);
            }
            let at = self.download_bytes as usize;
            self.check_receipt(step, parts, view.get(at..at + RECEIPT as usize))?;
        }
        buffer.unmap();
        self.finished.push_back(Finished { step, values });
        Ok(())
    }

    /// Sets an input of the next step.
    pub fn write(&mut self, input: TensorId, bytes: &[u8]) -> Result<()> {
        let info = self.graph.tensor(input);
        let (name, want) = (info.name.clone(), info.desc.bytes());
        let Some(Place::Input { offset }) = self.plan.place(input) else {
            return Err(Error::graph(
                format!("{name} is not an input"),
                "write persistent tensors in the store",
            ));
        };
        if bytes.len() as u64 != want {
            return Err(Error::graph(
                format!("input {name} {} takes {want} bytes; found {}", info.desc, bytes.len()),
                "write the whole tensor",
            ));
        }
        if self.written.values().all(|written| !written) {
            self.prepare()?;
        }
        let Some((buffer, _)) = self.flights.get(self.next).and_then(|flight| flight.upload.as_ref()) else {
            return Ok(());
        };
        let mut view = buffer
            .get_mapped_range_mut(offset..offset + want)
            .map_err(|error| self.device.cause(Error::gpu(error.to_string())))?;
        view.copy_from_slice(bytes);
        self.written.insert(input, true);
        Ok(())
    }

    /// Results of steps that have finished by now, oldest first. Does not wait.
    pub fn finished(&mut self) -> Result<Vec<Finished>> {
        self.device.poll()?;
        for offset in 0..self.flights.len() {
            // From the oldest flight on, so that results come in order.
            let index = (self.next + offset) % self.flights.len();
            let Some(flight) = self.flights.get(index) else { continue };
            if flight.submitted.is_some() {
                if !flight.ready(&self.device)? {
                    break;
                }
                self.collect(index)?;
            }
        }
        Ok(self.finished.drain(..).collect())
    }

    /// Waits for all steps in flight and returns their results, oldest first.
    pub fn flush(&mut self) -> Result<Vec<Finished>> {
        self.busy_since = None;
        self.device.finish()?;
        for flight in self.flights.iter().filter(|flight| flight.submitted.is_some()) {
            flight.wait_for_callbacks(&self.device)?;
        }
        self.finished()
    }

    /// Writes all inputs, runs one step, waits, and returns the fetched tensors.
    pub fn run(&mut self, inputs: &[(TensorId, &HostTensor)]) -> Result<Vec<HostTensor>> {
        for (id, value) in inputs {
            self.write(*id, &value.padded_bytes())?;
        }
        let step = self.step()?;
        let results = self.flush()?;
        Ok(results.into_iter().find(|done| done.step == step).map(|done| done.values).unwrap_or_default())
    }

    /// The first element of a tensor that is not finite, with its index; `None` where there is none or the elements are
    /// integers. Reads it in pieces, waiting for the GPU.
    pub(crate) fn find_nonfinite(&self, tensor: TensorId) -> Result<Option<(usize, f32)>> {
        const PIECE: u64 = 64 << 20;
        let (place, bytes) = self.place_of(tensor)?;
        let width = match self.graph.tensor(tensor).desc.dtype {
            DType::F32 => 4,
            DType::F16 => 2,
            DType::U32 => return Ok(None),
        };
        for first in (0..bytes).step_by(PIECE as usize) {
            let length = PIECE.min(bytes - first);
            let found = match place {
                Place::Persistent { tensor, offset } => {
                    let shards = self.persistent.get(&tensor).map_or(&[][..], Vec::as_slice);
                    read_shards(&self.device, shards, offset + first, length)?
                }
                _ => {
                    let region = self.region_at(place, first, length)?;
                    self.device.read(region.buffer, region.offset, region.bytes)?
                }
            };
            let values: Vec<f32> = if width == 2 {
                let values: Vec<half::f16> = bytemuck::pod_collect_to_vec(&found);
                values.into_iter().map(f32::from).collect()
            } else {
                bytemuck::pod_collect_to_vec(&found)
            };
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                let value = values.get(index).copied().unwrap_or(f32::NAN);
                return Ok(Some(((first / width) as usize + index, value)));
            }
        }
        Ok(None)
    }

    /// Reads a kept or persistent tensor back, waiting for the GPU.
    pub fn read(&self, tensor: TensorId) -> Result<HostTensor> {
        let (place, bytes) = self.place_of(tensor)?;
        let found = match place {
            Place::Persistent { tensor, offset } => {
                let shards = self.persistent.get(&tensor).map_or(&[][..], Vec::as_slice);
                read_shards(&self.device, shards, offset, bytes)?
            }
            _ => {
                let region = self.region_at(place, 0, bytes)?;
                self.device.read(region.buffer, region.offset, region.bytes)?
            }
        };
        HostTensor::from_bytes(&self.graph.tensor(tensor).desc, &found)
    }
}

fn spec_of(dispatch: &Dispatch) -> PipelineSpec<'_> {
    PipelineSpec { kernel: dispatch.kernel, half: dispatch.half, constants: &dispatch.constants }
}
