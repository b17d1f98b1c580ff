//! The file `property` beside a sound record file.

#![no_main]

use epl::data::{Dataset, Options, open};
use epl_fuzz::{record_file, with_files};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let options = Options { size: [1, 1], resize: false, num_classes: None };
    with_files(&[("train.rec", &record_file()), ("property", bytes)], |folder| {
        if let Ok(dataset) = open(folder, &options) {
            assert_eq!(dataset.len(), 2);
            let _ = (dataset.label(0), dataset.label(1));
        }
    });
});
