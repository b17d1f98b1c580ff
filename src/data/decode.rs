//! Encoded image to RGB at the network's input size. The format is recognised by content, never by name.

use std::io::Cursor;

use image::imageops::{self, FilterType};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};

use super::Image;
use crate::{Error, Result};

/// Beyond this ratio of its sides an image is not resized: the scaled long side would be of no use and
/// could be made to exhaust memory.
const MAX_ASPECT: u64 = 16;

/// Most bytes that an image may take when decoded: a few bytes of header can declare more than there is memory.
const MAX_DECODED: u64 = 512 << 20;

const FORMATS: &str = "a JPEG, PNG, BMP, PGM or WebP image";

/// Decodes `encoded` to `size` = `[H, W]`. Grey becomes RGB, alpha is dropped, 16 bits become 8, and the Exif
/// orientation is applied. An image of another size is scaled by its short side and cropped at the centre
/// if `resize` is set.
///
/// # Errors
/// Names the image as `place()` does: not an image, damaged, or, without `resize`, of another size.
pub fn decode(encoded: &[u8], size: [usize; 2], resize: bool, place: impl Fn() -> String) -> Result<Image> {
    let damaged = |error: image::ImageError| {
        Error::data(
            place(),
            format!("an image that cannot be decoded ({error})"),
            FORMATS,
            "replace or remove it",
        )
    };
    let reader = ImageReader::new(Cursor::new(encoded))
        .with_guessed_format()
        .map_err(|error| damaged(image::ImageError::IoError(error)))?;
    if reader.format().is_none() {
        let found = if encoded.is_empty() { "no bytes" } else { "bytes that are not an image" };
        return Err(Error::data(place(), found, FORMATS, "replace or remove it"));
    }
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let orientation = decoder.orientation().map_err(damaged)?;
    let (mut width, mut height) = decoder.dimensions();
    if turns(orientation) {
        std::mem::swap(&mut width, &mut height);
    }
    let [target_height, target_width] = size;
    let fits = height as usize == target_height && width as usize == target_width;
    // Before decoding, so that a wrong size costs nothing and a huge one cannot exhaust memory.
    if !fits && !resize {
        return Err(Error::data(
            place(),
            format!("an image of {height} x {width} (height x width)"),
            format!("{target_height} x {target_width}"),
            "align the images to the input size, or have them resized: data.resize = true, on a command line --resize",
        ));
    }
    let (short, long) = (u64::from(height.min(width)), u64::from(height.max(width)));
    if short == 0 || (!fits && long > MAX_ASPECT * short) {
        return Err(Error::data(
            place(),
            format!("an image of {height} x {width} (height x width)"),
            format!("sides in a ratio of at most {MAX_ASPECT}"),
            "replace or remove it",
        ));
    }
    if decoder.total_bytes() > MAX_DECODED {
        return Err(Error::data(
            place(),
            format!(
                "an image of {height} x {width} (height x width), {} bytes decoded",
                decoder.total_bytes()
            ),
            format!("at most {} MiB decoded", MAX_DECODED >> 20),
            "scale it down, replace or remove it",
        ));
    }
    // What a decoder allocates beside the pixels is bounded too.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODED);
    decoder.set_limits(limits).map_err(damaged)?;
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    decoded.apply_orientation(orientation);
    let rgb = decoded.into_rgb8();
    let rgb = if fits { rgb } else { cover(&rgb, size) };
    Ok(Image { rgb: rgb.into_raw(), height: target_height, width: target_width })
}

fn turns(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90
            | Orientation::Rotate270
            | Orientation::Rotate90FlipH
            | Orientation::Rotate270FlipH
    )
}

/// The smallest scaled copy that covers `[H, W]`, cropped at the centre.
fn cover(image: &RgbImage, [height, width]: [usize; 2]) -> RgbImage {
    let (height, width) = (height as u32, width as u32);
    let scale =
        (f64::from(height) / f64::from(image.height())).max(f64::from(width) / f64::from(image.width()));
    let scaled_height = ((f64::from(image.height()) * scale).round() as u32).max(height);
    let scaled_width = ((f64::from(image.width()) * scale).round() as u32).max(width);
    let scaled = imageops::resize(image, scaled_width, scaled_height, FilterType::CatmullRom);
    let (left, top) = ((scaled_width - width) / 2, (scaled_height - height) / 2);
    imageops::crop_imm(&scaled, left, top, width, height).to_image()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageFormat, Luma, Rgb};

    fn encode(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| Rgb([(x * 9) as u8, (y * 7) as u8, (x + y) as u8]))
    }

    #[test]
    fn every_lossless_format_gives_the_same_pixels() {
        let image = gradient(6, 4);
        for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Pnm] {
            let decoded =
                decode(&encode(image.clone().into(), format), [4, 6], false, || "x".into()).unwrap();
            assert_eq!(decoded.rgb, image.as_raw().as_slice(), "{format:?}");
            assert_eq!((decoded.height, decoded.width), (4, 6));
        }
        let decoded =
            decode(&encode(image.clone().into(), ImageFormat::Jpeg), [4, 6], false, || "x".into()).unwrap();
        assert_eq!(decoded.rgb.len(), image.as_raw().len());
    }

    #[test]
    fn grey_becomes_rgb_and_alpha_is_dropped() {
        let grey = GrayImage::from_fn(3, 2, |x, y| Luma([(10 * x + y) as u8]));
        let decoded =
            decode(&encode(grey.clone().into(), ImageFormat::Pnm), [2, 3], false, || "x".into()).unwrap();
        let expected: Vec<u8> = grey.as_raw().iter().flat_map(|&value| [value; 3]).collect();
        assert_eq!(decoded.rgb, expected);

        let rgba = DynamicImage::from(gradient(3, 2)).into_rgba8();
        let decoded = decode(&encode(rgba.into(), ImageFormat::Png), [2, 3], false, || "x".into()).unwrap();
        assert_eq!(decoded.rgb, gradient(3, 2).into_raw());
    }

    #[test]
    fn a_wrong_size_is_named_with_both_sizes_and_the_way_out() {
        let png = encode(gradient(6, 4).into(), ImageFormat::Png);
        let error = decode(&png, [5, 5], false, || "a/b.png".into()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("a/b.png") && text.contains("4 x 6") && text.contains("5 x 5"), "{text}");
        assert!(error.hint().unwrap().contains("data.resize = true"));
    }

    #[test]
    fn resizing_scales_by_the_short_side_and_keeps_the_centre() {
        // Three vertical stripes, each as wide as the image is high: the middle one is what remains.
        let image = RgbImage::from_fn(30, 10, |x, _| Rgb([if (10..20).contains(&x) { 200 } else { 0 }; 3]));
        let decoded = decode(&encode(image.into(), ImageFormat::Png), [5, 5], true, || "x".into()).unwrap();
        assert_eq!((decoded.height, decoded.width), (5, 5));
        assert!(decoded.rgb.chunks(15).all(|row| row[6..9] == [200, 200, 200]), "{:?}", decoded.rgb);
        // Enlarging works too.
        let small = RgbImage::from_pixel(3, 4, Rgb([7, 8, 9]));
        let decoded = decode(&encode(small.into(), ImageFormat::Png), [8, 8], true, || "x".into()).unwrap();
        assert!(decoded.rgb.chunks(3).all(|pixel| pixel == [7, 8, 9]));
    }

    #[test]
    fn what_is_not_an_image_is_refused_by_name() {
        let mut truncated = encode(gradient(6, 4).into(), ImageFormat::Png);
        truncated.truncate(40);
        for bytes in
            [&b""[..], &b"plain text, not pixels"[..], &truncated[..], &b"GIF89a\x01\x00\x01\x00"[..]]
        {
            let error = decode(bytes, [4, 6], true, || "folder/file".into()).unwrap_err();
            assert!(error.to_string().contains("folder/file"), "{error}");
        }
        let sliver = encode(gradient(1, 17).into(), ImageFormat::Png);
        assert!(decode(&sliver, [4, 4], true, || "x".into()).is_err());
    }

    /// A PNG chunk with its checksum (CRC-32 of type and data, bit by bit).
    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let body = [&kind[..], data].concat();
        let crc = body.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
        });
        [&(data.len() as u32).to_be_bytes()[..], &body, &(!crc).to_be_bytes()].concat()
    }

    #[test]
    fn a_header_that_declares_more_than_memory_is_refused_before_decoding() {
        let side = 200_000_u32.to_be_bytes();
        // 8 bits of RGB, not interlaced.
        let header = [&side[..], &side, &[8, 2, 0, 0, 0]].concat();
        let png = [
            &b"\x89PNG\r\n\x1a\n"[..],
            &chunk(b"IHDR", &header),
            &chunk(b"IDAT", b"\x78\x9c\x03\x00\x00\x00\x00\x01"),
            &chunk(b"IEND", b""),
        ]
        .concat();
        let error = decode(&png, [112, 112], true, || "a/huge.png".into()).unwrap_err().to_string();
        for part in ["a/huge.png", "200000 x 200000", "512 MiB"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
}
