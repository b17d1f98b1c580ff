//! A step in flight: its staging buffers, and how the host learns that the device is done with them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use crate::device::{CALLBACK_LIMIT, Device};
use crate::{Error, Result};

/// Progress of something that the device announces by a callback: a mapping, or the end of a step.
#[derive(Debug, Default)]
pub(crate) struct Signal(AtomicU8);

impl Signal {
    const PENDING: u8 = 0;
    const READY: u8 = 1;
    const FAILED: u8 = 2;

    pub(crate) fn map(self: &Arc<Self>, buffer: &wgpu::Buffer, mode: wgpu::MapMode) {
        let state = self.reset();
        buffer.map_async(mode, .., move |result| {
            let value = if result.is_ok() { Self::READY } else { Self::FAILED };
            state.0.store(value, Ordering::Release);
        });
    }

    pub(crate) fn on_done(self: &Arc<Self>, queue: &wgpu::Queue) {
        let state = self.reset();
        queue.on_submitted_work_done(move || state.0.store(Self::READY, Ordering::Release));
    }

    fn reset(self: &Arc<Self>) -> Arc<Self> {
        self.0.store(Self::PENDING, Ordering::Release);
        self.clone()
    }

    fn ready(&self) -> Result<bool> {
        match self.0.load(Ordering::Acquire) {
            Self::READY => Ok(true),
            Self::PENDING => Ok(false),
            _ => Err(Error::gpu("a staging buffer could not be mapped; the device may be lost")),
        }
    }
}

/// Staging buffers of one step in flight.
pub(crate) struct Flight {
    pub(crate) upload: Option<(wgpu::Buffer, Arc<Signal>)>,
    pub(crate) download: Option<(wgpu::Buffer, Arc<Signal>)>,
    /// Set when the step is done; what tells so where there is nothing to map.
    pub(crate) done: Arc<Signal>,
    /// The step in it.
    pub(crate) submitted: Option<Submitted>,
}

/// A step that was handed to the device.
pub(crate) struct Submitted {
    pub(crate) step: u64,
    /// In so many submissions.
    pub(crate) parts: u32,
    pub(crate) last: wgpu::SubmissionIndex,
}

impl Flight {
    /// Whether the staging buffers are the host's.
    pub(crate) fn ready(&self, device: &Device) -> Result<bool> {
        let signals = [
            self.upload.as_ref().map(|(_, signal)| signal),
            match (&self.submitted, &self.download) {
                (Some(_), Some((_, signal))) => Some(signal),
                (Some(_), None) if self.upload.is_none() => Some(&self.done),
                _ => None,
            },
        ];
        for signal in signals.into_iter().flatten() {
            if !signal.ready().map_err(|error| device.cause(error))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the callbacks of a flight whose work is done have run. That is not so as soon as the wait for the
    /// work returns: a thread that polls the same device takes the callbacks of all of its sessions with it, and may
    /// not have come to these yet.
    pub(crate) fn wait_for_callbacks(&self, device: &Device) -> Result<()> {
        let deadline = Instant::now() + CALLBACK_LIMIT;
        while !self.ready(device)? {
            if Instant::now() > deadline {
                return Err(Error::gpu(format!(
                    "a finished step's staging buffers were not mapped within {} s",
                    CALLBACK_LIMIT.as_secs()
                )));
            }
            device.poll()?;
            std::thread::yield_now();
        }
        Ok(())
    }
}
