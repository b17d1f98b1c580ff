//! A Vulkan driver's compiler, and what it says of the pipelines that it makes: instructions, registers, spills.
//!
//! Mesa's driver for AMD compiles for GPUs that are not there: with `RADV_FORCE_FAMILY` (from Mesa 25.2 on `AMD_FORCE_FAMILY`) it
//! names a device that can make pipelines and nothing else.

use std::ffi::{CStr, CString};

use anyhow::{Context as _, Result, bail};
use ash::{khr, vk};

use crate::{Figures, Request, Tool, words};

/// Storage buffers of a kernel at most; its parameters are one uniform buffer before them.
const STORAGE_BUFFERS: u32 = 8;

/// A device of a driver.
pub struct Driver {
    name: String,
    device: ash::Device,
    executables: khr::pipeline_executable_properties::Device,
    layout: vk::PipelineLayout,
    // Declared last: the instance and the library outlive the device.
    _instance: ash::Instance,
    _entry: ash::Entry,
}

impl Driver {
    /// Opens the only, or the first, device that the loader finds.
    ///
    /// # Errors
    /// There is no loader, no device, or none that says something about its pipelines.
    pub fn open() -> Result<Self> {
        // SAFETY: the libraries are Vulkan's loader and drivers; every handle made here is used as long as its parent lives.
        unsafe {
            let entry = ash::Entry::load().context("the Vulkan loader cannot be loaded")?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
            let info = vk::InstanceCreateInfo::default().application_info(&application);
            let instance = entry.create_instance(&info, None).context("no Vulkan driver")?;
            let physical = instance
                .enumerate_physical_devices()?
                .into_iter()
                .next()
                .context("the driver has no device")?;
            let mut driver = vk::PhysicalDeviceDriverProperties::default();
            let mut properties = vk::PhysicalDeviceProperties2::default().push_next(&mut driver);
            instance.get_physical_device_properties2(physical, &mut properties);
            let device =
                properties.properties.device_name_as_c_str().unwrap_or(c"?").to_string_lossy().into_owned();
            let name =
                format!("{device}, {}", driver.driver_info_as_c_str().unwrap_or(c"?").to_string_lossy());
            let extensions = instance.enumerate_device_extension_properties(physical)?;
            let has = |name: &CStr| {
                extensions.iter().any(|e| e.extension_name_as_c_str().is_ok_and(|found| found == name))
            };
            if !has(khr::pipeline_executable_properties::NAME) {
                bail!("{name} says nothing about its pipelines");
            }
            let mut names = vec![khr::pipeline_executable_properties::NAME.as_ptr()];
            let matrices = has(khr::cooperative_matrix::NAME);
            if matrices {
                names.push(khr::cooperative_matrix::NAME.as_ptr());
            }
            let mut executable = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
                .pipeline_executable_info(true);
            let mut cooperative =
                vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
            let mut vulkan11 = vk::PhysicalDeviceVulkan11Features::default()
                .storage_buffer16_bit_access(true)
                .uniform_and_storage_buffer16_bit_access(true);
            let mut vulkan12 =
                vk::PhysicalDeviceVulkan12Features::default().shader_float16(true).vulkan_memory_model(true);
            let queue = [vk::DeviceQueueCreateInfo::default().queue_family_index(0).queue_priorities(&[1.0])];
            let mut info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queue)
                .enabled_extension_names(&names)
                .push_next(&mut executable)
                .push_next(&mut vulkan11)
                .push_next(&mut vulkan12);
            if matrices {
                info = info.push_next(&mut cooperative);
            }
            let device = instance
                .create_device(physical, &info, None)
                .with_context(|| format!("{name} cannot be opened"))?;
            let bindings: Vec<_> = (0..=STORAGE_BUFFERS)
                .map(|binding| {
                    let kind = match binding {
                        0 => vk::DescriptorType::UNIFORM_BUFFER,
                        _ => vk::DescriptorType::STORAGE_BUFFER,
                    };
                    vk::DescriptorSetLayoutBinding::default()
                        .binding(binding)
                        .descriptor_type(kind)
                        .descriptor_count(1)
                        .stage_flags(vk::ShaderStageFlags::COMPUTE)
                })
                .collect();
            let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let set = [device.create_descriptor_set_layout(&info, None)?];
            let info = vk::PipelineLayoutCreateInfo::default().set_layouts(&set);
            let layout = device.create_pipeline_layout(&info, None)?;
            let executables = khr::pipeline_executable_properties::Device::new(&instance, &device);
            let name = if matrices { format!("{name}, with matrices") } else { name };
            Ok(Self { name, device, executables, layout, _instance: instance, _entry: entry })
        }
    }
}

impl Tool for Driver {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn check(&mut self, request: &Request<'_>) -> Result<std::result::Result<Figures, String>> {
        let (words, entry) = (words(request.path)?, CString::new(request.entry)?);
        // SAFETY: the module was accepted by the validator of SPIR-V, and all handles are of this device.
        unsafe {
            let info = vk::ShaderModuleCreateInfo::default().code(&words);
            let module = self.device.create_shader_module(&info, None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&entry);
            let info = [vk::ComputePipelineCreateInfo::default()
                .flags(vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR)
                .stage(stage)
                .layout(self.layout)];
            let made = self.device.create_compute_pipelines(vk::PipelineCache::null(), &info, None);
            self.device.destroy_shader_module(module, None);
            let pipeline = match made.map_err(|(_, error)| error) {
                Ok(pipelines) => pipelines[0],
                Err(error) => return Ok(Err(error.to_string())),
            };
            let figures = self.figures(pipeline);
            self.device.destroy_pipeline(pipeline, None);
            figures.map(Ok)
        }
    }
}

impl Driver {
    /// The driver's own figures, by its names for them.
    unsafe fn figures(&self, pipeline: vk::Pipeline) -> Result<Figures> {
        let info = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline).executable_index(0);
        // SAFETY: the pipeline was made with its statistics kept.
        let statistics = unsafe { self.executables.get_pipeline_executable_statistics(&info)? };
        let figure = |statistic: &vk::PipelineExecutableStatisticKHR<'_>| {
            let name = statistic.name_as_c_str().ok()?.to_string_lossy().into_owned();
            // SAFETY: the format says which member is set.
            let value = unsafe {
                match statistic.format {
                    vk::PipelineExecutableStatisticFormatKHR::UINT64 => statistic.value.u64,
                    vk::PipelineExecutableStatisticFormatKHR::INT64 => statistic.value.i64.unsigned_abs(),
                    _ => return None,
                }
            };
            Some((name, value))
        };
        Ok(statistics.iter().filter_map(figure).collect())
    }
}
