//! Persistent tensors: weights, optimiser state, running statistics. They outlive plans and are shared by them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::Device;
use crate::{Error, HostTensor, Result, TensorDesc};

struct Stored {
    desc: TensorDesc,
    buffer: wgpu::Buffer,
}

/// The persistent tensors of a model on one device, by name. Several sessions may share it.
pub struct Store {
    device: Arc<Device>,
    tensors: Mutex<BTreeMap<String, Stored>>,
    writes: AtomicU32,
}

/// Writes that may be pending before they are handed to the queue: more than about 64 were seen to corrupt early ones,
/// and each holds staging memory.
const PENDING_WRITES: u32 = 32;

impl Store {
    /// An empty store.
    pub fn new(device: &Arc<Device>) -> Self {
        Self { device: device.clone(), tensors: Mutex::default(), writes: AtomicU32::new(0) }
    }

    /// The device that the tensors live on.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The buffer of `name`; made and filled with zeros where it does not exist yet.
    pub(crate) fn buffer(&self, name: &str, desc: &TensorDesc) -> Result<wgpu::Buffer> {
        let mut tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = tensors.get(name) {
            if stored.desc != *desc {
                return Err(Error::graph(
                    format!("persistent tensor {name} is {}; this graph wants {desc}", stored.desc),
                    "give tensors of different shapes different names",
                ));
            }
            return Ok(stored.buffer.clone());
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let buffer = self.device.buffer(name, desc.bytes(), usage)?;
        tensors.insert(name.to_string(), Stored { desc: desc.clone(), buffer: buffer.clone() });
        Ok(buffer)
    }

    fn find(&self, name: &str) -> Result<(TensorDesc, wgpu::Buffer)> {
        let tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        match tensors.get(name) {
            Some(stored) => Ok((stored.desc.clone(), stored.buffer.clone())),
            None => Err(Error::graph(
                format!("there is no persistent tensor {name}"),
                "make a session of a graph that declares it first",
            )),
        }
    }

    /// Sets a whole tensor.
    pub fn write(&self, name: &str, value: &HostTensor) -> Result<()> {
        let (desc, _) = self.find(name)?;
        if desc != value.desc() {
            return Err(Error::graph(
                format!("persistent tensor {name} is {desc}; found {}", value.desc()),
                "write a tensor of the same shape",
            ));
        }
        self.write_range(name, 0, value.bytes())
    }

    /// Sets the bytes of a tensor from `offset` on.
    pub fn write_range(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let (desc, buffer) = self.find(name)?;
        self.check_range(name, &desc, offset, bytes.len() as u64)?;
        self.device.queue.write_buffer(&buffer, offset, bytes);
        if self.writes.fetch_add(1, Ordering::Relaxed) % PENDING_WRITES == PENDING_WRITES - 1 {
            // A submission without commands carries the pending writes.
            self.device.queue.submit([]);
        }
        self.device.check()
    }

    /// Reads a whole tensor back, waiting for the GPU.
    pub fn read(&self, name: &str) -> Result<HostTensor> {
        let (desc, buffer) = self.find(name)?;
        HostTensor::from_bytes(&desc, &self.device.read(&buffer, 0, desc.bytes())?)
    }

    /// Reads the tensor `desc` that starts at byte `offset` of tensor `name`, waiting for the GPU.
    pub fn read_range(&self, name: &str, offset: u64, desc: &TensorDesc) -> Result<HostTensor> {
        let (whole, buffer) = self.find(name)?;
        self.check_range(name, &whole, offset, desc.bytes())?;
        HostTensor::from_bytes(desc, &self.device.read(&buffer, offset, desc.bytes())?)
    }

    fn check_range(&self, name: &str, desc: &TensorDesc, offset: u64, bytes: u64) -> Result<()> {
        if offset.checked_add(bytes).is_none_or(|end| end > desc.bytes()) {
            return Err(Error::graph(
                format!("{bytes} bytes at {offset} reach past the end of {name} ({} bytes)", desc.bytes()),
                "stay within the tensor",
            ));
        }
        Ok(())
    }
}
