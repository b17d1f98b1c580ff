//! The input of every graph: packed RGB bytes, mirrored where asked and normalised on the GPU.

use epl_runtime::ops::image_input::{ImageInput, image_input};
use epl_runtime::{Graph, TensorDesc, TensorId};

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
    /// f32 `[batch, H, W, 3]`, normalised.
    pub normalized: TensorId,
}

/// Bytes that the packed images of a batch take on the GPU: `batch H W 3`, rounded up to whole words.
pub fn packed_bytes(batch: usize, [height, width]: [usize; 2]) -> usize {
    (batch * height * width * 3).next_multiple_of(4)
}

/// Records the input of `batch` images of `size` (height, width).
pub fn record_images(graph: &mut Graph, batch: usize, size: [usize; 2]) -> Result<Images> {
    let bytes = graph.input("images", TensorDesc::u32([packed_bytes(batch, size) / 4]))?;
    let mirror = graph.input("mirror", TensorDesc::u32([batch]))?;
    graph.set_scope("input");
    let [height, width] = size;
    let attributes = ImageInput { batch, height, width, mean: MEAN, std: DEVIATION, bgr: false };
    let normalized = image_input(graph, bytes, mirror, attributes)?;
    Ok(Images { bytes, mirror, normalized })
}
