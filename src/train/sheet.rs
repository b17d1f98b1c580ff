//! Sample faces with the classes whose prototypes are nearest, for the report.

use image::RgbImage;

use crate::Result;
use crate::data::{Dataset, Image};
use crate::eval::embedder::Embedder;
use crate::model::{HEAD_WEIGHT, Model};
use crate::report::{FaceRow, NearestPrototype};

/// Prototypes shown beside a face.
const NEAREST: usize = 3;

/// `count` faces spread over the training set, each with the classes whose prototypes are nearest to its embedding.
/// A class is shown by its first image.
pub fn face_sheet(model: &Model, dataset: &dyn Dataset, count: usize) -> Result<Vec<FaceRow>> {
    let count = count.min(dataset.len());
    if count == 0 || model.spec.head.is_none() {
        return Ok(Vec::new());
    }
    let chosen: Vec<usize> = (0..count).map(|i| i * dataset.len() / count).collect();
    let mut embedder = Embedder::new(model, count)?;
    let load = |index: usize| dataset.load(chosen.get(index).copied().unwrap_or(0));
    let embeddings = embedder.embed(count, &load, true, &mut |_| {})?;
    let dimension = embedder.dimension();
    let weights = model.spec.parameters.read(&model.store, HEAD_WEIGHT)?;
    let prototypes: Vec<Vec<f64>> = weights.chunks_exact(dimension).map(unit).collect();

    let mut exemplars = vec![None; prototypes.len()];
    for index in 0..dataset.len() {
        let label = dataset.label(index)? as usize;
        if let Some(slot @ None) = exemplars.get_mut(label) {
            *slot = Some(index);
        }
    }
    let mut rows = Vec::with_capacity(count);
    for (&index, embedding) in chosen.iter().zip(embeddings.chunks_exact(dimension)) {
        let label = dataset.label(index)? as usize;
        let x = unit(embedding);
        let cosine = |p: &Vec<f64>| -> f64 { p.iter().zip(&x).map(|(a, b)| a * b).sum() };
        let mut ranked: Vec<(usize, f64)> = prototypes.iter().map(cosine).enumerate().collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut nearest = Vec::with_capacity(NEAREST);
        for &(class, cosine) in ranked.iter().take(NEAREST) {
            let Some(Some(exemplar)) = exemplars.get(class) else { continue };
            nearest.push(NearestPrototype {
                exemplar: picture(dataset.load(*exemplar)?),
                name: format!("class {class}"),
                cosine,
                right: class == label,
            });
        }
        let name = format!("{} (class {label})", dataset.name(index));
        rows.push(FaceRow { face: picture(dataset.load(index)?), name, nearest });
    }
    Ok(rows)
}

fn unit(vector: &[f32]) -> Vec<f64> {
    let norm = vector.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(1e-12);
    vector.iter().map(|&v| f64::from(v) / norm).collect()
}

fn picture(image: Image) -> RgbImage {
    let (width, height) = (image.width as u32, image.height as u32);
    // The bytes are [H, W, 3] by construction; an empty picture would show a fault without stopping the report.
    RgbImage::from_raw(width, height, image.rgb).unwrap_or_default()
}
