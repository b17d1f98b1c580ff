//! `epl data synth`: a data set of procedural faces.

use std::fmt::{self, Display};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::parse_size;
use crate::Result;
use crate::cli::output::progress;
use crate::cli::{Context, Verdict};
use crate::data::encode::Encoding;
use crate::data::synth::{SynthConfig, SynthFiles};

const EXAMPLES: &str = "\
Examples:
  epl data synth --out faces
  epl data synth --out data/train.rec --identities 500 --size 64,64 --verification 600
  epl data synth --out noisy --hard 0.1 --mislabelled 0.05 --seed 7";

/// How pictures are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Keeps every pixel
    Png,
    /// Quality 95
    Jpeg,
}

/// Make a data set of procedural faces
///
/// Draws people whose geometry and colouring are theirs and pictures that differ in pose, light, expression,
/// occlusion and camera: a set to try training, evaluation and `epl data noise` on, with known truth
/// (truth.csv). The same options give the same people. About 6 ms a picture of 112 x 112 on one core.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Synth {
    /// The folder to write, one folder an identity, or a .rec file
    #[arg(long, value_name = "DIR|FILE.rec")]
    out: PathBuf,
    /// Number of people
    #[arg(long, value_name = "N", default_value_t = 200)]
    identities: u32,
    /// Pictures of each
    #[arg(long, value_name = "N", default_value_t = 20)]
    images: u32,
    /// Height and width of the pictures
    #[arg(long, value_name = "H,W", value_parser = parse_size, default_value = "112,112")]
    size: [usize; 2],
    /// Seed of everything: the same seed has the same people
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Share of hard pictures: strong pose, heavy occlusion, blur, low resolution or harsh light
    #[arg(long, value_name = "SHARE", value_parser = parse_share, default_value = "0")]
    hard: f32,
    /// Share of pictures that show another person than their label says
    #[arg(long, value_name = "SHARE", value_parser = parse_share, default_value = "0")]
    mislabelled: f32,
    /// Number of the first person; sets whose ranges do not overlap have nobody in common
    #[arg(long, value_name = "N", default_value_t = 0)]
    first_identity: u32,
    /// How pictures are encoded
    #[arg(long, value_enum, default_value = "png")]
    format: Format,
    /// Also write verification.bin: so many pairs of the people that follow those of the set
    #[arg(long, value_name = "PAIRS", default_value_t = 0)]
    verification: u32,
    /// Replace a record file that is there
    #[arg(long)]
    force: bool,
}

/// The result.
#[derive(Debug, Serialize)]
struct Written {
    images: usize,
    identities: u32,
    size: [usize; 2],
    hard: usize,
    mislabelled: usize,
    files: Vec<PathBuf>,
    verification: Option<PathBuf>,
    pairs: u32,
}

impl Synth {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let files = SynthFiles {
            config: SynthConfig {
                seed: self.seed,
                identities: self.identities,
                first_identity: self.first_identity,
                images_per_identity: self.images,
                size: self.size,
                hard_share: self.hard,
                mislabelled_share: self.mislabelled,
            },
            encoding: match self.format {
                Format::Png => Encoding::Png,
                Format::Jpeg => Encoding::Jpeg(95),
            },
            pairs: self.verification,
            replace: self.force,
        };
        let bar = progress(files.total());
        let written = files.write(&self.out, &|done| bar.set_position(done as u64))?;
        bar.finish_and_clear();
        context.present(&Written {
            images: written.images,
            identities: self.identities,
            size: self.size,
            hard: written.hard,
            mislabelled: written.mislabelled,
            files: written.files,
            verification: written.verification,
            pairs: self.verification,
        })?;
        Ok(Verdict::Done)
    }
}

fn parse_share(text: &str) -> std::result::Result<f32, String> {
    match text.parse::<f32>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a share from 0 to 1".to_owned()),
    }
}

impl Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [height, width] = self.size;
        writeln!(f, "{} images of {} identities, {height} x {width}", self.images, self.identities)?;
        writeln!(f, "{} hard, {} mislabelled (truth.csv)", self.hard, self.mislabelled)?;
        self.files.iter().try_for_each(|file| writeln!(f, "wrote {}", file.display()))?;
        if let Some(set) = &self.verification {
            writeln!(f, "wrote {}, {} pairs of other people", set.display(), self.pairs)?;
        }
        Ok(())
    }
}
