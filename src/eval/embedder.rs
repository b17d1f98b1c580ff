//! Embeds images with a trained backbone.

use std::collections::VecDeque;

use epl_runtime::{DType, Graph, HostTensor, Session};
use rayon::prelude::*;

use crate::data::Image;
use crate::model::{Model, ModelSpec};
use crate::nn::input::{Images, packed_bytes, record_images};
use crate::nn::record::Mode;
use crate::{Error, Result};

/// A backbone recorded for evaluation, with a fixed batch size.
pub struct Embedder {
    session: Session,
    images: Images,
    batch: usize,
    size: [usize; 2],
    dimension: usize,
}

/// The backbone of `spec` recorded for evaluation in batches of `batch`.
///
/// # Errors
/// A network that is impossible.
pub fn record_embedder(spec: &ModelSpec, batch: usize) -> Result<(Graph, Images)> {
    let mut graph = Graph::new();
    let parameters = spec.parameters.declare(&mut graph)?;
    let images = record_images(&mut graph, batch, spec.network.input)?;
    let normalized = images.normalized(&mut graph, 0, batch, DType::F32)?;
    let embedding = spec.network.record(&mut graph, &parameters, normalized, Mode::Evaluate)?;
    graph.fetch(embedding);
    Ok((graph, images))
}

impl Embedder {
    /// Records `model`'s backbone for batches of `most` images, or of half as many, and so on, where the adapter does
    /// not hold a larger one.
    pub fn new(model: &Model, most: usize) -> Result<Self> {
        let mut batch = most.max(1);
        loop {
            match Self::with_batch(model, batch) {
                Err(Error::Runtime(
                    epl_runtime::Error::Limit { .. } | epl_runtime::Error::OutOfMemory { .. },
                )) if batch > 1 => batch /= 2,
                other => return other,
            }
        }
    }

    fn with_batch(model: &Model, batch: usize) -> Result<Self> {
        let network = &model.spec.network;
        let (graph, images) = record_embedder(&model.spec, batch)?;
        let session = Session::new(&graph, &model.store, model.session_options())?;
        Ok(Self { session, images, batch, size: network.input, dimension: network.embedding })
    }

    /// Images that one step embeds.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Length of an embedding.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// Height and width of the input.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Embeddings `[count, dimension]` of the images that `load(0)` .. `load(count - 1)` give, row by row. With `flip`
    /// the embedding of the mirrored image is added; nothing is normalised. `load` runs on all cores. `progress` gets
    /// the number of images done.
    pub fn embed(
        &mut self,
        count: usize,
        load: &(dyn Fn(usize) -> Result<Image> + Sync),
        flip: bool,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>> {
        let image_bytes = self.size[0] * self.size[1] * 3;
        let passes: &[u32] = if flip { &[0, 1] } else { &[0] };
        let mut embeddings = vec![0.0f32; count * self.dimension];
        // First row and number of rows of each step in flight, oldest first.
        let mut pending = VecDeque::new();
        let mut bytes = vec![0u8; packed_bytes(self.batch, self.size)];
        for first in (0..count).step_by(self.batch) {
            let filled = self.batch.min(count - first);
            // A partial last batch keeps images of the batch before in its other rows; their results are left out.
            let loaded: Vec<Result<()>> = bytes
                .par_chunks_exact_mut(image_bytes)
                .take(filled)
                .enumerate()
                .map(|(offset, target)| {
                    let image = load(first + offset)?;
                    if [image.height, image.width] != self.size || image.rgb.len() != target.len() {
                        return Err(Error::data(
                            format!("image {}", first + offset),
                            format!("{} x {} pixels", image.height, image.width),
                            format!("{} x {}", self.size[0], self.size[1]),
                            "resize or align the images to the network's input first",
                        ));
                    }
                    target.copy_from_slice(&image.rgb);
                    Ok(())
                })
                .collect();
            // The first error in the order of the images, whichever thread met one first.
            loaded.into_iter().collect::<Result<()>>()?;
            for &mirror in passes {
                self.session.write(self.images.bytes, &bytes)?;
                let flags = vec![mirror; self.batch];
                self.session.write(self.images.mirror, bytemuck::cast_slice(&flags))?;
                self.session.step()?;
                pending.push_back((first, filled));
            }
            for done in self.session.finished()? {
                add_rows(&mut embeddings, pending.pop_front(), &done.values, self.dimension)?;
            }
            progress(first + filled);
        }
        for done in self.session.flush()? {
            add_rows(&mut embeddings, pending.pop_front(), &done.values, self.dimension)?;
        }
        Ok(embeddings)
    }
}

fn add_rows(
    embeddings: &mut [f32],
    rows: Option<(usize, usize)>,
    values: &[HostTensor],
    dimension: usize,
) -> Result<()> {
    let (Some((first, filled)), Some(value)) = (rows, values.first()) else { return Ok(()) };
    let target = embeddings.iter_mut().skip(first * dimension).take(filled * dimension);
    for (sum, value) in target.zip(value.as_f32()?) {
        *sum += value;
    }
    Ok(())
}
