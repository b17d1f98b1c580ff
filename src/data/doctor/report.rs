//! What the doctor says.

use std::fmt;

use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

use super::Balance;
use crate::data::stored::Stored;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Training will fail, or the data are wrong.
    Error,
    /// Training may suffer.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// An image, by its index.
    Image(u32),
    /// A class, by its label.
    Class(u32),
    /// A file or a place in one; empty where it is the data set as a whole.
    Place(Box<str>),
}

/// One thing that a finding is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// What it is.
    pub subject: Subject,
    /// The image that it repeats, by its index.
    pub other: Option<u32>,
    /// What there is to say of it, may be empty.
    pub detail: Box<str>,
}

impl Mark {
    /// A mark on image `index`.
    pub fn image(index: usize, detail: impl Into<Box<str>>) -> Self {
        Self { subject: Subject::Image(index as u32), other: None, detail: detail.into() }
    }

    /// A mark on the class `label`.
    pub fn class(label: u32, detail: impl Into<Box<str>>) -> Self {
        Self { subject: Subject::Class(label), other: None, detail: detail.into() }
    }

    /// A mark on a place.
    pub fn place(place: impl Into<Box<str>>, detail: impl Into<Box<str>>) -> Self {
        Self { subject: Subject::Place(place.into()), other: None, detail: detail.into() }
    }
}

/// One kind of thing that is wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// Its name for scripts.
    pub kind: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, without the number.
    pub what: String,
    /// What to do about it.
    pub advice: String,
    /// Everything that it is about.
    pub marks: Vec<Mark>,
}

impl Finding {
    /// Whether it is about the data set as a whole, so that its marks need no counting.
    pub fn is_of_the_whole(&self) -> bool {
        matches!(self.marks.as_slice(), [Mark { subject: Subject::Place(place), .. }] if place.is_empty())
    }
}

/// The outcome of a check.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The number of images.
    pub images: usize,
    /// How many of them can be decoded.
    pub decoded: usize,
    /// The number of classes: as it is said to be, else one more than the largest label. 0 where there are no
    /// labels.
    pub classes: usize,
    /// The size that the images were checked for, `[H, W]`.
    pub size: Option<[usize; 2]>,
    /// How the images are spread over the classes.
    pub balance: Option<Balance>,
    /// What is wrong, errors first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Adds a finding if it is about anything.
    pub(super) fn add(
        &mut self,
        severity: Severity,
        kind: &'static str,
        what: impl Into<String>,
        advice: impl Into<String>,
        marks: Vec<Mark>,
    ) {
        if !marks.is_empty() {
            self.findings.push(Finding { kind, severity, what: what.into(), advice: advice.into(), marks });
        }
    }

    /// Puts errors first.
    pub(super) fn order(&mut self) {
        self.findings.sort_by_key(|finding| finding.severity);
    }

    /// How many findings are of `severity`.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// The finding of a kind.
    pub fn finding(&self, kind: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.kind == kind)
    }
}

/// A mark with its names, as it is written out.
#[derive(Debug, Serialize)]
pub struct Named {
    /// The image or the place.
    pub place: String,
    /// The class.
    pub label: Option<u32>,
    /// What the class is called.
    pub identity: Option<String>,
    /// The image that it repeats.
    pub other: Option<String>,
    /// That image's class.
    pub other_label: Option<u32>,
    /// What there is to say of it.
    pub detail: String,
}

impl Named {
    /// `mark` by its names in `stored`.
    pub fn new(mark: &Mark, stored: &dyn Stored) -> Self {
        let label_of = |index: usize| stored.label(index).ok();
        let (place, label) = match &mark.subject {
            Subject::Image(index) => (stored.name(*index as usize), label_of(*index as usize)),
            Subject::Class(label) => (String::new(), Some(*label)),
            Subject::Place(place) => (place.to_string(), None),
        };
        let other = mark.other.map(|index| index as usize);
        Self {
            place,
            identity: label.and_then(|label| stored.identity(label)),
            label,
            other: other.map(|index| stored.name(index)),
            other_label: other.and_then(label_of),
            detail: mark.detail.to_string(),
        }
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = |label: u32, name: Option<&String>| match name {
            Some(name) => format!("class {label} ({name})"),
            None => format!("class {label}"),
        };
        let mut parts = Vec::new();
        if self.place.is_empty() {
            parts.extend(self.label.map(|label| class(label, self.identity.as_ref())));
        } else {
            parts.push(self.place.clone());
        }
        if !self.detail.is_empty() {
            parts.push(self.detail.clone());
        }
        write!(f, "{}", parts.join(": "))?;
        if let Some(other) = &self.other {
            write!(f, " = {other}")?;
            if let (Some(own), Some(label)) = (self.label, self.other_label)
                && own != label
            {
                write!(f, " (classes {own} and {label})")?;
            }
        }
        Ok(())
    }
}

/// Marks, named one by one while they are written.
pub struct NamedMarks<'a> {
    /// What is named.
    pub marks: &'a [Mark],
    /// The set that was checked.
    pub stored: &'a dyn Stored,
}

impl Serialize for NamedMarks<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.marks.len()))?;
        for mark in self.marks {
            list.serialize_element(&Named::new(mark, self.stored))?;
        }
        list.end()
    }
}
