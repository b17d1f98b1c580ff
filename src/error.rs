//! The one error type of the `epl` crate: what was found, what was expected, and what to do.

use std::path::{Path, PathBuf};

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong outside the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file was read, but its contents are not what they should be.
    #[error("{place}: found {found}; expected {expected}")]
    Data {
        /// File, and where known the record, key or byte offset.
        place: String,
        /// What was there.
        found: String,
        /// What should have been there.
        expected: String,
        /// What the user can do about it.
        hint: String,
    },
    /// The configuration or the command line asks for something impossible. Exit code 2.
    #[error("{what}")]
    Usage {
        /// What is wrong, naming the key or the option.
        what: String,
        /// What the user can do about it.
        hint: String,
    },
    /// The GPU runtime failed.
    #[error(transparent)]
    Runtime(#[from] epl_runtime::Error),
}

impl Error {
    /// An input or output error at `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// Contents that are not what they should be; see [`Error::Data`].
    pub fn data(
        place: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Data { place: place.into(), found: found.into(), expected: expected.into(), hint: hint.into() }
    }

    /// A request that cannot be met; see [`Error::Usage`].
    pub fn usage(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), hint: hint.into() }
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => {
                    Some("check the path; relative ones start at the current folder")
                }
                std::io::ErrorKind::PermissionDenied => Some("check who may read and write there"),
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    Some("free space on that disk")
                }
                std::io::ErrorKind::InvalidData => {
                    Some("it is not a text file; check that it is the right one")
                }
                std::io::ErrorKind::AlreadyExists => Some("something with that name is in the way"),
                std::io::ErrorKind::NotADirectory => {
                    Some("a part of that path is a file: choose another folder")
                }
                std::io::ErrorKind::ReadOnlyFilesystem => {
                    Some("that disk is read-only: choose another folder")
                }
                _ => None,
            },
            Self::Data { hint, .. } | Self::Usage { hint, .. } => Some(hint),
            Self::Runtime(error) => error.hint(),
        }
    }

    /// The exit code of the command: 1 for a failure, 2 for wrong usage.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage { .. } => 2,
            _ => 1,
        }
    }
}
