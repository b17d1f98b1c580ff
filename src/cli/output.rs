//! What a command prints: its result on standard output, everything else on standard error.
//!
//! Neither stream may bring the command down: a reader that closes the pipe early (`epl ops list | head -1`) has
//! seen what it wanted, and the exit code stays that of the command.

use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Write};

use epl_runtime::probe::roof::Roof;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::{Error, Result};

/// Writes a result to standard output, as one JSON object or as text.
///
/// # Errors
/// [`Error::Io`] where standard output takes no more (a full disk), but not where its reader is gone.
pub fn present(result: &(impl Display + Serialize), json: bool) -> Result<()> {
    let write = || -> io::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            serde_json::to_writer(&mut out, result)?;
            writeln!(out)?;
        } else {
            write!(out, "{result}")?;
        }
        out.flush()
    };
    match write() {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::io("standard output", error)),
        _ => Ok(()),
    }
}

/// Writes a line to standard error.
pub fn note(line: impl Display) {
    // Where standard error is closed there is nobody to tell.
    drop(writeln!(io::stderr(), "{line}"));
}

/// Reports a failure on standard error: the cause with what is behind it, then what to do about it.
pub fn report(error: &Error) {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        // Most of our errors already have their cause in their own text.
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    note(format_args!("error: {text}"));
    if let Some(hint) = error.hint() {
        note(format_args!("hint: {hint}"));
    }
}

/// A bar on standard error that goes away when it is done and is not shown where that is no terminal.
pub fn progress(length: usize) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    match ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The same for pairs, of which there are many: with their number a second and the time that is left.
pub fn rate_progress(length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template("{wide_bar} {percent} %, {per_sec} pairs, {eta} left, {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// How a column of a [`Table`] is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table of text, its columns as wide as their widest cell.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these column titles.
    pub fn new(columns: &[(&str, Align)]) -> Self {
        let columns = columns.iter().map(|&(title, align)| (title.to_owned(), align)).collect();
        Self { columns, rows: Vec::new() }
    }

    /// The titles of the columns, and the rows.
    pub fn into_parts(self) -> (Vec<String>, Vec<Vec<String>>) {
        (self.columns.into_iter().map(|(title, _)| title.to_owned()).collect(), self.rows)
    }

    /// Appends a row; cells beyond the columns are not shown.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles: Vec<String> = self.columns.iter().map(|(title, _)| title.clone()).collect();
        let lines = || std::iter::once(&titles).chain(&self.rows);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                lines()
                    .filter_map(|cells| cells.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for cells in lines() {
            let mut line = String::new();
            for ((cell, width), (_, align)) in cells.iter().zip(&widths).zip(&self.columns) {
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                match align {
                    Align::Left => line.extend([cell.as_str(), &padding, "  "]),
                    Align::Right => line.extend([padding.as_str(), cell, "  "]),
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// What an adapter's arithmetic and memory give at most, measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct MeasuredRoof {
    /// 1e9 additions and multiplications in f32 a second, without a matrix unit.
    gflops: f64,
    /// 1e9 bytes a second, read and written.
    gbytes_per_s: f64,
    /// 1e9 additions and multiplications a second of the matrix unit, of 16-bit numbers, where kernels use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    matrix_f16_gflops: Option<f64>,
    /// The same of 32-bit numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    matrix_f32_gflops: Option<f64>,
}

impl From<Roof> for MeasuredRoof {
    fn from(roof: Roof) -> Self {
        let giga = |flops: f64| flops / 1e9;
        Self {
            gflops: roof.flops / 1e9,
            gbytes_per_s: roof.bytes / 1e9,
            matrix_f16_gflops: roof.matrices.f16.map(giga),
            matrix_f32_gflops: roof.matrices.f32.map(giga),
        }
    }
}

impl Display for MeasuredRoof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { gflops, gbytes_per_s, .. } = self;
        write!(f, "{gflops:.0} GFLOP/s in f32, {gbytes_per_s:.1} GB/s")?;
        for (element, unit) in [("f16", self.matrix_f16_gflops), ("f32", self.matrix_f32_gflops)] {
            unit.map_or(Ok(()), |unit| write!(f, ", {unit:.0} GFLOP/s in matrices of {element}"))?;
        }
        write!(f, "; a cache that holds all operands goes beyond it")
    }
}

/// A number of bytes in the largest binary unit that leaves at least one: `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    // Whole numbers, which limits mostly are, without a fraction.
    if value.fract() == 0.0 { format!("{value} {name}") } else { format!("{value:.2} {name}") }
}

/// Reads a number of bytes as [`bytes`] writes it, with or without the space and the fraction: `8GiB`, `1.5 GiB`, `4096`.
///
/// # Errors
/// What was found and what is expected, for the command line's parser.
pub fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    const UNITS: [(&str, u64); 5] =
        [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40), ("B", 1)];
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((text.trim().strip_suffix(name)?, *unit)))
        .unwrap_or((text.trim(), 1));
    let value = number.trim().parse::<f64>().map(|value| value * unit as f64);
    match value {
        Ok(value) if (1.0..u64::MAX as f64).contains(&value) => Ok(value as u64),
        _ => Err("expected a number of bytes above 0, such as 8GiB, 512MiB or 1073741824".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_the_largest_unit() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(128 << 20), "128 MiB");
        assert_eq!(bytes((1 << 31) - 4), "2.00 GiB");
        assert_eq!(bytes(3 << 29), "1.50 GiB");
        assert_eq!(bytes(u64::MAX), "16777216 TiB");
    }

    #[test]
    fn bytes_are_read_as_they_are_written() {
        for (text, count) in [("8GiB", 8 << 30), ("1.5 GiB", 3 << 29), ("512MiB", 512 << 20), ("2KiB", 2048)]
        {
            assert_eq!(parse_bytes(text), Ok(count));
        }
        assert_eq!((parse_bytes("4096"), parse_bytes("1 B")), (Ok(4096), Ok(1)));
        for text in ["", "GiB", "0", "-1GiB", "8GB", "inf", "nan", "1e99", "8 G"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[("op", Align::Left), ("cases", Align::Right)]);
        table.row(["add".to_owned(), "4".to_owned()]);
        table.row(["prelu_grad".to_owned(), "12345678".to_owned()]);
        assert_eq!(table.to_string(), "op             cases\nadd                4\nprelu_grad  12345678\n");
    }
}
