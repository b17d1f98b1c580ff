//! From TOML to a value, with errors that name the key.
//!
//! serde tells a deserializer's error type what was wrong in a structured way (`unknown_field`, `invalid_type`, ...);
//! the deserializer of the `toml` crate turns that into text at once and does not know the dotted key. The small
//! deserializer here keeps both.

use std::fmt::{self, Display};
use std::marker::PhantomData;

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, Unexpected, Visitor};
use toml::{Table, Value};

use super::Config;
use crate::{Error, Result};

/// How the message of a file that is no TOML begins.
pub(super) const NOT_TOML: &str = "the configuration is not valid TOML";

/// Parses `text`, applies the overrides in order, lets `complete` add what depends on other keys, and deserializes the result.
pub(super) fn read<T: DeserializeOwned>(
    text: &str,
    overrides: &[String],
    complete: impl FnOnce(&mut Table),
) -> Result<T> {
    let mut table: Table = text.parse().map_err(|error: toml::de::Error| {
        Error::usage(
            format!("{NOT_TOML}: {}", error.to_string().trim_end()),
            "correct the place shown; strings need quotes, tables are written [name]",
        )
    })?;
    for assignment in overrides {
        apply(&mut table, assignment)?;
    }
    complete(&mut table);
    let root = Node { path: String::new(), value: Value::Table(table) };
    root.read(PhantomData::<T>).map_err(Fault::into_error)
}

/// `prefix.name`, or `name` at the top level.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

/// Applies one `KEY=VALUE`.
fn apply(table: &mut Table, assignment: &str) -> Result<()> {
    let malformed = |why: &str| {
        Error::usage(
            format!("--set {assignment}: {why}"),
            "write KEY=VALUE with a dotted key, for example --set optim.lr=0.05",
        )
    };
    let (key, value) =
        assignment.split_once('=').ok_or_else(|| malformed("found no `=`; expected KEY=VALUE"))?;
    let value = override_value(value.trim()).map_err(|why| malformed(&why))?;
    let mut segments: Vec<&str> = key.trim().split('.').collect();
    if segments.iter().any(|segment| segment.is_empty()) {
        return Err(malformed(&format!("found the key `{}`; expected names joined by dots", key.trim())));
    }
    let Some(leaf) = segments.pop() else { return Err(malformed("expected a key")) };
    let mut place = table;
    let mut path = String::new();
    for segment in segments {
        path = join(&path, segment);
        let next = place.entry(segment).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = next else {
            return Err(malformed(&format!("`{path}` is a value, not a table with keys of its own")));
        };
        place = inner;
    }
    place.insert(leaf.to_owned(), value);
    Ok(())
}

/// A TOML value, or the text itself where that is not TOML and does not look as if it were meant to be.
fn override_value(text: &str) -> std::result::Result<Value, String> {
    // Parsed as the only value of a document: what follows a line break would be further keys.
    let parsed = format!("value = {text}").parse::<Table>();
    match parsed {
        Ok(mut table) if table.len() == 1 => match table.remove("value") {
            // No key is a date, and a folder may well be called 2026-01-31.
            Some(Value::Datetime(_)) | None => Ok(Value::String(text.to_owned())),
            Some(value) => Ok(value),
        },
        Err(error) if text.starts_with(['"', '\'', '[', '{']) => {
            Err(format!("found {text}, which is not a TOML value: {}", error.message()))
        }
        _ => Ok(Value::String(text.to_owned())),
    }
}

/// What serde found wrong, and where.
#[derive(Debug)]
struct Fault {
    /// Dotted key of the value or, for an unknown key, of its table. Set by the innermost [`Node::read`].
    path: Option<String>,
    kind: FaultKind,
}

#[derive(Debug)]
enum FaultKind {
    UnknownKey { key: String, siblings: &'static [&'static str] },
    UnknownName { found: String, known: &'static [&'static str] },
    Mismatch { found: String, expected: String },
    Other(String),
}

impl Fault {
    fn at(mut self, path: &str) -> Self {
        self.path.get_or_insert_with(|| path.to_owned());
        self
    }

    fn mismatch(found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { path: None, kind: FaultKind::Mismatch { found: found.into(), expected: expected.into() } }
    }

    fn into_error(self) -> Error {
        let path = self.path.unwrap_or_default();
        match self.kind {
            FaultKind::UnknownKey { key, siblings } => {
                let table =
                    if path.is_empty() { "the configuration".to_owned() } else { format!("[{path}]") };
                Error::usage(
                    format!(
                        "unknown key `{}`; the nearest known key is `{}`",
                        join(&path, &key),
                        nearest(&path, &key, siblings)
                    ),
                    format!("{table} has the keys {}", siblings.join(", ")),
                )
            }
            FaultKind::UnknownName { found, known } => {
                let mut what = format!("`{path}`: found \"{found}\"; expected {}", one_of(known));
                if let Some(name) = similar(&found, known) {
                    what.push_str(&format!(" (perhaps \"{name}\"?)"));
                }
                Error::usage(what, "use one of the names listed")
            }
            FaultKind::Mismatch { found, expected } => Error::usage(
                format!("`{path}`: found {found}; expected {expected}"),
                "correct the value in the configuration file or in --set",
            ),
            FaultKind::Other(message) => Error::usage(
                format!("`{path}`: {message}"),
                "correct the value in the configuration file or in --set",
            ),
        }
    }
}

/// The known key that was most probably meant: a near spelling in the same table, else the same name in another
/// table, else whatever in the same table is least unlike it.
fn nearest(table: &str, key: &str, siblings: &[&'static str]) -> String {
    if let Some(name) = similar(key, siblings) {
        return join(table, name);
    }
    let elsewhere = Config::known_keys().into_iter().find(|known| known.rsplit('.').next() == Some(key));
    elsewhere.unwrap_or_else(|| {
        let likeness = |name: &&&str| (strsim::jaro_winkler(key, name) * 1e6) as u32;
        join(table, siblings.iter().max_by_key(likeness).copied().unwrap_or_default())
    })
}

/// The nearest of `names` within a few typing errors.
fn similar(found: &str, names: &[&'static str]) -> Option<&'static str> {
    let errors = |name: &&str| strsim::damerau_levenshtein(&found.to_lowercase(), name);
    let name = names.iter().copied().min_by_key(errors)?;
    (errors(&name) <= (found.chars().count() / 3).max(1)).then_some(name)
}

fn one_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    match quoted.as_slice() {
        [only] => only.clone(),
        many => format!("one of {}", many.join(", ")),
    }
}

/// serde's names of Rust types, in words that a reader of TOML knows.
fn expected_words(expected: &dyn de::Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "path string" => "a path in quotes".to_owned(),
        "a string" => "a string in quotes".to_owned(),
        "a sequence" => "a list".to_owned(),
        _ if text.starts_with("struct ") => "a table".to_owned(),
        _ => text.replace("an array of length", "a list of"),
    }
}

fn found_words(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => value.to_string(),
        Unexpected::Signed(value) => value.to_string(),
        Unexpected::Float(value) => format!("{value:?}"),
        Unexpected::Str(text) => format!("\"{text}\""),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}", self.kind, self.path)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(message: T) -> Self {
        Self { path: None, kind: FaultKind::Other(message.to_string()) }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::mismatch(found_words(found), expected_words(expected))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::mismatch(found_words(found), expected_words(expected))
    }

    fn invalid_length(length: usize, expected: &dyn de::Expected) -> Self {
        Self::mismatch(format!("a list of {length}"), expected_words(expected))
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self { path: None, kind: FaultKind::UnknownName { found: found.to_owned(), known } }
    }

    fn unknown_field(key: &str, siblings: &'static [&'static str]) -> Self {
        Self { path: None, kind: FaultKind::UnknownKey { key: key.to_owned(), siblings } }
    }
}

/// A TOML value and its dotted key.
struct Node {
    path: String,
    value: Value,
}

impl Node {
    /// Deserializes; a fault that does not know its place yet is at this node. Done here and not inside the
    /// deserializer, because the conversion of `#[serde(try_from)]` comes after that.
    fn read<'de, S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Fault> {
        let path = self.path.clone();
        seed.deserialize(self).map_err(|fault| fault.at(&path))
    }
}

impl<'de> de::Deserializer<'de> for Node {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Self { path, value } = self;
        match value {
            Value::String(text) => visitor.visit_string(text),
            Value::Integer(number) => visitor.visit_i64(number),
            Value::Float(number) => visitor.visit_f64(number),
            Value::Boolean(flag) => visitor.visit_bool(flag),
            Value::Datetime(date) => Err(Fault::mismatch(
                format!("the date {date}"),
                expected_words(&visitor as &dyn de::Expected),
            )),
            Value::Array(items) => {
                let length = items.len();
                let mut access = ListAccess { path, index: 0, items: items.into_iter() };
                visitor.visit_seq(&mut access).and_then(|list| match access.items.len() {
                    0 => Ok(list),
                    rest => Err(Fault::mismatch(
                        format!("a list of {length}"),
                        format!("a list of {}", length - rest),
                    )),
                })
            }
            Value::Table(table) => {
                visitor.visit_map(TableAccess { path, entries: table.into_iter(), next: None })
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self.value {
            Value::String(name) => visitor.visit_enum(name.into_deserializer()),
            other => Err(Fault::mismatch(format!("{other}"), one_of(variants))),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map struct identifier ignored_any
    }
}

struct ListAccess {
    path: String,
    index: usize,
    items: std::vec::IntoIter<Value>,
}

impl<'de> de::SeqAccess<'de> for ListAccess {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some(value) = self.items.next() else { return Ok(None) };
        let path = format!("{}[{}]", self.path, self.index);
        self.index += 1;
        Node { path, value }.read(seed).map(Some)
    }
}

struct TableAccess {
    path: String,
    entries: toml::map::IntoIter<String, Value>,
    /// The value whose key was read last.
    next: Option<Node>,
}

impl<'de> de::MapAccess<'de> for TableAccess {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.next = Some(Node { path: join(&self.path, &key), value });
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let node =
            self.next.take().ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        node.read(seed)
    }
}
