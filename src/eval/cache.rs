//! Embeddings kept on disk, so that what was embedded once is read the next time.
//!
//! An entry is found by a hash of everything that its numbers depend on: the weights, the network, the adapter with its
//! driver and the shaders (sums are rounded differently on each), how images are prepared, whether mirrored images are
//! added, and the bytes of every image as it is stored. A file of an entry is a safetensors file with the tensor
//! `embeddings` `[N, D]` and a hash of its values, and nothing is ever taken from one that is damaged.
//!
//! A cache is a convenience: whatever is wrong with its folder costs time and a word, never the result.

use std::borrow::Cow;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use epl_runtime::device::AdapterDescription;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::interchange::files::rename;
use crate::interchange::safetensors::{StateDict, hash_file, hex};
use crate::interchange::tensor_file::{TensorFile, TensorSource};
use crate::model::ModelSpec;
use crate::{Error, Result};

/// Counts changes of what a key or an entry is made of.
const FORMAT: &str = "epl embeddings 1";

/// The most that a cache holds unless it is told otherwise, in bytes.
pub const DEFAULT_LIMIT: u64 = 8 << 30;

/// Images that are hashed by one thread in one go; a part of the format.
const CHUNK: usize = 64;

/// What an unfinished write leaves behind is removed at this age.
const STALE: Duration = Duration::from_secs(24 * 3600);

const EXTENSION: &str = "safetensors";
const TENSOR: &str = "embeddings";
const CHECKSUM: &str = "sha256";

/// A hash over fields of text and bytes, each with its length, so that no two lists of fields are the same bytes.
#[derive(Clone)]
struct Fields(Sha256);

impl Fields {
    fn new() -> Self {
        Self(Sha256::new())
    }

    fn add(&mut self, field: impl AsRef<[u8]>) {
        let bytes = field.as_ref();
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }
}

/// What embeddings depend on besides the images.
#[derive(Clone)]
pub struct Recipe(Fields);

impl Recipe {
    /// The network `spec` with the weights whose file has the hash `weights`, on the adapter `adapter`, for steps of at
    /// most `batch` images (a product's sums may be split by its size). `preparation` names how images are brought to the
    /// network's input; with `flip` the mirrored image's embedding is added.
    pub fn new(
        weights: &str,
        spec: &ModelSpec,
        adapter: &AdapterDescription,
        batch: usize,
        preparation: &str,
        flip: bool,
    ) -> Self {
        let mut fields = Fields::new();
        fields.add(FORMAT);
        fields.add(env!("CARGO_PKG_VERSION"));
        fields.add(program());
        for (name, source) in epl_shaders::SHADERS {
            fields.add(name);
            fields.add(source);
        }
        fields.add(weights);
        // The step is the weights' and the weights have their own hash; all that remains says what the network is.
        for (key, value) in spec.metadata(0) {
            fields.add(key);
            fields.add(value);
        }
        for field in [&adapter.name, &adapter.backend, &adapter.driver] {
            fields.add(field);
        }
        fields.add(batch.to_string());
        fields.add(preparation);
        fields.add(if flip { "flip" } else { "plain" });
        Self(fields)
    }
}

/// The SHA-256 of the program that runs, whose code decodes the images and chooses the kernels; empty where the system
/// does not show it.
fn program() -> &'static str {
    static PROGRAM: OnceLock<String> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = std::env::current_exe().ok();
        program.and_then(|path| Some(hash_file(&path).ok()?.1)).unwrap_or_default()
    })
}

/// Names the embeddings of some images: a hash of all that they depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// Of `count` images in this order, by `recipe`; `encoded(i)` has the bytes of image `i` as it is stored, with
    /// whatever else of its own decides how it is prepared. Reads them on all cores.
    ///
    /// # Errors
    /// The first one of `encoded`, in the order of the images.
    pub fn new<'a>(
        recipe: &Recipe,
        count: usize,
        encoded: &(dyn Fn(usize) -> Result<Cow<'a, [u8]>> + Sync),
    ) -> Result<Self> {
        let chunks: Vec<Result<Sha256>> = (0..count.div_ceil(CHUNK))
            .into_par_iter()
            .map(|chunk| {
                let mut fields = Fields::new();
                for index in chunk * CHUNK..count.min((chunk + 1) * CHUNK) {
                    fields.add(encoded(index)?);
                }
                Ok(fields.0)
            })
            .collect();
        let mut fields = recipe.0.clone();
        fields.add(count.to_string());
        for chunk in chunks {
            fields.add(chunk?.finalize());
        }
        Ok(Self(hex(fields.0)))
    }
}

/// What is said to the user.
type Say = Box<dyn Fn(&str) + Send + Sync>;

/// Embeddings that may be in a cache.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// What messages call the images.
    pub name: &'a str,
    /// What they depend on.
    pub key: &'a Key,
    /// Rows and dimension.
    pub shape: [usize; 2],
}

/// A folder of embeddings.
pub struct Cache {
    /// `None` where nothing is kept.
    folder: Option<PathBuf>,
    limit: u64,
    say: Say,
}

impl Cache {
    /// A cache in `folder`, which is made when it is needed. It holds at most `limit` bytes: what was not used for the
    /// longest time is removed. `say` gets a line for the user whenever something is found, or wrong with the folder.
    pub fn new(folder: Option<PathBuf>, limit: u64, say: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { folder, limit, say: Box::new(say) }
    }

    /// No cache: everything is computed.
    pub fn none() -> Self {
        Self::new(None, 0, |_| {})
    }

    /// Where the system wants such a cache to be, where it says so.
    pub fn default_folder() -> Option<PathBuf> {
        use etcetera::base_strategy::{BaseStrategy, choose_native_strategy};
        Some(choose_native_strategy().ok()?.cache_dir().join("epl").join("embeddings"))
    }

    /// Whether anything is kept.
    pub fn is_on(&self) -> bool {
        self.folder.is_some()
    }

    /// The embeddings of `entry`, where they are kept and whole.
    pub fn find(&self, entry: &Entry<'_>) -> Option<Vec<f32>> {
        let path = self.path(entry.key)?;
        if !path.exists() {
            return None;
        }
        match read(&path, entry.shape) {
            Ok(embeddings) => {
                // The time of the last use; where it cannot be set the entry only looks older than it is.
                drop(touch(&path));
                let (name, rows) = (entry.name, entry.shape[0]);
                (self.say)(&format!("{name}: the embeddings of {rows} images are from {}", path.display()));
                Some(embeddings)
            }
            Err(error) => {
                (self.say)(&format!("{}: embedding again: {error}", entry.name));
                None
            }
        }
    }

    /// Keeps the embeddings of `entry`. What is not finite is not worth keeping; whatever else is in the way is said.
    pub fn keep(&self, entry: &Entry<'_>, embeddings: &[f32]) {
        let (Some(folder), Some(path)) = (&self.folder, self.path(entry.key)) else { return };
        let name = entry.name;
        if !embeddings.iter().all(|value| value.is_finite()) {
            return;
        }
        let not_kept = |why: &dyn Display| {
            (self.say)(&format!("{name}: the embeddings are not kept for the next time: {why}"));
        };
        if embeddings.len() as u64 * 4 > self.limit {
            not_kept(&"they are larger than the limit of the cache");
        } else if let Err(error) = write(&path, entry.shape, embeddings) {
            not_kept(&error);
        } else if let Err(error) = self.make_room(folder, &path) {
            (self.say)(&format!("{name}: the cache is larger than its limit: {error}"));
        }
    }

    fn path(&self, key: &Key) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(&key.0).with_extension(EXTENSION))
    }

    /// Removes what was not used for the longest time until the rest is within the limit; `newest` stays. Files that are
    /// not the cache's own are left alone.
    fn make_room(&self, folder: &Path, newest: &Path) -> Result<()> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(|source| Error::io(folder, source))?.flatten() {
            let path = entry.path();
            // Another process may have removed it.
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            match kind(&path) {
                Kind::Entry if path != newest => entries.push((used, path, metadata.len())),
                Kind::Unfinished if used.elapsed().is_ok_and(|age| age > STALE) => {
                    drop(std::fs::remove_file(&path));
                }
                _ => {}
            }
        }
        let own = std::fs::metadata(newest).map_or(0, |metadata| metadata.len());
        let mut total = own + entries.iter().map(|(_, _, bytes)| bytes).sum::<u64>();
        // The path decides between files of one time, so that the order is never the file system's.
        entries.sort();
        for (_, path, bytes) in entries {
            if total <= self.limit {
                break;
            }
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(&path, source));
                }
                _ => total -= bytes,
            }
        }
        Ok(())
    }
}

/// What a file in the folder is.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Entry,
    /// The beginning of an entry, of a process that is writing it or was ended.
    Unfinished,
    Foreign,
}

fn kind(path: &Path) -> Kind {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut parts = name.split('.');
    let is_key = |part: &str| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    match (parts.next().is_some_and(is_key), parts.next(), parts.next(), parts.next()) {
        (true, Some(EXTENSION), None, None) => Kind::Entry,
        (true, Some(process), Some("new" | "partial"), None) if process.parse::<u32>().is_ok() => {
            Kind::Unfinished
        }
        _ => Kind::Foreign,
    }
}

/// A hash of floats, bit by bit.
fn checksum(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    for part in values.chunks(1 << 14) {
        let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
        hash.update(&bytes);
    }
    hex(hash)
}

fn read(path: &Path, shape: [usize; 2]) -> Result<Vec<f32>> {
    let damaged = |found: String, expected: String| {
        Error::data(path.display().to_string(), found, expected, "it is replaced")
    };
    let file = TensorFile::open(path)?;
    if file.shape(TENSOR) != Some(&shape) {
        return Err(damaged(format!("a tensor of {:?}", file.shape(TENSOR)), format!("one of {shape:?}")));
    }
    let values = file.floats_of(TENSOR)?;
    match file.metadata().get(CHECKSUM) {
        Some(found) if *found == checksum(&values) => Ok(values),
        _ => Err(damaged("values that were changed".into(), "the values that were written".into())),
    }
}

fn touch(path: &Path) -> std::io::Result<()> {
    std::fs::File::options().write(true).open(path)?.set_modified(SystemTime::now())
}

fn write(path: &Path, shape: [usize; 2], values: &[f32]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))?;
    }
    let mut dict = StateDict::default();
    dict.metadata.insert(CHECKSUM.into(), checksum(values));
    dict.metadata.insert("format".into(), FORMAT.into());
    // Under a name of this process's own first: another one may be writing the same entry.
    let own = path.with_extension(format!("{}.new", std::process::id()));
    let written = dict.write_with(&own, &[(TENSOR, shape.to_vec())], |_, sink| {
        values.chunks(1 << 14).try_for_each(|part| {
            let bytes: Vec<u8> = part.iter().flat_map(|value| value.to_le_bytes()).collect();
            sink.write(&bytes)
        })
    });
    written.and_then(|()| rename(&own, path)).inspect_err(|_| {
        drop(std::fs::remove_file(&own));
    })
}

#[cfg(test)]
mod tests;
