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
    let faces: Vec<Vec<f64>> = embeddings.chunks_exact(dimension).map(unit).collect();
    let mut ranked: Vec<Vec<(usize, f64)>> = vec![Vec::with_capacity(NEAREST + 1); count];
    model.for_each_part(HEAD_WEIGHT, |first, weights| {
        for (face, best) in faces.iter().zip(&mut ranked) {
            add_nearest(best, face, first, weights);
        }
        Ok(())
    })?;
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

/// Adds to `best`, largest first, the classes from `first` on whose prototypes (rows of `weights`) have the largest cosine
/// with the unit vector `x`.
fn add_nearest(best: &mut Vec<(usize, f64)>, x: &[f64], first: usize, weights: &[f32]) {
    for (class, row) in (first..).zip(weights.chunks_exact(x.len())) {
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
