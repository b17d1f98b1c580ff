//! Counters of what is costly, so that "a step allocates nothing and waits for nothing" is shown, not believed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Live counters of a device.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) buffers: AtomicU64,
    pub(crate) bind_groups: AtomicU64,
    pub(crate) pipelines: AtomicU64,
    pub(crate) submits: AtomicU64,
    pub(crate) waits: AtomicU64,
    pub(crate) throttles: AtomicU64,
    pub(crate) waited_nanoseconds: AtomicU64,
    pub(crate) compiled_nanoseconds: AtomicU64,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CounterSnapshot {
    /// Buffers created.
    pub buffers: u64,
    /// Bind groups created.
    pub bind_groups: u64,
    /// Pipelines compiled.
    pub pipelines: u64,
    /// Submissions to the queue.
    pub submits: u64,
    /// Blocking waits for the newest submission.
    pub waits: u64,
    /// Blocking waits for a submission several steps back, because that many steps are already queued.
    pub throttles: u64,
    /// Time in all of these waits and in submissions, in which a driver may wait or work.
    pub waited_nanoseconds: u64,
    /// Time in which sessions compiled pipelines.
    pub compiled_nanoseconds: u64,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn waited_since(&self, started: Instant) {
        add_elapsed(&self.waited_nanoseconds, started);
    }

    pub(crate) fn compiled_since(&self, started: Instant) {
        add_elapsed(&self.compiled_nanoseconds, started);
    }

    pub(crate) fn snapshot(&self) -> CounterSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CounterSnapshot {
            buffers: get(&self.buffers),
            bind_groups: get(&self.bind_groups),
            pipelines: get(&self.pipelines),
            submits: get(&self.submits),
            waits: get(&self.waits),
            throttles: get(&self.throttles),
            waited_nanoseconds: get(&self.waited_nanoseconds),
            compiled_nanoseconds: get(&self.compiled_nanoseconds),
        }
    }
}

fn add_elapsed(counter: &AtomicU64, started: Instant) {
    let nanoseconds = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    counter.fetch_add(nanoseconds, Ordering::Relaxed);
}
