//! `epl data augment`: a picture of what a configuration does to its training images.

use std::fmt::{self, Display};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use image::{ImageFormat, Rgb, RgbImage, imageops};
use serde::Serialize;

use crate::cli::train::Overrides;
use crate::cli::{Context, Verdict};
use crate::config::Config;
use crate::data::augment::{Augmenter, Scratch};
use crate::data::{self, Dataset, Image, Options};
use crate::interchange::safetensors::write_atomically;
use crate::{Error, Result};

/// Pixels between the pictures, and round them.
const GAP: u32 = 4;
/// Largest side of the sheet.
const MAX_SIDE: u64 = 32_768;

const EXAMPLES: &str = "\
Examples:
  epl data augment config.toml --out sheet.png
  epl data augment config.toml --out sheet.png --always --set 'data.augment=[\"shift\",\"erase\"]'";

/// Draw a sheet of training images as data.augment changes them
///
/// A row is one image of the training set: on the left as it is, then as it comes in epoch 1, 2 and so on of a run with
/// this configuration, mirrored where that is drawn.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Augment {
    /// The configuration
    #[arg(value_name = "CONFIG.toml")]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// The picture to write
    #[arg(long, value_name = "SHEET.png")]
    out: PathBuf,
    /// Images, taken at equal distances from the whole training set
    #[arg(long, value_name = "N", default_value = "8")]
    images: NonZeroUsize,
    /// Epochs to show of each
    #[arg(long, value_name = "N", default_value = "8")]
    epochs: NonZeroUsize,
    /// Apply every augmentation to every image, whatever its probability, but mirroring
    #[arg(long)]
    always: bool,
}

/// The result.
#[derive(Debug, Serialize)]
struct Sheet {
    out: PathBuf,
    /// The names of the images, row by row.
    images: Vec<String>,
    epochs: usize,
    augment: Vec<crate::config::Augment>,
}

impl Augment {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let config = Config::load(&self.config, &self.overrides.set)?;
        let size = config.model.input;
        let options = Options { size, resize: config.data.resize, num_classes: config.data.num_classes };
        let dataset = data::open(&config.data.train, &options)?;
        let rows = self.images.get().min(dataset.len());
        let mut augment = config.data.augment.clone();
        if self.always {
            let others = augment.iter_mut().filter(|augment| augment.name() != "mirror");
            others.for_each(|augment| augment.probability = 1.0);
        }
        let mut sheet = self.canvas(size, rows)?;
        let augmenter = Augmenter::new(&augment, config.train.seed);
        let indices: Vec<usize> = (0..rows).map(|row| row * dataset.len() / rows).collect();
        for (row, &index) in indices.iter().enumerate() {
            self.draw_row(&mut sheet, dataset.as_ref(), &augmenter, row, index)?;
        }
        let mut png = std::io::Cursor::new(Vec::new());
        sheet
            .write_to(&mut png, ImageFormat::Png)
            .map_err(|error| Error::io(&self.out, std::io::Error::other(error)))?;
        write_atomically(&self.out, &png.into_inner())?;
        context.present(&Sheet {
            out: self.out.clone(),
            images: indices.iter().map(|&index| dataset.name(index)).collect(),
            epochs: self.epochs.get(),
            augment,
        })?;
        Ok(Verdict::Done)
    }

    /// An empty sheet with room for all pictures.
    fn canvas(&self, [height, width]: [usize; 2], rows: usize) -> Result<RgbImage> {
        let side =
            |count: usize, pixels: usize| count as u64 * (pixels as u64 + u64::from(GAP)) + u64::from(GAP);
        let sides = [side(rows, height), side(self.epochs.get().saturating_add(1), width)];
        if sides.iter().any(|&side| side > MAX_SIDE) {
            return Err(Error::usage(
                format!("the sheet would have {} x {} pixels", sides[0], sides[1]),
                format!("ask for fewer --images or --epochs: at most {MAX_SIDE} pixels a side"),
            ));
        }
        Ok(RgbImage::from_pixel(sides[1] as u32, sides[0] as u32, Rgb([255; 3])))
    }

    fn draw_row(
        &self,
        sheet: &mut RgbImage,
        dataset: &dyn Dataset,
        augmenter: &Augmenter,
        row: usize,
        index: usize,
    ) -> Result<()> {
        let original = dataset.load(index)?;
        let size = [original.height, original.width];
        let mut scratch = Scratch::default();
        for column in 0..=self.epochs.get() {
            let mut image = original.clone();
            // Epochs count from 1; the original is in front of them.
            let epoch = column as u32;
            if epoch > 0 {
                augmenter.apply(epoch, index, size, &mut image.rgb, &mut scratch);
            }
            let mirrored = epoch > 0 && augmenter.mirrored(epoch, index);
            place(sheet, image, mirrored, row, column);
        }
        Ok(())
    }
}

fn place(sheet: &mut RgbImage, image: Image, mirrored: bool, row: usize, column: usize) {
    let mut image = RgbImage::from(image);
    if mirrored {
        imageops::flip_horizontal_in_place(&mut image);
    }
    let at = |count: usize, pixels: u32| i64::from(GAP) + count as i64 * i64::from(pixels + GAP);
    imageops::replace(sheet, &image, at(column, image.width()), at(row, image.height()));
}

impl Display for Sheet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<&str> = self.augment.iter().map(crate::config::Augment::name).collect();
        writeln!(
            f,
            "{}: {} images, as they are and in {} epochs, with {}",
            self.out.display(),
            self.images.len(),
            self.epochs,
            if kinds.is_empty() { "no augmentation".to_owned() } else { kinds.join(", ") }
        )
    }
}
