//! The GPU: choice of adapter, limits, features, buffers and pipelines. Knows kernels, no ops.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use crate::adapters::{AdapterDescription, adapters};
use crate::adapters::{caps_of, choose, describe, enumerate};
use crate::caps::{Caps, MatrixSides, SubgroupSizes};
use crate::counters::{CounterSnapshot, Counters};
use crate::faults::{Faults, Operation};
use crate::features::Feature;
use crate::guard::guarded;
use crate::health::Health;
use crate::pipeline_file::{PipelineFile, kernel_fingerprint};
use crate::pipelines::{Pipeline, PipelineSpec, Pipelines};
use crate::probe::matrix_unit;
use crate::reopen::Reopener;
use crate::{Error, Result};

/// How long a device may finish nothing of what it has been given before it is taken for dead.
const WAIT_LIMIT: Duration = Duration::from_secs(600);

/// How long the callbacks of work that is done may take: a thread that runs them may have to wait for its turn.
pub(crate) const CALLBACK_LIMIT: Duration = Duration::from_secs(60);

/// How long a submission should take at most: a quarter of what Windows allows before it resets a GPU.
pub(crate) const LONGEST_SUBMISSION: Duration = Duration::from_millis(500);

/// Bytes of the token of a read.
const TOKEN: u64 = 8;

/// How to open a device.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    /// Part of the adapter's name (any case), or its index in [`adapters`]. `None` takes the best one.
    pub select: Option<String>,
    /// Keep wgpu's bounds and loop checks in the shaders. Tests run with and without; training runs without.
    pub shader_checks: bool,
    /// Use WebGPU's default limits and no optional feature, whatever the adapter offers.
    pub webgpu_limits: bool,
    /// On a CPU adapter, choose the kernels, tiles and splits of a GPU. For testing them where there is none.
    pub gpu_kernels: bool,
    /// Do as if the adapter had subgroups of these sizes: kernels whose workgroup is one subgroup are rewritten to do without. For
    /// testing sizes that no adapter here has.
    pub emulate_subgroups: Option<SubgroupSizes>,
    /// Optional features that are left alone, whether the adapter has them or not.
    pub without: Vec<Feature>,
    /// Do as if a binding held no more than this many bytes. For testing tensors that take several.
    pub max_binding_bytes: Option<u64>,
    /// Do as if a buffer held no more than this many bytes. For testing tensors that take several.
    pub max_buffer_bytes: Option<u64>,
    /// How long a device may finish nothing of what it has been given before it is taken for dead: ten minutes by default. For
    /// testing what happens then.
    pub wait_limit: Option<Duration>,
    /// Do as if there were no more than this many bytes of memory for buffers. For testing what happens without.
    pub max_memory_bytes: Option<u64>,
    /// The folder in which compiled kernels are kept between processes; `None` for nowhere.
    pub cache: Option<PathBuf>,
    /// Gets a line about whatever is wrong with that folder, which is never an error.
    pub warnings: Option<fn(&str)>,
    /// Losses of the device that are brought about. For testing what happens then.
    pub faults: Option<Arc<Faults>>,
    /// How long a submission should take at most, where that is less than what a session is told: half a second by default.
    pub longest_submission: Option<Duration>,
}

impl DeviceOptions {
    /// Whether a feature is to be used where the adapter has it.
    pub(crate) fn allows(&self, feature: Feature) -> bool {
        let without = |feature| self.webgpu_limits || self.without.contains(&feature);
        // What is emulated stands for an adapter of its own, and matrices need subgroups that are none here.
        if self.emulate_subgroups.is_some() && [Feature::Subgroups, Feature::Matrices].contains(&feature) {
            return false;
        }
        !without(feature) && (feature != Feature::Matrices || !without(Feature::Subgroups))
    }

    fn warn(&self, line: &str) {
        if let Some(warn) = self.warnings {
            warn(line);
        }
    }
}

/// An open GPU.
pub struct Device {
    description: AdapterDescription,
    caps: Caps,
    options: DeviceOptions,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) counters: Counters,
    timestamps: bool,
    pipelines: Pipelines,
    fingerprint: String,
    health: Arc<Health>,
    /// Submissions that are done.
    finished: Arc<AtomicU64>,
    /// A token that is read back behind everything else that is read, to know that all of it was copied.
    token: wgpu::Buffer,
    /// Whether something was written of which is not known that it arrived. Held while anything is written or submitted, so
    /// that no thread's submission carries what another one has written and not yet proved.
    unsettled: Mutex<bool>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.description.name)
    }
}

impl Device {
    /// Opens the adapter that `options` name. Its matrix unit is tested, and used only if it passes.
    pub fn open(options: &DeviceOptions) -> Result<Arc<Self>> {
        let (index, adapter) = choose(enumerate(None), options.select.as_deref())?;
        let claimed = if options.allows(Feature::Matrices) {
            matrix_unit::claimed(&adapter, options.allows(Feature::F16))
        } else {
            MatrixSides::default()
        };
        let mut device = Self::open_adapter(options, index, &adapter, claimed != MatrixSides::default())?;
        let widest = device.caps.subgroups.map(|sizes| sizes.max);
        if let Some(subgroup) = widest.filter(|_| claimed != MatrixSides::default()) {
            match matrix_unit::tested(&device, claimed, subgroup, &|line| options.warn(line)) {
                Ok(sides) => device.caps.matrices = sides,
                Err(error @ Error::DeviceLost { .. }) => return Err(error),
                Err(error) => {
                    options.warn(&format!("cooperative matrices are not used: {error}"));
                    // What a driver that failed once does next is anybody's guess.
                    let (index, adapter) = choose(enumerate(None), options.select.as_deref())?;
                    device = Self::open_adapter(options, index, &adapter, false)?;
                }
            }
        }
        Ok(Arc::new(device))
    }

    fn open_adapter(
        options: &DeviceOptions,
        index: usize,
        adapter: &wgpu::Adapter,
        matrices: bool,
    ) -> Result<Self> {
        let description = describe(index, adapter);
        let mut caps = caps_of(adapter, options);
        caps.cpu &= !options.gpu_kernels;
        caps.max_buffer_bytes = caps.max_buffer_bytes.min(options.max_buffer_bytes.unwrap_or(u64::MAX));
        caps.max_binding_bytes = caps.max_binding_bytes.min(options.max_binding_bytes.unwrap_or(u64::MAX));
        let wanted = Feature::ALL
            .into_iter()
            .filter(|&feature| options.allows(feature) && (feature != Feature::Matrices || matrices));
        let features = wanted.fold(wgpu::Features::empty(), |all, feature| all | feature.wgpu());
        // SAFETY: the one experimental feature is that of cooperative matrices, whose kernels are compared with references
        // like all others, and which is used where the adapter passes a test of its own.
        let experimental_features = unsafe { wgpu::ExperimentalFeatures::enabled() };
        let features = features & adapter.features();
        let limits = if options.webgpu_limits { wgpu::Limits::default() } else { adapter.limits() };
        let request = wgpu::DeviceDescriptor {
            label: Some("epl"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&request))
            .map_err(|error| Error::gpu(format!("{}: {error}", description.name)))?;
        let health = Arc::new(Health::default());
        let noted = health.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| noted.refuse(error.to_string())));
        let noted = health.clone();
        device.set_device_lost_callback(move |reason, text| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                noted.lose(text);
            }
        });
        let token = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("token"),
            size: TOKEN,
            usage: wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let used = format!("{features:?} {limits:?}");
        let fingerprint =
            kernel_fingerprint(&description.name, &description.backend, &description.driver, &used);
        let file = options.cache.as_ref().filter(|_| features.contains(wgpu::Features::PIPELINE_CACHE)).map(
            |folder| {
                let vendor = wgpu::util::pipeline_cache_key(&adapter.get_info()).unwrap_or_default();
                PipelineFile::open(&device, folder, &fingerprint, &vendor, &|line| options.warn(line))
            },
        );
        Ok(Self {
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            description,
            caps,
            options: options.clone(),
            device,
            queue,
            counters: Counters::default(),
            pipelines: Pipelines::new(options.shader_checks, options.emulate_subgroups.is_some(), file),
            fingerprint,
            health,
            finished: Arc::default(),
            token,
            unsettled: Mutex::default(),
        })
    }

    /// The adapter.
    pub fn description(&self) -> &AdapterDescription {
        &self.description
    }

    /// Names everything that compiled kernels and their speed depend on: adapter, driver, the features and limits in
    /// use, versions and shaders.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The folder in which compiled kernels are kept, and where measurements of them belong.
    pub fn cache_folder(&self) -> Option<&Path> {
        self.options.cache.as_deref()
    }

    /// What ops may rely on.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// What has been created, submitted and waited for so far.
    pub fn counters(&self) -> CounterSnapshot {
        self.counters.snapshot()
    }

    /// How long the host has waited for the device so far, or handed work to it.
    pub fn waited(&self) -> Duration {
        Duration::from_nanos(self.counters.snapshot().waited_nanoseconds)
    }

    /// wgpu's own count of live objects: (buffers, bind groups, device memory allocations).
    pub fn live_objects(&self) -> (isize, isize, isize) {
        let hal = self.device.get_internal_counters().hal;
        (hal.buffers.read(), hal.bind_groups.read(), hal.memory_allocations.read())
    }

    /// Whether kernels can be timed by the GPU's own clock.
    pub fn has_timestamps(&self) -> bool {
        self.timestamps
    }

    /// The first error that wgpu or the driver reported outside a call that returns one.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] from the moment on at which a loss is noticed, [`Error::Gpu`] for anything else.
    pub fn check(&self) -> Result<()> {
        self.health.check()
    }

    /// How the device was lost, if it was.
    pub fn lost(&self) -> Option<String> {
        self.health.lost()
    }

    /// What `error` comes from, where the device is lost.
    pub(crate) fn cause(&self, error: Error) -> Error {
        self.health.cause(error)
    }

    /// What it takes to open another device in the place of this one, when it is gone.
    pub fn reopener(&self) -> Reopener {
        Reopener::new(self.description.clone(), self.options.clone())
    }

    /// Whether it was lost because it did not answer. The end of such a device waits for it without a limit: it is better
    /// [discarded](crate::guard::discard).
    pub fn is_hung(&self) -> bool {
        self.health.is_hung()
    }

    /// Takes the device for lost.
    pub(crate) fn lose(&self, how: String) {
        self.health.lose(how);
    }

    /// Says what the program is at from now on, for [`Faults`]. Returns what it was at.
    pub fn enter(&self, phase: &'static str) -> &'static str {
        self.options.faults.as_ref().map_or("", |faults| faults.enter(phase))
    }

    /// Tells whoever listens to [`DeviceOptions::warnings`].
    pub(crate) fn warn(&self, line: &str) {
        self.options.warn(line);
    }

    /// Loses the device where a test has asked for that.
    fn at(&self, operation: Operation) {
        if let Some(how) = self.options.faults.as_ref().and_then(|faults| faults.due(operation)) {
            self.health.lose(how);
            self.device.destroy();
        }
    }

    /// Bytes of device memory that buffers take now, as wgpu counts them.
    pub fn buffer_bytes(&self) -> u64 {
        u64::try_from(self.device.get_internal_counters().hal.buffer_memory.read()).unwrap_or(0)
    }

    fn out_of_memory(&self, label: &str, bytes: u64) -> Error {
        let (device, allocated) = (self.description.name.clone(), self.buffer_bytes());
        Error::OutOfMemory { device, label: label.into(), bytes, allocated }
    }

    pub(crate) fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        if bytes > self.caps.max_buffer_bytes {
            return Err(Error::Limit {
                what: format!(
                    "{label} needs {bytes} bytes; {} allows {} a buffer",
                    self.description.name, self.caps.max_buffer_bytes
                ),
                hint: "use a smaller batch, or another device".into(),
            });
        }
        if self
            .options
            .max_memory_bytes
            .is_some_and(|most| self.buffer_bytes() + self.caps.buffer_bytes(bytes) > most)
        {
            return Err(self.out_of_memory(label, bytes));
        }
        self.at(Operation::Buffer);
        Counters::count(&self.counters.buffers);
        let descriptor = wgpu::BufferDescriptor {
            label: Some(label),
            size: self.caps.buffer_bytes(bytes),
            usage,
            mapped_at_creation: false,
        };
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&descriptor);
        match pollster::block_on(scope.pop()) {
            // On a device that is lost wgpu makes a buffer that is none, and says so nowhere.
            None => self.check().map(|()| buffer),
            Some(_) => Err(self.cause(self.out_of_memory(label, bytes))),
        }
    }

    pub(crate) fn longest_submission(&self) -> Duration {
        self.options.longest_submission.unwrap_or(LONGEST_SUBMISSION)
    }

    /// Binds resources in the order of a kernel's bindings.
    pub(crate) fn bind_group(
        &self,
        label: &str,
        layout: &wgpu::BindGroupLayout,
        resources: &[wgpu::BindingResource<'_>],
    ) -> Result<wgpu::BindGroup> {
        Counters::count(&self.counters.bind_groups);
        let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
            .zip(resources)
            .map(|(binding, resource)| wgpu::BindGroupEntry { binding, resource: resource.clone() })
            .collect();
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let descriptor = wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries };
        let group = self.device.create_bind_group(&descriptor);
        match pollster::block_on(scope.pop()) {
            None => Ok(group),
            Some(error) => Err(self.cause(Error::gpu(format!("bindings of kernel {label}: {error}")))),
        }
    }

    /// The compiled form of a kernel, as it was compiled before where it was.
    pub(crate) fn pipeline(&self, spec: &PipelineSpec<'_>) -> Result<Arc<Pipeline>> {
        self.at(Operation::Pipeline);
        self.pipelines.get(&self.device, &self.counters, spec).map_err(|error| self.cause(error))
    }

    /// Compiles what is missing of `specs`, on all cores.
    pub(crate) fn prepare<'a>(&self, specs: impl Iterator<Item = PipelineSpec<'a>>) -> Result<()> {
        self.at(Operation::Pipeline);
        let warn = |line: &str| self.options.warn(line);
        self.pipelines
            .prepare(&self.device, &self.counters, specs, &warn)
            .map_err(|error| self.cause(error))?;
        self.check()
    }

    /// Hands work over, once all that was written before is known to have arrived.
    pub(crate) fn submit(&self, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        let mut unsettled = self.uploads();
        self.settle_with(&mut unsettled)?;
        self.submit_now(encoder)
    }

    fn uploads(&self) -> MutexGuard<'_, bool> {
        // What a panic leaves behind is a flag.
        self.unsettled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit_now(&self, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        Counters::count(&self.counters.submits);
        let commands = encoder.finish();
        self.at(Operation::Submit);
        let started = Instant::now();
        let index = self.queue.submit([commands]);
        let finished = self.finished.clone();
        self.queue.on_submitted_work_done(move || {
            finished.fetch_add(1, Ordering::Relaxed);
        });
        // A driver may run the work right there, as llvmpipe does, and a full queue blocks.
        self.counters.waited_since(started);
        self.at(Operation::Submitted);
        self.check()?;
        Ok(index)
    }

    /// Runs callbacks of finished work without waiting.
    pub(crate) fn poll(&self) -> Result<()> {
        self.polled(wgpu::PollType::Poll)
    }

    /// Waits until `submission` (or everything) is done.
    pub(crate) fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let started = Instant::now();
        let waited = self
            .polled(wgpu::PollType::Wait { submission_index: submission, timeout: Some(self.wait_limit()) });
        self.counters.waited_since(started);
        waited
    }

    /// See [`DeviceOptions::max_memory_bytes`].
    pub(crate) fn max_memory_bytes(&self) -> Option<u64> {
        self.options.max_memory_bytes
    }

    fn wait_limit(&self) -> Duration {
        self.options.wait_limit.unwrap_or(WAIT_LIMIT)
    }

    fn polled(&self, how: wgpu::PollType) -> Result<()> {
        self.at(Operation::Poll);
        // wgpu panics where it polls a device that the driver has lost, so one is not polled again.
        self.check()?;
        loop {
            let before = self.finished.load(Ordering::Relaxed);
            match guarded(|| self.device.poll(how.clone())) {
                Ok(Ok(_)) => {}
                // It is slow, and not dead.
                Ok(Err(wgpu::PollError::Timeout)) if self.finished.load(Ordering::Relaxed) != before => {
                    continue;
                }
                Ok(Err(wgpu::PollError::Timeout)) => {
                    let limit = self.wait_limit().as_secs();
                    self.health.hang(format!("it has finished nothing of what it was given for {limit} s"));
                }
                Ok(Err(error)) => return Err(Error::gpu(error.to_string())),
                Err(panic) => self.health.lose(panic),
            }
            return self.check();
        }
    }

    /// Writes `bytes` to a buffer, before all that is submitted from now on. Whether they arrived is known after
    /// [`Device::settle`].
    pub(crate) fn write(&self, label: &str, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut unsettled = self.uploads();
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        self.queue.write_buffer(buffer, offset, bytes);
        if pollster::block_on(scope.pop()).is_some() {
            // wgpu gives the device up over it, which is no cause.
            return Err(self.out_of_memory(&format!("an upload of {label}"), bytes.len() as u64));
        }
        *unsettled = true;
        Ok(())
    }

    /// Waits until what was written to tensors and parameter blocks has arrived, where that is not known: it is handed over in a
    /// submission of its own, of whose failure not every backend tells. What is read behind it is proof. Whatever is submitted
    /// next does so by itself.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] where it did not arrive.
    pub fn settle(&self) -> Result<()> {
        self.settle_with(&mut self.uploads())
    }

    fn settle_with(&self, unsettled: &mut MutexGuard<'_, bool>) -> Result<()> {
        if **unsettled {
            // No other thread goes on meanwhile, without the proof.
            let read = self.begin_read(&[], 0, unsettled)?;
            self.end_read(&read)?;
            **unsettled = false;
        }
        Ok(())
    }

    /// Waits for everything submitted or written so far. Counted.
    pub fn finish(&self) -> Result<()> {
        self.settle()?;
        // A submission without commands carries pending writes, whose staging memory is free again when they are done.
        self.queue.submit([]);
        Counters::count(&self.counters.waits);
        self.wait(None)
    }

    /// Reads a range of a buffer back, waiting for the GPU.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        // Behind what is read there is a token, and together they are no more than a buffer holds.
        let most = (self.caps.max_buffer_bytes.saturating_sub(TOKEN) / 4 * 4).max(4);
        let size = bytes.next_multiple_of(4);
        let mut data = Vec::with_capacity(size as usize);
        for first in (0..size).step_by(most as usize) {
            let length = most.min(size - first);
            data.extend_from_slice(&self.read_parts(&[(buffer, offset + first)], length)?);
        }
        data.truncate(bytes as usize);
        Ok(data)
    }

    /// Reads `bytes` bytes (a multiple of 4) from each of several places back, one after the other, in one wait for the GPU.
    pub(crate) fn read_parts(&self, parts: &[(&wgpu::Buffer, u64)], bytes: u64) -> Result<Vec<u8>> {
        let read = self.begin_read(parts, bytes, &self.uploads())?;
        self.end_read(&read)
    }

    /// Has the places copied, and a token behind them.
    fn begin_read(
        &self,
        parts: &[(&wgpu::Buffer, u64)],
        bytes: u64,
        _held: &MutexGuard<'_, bool>,
    ) -> Result<Read> {
        // One that another device has used may be found in memory that is used again.
        static READS: AtomicU64 = AtomicU64::new(1);
        self.at(Operation::Read);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let all = bytes * parts.len() as u64;
        let staging = self.buffer("read back", all + TOKEN, usage)?;
        let token = READS.fetch_add(1, Ordering::Relaxed).to_le_bytes();
        self.queue.write_buffer(&self.token, 0, &token);
        let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        for (&(buffer, offset), index) in parts.iter().zip(0..) {
            encoder.copy_buffer_to_buffer(buffer, offset, &staging, index * bytes, bytes);
        }
        encoder.copy_buffer_to_buffer(&self.token, 0, &staging, all, TOKEN);
        Ok(Read { submission: self.submit_now(encoder)?, staging, token, bytes: all })
    }

    /// Waits for what was copied.
    fn end_read(&self, read: &Read) -> Result<Vec<u8>> {
        let Read { staging, token, bytes, .. } = read;
        let (sender, receiver) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only if this function has already failed.
            drop(sender.send(result));
        });
        Counters::count(&self.counters.waits);
        self.wait(Some(read.submission.clone()))?;
        // A thread that polls the same device takes the callbacks of all, and may not have come to this one yet.
        match receiver.recv_timeout(CALLBACK_LIMIT) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(self.cause(Error::gpu(error.to_string()))),
            Err(error) => return Err(self.cause(Error::gpu(error.to_string()))),
        }
        let view = staging.get_mapped_range(..).map_err(|error| self.cause(Error::gpu(error.to_string())))?;
        let mut data = view.to_vec();
        if data.get(*bytes as usize..(bytes + TOKEN) as usize) != Some(&token[..]) {
            self.lose("it has not copied all that was to be read, and did not say so".into());
        }
        data.truncate(*bytes as usize);
        // What was read from a device that went away meanwhile is nothing to rely on.
        self.check().map(|()| data)
    }
}

/// A read that is under way.
struct Read {
    submission: wgpu::SubmissionIndex,
    staging: wgpu::Buffer,
    token: [u8; TOKEN as usize],
    /// Without the token.
    bytes: u64,
}
