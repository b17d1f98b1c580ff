//! What has gone wrong with a device outside a call that returns an error.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Result};

/// What a device has come to.
#[derive(Debug, Default)]
pub(crate) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    lost: Option<String>,
    hung: bool,
    refused: Option<String>,
}

impl Health {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each critical section is one assignment, so a panic leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device is lost. The first reason is the cause; what follows is usually its consequence.
    pub fn lose(&self, how: String) {
        self.state().lost.get_or_insert(how);
    }

    /// The device is lost, since it does not answer.
    pub fn hang(&self, how: String) {
        let mut state = self.state();
        state.hung |= state.lost.is_none();
        state.lost.get_or_insert(how);
    }

    /// Whether that is how it was lost.
    pub fn is_hung(&self) -> bool {
        self.state().hung
    }

    /// wgpu or the driver refused something.
    pub fn refuse(&self, what: String) {
        self.state().refused.get_or_insert(what);
    }

    /// How the device was lost, if it was.
    pub fn lost(&self) -> Option<String> {
        self.state().lost.clone()
    }

    /// The error that the device has come to, if any. That it is lost explains all others.
    pub fn check(&self) -> Result<()> {
        let state = self.state();
        match (&state.lost, &state.refused) {
            (Some(what), _) => Err(Error::DeviceLost { what: what.clone() }),
            (None, Some(what)) => Err(Error::gpu(what.clone())),
            (None, None) => Ok(()),
        }
    }

    /// What `error` comes from: the loss of the device, if it is lost.
    pub fn cause(&self, error: Error) -> Error {
        self.lost().map_or(error, |what| Error::DeviceLost { what })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_the_cause_and_a_loss_explains_all() {
        let health = Health::default();
        assert!(health.check().is_ok());
        health.refuse("a binding".into());
        health.refuse("another".into());
        assert_eq!(health.check().unwrap_err().to_string(), "GPU: a binding");
        assert_eq!(health.cause(Error::gpu("x")).to_string(), "GPU: x");
        health.lose("reset".into());
        health.lose("gone".into());
        health.hang("silent".into());
        assert!(!health.is_hung(), "it was lost before");
        assert_eq!(health.check().unwrap_err().to_string(), "the GPU was lost: reset");
        assert_eq!(health.cause(Error::gpu("x")).to_string(), "the GPU was lost: reset");
    }
}
