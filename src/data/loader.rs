//! Batches in a reproducible order, decoded and augmented ahead of their use.
//!
//! A thread of the loader's own walks the epochs and fills one batch after the other; the samples of a batch are shared
//! out among all threads of a pool. Finished batches wait in a queue of fixed length, and the memory of used ones comes
//! back through another, so that a run allocates a few batches once.

mod order;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rayon::ThreadPool;

use super::Dataset;
use super::augment::{Augment, Augmenter};
use crate::{Error, Result};

pub use stream::{Stages, Stream};

/// How many finished batches wait for their use; one more is being decoded meanwhile.
const PREFETCH: usize = 2;

/// Most finished batches that a stream holds at any time: those in the queue, one that waits for a place in it, and one
/// that is just being taken.
pub const MOST_HELD: usize = PREFETCH + 2;

/// How a dataset is cut into batches.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Samples a batch; the samples that do not fill a last batch are left out of the epoch.
    pub batch_size: usize,
    /// What order and augmentation are drawn from, together with the epoch.
    pub seed: u64,
    /// Whether every epoch has its own order; otherwise it is that of the dataset.
    pub shuffle: bool,
    /// The random changes of the images, in their order; mirroring is only marked.
    pub augment: Vec<Augment>,
}

/// A batch of B samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// 8-bit RGB, augmented, but not mirrored, `[B, H, W, 3]`.
    pub images: Vec<u8>,
    /// Classes, `[B]`.
    pub labels: Vec<u32>,
    /// 1 for a sample that is to be mirrored left to right, else 0, `[B]`.
    pub mirror: Vec<u32>,
    /// Indices in the dataset, `[B]`.
    pub indices: Vec<usize>,
    /// The epoch that it belongs to.
    pub epoch: u32,
    /// Its number in the epoch, counted from 0.
    pub number: usize,
}

/// Cuts a dataset into batches. What they hold depends on the dataset, the options and the epoch, and never on
/// the number of threads or their timing.
pub struct Loader {
    source: Arc<Source>,
}

/// What the threads work with.
struct Source {
    dataset: Arc<dyn Dataset>,
    options: LoaderOptions,
    augmenter: Augmenter,
    size: [usize; 2],
    /// The threads that decode; without it those that the whole process shares.
    pool: Option<ThreadPool>,
}

impl Source {
    fn batches_per_epoch(&self) -> usize {
        self.dataset.len() / self.options.batch_size
    }
}

impl Loader {
    /// A loader of `dataset`, which decodes on all cores. Loads its first image to learn the size that all of them
    /// must have.
    ///
    /// # Errors
    /// A batch size of zero, a dataset of less than one batch or of more than 2^32 images, and a first image
    /// that cannot be loaded.
    pub fn new(dataset: Arc<dyn Dataset>, options: LoaderOptions) -> Result<Self> {
        Self::with_pool(dataset, options, None)
    }

    /// [`Loader::new`], but with `threads` threads of its own to decode.
    ///
    /// # Errors
    /// Those of [`Loader::new`], no threads, and threads that cannot be started.
    pub fn with_threads(dataset: Arc<dyn Dataset>, options: LoaderOptions, threads: usize) -> Result<Self> {
        if threads == 0 {
            return Err(Error::usage("found 0 threads", "give at least 1"));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("epl-decode-{index}"))
            .build()
            .map_err(|error| Error::io("decoding threads", std::io::Error::other(error)))?;
        Self::with_pool(dataset, options, Some(pool))
    }

    fn with_pool(
        dataset: Arc<dyn Dataset>,
        options: LoaderOptions,
        pool: Option<ThreadPool>,
    ) -> Result<Self> {
        if options.batch_size == 0 {
            return Err(Error::usage("train.batch_size is 0", "set train.batch_size to at least 1"));
        }
        if dataset.len() < options.batch_size {
            return Err(Error::usage(
                format!(
                    "train.batch_size is {}, but the data has {} images",
                    options.batch_size,
                    dataset.len()
                ),
                format!("set train.batch_size to at most {}", dataset.len()),
            ));
        }
        if u32::try_from(dataset.len()).is_err() {
            return Err(Error::usage(
                format!("the data has {} images", dataset.len()),
                "train on at most 2^32",
            ));
        }
        let first = dataset.load(0)?;
        let augmenter = Augmenter::new(&options.augment, options.seed);
        let size = [first.height, first.width];
        Ok(Self { source: Arc::new(Source { dataset, options, augmenter, size, pool }) })
    }

    /// The size of every image, `[H, W]`.
    pub fn image_size(&self) -> [usize; 2] {
        self.source.size
    }

    /// The number of whole batches in an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.source.batches_per_epoch()
    }

    /// The batches of `epoch` from number `first_batch` on (counted from 0), so that an interrupted epoch can
    /// be continued. Threads decode ahead until the iterator is dropped.
    ///
    /// # Errors
    /// When the thread cannot be started. A sample that cannot be loaded is an error of its batch, the last
    /// item that the iterator gives.
    pub fn epoch(&self, epoch: u32, first_batch: usize) -> Result<Stream> {
        self.stream(epoch..=epoch, first_batch)
    }

    /// The batches of one epoch after the other, from number `first_batch` of the first one on. While the last batches of
    /// an epoch are used the first of the next one are decoded already.
    ///
    /// # Errors
    /// Those of [`Loader::epoch`].
    pub fn stream(&self, epochs: std::ops::RangeInclusive<u32>, first_batch: usize) -> Result<Stream> {
        Stream::start(Arc::clone(&self.source), epochs, first_batch)
    }
}
