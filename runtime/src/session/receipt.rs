//! Receipts: how the host knows that all of a step was done before it believes the results.
//!
//! Not every backend tells of work that the GPU gave up. Metal takes a command buffer that ended in an error for done, and on
//! Direct3D 12 everything counts as done once the device was removed; the buffers keep what was in them, which looks like
//! results. So the host sends a token with the inputs of each step, no two alike. The last launch of each submission adds one to
//! the number of those that were done under this token, and both come back with the results. It is a launch in the same pass,
//! because wgpu makes a command buffer of each pass and of the copies between them: one may fail and the next one succeed. A
//! submission whose launches were not done to the end adds nothing, and without the upload the token is an old one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Session;
use crate::device::Device;
use crate::memory::{RECEIPT, TOKEN};
use crate::pipelines::{Pipeline, PipelineSpec};
use crate::probe::receipt;
use crate::{Error, Result};

/// Where the submissions of a step are counted.
pub(super) struct Receipts {
    /// The token of the step, which the kernel has as its parameters.
    token: wgpu::Buffer,
    /// Token, and number of submissions.
    receipt: wgpu::Buffer,
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
}

/// The token of a step of the session with this number. Memory that another session has left may hold one of its tokens.
pub(super) fn token(session: u32, step: u64) -> [u8; TOKEN as usize] {
    ((u64::from(session) << 32) | (step & u64::from(u32::MAX))).to_le_bytes()
}

/// A number that no other session has.
pub(super) fn number() -> u32 {
    static SESSIONS: AtomicU32 = AtomicU32::new(1);
    SESSIONS.fetch_add(1, Ordering::Relaxed)
}

impl Receipts {
    pub fn new(device: &Device) -> Result<Self> {
        let spec = || PipelineSpec { kernel: &receipt::RECEIPT, half: false, constants: &[] };
        device.prepare(std::iter::once(spec()))?;
        let pipeline = device.pipeline(&spec())?;
        let (to, from) = (wgpu::BufferUsages::COPY_DST, wgpu::BufferUsages::COPY_SRC);
        let token = device.buffer("token", RECEIPT, wgpu::BufferUsages::UNIFORM | to)?;
        let receipt = device.buffer("receipt", RECEIPT, wgpu::BufferUsages::STORAGE | from)?;
        let entries = [&token, &receipt];
        let group =
            device.bind_group("receipt", &pipeline.layout, &entries.map(|b| b.as_entire_binding()))?;
        Ok(Self { token, receipt, pipeline, group })
    }

    /// Takes the token from `upload`, before the first launch.
    pub fn receive(&self, encoder: &mut wgpu::CommandEncoder, upload: &wgpu::Buffer, offset: u64) {
        encoder.copy_buffer_to_buffer(upload, offset, &self.token, 0, TOKEN);
    }

    /// Counts the submission, as the last launch of it.
    pub fn count(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }

    /// Hands the receipt over to the host, behind the results.
    pub fn hand_over(&self, encoder: &mut wgpu::CommandEncoder, download: &wgpu::Buffer, offset: u64) {
        encoder.copy_buffer_to_buffer(&self.receipt, 0, download, offset, RECEIPT);
    }
}

impl Session {
    /// Whether the receipt `found` is that of `step`, which was handed over in `parts` submissions.
    pub(super) fn check_receipt(&self, step: u64, parts: u32, found: Option<&[u8]>) -> Result<()> {
        let wanted = [&token(self.number, step)[..], &parts.to_le_bytes()].concat();
        if found.is_some_and(|found| found.starts_with(&wanted)) {
            return Ok(());
        }
        self.device.lose("it has not done all that it was given, and did not say so".into());
        Err(self.device.cause(Error::gpu("a step was not done")))
    }
}
