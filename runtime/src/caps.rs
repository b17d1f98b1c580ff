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
