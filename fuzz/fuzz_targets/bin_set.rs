//! A verification set: a pickle with images.

#![no_main]

use epl::data::VerificationSet;
use epl_fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    with_files(&[("set.bin", bytes)], |folder| {
        if let Ok(set) = VerificationSet::open_bin(folder.join("set.bin")) {
            assert_eq!(set.images.len(), 2 * set.issame.len());
            for index in 0..set.images.len().min(8) {
                let _ = set.decode(index, [8, 8]);
            }
        }
    });
});
