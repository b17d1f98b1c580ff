//! Label noise: which samples of a labelled set agree least with the prototype of their class.
//!
//! A mislabelled face is far from the prototype of the class that it is filed under, and often near to that of the
//! person that it shows. So are some hard samples: what is found here is for a person to look at.

use rayon::prelude::*;
use serde::Serialize;

use crate::data::Dataset;
use crate::eval::embedder::Embedder;
use crate::interchange::tensor_file::TensorSource;
#[cfg(doc)]
use crate::model::{HEAD_QUEUE, HEAD_WEIGHT};
use crate::{Error, Result};

/// Images whose embeddings are in memory at once; of the others only the cosine is kept.
const CHUNK: usize = 4096;

/// The name of prototypes that were made by [`Prototypes::means`].
pub const MEANS: &str = "means of the features";

/// The prototypes that samples are compared with.
#[derive(Clone, Debug)]
pub struct Prototypes {
    name: &'static str,
    /// `[classes, dimension]`, of any length. A row of zeros is a class of which there is nothing.
    rows: Vec<f32>,
    dimension: usize,
}

impl Prototypes {
    /// Reads the prototypes of a state dict: the tensor of the first of `names` that it has, of [`HEAD_QUEUE`] and
    /// [`HEAD_WEIGHT`]. `dimension` is the length of the network's embedding, `place` the file.
    ///
    /// # Errors
    /// None of them is there, or it is not `[classes, dimension]`, or has a row without length or with values that are
    /// not finite.
    pub fn take(
        source: &dyn TensorSource,
        names: &[&'static str],
        dimension: usize,
        place: &str,
    ) -> Result<Self> {
        let found = names.iter().find_map(|name| Some((*name, source.shape(name)?)));
        let Some((name, shape)) = found else {
            return Err(Error::data(
                place,
                format!("no tensor {}", names.join(" and no ")),
                "weights with the prototypes of their classes",
                "use the model.safetensors of a training run on this data",
            ));
        };
        let rows = match shape {
            &[classes, columns] if columns == dimension && classes > 0 && columns > 0 => {
                source.floats_of(name)?
            }
            _ => {
                return Err(Error::data(
                    format!("{place}: tensor {name}"),
                    format!("shape {shape:?}"),
                    format!("[classes, {dimension}], as the network's embeddings are {dimension} long"),
                    "use an unaltered weights file",
                ));
            }
        };
        let unusable = |row: &[f32]| !square(row).is_finite() || square(row) == 0.0;
        match rows.par_chunks_exact(dimension).position_first(unusable) {
            None => Ok(Self { name, rows, dimension }),
            Some(class) => Err(Error::data(
                format!("{place}: tensor {name}, row {class}"),
                "a prototype without length or with values that are not finite",
                "finite numbers that are not all 0",
                "use the weights of a run that ended well",
            )),
        }
    }

    /// The mean of the features of each of `classes` classes, each feature of unit length. Every sample counts alike,
    /// and a few with wrong labels move the mean of a class but little. `labels` are those that [`labels()`] gave;
    /// `progress` gets the number of images done.
    ///
    /// # Errors
    /// Those of [`rank`].
    pub fn means(
        embedder: &mut Embedder,
        dataset: &dyn Dataset,
        labels: &[u32],
        classes: usize,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let dimension = embedder.dimension();
        let mut rows = vec![0.0; classes * dimension];
        for_each_unit(embedder, dataset, labels, progress, &mut |label, unit| {
            let start = label as usize * dimension;
            let sum = rows.get_mut(start..start + dimension).unwrap_or_default();
            sum.iter_mut().zip(unit).for_each(|(sum, &value)| *sum += value as f32);
        })?;
        Ok(Self { name: MEANS, rows, dimension })
    }

    /// What they are: the name of the tensor, or [`MEANS`].
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The number of classes.
    pub fn classes(&self) -> usize {
        self.rows.len() / self.dimension
    }

    /// Cosine of an embedding of unit length with a row; `None` where the row has no direction.
    fn cosine(unit: &[f64], row: &[f32]) -> Option<f64> {
        let dot: f64 = unit.iter().zip(row).map(|(&x, &q)| x * f64::from(q)).sum();
        let square = square(row);
        (square > 0.0).then(|| dot / square.sqrt())
    }

    /// Cosine of an embedding of unit length with the prototype of `class`; 0 where that has no direction.
    fn cosine_with(&self, unit: &[f64], class: u32) -> f64 {
        let start = class as usize * self.dimension;
        let row = self.rows.get(start..start + self.dimension).unwrap_or_default();
        Self::cosine(unit, row).unwrap_or(0.0)
    }

    /// The class other than `own` whose prototype is nearest, the first of equal ones; `None` where there is no other.
    fn nearest_other(&self, unit: &[f64], own: u32) -> Option<OtherClass> {
        let rows = self.rows.par_chunks_exact(self.dimension).enumerate();
        rows.filter(|&(class, _)| class != own as usize)
            .filter_map(|(class, row)| {
                Some(OtherClass { class: class as u32, cosine: Self::cosine(unit, row)? })
            })
            .reduce_with(|a, b| {
                let order = a.cosine.total_cmp(&b.cosine).then(b.class.cmp(&a.class));
                if order.is_ge() { a } else { b }
            })
    }
}

/// The squared length of a row.
fn square(row: &[f32]) -> f64 {
    row.iter().map(|&value| f64::from(value).powi(2)).sum()
}

/// A class that a sample is not filed under.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OtherClass {
    /// The class.
    pub class: u32,
    /// Cosine of the sample and its prototype.
    pub cosine: f64,
}

/// A sample whose label may be wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Suspect {
    /// Its index in the dataset.
    pub index: usize,
    /// The class that it is filed under.
    pub label: u32,
    /// Its cosine with that class's prototype.
    pub cosine: f64,
    /// The other class whose prototype is nearest; `None` in a set of one class.
    pub other: Option<OtherClass>,
}

impl Suspect {
    /// Whether another class is nearer than its own.
    pub fn is_nearer_to_other(&self) -> bool {
        self.other.is_some_and(|other| other.cosine > self.cosine)
    }
}

/// All samples of a set by how well they agree with their class.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// The class of each sample, by index.
    pub labels: Vec<u32>,
    /// The cosine of each sample and its class's prototype, by index.
    pub cosines: Vec<f64>,
    /// The samples in ascending order of their cosines, equal ones by index.
    pub order: Vec<usize>,
    /// The first of them.
    pub suspects: Vec<Suspect>,
}

impl Ranking {
    /// The sample of `class` that agrees best with its prototype, but for `without`: what that class looks like.
    pub fn exemplar(&self, class: u32, without: usize) -> Option<usize> {
        let of_class = |index: &usize| *index != without && self.labels.get(*index) == Some(&class);
        self.order.iter().rev().copied().find(of_class)
    }
}

/// The labels of `dataset`, checked against prototypes of `classes` classes. `declared` is the number of classes that the
/// training was told of, where that is not the number that the data has.
///
/// # Errors
/// Numbers of classes that differ, a label that is none of them, and labels that cannot be read. `place` names the data.
pub fn labels(
    dataset: &dyn Dataset,
    classes: usize,
    declared: Option<usize>,
    place: &str,
) -> Result<Vec<u32>> {
    let found = declared.unwrap_or(dataset.num_classes());
    if found != classes {
        return Err(Error::data(
            place,
            format!("{found} classes"),
            format!("{classes}, one a prototype of the weights"),
            "name the data that the weights were trained on; where data.num_classes was set for that, give --num-classes",
        ));
    }
    (0..dataset.len())
        .map(|index| match dataset.label(index)? {
            label if (label as usize) < classes => Ok(label),
            label => Err(Error::data(
                dataset.name(index),
                format!("label {label}"),
                format!("a label below {classes}, the number of prototypes in the weights"),
                "name the data that the weights were trained on",
            )),
        })
        .collect()
}

/// Embeds every image with its mirrored one, compares it with the prototype of its label, and looks for the nearest
/// other class of the `top` samples that agree least. `labels` are those that [`labels()`] gave; `progress` gets the number
/// of images done.
///
/// # Errors
/// An image that cannot be read or is of another size than the network's input, an embedding that is not finite, and
/// what the GPU reports.
pub fn rank(
    embedder: &mut Embedder,
    dataset: &dyn Dataset,
    labels: Vec<u32>,
    prototypes: &Prototypes,
    top: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Ranking> {
    let mut cosines = Vec::with_capacity(labels.len());
    for_each_unit(embedder, dataset, &labels, progress, &mut |label, unit| {
        cosines.push(prototypes.cosine_with(unit, label));
    })?;
    let order = ascending(&cosines);

    // Embedding these few again is cheaper than keeping all embeddings.
    let worst: Vec<usize> = order.iter().copied().take(top).collect();
    let load = |at: usize| dataset.load(worst.get(at).copied().unwrap_or_default());
    let embeddings = embedder.embed(worst.len(), &load, true, &mut |_| {})?;
    let suspects = worst
        .iter()
        .zip(embeddings.chunks_exact(embedder.dimension()))
        .map(|(&index, embedding)| {
            let unit = unit(embedding, || dataset.name(index))?;
            let label = labels.get(index).copied().unwrap_or_default();
            let cosine = prototypes.cosine_with(&unit, label);
            Ok(Suspect { index, label, cosine, other: prototypes.nearest_other(&unit, label) })
        })
        .collect::<Result<_>>()?;
    Ok(Ranking { labels, cosines, order, suspects })
}

/// Embeds every image with its mirrored one and calls `visit` with its label and its embedding scaled to unit length,
/// in the order of the dataset.
fn for_each_unit(
    embedder: &mut Embedder,
    dataset: &dyn Dataset,
    labels: &[u32],
    progress: &mut dyn FnMut(usize),
    visit: &mut dyn FnMut(u32, &[f64]),
) -> Result<()> {
    for (first, chunk) in (0..).step_by(CHUNK).zip(labels.chunks(CHUNK)) {
        let load = |offset: usize| dataset.load(first + offset);
        let embeddings = embedder.embed(chunk.len(), &load, true, &mut |done| progress(first + done))?;
        let rows = embeddings.chunks_exact(embedder.dimension()).zip(chunk).enumerate();
        for (offset, (embedding, &label)) in rows {
            visit(label, &unit(embedding, || dataset.name(first + offset))?);
        }
    }
    Ok(())
}

/// The indices of `cosines` from the least to the greatest, those of equal ones in ascending order.
fn ascending(cosines: &[f64]) -> Vec<usize> {
    let mut order: Vec<(f64, usize)> = cosines.iter().copied().zip(0..).collect();
    order.par_sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    order.into_iter().map(|(_, index)| index).collect()
}

/// The embedding scaled to unit length.
fn unit(embedding: &[f32], name: impl FnOnce() -> String) -> Result<Vec<f64>> {
    let norm = embedding.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
    if norm.is_finite() && norm > 0.0 {
        return Ok(embedding.iter().map(|&value| f64::from(value) / norm).collect());
    }
    Err(Error::data(
        name(),
        format!("an embedding of length {norm}"),
        "a finite length above 0",
        "use the weights of a run that ended well",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::InMemory;
    use crate::interchange::safetensors::StateDict;
    use crate::model::{HEAD_QUEUE, HEAD_WEIGHT};

    fn dict(tensors: &[(&str, &[usize], Vec<f32>)]) -> StateDict {
        let mut dict = StateDict::default();
        for (name, shape, values) in tensors {
            dict.insert(*name, shape, values.clone());
        }
        dict
    }

    const BOTH: [&str; 2] = [HEAD_QUEUE, HEAD_WEIGHT];

    #[test]
    fn the_first_tensor_that_is_there_is_taken() {
        let queue = (HEAD_QUEUE, &[2, 2][..], vec![1.0, 0.0, 0.0, 1.0]);
        let weight = (HEAD_WEIGHT, &[3, 2][..], vec![1.0; 6]);
        let taken = |tensors: &[_], names: &[&'static str]| {
            let prototypes = Prototypes::take(&dict(tensors), names, 2, "w").unwrap();
            (prototypes.name(), prototypes.classes())
        };
        assert_eq!(taken(&[queue.clone(), weight.clone()], &BOTH), (HEAD_QUEUE, 2));
        assert_eq!(taken(std::slice::from_ref(&weight), &BOTH), (HEAD_WEIGHT, 3));
        assert_eq!(taken(&[queue, weight], &BOTH[1..]), (HEAD_WEIGHT, 3));
    }

    #[test]
    fn prototypes_that_cannot_be_used_are_refused() {
        let refusal = |tensors: &[_]| {
            let error = Prototypes::take(&dict(tensors), &BOTH, 2, "w.safetensors").unwrap_err();
            assert!(error.hint().is_some());
            error.to_string()
        };
        assert!(refusal(&[]).contains("no tensor loss.queue and no loss.weight"));
        let wide = refusal(&[(HEAD_QUEUE, &[1, 4], vec![1.0; 4])]);
        assert!(wide.contains("[1, 4]") && wide.contains("[classes, 2]"), "{wide}");
        for bad in [f32::NAN, f32::INFINITY, 0.0] {
            let message = refusal(&[(HEAD_QUEUE, &[2, 2], vec![1.0, 1.0, bad, 0.0])]);
            assert!(message.contains("loss.queue, row 1"), "{message}");
        }
    }

    #[test]
    fn the_nearest_other_class_is_never_the_own_one() {
        // Of several lengths, and two that are equal in direction; the last has none.
        let rows = vec![5.0, 0.0, 0.6, 0.8, 1.2, 1.6, 0.0, -2.0, 0.0, 0.0];
        let prototypes = Prototypes { name: MEANS, rows, dimension: 2 };
        let nearest = |unit: [f64; 2], own| prototypes.nearest_other(&unit, own).unwrap();
        let other = nearest([1.0, 0.0], 0);
        assert_eq!(other.class, 1, "the first of equal ones");
        assert!((other.cosine - 0.6).abs() < 1e-6);
        assert_eq!((nearest([1.0, 0.0], 3).class, nearest([0.6, 0.8], 1).class), (0, 2));
        // Everything points away: a class of which there is nothing is not the nearest for that.
        assert_eq!(nearest([0.0, 1.0], 1).class, 2);
        assert_eq!(nearest([-1.0, 0.0], 0).class, 3);
        assert_eq!(prototypes.cosine_with(&[1.0, 0.0], 4), 0.0);
        let alone = Prototypes { name: MEANS, rows: vec![1.0, 0.0], dimension: 2 };
        assert_eq!(alone.nearest_other(&[1.0, 0.0], 0), None);
    }

    #[test]
    fn equal_cosines_are_in_the_order_of_the_data() {
        assert_eq!(ascending(&[0.5, -0.25, 0.5, -0.25, 1.0, -1.0]), [5, 1, 3, 0, 2, 4]);
    }

    #[test]
    fn the_example_of_a_class_is_its_best_other_sample() {
        let cosines = vec![0.1, 0.9, 0.5, 0.7, 0.2];
        let order = ascending(&cosines);
        let ranking = Ranking { labels: vec![0, 0, 0, 1, 2], cosines, order, suspects: Vec::new() };
        assert_eq!(ranking.exemplar(0, 3), Some(1));
        assert_eq!(ranking.exemplar(0, 1), Some(2), "never the sample itself");
        assert_eq!((ranking.exemplar(2, 4), ranking.exemplar(7, 0)), (None, None));
    }

    #[test]
    fn labels_must_be_those_of_the_prototypes() {
        let samples = vec![(vec![0; 12], 0), (vec![0; 12], 2)];
        let data = InMemory::new([2, 2], samples, Some(3)).unwrap();
        assert_eq!(labels(&data, 3, None, "faces").unwrap(), [0, 2]);
        let error = labels(&data, 4, None, "faces").unwrap_err();
        assert!(error.to_string().contains("faces: found 3 classes; expected 4"), "{error}");
        assert_eq!(labels(&data, 4, Some(4), "faces").unwrap(), [0, 2]);
        // Of what a caller declares only the data can tell whether it is true.
        let error = labels(&data, 2, Some(2), "faces").unwrap_err();
        assert!(error.to_string().contains("image 1 in memory: found label 2"), "{error}");
    }

    #[test]
    fn an_embedding_without_length_is_named() {
        assert_eq!(unit(&[3.0, 4.0], String::new).unwrap(), [0.6, 0.8]);
        for bad in [[0.0, 0.0], [f32::NAN, 1.0]] {
            assert!(unit(&bad, || "a.png".to_owned()).unwrap_err().to_string().contains("a.png"));
        }
    }
}
