//! `epl data`: looks at training data, checks, makes and takes apart data sets.

mod align;
mod augment;
mod check;
mod inspect;
mod noise;
mod pack;
mod synth;
mod unpack;

use clap::{Args, Subcommand};

use super::output::note;
use super::{Context, Verdict};
use crate::Result;

const EXAMPLES: &str = "\
Examples:
  epl data inspect ms1m/train.rec
  epl data check --list findings.csv faces/
  epl data noise --weights runs/a/model.safetensors --report noise.html data/train";

/// Look at, check, make and take apart data sets
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Data {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Align(align::Align),
    Augment(augment::Augment),
    Inspect(inspect::Inspect),
    Check(check::Check),
    Pack(pack::Pack),
    Unpack(unpack::Unpack),
    Synth(synth::Synth),
    Noise(noise::Noise),
}

impl Data {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        match &self.command {
            Command::Align(command) => command.run(context),
            Command::Augment(command) => command.run(context),
            Command::Inspect(command) => command.run(context),
            Command::Check(command) => command.run(context),
            Command::Pack(command) => command.run(context),
            Command::Unpack(command) => command.run(context),
            Command::Synth(command) => command.run(context),
            Command::Noise(command) => command.run(context),
        }
    }
}

/// How many of the things that were left out are named.
const LEFT_OUT: usize = 10;

/// Says on standard error what was left out.
fn note_left_out(left_out: &[String]) {
    left_out.iter().take(LEFT_OUT).for_each(|what| note(format_args!("left out: {what}")));
    if left_out.len() > LEFT_OUT {
        note(format_args!("and {} more", left_out.len() - LEFT_OUT));
    }
}

/// Reads a size: `112,112`, height first, or one number for both.
fn parse_size(text: &str) -> std::result::Result<[usize; 2], String> {
    let (height, width) = text.split_once([',', 'x']).unwrap_or((text, text));
    match (height.trim().parse(), width.trim().parse()) {
        (Ok(height @ 1..=8192), Ok(width @ 1..=8192)) => Ok([height, width]),
        _ => Err("expected height,width in pixels, such as 112,112, each from 1 to 8192".to_owned()),
    }
}

/// A field as RFC 4180 has it: in quotes where it would not be read as one field otherwise.
fn csv_field(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_where_they_must_be() {
        assert_eq!(csv_field("faces/s1/1.png"), "faces/s1/1.png");
        assert_eq!(csv_field("a, \"b\".png"), "\"a, \"\"b\"\".png\"");
    }

    #[test]
    fn sizes_are_height_and_width() {
        assert_eq!(parse_size("112,96"), Ok([112, 96]));
        assert_eq!((parse_size("64"), parse_size("112x96")), (Ok([64, 64]), Ok([112, 96])));
        for text in ["", "112,", "0,112", "112,112,3", "-1", "9000"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
