//! Choices of kernels: which of an op's variants computes it, for given operands on a given adapter.
//!
//! Without a choice the op's own rules decide. Choices are plain text, so that they can be kept in a file and read by people:
//! the op with its attributes and operands, and the name of the variant, one of [`Op::variants`].

use std::collections::BTreeMap;

use crate::TensorDesc;
use crate::op::Op;

/// What the choice of an op's own rules is called.
pub const RULE: &str = "rule";

/// Chosen variants by op and operands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices(BTreeMap<String, String>);

/// Names an op with its attributes and operands: `Conv2d { stride: [1, 1], .. } of f32[8, 14, 14, 64], f32[3, 3, 64, 64]`.
pub fn key(op: &dyn Op, inputs: &[TensorDesc]) -> String {
    let inputs: Vec<String> = inputs.iter().map(TensorDesc::to_string).collect();
    format!("{op:?} of {}", inputs.join(", "))
}

impl Choices {
    /// No choices: rules decide.
    pub fn new() -> Self {
        Self::default()
    }

    /// The variant of `op` for `inputs`; `None` where its rules decide.
    pub fn of(&self, op: &dyn Op, inputs: &[TensorDesc]) -> Option<&str> {
        if self.0.is_empty() {
            return None;
        }
        self.get(&key(op, inputs)).filter(|name| *name != RULE)
    }

    /// The variant that is chosen for `key`, [`RULE`] included; `None` where nothing is.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Chooses `variant` for `key`.
    pub fn set(&mut self, key: impl Into<String>, variant: impl Into<String>) {
        self.0.insert(key.into(), variant.into());
    }

    /// All of them, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, variant)| (key.as_str(), variant.as_str()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Choices {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(key, variant)| (key.into(), variant.into())).collect())
    }
}
