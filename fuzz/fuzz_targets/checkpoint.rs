//! A checkpoint: its manifest and, behind the first zero byte, its tensors.

#![no_main]

use epl::checkpoint::Checkpoints;
use epl::train::state::TrainingState;
use epl_fuzz::with_files;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let (manifest, state) = bytes.split_at(at);
    with_files(&[], |folder| {
        let place = folder.join("checkpoints/step-00000001");
        std::fs::create_dir_all(&place).expect("a folder");
    });
    let files = [
        ("checkpoints/step-00000001/manifest.json", manifest),
        ("checkpoints/step-00000001/state.safetensors", state),
    ];
    with_files(&files, |folder| {
        let _ = Checkpoints::of(folder).newest::<TrainingState>(|_| {});
    });
});
