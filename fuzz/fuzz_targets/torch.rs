//! PyTorch's files: an archive as it is, or the pickle in one.

#![no_main]

use epl::interchange::tensor_file::TensorSource;
use epl::interchange::weights::WeightsFile;
use epl_fuzz::{torch_file, with_files};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let wrapped;
    let file = if bytes.starts_with(b"PK") {
        bytes
    } else {
        wrapped = torch_file(bytes);
        &wrapped
    };
    with_files(&[("w.pth", file)], |folder| {
        let Ok(weights) = WeightsFile::open(&folder.join("w.pth")) else { return };
        for name in weights.names() {
            let (shape, _) = weights.describe(name).expect("a tensor that is listed");
            let count: usize = shape.iter().product();
            // What the file repeats takes time to read, and nothing else.
            if count > 1 << 16 {
                continue;
            }
            let read = match weights.shape(name) {
                Some(_) => weights.floats_of(name).map(|values| values.len()),
                None => weights.integers(name).map(|values| values.len()),
            };
            // A storage that is compressed can be damaged; what can be read is whole.
            assert!(read.is_err() || read.is_ok_and(|read| read == count));
        }
    });
});
