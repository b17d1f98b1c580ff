//! Packed 8-bit images to normalised floats on the GPU, mirrored where asked for, so that only bytes are uploaded.
//!
//! `y[n, r, c, k] = (byte[n, r, c', k] / 255 - mean[k]) / std[k]`, with `c' = W - 1 - c` where image `n` is mirrored.
//! The bytes are RGB, height x width x channel, image after image, four in a u32 with the first in the lowest bits.

use crate::case::{Case, OpEntry, integers};
use crate::host::Array;
use crate::kernel::{Kernel, Needs, ParamBlock, read, write};
use crate::op::{Cost, Lowering, Op, Operand, Record, TensorId, push_one};
use crate::{DType, Error, Result, TensorDesc};

crate::param_block! {
    /// Parameters of `image_input.wgsl`.
    pub struct ImageInputParams {
        /// Pixels of all images.
        pixels: u32,
        /// Pixels of a row.
        width: u32,
        /// Pixels of an image.
        pixels_per_image: u32,
        /// 1: blue first in y.
        bgr: u32,
        /// What is subtracted from a red byte.
        center_r: f32,
        /// What is subtracted from a green byte.
        center_g: f32,
        /// What is subtracted from a blue byte.
        center_b: f32,
        /// Factor of a red value.
        scale_r: f32,
        /// Factor of a green value.
        scale_g: f32,
        /// Factor of a blue value.
        scale_b: f32,
    }
}

static KERNEL: Kernel = Kernel {
    shader: "image_input",
    entry: "main",
    params: ImageInputParams::FIELDS,
    bindings: &[read("bytes"), read("mirror"), write("y")],
    constants: &["WORKGROUP"],
    needs: Needs::Nothing,
};

/// The registry's entry.
pub const ENTRY: OpEntry = OpEntry { name: "image_input", cases, kernels: &[&KERNEL] };

/// Pixels of a workgroup.
const WORKGROUP: usize = 256;

/// Records the conversion of images: `bytes` u32 `[ceil(N * H * W * 3 / 4)]`, `mirror` u32 `[N]` (not 0: flip left and
/// right) -> `[N, H, W, 3]` of [`ImageInput::to`].
pub fn image_input(
    record: &mut dyn Record,
    bytes: TensorId,
    mirror: TensorId,
    config: ImageInput,
) -> Result<TensorId> {
    push_one(record, config, &[bytes, mirror])
}

/// The op `image_input`.
#[derive(Debug, Clone, Copy)]
pub struct ImageInput {
    /// Images.
    pub batch: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Mean of red, green and blue, of values in 0..=1.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue, of values in 0..=1.
    pub std: [f32; 3],
    /// Whether the channels of the result are blue, green, red; else red, green, blue.
    pub bgr: bool,
    /// The type of the result: f32 or f16.
    pub to: DType,
}

impl ImageInput {
    fn pixels(&self) -> usize {
        self.batch * self.height * self.width
    }
}

impl Op for ImageInput {
    fn name(&self) -> &'static str {
        "image_input"
    }

    fn infer(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let wrong = |found: String, expected: String| Err(Error::shape("image_input", found, expected));
        let [bytes, mirror] = inputs else {
            return wrong(format!("{} inputs", inputs.len()), "bytes, mirror".into());
        };
        if self.pixels() == 0 {
            return wrong(
                format!("{} images of {} x {}", self.batch, self.height, self.width),
                "at least one pixel".into(),
            );
        }
        if self.std.iter().any(|&s| !(s.is_finite() && s > 0.0)) {
            return wrong(format!("std {:?}", self.std), "positive numbers".into());
        }
        let words = TensorDesc::u32([(3 * self.pixels()).div_ceil(4)]);
        if *bytes != words {
            return wrong(format!("bytes {bytes}"), format!("{words}, four packed bytes an element"));
        }
        if *mirror != TensorDesc::u32([self.batch]) {
            return wrong(format!("mirror {mirror}"), format!("u32[{}], one an image", self.batch));
        }
        let y = TensorDesc::f32([self.batch, self.height, self.width, 3]).with(self.to);
        if !y.is_float() {
            return wrong(format!("a result of {}", self.to), "f32 or f16".into());
        }
        Ok(vec![y])
    }

    fn lower(&self, lowering: &mut Lowering<'_>) -> Result<()> {
        lowering.size(3 * self.pixels())?;
        // v / 255 / std - mean / std, as a difference of which both terms are exact for a mean of 1/2.
        let center = self.mean.map(|mean| (255.0 * f64::from(mean)) as f32);
        let scale = self.std.map(|std| (1.0 / (255.0 * f64::from(std))) as f32);
        let params = ImageInputParams {
            pixels: lowering.size(self.pixels())?,
            width: lowering.size(self.width)?,
            pixels_per_image: lowering.size(self.height * self.width)?,
            bgr: u32::from(self.bgr),
            center_r: center[0],
            center_g: center[1],
            center_b: center[2],
            scale_r: scale[0],
            scale_g: scale[1],
            scale_b: scale[2],
        };
        let grid = lowering.fold(self.pixels().div_ceil(WORKGROUP))?;
        let operands = [Operand::Input(0), Operand::Input(1), Operand::Output(0)];
        lowering.dispatch(&KERNEL, &[("WORKGROUP", WORKGROUP as f64)], &params, &operands, grid)
    }

    fn reference(&self, inputs: &[Array]) -> Vec<Array> {
        let [bytes, mirror] = inputs else { return Vec::new() };
        let [height, width] = [self.height, self.width];
        let mut y = Array::zeros([self.batch, height, width, 3]);
        for n in 0..self.batch {
            for row in 0..height {
                for column in 0..width {
                    let from = if mirror.data[n] != 0.0 { width - 1 - column } else { column };
                    for k in 0..3 {
                        let at = ((n * height + row) * width + from) * 3 + k;
                        let byte = (bytes.data[at / 4] as u32).to_le_bytes()[at % 4];
                        let value =
                            (f64::from(byte) / 255.0 - f64::from(self.mean[k])) / f64::from(self.std[k]);
                        let channel = if self.bgr { 2 - k } else { k };
                        y.data[((n * height + row) * width + column) * 3 + channel] = value;
                    }
                }
            }
        }
        vec![y]
    }

    fn cost(&self, inputs: &[TensorDesc], outputs: &[TensorDesc]) -> Cost {
        Cost::once(6.0 * self.pixels() as f64, inputs, outputs)
    }
}

fn cases() -> Vec<Case> {
    let case = |label: &str, [batch, height, width]: [usize; 3], bgr: bool| {
        let op = ImageInput { batch, height, width, mean: [0.5; 3], std: [0.5; 3], bgr, to: DType::F32 };
        let words = (3 * batch * height * width).div_ceil(4);
        Case::new(label, op, vec![integers([words], u32::MAX, 1), integers([batch], 2, 2)])
    };
    let mut unlike = ImageInput {
        batch: 2,
        height: 3,
        width: 2,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
        bgr: false,
        to: DType::F32,
    };
    let inputs = || vec![integers([9], u32::MAX, 3), crate::case::words(&[0, 1])];
    let rgb = Case::new("channels unlike", unlike, inputs());
    let half = Case::new("channels unlike, f16", ImageInput { to: DType::F16, ..unlike }, inputs());
    unlike.bgr = true;
    vec![
        case("one pixel", [1, 1, 1], false),
        case("a mirror and no mirror", [7, 5, 9], false),
        case("blue first", [3, 7, 11], true),
        rgb,
        half,
        Case::new("channels unlike, blue first", unlike, inputs()),
        case("perf", [64, 112, 112], false).perf(),
        case("perf, large", [768, 112, 112], false).perf_large(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_bytes() {
        let op = ImageInput {
            batch: 1,
            height: 1,
            width: 2,
            mean: [0.5; 3],
            std: [0.5; 3],
            bgr: false,
            to: DType::F32,
        };
        // Pixels (0, 255, 51) and (102, 153, 204), then two bytes of padding.
        let bytes = Array::new([2], vec![f64::from(0x6633_ff00_u32), f64::from(0xffff_cc99_u32)]);
        let expected = [-1.0, 1.0, -0.6, -0.2, 0.2, 0.6];
        let check = |mirror: f64, expected: [f64; 6]| {
            let y = op.reference(&[bytes.clone(), Array::new([1], vec![mirror])]).remove(0);
            assert!(y.data.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-12), "{:?}", y.data);
        };
        check(0.0, expected);
        let [a, b, c, d, e, f] = expected;
        check(1.0, [d, e, f, a, b, c]);
    }
}
