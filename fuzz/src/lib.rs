//! What the targets share: bytes as files in a folder of the process's own, in memory where the system has that.

use std::cell::OnceCell;
use std::path::Path;

use tempfile::TempDir;

thread_local! {
    static FOLDER: OnceCell<TempDir> = const { OnceCell::new() };
}

/// Calls `work` with a folder in which the files have these contents.
pub fn with_files(files: &[(&str, &[u8])], work: impl FnOnce(&Path)) {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| {
            let memory = Path::new("/dev/shm");
            let made = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
            made.expect("a temporary folder")
        });
        for (name, contents) in files {
            std::fs::write(folder.path().join(name), contents).expect("a file in the temporary folder");
        }
        work(folder.path());
    });
}

/// A record file of two images, a row of one pixel each, without an index: `(label, image)`.
pub fn record_file() -> Vec<u8> {
    let mut file = Vec::new();
    for label in [0.0_f32, 1.0] {
        let image = b"P6 1 1 255\nabc";
        let length = 24 + image.len();
        file.extend_from_slice(&0xced7_230a_u32.to_le_bytes());
        file.extend_from_slice(&(length as u32).to_le_bytes());
        file.extend_from_slice(&0_u32.to_le_bytes());
        file.extend_from_slice(&label.to_le_bytes());
        file.extend_from_slice(&[0; 16]);
        file.extend_from_slice(image);
        file.resize(file.len().next_multiple_of(4), 0);
    }
    file
}
