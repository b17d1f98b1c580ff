//! The names of identities beside a record file.

#![no_main]

use epl::data::identities::Identities;
use epl_fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    with_files(&[("identities.tsv", bytes)], |folder| {
        if let Ok(Some(names)) = Identities::read(&folder.join("identities.tsv")) {
            let text = names.to_text();
            with_files(&[("again.tsv", text.as_bytes())], |folder| {
                let again = Identities::read(&folder.join("again.tsv")).expect("what was written can be read");
                assert_eq!(again.map(|names| names.to_text()), Some(text.clone()));
            });
        }
    });
});
