//! Encoded image to RGB at the network's input size. The format is recognised by content, never by name.

use std::fmt::Display;
use std::io::Cursor;

use image::imageops::{self, FilterType};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::Image;
use crate::{Error, Result};

/// Beyond this ratio of its sides an image is not resized: the scaled long side would be of no use and
/// could be made to exhaust memory.
const MAX_ASPECT: u64 = 16;

/// Most bytes that an image may take when decoded: a few bytes of header can declare more than there is memory.
const MAX_DECODED: u64 = 512 << 20;

/// Start of image, and the first byte of the marker that follows.
const JPEG_START: [u8; 3] = [0xff, 0xd8, 0xff];

/// How an image of another size is brought to the right one: what a cache of results has to know. It changes whenever
/// the same encoded image would be decoded to other samples.
pub const PREPARATION: &str = "short side to size by Catmull-Rom, centre crop";

const FORMATS: &str = "a JPEG, PNG, BMP, PGM or WebP image";

/// Decodes `encoded` to `size` = `[H, W]`. Grey becomes RGB, alpha is dropped, 16 bits become 8, and the Exif
/// orientation is applied. An image of another size is scaled by its short side and cropped at the centre
/// if `resize` is set.
///
/// # Errors
/// Names the image as `place()` does: not an image, damaged or cut off, or, without `resize`, of another size.
pub fn decode(encoded: &[u8], size: [usize; 2], resize: bool, place: impl Fn() -> String) -> Result<Image> {
    let [height, width] = size;
    let bytes = height.checked_mul(width).and_then(|pixels| pixels.checked_mul(3));
    // Here the size may be what the image says of itself, and a few bytes of header can say anything.
    let Some(bytes) = bytes.filter(|&bytes| bytes as u64 <= MAX_DECODED) else {
        return Err(Error::data(
            place(),
            format!("an image of {height} x {width} (height x width)"),
            format!("at most {} MiB decoded", MAX_DECODED >> 20),
            "scale it down, replace or remove it",
        ));
    };
    let mut rgb = vec![0; bytes];
    decode_into(encoded, size, resize, &mut rgb, place)?;
    Ok(Image { rgb, height, width })
}

/// [`decode`] into `slot`, `[H, W, 3]`. A JPEG image that is of the size already, which is what training data are made
/// of, is decoded straight into it.
///
/// # Errors
/// Those of [`decode`], and a slot of another length; it then holds anything.
pub fn decode_into(
    encoded: &[u8],
    size: [usize; 2],
    resize: bool,
    slot: &mut [u8],
    place: impl Fn() -> String,
) -> Result<()> {
    check_slot(slot, size, &place)?;
    let target = Target { size, resize, place: &place };
    if encoded.starts_with(&JPEG_START) {
        jpeg(encoded, &target, slot)
    } else {
        other(encoded, &target, slot)
    }
}

/// Refuses a slot that does not hold `[H, W, 3]`: a mistake of the caller, kept out of the panics.
pub(super) fn check_slot(slot: &[u8], [height, width]: [usize; 2], place: impl Fn() -> String) -> Result<()> {
    if slot.len() == height * width * 3 {
        return Ok(());
    }
    Err(Error::data(
        place(),
        format!("a slot of {} bytes", slot.len()),
        format!("{} ({height} x {width} x 3)", height * width * 3),
        "this is a fault of the program, please report it",
    ))
}

/// What an image is to become.
struct Target<'a> {
    size: [usize; 2],
    resize: bool,
    place: &'a dyn Fn() -> String,
}

impl Target<'_> {
    fn damaged(&self, why: impl Display) -> Error {
        Error::data(
            (self.place)(),
            format!("an image that cannot be decoded ({why})"),
            FORMATS,
            "replace or remove it",
        )
    }

    /// Whether an image of these sides, as the file has them, is of the right size when it is turned upright. Asked
    /// before decoding, so that a wrong size costs nothing and a huge one cannot exhaust memory.
    fn fits(
        &self,
        [mut height, mut width]: [u64; 2],
        turned: Orientation,
        decoded_bytes: u64,
    ) -> Result<bool> {
        if turns(turned) {
            std::mem::swap(&mut width, &mut height);
        }
        let [target_height, target_width] = self.size;
        let fits = height == target_height as u64 && width == target_width as u64;
        if !fits && !self.resize {
            return Err(Error::data(
                (self.place)(),
                format!("an image of {height} x {width} (height x width)"),
                format!("{target_height} x {target_width}"),
                "align the images to the input size, or have them resized: data.resize = true, on a command line --resize",
            ));
        }
        let (short, long) = (height.min(width), height.max(width));
        if short == 0 || (!fits && long > MAX_ASPECT * short) {
            return Err(Error::data(
                (self.place)(),
                format!("an image of {height} x {width} (height x width)"),
                format!("sides in a ratio of at most {MAX_ASPECT}"),
                "replace or remove it",
            ));
        }
        if decoded_bytes > MAX_DECODED {
            return Err(Error::data(
                (self.place)(),
                format!("an image of {height} x {width} (height x width), {decoded_bytes} bytes decoded"),
                format!("at most {} MiB decoded", MAX_DECODED >> 20),
                "scale it down, replace or remove it",
            ));
        }
        Ok(fits)
    }

    /// Turns a decoded image upright and brings it to size.
    fn finish(&self, mut decoded: DynamicImage, orientation: Orientation, fits: bool, slot: &mut [u8]) {
        decoded.apply_orientation(orientation);
        let rgb = decoded.into_rgb8();
        let rgb = if fits { rgb } else { cover(&rgb, self.size) };
        // Of equal lengths by construction; a fault there would show as a black picture.
        slot.fill(0);
        slot.iter_mut().zip(rgb.into_raw()).for_each(|(to, from)| *to = from);
    }
}

/// JPEG, by the decoder beneath the `image` crate: that reads the headers three times over, takes copies, and fills what
/// is missing of a truncated image with grey in silence.
fn jpeg(encoded: &[u8], target: &Target<'_>, slot: &mut [u8]) -> Result<()> {
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(encoded), options);
    decoder.decode_headers().map_err(|error| target.damaged(error))?;
    let Some((width, height)) = decoder.dimensions() else { return Err(target.damaged("no size")) };
    let exif = decoder.exif().and_then(|chunk| Orientation::from_exif_chunk(chunk));
    let orientation = exif.unwrap_or(Orientation::NoTransforms);
    let bytes = (height * width * 3) as u64;
    let fits = target.fits([height as u64, width as u64], orientation, bytes)?;
    if !has_end(encoded) {
        return Err(target.damaged("cut off: no end-of-image marker"));
    }
    // Headers may have oddities that no program minds; in the coded pixels an error is damage.
    decoder.set_options(options.set_strict_mode(true));
    if fits && orientation == Orientation::NoTransforms {
        return decoder.decode_into(slot).map_err(|error| target.damaged(error));
    }
    let pixels = decoder.decode().map_err(|error| target.damaged(error))?;
    let image = RgbImage::from_raw(width as u32, height as u32, pixels);
    let image = image.ok_or_else(|| target.damaged("fewer pixels than its header says"))?;
    target.finish(image.into(), orientation, fits, slot);
    Ok(())
}

/// Whether the marker of the image's end is behind its start of scan. Within coded pixels 0xff is always followed by zero
/// or a restart, so that it cannot be there by chance; in the headers it can, as the end of a thumbnail.
fn has_end(jpeg: &[u8]) -> bool {
    let mut scan = 2;
    while let Some(&[0xff, marker, high, low]) = jpeg.get(scan..scan + 4) {
        scan += match marker {
            // A fill byte.
            0xff => 1,
            _ => 2 + usize::from(u16::from_be_bytes([high, low])),
        };
        if marker == 0xda {
            break;
        }
    }
    // Mostly the last two bytes of the file.
    jpeg.get(scan..).unwrap_or_default().windows(2).rev().any(|pair| pair == [0xff, 0xd9])
}

/// All other formats.
fn other(encoded: &[u8], target: &Target<'_>, slot: &mut [u8]) -> Result<()> {
    let reader = ImageReader::new(Cursor::new(encoded))
        .with_guessed_format()
        .map_err(|error| target.damaged(error))?;
    if reader.format().is_none() {
        let found = if encoded.is_empty() { "no bytes" } else { "bytes that are not an image" };
        return Err(Error::data((target.place)(), found, FORMATS, "replace or remove it"));
    }
    let mut decoder = reader.into_decoder().map_err(|error| target.damaged(error))?;
    let orientation = decoder.orientation().map_err(|error| target.damaged(error))?;
    let (width, height) = decoder.dimensions();
    let fits = target.fits([u64::from(height), u64::from(width)], orientation, decoder.total_bytes())?;
    // What a decoder allocates beside the pixels is bounded too.
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_DECODED);
    decoder.set_limits(limits).map_err(|error| target.damaged(error))?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| target.damaged(error))?;
    target.finish(decoded, orientation, fits, slot);
    Ok(())
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

    /// Colours in blocks that chroma subsampling and a quality of 90 leave recognisable.
    fn portrait(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            let wave = (f64::from(x * x + 3 * y) / 40.0).sin() * 50.0;
            Rgb([(x * 5 % 256) as u8, (y * 5 % 256) as u8, (128.0 + wave) as u8])
        })
    }

    fn jpeg_of(image: DynamicImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(&image).unwrap();
        bytes
    }

    /// What the `image` crate makes of it.
    fn by_image_crate(bytes: &[u8]) -> RgbImage {
        image::load_from_memory(bytes).unwrap().into_rgb8()
    }

    #[test]
    fn jpeg_images_have_the_pixels_that_the_image_crate_gives() {
        let colour = portrait(50, 40);
        let grey = DynamicImage::from(colour.clone()).into_luma8();
        for image in [colour.clone().into(), grey.into()] {
            let bytes = jpeg_of(image);
            let mut slot = vec![7; 50 * 40 * 3];
            decode_into(&bytes, [40, 50], false, &mut slot, || "x".into()).unwrap();
            assert_eq!(slot, by_image_crate(&bytes).into_raw());
            // Junk behind the end changes nothing.
            let junk = [&bytes[..], &[0; 9]].concat();
            assert_eq!(decode(&junk, [40, 50], false, || "x".into()).unwrap().rgb, slot);
        }
        // Real files: libjpeg's encoder, 4:2:0, baseline, progressive and with restart markers.
        for bytes in FIXTURES {
            let image = by_image_crate(bytes);
            let size = [image.height() as usize, image.width() as usize];
            assert_eq!(decode(bytes, size, false, || "x".into()).unwrap().rgb, image.into_raw());
        }
        assert!(decode_into(&jpeg_of(colour.into()), [40, 50], false, &mut [0; 9], || "x".into()).is_err());
    }

    const FIXTURES: [&[u8]; 4] = [
        include_bytes!("../../tests/fixtures/jpeg/baseline.jpg"),
        include_bytes!("../../tests/fixtures/jpeg/progressive.jpg"),
        include_bytes!("../../tests/fixtures/jpeg/restart.jpg"),
        include_bytes!("../../tests/fixtures/jpeg/grey.jpg"),
    ];

    #[test]
    fn a_cut_off_jpeg_image_is_an_error_wherever_it_is_cut() {
        for whole in FIXTURES {
            let image = by_image_crate(whole);
            let size = [image.height() as usize, image.width() as usize];
            for length in 0..whole.len() {
                let cut = decode(&whole[..length], size, false, || "a/b.jpg".into());
                let error = cut.err().unwrap_or_else(|| panic!("{length} of {} bytes decode", whole.len()));
                assert!(error.to_string().contains("a/b.jpg"), "{error}");
            }
        }
    }

    #[test]
    fn a_thumbnail_does_not_hide_that_the_image_is_cut_off() {
        let whole = jpeg_of(portrait(20, 20).into());
        // An application segment that holds a whole image.
        let segment = [&[0xff, 0xe1][..], &(whole.len() as u16 + 2).to_be_bytes(), &whole].concat();
        let with_thumbnail = [&whole[..2], &segment, &whole[2..]].concat();
        let decoded = decode(&with_thumbnail, [20, 20], false, || "x".into()).unwrap();
        assert_eq!(decoded.rgb, by_image_crate(&whole).into_raw());
        let cut = &with_thumbnail[..with_thumbnail.len() - 10];
        assert!(decode(cut, [20, 20], false, || "x".into()).is_err());
    }

    #[test]
    fn the_exif_orientation_is_applied() {
        let image = portrait(24, 16);
        let mut bytes = jpeg_of(image.into());
        let upright = by_image_crate(&bytes);
        // Orientation 6: turn by 90 degrees clockwise for viewing. Little-endian TIFF with one entry.
        let tiff = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let segment = [&[0xff, 0xe1][..], &(tiff.len() as u16 + 2).to_be_bytes(), tiff].concat();
        bytes.splice(2..2, segment);
        let expected = imageops::rotate90(&upright);
        assert_eq!(decode(&bytes, [24, 16], false, || "x".into()).unwrap().rgb, expected.into_raw());
        let error = decode(&bytes, [16, 24], false, || "x".into()).unwrap_err().to_string();
        assert!(error.contains("24 x 16"), "{error}");
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
    fn a_size_that_a_header_only_claims_is_refused_before_anything_is_allocated() {
        for size in [[99_999_999, 99_999_999], [usize::MAX, usize::MAX], [usize::MAX, 1]] {
            let error = decode(b"P5\n99999999 99999999\n255\n", size, false, || "a.pgm".into()).unwrap_err();
            assert!(error.to_string().contains("a.pgm") && error.to_string().contains("512 MiB"), "{error}");
        }
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
