//! A record file without an index, and with one that names every fourth byte.

#![no_main]

use epl::data::{Dataset, Options, open};
use epl_fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let options = Options { size: [4, 4], resize: true, num_classes: None };
    let read = |dataset: &dyn Dataset| {
        let mut slot = [0; 48];
        for index in 0..dataset.len().min(50) {
            let _ = dataset.load_into(index, [4, 4], &mut slot);
            if let Ok(label) = dataset.label(index) {
                assert!((label as usize) < dataset.num_classes());
            }
        }
    };
    with_files(&[("scanned.rec", bytes), ("indexed.rec", bytes)], |folder| {
        if let Ok(dataset) = open(folder.join("scanned.rec"), &options) {
            read(dataset.as_ref());
        }
        let index: String = (0..bytes.len().min(400) / 4).map(|at| format!("{at}\t{}\n", at * 4)).collect();
        std::fs::write(folder.join("indexed.idx"), index).expect("an index");
        if let Ok(dataset) = open(folder.join("indexed.rec"), &options) {
            read(dataset.as_ref());
        }
    });
});
