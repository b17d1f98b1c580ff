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

/// A file of `torch.save` with this pickle and one storage, `0`, of 64 bytes.
pub fn torch_file(pickle: &[u8]) -> Vec<u8> {
    let storage: Vec<u8> = (0..64).collect();
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, contents) in [("a/data.pkl", pickle), ("a/data/0", storage.as_slice())] {
        let at = (file.len() as u32).to_le_bytes();
        let length = (contents.len() as u32).to_le_bytes();
        let name_length = (name.len() as u16).to_le_bytes();
        let common = [&[0; 14][..], &length, &length, &name_length, &[0; 2]].concat();
        file.extend([b"PK\x03\x04", &common[..], name.as_bytes(), contents].concat());
        directory.extend([b"PK\x01\x02\0\0", &common[..], &[0; 10], &at, name.as_bytes()].concat());
    }
    let start = (file.len() as u32).to_le_bytes();
    let size = (directory.len() as u32).to_le_bytes();
    file.extend(directory);
    file.extend([&b"PK\x05\x06\0\0\0\0\x02\0\x02\0"[..], &size, &start, &[0; 2]].concat());
    file
}
