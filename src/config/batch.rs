//! `train.batch_size`: a number, or "auto".

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserializer, Serializer};

/// The batch that stands for "auto": it is decided once the device is known.
pub const AUTO: usize = 0;
/// The same in a configuration.
const NAME: &str = "auto";

/// Writes a batch.
///
/// # Errors
/// Those of the serializer.
pub(super) fn serialize<S: Serializer>(batch: &usize, serializer: S) -> Result<S::Ok, S::Error> {
    match *batch {
        AUTO => serializer.serialize_str(NAME),
        number => serializer.serialize_u64(number as u64),
    }
}

/// Reads a batch.
///
/// # Errors
/// What is neither a whole number above 0 nor "auto".
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    deserializer.deserialize_any(BatchVisitor)
}

struct BatchVisitor;

impl Visitor<'_> for BatchVisitor {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number above 0, or \"{NAME}\"")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<usize, E> {
        // Zero means "auto" inside the program, and nothing to whoever writes it.
        match usize::try_from(number) {
            Ok(batch) if batch != AUTO => Ok(batch),
            _ => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<usize, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<usize, E> {
        if text == NAME { Ok(AUTO) } else { Err(E::invalid_value(Unexpected::Str(text), &self)) }
    }
}
