//! From the bytes of an image file to upright RGB pixels: Pillow's `convert("RGB")` of `ImageOps.exif_transpose`, with
//! what is transparent laid on a background. [`DecodeOptions::as_stored`] is `convert("RGB")` alone.
//!
//! | file holds | becomes |
//! |---|---|
//! | grey | the level in each channel |
//! | a palette, 1, 2 or 4 bits | its colours |
//! | alpha, or one transparent colour | laid on [`DecodeOptions::background`], or the colour that is stored |
//! | 16 bits a channel | the upper 8 bits |
//! | 16 bits of grey alone | the level, at most 255: Pillow takes it for a count, and clips it |
//! | CMYK or YCCK (JPEG) | inverted as Adobe stores it, then multiplied by black |
//! | several frames (GIF, WebP) | the first |
//! | colour profile | left alone |
//! | EXIF orientation | applied, or left alone where [`DecodeOptions::orient`] says so; one that is damaged is none. In PNG also of the text `Raw profile type exif`, which ImageMagick wrote before PNG had a chunk for it |
//!
//! JPEG, which most datasets hold, is read by [`Jpeg`], whose pixels are those of Pillow's libjpeg-turbo to the bit. It
//! makes up what damaged data lack, as Pillow does, and that is told ([`Decoded::damaged`]); a JPEG without its end marker
//! is an error, also as in Pillow.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, ImageReader, ImageResult};
use serde::{Deserialize, Serialize};

use super::background::Background;
use super::jpeg::{self, Jpeg, TRUNCATED};
use super::text::find_png_text;
use super::{RgbImage, lay_over};
use crate::Error;
use crate::files::is_lfs_pointer;

/// A file's fault in words, to which the sample's name is added.
type Result<T, E = String> = std::result::Result<T, E>;

/// Formats that are read.
const FORMATS: [ImageFormat; 5] =
    [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp];

/// Limits of decoding, and what is made of orientation and transparency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeOptions {
    /// Most pixels that an image may have; larger ones are refused before memory is taken for them.
    pub max_pixels: u64,
    /// True if the image is turned and mirrored as its EXIF orientation says (Pillow: `ImageOps.exif_transpose`).
    pub orient: bool,
    /// What stands behind transparent pixels.
    pub background: Background,
}

impl DecodeOptions {
    /// Pixels as they lie in the file, and the colours that are stored under transparent ones.
    pub fn as_stored() -> Self {
        DecodeOptions { orient: false, background: Background::KeepHidden, ..Self::default() }
    }
}

/// What was found while an image was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Width and height, upright if it was turned.
    pub size: (usize, usize),
    /// True if its EXIF orientation is another than that of the stored pixels.
    pub tagged: bool,
    /// True if a pixel is not opaque.
    pub transparent: bool,
    /// True if grey of 16 bits has levels above 255, which became white.
    pub clipped: bool,
    /// True if data of a JPEG are damaged, so that some pixels are made up.
    pub damaged: bool,
}

impl Default for DecodeOptions {
    /// Pillow's limit of 178,956,970 pixels (above which it suspects a decompression bomb); upright, on white.
    fn default() -> Self {
        DecodeOptions { max_pixels: 2 * 89_478_485, orient: true, background: Background::WHITE }
    }
}

/// Width and height of an image file as its pixels are stored, from its header alone. `key` names the sample in errors.
///
/// # Errors
/// [`Error::BadImage`] if the format is not known or the header is damaged.
pub fn dimensions(key: &str, bytes: &[u8]) -> crate::Result<(usize, usize)> {
    let bad = |detail: String| Error::BadImage { key: key.to_owned(), detail };
    if is_jpeg(bytes) {
        let size = Jpeg::open(bytes).map_err(|fault| bad(jpeg_fault(bytes, fault)))?.size();
        check_sides(size).map_err(bad)?;
        return Ok(size);
    }
    let (width, height) = reader(bytes).map_err(bad)?.into_dimensions().map_err(|e| bad(e.to_string()))?;
    Ok((width as usize, height as usize))
}

/// Decodes into `out`, `[height, width, 3]`, whose memory is used again.
///
/// # Errors
/// [`Error::BadImage`] if the file is damaged, of a format that is not known, or beyond the limit of pixels.
pub(crate) fn decode_rgb_into(
    key: &str,
    bytes: &[u8],
    options: &DecodeOptions,
    out: &mut Vec<u8>,
) -> crate::Result<Decoded> {
    rgb_into(bytes, options, out).map_err(|detail| Error::BadImage { key: key.to_owned(), detail })
}

fn rgb_into(bytes: &[u8], options: &DecodeOptions, out: &mut Vec<u8>) -> Result<Decoded> {
    if is_jpeg(bytes) {
        return jpeg_into(bytes, options, out);
    }
    let (image, tagged) = any(bytes, options)?;
    let size = (image.width() as usize, image.height() as usize);
    let clipped = is_clipped(&image);
    let image = upper_bytes(image);
    let (pixels, transparent) = match image.color().has_alpha() {
        true => without_alpha(&image.into_rgba8(), options.background),
        false => (image.into_rgb8().into_raw(), false),
    };
    *out = pixels;
    Ok(Decoded { size, tagged, transparent, clipped, damaged: false })
}

/// Pixels `[height, width, 4]` as `[height, width, 3]`, and whether one of them is not opaque.
pub(super) fn without_alpha(pixels: &[u8], background: Background) -> (Vec<u8>, bool) {
    let transparent = pixels.as_chunks::<4>().0.iter().any(|pixel| pixel[3] != 255);
    let rgb = match background {
        Background::Colour(colour) if transparent => lay_over(pixels, colour),
        _ => pixels.as_chunks::<4>().0.iter().flat_map(|[r, g, b, _]| [*r, *g, *b]).collect(),
    };
    (rgb, transparent)
}

/// Decodes any format, with the channels that it has, 8 bits each.
///
/// # Errors
/// [`Error::BadImage`] if the file is damaged, of a format that is not known, or beyond the limit of pixels.
pub(super) fn decode_any(key: &str, bytes: &[u8]) -> crate::Result<DynamicImage> {
    let bad = |detail: String| Error::BadImage { key: key.to_owned(), detail };
    if is_jpeg(bytes) {
        return Ok(DynamicImage::ImageRgb8(rgb_buffer(RgbImage::decode(key, bytes)?)));
    }
    Ok(upper_bytes(any(bytes, &DecodeOptions::default()).map_err(bad)?.0))
}

/// Decodes any format, upright if asked; also says whether its orientation is another than that of its pixels.
fn any(bytes: &[u8], options: &DecodeOptions) -> Result<(DynamicImage, bool)> {
    let mut decoder = reader(bytes)?.into_decoder().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions();
    check_pixels(width as usize, height as usize, options)?;
    let orientation = orientation(&mut decoder, bytes);
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| e.to_string())?;
    if options.orient {
        image.apply_orientation(orientation);
    }
    Ok((image, orientation != Orientation::NoTransforms))
}

/// The orientation that the EXIF fields of the file `bytes` say, or where they say none, its XMP packet, as in Pillow.
/// Metadata that cannot be read say none: the image is good without them.
pub fn orientation(decoder: &mut impl ImageDecoder, bytes: &[u8]) -> Orientation {
    let exif = decoder.exif_metadata().ok().flatten().or_else(|| raw_profile(bytes));
    let xmp = decoder.xmp_metadata().ok().flatten();
    orientation_of(exif.as_deref(), xmp.as_deref())
}

fn orientation_of(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let of_exif = |exif: &[u8]| Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif));
    exif.and_then(of_exif).or_else(|| xmp.and_then(xmp_orientation)).unwrap_or(Orientation::NoTransforms)
}

/// EXIF fields as hexadecimal digits in a text of a PNG file, behind an empty line, their kind, and their length.
fn raw_profile(png: &[u8]) -> Option<Vec<u8>> {
    let text = find_png_text(png, "Raw profile type exif")?;
    let digits: Vec<u8> = text.split('\n').skip(3).flat_map(str::bytes).filter(u8::is_ascii_graphic).collect();
    let nibble = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    digits.as_chunks::<2>().0.iter().map(|[high, low]| Some(nibble(*high)? << 4 | nibble(*low)?)).collect()
}

/// `tiff:Orientation="6"` or `<tiff:Orientation>6<`.
fn xmp_orientation(packet: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    let at = packet.windows(NAME.len()).position(|window| window == NAME)?;
    match &packet[at + NAME.len()..] {
        [b'>', digit, ..] | [b'=', b'"', digit, ..] => Orientation::from_exif(digit.wrapping_sub(b'0')),
        _ => None,
    }
}

fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>> {
    if is_lfs_pointer(bytes) {
        return Err("a pointer of Git LFS, not the image: fetch the file itself with `git lfs pull`".to_owned());
    }
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    match reader.format() {
        Some(format) if FORMATS.contains(&format) => Ok(reader),
        _ => Err(format!("none of PNG, JPEG, WebP, GIF and BMP ({} bytes)", bytes.len())),
    }
}

fn check_sides((width, height): (usize, usize)) -> Result<()> {
    if width == 0 || height == 0 { Err(format!("{width}x{height} pixels")) } else { Ok(()) }
}

fn check_pixels(width: usize, height: usize, options: &DecodeOptions) -> Result<()> {
    check_sides((width, height))?;
    let (width, height) = (width as u64, height as u64);
    if width.saturating_mul(height) > options.max_pixels {
        return Err(format!("{width}x{height} pixels are more than the limit of {}", options.max_pixels));
    }
    Ok(())
}

/// True if [`upper_bytes`] clips levels.
fn is_clipped(image: &DynamicImage) -> bool {
    image.as_luma16().is_some_and(|grey| grey.as_raw().iter().any(|level| *level > 255))
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

fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\xff\xd8\xff")
}

/// A decoder of the JPEG `bytes` with the channels that it has, grey or RGB: pixels as Pillow's `convert`, as stored.
///
/// # Errors
/// Here and while it decodes: [`image::ImageError::Decoding`] if the file is damaged so that Pillow refuses it, or is of
/// a coding that is not read (arithmetic, lossless, 12 bits).
pub fn jpeg_decoder(bytes: &[u8]) -> ImageResult<impl ImageDecoder + '_> {
    Jpeg::open(bytes).map_err(jpeg::fault)
}

fn jpeg_into(bytes: &[u8], options: &DecodeOptions, out: &mut Vec<u8>) -> Result<Decoded> {
    let jpeg = Jpeg::open(bytes).map_err(|fault| jpeg_fault(bytes, fault))?;
    let (width, height) = jpeg.size();
    check_pixels(width, height, options)?;
    if !jpeg_is_whole(bytes) {
        return Err(TRUNCATED.to_owned());
    }
    out.resize(3 * width * height, 0);
    let orientation = orientation_of(jpeg.exif(), jpeg.xmp());
    let damaged = jpeg.decode_into(out)?;
    let tagged = orientation != Orientation::NoTransforms;
    let mut size = (width, height);
    if tagged && options.orient {
        let image = RgbImage::new(width, height, std::mem::take(out)).map_err(|e| e.to_string())?;
        let mut image = DynamicImage::ImageRgb8(rgb_buffer(image));
        image.apply_orientation(orientation);
        size = (image.width() as usize, image.height() as usize);
        *out = image.into_rgb8().into_raw();
    }
    Ok(Decoded { size, tagged, transparent: false, clipped: false, damaged })
}

/// What is wrong with a JPEG's head: of a file that ends early it is that.
fn jpeg_fault(bytes: &[u8], fault: String) -> String {
    if jpeg_is_whole(bytes) { fault } else { TRUNCATED.to_owned() }
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
