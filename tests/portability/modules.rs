//! Modules: parsed, validated, specialised, and translated by every writer of naga.

use std::panic::{AssertUnwindSafe, catch_unwind};

use epl_runtime::kernel::{Kernel, Needs};
use naga::ShaderStage;
use naga::back::{hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};

/// The Metal language of macOS 11, the first on Apple silicon.
const METAL_LANGUAGE: (u8, u8) = (2, 3);
/// What a Vulkan device has of SPIR-V without optional features, and with subgroups, 16-bit floats and cooperative matrices;
/// modules that do not enable those declare nothing of them, since naga's validator refuses the types there.
const SPIRV_CAPABILITIES: [spv::Capability; 13] = [
    spv::Capability::CooperativeMatrixKHR,
    spv::Capability::VulkanMemoryModel,
    spv::Capability::Float16,
    spv::Capability::StorageBuffer16BitAccess,
    spv::Capability::UniformAndStorageBuffer16BitAccess,
    spv::Capability::Shader,
    spv::Capability::Matrix,
    spv::Capability::GroupNonUniform,
    spv::Capability::GroupNonUniformVote,
    spv::Capability::GroupNonUniformArithmetic,
    spv::Capability::GroupNonUniformBallot,
    spv::Capability::GroupNonUniformShuffle,
    spv::Capability::GroupNonUniformShuffleRelative,
];

/// A valid module.
pub struct Module {
    pub module: naga::Module,
    pub info: ModuleInfo,
}

/// Parses and validates WGSL with what WebGPU has without optional features, and with what is needed beside it.
pub fn parse(source: &str, needs: Needs) -> Result<Module, String> {
    let module = naga::front::wgsl::parse_str(source).map_err(|error| error.emit_to_string(source))?;
    let optional = match needs {
        Needs::Nothing => Capabilities::empty(),
        Needs::Subgroups => Capabilities::SUBGROUP,
        Needs::Matrices(_) => Capabilities::SUBGROUP | Capabilities::COOPERATIVE_MATRIX,
    };
    let half = if is_half(source) { Capabilities::SHADER_FLOAT16 } else { Capabilities::empty() };
    let allowed = Capabilities::SHADER_FLOAT16_IN_FLOAT32 | optional | half;
    let info = Validator::new(ValidationFlags::all(), allowed)
        .validate(&module)
        .map_err(|error| error.emit_to_string(source))?;
    Ok(Module { module, info })
}

/// Whether a module asks for 16-bit floats.
fn is_half(source: &str) -> bool {
    source.starts_with("enable f16;")
}

/// A kernel in the form that stores elements in 16 bits, or in 32.
pub fn parse_kernel(kernel: &Kernel, half: bool) -> Result<Module, String> {
    let source = kernel.source_for(half).ok_or("the shader is not in the table")?;
    parse(&source, kernel.needs)
}

/// The module with its override constants replaced, and nothing but what `entry` uses.
pub fn specialize(parsed: &Module, entry: &str, constants: &[(&str, f64)]) -> Result<Module, String> {
    let constants = constants.iter().map(|(name, value)| (name.to_string(), *value)).collect();
    let (module, info) =
        process_overrides(&parsed.module, &parsed.info, Some((ShaderStage::Compute, entry)), &constants)
            .map_err(|error| error.to_string())?;
    Ok(Module { module: module.into_owned(), info: info.into_owned() })
}

/// A module in the languages of the backends that can get it.
pub struct Written {
    pub spir_v: Vec<u32>,
    /// What the entry point is called, and the text.
    pub hlsl: Option<(String, String)>,
    pub msl: Option<String>,
}

/// Translates a specialised module with every writer. `checks` are the bounds and loop checks, which training leaves
/// out. Writers have been seen to panic, which counts as a fault of the shader here.
pub fn translate(module: &Module, entry: &str, checks: bool) -> Result<Written, String> {
    fn write<T>(name: &str, write: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        catch_unwind(AssertUnwindSafe(write))
            .unwrap_or_else(|_| Err("the writer panicked".into()))
            .map_err(|error| format!("{name}: {error}"))
    }
    // DX12 has no cooperative matrices, and Metal none of 16 x 16, though naga writes them; no such kernel gets there.
    let side = matrix_side(&module.module);
    let spir_v = write("SPIR-V", || spir_v(module, entry, checks))?;
    let hlsl = side.is_none().then(|| write("HLSL", || hlsl(module, entry, checks))).transpose()?;
    let metal = side.is_none_or(|side| side == 8);
    let msl = metal.then(|| write("MSL", || msl(module, entry, checks))).transpose()?;
    Ok(Written { spir_v, hlsl, msl })
}

fn bindings(module: &Module) -> impl Iterator<Item = naga::ResourceBinding> {
    module.module.global_variables.iter().filter_map(|(_, variable)| variable.binding)
}

fn bounds_checks(checks: bool) -> BoundsCheckPolicies {
    let policy = if checks { BoundsCheckPolicy::Restrict } else { BoundsCheckPolicy::Unchecked };
    BoundsCheckPolicies { index: policy, buffer: policy, image_load: policy, binding_array: policy }
}

pub fn spir_v(module: &Module, entry: &str, checks: bool) -> Result<Vec<u32>, String> {
    let options = spv::Options {
        // Vulkan 1.1, the first with subgroups.
        lang_version: (1, 3),
        fake_missing_bindings: false,
        binding_map: bindings(module)
            .map(|at| {
                let info = spv::BindingInfo {
                    descriptor_set: at.group,
                    binding: at.binding,
                    binding_array_size: None,
                };
                (at, info)
            })
            .collect(),
        capabilities: Some(SPIRV_CAPABILITIES.into_iter().collect()),
        bounds_check_policies: bounds_checks(checks),
        zero_initialize_workgroup_memory: if checks {
            spv::ZeroInitializeWorkgroupMemoryMode::Polyfill
        } else {
            spv::ZeroInitializeWorkgroupMemoryMode::None
        },
        force_loop_bounding: checks,
        emit_int_div_checks: checks,
        // No kernel has inputs or outputs between stages, and an adapter may lack them in 16 bits.
        use_storage_input_output_16: false,
        ..spv::Options::default()
    };
    let pipeline = spv::PipelineOptions { shader_stage: ShaderStage::Compute, entry_point: entry.into() };
    let words = spv::write_vec(&module.module, &module.info, &options, Some(&pipeline))
        .map_err(|error| error.to_string())?;
    // naga looks some of them up in the list above, but not those of scalar types.
    let granted = SPIRV_CAPABILITIES.map(|capability| capability as u32);
    match declared_capabilities(&words).into_iter().find(|capability| !granted.contains(capability)) {
        Some(capability) => Err(format!("capability {capability}, which the device was not asked for")),
        None => Ok(words),
    }
}

/// The operands of a SPIR-V module's `OpCapability` instructions (SPIR-V specification, 2.3 and 3.49.12).
fn declared_capabilities(words: &[u32]) -> Vec<u32> {
    const HEADER: usize = 5;
    const OP_CAPABILITY: u32 = 17;
    let mut found = Vec::new();
    let mut rest = &words[HEADER..];
    while let [first, ..] = rest {
        let (opcode, length) = (first & 0xffff, (first >> 16) as usize);
        if opcode == OP_CAPABILITY {
            found.push(rest[1]);
        }
        rest = &rest[length..];
    }
    assert!(found.contains(&(spv::Capability::Shader as u32)), "every module declares that it is a shader");
    found
}

/// Rows and columns of a module's cooperative matrices, where it has any; the most where they differ.
pub fn matrix_side(module: &naga::Module) -> Option<u32> {
    let side = |inner: &naga::TypeInner| match inner {
        naga::TypeInner::CooperativeMatrix { columns, rows, .. } => Some((*columns as u32).max(*rows as u32)),
        _ => None,
    };
    module.types.iter().filter_map(|(_, item)| side(&item.inner)).max()
}

/// Whether a module has 16-bit floats.
pub fn half_floats(module: &Module) -> bool {
    let scalar = |inner: &naga::TypeInner| inner.scalar();
    module.module.types.iter().any(|(_, item)| scalar(&item.inner) == Some(naga::Scalar::F16))
}

fn hlsl(module: &Module, entry: &str, checks: bool) -> Result<(String, String), String> {
    let options = hlsl::Options {
        // The first with 16-bit floats; the least that any adapter with DX12 and this backend has of the others is 6.0.
        shader_model: if half_floats(module) { hlsl::ShaderModel::V6_2 } else { hlsl::ShaderModel::V6_0 },
        fake_missing_bindings: false,
        binding_map: bindings(module)
            .map(|at| {
                let target = hlsl::BindTarget {
                    space: 0,
                    register: at.binding,
                    restrict_indexing: checks,
                    ..hlsl::BindTarget::default()
                };
                (at, target)
            })
            .collect(),
        zero_initialize_workgroup_memory: checks,
        restrict_indexing: checks,
        force_loop_bounding: checks,
        ..hlsl::Options::default()
    };
    let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, entry.into())) };
    let mut text = String::new();
    let reflection = hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(&module.module, &module.info, None)
        .map_err(|error| error.to_string())?;
    let names = reflection.entry_point_names.into_iter().map(|name| name.map_err(|e| e.to_string()));
    Ok((entry_point_written(names)?, text))
}

fn msl(module: &Module, entry: &str, checks: bool) -> Result<String, String> {
    let slot = |binding: u32| u8::try_from(binding).expect("a kernel has few bindings");
    let resources = msl::EntryPointResources {
        resources: bindings(module)
            .map(|at| {
                let target = msl::BindTarget {
                    buffer: Some(slot(at.binding)),
                    mutable: true,
                    ..msl::BindTarget::default()
                };
                (at, target)
            })
            .collect(),
        immediates_buffer: None,
        sizes_buffer: Some(slot(30)),
    };
    let options = msl::Options {
        lang_version: METAL_LANGUAGE,
        per_entry_point_map: [(entry.to_string(), resources)].into_iter().collect(),
        fake_missing_bindings: false,
        bounds_check_policies: bounds_checks(checks),
        zero_initialize_workgroup_memory: checks,
        force_loop_bounding: checks,
        emit_int_div_checks: checks,
        ..msl::Options::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, entry.into())),
        ..msl::PipelineOptions::default()
    };
    let (text, translation) = msl::write_string(&module.module, &module.info, &options, &pipeline)
        .map_err(|error| error.to_string())?;
    entry_point_written(
        translation.entry_point_names.into_iter().map(|name| name.map_err(|e| e.to_string())),
    )?;
    Ok(text)
}

/// Writers report an entry point that they had to leave out beside the text.
fn entry_point_written(mut names: impl Iterator<Item = Result<String, String>>) -> Result<String, String> {
    names.next().ok_or("the entry point was not written")?
}
