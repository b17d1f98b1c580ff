//! `identities.tsv`: what the classes of a record file are called, which the file itself cannot say.
//!
//! A line is a label, a tab and a name, in which a backslash, tab, line feed and carriage return are written
//! `\\`, `\t`, `\n` and `\r`. It lies beside its record file as `identities.tsv` if that is `train.rec`, else
//! as `NAME.identities.tsv`. In a folder of identity folders it fixes their labels, so that what was taken
//! out of a record file can be packed again as it was, whatever the names' order.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The file's name in a folder.
pub const FILE: &str = "identities.tsv";

/// Names by label.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identities(BTreeMap<u32, String>);

impl Identities {
    /// Where the names of the record file at `path` are.
    pub fn place(path: &Path) -> PathBuf {
        match path.file_name() {
            Some(name) if name == "train.rec" => path.with_file_name(FILE),
            _ => path.with_extension(FILE),
        }
    }

    /// Those of the record file at `path`, if there are any.
    ///
    /// # Errors
    /// As those of [`Identities::read`].
    pub fn beside(path: &Path) -> Result<Option<Self>> {
        Self::read(&Self::place(path))
    }

    /// Those in the file at `path`, or `None` where there is no such file.
    ///
    /// # Errors
    /// A file that cannot be read; a line of another form; a label or a name that occurs twice.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, &path.display().to_string()).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::io(path, source)),
        }
    }

    fn parse(text: &str, place: &str) -> Result<Self> {
        let mut names = BTreeMap::new();
        let mut labels: HashMap<String, u32> = HashMap::new();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            let fault = |found: String, expected: &str| {
                let hint = "correct the file or remove it";
                Error::data(format!("{place}, line {}", number + 1), found, expected, hint)
            };
            let parsed = line.split_once('\t').and_then(|(label, name)| {
                Some((label.trim().parse::<u32>().ok()?, unescape(name)?))
                    .filter(|(_, name)| !name.is_empty())
            });
            let Some((label, name)) = parsed else {
                let shown: String = line.chars().take(60).collect();
                return Err(fault(format!("`{shown}`"), "label<TAB>name"));
            };
            if let Some(other) = labels.insert(name.clone(), label) {
                return Err(fault(format!("the name of label {other} again"), "every name once"));
            }
            if names.insert(label, name).is_some() {
                return Err(fault(format!("label {label} again"), "every label once"));
            }
        }
        Ok(Self(names))
    }

    /// Adds a name.
    pub fn insert(&mut self, label: u32, name: impl Into<String>) {
        self.0.insert(label, name.into());
    }

    /// What class `label` is called.
    pub fn name(&self, label: u32) -> Option<&str> {
        self.0.get(&label).map(String::as_str)
    }

    /// The labels by name.
    pub fn labels(&self) -> HashMap<&str, u32> {
        self.0.iter().map(|(&label, name)| (name.as_str(), label)).collect()
    }

    /// One more than the largest label.
    pub fn classes(&self) -> usize {
        self.0.last_key_value().map_or(0, |(&label, _)| label as usize + 1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The file's contents.
    pub fn to_text(&self) -> String {
        self.0.iter().map(|(label, name)| format!("{label}\t{}\n", escape(name))).collect()
    }
}

fn escape(name: &str) -> String {
    name.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

fn unescape(text: &str) -> Option<String> {
    let mut name = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        name.push(match character {
            '\\' => match characters.next()? {
                '\\' => '\\',
                't' => '\t',
                'n' => '\n',
                'r' => '\r',
                _ => return None,
            },
            '\t' => return None,
            other => other,
        });
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_file_lies_beside_its_records() {
        assert_eq!(Identities::place(Path::new("a/train.rec")), Path::new("a/identities.tsv"));
        assert_eq!(Identities::place(Path::new("a/x.rec")), Path::new("a/x.identities.tsv"));
        assert_eq!(Identities::beside(Path::new("no/such/train.rec")).unwrap(), None);
    }

    #[test]
    fn what_is_not_a_list_of_names_is_refused_by_line() {
        for (text, words) in [
            ("0\ta\nb\n", "line 2: found `b`"),
            ("0\ta\n\n-1\tb\n", "line 3"),
            ("0\t\n", "line 1"),
            ("0\ta\\x\n", "line 1"),
            ("0\ta\tb\n", "line 1"),
            ("0\ta\n0\tb\n", "label 0 again"),
            ("0\ta\n1\ta\n", "the name of label 0 again"),
        ] {
            let error = Identities::parse(text, "x.tsv").unwrap_err().to_string();
            assert!(error.contains("x.tsv") && error.contains(words), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn names_are_read_back(names in prop::collection::btree_map(any::<u32>(), "[\\PC\t\n\r\\\\]{1,8}", 0..6)) {
            let mut seen = std::collections::HashSet::new();
            let names: BTreeMap<u32, String> =
                names.into_iter().filter(|(_, name)| seen.insert(name.clone())).collect();
            let written = Identities(names);
            prop_assert_eq!(Identities::parse(&written.to_text(), "x").unwrap(), written);
        }
    }
}
