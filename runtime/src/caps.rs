//! What an adapter can do, as far as lowering depends on it. Plain data, so that a plan can be made without a GPU.

use crate::{DType, TensorDesc};

/// Subgroup sizes of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubgroupSizes {
    /// The smallest subgroup a dispatch may run with.
    pub min: u32,
    /// The largest.
    pub max: u32,
}

/// Rows and columns of the cooperative matrices that an adapter multiplies, by the type of what is multiplied; sums are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatrixSides {
    /// For f32.
    pub f32: Option<u32>,
    /// For f16.
    pub f16: Option<u32>,
}

/// Limits and optional features that the choice of kernels and grids depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Whether the adapter is a CPU (llvmpipe, WARP): memory is cached and workgroup memory buys nothing.
    pub cpu: bool,
    /// Subgroup operations, where the adapter has them and they are enabled.
    pub subgroups: Option<SubgroupSizes>,
    /// Whether shaders may use 16-bit floats.
    pub f16: bool,
    /// Cooperative matrices, where the adapter's were tested and are enabled.
    pub matrices: MatrixSides,
    /// Largest storage binding in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer in bytes.
    pub max_buffer_bytes: u64,
    /// Required alignment of a storage binding's offset, in bytes.
    pub offset_alignment: u64,
    /// Workgroups along one dimension of a grid.
    pub max_grid: u32,
    /// Invocations of a workgroup.
    pub max_invocations: u32,
    /// Bytes of workgroup memory.
    pub max_workgroup_bytes: u32,
}

impl Caps {
    /// WebGPU's default limits and no optional feature: what every conforming adapter offers.
    pub const WEBGPU: Self = Self {
        cpu: false,
        subgroups: None,
        f16: false,
        matrices: MatrixSides { f32: None, f16: None },
        max_binding_bytes: 128 << 20,
        max_buffer_bytes: 256 << 20,
        offset_alignment: 256,
        max_grid: 65_535,
        max_invocations: 256,
        max_workgroup_bytes: 16_384,
    };
}

/// Some rows of a tensor, as they lie in memory: what one binding can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRange {
    /// The first row.
    pub first: usize,
    /// Number of rows.
    pub rows: usize,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// What the size of a buffer is rounded up to.
const BUFFER_UNIT: u64 = 256;

/// Rows whose bytes are a multiple of what any adapter asks of an offset, whatever the length of a row: 256 bytes,
/// in elements of four.
pub const ROW_ALIGNMENT: usize = 64;

impl Caps {
    /// Rows and columns of the cooperative matrices of `element`, where there are any.
    pub fn matrix_side(&self, element: DType) -> Option<u32> {
        match element {
            DType::F32 => self.matrices.f32,
            DType::F16 => self.matrices.f16,
            _ => None,
        }
    }

    /// The byte ranges `(offset, length)` of the buffers that hold a persistent tensor: one where the adapter has buffers
    /// that large, else as few as possible, split between rows (the slices of the outermost dimension). Vectors are
    /// never split, since they are arenas that others hold views of.
    pub fn shards(&self, desc: &TensorDesc) -> Vec<(u64, u64)> {
        let unit = (row_bytes(desc) * ROW_ALIGNMENT as u64).max(1);
        let step = match self.max_buffer_bytes / unit {
            // Not even a few rows fit: one buffer, which is refused where it is made.
            0 => desc.bytes(),
            units => units * unit,
        };
        let step = if desc.shape.rank() < 2 { desc.bytes() } else { step };
        pieces(0, desc.bytes(), step).collect()
    }

    /// The byte ranges `(offset, length)` by which a tensor is bound: one where it fits a binding and a buffer, else as
    /// few as possible. Every offset is aligned as bindings, and vectors of four elements, must be.
    pub fn ranges(&self, desc: &TensorDesc) -> Vec<(u64, u64)> {
        let alignment = self.range_alignment();
        let step = (self.max_binding_bytes / alignment).max(1) * alignment;
        self.shards(desc).into_iter().flat_map(|(offset, bytes)| pieces(offset, bytes, step)).collect()
    }

    /// The ranges by which a tensor is bound where every binding must hold whole rows. A limit below that of
    /// [`ROW_ALIGNMENT`] rows gives ranges that the plan refuses.
    pub fn row_ranges(&self, desc: &TensorDesc) -> Vec<RowRange> {
        let row = row_bytes(desc).max(1);
        let unit = row * ROW_ALIGNMENT as u64;
        let step = (self.max_binding_bytes / unit).max(1) * unit;
        self.shards(desc)
            .into_iter()
            .flat_map(|(offset, bytes)| pieces(offset, bytes, step))
            .map(|(offset, bytes)| RowRange {
                first: (offset / row) as usize,
                rows: (bytes / row) as usize,
                offset,
                bytes,
            })
            .collect()
    }

    /// Bytes of a buffer as it is allocated, for `bytes` bytes: rounded up to a unit that is as large as drivers ask for, so that
    /// what is planned and what a driver counts is one number; to four bytes where the unit goes beyond the largest buffer.
    pub fn buffer_bytes(&self, bytes: u64) -> u64 {
        match bytes.max(1).next_multiple_of(BUFFER_UNIT) {
            unit if unit > self.max_buffer_bytes => bytes.max(1).next_multiple_of(4),
            unit => unit,
        }
    }

    /// The alignment of a range's offset in bytes: that of bindings, and at least a vector of four elements.
    pub fn range_alignment(&self) -> u64 {
        self.offset_alignment.max(16)
    }
}

/// Bytes of a slice of the outermost dimension.
fn row_bytes(desc: &TensorDesc) -> u64 {
    desc.bytes() / desc.shape.dim(0).max(1) as u64
}

/// `bytes` bytes from `offset` on, in pieces of `step`.
fn pieces(offset: u64, bytes: u64, step: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = step.max(1);
    (0..bytes.div_ceil(step)).map(move |i| (offset + i * step, step.min(bytes - i * step)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_without_overlap() {
        let caps = Caps { max_binding_bytes: 1000, offset_alignment: 256, ..Caps::WEBGPU };
        let ranges = |elements: usize| caps.ranges(&TensorDesc::f32([elements]));
        assert_eq!(ranges(1), [(0, 4)]);
        assert_eq!(ranges(192), [(0, 768)]);
        assert_eq!(ranges(193), [(0, 768), (768, 4)]);
        assert_eq!(ranges(500), [(0, 768), (768, 768), (1536, 464)]);
    }

    #[test]
    fn a_matrix_is_split_between_rows_by_buffers_and_then_by_bindings() {
        // 64 rows of 5 elements are 1280 bytes: two such units a buffer, one a binding.
        let caps = Caps { max_binding_bytes: 2000, max_buffer_bytes: 3000, ..Caps::WEBGPU };
        let desc = TensorDesc::f32([300, 5]);
        assert_eq!(caps.shards(&desc), [(0, 2560), (2560, 2560), (5120, 880)]);
        // A binding holds 1792 bytes if rows do not matter, and ends where the buffer does.
        assert_eq!(caps.ranges(&desc), [(0, 1792), (1792, 768), (2560, 1792), (4352, 768), (5120, 880)]);
        let rows: Vec<(usize, usize, u64)> =
            caps.row_ranges(&desc).iter().map(|range| (range.first, range.rows, range.offset)).collect();
        assert_eq!(rows, [(0, 64, 0), (64, 64, 1280), (128, 64, 2560), (192, 64, 3840), (256, 44, 5120)]);
    }

    #[test]
    fn what_fits_is_not_split() {
        let desc = TensorDesc::f32([300, 5]);
        assert_eq!(Caps::WEBGPU.shards(&desc), [(0, 6000)]);
        assert_eq!(
            Caps::WEBGPU.row_ranges(&desc),
            [RowRange { first: 0, rows: 300, offset: 0, bytes: 6000 }]
        );
        // Arenas are never split.
        let caps = Caps { max_buffer_bytes: 1024, ..Caps::WEBGPU };
        assert_eq!(caps.shards(&TensorDesc::f32([1500])), [(0, 6000)]);
    }

    #[test]
    fn four_gigabytes_take_two_buffers_of_two_gib() {
        let caps = Caps { max_binding_bytes: (1 << 31) - 4, max_buffer_bytes: 1 << 31, ..Caps::WEBGPU };
        let desc = TensorDesc::f32([2_059_906, 512]);
        assert_eq!(caps.shards(&desc).len(), 2);
        // The largest binding is four bytes short of a buffer.
        let ranges = caps.row_ranges(&desc);
        assert_eq!(ranges.iter().map(|range| range.rows).sum::<usize>(), 2_059_906);
        assert!(ranges.iter().all(|range| range.bytes <= caps.max_binding_bytes && range.offset % 256 == 0));
    }
}
