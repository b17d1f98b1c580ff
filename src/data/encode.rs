//! Images back to files.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::Image;
use crate::{Error, Result};

/// How an image is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// JPEG of this quality, 1 to 100, without chroma subsampling.
    Jpeg(u8),
    /// PNG, which keeps every pixel.
    Png,
}

impl Encoding {
    /// The file name's extension.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg(_) => "jpg",
            Self::Png => "png",
        }
    }

    /// Encodes `image`.
    ///
    /// # Errors
    /// An image that is empty or too large for the format.
    pub fn encode(self, image: &Image) -> Result<Vec<u8>> {
        let mut bytes = Cursor::new(Vec::new());
        let (width, height) = (image.width as u32, image.height as u32);
        let color = ExtendedColorType::Rgb8;
        let written = match self {
            Self::Jpeg(quality) => JpegEncoder::new_with_quality(&mut bytes, quality)
                .write_image(&image.rgb, width, height, color),
            Self::Png => {
                image::codecs::png::PngEncoder::new(&mut bytes).write_image(&image.rgb, width, height, color)
            }
        };
        written.map_err(|error| {
            Error::data(
                format!("an image of {height} x {width} (height x width)"),
                error.to_string(),
                "an image that can be encoded",
                "choose another size or format",
            )
        })?;
        Ok(bytes.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::decode::decode;

    #[test]
    fn images_are_read_back() {
        let rgb: Vec<u8> = (0..16 * 12_u8).flat_map(|at| [at, at / 2, 255 - at]).collect();
        let image = Image { rgb, height: 12, width: 16 };
        let back = |encoding: Encoding| {
            decode(&encoding.encode(&image).unwrap(), [12, 16], false, || "x".into()).unwrap()
        };
        assert_eq!(back(Encoding::Png), image);
        let worst = |other: &Image| image.rgb.iter().zip(&other.rgb).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst(&back(Encoding::Jpeg(100))) <= Some(12), "{:?}", worst(&back(Encoding::Jpeg(100))));
        let empty = Image { rgb: Vec::new(), height: 0, width: 0 };
        assert!(Encoding::Jpeg(95).encode(&empty).is_err());
    }
}
