//! The log of a run.

#![no_main]

use epl::train::metrics;
use epl_fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    with_files(&[("metrics.jsonl", bytes)], |folder| {
        let _ = metrics::read(&folder.join("metrics.jsonl"));
    });
});
