//! Images as Pillow keeps them in memory (encoding `pil`), from and to PNG.
//!
//! A value is: width, height and length of the mode's name (`u32` each), the name, the pixels
//! (`streaming/base/format/mds/encodings.py`, class PIL).

use std::io::Cursor;

use image::codecs::png::PngEncoder;
use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader, ImageResult};

use crate::image::{jpeg_decoder, orientation};

/// Pillow's modes that have an equal in PNG; bits of a pixel.
const MODES: [(&str, usize, ExtendedColorType); 5] = [
    ("1", 1, ExtendedColorType::L8),
    ("L", 8, ExtendedColorType::L8),
    ("LA", 16, ExtendedColorType::La8),
    ("RGB", 24, ExtendedColorType::Rgb8),
    ("RGBA", 32, ExtendedColorType::Rgba8),
];

/// A raw image as PNG.
pub(super) fn decode(value: &[u8]) -> Result<Vec<u8>, String> {
    let (head, rest) = value.split_at_checked(12).ok_or("cut inside width, height and mode")?;
    let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (width, height) = (number(0), number(4));
    let (mode, pixels) = rest.split_at_checked(number(8) as usize).ok_or("cut inside the mode's name")?;
    let mode = String::from_utf8_lossy(mode);
    let (_, bits, kind) = *MODES.iter().find(|row| row.0 == mode).ok_or_else(|| {
        format!("an image of mode `{mode}`; 1, L, LA, RGB and RGBA are read (Pillow: image.convert(\"RGB\"))")
    })?;
    let row = (width as usize).checked_mul(bits).map(|bits| bits.div_ceil(8));
    if width == 0 || height == 0 || row.and_then(|row| row.checked_mul(height as usize)) != Some(pixels.len()) {
        return Err(format!("{width}x{height} pixels of mode {mode} from {} bytes", pixels.len()));
    }
    let grey = if bits == 1 { unpack_bits(pixels, width as usize) } else { Vec::new() };
    let pixels = if bits == 1 { &grey } else { pixels };
    let mut out = Vec::new();
    PngEncoder::new(&mut out).write_image(pixels, width, height, kind).map_err(|e| e.to_string())?;
    Ok(out)
}

/// Rows of bits, the first pixel in the highest bit, as levels 0 and 255.
fn unpack_bits(pixels: &[u8], width: usize) -> Vec<u8> {
    let row = |row: &[u8]| -> Vec<u8> { (0..width).map(|x| 255 * (row[x / 8] >> (7 - x % 8) & 1)).collect() };
    pixels.chunks_exact(width.div_ceil(8)).flat_map(row).collect()
}

/// An image file of any format that is decoded, as a raw image of mode L, LA, RGB or RGBA. It is turned upright, for raw
/// images have no orientation.
pub(super) fn encode(file: &[u8]) -> Result<Vec<u8>, String> {
    let reader = ImageReader::new(Cursor::new(file)).with_guessed_format().map_err(|e| e.to_string())?;
    let image = match reader.format() {
        Some(ImageFormat::Jpeg) => jpeg_decoder(file).and_then(|decoder| upright(decoder, file)),
        _ => reader.into_decoder().and_then(|decoder| upright(decoder, file)),
    };
    let image = image.map_err(|e| format!("image cannot be decoded: {e}"))?;
    let (width, height) = (image.width(), image.height());
    let (mode, pixels) = match image {
        DynamicImage::ImageLuma8(image) => ("L", image.into_raw()),
        DynamicImage::ImageLumaA8(image) => ("LA", image.into_raw()),
        DynamicImage::ImageRgba8(image) => ("RGBA", image.into_raw()),
        other => ("RGB", other.into_rgb8().into_raw()),
    };
    let head = [width, height, mode.len() as u32].map(u32::to_le_bytes).concat();
    Ok([head.as_slice(), mode.as_bytes(), &pixels].concat())
}

fn upright(mut decoder: impl ImageDecoder, file: &[u8]) -> ImageResult<DynamicImage> {
    let turn = orientation(&mut decoder, file);
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(turn);
    Ok(image)
}
