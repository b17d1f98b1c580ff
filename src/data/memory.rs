//! A dataset that is held in memory: procedural faces, and small sets of tests.

use super::{Dataset, Image, check_label, no_such_index, other_size};
use crate::{Error, Result};

/// Images of one size with their labels, in memory.
#[derive(Debug, Clone)]
pub struct InMemory {
    samples: Vec<(Vec<u8>, u32)>,
    height: usize,
    width: usize,
    num_classes: usize,
}

impl InMemory {
    /// A dataset of `samples`, each ([H, W, 3] in 8-bit RGB, label). Without `num_classes` it is the largest
    /// label plus one.
    ///
    /// # Errors
    /// An image of another length than H * W * 3, or a label that is not below the number of classes.
    pub fn new(
        [height, width]: [usize; 2],
        samples: Vec<(Vec<u8>, u32)>,
        num_classes: Option<usize>,
    ) -> Result<Self> {
        let counted = samples.iter().map(|&(_, label)| label as usize + 1).max().unwrap_or(0);
        let num_classes = num_classes.unwrap_or(counted);
        for (index, (rgb, label)) in samples.iter().enumerate() {
            let expected = height * width * 3;
            if rgb.len() != expected {
                return Err(Error::data(
                    format!("image {index} in memory"),
                    format!("{} bytes", rgb.len()),
                    format!("{expected} ({height} x {width} x 3)"),
                    "give every image as [H, W, 3] in 8-bit RGB",
                ));
            }
            check_label(*label, num_classes, || format!("image {index} in memory"))?;
        }
        Ok(Self { samples, height, width, num_classes })
    }

    fn sample(&self, index: usize) -> Result<&(Vec<u8>, u32)> {
        self.samples.get(index).ok_or_else(|| no_such_index(index, self.samples.len()))
    }
}

impl Dataset for InMemory {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn label(&self, index: usize) -> Result<u32> {
        Ok(self.sample(index)?.1)
    }

    fn load(&self, index: usize) -> Result<Image> {
        Ok(Image { rgb: self.sample(index)?.0.clone(), height: self.height, width: self.width })
    }

    fn load_into(&self, index: usize, size: [usize; 2], slot: &mut [u8]) -> Result<()> {
        let (rgb, _) = self.sample(index)?;
        if [self.height, self.width] != size || rgb.len() != slot.len() {
            return Err(other_size([self.height, self.width], size, || self.name(index)));
        }
        slot.copy_from_slice(rgb);
        Ok(())
    }

    fn name(&self, index: usize) -> String {
        format!("image {index} in memory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_counted_and_checked() {
        let samples = vec![(vec![1; 12], 0), (vec![2; 12], 4)];
        let dataset = InMemory::new([2, 2], samples.clone(), None).unwrap();
        assert_eq!((dataset.len(), dataset.num_classes(), dataset.label(1).unwrap()), (2, 5, 4));
        assert_eq!(dataset.load(1).unwrap().rgb, vec![2; 12]);
        assert!(dataset.load(2).is_err());
        let error = InMemory::new([2, 2], samples.clone(), Some(4)).unwrap_err();
        assert!(error.hint().unwrap().contains("at least 5"), "{error}");
        assert!(InMemory::new([2, 3], samples, None).is_err());
    }
}
