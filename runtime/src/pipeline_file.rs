//! Compiled pipelines kept on disk, so that the second start of a program does not compile them again.
//!
//! A file of the folder holds what the driver gave, behind a header of our own: a magic word, the SHA-256 of everything that
//! the data depend on (adapter, driver, versions, all shaders), the length of the data and their SHA-256. A file that does
//! not match in every part is as good as none. It is written aside and then renamed, so that another process sees the old one
//! or the new one; of two that write at the same time the later one wins, and what the other compiled is compiled again some
//! day.
//!
//! Vulkan alone has such data; the drivers of Metal and DX12 keep caches of their own.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

/// What a file begins with; its number counts changes of the format.
const MAGIC: &[u8; 16] = b"epl pipelines 1\n";
/// Magic word, key, length and checksum.
const HEADER: usize = 16 + 32 + 8 + 32;
/// The most that is read: no driver's data come near, and a longer file is not ours.
const LONGEST: u64 = 1 << 30;
/// Version of wgpu, whose shader translation decides what a driver compiles.
pub(crate) const WGPU: &str = "30.0";
/// Files of other drivers and other shaders that nobody has written for so long are removed.
const STALE: Duration = Duration::from_secs(90 * 24 * 3600);
const EXTENSION: &str = "pipelines";

/// A SHA-256.
type Hash = [u8; 32];

fn hash(parts: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Names what a driver's data, or measurements, depend on: adapter, driver, `used` of its features and limits, the versions of
/// what translates shaders, and every shader. Two machines on which these agree have the same kernels.
pub fn kernel_fingerprint(adapter: &str, backend: &str, driver: &str, used: &str) -> String {
    let mut parts: Vec<&[u8]> =
        [env!("CARGO_PKG_VERSION"), WGPU, adapter, backend, driver, used].map(str::as_bytes).to_vec();
    parts.extend(epl_shaders::SHADERS.iter().flat_map(|(name, source)| [name.as_bytes(), source.as_bytes()]));
    hash(&parts).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The driver's pipeline cache, and the file that it comes from and goes to.
pub(crate) struct PipelineFile {
    path: PathBuf,
    key: Hash,
    cache: wgpu::PipelineCache,
    /// The checksum of what the file holds, so that the same data are not written twice.
    held: Mutex<Option<Hash>>,
}

/// What a file gave.
enum Found {
    Nothing,
    Data(Vec<u8>),
    Unusable(String),
}

impl PipelineFile {
    /// The cache of `device` with what `folder` holds for `fingerprint`; `vendor` is what wgpu itself tells adapters apart by. A
    /// line about a file that is passed over goes to `warn`.
    pub fn open(
        device: &wgpu::Device,
        folder: &Path,
        fingerprint: &str,
        vendor: &str,
        warn: &dyn Fn(&str),
    ) -> Self {
        let key = hash(&[fingerprint.as_bytes(), vendor.as_bytes()]);
        let name: String = fingerprint.chars().take(16).collect();
        let path = folder.join(format!("{name}.{EXTENSION}"));
        let data = match read(&path, &key) {
            Found::Data(data) => Some(data),
            Found::Nothing => None,
            Found::Unusable(why) => {
                warn(&format!("{}: {why}; kernels are compiled anew", path.display()));
                None
            }
        };
        let held = data.as_ref().map(|data| hash(&[data]));
        // SAFETY: the data are what `get_data` returned in a process with the same adapter, driver, wgpu and shaders: the
        // header's key and checksum say so, and whatever does not match was dropped above. With `fallback` the driver drops
        // what it does not accept.
        let cache = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("epl"),
                data: data.as_deref(),
                fallback: true,
            })
        };
        Self { path, key, cache, held: Mutex::new(held) }
    }

    pub fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes the driver's data where they are not what the file holds. That it cannot be written costs the next start its
    /// time, and a word here.
    pub fn save(&self, warn: &dyn Fn(&str)) {
        let Some(data) = self.cache.get_data() else { return };
        let checksum = hash(&[&data]);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == Some(checksum) {
            return;
        }
        match write(&self.path, &self.key, &data, &checksum) {
            Ok(()) => remove_stale(&self.path),
            Err(error) => {
                warn(&format!("{}: {error}; the next start compiles its kernels again", self.path.display()));
            }
        }
        // Tried once: a folder that takes nothing is not asked again at every session.
        *held = Some(checksum);
    }
}

fn read(path: &Path, key: &Hash) -> Found {
    let bytes = match std::fs::metadata(path) {
        Ok(found) if found.len() > LONGEST => return Found::Unusable(format!("{} bytes", found.len())),
        Ok(_) => std::fs::read(path),
        Err(error) => Err(error),
    };
    let bytes = match bytes {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Found::Nothing,
        Err(error) => return Found::Unusable(error.to_string()),
    };
    let Some((header, data)) = bytes.split_at_checked(HEADER) else {
        return Found::Unusable("too short".into());
    };
    let want = header_of(key, data, &hash(&[data]));
    if header.get(..16) != want.get(..16) {
        return Found::Unusable("not a file of pipelines, or of another version".into());
    }
    if header.get(16..48) != want.get(16..48) {
        return Found::Unusable("of another adapter, driver or version".into());
    }
    if header != want {
        return Found::Unusable("damaged".into());
    }
    Found::Data(data.to_vec())
}

fn header_of(key: &Hash, data: &[u8], checksum: &Hash) -> Vec<u8> {
    [&MAGIC[..], key, &(data.len() as u64).to_le_bytes(), checksum].concat()
}

fn write(path: &Path, key: &Hash, data: &[u8], checksum: &Hash) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let aside = path.with_extension(format!("{EXTENSION}.{process}-{number}.part"));
    let written = std::fs::write(&aside, [&header_of(key, data, checksum), data].concat())
        .and_then(|()| std::fs::rename(&aside, path));
    if written.is_err() {
        drop(std::fs::remove_file(&aside));
    }
    written
}

/// Removes files of pipelines beside `path` that have not been written for long. One that is still of use comes back.
fn remove_stale(path: &Path) {
    let Some(Ok(entries)) = path.parent().map(std::fs::read_dir) else { return };
    for entry in entries.flatten() {
        let old = || -> std::io::Result<bool> {
            let age = SystemTime::now().duration_since(entry.metadata()?.modified()?);
            Ok(age.is_ok_and(|age| age > STALE))
        };
        let name = entry.file_name();
        let ours = name.to_string_lossy().contains(&format!(".{EXTENSION}"));
        if ours && entry.path() != path && old().unwrap_or(false) {
            drop(std::fs::remove_file(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_wgpu_is_that_of_the_workspace() {
        let manifest = include_str!("../../Cargo.toml");
        assert!(manifest.contains(&format!("wgpu = {{ version = \"{WGPU}\"")), "{WGPU}");
    }

    #[test]
    fn a_file_comes_back_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("epl-pipeline-file-{}", std::process::id()));
        let path = folder.join(format!("a.{EXTENSION}"));
        let (key, data) = ([7; 32], b"what a driver gave".to_vec());
        assert!(matches!(read(&path, &key), Found::Nothing));
        write(&path, &key, &data, &hash(&[&data])).unwrap();
        assert!(matches!(read(&path, &key), Found::Data(found) if found == data));
        assert!(matches!(read(&path, &[8; 32]), Found::Unusable(why) if why.contains("another adapter")));
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(read(&path, &key), Found::Unusable(_)), "{length}");
        }
        for at in 0..whole.len() {
            let mut spoiled = whole.clone();
            spoiled[at] ^= 1;
            std::fs::write(&path, &spoiled).unwrap();
            assert!(matches!(read(&path, &key), Found::Unusable(_)), "{at}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
