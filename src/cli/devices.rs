//! `epl devices`: the adapters, what they offer and what that allows.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use clap::Args;
use epl_runtime::device::{AdapterDescription, adapters};
use epl_runtime::{DType, Device, Error as RuntimeError};
use serde::Serialize;

use super::ops::all_ops;
use super::output::{bytes, note};
use super::{Context, Verdict};
use crate::Result;

const EXAMPLES: &str = "\
Examples:
  epl devices
  epl devices --json | jq '.adapters[].name'
  EPL_DEVICE=intel epl devices   which adapter that name chooses";

/// List the adapters, what they offer, and which kernel variants that allows
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Devices {}

#[derive(Debug, Serialize)]
struct Listing {
    adapters: Vec<Adapter>,
    /// Index of the adapter that commands use; none where it could not be opened.
    chosen: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Adapter {
    index: usize,
    name: String,
    backend: String,
    kind: String,
    driver: String,
    limits: Limits,
    features: Features,
    /// The kinds of kernels that ops may choose from on it.
    variants: Vec<String>,
    /// Kernels that it cannot run; ops that have them use another one there.
    unavailable_kernels: Vec<&'static str>,
    kernels: usize,
}

#[derive(Debug, Serialize)]
struct Limits {
    max_binding_bytes: u64,
    max_buffer_bytes: u64,
    max_workgroup_bytes: u32,
    max_invocations: u32,
    max_grid: u32,
}

#[derive(Debug, Serialize)]
struct Features {
    /// Smallest and largest subgroup.
    subgroups: Option<[u32; 2]>,
    shader_f16: bool,
    cooperative_matrix: Vec<String>,
    timestamps: bool,
}

impl Devices {
    pub fn run(&self, context: &Context) -> Result<Verdict> {
        let chosen = match Device::open(&context.device_options()) {
            Ok(device) => Some((device.description().index, device.caps().clone())),
            Err(error @ RuntimeError::NoAdapter { .. }) => return Err(error.into()),
            // An adapter whose driver fails is what one looks into the list for.
            Err(error) => {
                note(format_args!("warning: the adapter cannot be opened: {error}"));
                None
            }
        };
        let mut found = adapters();
        // Only an open device has had its matrix unit tested.
        if let Some((index, caps)) = &chosen
            && let Some(used) = found.iter_mut().find(|adapter| adapter.index == *index)
        {
            used.caps = caps.clone();
        }
        let adapters = found.into_iter().map(Adapter::from).collect();
        context.present(&Listing { adapters, chosen: chosen.map(|(index, _)| index) })?;
        Ok(Verdict::Done)
    }
}

impl From<AdapterDescription> for Adapter {
    fn from(found: AdapterDescription) -> Self {
        let caps = &found.caps;
        // Whether the adapter can run a shader in any of its forms.
        let mut kernels = BTreeMap::new();
        for kernel in all_ops().iter().flat_map(|entry| entry.kernels) {
            let element = |half| if half { DType::F16 } else { DType::F32 };
            let usable = kernel.halves().any(|half| kernel.needs.met_by(caps, element(half)));
            *kernels.entry(kernel.shader).or_insert(false) |= usable;
        }
        let mut variants = vec!["portable".to_owned()];
        variants.extend(caps.subgroups.map(|_| "subgroup".to_owned()));
        variants.extend(caps.cpu.then_some("cpu".to_owned()));
        for element in [DType::F32, DType::F16] {
            let side = caps.matrix_side(element);
            variants.extend(side.map(|side| format!("cooperative {side}x{side} {element}")));
        }
        Self {
            index: found.index,
            name: found.name,
            backend: found.backend,
            kind: found.kind,
            driver: found.driver,
            limits: Limits {
                max_binding_bytes: caps.max_binding_bytes,
                max_buffer_bytes: caps.max_buffer_bytes,
                max_workgroup_bytes: caps.max_workgroup_bytes,
                max_invocations: caps.max_invocations,
                max_grid: caps.max_grid,
            },
            features: Features {
                subgroups: caps.subgroups.map(|sizes| [sizes.min, sizes.max]),
                shader_f16: found.shader_f16,
                cooperative_matrix: found.cooperative_matrix,
                timestamps: found.timestamps,
            },
            variants,
            unavailable_kernels: kernels
                .iter()
                .filter(|(_, usable)| !**usable)
                .map(|(shader, _)| *shader)
                .collect(),
            kernels: kernels.len(),
        }
    }
}

impl Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, adapter) in self.adapters.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            let chosen = if self.chosen == Some(adapter.index) { "  (used)" } else { "" };
            writeln!(f, "{}  {}{chosen}", adapter.index, adapter.name)?;
            write!(f, "{adapter}")?;
        }
        Ok(())
    }
}

impl Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |key: &str, value: String| writeln!(f, "   {key:<20}{value}");
        let yes_no = |flag: bool| if flag { "yes" } else { "no" }.to_owned();
        line("backend", self.backend.clone())?;
        line("kind", self.kind.clone())?;
        line("driver", self.driver.clone())?;
        line("storage binding", bytes(self.limits.max_binding_bytes))?;
        line("buffer", bytes(self.limits.max_buffer_bytes))?;
        line(
            "workgroup",
            format!(
                "{} of memory, {} invocations",
                bytes(u64::from(self.limits.max_workgroup_bytes)),
                self.limits.max_invocations
            ),
        )?;
        line(
            "subgroups",
            self.features
                .subgroups
                .map_or("no".to_owned(), |[min, max]| format!("{min} to {max} invocations")),
        )?;
        line("16-bit floats", yes_no(self.features.shader_f16))?;
        line(
            "cooperative matrix",
            if self.features.cooperative_matrix.is_empty() {
                "no".to_owned()
            } else {
                self.features.cooperative_matrix.join(", ")
            },
        )?;
        line("timestamps", yes_no(self.features.timestamps))?;
        line("kernel variants", self.variants.join(", "))?;
        let mut usable = format!("{} of {}", self.kernels - self.unavailable_kernels.len(), self.kernels);
        if !self.unavailable_kernels.is_empty() {
            usable.push_str(&format!("; not {}", self.unavailable_kernels.join(", ")));
        }
        line("kernels", usable)
    }
}
