//! The options that choose an adapter, and what of it is used.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use epl_runtime::faults::Faults;
use epl_runtime::{DeviceOptions, Feature};

/// Which adapter, and what of it. The commands and the examples share these.
#[derive(Debug, Clone, clap::Args)]
pub struct DeviceArguments {
    /// The adapter: its index or a part of its name, as `epl devices` lists them [default: the best one]
    #[arg(long, global = true, env = "EPL_DEVICE", value_name = "NAME|INDEX", hide_env_values = true)]
    pub device: Option<String>,
    /// Limits of the adapter that are used: its own, or those that WebGPU promises everywhere, without optional features
    #[arg(
        long,
        global = true,
        env = "EPL_LIMITS",
        value_enum,
        default_value = "adapter",
        hide_env_values = true
    )]
    limits: Limits,
    /// Optional features that are left alone: subgroups, f16, matrices, timestamps, pipeline-cache
    #[arg(
        long,
        global = true,
        env = "EPL_WITHOUT",
        value_name = "FEATURE",
        value_delimiter = ',',
        hide_env_values = true
    )]
    without: Vec<Feature>,
    /// Losses of the device that are brought about, to test what happens then: see `epl_runtime::faults`
    #[arg(long, global = true, env = "EPL_TEST_LOSE_DEVICE", hide = true, value_parser = faults)]
    test_lose_device: Option<Arc<Faults>>,
    /// Seconds after which a device that finishes nothing counts as lost, to test what happens then
    #[arg(long, global = true, env = "EPL_TEST_WAIT_LIMIT", hide = true)]
    test_wait_limit: Option<u64>,
}

/// Whose limits kernels keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Limits {
    /// The adapter's.
    Adapter,
    /// WebGPU's defaults.
    Webgpu,
}

fn faults(text: &str) -> Result<Arc<Faults>, String> {
    text.parse().map(Arc::new)
}

impl DeviceArguments {
    /// How to open that adapter.
    pub fn options(&self) -> DeviceOptions {
        DeviceOptions {
            select: self.device.clone(),
            webgpu_limits: self.limits == Limits::Webgpu,
            without: self.without.clone(),
            faults: self.test_lose_device.clone(),
            wait_limit: self.test_wait_limit.map(Duration::from_secs),
            ..DeviceOptions::default()
        }
    }
}
