//! `epl data unpack`: record files and verification sets into folders.

use std::fmt::{self, Display};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::note_left_out;
use crate::cli::output::{note, progress};
use crate::cli::{Context, Verdict};
use crate::data::stored::{Source, Stored};
use crate::data::unpack::{self, Unpacked};
use crate::data::{VerificationSet, has_extension};
use crate::{Error, Result};

const EXAMPLES: &str = "\
Examples:
  epl data unpack --out faces ms1m/train.rec
  epl data unpack --out lfw lfw.bin";

/// Write the images of a record file or a verification set
///
/// A record file becomes one folder an identity, named as identities.tsv beside it says, else by its label,
/// with an identities.tsv that keeps the labels, so that `epl data pack` gives the same set again. A
/// verification set becomes a folder images and a list pairs.txt, which `epl eval verify --pairs` reads.
/// Images are written as they are stored.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Unpack {
    /// The folder to write, which must not exist or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Leave out what cannot be read, instead of stopping there
    #[arg(long)]
    skip_damaged: bool,
    /// A .rec file, a folder that holds train.rec, or a .bin verification set
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// The result.
#[derive(Debug, Serialize)]
struct Written {
    images: usize,
    identities: Option<usize>,
    pairs: Option<usize>,
    left_out: usize,
    out: PathBuf,
}

impl Unpack {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let is_set = has_extension(&self.path, "bin");
        let Unpacked { images, groups, left_out, renamed } =
            if is_set { self.set()? } else { self.records()? };
        note_left_out(&left_out);
        if renamed > 0 {
            note(format_args!(
                "{renamed} identities have names that no folder can have, or that differ only in case: their labels stand \
                 for them"
            ));
        }
        context.present(&Written {
            images,
            identities: (!is_set).then_some(groups),
            pairs: is_set.then_some(groups),
            left_out: left_out.len(),
            out: self.out.clone(),
        })?;
        Ok(Verdict::Done)
    }

    fn set(&self) -> Result<Unpacked> {
        let set = VerificationSet::open_bin(&self.path)?;
        let bar = progress(set.issame.len());
        let unpacked =
            unpack::unpack_set(&set, &self.out, self.skip_damaged, &mut |done| bar.set_position(done as u64));
        bar.finish_and_clear();
        unpacked
    }

    fn records(&self) -> Result<Unpacked> {
        let mut faults = Vec::new();
        let source = Source::open(&self.path, &mut |fault| {
            if self.skip_damaged {
                faults.push(fault.to_string());
                return Ok(());
            }
            Err(fault)
        })?;
        let Source::Records(records) = source else {
            return Err(Error::usage(
                format!("{} is a folder of images already", self.path.display()),
                "name a .rec file, a folder that holds train.rec, or a .bin file",
            ));
        };
        let bar = progress(records.len());
        let advance = |done: usize| {
            if done.is_multiple_of(64) {
                bar.set_position(done as u64);
            }
        };
        let mut unpacked = unpack::unpack_records(&records, &self.out, self.skip_damaged, &advance)?;
        bar.finish_and_clear();
        unpacked.left_out.extend(faults);
        Ok(unpacked)
    }
}

impl Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} images", self.images)?;
        if let Some(identities) = self.identities {
            write!(f, " of {identities} identities")?;
        }
        if let Some(pairs) = self.pairs {
            write!(f, " in {pairs} pairs")?;
        }
        if self.left_out > 0 {
            write!(f, ", {} left out", self.left_out)?;
        }
        writeln!(f, "\nwrote {}", self.out.display())
    }
}
