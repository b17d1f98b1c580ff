//! `epl data align`: faces aligned by their landmarks.

mod sheet;

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use rayon::prelude::*;
use serde::Serialize;

use crate::cli::output::{note, progress};
use crate::cli::{Context, Verdict};
use crate::data::align::landmarks::{self, Listed, Rejected};
use crate::data::align::{Oddity, Points, decode_whole, fit_or_explain, oddity, warp};
use crate::data::encode::Encoding;
use crate::data::probe as image_probe;
use crate::data::{Image, has_extension};
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
    /// Faces on that picture, taken at equal distances from all that did not fail
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
    /// Those of them that are no images of the size that is asked for; the warnings name them.
    kept_of_other_size: usize,
    /// Those of them that may be of other landmarks: older than the list, or there before `--swap-sides`.
    kept_from_before: usize,
    failed: usize,
    /// Aligned images whose landmarks are odd.
    odd: usize,
    /// Aligned images whose landmarks look like those of a mirrored face.
    mirrored: usize,
    failures: Vec<Remark>,
    warnings: Vec<Remark>,
    sheet: Option<PathBuf>,
}

/// What became of one image.
enum Outcome {
    Aligned(Option<Oddity>),
    /// Left as it was, with what is wrong with its size, and whether it may be of other landmarks.
    Kept(Option<String>, bool),
}

/// What the images of a list depend on beside their own lines.
struct Surroundings {
    /// The first line for each file that is to be written: a second one would write over it.
    first_of: HashMap<PathBuf, usize>,
    /// The images that the list names, by their canonical paths: none of them may be written over.
    inputs: HashSet<PathBuf>,
    /// When the list was changed last, where that is known.
    list_changed: Option<SystemTime>,
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
        self.check_out()?;
        let inputs = self.inputs(&listed, &rejected);
        self.check_sheet(&listed, &inputs)?;
        std::fs::create_dir_all(&self.out).map_err(|source| Error::io(&self.out, source))?;
        self.sheet.as_deref().map_or(Ok(()), probe)?;

        let list_changed = std::fs::metadata(&self.landmarks).and_then(|found| found.modified()).ok();
        let around = Surroundings { first_of: self.first_lines(&listed), inputs, list_changed };
        let bar = progress(listed.len());
        let outcomes: Vec<Result<Outcome>> = listed
            .par_iter()
            .map(|found| {
                let outcome = self.align(found, &around);
                bar.inc(1);
                outcome
            })
            .collect();
        bar.finish_and_clear();
        let done = listed.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
        let done: Vec<&Listed> = done.map(|(found, _)| found).collect();
        let mut result = self.result(&listed, rejected, outcomes);
        if let Some(path) = &self.sheet {
            self.draw(&done, path)?;
            result.sheet = Some(path.clone());
        }
        self.tell(&result);
        context.present(&result)?;
        Ok(if result.failed == 0 { Verdict::Done } else { Verdict::Failed })
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

    /// Refuses a folder to write to that is the folder of the originals.
    fn check_out(&self) -> Result<()> {
        let canonical = |path: &Path| std::fs::canonicalize(path).ok();
        match (canonical(&self.images), canonical(&self.out)) {
            (Some(images), Some(out)) if images == out => Err(Error::usage(
                format!(
                    "--out {} is the folder of the originals, {}",
                    self.out.display(),
                    self.images.display()
                ),
                "name another folder: the aligned images would take the places of the originals",
            )),
            _ => Ok(()),
        }
    }

    /// The images that the list names and that are there, also in lines that cannot be used.
    fn inputs(&self, listed: &[Listed], rejected: &[Rejected]) -> HashSet<PathBuf> {
        let names: Vec<&str> = (listed.iter().map(|found| found.name.as_str()))
            .chain(rejected.iter().map(|line| line.name.as_str()))
            .collect();
        let canonical = |name: &&str| std::fs::canonicalize(self.images.join(landmarks::inside(name)?)).ok();
        names.par_iter().filter_map(canonical).collect()
    }

    /// Refuses a sheet that would take the place of an image, or whose name is not that of a PNG.
    fn check_sheet(&self, listed: &[Listed], inputs: &HashSet<PathBuf>) -> Result<()> {
        let Some(sheet) = &self.sheet else { return Ok(()) };
        let wrong =
            |what: String| Err(Error::usage(what, "name a new file for the sheet, such as sheet.png"));
        if !has_extension(sheet, "png") {
            return wrong(format!(
                "--sheet {}: the sheet is a PNG, and its name ends otherwise",
                sheet.display()
            ));
        }
        let canonical = std::fs::canonicalize(sheet).ok();
        if canonical.as_ref().is_some_and(|sheet| inputs.contains(sheet)) {
            return wrong(format!("--sheet {} is an image of the list", sheet.display()));
        }
        let is_output = |place: PathBuf| {
            place == *sheet || (canonical.is_some() && std::fs::canonicalize(place).ok() == canonical)
        };
        if listed.iter().filter_map(|found| self.place(&found.name)).any(is_output) {
            return wrong(format!("--sheet {} is the place of an aligned image", sheet.display()));
        }
        Ok(())
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

    fn align(&self, found: &Listed, around: &Surroundings) -> Result<Outcome> {
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
        if let Some(first) = around.first_of.get(&place).filter(|&&first| first != found.line) {
            return fault(
                format!("`{}`, whose file {} is that of line {first}", found.name, place.display()),
                "one line for each file",
                "choose one face of each image",
            );
        }
        let existing = std::fs::canonicalize(&place).ok();
        if existing.is_some_and(|existing| around.inputs.contains(&existing)) {
            return fault(
                format!("`{}`, whose aligned image {} is an image of the list", found.name, place.display()),
                "aligned images in places of their own",
                "name another folder with --out",
            );
        }
        if !self.overwrite && place.exists() {
            return self.kept(&place, around);
        }
        let (image, path) = self.read(found)?;
        let side = usize::from(self.size);
        let fit = fit_or_explain(&found.points, side, || path.display().to_string())?;
        let aligned = warp(&image, &fit.transform, side);
        if let Some(folder) = place.parent() {
            std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
        }
        write_atomically(&place, &self.encoding().encode(&aligned)?)?;
        Ok(Outcome::Aligned(oddity(&found.points, &fit, [image.height, image.width])))
    }

    /// What is there already at `place`.
    fn kept(&self, place: &Path, around: &Surroundings) -> Result<Outcome> {
        let io = |source| Error::io(place, source);
        let encoded = std::fs::read(place).map_err(io)?;
        let changed = std::fs::metadata(place).and_then(|found| found.modified()).ok();
        let side = usize::from(self.size);
        let remark = match image_probe::probe(&encoded).map(|found| found.size) {
            Some(size) if size == [side, side] => None,
            Some([height, width]) => Some(format!("is {width} x {height} and not {side} x {side}")),
            None => Some("is no image".to_owned()),
        };
        let remark = remark.map(|what| format!("{}, which was there already, {what}", place.display()));
        let is_older = around.list_changed.zip(changed).is_some_and(|(list, kept)| list > kept);
        Ok(Outcome::Kept(remark, self.swap_sides || is_older))
    }

    fn read(&self, found: &Listed) -> Result<(Image, PathBuf)> {
        let path = self.images.join(landmarks::inside(&found.name).unwrap_or_default());
        let encoded = std::fs::read(&path).map_err(|source| Error::io(&path, source))?;
        Ok((decode_whole(&encoded, || path.display().to_string())?, path))
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
            kept_of_other_size: 0,
            kept_from_before: 0,
            failed: 0,
            odd: 0,
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
                Ok(Outcome::Kept(other_size, from_before)) => {
                    result.kept += 1;
                    result.kept_of_other_size += usize::from(other_size.is_some());
                    result.kept_from_before += usize::from(from_before);
                    result.warnings.extend(other_size.map(|what| remark(found, what)));
                }
                Ok(Outcome::Aligned(oddity)) => {
                    result.aligned += 1;
                    result.odd += usize::from(oddity.is_some());
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
        if result.kept_of_other_size > 0 {
            note(format_args!(
                "warning: {} images that were there already are not of {side} x {side}: --overwrite writes them anew",
                result.kept_of_other_size,
                side = self.size
            ));
        }
        if result.kept_from_before > 0 {
            let why = if self.swap_sides {
                "may have been aligned without --swap-sides"
            } else {
                "are older than the list of landmarks"
            };
            note(format_args!(
                "warning: {} images that were there already {why}: --overwrite writes them anew",
                result.kept_from_before
            ));
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

    /// Draws the sheet: some of `done`, the images that did not fail, beside what is in their places now.
    fn draw(&self, done: &[&Listed], path: &Path) -> Result<()> {
        let count = usize::from(self.sheet_faces).min(done.len());
        let chosen = (0..count).filter_map(|at| done.get(at * done.len() / count.max(1)));
        let side = usize::from(self.size);
        let faces: Vec<sheet::Face> = chosen
            .filter_map(|found| {
                let (image, _) = self.read(found).ok()?;
                let fit = fit_or_explain(&found.points, side, String::new).ok()?;
                let place = self.place(&found.name)?;
                let aligned = decode_whole(&std::fs::read(place).ok()?, String::new).ok()?;
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
        if self.kept_of_other_size > 0 {
            writeln!(f, "{} of them are of another size", self.kept_of_other_size)?;
        }
        if self.kept_from_before > 0 {
            writeln!(f, "{} of them may be of other landmarks", self.kept_from_before)?;
        }
        if self.failed > 0 {
            writeln!(f, "{} failed", self.failed)?;
        }
        if self.odd > 0 {
            writeln!(f, "{} have odd landmarks, {} of them mirrored ones", self.odd, self.mirrored)?;
        }
        if let Some(sheet) = &self.sheet {
            writeln!(f, "{} shows originals and aligned faces", sheet.display())?;
        }
        Ok(())
    }
}
