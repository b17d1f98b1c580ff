//! The roofs of an adapter: what memory gives STREAM's triad (McCalpin, 1995), and what its arithmetic gives a kernel that only
//! multiplies and adds. A kernel's floor is the longer of its least bytes and its least FLOPs at these rates (Williams, Waterman and
//! Patterson, "Roofline", CACM 52(4), 2009).

use std::time::{Duration, Instant};

use super::launches;
use crate::Result;
use crate::device::Device;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::pipelines::PipelineSpec;

crate::param_block! {
    /// Parameters of `roof_triad.wgsl`.
    pub struct TriadParams {
        /// Vectors of four elements.
        len: u32,
        /// Vectors that one workgroup writes.
        per_workgroup: u32,
        /// What the second operand is multiplied by.
        factor: f32,
    }
}

crate::param_block! {
    /// Parameters of `roof_fma.wgsl`.
    pub struct MultiplyAddParams {
        /// Turns of the loop.
        rounds: u32,
        /// What every turn multiplies by.
        factor: f32,
        /// What every turn adds.
        addend: f32,
    }
}

pub(super) static TRIAD: Kernel = Kernel {
    shader: "roof_triad",
    entry: "main",
    params: TriadParams::FIELDS,
    bindings: &[read("a"), read("b"), write("y")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

pub(super) static MULTIPLY_ADD: Kernel = Kernel {
    shader: "roof_fma",
    entry: "main",
    params: MultiplyAddParams::FIELDS,
    bindings: &[write("y")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// Bytes of a tensor of the triad: more than the caches of today's GPUs hold.
const TENSOR: u64 = 256 << 20;
/// Vectors that one workgroup of the triad writes.
const PER_WORKGROUP: u32 = 1024;
/// Additions and multiplications of an invocation of `roof_fma.wgsl` in one turn.
const FLOPS_A_ROUND: u32 = 4 * 12 * 2;
const ROUNDS: u32 = 256;
/// How long launches are repeated in one submission, against which the time of submitting is nothing.
const SAMPLE: Duration = Duration::from_millis(100);
const SAMPLES: usize = 5;

/// What an adapter's f32 arithmetic and its memory give at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// f32 additions and multiplications a second, without a matrix unit.
    pub flops: f64,
    /// Bytes a second, read and written.
    pub bytes: f64,
}

impl Roof {
    /// The rates of `device`, the best of several tries. Takes about a second and 768 MiB, less where a buffer holds less.
    ///
    /// # Errors
    /// Where the device fails, or has not the memory.
    pub fn measure(device: &Device) -> Result<Self> {
        let caps = device.caps();
        // One subgroup of llvmpipe walks memory without gaps; see `docs/rejected-optimizations.md`.
        let workgroup = if caps.cpu { 8 } else { 256 };
        let constants = [("WORKGROUP", f64::from(workgroup))];
        let usage = wgpu::BufferUsages::STORAGE;

        let bytes = TENSOR.min(caps.max_binding_bytes).min(caps.max_buffer_bytes) / 16 * 16;
        let tensor = || device.buffer("roof", bytes, usage);
        let (a, b, y) = (tensor()?, tensor()?, tensor()?);
        let params = TriadParams { len: (bytes / 16) as u32, per_workgroup: PER_WORKGROUP, factor: 0.5 };
        let groups = params.len.div_ceil(PER_WORKGROUP);
        let wide = groups.min(caps.max_grid);
        let spec = PipelineSpec { kernel: &TRIAD, half: false, constants: &constants };
        let grid = [wide, groups.div_ceil(wide), 1];
        let seconds = fastest(device, &spec, bytemuck::bytes_of(&params), &[&a, &b, &y], grid)?;
        let bytes = 3.0 * bytes as f64 / seconds;

        let groups = if caps.cpu { 1024 } else { 4096 };
        let invocations = groups * workgroup;
        let y = device.buffer("roof: sums", u64::from(invocations) * 4, usage)?;
        // The chains converge to 2, so nothing overflows.
        let params = MultiplyAddParams { rounds: ROUNDS, factor: 0.5, addend: 1.0 };
        let spec = PipelineSpec { kernel: &MULTIPLY_ADD, half: false, constants: &constants };
        let seconds = fastest(device, &spec, bytemuck::bytes_of(&params), &[&y], [groups, 1, 1])?;
        let flops = f64::from(invocations) * f64::from(FLOPS_A_ROUND * ROUNDS) / seconds;
        Ok(Self { flops, bytes })
    }

    /// Seconds below which so many FLOPs and bytes cannot be had at these rates.
    pub fn floor(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops).max(bytes / self.bytes)
    }

    /// Whether it is the memory that they wait for.
    pub fn memory_bound(&self, flops: f64, bytes: f64) -> bool {
        bytes / self.bytes >= flops / self.flops
    }
}

/// Seconds of one launch: the shortest of several samples, each of as many launches as take a while.
fn fastest(
    device: &Device,
    spec: &PipelineSpec<'_>,
    params: &[u8],
    buffers: &[&wgpu::Buffer],
    grid: [u32; 3],
) -> Result<f64> {
    let sample = |times: u32| -> Result<f64> {
        let encoder = launches(device, spec, params, buffers, grid, times)?;
        device.finish()?;
        let started = Instant::now();
        device.submit(encoder)?;
        device.finish()?;
        Ok(started.elapsed().as_secs_f64())
    };
    // The first one compiles, and touches memory for the first time.
    sample(1)?;
    let once = sample(1)?.max(1e-6);
    let times = (SAMPLE.as_secs_f64() / once).ceil().clamp(1.0, 1000.0) as u32;
    let mut best = f64::INFINITY;
    for _ in 0..SAMPLES {
        best = best.min(sample(times)? / f64::from(times));
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceOptions;

    #[test]
    fn the_floor_is_what_takes_longer() {
        let roof = Roof { flops: 100.0, bytes: 10.0 };
        assert_eq!((roof.floor(100.0, 20.0), roof.memory_bound(100.0, 20.0)), (2.0, true));
        assert_eq!((roof.floor(300.0, 20.0), roof.memory_bound(300.0, 20.0)), (3.0, false));
    }

    #[test]
    fn the_kernels_do_the_work_that_is_counted() {
        let device = Device::open(&DeviceOptions::default()).unwrap();
        let constants = [("WORKGROUP", 8.0)];
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let (x, y) = (device.buffer("x", 80, usage).unwrap(), device.buffer("y", 80, usage).unwrap());
        let numbers: Vec<f32> = (0..20).map(|n| n as f32).collect();
        device.queue.write_buffer(&x, 0, bytemuck::cast_slice(&numbers));
        let run = |kernel, params: &[u8], buffers: &[&wgpu::Buffer], grid: u32| {
            let spec = PipelineSpec { kernel, half: false, constants: &constants };
            device.submit(launches(&device, &spec, params, buffers, [grid, 1, 1], 1).unwrap()).unwrap();
            let bytes = device.read(&y, 0, 80).unwrap();
            bytemuck::pod_collect_to_vec::<u8, f32>(&bytes)
        };
        let params = TriadParams { len: 5, per_workgroup: 2, factor: 2.0 };
        let sums = run(&TRIAD, bytemuck::bytes_of(&params), &[&x, &x, &y], 3);
        assert_eq!(sums, numbers.iter().map(|number| 3.0 * number).collect::<Vec<_>>());
        // With a factor of 1 every link adds 1: four to each of the 12 chains a turn, which began at index, 1, .. 3, + 4, + 8.
        let params = MultiplyAddParams { rounds: 3, factor: 1.0, addend: 1.0 };
        let sums = run(&MULTIPLY_ADD, bytemuck::bytes_of(&params), &[&y], 3);
        let begin = |index: f32| 3.0 * (index + 6.0) + 4.0 * (4.0 + 8.0);
        let links = (FLOPS_A_ROUND / 2 * 3) as f32;
        assert_eq!(sums, (0..20).map(|index| begin(index as f32) + links).collect::<Vec<_>>());
    }
}
