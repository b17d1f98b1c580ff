//! What an encoded image is, without decoding it.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageFormat, ImageReader};

/// What the header of an encoded image says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// How it is encoded.
    pub format: ImageFormat,
    /// Its size as it is to be shown, `[H, W]`.
    pub size: [usize; 2],
    /// Whether it is stored without colour.
    pub grey: bool,
    /// Whether its rows and columns are stored in another order than they are to be shown in.
    pub turned: bool,
}

/// Reads the header of `encoded`; `None` where it is no image of a format that is read, or damaged in its
/// header.
pub fn probe(encoded: &[u8]) -> Option<Probe> {
    let reader = ImageReader::new(Cursor::new(encoded)).with_guessed_format().ok()?;
    let format = reader.format()?;
    let mut decoder = reader.into_decoder().ok()?;
    let orientation = decoder.orientation().ok()?;
    let (width, height) = decoder.dimensions();
    let (width, height) = (width as usize, height as usize);
    let size = match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => [width, height],
        _ => [height, width],
    };
    let grey =
        matches!(decoder.color_type(), ColorType::L8 | ColorType::La8 | ColorType::L16 | ColorType::La16);
    Some(Probe { format, size, grey, turned: orientation != Orientation::NoTransforms })
}

/// The file name's extension for an encoded image.
pub fn extension(encoded: &[u8]) -> Option<&'static str> {
    Some(match image::guess_format(encoded).ok()? {
        ImageFormat::Jpeg => "jpg",
        ImageFormat::Png => "png",
        ImageFormat::Bmp => "bmp",
        ImageFormat::WebP => "webp",
        ImageFormat::Pnm => match encoded.get(..2) {
            Some(b"P2" | b"P5") => "pgm",
            Some(b"P3" | b"P6") => "ppm",
            _ => "pnm",
        },
        _ => return None,
    })
}

/// The format's name in messages.
pub fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::Bmp => "BMP",
        ImageFormat::WebP => "WebP",
        ImageFormat::Pnm => "PNM",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    #[test]
    fn headers_are_read() {
        for (format, expected) in [
            (ImageFormat::Jpeg, "jpg"),
            (ImageFormat::Png, "png"),
            (ImageFormat::Bmp, "bmp"),
            (ImageFormat::WebP, "webp"),
            (ImageFormat::Pnm, "pnm"),
        ] {
            let mut bytes = Cursor::new(Vec::new());
            RgbImage::new(6, 4).write_to(&mut bytes, format).unwrap();
            let bytes = bytes.into_inner();
            assert_eq!(probe(&bytes), Some(Probe { format, size: [4, 6], grey: false, turned: false }));
            assert_eq!(extension(&bytes), Some(expected));
        }
        let (grey, colour) = (b"P5 1 1 255\n\x07", b"P6 1 1 255\n\x07\x08\x09");
        assert!(probe(grey).unwrap().grey && !probe(colour).unwrap().grey);
        assert_eq!((extension(grey), extension(colour)), (Some("pgm"), Some("ppm")));
        for nothing in [&b""[..], b"text", b"GIF89a\x01\x00\x01\x00", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"] {
            assert_eq!(probe(nothing), None, "{}", nothing.escape_ascii());
        }
    }
}
