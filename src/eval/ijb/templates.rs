//! The features of templates, from those of their images.

use rayon::prelude::*;

use super::Settings;
use super::meta::Faces;
use crate::{Error, Result};

/// The features of all templates, of unit length.
#[derive(Debug, Clone, PartialEq)]
pub struct Templates {
    /// Ascending.
    ids: Vec<u32>,
    /// `[T, D]`, in the order of `ids`.
    features: Vec<f64>,
    dimension: usize,
}

impl Templates {
    /// Aggregates `embeddings` `[N, dimension]`. A template whose features cancel out stays zero, as in scikit-learn.
    ///
    /// # Errors
    /// Numbers that do not fit, and values that are not finite.
    pub fn new(embeddings: &[f32], dimension: usize, faces: &Faces, settings: Settings) -> Result<Self> {
        let count = faces.templates.len();
        let lists = [faces.medias.len(), faces.detector.len()];
        if count == 0 || dimension == 0 || embeddings.len() != count * dimension || lists != [count; 2] {
            return Err(Error::data(
                "the faces",
                format!(
                    "{} numbers, {count} templates, {} media, {} scores",
                    embeddings.len(),
                    lists[0],
                    lists[1]
                ),
                format!("an embedding of {dimension}, a template, a medium and a score for each face"),
                "this is a fault of the program that made them",
            ));
        }
        if let Some(face) =
            embeddings.par_chunks_exact(dimension).position_first(|row| row.iter().any(|x| !x.is_finite()))
        {
            return Err(Error::data(
                format!("the embedding of face {}", face + 1),
                "a value that is not finite",
                "finite values",
                "the weights or the precision are at fault: check the training's loss for NaN",
            ));
        }
        let key = |&face: &usize| (faces.templates.get(face).copied(), faces.medias.get(face).copied(), face);
        let mut order: Vec<usize> = (0..count).collect();
        order.par_sort_unstable_by_key(key);
        let groups: Vec<&[usize]> = order.chunk_by(|a, b| key(a).0 == key(b).0).collect();
        let mut features = vec![0.0; groups.len() * dimension];
        features.par_chunks_exact_mut(dimension).zip(&groups).for_each(|(sum, group)| {
            let mut medium = vec![0.0; dimension];
            for of_medium in group.chunk_by(|a, b| key(a).1 == key(b).1) {
                medium.fill(0.0);
                for &face in of_medium {
                    add_feature(&mut medium, embeddings, face, faces, settings);
                }
                let frames = of_medium.len() as f64;
                sum.iter_mut().zip(&medium).for_each(|(sum, value)| *sum += value / frames);
            }
            normalize(sum);
        });
        let ids = groups.iter().filter_map(|group| key(group.first()?).0).collect();
        Ok(Self { ids, features, dimension })
    }

    /// The number of templates.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The feature `[D]` of template `id`; `None` where it has no image.
    pub fn feature(&self, id: u32) -> Option<&[f64]> {
        let at = self.ids.binary_search(&id).ok()? * self.dimension;
        self.features.get(at..at + self.dimension)
    }
}

/// Adds the feature of an image.
fn add_feature(sum: &mut [f64], embeddings: &[f32], face: usize, faces: &Faces, settings: Settings) {
    let dimension = sum.len();
    let row = embeddings.get(face * dimension..(face + 1) * dimension).unwrap_or_default();
    let norm = || row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    let score = match faces.detector.get(face) {
        Some(&score) if settings.detector_score => f64::from(score),
        _ => 1.0,
    };
    // A row of zeros stays zero.
    let divisor = if settings.norm { 1.0 } else { norm() };
    let divisor = if divisor > 0.0 { divisor } else { 1.0 };
    sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value) / divisor * score);
}

fn normalize(row: &mut [f64]) {
    let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|value| *value /= norm);
    }
}
