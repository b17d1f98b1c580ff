//! Another device in the place of one that is gone, and whether there is room on one.

use std::sync::Arc;

use crate::adapters::{AdapterDescription, adapters, enumerate, no_adapter};
use crate::device::{Device, DeviceOptions, LONGEST_SUBMISSION};
use crate::{Error, Result};

/// What it takes to open a device in the place of one that is gone. It does not hold on to that one: Direct3D 12 gives no other
/// device of an adapter as long as one that was removed is there.
#[derive(Clone, Debug)]
pub struct Reopener {
    gone: AdapterDescription,
    options: DeviceOptions,
}

impl Reopener {
    pub(crate) fn new(gone: AdapterDescription, options: DeviceOptions) -> Self {
        Self { gone, options }
    }

    /// The same, for a device whose submissions are halved in length as often as this: what was lost may have been
    /// taken for hung, and with the same submissions would be again.
    #[must_use]
    pub fn with_halved_submissions(mut self, times: u32) -> Self {
        let halved = LONGEST_SUBMISSION / 2_u32.saturating_pow(times).max(1);
        self.options.longest_submission =
            Some(self.options.longest_submission.map_or(halved, |now| now.min(halved)));
        self
    }

    /// Whether it is the adapter of the device that is gone.
    fn is_same(&self, other: &AdapterDescription) -> bool {
        let told = |of: &AdapterDescription| (of.name.clone(), of.backend.clone(), of.driver.clone());
        told(other) == told(&self.gone)
    }

    /// The indices of those of `adapters`, which are in order, that may take the place of the one that is gone.
    fn others(&self, adapters: &[AdapterDescription]) -> Vec<usize> {
        let may = |other: &&AdapterDescription| {
            !self.is_same(other) && (other.kind != "Cpu" || self.gone.kind == "Cpu")
        };
        adapters.iter().filter(may).map(|other| other.index).collect()
    }

    fn open(&self, index: usize) -> Result<Arc<Device>> {
        Device::open(&DeviceOptions { select: Some(index.to_string()), ..self.options.clone() })
    }

    /// Opens the same adapter again.
    ///
    /// # Errors
    /// It is not there, or cannot be opened: a driver that was reset may take a while.
    pub fn same(&self) -> Result<Arc<Device>> {
        let Some(found) = adapters().into_iter().find(|other| self.is_same(other)) else {
            return Err(Error::NoAdapter {
                found: format!("{} ({}) is not there any more", self.gone.name, self.gone.backend),
                hint: "see whether `epl devices` lists it".into(),
            });
        };
        self.open(found.index)
    }

    /// Opens the best other adapter; not a CPU in the place of a GPU, on which a training would never end.
    ///
    /// # Errors
    /// There is none, or none can be opened.
    pub fn other(&self) -> Result<Arc<Device>> {
        let mut failed = None;
        for index in self.others(&adapters()) {
            match self.open(index) {
                Ok(device) => return Ok(device),
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        Err(failed.unwrap_or_else(no_adapter))
    }
}

/// Percent of the memory that the driver lets a process have which buffers may take, where the driver tells.
const MOST_OF_MEMORY: u8 = 95;

impl Device {
    /// Whether buffers of `bytes` bytes in all can be had beside those that there are. They are made, and freed again, on a device
    /// of their own: it refuses what is beyond the driver's budget, which Windows would move to the host's memory.
    ///
    /// # Errors
    /// A device that is lost.
    pub fn has_room(&self, bytes: u64) -> Result<bool> {
        const PIECE: u64 = 1 << 30;
        self.check()?;
        if let Some(most) = self.max_memory_bytes() {
            return Ok(self.buffer_bytes() + bytes <= most);
        }
        let index = self.description().index;
        let Some(adapter) = enumerate(Some(MOST_OF_MEMORY)).into_iter().nth(index) else {
            return Err(no_adapter());
        };
        let request =
            wgpu::DeviceDescriptor { required_limits: adapter.limits(), ..wgpu::DeviceDescriptor::default() };
        let (device, _queue) = pollster::block_on(adapter.request_device(&request))
            .map_err(|error| Error::gpu(format!("{}: {error}", self.description().name)))?;
        // That it is lost for lack of memory is an answer, too.
        device.on_uncaptured_error(Arc::new(|_| {}));
        let piece = PIECE.min(adapter.limits().max_buffer_size).max(4);
        let (mut held, mut left) = (Vec::new(), bytes.next_multiple_of(4));
        while left > 0 {
            let scope = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
            let buffer = device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("room"),
                size: left.min(piece),
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            });
            if pollster::block_on(scope.pop()).is_some() {
                return Ok(false);
            }
            held.push(buffer);
            left -= left.min(piece);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(index: usize, name: &str, kind: &str) -> AdapterDescription {
        AdapterDescription {
            index,
            name: name.into(),
            backend: "Vulkan".into(),
            kind: kind.into(),
            driver: "1.0".into(),
            caps: crate::Caps::WEBGPU,
            timestamps: false,
            shader_f16: false,
            cooperative_matrix: Vec::new(),
        }
    }

    #[test]
    fn another_gpu_takes_the_place_of_one_that_is_gone_and_no_cpu_does() {
        let all = [
            adapter(0, "large", "DiscreteGpu"),
            adapter(1, "small", "IntegratedGpu"),
            adapter(2, "llvmpipe", "Cpu"),
        ];
        let others = |gone: usize| Reopener::new(all[gone].clone(), DeviceOptions::default()).others(&all);
        assert_eq!((others(0), others(1)), (vec![1], vec![0]));
        assert_eq!(others(2), [0, 1], "whatever is there is faster than a CPU");
        let driver = AdapterDescription { driver: "newer".into(), ..all[0].clone() };
        let updated = Reopener::new(driver, DeviceOptions::default());
        assert_eq!(
            updated.others(&all),
            [0, 1],
            "with another driver it is another one: other kernels, other bits"
        );
    }

    #[test]
    fn submissions_are_halved_with_each_loss() {
        let longest = |times: u32| {
            let reopener = Reopener::new(adapter(0, "gpu", "DiscreteGpu"), DeviceOptions::default());
            reopener.with_halved_submissions(times).options.longest_submission.unwrap().as_millis()
        };
        assert_eq!([0, 1, 2, 4].map(longest), [500, 250, 125, 31]);
    }
}
