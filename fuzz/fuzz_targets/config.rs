//! A configuration and overrides, divided by zero bytes.

#![no_main]

use epl::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut parts = text.split('\0');
    let document = parts.next().unwrap_or_default();
    let mut overrides: Vec<String> = parts.map(str::to_owned).collect();
    for required in ["data.train=a", "train.out=b"] {
        overrides.insert(0, required.to_owned());
    }
    if let Ok(config) = Config::from_toml(document, &overrides)
        && let Ok(written) = config.to_toml()
    {
        let read = Config::from_toml(&written, &[]).expect("what was written is read");
        assert_eq!(read, config);
    }
});
