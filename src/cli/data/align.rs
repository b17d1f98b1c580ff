//! `epl data align`: faces aligned by their landmarks.

mod sheet;

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use rayon::prelude::*;
use serde::Serialize;

use crate::cli::output::{note, progress};
use crate::cli::{Context, Verdict};
use crate::data::Image;
use crate::data::align::landmarks::{self, Listed, Rejected};
use crate::data::align::{Oddity, Points, decode_whole, fit_or_explain, oddity, warp};
use crate::data::encode::Encoding;
use crate::interchange::files::{probe, write_atomically};
use crate::{Error, Result};

/// How many failures and how many warnings are named on standard error.
const NAMED: usize = 10;

const EXAMPLES: &str = "\
Examples:
  epl data align --landmarks points.csv --images photos --out aligned --sheet sheet.png
  epl data align --landmarks points.txt --images celeba --out aligned --format jpg

Landmarks come from a face detector, such as RetinaFace or SCRFD of InsightFace, MTCNN
(facenet-pytorch) or YuNet of OpenCV, or from MediaPipe's face mesh. Faces that are compared with
each other should have theirs from one detector.";

/// How aligned images are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Keeps every pixel
    Png,
    /// A fraction of the bytes
    Jpg,
}

/// Align faces by five landmarks
///
/// A line of the landmarks file is a path inside the folder of images, then x and y of the eye on the left of the image,
/// the eye on the right, the tip of the nose, and the corners of the mouth on the left and on the right, in pixels; a score
/// behind them is passed over. Commas, tabs or spaces separate the fields, and names of columns may stand in front. The
/// faces are turned, scaled and moved so that their landmarks come nearest to those of InsightFace's models (112 x 112), and
/// written under the same names. What fails is named and counted, and everything else is done all the same.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Align {
    /// The list of landmarks
    #[arg(long, value_name = "FILE")]
    landmarks: PathBuf,
    /// The folder that the list's paths are relative to
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// The folder to write to, with the same folders in it
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Side of the aligned images in pixels
    #[arg(long, value_name = "N", default_value_t = 112, value_parser = clap::value_parser!(u16).range(16..=2048))]
    size: u16,
    /// How aligned images are stored
    #[arg(long, value_enum, default_value_t = Format::Png)]
    format: Format,
    /// Quality of JPEGs
    #[arg(long, value_name = "1..100", default_value_t = 95, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// Write images anew that are there already, instead of leaving them as they are
    #[arg(long)]
    overwrite: bool,
    /// The list has the sides exchanged: the first eye and the first corner of the mouth are on the right of the image
    #[arg(long)]
    swap_sides: bool,
    /// Draw a picture of originals with their landmarks beside the aligned faces
    #[arg(long, value_name = "SHEET.png")]
    sheet: Option<PathBuf>,
    /// Faces on that picture, taken at equal distances from the whole list
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    sheet_faces: u16,
}

/// Something that was found about one line of the list.
#[derive(Clone, Debug, Serialize)]
struct Remark {
    line: usize,
    image: String,
    what: String,
}

/// The result.
#[derive(Debug, Serialize)]
struct Aligned {
    out: PathBuf,
    size: usize,
    /// Lines of the list.
    images: usize,
    aligned: usize,
    /// Images that were there already.
    kept: usize,
    failed: usize,
    /// Aligned images whose landmarks look like those of a mirrored face.
    mirrored: usize,
    failures: Vec<Remark>,
    warnings: Vec<Remark>,
    sheet: Option<PathBuf>,
}

/// What became of one image.
enum Outcome {
    Aligned(Option<Oddity>),
    Kept,
}

impl Align {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let (mut listed, rejected) = landmarks::read(&self.landmarks)?;
        let folder = std::fs::metadata(&self.images).map_err(|source| Error::io(&self.images, source))?;
        if !folder.is_dir() {
            return Err(Error::usage(
                format!("{} is not a folder", self.images.display()),
                "--images is the folder that the paths of the landmarks file are relative to",
            ));
        }
        if self.swap_sides {
            listed.iter_mut().for_each(|found| found.points = exchanged(found.points));
        }
        std::fs::create_dir_all(&self.out).map_err(|source| Error::io(&self.out, source))?;
        self.check_places(&listed)?;
        self.sheet.as_deref().map_or(Ok(()), probe)?;

        let first_of = self.first_lines(&listed);
        let bar = progress(listed.len());
        let outcomes: Vec<Result<Outcome>> = listed
            .par_iter()
            .map(|found| {
                let outcome = self.align(found, &first_of);
                bar.inc(1);
                outcome
            })
            .collect();
        bar.finish_and_clear();
        let mut result = self.result(&listed, rejected, outcomes);
        if let Some(path) = &self.sheet {
            self.draw(&listed, path)?;
            result.sheet = Some(path.clone());
        }
        self.tell(&result);
        context.present(&result)?;
        Ok(if result.failed == 0 { Verdict::Done } else { Verdict::Failed })
    }

    /// Checks that nothing that is read would be written over: the originals are all that there is.
    fn check_places(&self, listed: &[Listed]) -> Result<()> {
        let real = |path: &Path| path.canonicalize().map_err(|source| Error::io(path, source));
        if real(&self.images)? == real(&self.out)? {
            return Err(Error::usage(
                format!("--out {} is the folder of --images", self.out.display()),
                "name another folder, so that the originals stay as they are",
            ));
        }
        let Some(sheet) = &self.sheet else { return Ok(()) };
        if sheet.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("png")) {
            return Err(Error::usage(
                format!("--sheet {} is not called .png", sheet.display()),
                "the sheet is a PNG image: name it so",
            ));
        }
        // A sheet that is there may be drawn again, if it is none of the originals.
        let Ok(there) = sheet.canonicalize() else { return Ok(()) };
        let is_read = |found: &Listed| {
            let path = landmarks::inside(&found.name).map(|path| self.images.join(path));
            path.and_then(|path| path.canonicalize().ok()).is_some_and(|path| path == there)
        };
        match listed.iter().find(|found| is_read(found)) {
            None => Ok(()),
            Some(found) => Err(Error::usage(
                format!("--sheet {} is the image of line {}", sheet.display(), found.line),
                "name another file for the sheet",
            )),
        }
    }

    /// Where the aligned image of that name goes.
    fn place(&self, name: &str) -> Option<PathBuf> {
        let extension = self.encoding().extension();
        landmarks::inside(name).map(|path| self.out.join(path).with_extension(extension))
    }

    fn encoding(&self) -> Encoding {
        match self.format {
            Format::Png => Encoding::Png,
            Format::Jpg => Encoding::Jpeg(self.quality),
        }
    }

    /// The first line for each file that is to be written: a second one would write over it.
    fn first_lines(&self, listed: &[Listed]) -> HashMap<PathBuf, usize> {
        let mut first = HashMap::with_capacity(listed.len());
        for found in listed {
            if let Some(place) = self.place(&found.name) {
                first.entry(place).or_insert(found.line);
            }
        }
        first
    }

    fn align(&self, found: &Listed, first_of: &HashMap<PathBuf, usize>) -> Result<Outcome> {
        let fault = |what: String, expected: &str, hint: &str| {
            Err(Error::data(
                format!("{}, line {}", self.landmarks.display(), found.line),
                what,
                expected,
                hint,
            ))
        };
        let Some(place) = self.place(&found.name) else {
            return fault(
                format!("`{}`", found.name),
                "a path inside the folder of images",
                "write paths relative to --images",
            );
        };
        if let Some(first) = first_of.get(&place).filter(|&&first| first != found.line) {
            return fault(
                format!("`{}`, whose file {} is that of line {first}", found.name, place.display()),
                "one line for each file",
                "choose one face of each image",
            );
        }
        let path = self.original(found);
        let same =
            |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
        if same(&place, &path) {
            return fault(
                format!("`{}`, which is read and would be written over", path.display()),
                "another file for the aligned image",
                "name another folder with --out",
            );
        }
        if !self.overwrite && place.exists() {
            return Ok(Outcome::Kept);
        }
        let image = self.read(found)?;
        let side = usize::from(self.size);
        let fit = fit_or_explain(&found.points, side, || path.display().to_string())?;
        let aligned = warp(&image, &fit.transform, side);
        if let Some(folder) = place.parent() {
            std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        }
        write_atomically(&place, &self.encoding().encode(&aligned)?)?;
        Ok(Outcome::Aligned(oddity(&found.points, &fit, [image.height, image.width])))
    }

    /// The image that a line of the list names.
    fn original(&self, found: &Listed) -> PathBuf {
        self.images.join(landmarks::inside(&found.name).unwrap_or_default())
    }

    fn read(&self, found: &Listed) -> Result<Image> {
        let path = self.original(found);
        let encoded = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
        decode_whole(&encoded, || path.display().to_string())
    }

    /// The aligned image of a line as it lies in the folder, where it has the size that was asked for: one that was there
    /// already may be another than would be made now, and the sheet shows what there is.
    fn on_disk(&self, found: &Listed) -> Option<Image> {
        let encoded = std::fs::read(self.place(&found.name)?).ok()?;
        let image = decode_whole(&encoded, String::new).ok()?;
        let side = usize::from(self.size);
        ([image.height, image.width] == [side, side]).then_some(image)
    }

    fn result(&self, listed: &[Listed], rejected: Vec<Rejected>, outcomes: Vec<Result<Outcome>>) -> Aligned {
        let remark =
            |found: &Listed, what: String| Remark { line: found.line, image: found.name.clone(), what };
        let mut result = Aligned {
            out: self.out.clone(),
            size: usize::from(self.size),
            images: listed.len() + rejected.len(),
            aligned: 0,
            kept: 0,
            failed: 0,
            mirrored: 0,
            failures: Vec::new(),
            warnings: Vec::new(),
            sheet: None,
        };
        for line in rejected {
            result.failures.push(Remark { line: line.line, image: line.name, what: line.error.to_string() });
        }
        for (found, outcome) in listed.iter().zip(outcomes) {
            match outcome {
                Ok(Outcome::Kept) => result.kept += 1,
                Ok(Outcome::Aligned(oddity)) => {
                    result.aligned += 1;
                    result.mirrored += usize::from(matches!(oddity, Some(Oddity::Mirrored(_))));
                    result.warnings.extend(oddity.map(|oddity| remark(found, oddity.to_string())));
                }
                Err(error) => result.failures.push(remark(found, error.to_string())),
            }
        }
        result.failures.sort_by_key(|remark| remark.line);
        result.failed = result.failures.len();
        result
    }

    /// Names what failed and what is odd on standard error.
    fn tell(&self, result: &Aligned) {
        for (kind, remarks) in [("failed", &result.failures), ("warning", &result.warnings)] {
            for remark in remarks.iter().take(NAMED) {
                note(format_args!("{kind}: line {}, {}: {}", remark.line, remark.image, remark.what));
            }
            if remarks.len() > NAMED {
                note(format_args!("{kind}: and {} more; --json lists them all", remarks.len() - NAMED));
            }
        }
        if result.mirrored * 2 > result.aligned {
            note(if self.swap_sides {
                "warning: most landmarks look like those of mirrored faces: the list is right without --swap-sides"
            } else {
                "warning: most landmarks look like those of mirrored faces: if the list names the person's left first \
                 instead of the image's, give --swap-sides"
            });
        }
    }

    /// Draws the sheet, of images that can be read.
    fn draw(&self, listed: &[Listed], path: &Path) -> Result<()> {
        let count = usize::from(self.sheet_faces).min(listed.len());
        let chosen = (0..count).filter_map(|at| listed.get(at * listed.len() / count.max(1)));
        let side = usize::from(self.size);
        let faces: Vec<sheet::Face> = chosen
            .filter_map(|found| {
                let image = self.read(found).ok()?;
                let fit = fit_or_explain(&found.points, side, String::new).ok()?;
                let aligned = self.on_disk(found).unwrap_or_else(|| warp(&image, &fit.transform, side));
                Some(sheet::Face { image, points: found.points, aligned, odd: fit.looks_mirrored() })
            })
            .collect();
        write_atomically(path, &Encoding::Png.encode(&sheet::draw(&faces))?)
    }
}

/// The same landmarks with left and right exchanged.
fn exchanged([first_eye, second_eye, nose, first_corner, second_corner]: Points) -> Points {
    [second_eye, first_eye, nose, second_corner, first_corner]
}

impl Display for Aligned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} of {} faces aligned to {} x {} in {}",
            self.aligned,
            self.images,
            self.size,
            self.size,
            self.out.display()
        )?;
        if self.kept > 0 {
            writeln!(
                f,
                "{} were there already and stay as they are (--overwrite writes them anew)",
                self.kept
            )?;
        }
        if self.failed > 0 {
            writeln!(f, "{} failed", self.failed)?;
        }
        if !self.warnings.is_empty() {
            writeln!(
                f,
                "{} have odd landmarks, {} of them mirrored ones",
                self.warnings.len(),
                self.mirrored
            )?;
        }
        if let Some(sheet) = &self.sheet {
            writeln!(f, "{} shows originals and aligned faces", sheet.display())?;
        }
        Ok(())
    }
}
