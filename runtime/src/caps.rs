//! What an adapter can do, as far as lowering depends on it. Plain data, so that a plan can be made without a GPU.

/// Subgroup sizes of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubgroupSizes {
    /// The smallest subgroup a dispatch may run with.
    pub min: u32,
    /// The largest.
    pub max: u32,
}

/// Limits and optional features that the choice of kernels and grids depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Whether the adapter is a CPU (llvmpipe, WARP): memory is cached and workgroup memory buys nothing.
    pub cpu: bool,
    /// Subgroup operations, where the adapter has them and they are enabled.
    pub subgroups: Option<SubgroupSizes>,
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
        max_binding_bytes: 128 << 20,
        max_buffer_bytes: 256 << 20,
        offset_alignment: 256,
        max_grid: 65_535,
        max_invocations: 256,
        max_workgroup_bytes: 16_384,
    };
}

impl Caps {
    /// The byte ranges `(offset, length)` by which a tensor of `bytes` bytes is bound: one where it fits a binding,
    /// else as few as possible. Every offset is aligned as bindings, and vectors of four elements, must be.
    pub fn ranges(&self, bytes: u64) -> Vec<(u64, u64)> {
        let alignment = self.range_alignment();
        let step = (self.max_binding_bytes / alignment).max(1) * alignment;
        (0..bytes.div_ceil(step)).map(|i| (i * step, step.min(bytes - i * step))).collect()
    }

    /// The alignment of a range's offset in bytes: that of bindings, and at least a vector of four elements.
    pub fn range_alignment(&self) -> u64 {
        self.offset_alignment.max(16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_without_overlap() {
        let caps = Caps { max_binding_bytes: 1000, offset_alignment: 256, ..Caps::WEBGPU };
        assert_eq!(caps.ranges(4), [(0, 4)]);
        assert_eq!(caps.ranges(768), [(0, 768)]);
        assert_eq!(caps.ranges(772), [(0, 768), (768, 4)]);
        assert_eq!(caps.ranges(2000), [(0, 768), (768, 768), (1536, 464)]);
    }
}
