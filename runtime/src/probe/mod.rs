//! What an adapter does, found out by trying: kernels that belong to no op and run outside any plan, or behind it.

pub(crate) mod matrix_unit;
pub(crate) mod receipt;
pub mod roof;

use crate::Result;
use crate::device::Device;
use crate::kernel::Kernel;
use crate::pipelines::PipelineSpec;

/// All kernels of these modules.
pub static KERNELS: [&Kernel; 7] = [
    &matrix_unit::TEST_8,
    &matrix_unit::TEST_16,
    &roof::TRIAD,
    &roof::MULTIPLY_ADD,
    &roof::MATRICES_8,
    &roof::MATRICES_16,
    &receipt::RECEIPT,
];

/// Records `times` launches of a kernel on whole buffers, one after the other.
fn launches(
    device: &Device,
    spec: &PipelineSpec<'_>,
    params: &[u8],
    buffers: &[&wgpu::Buffer],
    grid: [u32; 3],
    times: u32,
) -> Result<wgpu::CommandEncoder> {
    let label = Some(spec.kernel.shader);
    let pipeline = device.pipeline(spec)?;
    // WebGPU rounds the size of a uniform block up to 16 bytes.
    let bytes = (params.len() as u64).next_multiple_of(16);
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let uniform = device.buffer(spec.kernel.shader, bytes, usage)?;
    device.write(spec.kernel.shader, &uniform, 0, params)?;
    let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
        .zip(std::iter::once(&uniform).chain(buffers.iter().copied()))
        .map(|(binding, buffer)| wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() })
        .collect();
    let group = device.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label,
        layout: &pipeline.layout,
        entries: &entries,
    });
    let mut encoder = device.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &group, &[]);
        for _ in 0..times {
            pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
        }
    }
    Ok(encoder)
}
