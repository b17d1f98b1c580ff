//! Order, resuming, prefetching and faults.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::order::order;
use super::*;
use crate::data::{Image, InMemory};

fn dataset(len: usize) -> Arc<InMemory> {
    let samples = (0..len).map(|index| (vec![index as u8; 12], index as u32 % 5)).collect();
    Arc::new(InMemory::new([2, 2], samples, None).unwrap())
}

fn named(name: &str) -> Augment {
    Augment::named(name).unwrap()
}

fn options() -> LoaderOptions {
    LoaderOptions { batch_size: 8, seed: 3, shuffle: true, augment: vec![named("mirror")] }
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
    assert_ne!(all, batches(&loader, 2, 0));
    let other = Loader::new(dataset(50), LoaderOptions { seed: 4, ..options() }).unwrap();
    assert_ne!(all, batches(&other, 1, 0));
    let plain =
        Loader::new(dataset(50), LoaderOptions { shuffle: false, augment: Vec::new(), ..options() }).unwrap();
    let indices: Vec<usize> = batches(&plain, 7, 0).into_iter().flat_map(|batch| batch.indices).collect();
    assert_eq!(indices, (0..48).collect::<Vec<_>>());
    assert!(batches(&plain, 7, 0).iter().all(|batch| batch.mirror.iter().all(|&flag| flag == 0)));
}

#[test]
fn batches_do_not_depend_on_the_number_of_threads() {
    let samples = (0..40_u32).map(|index| {
        let pixels = (0..16 * 16 * 3).map(|at| (index * 7 + at * 13) as u8).collect();
        (pixels, index % 5)
    });
    let dataset: Arc<dyn Dataset> = Arc::new(InMemory::new([16, 16], samples.collect(), None).unwrap());
    let names = ["mirror", "shift", "rotate", "jitter", "low_resolution", "blur", "erase"];
    let augment = names.map(|name| Augment { probability: 0.5, ..named(name) }).to_vec();
    let with = |threads: usize, batch_size: usize| {
        let options = LoaderOptions { batch_size, augment: augment.clone(), ..options() };
        let loader = Loader::with_threads(Arc::clone(&dataset), options, threads).unwrap();
        batches(&loader, 1, 0)
    };
    let one = with(1, 8);
    assert_eq!(one, with(4, 8));
    // Nor does a sample depend on the batch that it is in.
    let all = |batches: &[Batch]| batches.iter().flat_map(|batch| batch.images.clone()).collect::<Vec<u8>>();
    assert_eq!(all(&one), all(&with(2, 20)));
    let plain =
        Loader::new(Arc::clone(&dataset), LoaderOptions { augment: Vec::new(), ..options() }).unwrap();
    assert_ne!(all(&one), all(&batches(&plain, 1, 0)));
    assert!(Loader::with_threads(dataset, options(), 0).is_err());
}

#[test]
fn a_stream_is_one_epoch_after_the_other() {
    let loader = Loader::new(dataset(50), options()).unwrap();
    let all: Vec<Batch> = loader.stream(1..=3, 4).unwrap().collect::<Result<_>>().unwrap();
    let expected = [batches(&loader, 1, 4), batches(&loader, 2, 0), batches(&loader, 3, 0)].concat();
    assert_eq!(all, expected);
    let places: Vec<_> = all.iter().map(|batch| (batch.epoch, batch.number)).take(4).collect();
    assert_eq!(places, [(1, 4), (1, 5), (2, 0), (2, 1)]);
    assert_eq!(loader.stream(1..=3, 4).unwrap().size_hint().1, Some(14));
    assert_eq!(loader.stream(1..=2, 99).unwrap().count(), 6, "past the end of the first epoch");
    #[allow(clippy::reversed_empty_ranges, reason = "no epochs at all")]
    let none = loader.stream(2..=1, 0).unwrap().count();
    assert_eq!(none, 0);
    // Memory of used batches is used again and leaves no trace.
    let mut stream = loader.stream(1..=3, 4).unwrap();
    for expected in &expected {
        let batch = stream.next().unwrap().unwrap();
        assert_eq!(&batch, expected);
        stream.recycle(batch);
    }
    assert!(stream.next().is_none() && (1..=MOST_HELD).contains(&stream.stages().most_waiting));
}

#[test]
fn the_next_epoch_is_decoded_before_the_last_batch_of_this_one_is_taken() {
    let (dataset, loader) = faulty(|| Ok(Image { rgb: vec![0; 3], height: 1, width: 1 }));
    // 125 batches; the last one of the first epoch is not taken.
    let mut stream = loader.stream(1..=2, 120).unwrap();
    for _ in 0..4 {
        stream.next().unwrap().unwrap();
    }
    // The first image for its size, the batches 120 to 124, and at least one batch of the second epoch.
    let enough = 1 + 5 * 8 + 8;
    let deadline = Instant::now() + Duration::from_secs(20);
    while dataset.loads.load(Ordering::Relaxed) < enough && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(dataset.loads.load(Ordering::Relaxed) >= enough);
}

#[test]
fn order_and_mirroring_never_change() {
    // Runs are to be reproducible across versions of the program: these values are a promise.
    assert_eq!(order(10, &options(), 1), FIRST_ORDER);
    let augmenter = Augmenter::new(&options().augment, 3);
    let flags: Vec<u32> = (0..10).map(|index| u32::from(augmenter.mirrored(1, index))).collect();
    assert_eq!(flags, FIRST_FLAGS);
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
    let augmenter = Augmenter::new(&options().augment, 3);
    let mirrored = |epoch, index| augmenter.mirrored(epoch, index);
    let flags = (0..10_000).filter(|&index| mirrored(1, index)).count();
    assert!((4800..5200).contains(&flags), "{flags}");
    let agreeing = (0..10_000).filter(|&index| mirrored(1, index) == mirrored(2, index)).count();
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
    let options = LoaderOptions { batch_size: 8, seed: 0, shuffle: false, augment: Vec::new() };
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
