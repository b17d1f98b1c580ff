//! Whether an adapter's matrix unit does what the kernels on cooperative matrices rely on. Drivers list shapes and types; what they
//! make of strides, of reading by columns, and of several subgroups at once is tried before any of it is used.

use crate::Result;
use crate::caps::MatrixSides;
use crate::device::Device;
use crate::dtype::DType;
use crate::kernel::{Kernel, Needs, ParamBlock, write};
use crate::pipelines::PipelineSpec;

crate::param_block! {
    /// Parameters of `cooperative_test.wgsl`.
    pub struct TestParams {
        /// Which numbers are multiplied.
        seed: u32,
    }
}

static TEST_8: Kernel = TEST_KERNEL;

static TEST_16: Kernel = Kernel { needs: Needs::Matrices(16), ..TEST_KERNEL };

const TEST_KERNEL: Kernel = Kernel {
    shader: "cooperative_test",
    entry: "main",
    params: TestParams::FIELDS,
    bindings: &[write("result")],
    constants: &["WORKGROUP"],
    needs: Needs::Matrices(8),
};

/// The kernels of this file, which belong to no op.
pub static KERNELS: [&Kernel; 2] = [&TEST_8, &TEST_16];

/// Matrices of the test, each a subgroup's.
const JOBS: usize = 2;

/// The shapes that `adapter` claims to have: 16 x 16 on Vulkan before 8 x 8, since large matrices are what its units multiply.
pub(crate) fn claimed(adapter: &wgpu::Adapter) -> MatrixSides {
    use wgpu::CooperativeScalarType as Scalar;
    let features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SUBGROUP;
    if !adapter.features().contains(features) {
        return MatrixSides::default();
    }
    let properties = adapter.cooperative_matrix_properties();
    let has = |side: u32, element: Scalar| {
        properties.iter().any(|p| {
            [p.m_size, p.n_size, p.k_size] == [side; 3] && p.ab_type == element && p.cr_type == Scalar::F32
        })
    };
    // naga writes 16 x 16 for Metal as well, which has no such type.
    let vulkan = adapter.get_info().backend == wgpu::Backend::Vulkan;
    let half = adapter.features().contains(wgpu::Features::SHADER_F16);
    let large = (vulkan && half && has(16, Scalar::F16)).then_some(16);
    MatrixSides {
        f32: has(8, Scalar::F32).then_some(8),
        f16: large.or_else(|| (half && has(8, Scalar::F16)).then_some(8)),
    }
}

/// Those of `claimed` that multiply as they should; a line to `warn` about each that does not.
///
/// # Errors
/// Where the driver fails: then the device is not to be used any more.
pub(crate) fn tested(
    device: &Device,
    claimed: MatrixSides,
    subgroup: u32,
    warn: &dyn Fn(&str),
) -> Result<MatrixSides> {
    let test = |side: Option<u32>, element: DType| -> Result<Option<u32>> {
        let Some(side) = side else { return Ok(None) };
        let mut wrong = 0;
        for seed in [1, 2] {
            let (found, expected) = (run(device, side, element, subgroup, seed)?, expected(side, seed));
            wrong += found.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
        }
        if wrong == 0 {
            return Ok(Some(side));
        }
        let all = 2 * expected(side, 1).len();
        warn(&format!(
            "cooperative matrices of {side}x{side} {element} are not used: {wrong} of {all} products were wrong in a \
             test of this adapter's"
        ));
        Ok(None)
    };
    Ok(MatrixSides { f32: test(claimed.f32, DType::F32)?, f16: test(claimed.f16, DType::F16)? })
}

/// What the kernel makes of the numbers of `seed`.
fn run(device: &Device, side: u32, element: DType, subgroup: u32, seed: u32) -> Result<Vec<f32>> {
    let kernel = if side == 16 { &TEST_16 } else { &TEST_8 };
    let constants = [("WORKGROUP", f64::from(subgroup) * JOBS as f64)];
    let pipeline =
        device.pipeline(&PipelineSpec { kernel, half: element == DType::F16, constants: &constants })?;
    let bytes = 4 * (JOBS * 2) as u64 * u64::from(side * side);
    let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let result = device.buffer("matrix unit test", bytes, storage)?;
    let uniform = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let params = device.buffer("matrix unit test", 16, uniform)?;
    device.queue.write_buffer(&params, 0, bytemuck::cast_slice(&[seed, 0, 0, 0]));
    let group = device.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("matrix unit test"),
        layout: &pipeline.layout,
        entries: &[
            wgpu::BindGroupEntry { binding: 0, resource: params.as_entire_binding() },
            wgpu::BindGroupEntry { binding: 1, resource: result.as_entire_binding() },
        ],
    });
    let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }
    device.submit(encoder)?;
    let found = device.read(&result, 0, bytes)?;
    Ok(found.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect())
}

/// The results by their definition: of each job `a b + a b`, then `transpose(a) b`. All are whole numbers below 2^11.
fn expected(side: u32, seed: u32) -> Vec<f32> {
    let (side, stride) = (side as usize, side as usize + 8);
    let small = |n: usize| {
        let hash = (n as u32).wrapping_mul(2_654_435_769) ^ seed.wrapping_mul(2_246_822_507);
        let hash = (hash ^ (hash >> 15)).wrapping_mul(739_982_445);
        (hash >> 24) as i32 % 15 - 7
    };
    let mut all = Vec::new();
    for job in 0..JOBS {
        let at = |row: usize, column: usize| (job * side + row) * stride + column;
        let (a, b) = (|i, j| small(2 * at(i, j)), |i, j| small(2 * at(i, j) + 1));
        for transposed in [false, true] {
            for i in 0..side {
                for j in 0..side {
                    let product = |k| if transposed { a(k, i) * b(k, j) } else { 2 * a(i, k) * b(k, j) };
                    all.push((0..side).map(product).sum::<i32>() as f32);
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_test_tell_rows_from_columns_and_jobs_from_each_other() {
        for side in [8, 16] {
            let all = expected(side, 1);
            let matrix = (side * side) as usize;
            assert_eq!(all.len(), 4 * matrix);
            let parts: Vec<&[f32]> = all.chunks(matrix).collect();
            for (index, part) in parts.iter().enumerate() {
                assert!(parts[..index].iter().all(|other| other != part));
                let transposed = |i: usize, side: usize| part[i % side * side + i / side];
                assert!((0..matrix).any(|i| part[i] != transposed(i, side as usize)));
                assert!(part.iter().all(|value| value.abs() < 2048.0));
            }
            assert_ne!(all, expected(side, 2));
        }
    }
}
