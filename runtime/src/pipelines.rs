//! Compiled kernels: a module for each shader, a pipeline for each kernel with given constants, made once.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use epl_shaders::Form;

use crate::counters::Counters;
use crate::emulate::rewritten;
use crate::kernel::{Access, Kernel};
use crate::pipeline_file::PipelineFile;
use crate::{Error, Result};

/// A compiled kernel with given constants.
#[derive(Debug)]
pub struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// What a pipeline is made of.
#[derive(Clone, Debug)]
pub(crate) struct PipelineSpec<'a> {
    pub kernel: &'static Kernel,
    /// Whether elements are stored in 16 bits.
    pub half: bool,
    pub constants: &'a [(&'static str, f64)],
}

/// The kernel, whether it stores elements in 16 bits, and its constants.
type PipelineKey = (usize, bool, Vec<(&'static str, u64)>);

impl PipelineSpec<'_> {
    fn key(&self) -> PipelineKey {
        let constants = self.constants.iter().map(|(name, value)| (*name, value.to_bits())).collect();
        (std::ptr::from_ref(self.kernel) as usize, self.half, constants)
    }
}

/// A shader's module, or why there is none; made by the first thread that asks.
type Module = Arc<OnceLock<Result<wgpu::ShaderModule>>>;

/// The pipelines of a device.
pub(crate) struct Pipelines {
    /// Keep wgpu's bounds and loop checks in the shaders, and have workgroup memory zeroed.
    checks: bool,
    /// Do without subgroups in kernels that need them.
    emulated: bool,
    modules: Mutex<HashMap<(&'static str, Form), Module>>,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    file: Option<PipelineFile>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while the lock was held leaves data that is still whole: each critical section is one insertion.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pipelines {
    pub fn new(checks: bool, emulated: bool, file: Option<PipelineFile>) -> Self {
        Self { checks, emulated, modules: Mutex::default(), pipelines: Mutex::default(), file }
    }

    /// The compiled form of `spec`, as it was compiled before where it was.
    pub fn get(
        &self,
        device: &wgpu::Device,
        counters: &Counters,
        spec: &PipelineSpec<'_>,
    ) -> Result<Arc<Pipeline>> {
        let key = spec.key();
        if let Some(pipeline) = lock(&self.pipelines).get(&key) {
            return Ok(pipeline.clone());
        }
        Counters::count(&counters.pipelines);
        let pipeline = Arc::new(self.compile(device, spec)?);
        lock(&self.pipelines).insert(key, pipeline.clone());
        Ok(pipeline)
    }

    /// Compiles what is missing of `specs`, on all cores, and keeps it on disk where there is a file for it.
    pub fn prepare<'a>(
        &self,
        device: &wgpu::Device,
        counters: &Counters,
        specs: impl Iterator<Item = PipelineSpec<'a>>,
        warn: &dyn Fn(&str),
    ) -> Result<()> {
        let mut seen = HashSet::new();
        let missing: Vec<PipelineSpec<'a>> = {
            let have = lock(&self.pipelines);
            specs.filter(|spec| seen.insert(spec.key()) && !have.contains_key(&spec.key())).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len());
        let next = AtomicUsize::new(0);
        let work = || -> Vec<(usize, Error)> {
            let mut failed = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(spec) = missing.get(index) else { return failed };
                if let Err(error) = self.get(device, counters, spec) {
                    failed.push((index, error));
                }
            }
        };
        let mut failed: Vec<(usize, Error)> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut failed = work();
            for other in others {
                match other.join() {
                    Ok(more) => failed.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            failed
        });
        // The first in the order of the plan, whichever thread met its error first.
        failed.sort_by_key(|(index, _)| *index);
        if let Some((_, error)) = failed.into_iter().next() {
            return Err(error);
        }
        if let Some(file) = &self.file {
            file.save(warn);
        }
        counters.compiled_since(started);
        Ok(())
    }

    fn module(&self, device: &wgpu::Device, spec: &PipelineSpec<'_>) -> Result<wgpu::ShaderModule> {
        let kernel = spec.kernel;
        let cell = lock(&self.modules).entry((kernel.shader, kernel.form(spec.half))).or_default().clone();
        cell.get_or_init(|| {
            let source = kernel
                .source_for(spec.half)
                .ok_or_else(|| Error::gpu(format!("shader {} is not in the table", kernel.shader)))?;
            let source = if self.emulated { rewritten(kernel, &source).into() } else { source };
            let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(kernel.shader),
                source: wgpu::ShaderSource::Wgsl(source),
            };
            let module = if self.checks {
                device.create_shader_module(descriptor)
            } else {
                // SAFETY: every kernel guards its own bounds and loops; the tests run all of them with the checks on
                // as well, and compare both with the reference.
                unsafe {
                    device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
                }
            };
            match pollster::block_on(scope.pop()) {
                None => Ok(module),
                Some(error) => Err(Error::gpu(format!("shader {}: {error}", kernel.shader))),
            }
        })
        .clone()
    }

    fn compile(&self, device: &wgpu::Device, spec: &PipelineSpec<'_>) -> Result<Pipeline> {
        let kernel = spec.kernel;
        let module = self.module(device, spec)?;
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let entry = |binding: u32, ty| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
            count: None,
        };
        let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform)];
        entries.extend(kernel.bindings.iter().zip(1..).map(|(binding, index)| {
            let read_only = binding.access == Access::Read;
            entry(index, wgpu::BufferBindingType::Storage { read_only })
        }));
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(kernel.shader),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.shader),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.shader),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: spec.constants,
                zero_initialize_workgroup_memory: self.checks,
            },
            cache: self.file.as_ref().map(PipelineFile::cache),
        });
        match pollster::block_on(scope.pop()) {
            None => Ok(Pipeline { pipeline, layout }),
            Some(error) => Err(Error::gpu(format!("kernel {}: {error}", kernel.shader))),
        }
    }
}
