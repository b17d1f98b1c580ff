//! The input of every graph: packed RGB bytes, mirrored where asked and normalised on the GPU.

use epl_runtime::ops::image_input::{ImageInput, image_input};
use epl_runtime::ops::slice_rows::slice_rows;
use epl_runtime::{DType, Graph, TensorDesc, TensorId};

use crate::Result;

/// Mean of each channel after division by 255, as the release normalises: (x/255 - 0.5)/0.5.
const MEAN: [f32; 3] = [0.5; 3];
/// Deviation of each channel.
const DEVIATION: [f32; 3] = [0.5; 3];

/// The image input of a graph.
#[derive(Clone, Copy, Debug)]
pub struct Images {
    /// u32 `[ceil(batch H W 3 / 4)]`: RGB bytes, HWC, image after image.
    pub bytes: TensorId,
    /// u32 `[batch]`: 1 mirrors the image left to right.
    pub mirror: TensorId,
    size: [usize; 2],
    batch: usize,
}

impl Images {
    /// Records images `first .. first + count` of the batch, mirrored where that is asked for and normalised:
    /// `[count, H, W, 3]` of type `to`.
    pub fn normalized(&self, graph: &mut Graph, first: usize, count: usize, to: DType) -> Result<TensorId> {
        graph.set_scope("input");
        let [height, width] = self.size;
        let (mut bytes, mut mirror) = (self.bytes, self.mirror);
        if count != self.batch {
            // Four bytes a word: the sides of an input are multiples of 16.
            let words = height * width * 3 / 4;
            bytes = slice_rows(graph, bytes, first * words, count * words)?;
            mirror = slice_rows(graph, mirror, first, count)?;
        }
        let attributes =
            ImageInput { batch: count, height, width, mean: MEAN, std: DEVIATION, bgr: false, to };
        Ok(image_input(graph, bytes, mirror, attributes)?)
    }
}

/// Bytes that the packed images of a batch take on the GPU: `batch H W 3`, rounded up to whole words.
pub fn packed_bytes(batch: usize, [height, width]: [usize; 2]) -> usize {
    (batch * height * width * 3).next_multiple_of(4)
}

/// Declares the input of `batch` images of `size` (height, width).
pub fn record_images(graph: &mut Graph, batch: usize, size: [usize; 2]) -> Result<Images> {
    let bytes = graph.input("images", TensorDesc::u32([packed_bytes(batch, size) / 4]))?;
    let mirror = graph.input("mirror", TensorDesc::u32([batch]))?;
    Ok(Images { bytes, mirror, size, batch })
}
