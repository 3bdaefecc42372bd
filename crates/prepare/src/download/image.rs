//! From the bytes of an image to those of the sample: check, decode, resize, encode.

use std::io::{Cursor, ErrorKind};

use calotype_data::Error;
use calotype_data::image::{
    Background, DecodeOptions, Decoded, Filter, PngEffort, RgbImage, RgbaImage, jpeg_decoder, orientation,
};
use image::codecs::webp::WebPEncoder;
use image::metadata::Orientation;
use image::{
    ColorType, DynamicImage, ExtendedColorType, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader,
    ImageResult, Limits,
};
use serde::Serialize;

use super::failure::{Failure, FailureKind};

/// Method of bringing an image to size, with img2dataset's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum ResizeMode {
    /// Leave the size as it is.
    No,
    /// Longer side to the size, the rest filled with white up to a square.
    Border,
    /// Shorter side to the size.
    KeepRatio,
    /// Longer side to the size.
    KeepRatioLargest,
    /// Shorter side to the size, then the middle square.
    CenterCrop,
}

/// Formats of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum EncodeFormat {
    /// JPEG.
    Jpg,
    /// PNG.
    Png,
    /// WebP, without loss.
    Webp,
}

impl EncodeFormat {
    /// Extension of a sample's part.
    pub fn extension(self) -> &'static str {
        match self {
            EncodeFormat::Jpg => "jpg",
            EncodeFormat::Png => "png",
            EncodeFormat::Webp => "webp",
        }
    }

    fn format(self) -> ImageFormat {
        match self {
            EncodeFormat::Jpg => ImageFormat::Jpeg,
            EncodeFormat::Png => ImageFormat::Png,
            EncodeFormat::Webp => ImageFormat::WebP,
        }
    }
}

/// Pillow's filters, also by the names that OpenCV and img2dataset have for their like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// The nearest pixel.
    Nearest,
    /// Mean of the pixels covered.
    #[value(alias = "box")]
    Area,
    /// Triangle.
    #[value(alias = "linear")]
    Bilinear,
    /// Cubic, a = -0.5.
    #[value(alias = "cubic")]
    Bicubic,
    /// Windowed sinc of radius 3.
    #[value(alias = "lanczos4")]
    Lanczos,
}

impl Interpolation {
    fn filter(self) -> Filter {
        match self {
            Interpolation::Nearest => Filter::Nearest,
            Interpolation::Area => Filter::Box,
            Interpolation::Bilinear => Filter::Bilinear,
            Interpolation::Bicubic => Filter::Bicubic,
            Interpolation::Lanczos => Filter::Lanczos3,
        }
    }
}

/// Treatment of each image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageOptions {
    /// Method of bringing it to size.
    pub mode: ResizeMode,
    /// The size, in pixels.
    pub size: u32,
    /// Leave images that are not bigger than the size.
    pub only_if_bigger: bool,
    /// Filter to enlarge with.
    pub upscale: Interpolation,
    /// Filter to shrink with.
    pub downscale: Interpolation,
    /// Format of the sample.
    pub format: EncodeFormat,
    /// JPEG's 1 to 100, or the compression of PNG, 0 to 9.
    pub quality: u8,
    /// Keep the bytes where the image is not resized and has the format already.
    pub skip_reencode: bool,
    /// Keep the bytes, whatever they are.
    pub disable_all_reencoding: bool,
    /// Shortest side allowed.
    pub min_size: u32,
    /// Largest area allowed, in pixels.
    pub max_area: f64,
    /// Largest ratio of the longer side to the shorter one.
    pub max_aspect: f64,
    /// Largest area that is decoded at all, in pixels.
    pub max_pixels: u64,
    /// Turn pixels upright where they are encoded anew.
    pub orient: bool,
    /// What stands behind transparent pixels that are encoded anew.
    pub background: Background,
}

/// A finished image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The sample's bytes; `None` if they are those that came in.
    pub encoded: Option<Vec<u8>>,
    /// Its sides, and those of the original: width, height, in pixels; unknown if nothing was decoded.
    pub sizes: Option<Sizes>,
    /// What there was besides pixels, where they were encoded anew.
    pub changed: Option<Decoded>,
}

/// Sides before and after, in pixels, upright where images are turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Of the sample.
    pub width: u32,
    /// Of the sample.
    pub height: u32,
    /// As it came.
    pub original_width: u32,
    /// As it came.
    pub original_height: u32,
}

/// An image that was looked at, but not decoded.
pub struct Opened<'a> {
    bytes: &'a [u8],
    format: ImageFormat,
    decoder: Box<dyn ImageDecoder + 'a>,
    orientation: Orientation,
}

/// Reads the head of an image.
///
/// # Errors
/// [`FailureKind::NotAnImage`], [`FailureKind::TooManyPixels`], [`FailureKind::Truncated`],
/// [`FailureKind::Undecodable`].
pub fn open<'a>(bytes: &'a [u8], options: &ImageOptions) -> Result<Opened<'a>, Failure> {
    let format = match image::guess_format(bytes) {
        Ok(
            format @ (ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP | ImageFormat::Gif | ImageFormat::Bmp),
        ) => format,
        _ => return Err(FailureKind::NotAnImage.into()),
    };
    let mut decoder = decoder(bytes, format, options).map_err(|error| failure(&error, format, bytes))?;
    let orientation = orientation(&mut decoder, bytes);
    let (width, height) = decoder.dimensions();
    let (to_width, to_height, _) = target(width, height, options).unwrap_or_default();
    // A line of pixels, brought to size by its shorter side, is a bomb of another kind.
    for (width, height) in [(u64::from(width), u64::from(height)), (to_width, to_height)] {
        if width * height > options.max_pixels {
            return Err(Failure::new(FailureKind::TooManyPixels, format!("{width}x{height}")));
        }
    }
    if width == 0 || height == 0 {
        return Err(Failure::new(FailureKind::Undecodable, format!("{width}x{height}")));
    }
    Ok(Opened { bytes, format, decoder, orientation })
}

fn decoder<'a>(
    bytes: &'a [u8],
    format: ImageFormat,
    options: &ImageOptions,
) -> ImageResult<Box<dyn ImageDecoder + 'a>> {
    if format == ImageFormat::Jpeg {
        return Ok(Box::new(jpeg_decoder(bytes)?));
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // The decoders' own buffers; sides are checked by the caller.
    let mut limits = Limits::default();
    limits.max_alloc = Some(options.max_pixels.saturating_mul(16));
    reader.limits(limits);
    Ok(Box::new(reader.into_decoder()?))
}

impl Opened<'_> {
    /// Bytes that decoding takes, and what is made of the pixels on the way: an estimate from above.
    pub fn memory(&self, options: &ImageOptions) -> u64 {
        let (width, height) = self.decoder.dimensions();
        let rgb = 7 * u64::from(width) * u64::from(height);
        let (to_width, to_height, _) = target(width, height, options).unwrap_or_default();
        // The resampler's first pass keeps the old height.
        let resized = 3 * to_width * (u64::from(height) + to_height) + 6 * u64::from(options.size).pow(2);
        self.decoder.total_bytes().saturating_add(rgb).saturating_add(resized)
    }

    /// Decodes, checks, resizes and encodes.
    ///
    /// # Errors
    /// A [`FailureKind`] of `failed_to_resize`.
    pub fn finish(self, options: &ImageOptions) -> Result<Image, Failure> {
        let stored = self.decoder.dimensions();
        let turn = if options.orient { self.orientation } else { Orientation::NoTransforms };
        let (original_width, original_height) = if swaps_sides(turn) { (stored.1, stored.0) } else { stored };
        check_sides(original_width, original_height, options)?;
        // Decoders fill what is missing of a JPEG with grey, and say nothing.
        if self.format == ImageFormat::Jpeg && is_cut(self.format, self.bytes) {
            return Err(FailureKind::Truncated.into());
        }
        let is_same_format = self.format == options.format.format();
        let (mut decoded, damaged) = match self.format {
            ImageFormat::Jpeg => jpeg(self.bytes, options)?,
            format => match DynamicImage::from_decoder(self.decoder) {
                Ok(decoded) => (decoded, false),
                Err(error) => return Err(failure(&error, format, self.bytes)),
            },
        };
        decoded.apply_orientation(turn);
        let has_alpha = matches!(
            decoded.color(),
            ColorType::La8 | ColorType::La16 | ColorType::Rgba8 | ColorType::Rgba16 | ColorType::Rgba32F
        );
        let (image, transparent) = rgb(decoded, has_alpha, options.background)?;
        let (image, resized) = resize(image, options)?;
        let sizes =
            Sizes { width: image.width() as u32, height: image.height() as u32, original_width, original_height };
        let keep = options.skip_reencode && is_same_format && !resized && !has_alpha;
        if keep {
            // The tag stays with the bytes, and turns them where they are read.
            return Ok(Image { encoded: None, sizes: Some(sizes), changed: None });
        }
        let (size, tagged) = ((image.width(), image.height()), self.orientation != Orientation::NoTransforms);
        // Grey of 16 bits is scaled here.
        let changed = Some(Decoded { size, tagged, transparent, clipped: false, damaged });
        Ok(Image { encoded: Some(encode(&image, options)?), sizes: Some(sizes), changed })
    }
}

/// The pixels of a JPEG as they are stored, and whether its data are damaged.
fn jpeg(bytes: &[u8], options: &ImageOptions) -> Result<(DynamicImage, bool), Failure> {
    let decode = DecodeOptions { max_pixels: options.max_pixels, ..DecodeOptions::as_stored() };
    let (image, found) = RgbImage::decode_noting("", bytes, &decode).map_err(|error| match error {
        Error::BadImage { detail, .. } => undecodable(&detail),
        error => undecodable(&error),
    })?;
    let (width, height) = (image.width() as u32, image.height() as u32);
    let pixels = ImageBuffer::from_raw(width, height, image.into_data());
    Ok((DynamicImage::ImageRgb8(pixels.expect("three bytes for each pixel")), found.damaged))
}

/// True if width and height change places.
fn swaps_sides(orientation: Orientation) -> bool {
    matches!(
        orientation,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    )
}

fn check_sides(width: u32, height: u32, options: &ImageOptions) -> Result<(), FailureKind> {
    let (short, long) = (width.min(height), width.max(height));
    if short < options.min_size {
        return Err(FailureKind::TooSmall);
    }
    if f64::from(width) * f64::from(height) > options.max_area {
        return Err(FailureKind::AreaTooLarge);
    }
    if f64::from(long) / f64::from(short) > options.max_aspect {
        return Err(FailureKind::AspectTooLarge);
    }
    Ok(())
}

/// RGB of eight bits, and whether a pixel was transparent.
fn rgb(decoded: DynamicImage, has_alpha: bool, background: Background) -> Result<(RgbImage, bool), Failure> {
    let (width, height) = (decoded.width() as usize, decoded.height() as usize);
    if has_alpha {
        let image = RgbaImage::new(width, height, decoded.into_rgba8().into_raw()).map_err(|e| undecodable(&e))?;
        return Ok((image.on(background), image.is_transparent()));
    }
    let image = RgbImage::new(width, height, decoded.into_rgb8().into_raw()).map_err(|e| undecodable(&e))?;
    Ok((image, false))
}

/// The size that the mode leads to, before it cuts or fills up, and whether the image shrinks; `None` if it stays as it is.
fn target(width: u32, height: u32, options: &ImageOptions) -> Option<(u64, u64, bool)> {
    let measure = match options.mode {
        ResizeMode::No => return None,
        ResizeMode::KeepRatio | ResizeMode::CenterCrop => width.min(height),
        ResizeMode::Border | ResizeMode::KeepRatioLargest => width.max(height),
    };
    if options.only_if_bigger && measure <= options.size {
        return None;
    }
    let scale = f64::from(options.size) / f64::from(measure);
    let side = |side: u32| ((f64::from(side) * scale).round_ties_even() as u64).max(1);
    Some((side(width), side(height), measure > options.size))
}

/// Resizes by the mode; also says whether anything was done.
fn resize(image: RgbImage, options: &ImageOptions) -> Result<(RgbImage, bool), Failure> {
    let Some((width, height, shrinks)) = target(image.width() as u32, image.height() as u32, options) else {
        return Ok((image, false));
    };
    let filter = if shrinks { options.downscale.filter() } else { options.upscale.filter() };
    let image = image.resize(width as usize, height as usize, filter).map_err(|e| undecodable(&e))?;
    let size = options.size as usize;
    let image = match options.mode {
        ResizeMode::CenterCrop => {
            let at = |side: usize| (side - size) / 2;
            image.crop(at(image.width()), at(image.height()), size, size).map_err(|e| undecodable(&e))?
        }
        ResizeMode::Border => bordered(&image, size)?,
        _ => image,
    };
    Ok((image, true))
}

/// The image in the middle of a white square; an odd pixel goes to the right and below.
fn bordered(image: &RgbImage, size: usize) -> Result<RgbImage, Failure> {
    let (left, top) = ((size - image.width()) / 2, (size - image.height()) / 2);
    let mut data = vec![255; 3 * size * size];
    for (y, row) in image.data().chunks_exact(3 * image.width()).enumerate() {
        let at = 3 * ((y + top) * size + left);
        data[at..at + row.len()].copy_from_slice(row);
    }
    RgbImage::new(size, size, data).map_err(|e| undecodable(&e))
}

fn encode(image: &RgbImage, options: &ImageOptions) -> Result<Vec<u8>, Failure> {
    let unencodable = |error: &dyn std::fmt::Display| Failure::new(FailureKind::Unencodable, error.to_string());
    let (width, height) = (image.width() as u32, image.height() as u32);
    let mut out = Vec::new();
    match options.format {
        EncodeFormat::Jpg => out = image.encode_jpeg(options.quality).map_err(|e| unencodable(&e))?,
        EncodeFormat::Webp => WebPEncoder::new_lossless(&mut out)
            .encode(image.data(), width, height, ExtendedColorType::Rgb8)
            .map_err(|e| unencodable(&e))?,
        EncodeFormat::Png => {
            let effort = match options.quality {
                0..=3 => PngEffort::Fast,
                4..=6 => PngEffort::Default,
                _ => PngEffort::Best,
            };
            out = image.encode_png(effort).map_err(|e| unencodable(&e))?;
        }
    }
    Ok(out)
}

fn undecodable(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureKind::Undecodable, error.to_string())
}

fn failure(error: &ImageError, format: ImageFormat, bytes: &[u8]) -> Failure {
    match error {
        ImageError::Limits(_) => FailureKind::TooManyPixels.into(),
        // A damaged stream inside of a complete file ends too early, too.
        ImageError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof && !tells_its_end(format) => {
            FailureKind::Truncated.into()
        }
        _ if is_cut(format, bytes) => FailureKind::Truncated.into(),
        error => undecodable(error),
    }
}

/// True if [`is_cut`] knows the format.
fn tells_its_end(format: ImageFormat) -> bool {
    matches!(format, ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP)
}

/// True if the file ends before it says.
fn is_cut(format: ImageFormat, bytes: &[u8]) -> bool {
    match format {
        ImageFormat::Jpeg => !jpeg_has_end(bytes),
        ImageFormat::Png => !png_has_end(bytes),
        // The length of what follows stands behind `RIFF`.
        ImageFormat::WebP => match bytes.get(4..8) {
            Some(&[a, b, c, d]) => (bytes.len() as u64) < 8 + u64::from(u32::from_le_bytes([a, b, c, d])),
            _ => true,
        },
        _ => false,
    }
}

/// True if the chunks up to `IEND` are all there (PNG specification, section 5.3: length, type, data, checksum).
fn png_has_end(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some(([a, b, c, d, kind @ ..], after)) = rest.split_first_chunk::<8>() {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        let Some(next) = length.checked_add(4).and_then(|end| after.get(end..)) else { return false };
        if kind == b"IEND" {
            return true;
        }
        rest = next;
    }
    false
}

/// True if the marker that ends a JPEG (EOI) comes after its scans (ITU-T T.81, annex B).
fn jpeg_has_end(bytes: &[u8]) -> bool {
    const START: u8 = 0xd8;
    const END: u8 = 0xd9;
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0xff)) {
        at += found + 1;
        match bytes.get(at) {
            Some(&END) => return true,
            // Fill bytes, stuffed zeros, restart markers and the start stand alone.
            Some(0xff) => {}
            Some(0x00 | 0x01 | 0xd0..=0xd7 | &START) => at += 1,
            // Any other marker has a length, its own two bytes included: thumbnails inside are passed over.
            Some(_) => match bytes.get(at + 1..at + 3) {
                Some(&[high, low]) => at += 1 + usize::from(u16::from_be_bytes([high, low])).max(2),
                _ => return false,
            },
            None => return false,
        }
    }
    false
}
