//! Embeddings of unit length, and the members of a set or a group.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::{Error, Result};

/// The longest embedding: up to this the error of an f32 product stays within a few bins.
const MAX_DIMENSION: usize = 1 << 14;

/// Embeddings `[N, D]`, normalised in f64 and rounded to f32. A row of zeros stays zero: it has the score 0 with all.
pub struct Unit {
    values: Vec<f32>,
    dimension: usize,
    zeros: usize,
}

impl Unit {
    /// Normalises `values` `[N, dimension]`; `name` is what messages call the set.
    ///
    /// # Errors
    /// A length that is no multiple of the dimension, a dimension of 0 or above 16384, values that are not finite.
    pub fn new(name: &str, mut values: Vec<f32>, dimension: usize) -> Result<Self> {
        if dimension == 0 || dimension > MAX_DIMENSION || !values.len().is_multiple_of(dimension) {
            return Err(Error::data(
                name,
                format!("{} numbers in embeddings of {dimension}", values.len()),
                format!("embeddings of 1 to {MAX_DIMENSION} numbers each"),
                "use the file that `epl embed` wrote",
            ));
        }
        let norms: Vec<f64> = values
            .par_chunks_exact_mut(dimension)
            .map(|row| {
                let norm = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
                if norm > 0.0 {
                    row.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
                }
                norm
            })
            .collect();
        if let Some(index) = norms.iter().position(|norm| !norm.is_finite()) {
            return Err(Error::data(
                format!("{name}, embedding {index}"),
                "a value that is not finite",
                "finite values",
                "the weights or the precision are at fault: check the training's loss for NaN",
            ));
        }
        let zeros = norms.iter().filter(|&&norm| norm == 0.0).count();
        Ok(Self { values, dimension, zeros })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.values.len() / self.dimension
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Length of an embedding.
    pub fn dimension(&self) -> usize {
        self.dimension
    }

    /// How many are all zeros.
    pub fn zeros(&self) -> usize {
        self.zeros
    }

    /// Embedding `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        self.values.get(index * self.dimension..(index + 1) * self.dimension).unwrap_or_default()
    }

    /// The most by which an f32 product of two rows, summed in any order, differs from [`score`].
    pub fn bound(&self) -> f64 {
        // WGSL leaves it to the adapter whether a result is rounded to the nearest float or to its neighbour.
        let unit = f64::from(f32::EPSILON);
        // The longest chain of roundings: D products and sums, and a few more of zeros beside them.
        let roundings = (self.dimension + 8) as f64;
        let gamma = roundings * unit / (1.0 - roundings * unit);
        // Rounded rows are longer than 1 by a rounding at most; products below the smallest normal number may be
        // flushed to zero; and the f64 sum has an error of its own, far below these.
        gamma * (1.0 + 1e-6) + 1e-30
    }
}

/// The score of two embeddings: their product in f64, summed in eight lanes whose sums are added in order, then the rest.
pub fn score(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 8;
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f64; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, &x), &y) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(x) * f64::from(y);
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(&x, &y)| f64::from(x) * f64::from(y));
    sums.into_iter().chain(rest).fold(0.0, |total, part| total + part)
}

/// Some of the embeddings, each with its identity.
pub struct Members<'a> {
    unit: &'a Unit,
    rows: Vec<u32>,
    labels: Vec<u32>,
    /// Images of each identity that has any.
    sizes: Vec<u64>,
}

impl<'a> Members<'a> {
    /// The embeddings `rows` of `unit`, in this order; `labels[r]` is the identity of embedding `r`. Rows that are not there
    /// are left out.
    pub fn new(unit: &'a Unit, labels: &[u32], rows: impl IntoIterator<Item = u32>) -> Self {
        let mut members = Self { unit, rows: Vec::new(), labels: Vec::new(), sizes: Vec::new() };
        let mut sizes: HashMap<u32, u64> = HashMap::new();
        for row in rows {
            if let Some(&label) = labels.get(row as usize).filter(|_| (row as usize) < unit.len()) {
                members.rows.push(row);
                members.labels.push(label);
                *sizes.entry(label).or_default() += 1;
            }
        }
        members.sizes = sizes.into_values().collect();
        members
    }

    /// The embeddings that these are some of.
    pub fn unit(&self) -> &'a Unit {
        self.unit
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How many identities they have.
    pub fn identities(&self) -> usize {
        self.sizes.len()
    }

    /// Pairs of one identity, and of two.
    pub fn pairs(&self) -> [u64; 2] {
        let pairs = |n: u64| n * n.saturating_sub(1) / 2;
        let genuine = self.sizes.iter().map(|&size| pairs(size)).sum();
        [genuine, pairs(self.rows.len() as u64) - genuine]
    }

    /// Member `index`.
    pub fn row(&self, index: usize) -> &'a [f32] {
        self.rows.get(index).map_or(&[], |&row| self.unit.row(row as usize))
    }

    /// The identities of all.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }
}
