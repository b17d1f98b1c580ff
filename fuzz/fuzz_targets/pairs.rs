//! A list of pairs.

#![no_main]

use epl::data::VerificationSet;
use epl_fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Names of the system's own devices would be opened.
    if bytes.contains(&b'/') {
        return;
    }
    with_files(&[("pairs.txt", bytes), ("a", b"P6 1 1 255\nabc"), ("b c", b"no image")], |folder| {
        if let Ok(set) = VerificationSet::open_pairs(folder.join("pairs.txt")) {
            assert!(!set.issame.is_empty());
        }
    });
});
