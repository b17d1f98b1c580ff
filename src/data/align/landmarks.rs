//! Lists of landmarks: an image and ten numbers a line, in the forms that detectors and data sets have them.

use std::path::{Path, PathBuf};

use super::Points;
use crate::{Error, Result};

/// The landmarks of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// The line of the file, from 1.
    pub line: usize,
    /// The image, as the file names it.
    pub name: String,
    /// The landmarks.
    pub points: Points,
    /// The detector's score, where the line has one.
    pub score: Option<f32>,
}

/// A line that cannot be used.
#[derive(Debug)]
pub struct Rejected {
    /// The line of the file, from 1.
    pub line: usize,
    /// The image, as the line seems to name it.
    pub name: String,
    /// What is wrong with it.
    pub error: Error,
}

const EXPECTED: &str = "a path, ten numbers x1 y1 ... x5 y5, and perhaps a score";

/// Reads the list at `path`: `path x1 y1 x2 y2 x3 y3 x4 y4 x5 y5 [score]` a line, separated by commas (RFC 4180, so that a
/// path may be in quotes), by tabs, or by white space, whichever the first line of data has. Names of columns in front, the
/// number of lines that CelebA has in front of them, empty lines and those that begin with `#` are passed over. So are read
/// the lists of CelebA (`list_landmarks_align_celeba.txt`) and of IJB (`ijbc_name_5pts_score.txt`).
///
/// # Errors
/// [`Error::Io`] where it cannot be read as text; [`Error::Data`] where it has no line of data, or names of columns
/// the second of which is not that of an x. Lines that cannot be used
/// are given beside those that can.
pub fn read(path: &Path) -> Result<(Vec<Listed>, Vec<Rejected>)> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io(path, source))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let (mut listed, mut rejected) = (Vec::new(), Vec::new());
    let (mut in_front, by_commas) = (true, has_commas(text));
    for (line, content) in lines(text) {
        let fields = if by_commas { comma_separated(path, line, content)? } else { spaced(content) };
        if in_front && is_title(&fields) {
            check_columns(path, line, &fields)?;
            continue;
        }
        in_front = false;
        match parse(path, line, &fields) {
            Ok(found) => listed.push(found),
            Err(error) => {
                let name = fields.first().cloned().unwrap_or_default();
                rejected.push(Rejected { line, name, error });
            }
        }
    }
    if listed.is_empty() && rejected.is_empty() {
        return Err(Error::data(
            path.display().to_string(),
            "no landmarks",
            EXPECTED,
            "run a face detector that gives five landmarks over the images",
        ));
    }
    Ok((listed, rejected))
}

/// The lines that hold anything, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
}

/// Whether the fields are separated by commas. A title may be separated in another way than the data, or be a lone number.
fn has_commas(text: &str) -> bool {
    lines(text).nth(2).or_else(|| lines(text).last()).is_some_and(|(_, line)| line.contains(','))
}

/// The fields of a line that are separated by tabs, or by white space where it has none.
fn spaced(line: &str) -> Vec<String> {
    if line.contains('\t') {
        line.split('\t').map(|field| field.trim().to_owned()).collect()
    } else {
        line.split_whitespace().map(str::to_owned).collect()
    }
}

/// The fields of a line as RFC 4180 has them. A field does not go on in the next line: no path of an image does.
fn comma_separated(path: &Path, number: usize, line: &str) -> Result<Vec<String>> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .trim(csv::Trim::All)
        .buffer_capacity(line.len() + 1)
        .from_reader(line.as_bytes());
    let mut record = csv::StringRecord::new();
    reader.read_record(&mut record).map_err(|error| {
        Error::data(
            format!("{}, line {number}", path.display()),
            error.to_string(),
            EXPECTED,
            "mend that line",
        )
    })?;
    Ok(record.iter().map(str::to_owned).collect())
}

/// Whether a line in front of the data is a title: the lone number of lines that CelebA has, or names of columns.
fn is_title(fields: &[String]) -> bool {
    let number = |field: &String| field.parse::<f64>().is_ok();
    match fields {
        [count] => number(count),
        _ => fields.len() >= 10 && !fields.iter().skip(1).any(number),
    }
}

/// Refuses names of columns whose numbers do not begin with an x: those of a box or of a score, say. As CelebA has them
/// there is no name for the path.
fn check_columns(path: &Path, line: usize, names: &[String]) -> Result<()> {
    let first = usize::from(names.len() != 10);
    let Some(name) = names.get(first).filter(|name| names.len() >= 10 && !is_x(name)) else { return Ok(()) };
    Err(Error::data(
        format!("{}, line {line}", path.display()),
        format!("`{}` as the name of column {}", short(name), first + 1),
        "the x of the first eye there, such as x1 or lefteye_x",
        format!("order the columns so that each line has {EXPECTED}"),
    ))
}

/// Whether a column's name is that of an x: x, x1, lefteye_x, leftEyeX, `point 1 x`, x_0.
fn is_x(name: &str) -> bool {
    let name = name.to_lowercase();
    let mut words = name.split(|letter: char| !letter.is_alphanumeric());
    let other = ["box", "idx", "index", "max"];
    let word_is_x = |word: &str| {
        let word = word.trim_matches(|letter: char| letter.is_ascii_digit());
        word.ends_with('x') && !other.iter().any(|other| word.ends_with(other))
    };
    !name.contains("box") && words.any(word_is_x)
}

fn parse(path: &Path, line: usize, fields: &[String]) -> Result<Listed> {
    let wrong = |found: String| {
        Err(Error::data(
            format!("{}, line {line}", path.display()),
            found,
            EXPECTED,
            "separate the fields by commas or tabs if a path holds a space",
        ))
    };
    let Some((name, numbers)) = fields.split_first().filter(|(name, _)| !name.is_empty()) else {
        return wrong("no path".into());
    };
    let mut values = Vec::with_capacity(11);
    for field in numbers {
        match field.parse::<f64>() {
            Ok(value) if value.is_finite() => values.push(value),
            _ => return wrong(format!("`{}`, which is not a finite number", short(field))),
        }
    }
    let (points, score) = match values.as_slice() {
        [points @ .., score] if points.len() == 10 => (points, Some(*score as f32)),
        points if points.len() == 10 => (points, None),
        _ => return wrong(format!("{} numbers behind `{}`", values.len(), short(name))),
    };
    let mut found = Points::default();
    for (point, pair) in found.iter_mut().zip(points.chunks_exact(2)) {
        point.copy_from_slice(pair);
    }
    Ok(Listed { line, name: name.clone(), points: found, score })
}

fn short(text: &str) -> String {
    text.chars().take(60).collect()
}

/// A path of a list that stays in the folder that it is relative to: no absolute one, and none with `..`. Windows'
/// separators are understood everywhere.
pub fn inside(name: &str) -> Option<PathBuf> {
    use std::path::Component;
    let path = PathBuf::from(name.replace('\\', "/"));
    let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (plain && path.file_name().is_some()).then_some(path)
}
