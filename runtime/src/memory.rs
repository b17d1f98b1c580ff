//! What a plan takes of a device's memory, to the byte: sizes of buffers as they are allocated, and the layout of those that
//! hold many small things. The session allocates by the same functions by which the plan counts.

use std::collections::BTreeMap;

use crate::caps::Caps;
use crate::graph::{Graph, Storage};
use crate::op::Dispatch;

/// Steps in flight where nothing else is said.
pub(crate) const IN_FLIGHT: usize = 3;

/// Bytes of the token by which the host knows that a step was done.
pub(crate) const TOKEN: u64 = 8;

/// Bytes of the receipt of a step: its token and the number of submissions, and of the buffer that the token is uploaded to, a
/// uniform block.
pub(crate) const RECEIPT: u64 = 16;

/// What a staging buffer is longer for a receipt, or for a token, which is mapped at a multiple of 8.
pub(crate) const RECEIPT_PLACE: u64 = 16;

/// Whether a step has receipts: one that nothing is written to, or read from, has no place for one.
pub(crate) fn has_receipts(input_bytes: u64, download_bytes: u64) -> bool {
    input_bytes > 0 && download_bytes > 0
}

/// The alignment of a parameter block: WebGPU's default limit, which no adapter exceeds.
pub(crate) const BLOCK_ALIGNMENT: u64 = 256;

/// Bytes of device memory by kind. Each buffer counts as it is allocated: rounded up by [`Caps::buffer_bytes`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Persistent tensors by category.
    pub persistent: BTreeMap<&'static str, u64>,
    /// Inputs that the host writes.
    pub inputs: u64,
    /// Slots, shared by activations, gradients of activations and workspaces.
    pub slots: u64,
    /// What the slots would take if no two tensors shared one.
    pub without_sharing: u64,
    /// Parameter blocks.
    pub parameters: u64,
    /// What inputs are written to and results are read from, for all steps in flight, and the receipt of a step.
    pub staging: u64,
    /// What transients are filled with between steps, where the session does that.
    pub poison: u64,
}

impl Memory {
    /// All of it: what the session of the plan and its persistent tensors hold as long as they live.
    ///
    /// Not in it is what a transfer outside the steps takes while it lasts: reading tensors back and writing them stages up
    /// to 64 MiB at a time.
    pub fn total(&self) -> u64 {
        self.persistent.values().sum::<u64>()
            + self.inputs
            + self.slots
            + self.parameters
            + self.staging
            + self.poison
    }

    /// Counts the persistent tensors of `graph`.
    pub(crate) fn count_persistent(&mut self, graph: &Graph, caps: &Caps) {
        for (_, tensor) in graph.tensors() {
            if let Storage::Persistent(category) = tensor.storage {
                let shards = caps.shards(&tensor.desc).into_iter();
                *self.persistent.entry(category).or_default() +=
                    shards.map(|(_, bytes)| caps.buffer_bytes(bytes)).sum::<u64>();
            }
        }
    }

    /// Counts the staging of `in_flight` steps, and their receipts.
    pub(crate) fn count_staging(&mut self, graph: &Graph, caps: &Caps, input_bytes: u64, in_flight: usize) {
        let (_, download) = download_layout(graph);
        let token = if has_receipts(input_bytes, download) { RECEIPT_PLACE } else { 0 };
        let buffers = [input_bytes, download].into_iter().filter(|&bytes| bytes > 0);
        self.staging = in_flight as u64 * buffers.map(|bytes| caps.buffer_bytes(bytes + token)).sum::<u64>();
        if token > 0 {
            self.staging += 2 * caps.buffer_bytes(RECEIPT);
        }
    }
}

/// The bytes `(first, length)` of each dispatch's parameter block in the buffer of them all, and its length.
pub(crate) fn parameter_layout<'a>(dispatches: impl Iterator<Item = &'a Dispatch>) -> (Vec<(u64, u64)>, u64) {
    let mut end = 0u64;
    let blocks = dispatches.map(|dispatch| {
        let first = end.next_multiple_of(BLOCK_ALIGNMENT);
        // A uniform struct is as large as its fields, rounded up to 16 bytes.
        let length = (dispatch.params.len() as u64).next_multiple_of(16).max(16);
        end = first + length;
        (first, length)
    });
    let blocks = blocks.collect();
    (blocks, end.max(16))
}

/// The first byte of each fetched tensor in the buffer that they are read from, and its length.
pub(crate) fn download_layout(graph: &Graph) -> (Vec<u64>, u64) {
    let mut end = 0u64;
    let offsets = graph.fetched().iter().map(|&id| {
        let first = end;
        end += graph.tensor(id).desc.bytes().next_multiple_of(8);
        first
    });
    let offsets = offsets.collect();
    (offsets, end)
}
