//! Compiled pipelines on disk, so that the second start of a program need not compile them again. Vulkan alone hands them
//! out; Metal and DX12 keep caches of their own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process;

/// What a file begins with; the digit counts changes of the format.
const MAGIC: &[u8; 8] = b"EPLPIPE1";
/// Bytes before the key: the magic, a checksum of all that follows it, and the length of the key.
const HEADER: usize = 16;
/// More than any driver's pipelines take: a longer file is not read.
const MOST_BYTES: u64 = 1 << 30;

/// The file of an adapter, and the driver's cache that was filled from it.
pub(crate) struct PipelineFile {
    path: PathBuf,
    key: String,
    cache: wgpu::PipelineCache,
    /// Checksum of the data that it was filled from.
    loaded: Option<u32>,
}

impl PipelineFile {
    /// The file in `folder` for an adapter named `adapter`, whose content is good for `key` alone: driver and shaders. What is
    /// not is left aside, and written anew by [`PipelineFile::save`].
    pub fn open(device: &wgpu::Device, folder: &Path, adapter: &str, key: String) -> Self {
        let path = folder.join(format!("pipelines-{:08x}.bin", crc32c::crc32c(adapter.as_bytes())));
        let found = read(&path);
        let data = found.as_deref().and_then(|bytes| unpack(bytes, &key));
        // SAFETY: the data are what `get_data` gave, to the last bit, as far as a checksum tells, under the same driver; the
        // driver checks them for its own version besides. Whoever can write to the user's cache folder can do worse.
        let cache = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("epl"),
                data,
                fallback: true,
            })
        };
        Self { path, loaded: data.map(crc32c::crc32c), key, cache }
    }

    /// The driver's cache, for making pipelines.
    pub fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes what the cache holds now, unless it is what the file held. Whoever reads at the same time sees the old file or the new one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self) -> io::Result<()> {
        let Some(data) = self.cache.get_data() else { return Ok(()) };
        if self.loaded == Some(crc32c::crc32c(&data)) {
            return Ok(());
        }
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        let aside = self.path.with_extension(format!("{}.partial", process::id()));
        let written = fs::write(&aside, pack(&self.key, &data)).and_then(|()| fs::rename(&aside, &self.path));
        if written.is_err() {
            // What is half written is of no use; that it cannot be removed either adds nothing.
            let _ = fs::remove_file(&aside);
        }
        written
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let length = fs::metadata(path).ok()?.len();
    (length <= MOST_BYTES).then(|| fs::read(path).ok()).flatten()
}

fn pack(key: &str, data: &[u8]) -> Vec<u8> {
    let mut body = u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    body.extend_from_slice(key.as_bytes());
    body.extend_from_slice(data);
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// The data of a whole file for `key`; `None` for any other.
fn unpack<'a>(bytes: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let body = bytes.strip_prefix(MAGIC)?.get(4..)?;
    let checksum = u32::from_le_bytes(bytes.get(8..12)?.try_into().ok()?);
    let length = u32::from_le_bytes(bytes.get(12..HEADER)?.try_into().ok()?) as usize;
    let rest = bytes.get(HEADER..)?;
    let (of_file, data) = (rest.get(..length)?, rest.get(length..)?);
    (crc32c::crc32c(body) == checksum && of_file == key.as_bytes()).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_file_of_the_same_key_is_taken() {
        let good = pack("driver 1", b"pipelines");
        assert_eq!(unpack(&good, "driver 1"), Some(&b"pipelines"[..]));
        assert_eq!(unpack(&good, "driver 2"), None);
        assert_eq!(unpack(&pack("", b""), ""), Some(&b""[..]));
        for length in 0..good.len() {
            assert_eq!(unpack(&good[..length], "driver 1"), None, "{length} bytes");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            assert_eq!(unpack(&bad, "driver 1"), None, "byte {at}");
        }
        let mut long = good.clone();
        long.push(0);
        assert_eq!(unpack(&long, "driver 1"), None);
    }
}
