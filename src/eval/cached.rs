//! A network whose embeddings come from the cache where it has them: then it is not even brought to the device.

use std::borrow::Cow;

use crate::data::Image;
use crate::eval::cache::{Cache, Entry, Key, Recipe};
use crate::eval::embedder::Embedder;
use crate::{Error, Result};

/// Images to embed, addressed by index. Reading is safe from many threads at once.
pub trait Pictures: Sync {
    /// What messages call them.
    fn name(&self) -> &str;

    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of image `index` as it is stored, and of whatever else decides how it is prepared (landmarks): where
    /// these are the same, so is the prepared image.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn stored(&self, index: usize) -> Result<Cow<'_, [u8]>>;

    /// Image `index`, decoded and brought to `size` = `[H, W]`.
    ///
    /// # Errors
    /// Where it cannot be read or decoded.
    fn load(&self, index: usize, size: [usize; 2]) -> Result<Image>;
}

/// Makes the embedder when it is first needed.
type Open<'a> = Box<dyn FnOnce() -> Result<Embedder> + 'a>;

/// An embedder behind a cache.
pub struct CachedEmbedder<'a> {
    cache: Cache,
    recipe: Recipe,
    batch: usize,
    flip: bool,
    size: [usize; 2],
    dimension: usize,
    open: Option<Open<'a>>,
    embedder: Option<Embedder>,
}

impl<'a> CachedEmbedder<'a> {
    /// Embeds by `recipe` what `cache` does not have, with the network that `open` gives when it is first needed: its
    /// input is `size` = `[H, W]`, its embeddings are of `dimension`. `batch` and `flip` are those of the recipe.
    pub fn new(
        cache: Cache,
        recipe: Recipe,
        (batch, flip): (usize, bool),
        size: [usize; 2],
        dimension: usize,
        open: impl FnOnce() -> Result<Embedder> + 'a,
    ) -> Self {
        Self { cache, recipe, batch, flip, size, dimension, open: Some(Box::new(open)), embedder: None }
    }

    /// Length of an embedding.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// The embeddings `[N, D]` of `pictures`, row by row, as [`Embedder::embed`] gives them. `progress` gets the number
    /// of images done.
    ///
    /// # Errors
    /// An image that cannot be read; those of the network and the device.
    pub fn embed(&mut self, pictures: &dyn Pictures, progress: &mut dyn FnMut(usize)) -> Result<Vec<f32>> {
        let count = pictures.len();
        let (size, flip) = (self.size, self.flip);
        let (open, embedder) = (&mut self.open, &mut self.embedder);
        let mut made_batch = None;
        let compute = || {
            let embedder = match (embedder, open.take()) {
                (Some(embedder), _) => embedder,
                (none, Some(open)) => none.insert(open()?),
                (None, None) => {
                    return Err(Error::usage(
                        "the network could not be brought to the device",
                        "see the first error",
                    ));
                }
            };
            made_batch = Some(embedder.batch());
            embedder.embed(count, &|index| pictures.load(index, size), flip, progress)
        };
        if !self.cache.is_on() {
            return compute();
        }
        let recipe = &self.recipe;
        let key = Key::new(recipe, count, &|index| pictures.stored(index))?;
        let cached = Entry { name: pictures.name(), key: &key, shape: [count, self.dimension] };
        if let Some(embeddings) = self.cache.find(&cached) {
            return Ok(embeddings);
        }
        let embeddings = compute()?;
        // The images are read a second time when they are embedded, and the batch may have been too large for the adapter:
        // what the key says must be what was done.
        let again = Key::new(recipe, count, &|index| pictures.stored(index))?;
        if again == key && made_batch == Some(self.batch) {
            self.cache.keep(&cached, &embeddings);
        }
        Ok(embeddings)
    }
}
