//! `epl data pack`: record files and verification sets of images.

use std::fmt::{self, Display};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{note_left_out, parse_size};
use crate::cli::output::progress;
use crate::cli::{Context, Verdict};
use crate::data::encode::Encoding;
use crate::data::pack::{self, Packing};
use crate::data::stored::Source;
use crate::data::{VerificationSet, has_extension};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl data pack --out ms1m faces/
  epl data pack --out faces.rec --form im2rec --size 112,112 faces/
  epl data pack --out mine.bin --pairs pairs.txt";

/// The form of a record file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Record 0 says which records are images, and each identity has one of its own: what arcface_torch reads
    Insightface,
    /// Every record is an image
    Im2rec,
}

/// Make a record file or a verification set of images
///
/// Writes train.rec, train.idx and property into a folder, as InsightFace has them, or a .rec file of another
/// name with its .idx; identities.tsv beside it keeps the identities' names. Images are stored as they are
/// unless --size changes them. With --pairs (two paths and 0 or 1 a line) it writes a verification set. Files
/// appear when they are whole.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Pack {
    /// A folder for train.rec and what belongs to it, a .rec file, or with --pairs a .bin file
    #[arg(long, value_name = "DIR|FILE")]
    out: PathBuf,
    /// The form of the record file
    #[arg(long, value_enum, default_value = "insightface")]
    form: Form,
    /// Scale images of another size by their short side, crop them at the centre and encode them anew
    #[arg(long, value_name = "H,W", value_parser = parse_size, conflicts_with = "pairs")]
    size: Option<[usize; 2]>,
    /// With --size: quality of the JPEGs that are encoded anew
    #[arg(long, value_name = "1..100", default_value_t = 95, value_parser = clap::value_parser!(u8).range(1..=100))]
    quality: u8,
    /// With --size: encode anew as PNG, which keeps every pixel and takes several times as many bytes
    #[arg(long, requires = "size", conflicts_with = "quality")]
    png: bool,
    /// Pack images of different sizes as they are
    #[arg(long, conflicts_with = "size")]
    any_size: bool,
    /// Decode every image and leave out what cannot be read, instead of stopping there
    #[arg(long)]
    skip_damaged: bool,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
    /// Make a verification set of the pairs in this list
    #[arg(long, value_name = "LIST", conflicts_with_all = ["form", "any_size", "skip_damaged"])]
    pairs: Option<PathBuf>,
    /// A folder of one folder an identity, a .rec file, or a folder that holds train.rec
    #[arg(value_name = "PATH", required_unless_present = "pairs", conflicts_with = "pairs")]
    path: Option<PathBuf>,
}

/// The result.
#[derive(Debug, Serialize)]
struct Written {
    images: usize,
    classes: Option<usize>,
    pairs: Option<usize>,
    size: Option<[usize; 2]>,
    reencoded: usize,
    left_out: usize,
    files: Vec<PathBuf>,
}

impl Pack {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let written = match (&self.path, &self.pairs) {
            (Some(path), None) => self.pack(path)?,
            (None, Some(pairs)) => self.pack_pairs(pairs)?,
            _ => return Err(Error::usage("neither PATH nor --pairs", "name what is to be packed")),
        };
        context.present(&written)?;
        Ok(Verdict::Done)
    }

    fn pack(&self, path: &Path) -> Result<Written> {
        if has_extension(&self.out, "bin") {
            return Err(Error::usage(
                format!("{} is the name of a verification set, which is made of pairs", self.out.display()),
                "give --pairs LIST, or name a folder or a .rec file",
            ));
        }
        let records =
            if has_extension(&self.out, "rec") { self.out.clone() } else { self.out.join("train.rec") };
        let mut left_out = Vec::new();
        let source = Source::open(path, &mut |fault| {
            if self.skip_damaged {
                left_out.push(fault.to_string());
                return Ok(());
            }
            Err(fault)
        })?;
        let packing = Packing {
            form: match self.form {
                Form::Insightface => pack::Form::InsightFace,
                Form::Im2rec => pack::Form::Im2rec,
            },
            size: self.size,
            encoding: if self.png { Encoding::Png } else { Encoding::Jpeg(self.quality) },
            any_size: self.any_size,
            skip_damaged: self.skip_damaged,
            replace: self.force,
        };
        let bar = progress(source.stored().len());
        let packed = pack::pack(&source, &records, &packing, &mut |done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        left_out.extend(packed.left_out);
        note_left_out(&left_out);
        Ok(Written {
            images: packed.images,
            classes: Some(packed.classes),
            pairs: None,
            size: packed.size,
            reencoded: packed.reencoded,
            left_out: left_out.len(),
            files: packed.files,
        })
    }

    fn pack_pairs(&self, pairs: &Path) -> Result<Written> {
        if !has_extension(&self.out, "bin") {
            return Err(Error::usage(
                format!("{} is not the name of a .bin file", self.out.display()),
                "a verification set is one file: --out NAME.bin",
            ));
        }
        let set = VerificationSet::open_pairs(pairs)?;
        set.write_bin(&self.out, self.force)?;
        Ok(Written {
            images: set.images.len(),
            classes: None,
            pairs: Some(set.issame.len()),
            size: None,
            reencoded: 0,
            left_out: 0,
            files: vec![self.out.clone()],
        })
    }
}

impl Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} images", self.images)?;
        if let Some(classes) = self.classes {
            write!(f, " of {classes} identities")?;
        }
        if let Some(pairs) = self.pairs {
            write!(f, " in {pairs} pairs")?;
        }
        if let Some([height, width]) = self.size {
            write!(f, ", {height} x {width}")?;
        }
        if self.reencoded > 0 {
            write!(f, ", {} encoded anew", self.reencoded)?;
        }
        if self.left_out > 0 {
            write!(f, ", {} left out", self.left_out)?;
        }
        writeln!(f)?;
        self.files.iter().try_for_each(|file| writeln!(f, "wrote {}", file.display()))
    }
}
