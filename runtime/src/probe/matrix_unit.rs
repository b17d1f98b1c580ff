//! Whether an adapter's matrix unit does what the kernels on cooperative matrices rely on. Drivers list shapes and types; what they
//! make of strides, of reading by columns, and of several subgroups at once is tried before any of it is used.

use super::launches;
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

pub(super) static TEST_8: Kernel = TEST_KERNEL;

pub(super) static TEST_16: Kernel = Kernel { needs: Needs::Matrices(16), ..TEST_KERNEL };

const TEST_KERNEL: Kernel = Kernel {
    shader: "cooperative_test",
    entry: "main",
    params: TestParams::FIELDS,
    bindings: &[write("result")],
    constants: &["WORKGROUP"],
    needs: Needs::Matrices(8),
};

/// Matrices of the test, each a subgroup's.
const JOBS: usize = 2;

/// The shapes that `adapter` claims to have, with 16-bit floats or without: 16 x 16 on Vulkan before 8 x 8, since large matrices are what its units multiply.
pub(crate) fn claimed(adapter: &wgpu::Adapter, half: bool) -> MatrixSides {
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
    let half = half && adapter.features().contains(wgpu::Features::SHADER_F16);
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
    judged(claimed, &|side, element, seed| run(device, side, element, subgroup, seed), warn)
}

/// The same for a matrix unit that makes of the numbers of (side, elements, seed) what `run` returns.
fn judged(
    claimed: MatrixSides,
    run: &dyn Fn(u32, DType, u32) -> Result<Vec<f32>>,
    warn: &dyn Fn(&str),
) -> Result<MatrixSides> {
    let test = |side: Option<u32>, element: DType| -> Result<Option<u32>> {
        let Some(side) = side else { return Ok(None) };
        let mut wrong = 0;
        for seed in [1, 2] {
            let (found, expected) = (run(side, element, seed)?, expected(side, seed));
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
    let spec = PipelineSpec { kernel, half: element == DType::F16, constants: &constants };
    let bytes = 4 * (JOBS * 2) as u64 * u64::from(side * side);
    let storage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC;
    let result = device.buffer("matrix unit test", bytes, storage)?;
    let params = TestParams { seed };
    let encoder = launches(device, &spec, bytemuck::bytes_of(&params), &[&result], [1, 1, 1], 1)?;
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
    use std::cell::RefCell;

    use super::*;
    use crate::Error;

    #[test]
    fn what_multiplies_wrongly_is_not_used_and_said() {
        let claimed = MatrixSides { f32: Some(8), f16: Some(16) };
        let judge = |run: &dyn Fn(u32, DType, u32) -> Result<Vec<f32>>| {
            let lines = RefCell::new(Vec::new());
            let sides = judged(claimed, run, &|line| lines.borrow_mut().push(line.to_owned()));
            (sides, lines.into_inner())
        };
        let right = |side, seed| Ok(expected(side, seed));
        let (sides, lines) = judge(&|side, _, seed| right(side, seed));
        assert_eq!((sides.unwrap(), lines.len()), (claimed, 0));

        // A unit that gets one number of one shape wrong, and only for some operands.
        let (sides, lines) = judge(&|side, element, seed| {
            let mut found = expected(side, seed);
            found[200] += if element == DType::F16 && seed == 2 { 1.0 } else { 0.0 };
            Ok(found)
        });
        assert_eq!(sides.unwrap(), MatrixSides { f16: None, ..claimed });
        assert_eq!(
            lines,
            [
                "cooperative matrices of 16x16 f16 are not used: 1 of 2048 products were wrong in a test of this adapter's"
            ]
        );

        // One that leaves what was there, NaNs or zeros, and one that reads by rows what is asked for by columns.
        for value in [0.0, f32::NAN] {
            let (sides, lines) = judge(&|side, _, _| Ok(vec![value; expected(side, 1).len()]));
            assert_eq!((sides.unwrap(), lines.len()), (MatrixSides::default(), 2));
        }
        let (sides, _) = judge(&|side, _, seed| {
            let mut found = expected(side, seed);
            let matrix = (side * side) as usize;
            let plain: Vec<f32> = found[..matrix].iter().map(|sum| sum / 2.0).collect();
            found[matrix..2 * matrix].copy_from_slice(&plain);
            Ok(found)
        });
        assert_eq!(sides.unwrap(), MatrixSides::default());

        // A driver that fails.
        let (sides, _) = judge(&|_, _, _| Err(Error::gpu("lost")));
        assert!(sides.is_err());
    }

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
