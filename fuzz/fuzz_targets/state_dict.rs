//! Weights in safetensors.

#![no_main]

use epl::interchange::safetensors::StateDict;
use epl_fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    with_files(&[("in.safetensors", bytes)], |folder| {
        if let Ok(read) = StateDict::read(&folder.join("in.safetensors")) {
            let out = folder.join("out.safetensors");
            read.write(&out).expect("what was read can be written");
            StateDict::read(&out).expect("what was written can be read");
        }
    });
});
