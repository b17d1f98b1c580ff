//! The adapters that there are, and the choice of one.

use crate::caps::{Caps, MatrixSides, SubgroupSizes};
use crate::device::DeviceOptions;
use crate::features::Feature;
use crate::{Error, Result};

/// An adapter that could be opened.
#[derive(Clone, Debug)]
pub struct AdapterDescription {
    /// Its index, for [`DeviceOptions::select`].
    pub index: usize,
    /// The adapter's name.
    pub name: String,
    /// Vulkan, Metal or DX12.
    pub backend: String,
    /// Discrete GPU, integrated GPU, CPU, ...
    pub kind: String,
    /// The driver and its version.
    pub driver: String,
    /// What it can do.
    pub caps: Caps,
    /// Whether timestamps can be taken at pass boundaries.
    pub timestamps: bool,
    /// Whether shaders may use 16-bit floats.
    pub shader_f16: bool,
    /// Shapes of the matrix unit, as `MxNxK AB->CR`.
    pub cooperative_matrix: Vec<String>,
}

/// `most`: the percent of the driver's budget of memory at which buffers are refused, where it tells of one.
fn instance(most: Option<u8>) -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // The driver's validation layers are for debugging wgpu itself; wgpu's own validation stays on.
    descriptor.flags = wgpu::InstanceFlags::empty().with_env();
    descriptor.memory_budget_thresholds.for_resource_creation = most;
    wgpu::Instance::new(descriptor)
}

/// Best first: real GPUs before software, and the order of the system among equals.
fn rank(kind: wgpu::DeviceType) -> u8 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

/// All adapters with compute shaders, the best first; `most` as for [`instance`].
pub(crate) fn enumerate(most: Option<u8>) -> Vec<wgpu::Adapter> {
    let mut found = pollster::block_on(instance(most).enumerate_adapters(wgpu::Backends::all()));
    found.retain(|adapter| {
        adapter.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
    });
    found.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    found
}

pub(crate) fn caps_of(adapter: &wgpu::Adapter, options: &DeviceOptions) -> Caps {
    let info = adapter.get_info();
    let cpu = info.device_type == wgpu::DeviceType::Cpu;
    if options.webgpu_limits {
        return Caps { cpu, ..Caps::WEBGPU };
    }
    let limits = adapter.limits();
    let has = |feature: Feature| options.allows(feature) && adapter.features().contains(feature.wgpu());
    let subgroups = has(Feature::Subgroups)
        .then_some(SubgroupSizes { min: info.subgroup_min_size, max: info.subgroup_max_size });
    Caps {
        cpu,
        subgroups: options.emulate_subgroups.or(subgroups),
        f16: has(Feature::F16),
        // Only an open device can test them.
        matrices: MatrixSides::default(),
        max_binding_bytes: limits.max_storage_buffer_binding_size.min((1 << 31) - 4),
        max_buffer_bytes: limits.max_buffer_size,
        offset_alignment: u64::from(limits.min_storage_buffer_offset_alignment).max(256),
        max_grid: limits.max_compute_workgroups_per_dimension,
        // Those of workgroups with one dimension.
        max_invocations: limits
            .max_compute_invocations_per_workgroup
            .min(limits.max_compute_workgroup_size_x),
        max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
    }
}

pub(crate) fn describe(index: usize, adapter: &wgpu::Adapter) -> AdapterDescription {
    let info = adapter.get_info();
    let features = adapter.features();
    AdapterDescription {
        index,
        name: info.name.clone(),
        backend: format!("{:?}", info.backend),
        kind: format!("{:?}", info.device_type),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        caps: caps_of(adapter, &DeviceOptions::default()),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        shader_f16: features.contains(wgpu::Features::SHADER_F16),
        cooperative_matrix: adapter
            .cooperative_matrix_properties()
            .iter()
            .map(|p| format!("{}x{}x{} {:?}->{:?}", p.m_size, p.n_size, p.k_size, p.ab_type, p.cr_type))
            .collect(),
    }
}

/// All adapters with compute shaders, the best first.
pub fn adapters() -> Vec<AdapterDescription> {
    enumerate(None).iter().enumerate().map(|(index, adapter)| describe(index, adapter)).collect()
}

const NO_ADAPTER_HINT: &str = "install a Vulkan driver: your GPU's own, or a software one (Debian and Ubuntu: \
    `apt install mesa-vulkan-drivers`; Fedora: `dnf install mesa-vulkan-drivers`; Arch: `pacman -S vulkan-swrast`); \
    macOS (Metal) and Windows (DX12) have theirs built in";

pub(crate) fn no_adapter() -> Error {
    Error::NoAdapter {
        found: "the system offers no Vulkan, Metal or DX12 device".into(),
        hint: NO_ADAPTER_HINT.into(),
    }
}

pub(crate) fn choose(mut found: Vec<wgpu::Adapter>, select: Option<&str>) -> Result<(usize, wgpu::Adapter)> {
    if found.is_empty() {
        return Err(no_adapter());
    }
    let names: Vec<String> = found.iter().map(|adapter| adapter.get_info().name).collect();
    let position = match select {
        None => Some(0),
        Some(text) => text
            .parse::<usize>()
            .ok()
            .filter(|&index| index < names.len())
            .or_else(|| names.iter().position(|name| name.to_lowercase().contains(&text.to_lowercase()))),
    };
    match position {
        Some(index) => Ok((index, found.swap_remove(index))),
        None => Err(Error::NoAdapter {
            found: format!("{:?} is not among: {}", select.unwrap_or(""), names.join(", ")),
            hint: "give part of a name, or an index, as `epl devices` lists them".into(),
        }),
    }
}
