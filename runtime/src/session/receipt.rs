//! Receipts: how the host knows that all of a step was done before it believes the results.
//!
//! Not every backend tells of work that the GPU gave up. Metal takes a command buffer that ended in an error for done, and on
//! Direct3D 12 everything counts as done once the device was removed; the buffers keep what was in them, which looks like
//! results. So the host sends a token with the inputs of each step, no two alike. At its end each submission hands it on to the
//! next one, from cell to cell, and the last one into the download. A submission that was not done to its end hands nothing on,
//! and what arrives is the token of a step from before.

use std::sync::atomic::{AtomicU32, Ordering};

use super::Session;
use crate::device::Device;
use crate::memory::{TOKEN, receipt_cells};
use crate::{Error, Result};

/// The cells in which a token is handed on: every other one in the same buffer, since nothing is copied within one.
pub(super) struct Receipts([wgpu::Buffer; 2]);

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
    /// Those of a step with so many launches, each of which may have a submission of its own.
    pub fn new(device: &Device, launches: usize) -> Result<Self> {
        let usage = wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = || device.buffer("receipts", receipt_cells(launches), usage);
        Ok(Self([buffer()?, buffer()?]))
    }

    fn cell(&self, index: usize) -> (&wgpu::Buffer, u64) {
        let [even, odd] = &self.0;
        (if index.is_multiple_of(2) { even } else { odd }, index as u64 * TOKEN)
    }

    /// Takes the token from `upload`, before the first launch.
    pub fn receive(&self, encoder: &mut wgpu::CommandEncoder, upload: &wgpu::Buffer, offset: u64) {
        let (cell, at) = self.cell(0);
        encoder.copy_buffer_to_buffer(upload, offset, cell, at, TOKEN);
    }

    /// Hands it on, at the end of the submission with this number.
    pub fn hand_on(&self, encoder: &mut wgpu::CommandEncoder, part: usize) {
        let ((from, first), (to, next)) = (self.cell(part), self.cell(part + 1));
        encoder.copy_buffer_to_buffer(from, first, to, next, TOKEN);
    }

    /// Hands it over to the host, at the end of the last of `parts` submissions.
    pub fn hand_over(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        parts: usize,
        download: &wgpu::Buffer,
        offset: u64,
    ) {
        let (cell, at) = self.cell(parts);
        encoder.copy_buffer_to_buffer(cell, at, download, offset, TOKEN);
    }
}

impl Session {
    /// Whether the token of `step` came back.
    pub(super) fn check_receipt(&self, step: u64, found: Option<&[u8]>) -> Result<()> {
        if found == Some(&token(self.number, step)[..]) {
            return Ok(());
        }
        self.device.lose("it has not done all that it was given, and did not say so".into());
        Err(self.device.cause(Error::gpu("a step was not done")))
    }
}
