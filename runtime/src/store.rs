//! Persistent tensors: weights, optimiser state, running statistics. They outlive plans and are shared by them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::Device;
use crate::{Error, HostTensor, Result, TensorDesc};

struct Stored {
    desc: TensorDesc,
    shards: Vec<Shard>,
}

/// A buffer that holds a tensor, or some of its rows.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    /// The tensor's byte at which the buffer starts.
    pub(crate) offset: u64,
    /// The tensor's bytes in it.
    pub(crate) bytes: u64,
    pub(crate) buffer: wgpu::Buffer,
}

/// The shard that holds all of `bytes` bytes from `offset` on.
pub(crate) fn shard_of(shards: &[Shard], offset: u64, bytes: u64) -> Option<&Shard> {
    shards.iter().find(|shard| shard.offset <= offset && offset + bytes <= shard.offset + shard.bytes)
}

/// Bytes that are staged at once for a transfer: larger ones go in several, so that the host never holds a second
/// copy of a tensor of gigabytes.
const TRANSFER: u64 = 64 << 20;

/// The persistent tensors of a model on one device, by name. Several sessions may share it.
pub struct Store {
    device: Arc<Device>,
    tensors: Mutex<BTreeMap<String, Stored>>,
    writes: AtomicU32,
    /// Bytes that were staged since the last wait.
    staged: AtomicU64,
}

/// Writes that may be pending before they are handed to the queue: more than about 64 were seen to corrupt early ones,
/// and each holds staging memory.
const PENDING_WRITES: u32 = 32;

impl Store {
    /// An empty store.
    pub fn new(device: &Arc<Device>) -> Self {
        Self {
            device: device.clone(),
            tensors: Mutex::default(),
            writes: AtomicU32::new(0),
            staged: AtomicU64::new(0),
        }
    }

    /// The device that the tensors live on.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The buffers of `name`, in order; made and filled with zeros where it does not exist yet.
    pub(crate) fn shards(&self, name: &str, desc: &TensorDesc) -> Result<Vec<Shard>> {
        let mut tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = tensors.get(name) {
            if stored.desc != *desc {
                return Err(Error::graph(
                    format!("persistent tensor {name} is {}; this graph wants {desc}", stored.desc),
                    "give tensors of different shapes different names",
                ));
            }
            return Ok(stored.shards.clone());
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let mut shards = Vec::new();
        for (offset, bytes) in self.device.caps().shards(desc) {
            shards.push(Shard { offset, bytes, buffer: self.device.buffer(name, bytes, usage)? });
        }
        tensors.insert(name.to_string(), Stored { desc: desc.clone(), shards: shards.clone() });
        Ok(shards)
    }

    fn find(&self, name: &str) -> Result<(TensorDesc, Vec<Shard>)> {
        let tensors = self.tensors.lock().unwrap_or_else(PoisonError::into_inner);
        match tensors.get(name) {
            Some(stored) => Ok((stored.desc.clone(), stored.shards.clone())),
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
        self.write_range(name, 0, &value.padded_bytes())
    }

    /// Sets the bytes of a tensor from `offset` on.
    pub fn write_range(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let (desc, shards) = self.find(name)?;
        self.check_range(name, &desc, offset, bytes.len() as u64)?;
        for (shard, first, length) in transfers(&shards, offset, bytes.len() as u64) {
            let from = (first - offset) as usize;
            let part = bytes.get(from..from + length as usize).unwrap_or(&[]);
            let writes = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
            // Staging memory is free again when what it was for is done.
            if self.staged.load(Ordering::Relaxed) + length > TRANSFER
                || writes.is_multiple_of(PENDING_WRITES)
            {
                self.device.settle()?;
                self.staged.store(0, Ordering::Relaxed);
            }
            self.device.write(name, &shard.buffer, first - shard.offset, part)?;
            self.staged.fetch_add(length, Ordering::Relaxed);
        }
        self.device.check()
    }

    /// Reads a whole tensor back, waiting for the GPU.
    pub fn read(&self, name: &str) -> Result<HostTensor> {
        let (desc, _) = self.find(name)?;
        self.read_range(name, 0, &desc)
    }

    /// Reads the tensor `desc` that starts at byte `offset` of tensor `name`, waiting for the GPU.
    pub fn read_range(&self, name: &str, offset: u64, desc: &TensorDesc) -> Result<HostTensor> {
        let (whole, shards) = self.find(name)?;
        self.check_range(name, &whole, offset, desc.bytes())?;
        HostTensor::from_bytes(desc, &read_shards(&self.device, &shards, offset, desc.bytes())?)
    }

    /// Reads some rows of the matrix `name` `[R, C]` back, in the order of `rows`: `[rows.len(), C]`. Waits for the GPU
    /// once for every few thousand of them.
    pub fn read_rows(&self, name: &str, rows: &[u32]) -> Result<HostTensor> {
        let (desc, shards) = self.find(name)?;
        let &[count, columns] = desc.shape.dims() else {
            return Err(Error::graph(format!("{name} {desc} has no rows"), "read a matrix"));
        };
        let bytes = (columns * desc.dtype.bytes()) as u64;
        let mut all = Vec::with_capacity(rows.len() * bytes as usize);
        for part in rows.chunks((TRANSFER / bytes.max(1)).max(1) as usize) {
            let mut places = Vec::with_capacity(part.len());
            for &row in part {
                let offset = u64::from(row) * bytes;
                let shard = shard_of(&shards, offset, bytes).ok_or_else(|| {
                    Error::graph(format!("row {row} of {name} with {count} rows"), "stay within the tensor")
                })?;
                places.push((&shard.buffer, offset - shard.offset));
            }
            all.extend_from_slice(&self.device.read_parts(&places, bytes)?);
        }
        HostTensor::from_bytes(&TensorDesc { shape: [rows.len(), columns].into(), ..desc }, &all)
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

/// The parts `(shard, first byte of the tensor, length)` of a transfer, each in one buffer and at most [`TRANSFER`] long.
fn transfers(shards: &[Shard], offset: u64, bytes: u64) -> impl Iterator<Item = (&Shard, u64, u64)> {
    let end = offset + bytes;
    shards.iter().flat_map(move |shard| {
        let first = shard.offset.max(offset);
        let last = (shard.offset + shard.bytes).min(end).max(first);
        let part = move |i| {
            let at = first + i * TRANSFER;
            (shard, at, TRANSFER.min(last - at))
        };
        (0..(last - first).div_ceil(TRANSFER)).map(part)
    })
}

/// Bytes of a tensor that lies in `shards`, waiting for the GPU.
pub(crate) fn read_shards(device: &Device, shards: &[Shard], offset: u64, bytes: u64) -> Result<Vec<u8>> {
    let mut all = Vec::with_capacity(bytes as usize);
    for (shard, first, length) in transfers(shards, offset, bytes) {
        all.extend_from_slice(&device.read(&shard.buffer, first - shard.offset, length)?);
    }
    Ok(all)
}
