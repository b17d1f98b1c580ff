//! The threads behind an iterator of batches.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::order::order;
use super::{Batch, PREFETCH, Source};
use crate::data::augment::Scratch;
use crate::{Error, Result};

/// Batches before the end of an epoch at which the order of the next one is made, beside the decoding: of tens of
/// millions of samples that takes a second or more.
const ORDER_AHEAD: usize = 64;

/// The batches of one or more epochs; see [`super::Loader::stream`].
pub struct Stream {
    receiver: Option<Receiver<Result<Batch>>>,
    recycler: Sender<Batch>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    remaining: usize,
}

/// What the two ends of the queue share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Finished batches that nobody has taken yet, and the most of them at any time.
    waiting: AtomicUsize,
    most_waiting: AtomicUsize,
    decoding: AtomicU64,
    augmenting: AtomicU64,
}

/// Where the loader's time has gone so far, added up over all threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stages {
    /// Reading and decoding, labels included.
    pub decoding: Duration,
    /// Augmentation.
    pub augmenting: Duration,
    /// The most finished batches that were held at any time, at most [`super::MOST_HELD`].
    pub most_waiting: usize,
}

impl Stream {
    pub(super) fn start(
        source: Arc<Source>,
        epochs: RangeInclusive<u32>,
        first_batch: usize,
    ) -> Result<Self> {
        let each = source.batches_per_epoch();
        let count = if epochs.is_empty() { 0 } else { (epochs.end() - epochs.start()) as usize + 1 };
        let remaining = each.saturating_mul(count).saturating_sub(first_batch.min(each));
        let (sender, receiver) = mpsc::sync_channel(PREFETCH);
        let (recycler, recycled) = mpsc::channel();
        let shared = Arc::new(Shared::default());
        let worker = Worker { source, shared: Arc::clone(&shared) };
        let thread = std::thread::Builder::new()
            .name("epl-loader".to_owned())
            .spawn(move || worker.run(epochs, first_batch, &sender, &recycled))
            .map_err(|source| Error::io("loader thread", source))?;
        Ok(Self { receiver: Some(receiver), recycler, shared, thread: Some(thread), remaining })
    }

    /// Gives the memory of a used batch back, which saves its allocation anew.
    pub fn recycle(&self, batch: Batch) {
        // Once the thread has decoded its last batch nobody needs the memory.
        let _ = self.recycler.send(batch);
    }

    /// Where the time has gone so far.
    pub fn stages(&self) -> Stages {
        let nanoseconds = |counter: &AtomicU64| Duration::from_nanos(counter.load(Ordering::Relaxed));
        Stages {
            decoding: nanoseconds(&self.shared.decoding),
            augmenting: nanoseconds(&self.shared.augmenting),
            most_waiting: self.shared.most_waiting.load(Ordering::Relaxed),
        }
    }

    /// Stops the thread; the message of its panic, if it ended in one.
    fn join(&mut self) -> Option<String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.receiver = None;
        let panic = self.thread.take()?.join().err()?;
        let text =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Some(text.unwrap_or("no message").to_owned())
    }
}

impl Iterator for Stream {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining == 0 {
            return None;
        }
        let received = self.receiver.as_ref().and_then(|receiver| receiver.recv().ok());
        if let Some(Ok(batch)) = received {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            self.remaining -= 1;
            return Some(Ok(batch));
        }
        self.remaining = 0;
        let panic = self.join();
        Some(received.unwrap_or_else(|| {
            Err(Error::data(
                "loader thread",
                format!("a panic while decoding ({})", panic.unwrap_or_default()),
                "an image or an error",
                "check the data; this is also a fault of the program, please report it",
            ))
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining.min(1), Some(self.remaining))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.join();
    }
}

struct Worker {
    source: Arc<Source>,
    shared: Arc<Shared>,
}

impl Worker {
    /// Sends the batches until the last one, an error, or nobody wants them.
    fn run(
        &self,
        epochs: RangeInclusive<u32>,
        first_batch: usize,
        sender: &SyncSender<Result<Batch>>,
        recycled: &Receiver<Batch>,
    ) {
        let mut next_order = None;
        let mut first_batch = first_batch;
        let last_epoch = *epochs.end();
        for epoch in epochs {
            let order = match next_order.take() {
                Some(ahead) => self.await_order(ahead, epoch),
                None => self.order(epoch),
            };
            let batches = self.source.batches_per_epoch();
            for (number, indices) in order.chunks_exact(self.source.options.batch_size).enumerate() {
                if batches - number <= ORDER_AHEAD && epoch < last_epoch && next_order.is_none() {
                    next_order = self.order_ahead(epoch + 1);
                }
                if number < first_batch {
                    continue;
                }
                let memory = recycled.try_recv().ok();
                let batch = self.batch(epoch, number, indices, memory);
                let failed = batch.is_err();
                if self.shared.stop.load(Ordering::Relaxed) {
                    return;
                }
                if !failed {
                    let waiting = self.shared.waiting.fetch_add(1, Ordering::Relaxed) + 1;
                    self.shared.most_waiting.fetch_max(waiting, Ordering::Relaxed);
                }
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
            first_batch = 0;
        }
    }

    fn order(&self, epoch: u32) -> Vec<u32> {
        order(self.source.dataset.len(), &self.source.options, epoch)
    }

    /// Starts to make an order on another thread.
    fn order_ahead(&self, epoch: u32) -> Option<JoinHandle<Vec<u32>>> {
        let (len, options) = (self.source.dataset.len(), self.source.options.clone());
        let thread = std::thread::Builder::new().name("epl-order".to_owned());
        thread.spawn(move || order(len, &options, epoch)).ok()
    }

    fn await_order(&self, ahead: JoinHandle<Vec<u32>>, epoch: u32) -> Vec<u32> {
        ahead.join().unwrap_or_else(|_| self.order(epoch))
    }

    fn batch(&self, epoch: u32, number: usize, indices: &[u32], memory: Option<Batch>) -> Result<Batch> {
        let empty = || Batch {
            images: Vec::new(),
            labels: Vec::new(),
            mirror: Vec::new(),
            indices: Vec::new(),
            epoch,
            number,
        };
        let mut batch = memory.unwrap_or_else(empty);
        (batch.epoch, batch.number) = (epoch, number);
        let image_bytes = self.source.size.iter().product::<usize>() * 3;
        batch.images.resize(indices.len() * image_bytes, 0);
        batch.indices.clear();
        batch.indices.extend(indices.iter().map(|&index| index as usize));
        batch.mirror.clear();
        let mirrored = |&index: &usize| u32::from(self.source.augmenter.mirrored(epoch, index));
        batch.mirror.extend(batch.indices.iter().map(mirrored));
        let (images, indices) = (&mut batch.images, &batch.indices);
        let mut decode = || -> Vec<Result<u32>> {
            images
                .par_chunks_mut(image_bytes.max(1))
                .zip(indices.par_iter())
                .map_init(Scratch::default, |scratch, (slot, &index)| {
                    self.sample(slot, epoch, index, scratch)
                })
                .collect()
        };
        let loaded = match &self.source.pool {
            Some(pool) => pool.install(decode),
            None => decode(),
        };
        batch.labels.clear();
        for label in loaded {
            // The first error in the order of the batch, whichever thread met one first.
            batch.labels.push(label?);
        }
        Ok(batch)
    }

    fn sample(&self, slot: &mut [u8], epoch: u32, index: usize, scratch: &mut Scratch) -> Result<u32> {
        // The batch will not be used: end quickly.
        if self.shared.stop.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let source = &self.source;
        let started = Instant::now();
        source.dataset.load_into(index, source.size, slot)?;
        let label = source.dataset.label(index)?;
        let decoded = Instant::now();
        self.shared.add(&self.shared.decoding, decoded - started);
        if !source.augmenter.is_identity() {
            source.augmenter.apply(epoch, index, source.size, slot, scratch);
            self.shared.add(&self.shared.augmenting, decoded.elapsed());
        }
        Ok(label)
    }
}

impl Shared {
    fn add(&self, counter: &AtomicU64, time: Duration) {
        counter.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(0), Ordering::Relaxed);
    }
}
