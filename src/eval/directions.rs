//! Where features and prototypes point: rows of unit length, the centres of classes, and cosines between them.
//! All in f64.

use crate::{Error, Result};

/// Rows `[N, D]` scaled to unit length. A row of zeros has no direction and stays zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Directions {
    rows: Vec<f64>,
    dimension: usize,
}

impl Directions {
    /// The directions of `values` `[N, dimension]`: embeddings, or prototypes.
    ///
    /// # Errors
    /// [`Error::Data`] where `values` is not of whole rows, or not finite.
    pub fn new(values: &[f32], dimension: usize) -> Result<Self> {
        if dimension == 0 || !values.len().is_multiple_of(dimension) {
            return Err(Error::data(
                "directions",
                format!("{} numbers", values.len()),
                format!("whole rows of {dimension}"),
                "this is a fault of the program that gave them",
            ));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::data(
                format!("directions, row {}", at / dimension),
                format!("{}", values[at]),
                "finite values",
                "the weights are at fault: check the training's loss for NaN",
            ));
        }
        Ok(Self::scaled(values.iter().map(|&value| f64::from(value)).collect(), dimension))
    }

    fn scaled(mut rows: Vec<f64>, dimension: usize) -> Self {
        for row in rows.chunks_exact_mut(dimension) {
            let norm = dot(row, row).sqrt();
            if norm > 0.0 {
                row.iter_mut().for_each(|value| *value /= norm);
            }
        }
        Self { rows, dimension }
    }

    /// N.
    pub fn len(&self) -> usize {
        self.rows.len() / self.dimension
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The directions of the classes' means, `[classes, D]`: of class `c`, that of the mean of the rows `i` with label
    /// `c` that `counts(i)` admits. A class with none has no direction.
    pub fn centres(&self, labels: &[u32], classes: usize, counts: impl Fn(usize) -> bool) -> Self {
        let mut sums = vec![0.0; classes * self.dimension];
        for (index, (row, &label)) in self.rows.chunks_exact(self.dimension).zip(labels).enumerate() {
            if counts(index) {
                let sum = sums.iter_mut().skip(label as usize * self.dimension);
                sum.zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        // The direction of a sum is that of its mean.
        Self::scaled(sums, self.dimension)
    }

    /// The cosine of row `row` and row `other_row` of `other`; `None` where one is not there or has no direction.
    pub fn cosine(&self, row: usize, other: &Self, other_row: usize) -> Option<f64> {
        let (a, b) = (self.row(row)?, other.row(other_row)?);
        Some(dot(a, b).clamp(-1.0, 1.0))
    }

    /// A row that is there and has a direction.
    fn row(&self, index: usize) -> Option<&[f64]> {
        let row = self.rows.chunks_exact(self.dimension).nth(index)?;
        row.iter().any(|&value| value != 0.0).then_some(row)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn centres_are_means_of_directions_not_of_vectors() {
        // A long vector weighs no more than a short one; the sample that is not admitted does not count at all.
        let features = Directions::new(&[100.0, 0.0, 0.0, 0.5, 3.0, 4.0, -7.0, 0.0], 2).unwrap();
        let centres = features.centres(&[1, 1, 0, 0], 3, |index| index != 3);
        assert_eq!((centres.len(), features.len()), (3, 4));
        let diagonal = std::f64::consts::FRAC_1_SQRT_2;
        assert!((centres.cosine(1, &features, 0).unwrap() - diagonal).abs() < 1e-15);
        assert!((centres.cosine(1, &features, 1).unwrap() - diagonal).abs() < 1e-15);
        assert!((centres.cosine(0, &features, 0).unwrap() - 0.6).abs() < 1e-7);
        assert!((centres.cosine(0, &features, 3).unwrap() + 0.6).abs() < 1e-7);
    }

    #[test]
    fn what_has_no_direction_has_no_cosine() {
        let features = Directions::new(&[1.0, 0.0, 0.0, 0.0], 2).unwrap();
        assert_eq!(features.cosine(0, &features, 0), Some(1.0));
        assert_eq!(features.cosine(0, &features, 1), None);
        assert_eq!(features.cosine(2, &features, 0), None);
        let centres = features.centres(&[0, 0], 2, |_| true);
        assert_eq!(centres.cosine(0, &features, 0), Some(1.0));
        assert_eq!(centres.cosine(1, &features, 0), None);
    }

    #[test]
    fn ragged_and_infinite_rows_are_refused() {
        assert!(Directions::new(&[1.0; 5], 2).is_err());
        assert!(Directions::new(&[], 0).is_err());
        assert!(Directions::new(&[], 2).unwrap().is_empty());
        let error = Directions::new(&[1.0, 2.0, 3.0, f32::NAN], 2).unwrap_err();
        assert!(error.to_string().contains("row 1"), "{error}");
    }
}
