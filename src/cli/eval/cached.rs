//! The options of every protocol that say where embeddings are kept, and the embedder that they ask for.

use std::path::PathBuf;

use clap::Args;

use crate::Result;
use crate::cli::Context;
use crate::cli::embed::{BATCH, Weights};
use crate::cli::output::{note, parse_bytes};
use crate::data::decode;
use crate::eval::cache::{Cache, DEFAULT_LIMIT, Recipe};
use crate::eval::cached::CachedEmbedder;
use crate::eval::embedder::Embedder;

/// Where embeddings are kept between calls.
#[derive(Debug, Args)]
pub struct CacheOptions {
    /// The folder of embeddings that were computed before [default: epl/embeddings in the system's cache folder]
    #[arg(long, value_name = "DIR", env = "EPL_CACHE", hide_env_values = true)]
    cache: Option<PathBuf>,
    /// Embed all images again and keep nothing
    #[arg(long)]
    no_cache: bool,
    /// The most that the folder may hold; what was not used for the longest time is removed [default: 8GiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    cache_limit: Option<u64>,
}

impl CacheOptions {
    /// The cache that they ask for. Its messages go to standard error.
    pub fn cache(&self) -> Cache {
        if self.no_cache {
            return Cache::none();
        }
        // An empty variable is one that is not set.
        let named = self.cache.clone().filter(|folder| !folder.as_os_str().is_empty());
        let folder = named.or_else(Cache::default_folder);
        Cache::new(folder, self.cache_limit.unwrap_or(DEFAULT_LIMIT), |line| note(line))
    }

    /// An embedder for about `images` images behind that cache. The weights are read and hashed here; they go to the
    /// device when the first image has to be embedded. `preparation` names how images are brought to the network's
    /// input ([`decode::PREPARATION`] where [`decode::decode`] does it).
    pub fn embedder<'a>(
        &self,
        weights: &'a Weights,
        context: &'a Context,
        images: usize,
        preparation: &str,
        flip: bool,
    ) -> Result<CachedEmbedder<'a>> {
        let cache = self.cache();
        let (file, spec) = weights.read()?;
        let device = context.open()?;
        let batch = BATCH.min(images.max(1));
        // Without a cache nobody asks for the hash.
        let hash = if cache.is_on() { file.sha256() } else { String::new() };
        let recipe = Recipe::new(&hash, &spec, device.description(), batch, preparation, flip);
        let (size, dimension) = (spec.network.input, spec.network.embedding);
        let open = move || {
            let model = weights.load_on(&file, spec, &device)?;
            Embedder::new(&model, batch)
        };
        Ok(CachedEmbedder::new(cache, recipe, (batch, flip), size, dimension, open))
    }

    /// The same for images that are scaled by their short side and cropped at the centre, with mirrored ones added.
    pub fn flip_embedder<'a>(
        &self,
        weights: &'a Weights,
        context: &'a Context,
        images: usize,
    ) -> Result<CachedEmbedder<'a>> {
        self.embedder(weights, context, images, decode::PREPARATION, true)
    }
}
