//! The roofs of an adapter: what memory gives STREAM's triad (McCalpin, 1995), what its arithmetic gives a kernel that only
//! multiplies and adds, and what its matrix unit gives one that only multiplies matrices. A kernel's floor is the longer of its least bytes and its least FLOPs at these rates (Williams, Waterman and
//! Patterson, "Roofline", CACM 52(4), 2009).

use std::time::{Duration, Instant};

use super::launches;
use crate::Result;
use crate::device::Device;
use crate::dtype::DType;
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

crate::param_block! {
    /// Parameters of `roof_matrix.wgsl`.
    pub struct MatrixParams {
        /// Turns of the loop.
        rounds: u32,
        /// All elements of both factors.
        factor: f32,
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

pub(super) static MATRICES_8: Kernel = MATRICES_KERNEL;

pub(super) static MATRICES_16: Kernel = Kernel { needs: Needs::Matrices(16), ..MATRICES_KERNEL };

const MATRICES_KERNEL: Kernel = Kernel {
    shader: "roof_matrix",
    entry: "main",
    params: MatrixParams::FIELDS,
    bindings: &[write("y"), write("subgroups")],
    constants: &["WORKGROUP"],
    needs: Needs::Matrices(8),
};

/// Bytes of a tensor of the triad: more than the caches of today's GPUs hold.
const TENSOR: u64 = 256 << 20;
/// Vectors that one workgroup of the triad writes.
const PER_WORKGROUP: u32 = 1024;
/// Additions and multiplications of an invocation of `roof_fma.wgsl` in one turn.
const FLOPS_A_ROUND: u32 = 4 * 12 * 2;
const ROUNDS: u32 = 256;
/// Subgroups of a workgroup of `roof_matrix.wgsl`, where they are as wide as they can be, its workgroups, sums and turns.
const MATRIX_JOBS: u32 = 4;
const MATRIX_GROUPS: u32 = 2048;
const MATRIX_SUMS: u32 = 8;
const MATRIX_ROUNDS: u32 = 1024;
/// How long launches are repeated in one submission, against which the time of submitting is nothing.
const SAMPLE: Duration = Duration::from_millis(100);
const SAMPLES: usize = 5;

/// What an adapter's f32 arithmetic, its memory and its matrix unit give at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roof {
    /// f32 additions and multiplications a second, without a matrix unit.
    pub flops: f64,
    /// Bytes a second, read and written.
    pub bytes: f64,
    /// Additions and multiplications a second of the matrix unit, where there is one that kernels use.
    pub matrices: MatrixFlops,
}

/// Additions and multiplications a second of a matrix unit, by the type of what is multiplied; sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MatrixFlops {
    /// For f32.
    pub f32: Option<f64>,
    /// For f16.
    pub f16: Option<f64>,
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
        let matrices =
            MatrixFlops { f32: matrix_flops(device, DType::F32)?, f16: matrix_flops(device, DType::F16)? };
        Ok(Self { flops, bytes, matrices })
    }

    /// The roof of kernels that multiply matrices of `element` in the matrix unit; with `None` that of all others.
    pub fn of_unit(self, element: Option<DType>) -> Self {
        let unit = match element {
            Some(DType::F32) => self.matrices.f32,
            Some(DType::F16) => self.matrices.f16,
            Some(DType::U32) | None => None,
        };
        Self { flops: unit.map_or(self.flops, |unit| unit.max(self.flops)), ..self }
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

/// What the matrix unit gives products of `element`; `None` where the adapter has none whose products are right.
fn matrix_flops(device: &Device, element: DType) -> Result<Option<f64>> {
    let caps = device.caps();
    let (Some(side), Some(sizes)) = (caps.matrix_side(element), caps.subgroups) else { return Ok(None) };
    let workgroup = (sizes.max * MATRIX_JOBS).min(caps.max_invocations);
    let kernel = if side == 16 { &MATRICES_16 } else { &MATRICES_8 };
    let constants = [("WORKGROUP", f64::from(workgroup))];
    let spec = PipelineSpec { kernel, half: element == DType::F16, constants: &constants };
    let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let bytes = [u64::from(MATRIX_GROUPS * workgroup) * 4, u64::from(MATRIX_GROUPS) * 4];
    let y = device.buffer("roof: sums", bytes[0], usage)?;
    let subgroups = device.buffer("roof: subgroups", bytes[1], usage)?;
    // Sums of whole numbers up to 2^14, which f32 holds.
    let params = MatrixParams { rounds: MATRIX_ROUNDS, factor: 1.0 };
    let grid = [MATRIX_GROUPS, 1, 1];
    let seconds = fastest(device, &spec, bytemuck::bytes_of(&params), &[&y, &subgroups], grid)?;
    let wrong = bytemuck::pod_collect_to_vec::<u8, f32>(&device.read(&y, 0, bytes[0])?);
    let counts = bytemuck::pod_collect_to_vec::<u8, u32>(&device.read(&subgroups, 0, bytes[1])?);
    Ok(matrix_work(side, &wrong, &counts).map(|flops| flops / seconds))
}

/// FLOPs of a launch in which so many subgroups of each workgroup took part; `None` where an element is not what it should be.
fn matrix_work(side: u32, wrong: &[f32], subgroups: &[u32]) -> Option<f64> {
    let right = wrong.iter().all(|&wrong| wrong == 0.0) && subgroups.iter().all(|&count| count > 0);
    let products = f64::from(MATRIX_SUMS) * f64::from(MATRIX_ROUNDS);
    let subgroups: f64 = subgroups.iter().map(|&count| f64::from(count)).sum();
    right.then(|| subgroups * products * 2.0 * f64::from(side).powi(3))
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
        let matrices = MatrixFlops { f32: None, f16: Some(400.0) };
        let roof = Roof { flops: 100.0, bytes: 10.0, matrices };
        assert_eq!((roof.floor(100.0, 20.0), roof.memory_bound(100.0, 20.0)), (2.0, true));
        assert_eq!((roof.floor(300.0, 20.0), roof.memory_bound(300.0, 20.0)), (3.0, false));
    }

    #[test]
    fn what_multiplies_matrices_is_held_against_their_unit() {
        let matrices = MatrixFlops { f32: None, f16: Some(400.0) };
        let roof = Roof { flops: 100.0, bytes: 10.0, matrices };
        assert_eq!(roof.of_unit(None), roof);
        assert_eq!(roof.of_unit(Some(DType::F32)), roof);
        let unit = roof.of_unit(Some(DType::F16));
        assert_eq!((unit.floor(400.0, 5.0), unit.memory_bound(400.0, 5.0)), (1.0, false));
    }

    #[test]
    fn products_of_matrices_count_where_they_are_right() {
        let product = f64::from(2 * 16 * 16 * 16 * MATRIX_SUMS * MATRIX_ROUNDS);
        assert_eq!(matrix_work(16, &[0.0; 6], &[4, 2]), Some(6.0 * product));
        for wrong in [1.0, f32::NAN] {
            assert_eq!(matrix_work(16, &[0.0, wrong], &[4, 2]), None);
        }
        // A launch that never ran.
        assert_eq!(matrix_work(8, &[0.0; 6], &[0, 0]), None);
        let text = MATRICES_8.source().unwrap();
        for constant in [format!("SUMS: u32 = {MATRIX_SUMS}u"), format!("JOBS: u32 = {MATRIX_JOBS}u")] {
            assert!(text.contains(&constant), "{constant}");
        }
        assert_eq!(text.matches("= coopMultiplyAdd(").count(), MATRIX_SUMS as usize);
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
