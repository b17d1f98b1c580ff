//! Losses of the device that are brought about, to test what happens then.
//!
//! A list such as `submit@3,evaluation.read@1,any@40` has the device lost at its third submission, then, the device that
//! takes its place, at the first read-back during an evaluation, then after forty operations of any kind. What is lost is
//! lost in earnest: the device is destroyed, and everything that is asked of it afterwards fails.

use std::collections::VecDeque;
use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// An operation of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Work is about to be handed over.
    Submit,
    /// Work was handed over, and is under way.
    Submitted,
    /// Results are about to be read back.
    Read,
    /// The host asks what is done, or waits.
    Poll,
    /// A buffer is about to be made.
    Buffer,
    /// A kernel is about to be compiled.
    Pipeline,
}

impl Operation {
    const ALL: [Self; 6] =
        [Self::Submit, Self::Submitted, Self::Read, Self::Poll, Self::Buffer, Self::Pipeline];

    const fn name(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Submitted => "submitted",
            Self::Read => "read",
            Self::Poll => "poll",
            Self::Buffer => "buffer",
            Self::Pipeline => "pipeline",
        }
    }
}

/// One loss.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    /// What the program has to be at; anything where there is none.
    phase: Option<String>,
    /// `None` for any.
    operation: Option<Operation>,
    /// Such operations that are left until then, the last included.
    left: u64,
}

/// Losses, one after the other; shared by a device and those that take its place.
#[derive(Debug, Default)]
pub struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    to_come: VecDeque<Fault>,
    phase: &'static str,
}

impl Faults {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // What a panic leaves behind is a count.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the program is at from now on. Returns what it was at.
    pub(crate) fn enter(&self, phase: &'static str) -> &'static str {
        std::mem::replace(&mut self.state().phase, phase)
    }

    /// Whether the device is to be lost now, at `operation`; what was due, in words.
    pub(crate) fn due(&self, operation: Operation) -> Option<String> {
        let mut state = self.state();
        let phase = state.phase;
        let next = state.to_come.front_mut()?;
        let counts = next.phase.as_deref().is_none_or(|wanted| wanted == phase)
            && next.operation.is_none_or(|wanted| wanted == operation);
        if !counts {
            return None;
        }
        next.left = next.left.saturating_sub(1);
        if next.left > 0 {
            return None;
        }
        state.to_come.pop_front();
        let during = if phase.is_empty() { String::new() } else { format!(" during {phase}") };
        Some(format!("as a test asked for, at an operation `{}`{during}", operation.name()))
    }

    /// Losses that have not come yet.
    pub fn left(&self) -> usize {
        self.state().to_come.len()
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Operation::ALL.map(Operation::name).join(", ");
        let wrong =
            || format!("`{text}`: expected [PHASE.]OPERATION@COUNT, OPERATION one of any, {}", names());
        let (place, count) = text.split_once('@').ok_or_else(wrong)?;
        let (phase, operation) = match place.split_once('.') {
            Some((phase, operation)) => (Some(phase.to_owned()), operation),
            None => (None, place),
        };
        let operation = match operation {
            "any" => None,
            name => Some(Operation::ALL.into_iter().find(|o| o.name() == name).ok_or_else(wrong)?),
        };
        let left = count.parse().ok().filter(|&count| count > 0).ok_or_else(wrong)?;
        Ok(Self { phase, operation, left })
    }
}

impl FromStr for Faults {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let to_come =
            text.split(',').filter(|part| !part.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self(Mutex::new(State { to_come, phase: "" })))
    }
}

impl Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} losses of the device", self.left())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_come_one_after_the_other_where_they_were_asked_for() {
        let faults: Faults = "submit@2,evaluation.read@1,any@3".parse().unwrap();
        let due = |operation| faults.due(operation).is_some();
        assert!(!due(Operation::Submit) && !due(Operation::Read) && due(Operation::Submit));
        faults.enter("training");
        assert!(!due(Operation::Read));
        assert_eq!(faults.enter("evaluation"), "training");
        assert!(!due(Operation::Submit));
        assert_eq!(
            faults.due(Operation::Read).unwrap(),
            "as a test asked for, at an operation `read` during evaluation"
        );
        assert_eq!(faults.left(), 1);
        assert!(!due(Operation::Poll) && !due(Operation::Buffer) && due(Operation::Pipeline));
        assert!(!due(Operation::Submit), "none is left");
    }

    #[test]
    fn what_is_no_list_of_losses_is_refused() {
        for wrong in ["submit", "submit@0", "submit@x", "fall@1", "@1", "a.b.c@1"] {
            let error = wrong.parse::<Faults>().unwrap_err();
            assert!(error.contains(wrong) && error.contains("OPERATION@COUNT"), "{error}");
        }
        assert_eq!("".parse::<Faults>().unwrap().left(), 0);
    }
}
