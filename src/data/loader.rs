//! Batches in a reproducible order, decoded ahead of their use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread::JoinHandle;

use rand::Rng;
use rand_pcg::Pcg64;
use rayon::prelude::*;

use super::Dataset;
use crate::{Error, Result};

/// How many finished batches wait for their use; one more is being decoded meanwhile.
const PREFETCH: usize = 2;

/// How a dataset is cut into batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Samples a batch; the samples that do not fill a last batch are left out of the epoch.
    pub batch_size: usize,
    /// What order and mirroring are drawn from, together with the epoch.
    pub seed: u64,
    /// Whether every epoch has its own order; otherwise it is that of the dataset.
    pub shuffle: bool,
    /// Whether each sample is marked for mirroring with probability one half.
    pub mirror: bool,
}

/// A batch of B samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// 8-bit RGB as in the dataset, not mirrored, `[B, H, W, 3]`.
    pub images: Vec<u8>,
    /// Classes, `[B]`.
    pub labels: Vec<u32>,
    /// 1 for a sample that is to be mirrored left to right, else 0, `[B]`.
    pub mirror: Vec<u32>,
    /// Indices in the dataset, `[B]`.
    pub indices: Vec<usize>,
}

/// Cuts a dataset into batches. What they hold depends on the dataset, the options and the epoch, and never on
/// the number of threads or their timing.
pub struct Loader {
    dataset: Arc<dyn Dataset>,
    options: LoaderOptions,
    size: [usize; 2],
}

impl Loader {
    /// A loader of `dataset`. Loads its first image to learn the size that all of them must have.
    ///
    /// # Errors
    /// A batch size of zero, a dataset of less than one batch or of more than 2^32 images, and a first image
    /// that cannot be loaded.
    pub fn new(dataset: Arc<dyn Dataset>, options: LoaderOptions) -> Result<Self> {
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
        Ok(Self { dataset, options, size: [first.height, first.width] })
    }

    /// The size of every image, `[H, W]`.
    pub fn image_size(&self) -> [usize; 2] {
        self.size
    }

    /// The number of whole batches in an epoch.
    pub fn batches_per_epoch(&self) -> usize {
        self.dataset.len() / self.options.batch_size
    }

    /// The batches of `epoch` from number `first_batch` on (counted from 0), so that an interrupted epoch can
    /// be continued. A thread decodes ahead until the iterator is dropped.
    ///
    /// # Errors
    /// When the thread cannot be started. A sample that cannot be loaded is an error of its batch, the last
    /// item that the iterator gives.
    pub fn epoch(&self, epoch: u32, first_batch: usize) -> Result<Epoch> {
        let batches = first_batch.min(self.batches_per_epoch())..self.batches_per_epoch();
        let (sender, receiver) = mpsc::sync_channel(PREFETCH);
        let (recycler, recycled) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let remaining = batches.len();
        let worker = Worker {
            dataset: Arc::clone(&self.dataset),
            options: self.options.clone(),
            size: self.size,
            epoch,
            stop: Arc::clone(&stop),
        };
        let thread = std::thread::Builder::new()
            .name("epl-loader".to_owned())
            .spawn(move || worker.run(batches, &sender, &recycled))
            .map_err(|source| Error::io("loader thread", source))?;
        Ok(Epoch { receiver: Some(receiver), recycler, stop, thread: Some(thread), remaining })
    }
}

/// The batches of one epoch; see [`Loader::epoch`].
pub struct Epoch {
    receiver: Option<Receiver<Result<Batch>>>,
    recycler: Sender<Vec<u8>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    remaining: usize,
}

impl Epoch {
    /// Gives the memory of a used batch back, which saves its allocation anew.
    pub fn recycle(&self, batch: Batch) {
        // Once the thread has decoded its last batch nobody needs the memory.
        let _ = self.recycler.send(batch.images);
    }

    /// Stops the thread; the message of its panic, if it ended in one.
    fn join(&mut self) -> Option<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.receiver = None;
        let panic = self.thread.take()?.join().err()?;
        let text =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Some(text.unwrap_or("no message").to_owned())
    }
}

impl Iterator for Epoch {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining == 0 {
            return None;
        }
        let received = self.receiver.as_ref().and_then(|receiver| receiver.recv().ok());
        if let Some(Ok(batch)) = received {
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

impl Drop for Epoch {
    fn drop(&mut self) {
        self.join();
    }
}

/// What the thread of an [`Epoch`] works with.
struct Worker {
    dataset: Arc<dyn Dataset>,
    options: LoaderOptions,
    size: [usize; 2],
    epoch: u32,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn run(
        &self,
        batches: std::ops::Range<usize>,
        sender: &SyncSender<Result<Batch>>,
        recycled: &Receiver<Vec<u8>>,
    ) {
        let order = order(self.dataset.len(), &self.options, self.epoch);
        let size = self.options.batch_size;
        for indices in order.chunks_exact(size).skip(batches.start).take(batches.len()) {
            let memory = recycled.try_recv().unwrap_or_default();
            let batch = self.batch(indices.iter().map(|&index| index as usize).collect(), memory);
            let failed = batch.is_err();
            if self.stop.load(Ordering::Relaxed) || sender.send(batch).is_err() || failed {
                return;
            }
        }
    }

    fn batch(&self, indices: Vec<usize>, mut images: Vec<u8>) -> Result<Batch> {
        let image_bytes = self.size.iter().product::<usize>() * 3;
        images.resize(indices.len() * image_bytes, 0);
        let loaded: Vec<Result<u32>> = images
            .par_chunks_mut(image_bytes.max(1))
            .zip(indices.par_iter())
            .map(|(slot, &index)| self.sample(slot, index))
            .collect();
        // The first error in the order of the batch, whichever thread met one first.
        let labels = loaded.into_iter().collect::<Result<Vec<u32>>>()?;
        let mirror = indices
            .iter()
            .map(|&index| u32::from(self.options.mirror && mirrored(self.options.seed, self.epoch, index)))
            .collect();
        Ok(Batch { images, labels, mirror, indices })
    }

    fn sample(&self, slot: &mut [u8], index: usize) -> Result<u32> {
        // The batch will not be used: end quickly.
        if self.stop.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let image = self.dataset.load(index)?;
        if [image.height, image.width] != self.size || image.rgb.len() != slot.len() {
            return Err(Error::data(
                self.dataset.name(index),
                format!("an image of {} x {} (height x width)", image.height, image.width),
                format!("{} x {}, the size of the first image", self.size[0], self.size[1]),
                "give all images one size, or set data.resize = true",
            ));
        }
        slot.copy_from_slice(&image.rgb);
        self.dataset.label(index)
    }
}

/// The order of an epoch's samples: a Fisher-Yates shuffle by a generator seeded with seed and epoch.
fn order(len: usize, options: &LoaderOptions, epoch: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..len).map(|index| index as u32).collect();
    if options.shuffle {
        let mut random = Pcg64::new(u128::from(mix(options.seed)), u128::from(epoch));
        for last in (1..len).rev() {
            // Multiply and shift: the bias is below 2^-32, and the draw is fixed by the generator alone,
            // whatever the sampling of a later version of the rand crate.
            let drawn = (u128::from(random.next_u64()) * (last as u128 + 1)) >> 64;
            order.swap(last, drawn as usize);
        }
    }
    order
}

/// Whether a sample is mirrored: one bit of a hash, so that it does not depend on the order either.
fn mirrored(seed: u64, epoch: u32, index: usize) -> bool {
    // Any constant keeps this apart from the seeding of the order.
    let seeded = mix(seed ^ 0x6d69_7272_6f72_6564);
    mix(mix(seeded ^ u64::from(epoch)) ^ index as u64) >> 63 == 1
}

/// The SplitMix64 step: an avalanche over 64 bits (Steele, Lea, Flood 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Image, InMemory};
    use std::sync::atomic::AtomicUsize;

    fn dataset(len: usize) -> Arc<InMemory> {
        let samples = (0..len).map(|index| (vec![index as u8; 12], index as u32 % 5)).collect();
        Arc::new(InMemory::new([2, 2], samples, None).unwrap())
    }

    fn options() -> LoaderOptions {
        LoaderOptions { batch_size: 8, seed: 3, shuffle: true, mirror: true }
    }

    fn batches(loader: &Loader, epoch: u32, first: usize) -> Vec<Batch> {
        loader.epoch(epoch, first).unwrap().collect::<Result<_>>().unwrap()
    }

    #[test]
    fn an_epoch_is_every_sample_at_most_once_and_whole() {
        let loader = Loader::new(dataset(50), options()).unwrap();
        assert_eq!((loader.batches_per_epoch(), loader.image_size()), (6, [2, 2]));
        let batches = batches(&loader, 1, 0);
        assert_eq!(batches.len(), 6);
        let mut seen: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 48);
        for batch in &batches {
            for (slot, &index) in batch.indices.iter().enumerate() {
                assert_eq!(batch.images[slot * 12..][..12], [index as u8; 12]);
                assert_eq!(batch.labels[slot], index as u32 % 5);
                assert!(batch.mirror[slot] < 2);
            }
        }
    }

    #[test]
    fn batches_depend_on_seed_and_epoch_alone() {
        let loader = Loader::new(dataset(50), options()).unwrap();
        let all = batches(&loader, 1, 0);
        assert_eq!(all, batches(&loader, 1, 0));
        assert_eq!(all[4..], batches(&loader, 1, 4));
        assert!(batches(&loader, 1, 6).is_empty() && batches(&loader, 1, 99).is_empty());
        let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(all, single.install(|| batches(&loader, 1, 0)));
        assert_ne!(all, batches(&loader, 2, 0));
        let other = Loader::new(dataset(50), LoaderOptions { seed: 4, ..options() }).unwrap();
        assert_ne!(all, batches(&other, 1, 0));
        let plain =
            Loader::new(dataset(50), LoaderOptions { shuffle: false, mirror: false, ..options() }).unwrap();
        let indices: Vec<usize> = batches(&plain, 7, 0).into_iter().flat_map(|batch| batch.indices).collect();
        assert_eq!(indices, (0..48).collect::<Vec<_>>());
        assert!(batches(&plain, 7, 0).iter().all(|batch| batch.mirror.iter().all(|&flag| flag == 0)));
    }

    #[test]
    fn order_and_mirroring_never_change() {
        // Runs are to be reproducible across versions of the program: these values are a promise.
        assert_eq!(order(10, &options(), 1), FIRST_ORDER);
        let flags: Vec<bool> = (0..10).map(|index| mirrored(3, 1, index)).collect();
        assert_eq!(flags.iter().map(|&flag| u32::from(flag)).collect::<Vec<_>>(), FIRST_FLAGS);
    }

    const FIRST_ORDER: [u32; 10] = [7, 4, 1, 0, 2, 8, 6, 9, 3, 5];
    const FIRST_FLAGS: [u32; 10] = [0, 0, 0, 0, 1, 0, 0, 1, 1, 1];

    #[test]
    fn the_shuffle_and_the_mirroring_are_uniform() {
        let mut positions = [[0_u32; 6]; 6];
        for epoch in 0..6000 {
            for (position, index) in order(6, &options(), epoch).into_iter().enumerate() {
                positions[index as usize][position] += 1;
            }
        }
        // 1000 expected, standard deviation 29.
        assert!(positions.iter().flatten().all(|count| (850..1150).contains(count)), "{positions:?}");
        let flags = (0..10_000).filter(|&index| mirrored(3, 1, index)).count();
        assert!((4800..5200).contains(&flags), "{flags}");
        let agreeing = (0..10_000).filter(|&index| mirrored(3, 1, index) == mirrored(3, 2, index)).count();
        assert!((4800..5200).contains(&agreeing), "{agreeing}");
    }

    #[test]
    fn impossible_batches_are_usage_errors() {
        for batch_size in [0, 51] {
            let error = Loader::new(dataset(50), LoaderOptions { batch_size, ..options() }).err().unwrap();
            assert!(matches!(error, Error::Usage { .. }), "{error}");
        }
    }

    /// Counts what is loaded, and fails as told at one index.
    struct Faulty {
        loads: AtomicUsize,
        fault: fn() -> Result<Image>,
    }

    impl Dataset for Faulty {
        fn len(&self) -> usize {
            1000
        }

        fn num_classes(&self) -> usize {
            1
        }

        fn label(&self, _: usize) -> Result<u32> {
            Ok(0)
        }

        fn load(&self, index: usize) -> Result<Image> {
            self.loads.fetch_add(1, Ordering::Relaxed);
            if index == 20 { (self.fault)() } else { Ok(Image { rgb: vec![0; 3], height: 1, width: 1 }) }
        }

        fn name(&self, index: usize) -> String {
            format!("sample {index}")
        }
    }

    fn faulty(fault: fn() -> Result<Image>) -> (Arc<Faulty>, Loader) {
        let dataset = Arc::new(Faulty { loads: AtomicUsize::new(0), fault });
        let options = LoaderOptions { batch_size: 8, seed: 0, shuffle: false, mirror: false };
        (Arc::clone(&dataset), Loader::new(dataset, options).unwrap())
    }

    #[test]
    fn a_bad_sample_ends_the_epoch_with_its_error() {
        type Fault = fn() -> Result<Image>;
        let faults: [(Fault, &str); 3] = [
            (|| Err(Error::data("sample 20", "nothing", "an image", "")), "sample 20"),
            (|| Ok(Image { rgb: vec![0; 6], height: 1, width: 2 }), "sample 20"),
            (|| panic!("decoder fault"), "decoder fault"),
        ];
        for (fault, text) in faults {
            let (_, loader) = faulty(fault);
            let items: Vec<Result<Batch>> = loader.epoch(0, 0).unwrap().collect();
            assert_eq!(items.len(), 3);
            assert!(items[..2].iter().all(Result::is_ok));
            assert!(items[2].as_ref().unwrap_err().to_string().contains(text), "{:?}", items[2]);
        }
    }

    #[test]
    fn dropping_the_iterator_stops_the_thread_and_prefetch_is_bounded() {
        let (dataset, loader) = faulty(|| Ok(Image { rgb: vec![0; 3], height: 1, width: 1 }));
        let mut epoch = loader.epoch(0, 0).unwrap();
        let batch = epoch.next().unwrap().unwrap();
        epoch.recycle(batch);
        drop(epoch);
        let loads = dataset.loads.load(Ordering::Relaxed);
        // The first image for its size, the batch taken, those waiting, the one in the thread's hands, and
        // one more that may have been started when the batch was taken.
        assert!(loads <= 1 + 8 * (1 + PREFETCH + 2), "{loads}");
        assert_eq!(Arc::strong_count(&dataset), 2, "the thread has let go of the dataset");
    }
}
