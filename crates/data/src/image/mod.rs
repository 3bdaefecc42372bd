//! 8-bit images: decoding, encoding, Pillow-exact resizing, cropping, compositing.
//!
//! The reference systems prepare their data with Pillow, and a resize that differs in the last bit moves FID by more
//! than a change of the training does (Parmar, Zhang & Zhu, "On Aliased Resizing and Surprising Subtleties in GAN
//! Evaluation", 2022). So these functions repeat its integer arithmetic, and the tests compare byte for byte.
//! JPEGs are decoded to Pillow's pixels, too; of lossy WebP, decoders differ by a few levels.

mod affine;
mod background;
mod decode;
mod enhance;
pub mod floats;
mod interpolate;
mod jpeg;
mod levels;
mod lookup;
pub(crate) mod resample;
pub mod text;
mod torch;

use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use jpeg_encoder::ColorType as JpegColour;

use crate::{Error, Result};
pub use affine::{Matrix, Sampling};
pub use background::{Background, DecodeNotes, UnknownBackground};
pub(crate) use decode::decode_rgb_into;
pub use decode::{DecodeOptions, Decoded, dimensions, jpeg_decoder, orientation};
pub use interpolate::{FloatImage, Interpolation};
pub(crate) use levels::{LevelTable, append_levels, append_looked_up};
pub(crate) use resample::Crop;
pub use resample::Filter;

/// An RGB image, rows from the top, `[height, width, 3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

/// An image with (straight, not premultiplied) alpha, rows from the top, `[height, width, 4]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbaImage {
    width: usize,
    height: usize,
    data: Vec<u8>,
}

/// Effort of PNG encoding; the image is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PngEffort {
    /// Fastest.
    #[default]
    Fast,
    /// Smaller files, several times slower.
    Default,
    /// Smallest files.
    Best,
}

impl RgbImage {
    /// An image of `width` x `height` pixels from `data`, `[height, width, 3]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the lengths disagree or a side is 0.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Self> {
        check_size(width, height, 3, data.len())?;
        Ok(RgbImage { width, height, data })
    }

    /// An image of one colour; errors as [`RgbImage::new`].
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Result<Self> {
        RgbImage::new(width, height, colour.repeat(width * height))
    }

    /// Decodes a PNG, JPEG, WebP, GIF or BMP with the default [`DecodeOptions`]: upright, and on white where it is
    /// transparent. `key` names the sample in errors.
    ///
    /// # Errors
    /// [`Error::BadImage`] if the file is damaged, of a format that is not known, or beyond the limit of pixels.
    pub fn decode(key: &str, bytes: &[u8]) -> Result<Self> {
        RgbImage::decode_with(key, bytes, &DecodeOptions::default())
    }

    /// Decodes with other options. Errors as [`RgbImage::decode`].
    pub fn decode_with(key: &str, bytes: &[u8], options: &DecodeOptions) -> Result<Self> {
        Ok(RgbImage::decode_noting(key, bytes, options)?.0)
    }

    /// Decodes with other options, and says what there was besides pixels. Errors as [`RgbImage::decode`].
    pub fn decode_noting(key: &str, bytes: &[u8], options: &DecodeOptions) -> Result<(Self, Decoded)> {
        let mut data = Vec::new();
        let found = decode::decode_rgb_into(key, bytes, options, &mut data)?;
        let (width, height) = found.size;
        Ok((RgbImage { width, height, data }, found))
    }

    /// Encodes a PNG.
    ///
    /// # Errors
    /// [`Error::BadImage`] (sides beyond the format's limit of 2³¹ - 1).
    pub fn encode_png(&self, effort: PngEffort) -> Result<Vec<u8>> {
        encode_png(&self.data, self.width, self.height, ExtendedColorType::Rgb8, effort)
    }

    /// Encodes a JPEG of `quality` 1 to 100 as Pillow's `save` does by default: libjpeg's tables, colour at half the
    /// resolution (4:2:0), baseline.
    ///
    /// # Errors
    /// [`Error::BadImage`] (sides beyond the format's limit of 65,535).
    pub fn encode_jpeg(&self, quality: u8) -> Result<Vec<u8>> {
        let (width, height) = (jpeg_side(self.width)?, jpeg_side(self.height)?);
        Ok(jpeg::encode(&self.data, width, height, quality))
    }

    /// Encodes the first channel as a grey JPEG; errors as [`RgbImage::encode_jpeg`].
    pub fn encode_grey_jpeg(&self, quality: u8) -> Result<Vec<u8>> {
        let grey: Vec<u8> = self.data.iter().copied().step_by(3).collect();
        let (width, height) = (jpeg_side(self.width)?, jpeg_side(self.height)?);
        let mut out = Vec::new();
        let encoder = jpeg_encoder::Encoder::new(&mut out, quality.clamp(1, 100));
        let bad =
            |e: jpeg_encoder::EncodingError| Error::BadImage { key: "(output)".to_owned(), detail: e.to_string() };
        encoder.encode(&grey, width, height, JpegColour::Luma).map_err(bad)?;
        Ok(out)
    }

    /// True if all pixels are grey.
    pub fn is_grey(&self) -> bool {
        self.data.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b)
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, `[height, width, 3]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The pixels, `[height, width, 3]`.
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// The pixel in column `x` of row `y`.
    ///
    /// # Panics
    /// If it lies outside.
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        assert!(x < self.width && y < self.height, "pixel ({x}, {y}) of a {}x{} image", self.width, self.height);
        let at = 3 * (y * self.width + x);
        [self.data[at], self.data[at + 1], self.data[at + 2]]
    }

    /// Resizes as Pillow's `Image.resize((width, height), filter)`: separable, antialiased, byte for byte.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a side is 0 or exceeds 2²⁴ (Pillow's box is in `f32`).
    pub fn resize(&self, width: usize, height: usize, filter: Filter) -> Result<Self> {
        let data = resample::resize::<3>(&self.data, (self.width, self.height), (width, height), filter)?;
        Ok(RgbImage { width, height, data })
    }

    /// The rectangle of `size` pixels, (width, height), whose upper left corner is `corner`, (x, y), of this
    /// image resized to `to`: the same bytes as [`RgbImage::resize`] and then [`RgbImage::crop`] give, without
    /// computing the rest.
    ///
    /// # Errors
    /// Those of [`RgbImage::resize`] and [`RgbImage::crop`].
    pub fn resize_crop(
        &self,
        to: (usize, usize),
        corner: (usize, usize),
        size: (usize, usize),
        filter: Filter,
    ) -> Result<Self> {
        let crop = Crop { x: corner.0, y: corner.1, width: size.0, height: size.1 };
        let mut data = Vec::new();
        resample::resize_crop::<3>(&self.data, (self.width, self.height), to, &crop, filter, &mut data)?;
        Ok(RgbImage { width: size.0, height: size.1, data })
    }

    /// Resizes so that the shorter side is `side`, the longer one in proportion, rounded down: as torchvision's
    /// `Resize(side)`. Errors as [`RgbImage::resize`].
    pub fn resize_shorter(&self, side: usize, filter: Filter) -> Result<Self> {
        let (width, height) = shorter_to((self.width, self.height), side)?;
        self.resize(width, height, filter)
    }

    /// The rectangle of `width` x `height` pixels whose upper left corner is (`x`, `y`).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it is empty or reaches outside.
    pub fn crop(&self, x: usize, y: usize, width: usize, height: usize) -> Result<Self> {
        let crop = Crop { x, y, width, height };
        crop.check((self.width, self.height))?;
        let mut data = Vec::with_capacity(3 * width * height);
        resample::copy_crop::<3>(&self.data, self.width, &crop, &mut data);
        Ok(RgbImage { width, height, data })
    }

    /// The middle `width` x `height` pixels; where they cannot be centred, half a pixel is rounded to even, as in
    /// torchvision's `CenterCrop`. Errors as [`RgbImage::crop`].
    pub fn center_crop(&self, width: usize, height: usize) -> Result<Self> {
        let start = |all: usize, size: usize| (all.saturating_sub(size) as f64 / 2.0).round_ties_even() as usize;
        self.crop(start(self.width, width), start(self.height, height), width, height)
    }

    /// The image framed by `margin` pixels of `colour` on each side.
    pub fn padded(&self, margin: usize, colour: [u8; 3]) -> Self {
        let (width, height) = (self.width + 2 * margin, self.height + 2 * margin);
        let mut data = colour.repeat(width * height);
        for (y, row) in self.data.chunks_exact(3 * self.width).enumerate() {
            let at = 3 * ((y + margin) * width + margin);
            data[at..at + row.len()].copy_from_slice(row);
        }
        RgbImage { width, height, data }
    }

    /// The image mirrored left and right.
    pub fn flip_horizontal(&self) -> Self {
        let mut flipped = self.clone();
        flipped.mirror();
        flipped
    }

    /// Mirrors left and right, in place.
    pub fn mirror(&mut self) {
        mirror(&mut self.data, self.width);
    }

    /// The pixels as numbers from `low` (level 0) to `high` (level 255), channels last, `[height, width, 3]`.
    /// Diffusion models take -1 to 1.
    pub fn to_f32_hwc(&self, low: f32, high: f32) -> Vec<f32> {
        let scale = (high - low) / 255.0;
        self.data.iter().map(|level| f32::from(*level) * scale + low).collect()
    }

    /// The inverse of [`RgbImage::to_f32_hwc`]: rounds to the nearest level, clamps what lies outside; not-a-number
    /// becomes level 0.
    ///
    /// # Errors
    /// As [`RgbImage::new`].
    pub fn from_f32_hwc(width: usize, height: usize, values: &[f32], low: f32, high: f32) -> Result<Self> {
        let scale = 255.0 / (high - low);
        // `as` saturates, and turns not-a-number into 0.
        let data = values.iter().map(|v| ((v - low) * scale).round_ties_even() as u8).collect();
        RgbImage::new(width, height, data)
    }
}

impl RgbaImage {
    /// An image of `width` x `height` pixels from `data`, `[height, width, 4]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the lengths disagree or a side is 0.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Self> {
        check_size(width, height, 4, data.len())?;
        Ok(RgbaImage { width, height, data })
    }

    /// Decodes a PNG, JPEG, WebP, GIF or BMP, upright; what has no alpha is opaque. `key` names the sample in errors.
    ///
    /// # Errors
    /// [`Error::BadImage`] if the file is damaged, of a format that is not known, or beyond the limit of pixels.
    pub fn decode(key: &str, bytes: &[u8]) -> Result<Self> {
        let image = decode::decode_any(key, bytes)?.into_rgba8();
        let (width, height) = (image.width() as usize, image.height() as usize);
        Ok(RgbaImage { width, height, data: image.into_raw() })
    }

    /// Encodes a PNG; errors as [`RgbImage::encode_png`].
    pub fn encode_png(&self, effort: PngEffort) -> Result<Vec<u8>> {
        encode_png(&self.data, self.width, self.height, ExtendedColorType::Rgba8, effort)
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// The pixels, `[height, width, 4]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Resizes as Pillow does in mode RGBA: premultiplies (mode RGBa), resizes, divides, each rounded to 8 bits; with
    /// [`Filter::Nearest`] pixels are copied. Errors as [`RgbImage::resize`].
    pub fn resize(&self, width: usize, height: usize, filter: Filter) -> Result<Self> {
        let (from, to) = ((self.width, self.height), (width, height));
        if filter == Filter::Nearest || from == to {
            let data = resample::resize::<4>(&self.data, from, to, filter)?;
            return Ok(RgbaImage { width, height, data });
        }
        let mut data = resample::resize::<4>(&premultiplied(&self.data), from, to, filter)?;
        divide_by_alpha(&mut data);
        Ok(RgbaImage { width, height, data })
    }

    /// True if a pixel is not opaque.
    pub fn is_transparent(&self) -> bool {
        self.data.as_chunks::<4>().0.iter().any(|pixel| pixel[3] != 255)
    }

    /// The image as RGB: laid on a colour, or its hidden colours.
    pub fn on(&self, background: Background) -> RgbImage {
        let (data, _) = decode::without_alpha(&self.data, background);
        RgbImage { width: self.width, height: self.height, data }
    }

    /// Lays the image over a background of one colour, with the arithmetic of Pillow's `Image.alpha_composite` over
    /// an opaque image.
    pub fn over(&self, background: [u8; 3]) -> RgbImage {
        RgbImage { width: self.width, height: self.height, data: lay_over(&self.data, background) }
    }
}

/// Pixels `[height, width, 4]` over a background, as `[height, width, 3]`.
fn lay_over(pixels: &[u8], background: [u8; 3]) -> Vec<u8> {
    let mut data = Vec::with_capacity(pixels.len() / 4 * 3);
    for pixel in pixels.as_chunks::<4>().0 {
        let alpha = u32::from(pixel[3]);
        for channel in 0..3 {
            let sum = u32::from(pixel[channel]) * alpha + u32::from(background[channel]) * (255 - alpha);
            // Pillow carries 7 more bits here; over an opaque background they are all zero.
            data.push(div255(sum + 128));
        }
    }
    data
}

/// `(a - 128 + 127) / 255` rounded, for `a` up to 255² + 128 (Pillow's `SHIFTFORDIV255`).
fn div255(a: u32) -> u8 {
    (((a >> 8) + a) >> 8) as u8
}

/// Pillow's `rgbA2rgba`: each colour times alpha, rounded.
fn premultiplied(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    for [r, g, b, a] in data.as_chunks::<4>().0 {
        let times_alpha = |v: u8| div255(u32::from(v) * u32::from(*a) + 128);
        out.extend_from_slice(&[times_alpha(*r), times_alpha(*g), times_alpha(*b), *a]);
    }
    out
}

/// Pillow's `rgba2rgbA`: each colour divided by alpha, rounded down, at most 255.
fn divide_by_alpha(data: &mut [u8]) {
    for pixel in data.as_chunks_mut::<4>().0 {
        let alpha = u32::from(pixel[3]);
        if alpha != 0 && alpha != 255 {
            pixel[..3].iter_mut().for_each(|v| *v = (255 * u32::from(*v) / alpha).min(255) as u8);
        }
    }
}

/// Mirrors rows of `width` pixels, `[height, width, 3]`.
pub(crate) fn mirror(levels: &mut [u8], width: usize) {
    levels.chunks_exact_mut(3 * width).for_each(|row| row.as_chunks_mut::<3>().0.reverse());
}

/// Size of an image of `size`, (width, height), whose shorter side becomes `side`, the longer one in proportion, rounded
/// down.
///
/// # Errors
/// [`Error::InvalidArgument`] if the longer side overflows.
pub(crate) fn shorter_to(size: (usize, usize), side: usize) -> Result<(usize, usize)> {
    let (short, long) = (size.0.min(size.1).max(1), size.0.max(size.1));
    let Some(product) = side.checked_mul(long) else {
        let detail = format!("the shorter side of {}x{} to {side}", size.0, size.1);
        return Err(Error::InvalidArgument { what: "resize", detail });
    };
    Ok(if size.0 <= size.1 { (side, product / short) } else { (product / short, side) })
}

/// Gives back memory that a thread kept for its next image, if the one before was unusually large.
pub(crate) fn release_if_large(scratch: &mut Vec<u8>) {
    const MOST: usize = 64 << 20;
    if scratch.capacity() > MOST {
        *scratch = Vec::new();
    }
}

fn check_size(width: usize, height: usize, channels: usize, found: usize) -> Result<()> {
    let needed = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
    if width == 0 || height == 0 || needed != Some(found) {
        let detail = format!("{width}x{height} pixels of {channels} channels from {found} bytes");
        return Err(Error::InvalidArgument { what: "image", detail });
    }
    Ok(())
}

fn jpeg_side(side: usize) -> Result<u16> {
    u16::try_from(side).map_err(|_| {
        let detail = format!("side of {side} pixels, where a JPEG has 65,535 at most");
        Error::BadImage { key: "(output)".to_owned(), detail }
    })
}

fn encode_png(data: &[u8], width: usize, height: usize, kind: ExtendedColorType, effort: PngEffort) -> Result<Vec<u8>> {
    let bad = |detail: String| Error::BadImage { key: "(output)".to_owned(), detail };
    let (compression, filter) = match effort {
        PngEffort::Fast => (CompressionType::Fast, PngFilter::Sub),
        PngEffort::Default => (CompressionType::Default, PngFilter::Adaptive),
        PngEffort::Best => (CompressionType::Best, PngFilter::Adaptive),
    };
    let side = |n: usize| u32::try_from(n).map_err(|_| bad(format!("side of {n} pixels")));
    let mut out = Vec::new();
    PngEncoder::new_with_quality(&mut out, compression, filter)
        .write_image(data, side(width)?, side(height)?, kind)
        .map_err(|e| bad(e.to_string()))?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_survive_png_and_floats() {
        let data: Vec<u8> = (0..5 * 7 * 3).map(|i| (i * 37 % 256) as u8).collect();
        let image = RgbImage::new(5, 7, data).unwrap();
        for effort in [PngEffort::Fast, PngEffort::Default, PngEffort::Best] {
            let png = image.encode_png(effort).unwrap();
            assert_eq!(RgbImage::decode("x", &png).unwrap(), image);
        }
        let values = image.to_f32_hwc(-1.0, 1.0);
        assert_eq!(RgbImage::from_f32_hwc(5, 7, &values, -1.0, 1.0).unwrap(), image);
        let wild = [f32::NAN, -9.0, 9.0].repeat(2);
        assert_eq!(RgbImage::from_f32_hwc(1, 2, &wild, -1.0, 1.0).unwrap().data(), [0, 0, 255, 0, 0, 255]);
    }

    #[test]
    fn crops_and_flips() {
        let image = RgbImage::new(4, 2, (0..24).collect()).unwrap();
        assert_eq!(image.center_crop(2, 2).unwrap().data(), [3, 4, 5, 6, 7, 8, 15, 16, 17, 18, 19, 20]);
        assert_eq!(image.flip_horizontal().pixel(0, 1), [21, 22, 23]);
        let framed = image.padded(3, [9, 9, 9]);
        assert_eq!((framed.width(), framed.height(), framed.pixel(2, 3)), (10, 8, [9, 9, 9]));
        assert_eq!(framed.crop(3, 3, 4, 2).unwrap(), image);
        assert!(matches!(image.center_crop(5, 2), Err(Error::InvalidArgument { .. })));
        assert!(matches!(image.crop(usize::MAX, 0, 2, 2), Err(Error::InvalidArgument { .. })));
        assert_eq!(image.resize_shorter(4, Filter::Box).unwrap().width(), 8);
    }

    #[test]
    fn a_bad_image_names_its_sample() {
        let png = RgbImage::filled(9, 9, [1, 2, 3]).unwrap().encode_png(PngEffort::Fast).unwrap();
        for bytes in [&b""[..], b"GIF89a", &png[..png.len() / 2], b"\xff\xd8\xff\xe0junk"] {
            let error = RgbImage::decode("cat-7", bytes).unwrap_err();
            assert!(matches!(&error, Error::BadImage { key, .. } if key == "cat-7"), "{error}");
        }
    }
}
