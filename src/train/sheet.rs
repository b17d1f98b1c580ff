//! Sample faces with the classes whose prototypes are nearest, for the report.

use std::collections::{HashMap, HashSet};

use crate::Result;
use crate::data::Dataset;
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
    let weights = model.store.read(HEAD_WEIGHT)?;
    let weights = weights.as_f32()?;
    let ranked: Vec<Vec<(usize, f64)>> = embeddings
        .chunks_exact(dimension)
        .map(|embedding| nearest(&unit(embedding), weights, dimension))
        .collect();
    let exemplars = first_images(dataset, ranked.iter().flatten().map(|&(class, _)| class))?;

    let mut rows = Vec::with_capacity(count);
    for (&index, ranked) in chosen.iter().zip(&ranked) {
        let label = dataset.label(index)? as usize;
        let mut row = Vec::with_capacity(NEAREST);
        for &(class, cosine) in ranked {
            let Some(&exemplar) = exemplars.get(&class) else { continue };
            row.push(NearestPrototype {
                exemplar: dataset.load(exemplar)?.into(),
                name: format!("class {class}"),
                cosine,
                right: class == label,
            });
        }
        let name = format!("{} (class {label})", dataset.name(index));
        rows.push(FaceRow { face: dataset.load(index)?.into(), name, nearest: row });
    }
    Ok(rows)
}

/// The classes whose prototypes (rows of `weights`) have the largest cosine with the unit vector `x`, largest first.
fn nearest(x: &[f64], weights: &[f32], dimension: usize) -> Vec<(usize, f64)> {
    let mut best: Vec<(usize, f64)> = Vec::with_capacity(NEAREST + 1);
    for (class, row) in weights.chunks_exact(dimension).enumerate() {
        let (mut dot, mut square) = (0.0, 0.0);
        for (&w, &x) in row.iter().zip(x) {
            dot += f64::from(w) * x;
            square += f64::from(w).powi(2);
        }
        let cosine = dot / square.sqrt().max(1e-12);
        let place = best.partition_point(|&(_, other)| other >= cosine);
        best.insert(place, (class, cosine));
        best.truncate(NEAREST);
    }
    best
}

/// The first image of each of the wanted classes that has one.
fn first_images(dataset: &dyn Dataset, wanted: impl Iterator<Item = usize>) -> Result<HashMap<usize, usize>> {
    let mut missing: HashSet<usize> = wanted.collect();
    let mut found = HashMap::new();
    for index in 0..dataset.len() {
        if missing.is_empty() {
            break;
        }
        let label = dataset.label(index)? as usize;
        if missing.remove(&label) {
            found.insert(label, index);
        }
    }
    Ok(found)
}

fn unit(vector: &[f32]) -> Vec<f64> {
    let norm = vector.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt().max(1e-12);
    vector.iter().map(|&v| f64::from(v) / norm).collect()
}
