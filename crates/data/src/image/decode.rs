//! From the bytes of an image file to pixels, as Pillow's `Image.open(file).convert("RGB")` does.
//!
//! | file holds | becomes |
//! |---|---|
//! | grey | the level in each channel |
//! | a palette, 1, 2 or 4 bits | its colours |
//! | alpha, or one transparent colour | the colour that is stored, alpha dropped |
//! | 16 bits a channel | the upper 8 bits |
//! | 16 bits of grey alone | the level, at most 255: Pillow takes it for a count, and clips it |
//! | CMYK or YCCK (JPEG) | inverted as Adobe stores it, then multiplied by black |
//! | several frames (GIF, WebP) | the first |
//! | colour profile | left alone |
//! | EXIF orientation | left alone, or applied where [`DecodeOptions::orient`] says so |
//!
//! JPEG goes to `zune-jpeg` without a detour, because it is what most datasets hold. That decoder makes up what a
//! truncated file lacks; so, as in Pillow, a JPEG without its end marker is an error.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, ImageReader};
use serde::{Deserialize, Serialize};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use super::RgbImage;
use crate::Error;

/// A file's fault in words, to which the sample's name is added.
type Result<T, E = String> = std::result::Result<T, E>;

/// Formats that are read.
const FORMATS: [ImageFormat; 5] =
    [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp];

/// Limits of decoding, and whether it turns the image upright.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeOptions {
    /// Most pixels that an image may have; larger ones are refused before memory is taken for them.
    pub max_pixels: u64,
    /// True if the image is turned and mirrored as its EXIF orientation says (Pillow: `ImageOps.exif_transpose`).
    pub orient: bool,
}

impl Default for DecodeOptions {
    /// Pillow's limit of 178,956,970 pixels (above which it suspects a decompression bomb); pixels as they are stored.
    fn default() -> Self {
        DecodeOptions { max_pixels: 2 * 89_478_485, orient: false }
    }
}

/// Width and height of an image file, from its header alone. `key` names the sample in errors.
///
/// # Errors
/// [`Error::BadImage`] if the format is not known or the header is damaged.
pub fn dimensions(key: &str, bytes: &[u8]) -> crate::Result<(usize, usize)> {
    let bad = |detail: String| Error::BadImage { key: key.to_owned(), detail };
    let (width, height) = reader(bytes).map_err(bad)?.into_dimensions().map_err(|e| bad(e.to_string()))?;
    Ok((width as usize, height as usize))
}

/// Decodes into `out`, `[height, width, 3]`, whose memory is used again, and returns (width, height).
///
/// # Errors
/// [`Error::BadImage`] if the file is damaged, of a format that is not known, or beyond the limit of pixels.
pub(crate) fn decode_rgb_into(
    key: &str,
    bytes: &[u8],
    options: &DecodeOptions,
    out: &mut Vec<u8>,
) -> crate::Result<(usize, usize)> {
    rgb_into(bytes, options, out).map_err(|detail| Error::BadImage { key: key.to_owned(), detail })
}

fn rgb_into(bytes: &[u8], options: &DecodeOptions, out: &mut Vec<u8>) -> Result<(usize, usize)> {
    if bytes.starts_with(b"\xff\xd8\xff") {
        return jpeg_into(bytes, options, out);
    }
    let image = any(bytes, options)?;
    let size = (image.width() as usize, image.height() as usize);
    *out = upper_bytes(image).into_rgb8().into_raw();
    Ok(size)
}

/// Decodes any format, with the channels that it has, 8 bits each.
///
/// # Errors
/// [`Error::BadImage`] if the file is damaged, of a format that is not known, or beyond the limit of pixels.
pub(super) fn decode_any(key: &str, bytes: &[u8]) -> crate::Result<DynamicImage> {
    let bad = |detail: String| Error::BadImage { key: key.to_owned(), detail };
    if bytes.starts_with(b"\xff\xd8\xff") {
        return Ok(DynamicImage::ImageRgb8(rgb_buffer(RgbImage::decode(key, bytes)?)));
    }
    Ok(upper_bytes(any(bytes, &DecodeOptions::default()).map_err(bad)?))
}

fn any(bytes: &[u8], options: &DecodeOptions) -> Result<DynamicImage> {
    let mut decoder = reader(bytes)?.into_decoder().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions();
    check_pixels(u64::from(width), u64::from(height), options)?;
    let orientation = match options.orient {
        true => decoder.orientation().map_err(|e| e.to_string())?,
        false => Orientation::NoTransforms,
    };
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    match reader.format() {
        Some(format) if FORMATS.contains(&format) => Ok(reader),
        _ => Err(format!("none of PNG, JPEG, WebP, GIF and BMP ({} bytes)", bytes.len())),
    }
}

fn check_pixels(width: u64, height: u64, options: &DecodeOptions) -> Result<()> {
    if width == 0 || height == 0 {
        return Err(format!("{width}x{height} pixels"));
    }
    if width.saturating_mul(height) > options.max_pixels {
        return Err(format!("{width}x{height} pixels are more than the limit of {}", options.max_pixels));
    }
    Ok(())
}

/// Of 16 bits the upper 8, which is how Pillow reads such files (`RGB;16B` and its like); rounding would be 1 off. Grey
/// alone it opens in mode `I;16`, whose conversion clips.
fn upper_bytes(image: DynamicImage) -> DynamicImage {
    fn upper(levels: Vec<u16>) -> Vec<u8> {
        levels.into_iter().map(|level| (level >> 8) as u8).collect()
    }
    let (width, height) = (image.width(), image.height());
    let narrowed = match image {
        DynamicImage::ImageLuma16(p) => {
            let clipped = p.into_raw().into_iter().map(|level| level.min(255) as u8).collect();
            ImageBuffer::from_raw(width, height, clipped).map(DynamicImage::ImageLuma8)
        }
        DynamicImage::ImageLumaA16(p) => {
            ImageBuffer::from_raw(width, height, upper(p.into_raw())).map(DynamicImage::ImageLumaA8)
        }
        DynamicImage::ImageRgb16(p) => {
            ImageBuffer::from_raw(width, height, upper(p.into_raw())).map(DynamicImage::ImageRgb8)
        }
        DynamicImage::ImageRgba16(p) => {
            ImageBuffer::from_raw(width, height, upper(p.into_raw())).map(DynamicImage::ImageRgba8)
        }
        other => Some(other),
    };
    narrowed.expect("as many levels as before")
}

fn jpeg_into(bytes: &[u8], options: &DecodeOptions, out: &mut Vec<u8>) -> Result<(usize, usize)> {
    let settings = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), settings);
    decoder.decode_headers().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("a JPEG without a size")?;
    check_pixels(width as u64, height as u64, options)?;
    if !jpeg_is_whole(bytes) {
        return Err("truncated: the JPEG has no end marker".to_owned());
    }
    out.resize(3 * width * height, 0);
    decoder.decode_into(out).map_err(|e| e.to_string())?;
    let orientation = decoder.exif().filter(|_| options.orient).and_then(|exif| Orientation::from_exif_chunk(exif));
    match orientation {
        None | Some(Orientation::NoTransforms) => Ok((width, height)),
        Some(orientation) => {
            let image = RgbImage::new(width, height, std::mem::take(out)).map_err(|e| e.to_string())?;
            let mut image = DynamicImage::ImageRgb8(rgb_buffer(image));
            image.apply_orientation(orientation);
            let size = (image.width() as usize, image.height() as usize);
            *out = image.into_rgb8().into_raw();
            Ok(size)
        }
    }
}

fn rgb_buffer(image: RgbImage) -> image::RgbImage {
    let (width, height) = (image.width() as u32, image.height() as u32);
    ImageBuffer::from_raw(width, height, image.into_data()).expect("three bytes for each pixel")
}

/// True if the JPEG's end marker follows its last scan. Before the first scan lengths lead from marker to marker (a
/// thumbnail in there has an end marker of its own); in a scan, 0xFF is followed by 0 or a restart marker.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        let Some(step) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0xff)) else {
            return false;
        };
        at += step + 1;
        match bytes.get(at) {
            None => return false,
            Some(0xd9) => return true,
            // Padding: the marker's code comes later.
            Some(0xff) => continue,
            // Bytes of a scan, restart markers, and markers without a length.
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 1,
            Some(_) => {
                let Some(length) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2);
            }
        }
    }
}
