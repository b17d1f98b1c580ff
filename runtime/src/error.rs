//! The one error type of the runtime.

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in the runtime.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No GPU adapter was found, or none that matches the request.
    #[error("no adapter: {found}")]
    NoAdapter {
        /// What was looked for and what there is.
        found: String,
        /// What to install or which name to ask for.
        hint: String,
    },
    /// Shapes, types or attributes of an op do not fit together.
    #[error("op {op}: {found}; expected {expected}")]
    Shape {
        /// The op's name.
        op: String,
        /// The shapes or values found.
        found: String,
        /// What the op needs.
        expected: String,
    },
    /// The graph, or its use, is wrong: an unknown tensor, a missing input, a wrong length.
    #[error("{what}")]
    Graph {
        /// What is wrong, naming op and tensor.
        what: String,
        /// What to do.
        hint: String,
    },
    /// The adapter cannot do what is asked for: a limit, a missing feature, too little memory.
    #[error("{what}")]
    Limit {
        /// What was asked for and what the adapter offers.
        what: String,
        /// What to do.
        hint: String,
    },
    /// The device has no memory left for a buffer.
    #[error(
        "out of memory on {device}: {label} needs {bytes} bytes beside the {allocated} that are allocated"
    )]
    OutOfMemory {
        /// The adapter's name.
        device: String,
        /// What the buffer is for.
        label: String,
        /// Its bytes.
        bytes: u64,
        /// Bytes of the buffers that there were.
        allocated: u64,
    },
    /// A shader, pipeline or submission was refused.
    #[error("GPU: {what}")]
    Gpu {
        /// The driver's or wgpu's own words.
        what: String,
    },
    /// The device is gone, with all that it held: the driver reset it, it was taken out, or it does not answer any more.
    #[error("the GPU was lost: {what}")]
    DeviceLost {
        /// How that was noticed, in the driver's or wgpu's own words where there are any.
        what: String,
    },
}

impl Error {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoAdapter { hint, .. } | Self::Graph { hint, .. } | Self::Limit { hint, .. } => Some(hint),
            Self::OutOfMemory { .. } => {
                Some("use a smaller batch, close what else uses the GPU, or take another device")
            }
            Self::DeviceLost { .. } => Some(
                "start again; where it happens again, update the GPU's driver, take a smaller batch, leave the GPU's optional \
                 features alone (--limits webgpu), or choose another device",
            ),
            Self::Shape { .. } | Self::Gpu { .. } => None,
        }
    }

    /// An op whose operands do not fit; see [`Error::Shape`].
    pub fn shape(op: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Shape { op: op.into(), found: found.into(), expected: expected.into() }
    }

    /// A misuse of the graph; see [`Error::Graph`].
    pub fn graph(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Graph { what: what.into(), hint: hint.into() }
    }

    /// A failure reported by the GPU; see [`Error::Gpu`].
    pub fn gpu(what: impl Into<String>) -> Self {
        Self::Gpu { what: what.into() }
    }
}
