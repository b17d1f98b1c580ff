//! What a training run will need, before anything is allocated.

use std::collections::BTreeMap;

use epl_runtime::{Caps, Plan, PlanOptions};
use serde::Serialize;

use crate::config::Config;
use crate::train::step::record_step;
use crate::train::trainer::{spec_of, step_options};
use crate::{Error, Result};

/// The figures of `epl plan`, named as in its JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunPlan {
    /// Trained parameters, the head included.
    pub parameters: usize,
    /// Floating-point operations of a training step.
    pub flops_per_step: f64,
    /// Peak bytes of GPU memory.
    pub peak_bytes: u64,
    /// The same by kind.
    pub bytes: BTreeMap<&'static str, u64>,
    /// Bytes of activations that one more image costs.
    pub activation_bytes_per_image: u64,
    /// Largest batch whose tensors fit the adapter's bindings and, where it is known, its memory.
    pub max_batch: usize,
    /// Kernel launches a step.
    pub dispatches: usize,
    /// Bytes that the activations would take without sharing.
    pub without_sharing: u64,
}

/// Plans a step of `config` with a batch of `batch`.
fn plan_batch(config: &Config, classes: usize, caps: &Caps, batch: usize) -> Result<(Plan, f64, usize)> {
    let spec = spec_of(config, classes)?;
    let empirical = config.head.epl.is_some();
    let options = crate::train::step::StepOptions { batch, ..step_options(config, empirical) };
    let recorded = record_step(&spec, &options)?;
    let plan = Plan::new(&recorded.graph, caps, PlanOptions::default())?;
    let flops = plan.flops(&recorded.graph);
    Ok((plan, flops, spec.trained_elements()))
}

/// Plans the run that `config` describes for `classes` identities on an adapter with `caps`. The larger of the two
/// step graphs counts: that with the empirical branch, where the head has EPL.
pub fn plan(config: &Config, classes: usize, caps: &Caps, memory: Option<u64>) -> Result<RunPlan> {
    config.validate()?;
    let batch = config.train.batch_size;
    let fits = |batch: usize| -> bool {
        // A plan that fails for its limits does not fit; other failures are reported by the plan below.
        plan_batch(config, classes, caps, batch)
            .is_ok_and(|(plan, ..)| memory.is_none_or(|limit| plan.memory.total() <= limit))
    };
    let (plan, flops, parameters) = match plan_batch(config, classes, caps, batch) {
        Err(Error::Runtime(epl_runtime::Error::Limit { what, .. })) => {
            let hint = match largest(fits) {
                0 => "no batch fits this adapter: use a narrower network or smaller images".to_string(),
                most => format!("the largest batch that fits this adapter is {most}; set train.batch_size"),
            };
            return Err(Error::Runtime(epl_runtime::Error::Limit { what, hint }));
        }
        other => other?,
    };
    let per_image = |smaller: &Plan, other: usize| {
        let (a, b) = (plan.memory.slots, smaller.memory.slots);
        a.saturating_sub(b) / (batch - other).max(1) as u64
    };
    let half = (batch / 2).max(2);
    let activation = if half < batch {
        per_image(&plan_batch(config, classes, caps, half)?.0, half)
    } else {
        plan.memory.slots / batch as u64
    };
    let persistent = |category: &str| plan.memory.persistent.get(category).copied().unwrap_or(0);
    let bytes = BTreeMap::from([
        ("weights", persistent("weights") + persistent("statistics")),
        ("optimizer", persistent("optimizer")),
        ("gradients", persistent("gradients")),
        ("prototypes", persistent("prototypes")),
        ("activations", plan.memory.slots),
        ("workspace", plan.memory.inputs + plan.memory.parameters),
    ]);
    Ok(RunPlan {
        parameters,
        flops_per_step: flops,
        peak_bytes: plan.memory.total(),
        bytes,
        activation_bytes_per_image: activation,
        max_batch: largest(fits),
        dispatches: plan.dispatches(),
        without_sharing: plan.memory.without_sharing,
    })
}

/// The largest batch that fits, by doubling and then halving the gap; 0 where none does.
fn largest(fits: impl Fn(usize) -> bool) -> usize {
    const MOST: usize = 1 << 16;
    let mut low = 1;
    while low < MOST && fits(low * 2) {
        low *= 2;
    }
    if low == 1 {
        // A batch of one cannot be normalised, so two is the least that trains.
        return 0;
    }
    let mut high = low * 2;
    while high - low > (low / 64).max(1) {
        let middle = (low + high) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_batch_is_found() {
        for limit in [2, 3, 5, 64, 65, 100] {
            assert_eq!(largest(|batch| batch <= limit), limit, "limit {limit}");
        }
        assert_eq!(largest(|batch| batch <= 1), 0);
        let found = largest(|batch| batch <= 10_000);
        assert!((9_800..=10_000).contains(&found), "{found}");
    }
}
