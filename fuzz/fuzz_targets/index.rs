//! The index of a sound record file.

#![no_main]

use epl::data::{Dataset, Options, open};
use epl_fuzz::{record_file, with_files};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let options = Options { size: [1, 1], resize: false, num_classes: None };
    with_files(&[("faces.rec", &record_file()), ("faces.idx", bytes)], |folder| {
        if let Ok(dataset) = open(folder.join("faces.rec"), &options) {
            for index in 0..dataset.len() {
                let _ = dataset.load(index);
            }
        }
    });
});
