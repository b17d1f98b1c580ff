//! What a file of weights is, by its first bytes: names of files say little about what is in them.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// A format that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A safetensors file.
    Safetensors,
    /// A zip archive, as `torch.save` writes it.
    Zip,
}

/// Bytes that tell what a file is.
const START: u64 = 4096;
/// The number with which PyTorch's files began before version 1.6, as protocol 2 pickles it.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// Says what the file at `path` is.
///
/// # Errors
/// A file that cannot be read, and one in a format that this program does not read, by what it is.
pub fn format(path: &Path) -> Result<Format> {
    let mut start = Vec::new();
    let file = File::open(path).map_err(|source| Error::io(path, source))?;
    file.take(START).read_to_end(&mut start).map_err(|source| Error::io(path, source))?;
    of_start(&start).map_err(|(found, hint)| {
        Error::data(
            path.display().to_string(),
            found,
            "weights: a safetensors file, or one of torch.save",
            hint,
        )
    })
}

/// The same by the first bytes; what it is instead, and what to do.
fn of_start(start: &[u8]) -> Result<Format, (&'static str, &'static str)> {
    if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
        return Ok(Format::Zip);
    }
    if start.get(8) == Some(&b'{') {
        return Ok(Format::Safetensors);
    }
    let text = String::from_utf8_lossy(start.get(..256).unwrap_or(start)).trim_start().to_ascii_lowercase();
    let names_numpy = start.windows(5).any(|word| word == b"numpy");
    Err(if start.is_empty() {
        ("an empty file", "copy or download it again")
    } else if start.starts_with(LEGACY) {
        (
            "the form that PyTorch wrote before version 1.6",
            "save it anew in Python: torch.save(torch.load(f, weights_only=True), new)",
        )
    } else if start.get(257..262) == Some(b"ustar") {
        (
            "a tar archive, the form of PyTorch 0.1 if it is one of weights",
            "unpack it, or save it anew in Python: torch.save(torch.load(f, weights_only=True), new)",
        )
    } else if start.first() == Some(&0x80) && names_numpy {
        (
            "a pickle of NumPy arrays",
            "in Python: torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, new)",
        )
    } else if start.first() == Some(&0x80) {
        (
            "a pickle that torch.save did not write",
            "if you trust where it comes from, load it in Python and torch.save its tensors",
        )
    } else if text.starts_with("<!doctype") || text.starts_with("<html") || text.starts_with("<?xml") {
        ("a web page", "the download failed: open it in a browser to see why, and download the file itself")
    } else if text.starts_with("version https://git-lfs") {
        ("a pointer of Git LFS instead of the file", "fetch the file itself: git lfs pull")
    } else if start.starts_with(b"\x93NUMPY") {
        ("a NumPy array", "in Python: torch.save({name: torch.from_numpy(numpy.load(f))}, new)")
    } else if start.starts_with(b"\x89HDF") {
        ("an HDF5 file, as Keras writes it", "convert it to PyTorch or safetensors first")
    } else if start.starts_with(b"\x12\x01\0\0\0\0\0\0") {
        ("parameters of MXNet", "convert them to PyTorch first")
    } else if start.starts_with(b"\x1f\x8b") {
        ("a gzip archive", "unpack it first")
    } else {
        ("neither of them", "check that it is the right file")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_told_by_its_start() {
        assert_eq!(of_start(b"PK\x03\x04archive/data.pkl"), Ok(Format::Zip));
        assert_eq!(of_start(b"\x10\0\0\0\0\0\0\0{\"a\":"), Ok(Format::Safetensors));
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (start, found, hint) in [
            (&b""[..], "an empty file", "again"),
            (LEGACY, "before version 1.6", "weights_only=True"),
            (&tar, "tar archive", "weights_only=True"),
            (b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n", "NumPy arrays", "from_numpy"),
            (b"\x80\x02}q\x00.", "torch.save did not write", "trust"),
            (b"\n <!DOCTYPE html><html>", "web page", "download"),
            (b"<html><body>404", "web page", "download"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS", "git lfs pull"),
            (b"\x93NUMPY\x01\0", "NumPy array", "numpy.load"),
            (b"\x89HDF\r\n\x1a\n", "HDF5", "convert"),
            (b"\x12\x01\0\0\0\0\0\0\0\0", "MXNet", "convert"),
            (b"\x1f\x8b\x08\0", "gzip", "unpack"),
            (b"[model]\narch = 'ir50'\n", "neither", "right file"),
        ] {
            let (what, todo) = of_start(start).unwrap_err();
            assert!(what.contains(found) && todo.contains(hint), "{what}; {todo}");
        }
    }
}
