//! An encoded image.

#![no_main]

use epl::data::decode::{decode, decode_into};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut slot = vec![0; 44 * 52 * 3];
    let place = || "x".to_owned();
    let as_it_is = decode_into(bytes, [44, 52], false, &mut slot, place);
    if let Ok(image) = decode(bytes, [44, 52], true, place) {
        assert_eq!((image.rgb.len(), image.height, image.width), (slot.len(), 44, 52));
        if as_it_is.is_ok() {
            assert_eq!(image.rgb, slot);
        }
    } else {
        assert!(as_it_is.is_err());
    }
});
