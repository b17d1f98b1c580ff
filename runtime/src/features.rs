//! The optional features of adapters that kernels or the runtime make use of. Each can be left alone, and then others do without it.

use std::fmt::{self, Display};
use std::str::FromStr;

/// An optional feature, for [`DeviceOptions::without`](crate::DeviceOptions::without).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Operations between the invocations of a subgroup; cooperative matrices need them too.
    Subgroups,
    /// 16-bit floats in shaders.
    F16,
    /// Cooperative matrices.
    Matrices,
    /// Times at the boundaries of passes, by the GPU's clock.
    Timestamps,
    /// The driver's compiled pipelines, kept between processes.
    PipelineCache,
}

impl Feature {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Subgroups, Self::F16, Self::Matrices, Self::Timestamps, Self::PipelineCache];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Subgroups => "subgroups",
            Self::F16 => "f16",
            Self::Matrices => "matrices",
            Self::Timestamps => "timestamps",
            Self::PipelineCache => "pipeline-cache",
        }
    }

    /// What wgpu calls it.
    pub(crate) const fn wgpu(self) -> wgpu::Features {
        match self {
            Self::Subgroups => wgpu::Features::SUBGROUP,
            Self::F16 => wgpu::Features::SHADER_F16,
            Self::Matrices => wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX,
            Self::Timestamps => wgpu::Features::TIMESTAMP_QUERY,
            Self::PipelineCache => wgpu::Features::PIPELINE_CACHE,
        }
    }
}

impl Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Feature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|feature| feature.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!("expected one of {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for feature in Feature::ALL {
            assert_eq!(feature.name().parse(), Ok(feature));
        }
        let error = "f61".parse::<Feature>().unwrap_err();
        assert_eq!(error, "expected one of subgroups, f16, matrices, timestamps, pipeline-cache");
    }
}
