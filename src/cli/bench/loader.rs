//! `epl bench --loader`: how fast images are decoded, augmented and batched.

use std::fmt::{self, Display};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use rayon::prelude::*;
use serde::Serialize;

use super::super::output::{Align, Table, note};
use super::super::{Context, Verdict};
use super::Bench;
use crate::config::{Augment, Config};
use crate::data::augment::{Augmenter, Scratch};
use crate::data::loader::MOST_HELD;
use crate::data::synth::{SynthConfig, draw_all};
use crate::data::{self, Dataset, Image, Loader, LoaderOptions, Options, decode};
use crate::{Error, Result};

/// Images that are drawn where the user names none: more than a cache holds when they are decoded.
const IDENTITIES: u32 = 64;
const IMAGES_EACH: u32 = 4;
/// How often the drawn images come in an epoch of the benchmark.
const REPEATS: usize = 64;
/// The quality that the field's record files are packed with.
const QUALITY: u8 = 95;
const SIZE: [usize; 2] = [112, 112];
/// Samples that are decoded over and over for the time of decoding alone.
const SAMPLES: usize = 256;
/// The loader's time is taken in so many parts, of which the best is told too.
const PARTS: u32 = 5;

/// The result.
#[derive(Debug, Serialize)]
struct Measured {
    /// The path, or what was drawn.
    source: String,
    images: usize,
    size: [usize; 2],
    batch: usize,
    threads: usize,
    /// Decoding alone, on one thread.
    decode: Decoding,
    loader: Loading,
    /// What each augmentation costs where it is applied, on one thread.
    augmentations: Vec<Cost>,
}

#[derive(Debug, Serialize)]
struct Decoding {
    images_per_second: f64,
    ms_per_image: f64,
}

#[derive(Debug, Serialize)]
struct Loading {
    images_per_second: f64,
    images_per_second_per_thread: f64,
    /// Of the fastest fifth of the time.
    best_images_per_second: f64,
    /// On the thread that does it; another process on the core counts too.
    decode_ms_per_image: f64,
    augment_ms_per_image: f64,
    /// Most finished batches that were held at once, and the bound.
    peak_prefetch: usize,
    prefetch_limit: usize,
}

#[derive(Debug, Serialize)]
struct Cost {
    name: &'static str,
    /// Its probability in the loader's run; none where it was not part of it.
    probability: Option<f64>,
    ms_per_image: f64,
}

/// Images a batch where nothing is said.
const BATCH: usize = 128;

impl Bench {
    /// Measures the loader on the images of `path`, or on drawn ones.
    pub fn measure_loader(&self, path: Option<&PathBuf>, context: &Context) -> Result<Verdict> {
        let batch = self.batch.map_or(BATCH, NonZeroUsize::get);
        let augment = self.augmentations()?;
        let (source, dataset) = self.dataset(path)?;
        let threads = match self.threads {
            Some(threads) => threads.get(),
            None => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        };
        let decode = decoding(dataset.as_ref())?;
        let augmentations = costs(dataset.as_ref(), &augment)?;
        let options = LoaderOptions { batch_size: batch, seed: 1, shuffle: true, augment };
        let loader = self.loading(Arc::clone(&dataset), options, threads)?;
        context.present(&Measured {
            source,
            images: dataset.len(),
            size: SIZE,
            batch,
            threads,
            decode,
            loader,
            augmentations,
        })?;
        Ok(Verdict::Done)
    }

    /// The augmentations that were asked for, read and checked as those of a configuration.
    fn augmentations(&self) -> Result<Vec<Augment>> {
        let required = "data.train = \"-\"\ntrain.out = \"-\"";
        Ok(Config::from_toml(required, &[format!("data.augment={}", self.augment)])?.data.augment)
    }

    fn dataset(&self, path: Option<&PathBuf>) -> Result<(String, Arc<dyn Dataset>)> {
        let Some(path) = path else {
            let drawn = DrawnFaces::new()?;
            let bytes: usize = drawn.jpegs.iter().map(Vec::len).sum();
            let count = drawn.jpegs.len();
            let source = format!("{count} drawn faces, JPEG of {} bytes on average", bytes / count.max(1));
            return Ok((source, Arc::new(drawn)));
        };
        let options = Options { size: SIZE, resize: self.resize, num_classes: None };
        Ok((path.display().to_string(), data::open(path, &options)?.into()))
    }

    fn loading(&self, dataset: Arc<dyn Dataset>, options: LoaderOptions, threads: usize) -> Result<Loading> {
        let loader = Loader::with_threads(dataset, options, threads)?;
        let mut stream = loader.stream(1..=u32::MAX, 0)?;
        // Memory is allocated and threads are started.
        for _ in 0..MOST_HELD {
            if let Some(batch) = stream.next() {
                stream.recycle(batch?);
            }
        }
        let part = Duration::from_secs(u64::from(self.seconds)) / PARTS;
        let (mut all, mut best) = ((0, Duration::ZERO), 0.0_f64);
        let before = stream.stages();
        for _ in 0..PARTS {
            let started = Instant::now();
            let mut images = 0;
            while started.elapsed() < part {
                let Some(batch) = stream.next() else { break };
                let batch = batch?;
                images += batch.labels.len();
                stream.recycle(batch);
            }
            let elapsed = started.elapsed();
            best = best.max(images as f64 / elapsed.as_secs_f64());
            all = (all.0 + images, all.1 + elapsed);
        }
        let after = stream.stages();
        let ms = |from: Duration, to: Duration| (to - from).as_secs_f64() * 1e3 / all.0.max(1) as f64;
        let images_per_second = all.0 as f64 / all.1.as_secs_f64();
        Ok(Loading {
            images_per_second,
            images_per_second_per_thread: images_per_second / threads as f64,
            best_images_per_second: best,
            decode_ms_per_image: ms(before.decoding, after.decoding),
            augment_ms_per_image: ms(before.augmenting, after.augmenting),
            peak_prefetch: after.most_waiting,
            prefetch_limit: MOST_HELD,
        })
    }
}

/// Decodes some images over and over on this thread; the fastest pass counts.
fn decoding(dataset: &dyn Dataset) -> Result<Decoding> {
    let count = SAMPLES.min(dataset.len());
    let mut slot = vec![0; SIZE[0] * SIZE[1] * 3];
    let fastest = fastest(Duration::from_millis(500), count, |sample| {
        dataset.load_into(sample * dataset.len() / count, SIZE, &mut slot)
    })?;
    Ok(Decoding { images_per_second: 1.0 / fastest, ms_per_image: fastest * 1e3 })
}

/// What each augmentation costs an image that it is applied to: those that were asked for, then one of each other kind.
fn costs(dataset: &dyn Dataset, asked_for: &[Augment]) -> Result<Vec<Cost>> {
    let count = SAMPLES.min(dataset.len());
    let mut slots = vec![0; SIZE[0] * SIZE[1] * 3 * count];
    for (sample, slot) in slots.chunks_exact_mut(SIZE[0] * SIZE[1] * 3).enumerate() {
        dataset.load_into(sample * dataset.len() / count, SIZE, slot)?;
    }
    let others =
        Augment::defaults().filter(|other| !asked_for.iter().any(|augment| augment.name() == other.name()));
    let mut all: Vec<(Augment, bool)> = asked_for.iter().map(|augment| (*augment, true)).collect();
    all.extend(others.map(|augment| (augment, false)));
    // The GPU mirrors.
    all.retain(|(augment, _)| augment.name() != "mirror");
    let mut slot = vec![0; SIZE[0] * SIZE[1] * 3];
    all.into_iter()
        .map(|(augment, asked_for)| {
            let augmenter = Augmenter::new(&[Augment { probability: 1.0, ..augment }], 1);
            let mut scratch = Scratch::default();
            let seconds = fastest(Duration::from_millis(100), count, |sample| {
                let image = slots.chunks_exact(slot.len()).nth(sample).unwrap_or_default();
                slot.copy_from_slice(image);
                augmenter.apply(1, sample, SIZE, &mut slot, &mut scratch);
                Ok(())
            })?;
            let probability = asked_for.then_some(augment.probability);
            Ok(Cost { name: augment.name(), probability, ms_per_image: seconds * 1e3 })
        })
        .collect()
}

/// Seconds a sample of the fastest pass over `count` samples; passes are made for at least this long.
fn fastest(long: Duration, count: usize, mut work: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    let mut best = Duration::MAX;
    while started.elapsed() < long || best == Duration::MAX {
        let pass = Instant::now();
        (0..count).try_for_each(&mut work)?;
        best = best.min(pass.elapsed());
    }
    Ok(best.as_secs_f64() / count.max(1) as f64)
}

/// Drawn faces as JPEG in memory, each several times.
struct DrawnFaces {
    jpegs: Vec<Vec<u8>>,
}

impl DrawnFaces {
    fn new() -> Result<Self> {
        note(format_args!("drawing {} faces", IDENTITIES * IMAGES_EACH));
        let config = SynthConfig {
            seed: 1,
            identities: IDENTITIES,
            first_identity: 0,
            images_per_identity: IMAGES_EACH,
            size: SIZE,
            hard_share: 0.2,
            mislabelled_share: 0.0,
        };
        let encode = |rgb: Vec<u8>| {
            let image = RgbImage::from(Image { rgb, height: SIZE[0], width: SIZE[1] });
            let mut jpeg = Vec::new();
            let encoded = JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&image);
            encoded.map_err(|error| Error::io("a drawn face", std::io::Error::other(error)))?;
            Ok(jpeg)
        };
        let faces = draw_all(&config, &|_| {});
        let jpegs = faces.into_par_iter().map(|face| encode(face.rgb)).collect::<Result<_>>()?;
        Ok(Self { jpegs })
    }

    fn jpeg(&self, index: usize) -> &[u8] {
        self.jpegs.get(index % self.jpegs.len().max(1)).map(Vec::as_slice).unwrap_or_default()
    }
}

impl Dataset for DrawnFaces {
    fn len(&self) -> usize {
        self.jpegs.len() * REPEATS
    }

    fn num_classes(&self) -> usize {
        IDENTITIES as usize
    }

    fn label(&self, index: usize) -> Result<u32> {
        Ok((index % self.jpegs.len().max(1)) as u32 / IMAGES_EACH)
    }

    fn load(&self, index: usize) -> Result<Image> {
        decode::decode(self.jpeg(index), SIZE, false, || self.name(index))
    }

    fn load_into(&self, index: usize, size: [usize; 2], slot: &mut [u8]) -> Result<()> {
        decode::decode_into(self.jpeg(index), size, false, slot, || self.name(index))
    }

    fn name(&self, index: usize) -> String {
        format!("drawn face {}", index % self.jpegs.len().max(1))
    }
}

impl Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |key: &str, value: String| writeln!(f, "{key:<22}{value}");
        line("images", self.source.clone())?;
        line("size", format!("{} x {}", self.size[0], self.size[1]))?;
        let decode = &self.decode;
        line(
            "decoding alone",
            format!(
                "{:.0} images/s on one thread, {:.3} ms an image",
                decode.images_per_second, decode.ms_per_image
            ),
        )?;
        let loader = &self.loader;
        line(
            "loader",
            format!(
                "{:.0} images/s on {} threads in batches of {}, {:.0} a thread (best part: {:.0} images/s)",
                loader.images_per_second,
                self.threads,
                self.batch,
                loader.images_per_second_per_thread,
                loader.best_images_per_second
            ),
        )?;
        line(
            "of which",
            format!(
                "decoding {:.3} ms an image, augmenting {:.3} ms",
                loader.decode_ms_per_image, loader.augment_ms_per_image
            ),
        )?;
        line(
            "finished batches",
            format!(
                "at most {} at once, of {} that may be held",
                loader.peak_prefetch, loader.prefetch_limit
            ),
        )?;
        writeln!(f)?;
        let mut table = Table::new(&[
            ("augmentation", Align::Left),
            ("ms where applied", Align::Right),
            ("probability", Align::Right),
            ("ms an image", Align::Right),
        ]);
        for cost in &self.augmentations {
            let probability = cost.probability.map_or("-".to_owned(), |probability| probability.to_string());
            let mean = cost.probability.map_or("-".to_owned(), |p| format!("{:.4}", p * cost.ms_per_image));
            table.row([cost.name.to_owned(), format!("{:.4}", cost.ms_per_image), probability, mean]);
        }
        write!(f, "{table}")
    }
}
