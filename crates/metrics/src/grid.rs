//! Contact sheets: many small images on one PNG, each with a short caption in an embedded bitmap font.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};

use crate::error::{MetricsError, Result};
use crate::font::{GLYPH_HEIGHT, GLYPH_WIDTH, glyph};

/// The longest side of a sheet. Browsers refuse to decode much larger images.
const MAX_SIDE: usize = 32_768;
/// Lines of a caption; a longer one ends in an ellipsis.
const MAX_LINES: usize = 3;
/// Font pixels from one character to the next.
const ADVANCE: usize = GLYPH_WIDTH + 1;
/// Font pixels from one line to the next.
const LEADING: usize = GLYPH_HEIGHT + 1;
/// Font pixels between an image and its caption.
const CAPTION_GAP: usize = 3;

/// Layout of a contact sheet. Lengths are in pixels of the sheet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GridOptions {
    /// Images per row; the last row may have fewer.
    pub columns: usize,
    /// Every image pixel becomes a square of this side (nearest neighbour), at least 1.
    pub upscale: usize,
    /// Space between and around the images.
    pub padding: usize,
    /// Every font pixel becomes a square of this side, at least 1. The font is 5 x 7 font pixels.
    pub caption_scale: usize,
    /// Colour of the sheet, RGB.
    pub background: [u8; 3],
    /// Colour of the captions, RGB.
    pub ink: [u8; 3],
}

impl Default for GridOptions {
    /// Eight columns, no upscaling, eight pixels apart, dark grey on near-white.
    fn default() -> Self {
        Self { columns: 8, upscale: 1, padding: 8, caption_scale: 1, background: [250, 250, 250], ink: [34, 34, 40] }
    }
}

/// A contact sheet as PNG bytes (RGB8).
///
/// Each of `images` holds `side` × `side` RGB8 pixels, row-major. `captions` is empty, or has one caption per image:
/// wrapped to the image's width, at most three lines, an ellipsis where it was cut. A row is as high as its longest
/// caption asks. The same input gives the same bytes.
///
/// # Errors
/// If there are no images, a size option is zero, an image has the wrong number of bytes, the number of captions
/// does not fit, or the sheet would exceed 32,768 pixels a side.
pub fn image_grid<P: AsRef<[u8]>, C: AsRef<str>>(
    images: &[P],
    side: usize,
    captions: &[C],
    options: &GridOptions,
) -> Result<Vec<u8>> {
    check(images, side, captions.len(), options)?;
    let cell = side * options.upscale;
    let per_line = (cell / (ADVANCE * options.caption_scale)).max(1);
    let lines: Vec<Vec<String>> = captions.iter().map(|caption| wrap(caption.as_ref(), per_line)).collect();
    let columns = options.columns.min(images.len());

    let mut row_heights = vec![cell; images.len().div_ceil(columns)];
    for (index, lines) in lines.iter().enumerate() {
        let height = cell + caption_height(lines.len(), options.caption_scale);
        row_heights[index / columns] = row_heights[index / columns].max(height);
    }
    let mut canvas = Canvas::new(
        columns * (cell + options.padding) + options.padding,
        row_heights.iter().map(|height| height + options.padding).sum::<usize>() + options.padding,
        options.background,
    )?;

    let mut top = options.padding;
    for (row, height) in row_heights.iter().enumerate() {
        for index in row * columns..((row + 1) * columns).min(images.len()) {
            let left = options.padding + (index % columns) * (cell + options.padding);
            canvas.image(images[index].as_ref(), side, options.upscale, left, top);
            let lines = lines.get(index).map_or(&[][..], Vec::as_slice);
            canvas.caption(lines, left, top + cell, cell, options);
        }
        top += height + options.padding;
    }
    encode_png(&canvas.pixels, canvas.width, canvas.height)
}

/// One RGB8 image, row-major, as PNG bytes.
///
/// # Errors
/// If `pixels` does not hold `width` × `height` × 3 bytes, or a side is zero.
pub fn encode_png(pixels: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    let expected = width * height * 3;
    if expected == 0 {
        return Err(MetricsError::Zero("image side"));
    }
    if pixels.len() != expected {
        return Err(MetricsError::ImageSize { index: 0, expected, found: pixels.len() });
    }
    let (Ok(wide), Ok(high)) = (u32::try_from(width), u32::try_from(height)) else {
        return Err(MetricsError::SheetTooLarge { width, height, limit: MAX_SIDE });
    };
    let mut bytes = Vec::new();
    // Sheets are written once and embedded in reports: size matters more than time.
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, FilterType::Adaptive).write_image(
        pixels,
        wide,
        high,
        ExtendedColorType::Rgb8,
    )?;
    Ok(bytes)
}

/// Refuses sides that viewers cannot be expected to open.
pub(crate) fn check_sheet(width: usize, height: usize) -> Result<()> {
    if width > MAX_SIDE || height > MAX_SIDE {
        return Err(MetricsError::SheetTooLarge { width, height, limit: MAX_SIDE });
    }
    Ok(())
}

fn check<P: AsRef<[u8]>>(images: &[P], side: usize, captions: usize, options: &GridOptions) -> Result<()> {
    let sizes = [
        ("number of images", images.len()),
        ("image side", side),
        ("columns", options.columns),
        ("upscale", options.upscale),
        ("caption scale", options.caption_scale),
    ];
    if let Some((what, _)) = sizes.iter().find(|(_, size)| *size == 0) {
        return Err(MetricsError::Zero(what));
    }
    let expected = side * side * 3;
    for (index, image) in images.iter().enumerate() {
        let found = image.as_ref().len();
        if found != expected {
            return Err(MetricsError::ImageSize { index, expected, found });
        }
    }
    if captions != 0 && captions != images.len() {
        let expected = images.len();
        return Err(MetricsError::Length { what: "captions", expected, found: captions });
    }
    Ok(())
}

fn caption_height(lines: usize, scale: usize) -> usize {
    if lines == 0 { 0 } else { (CAPTION_GAP + lines * LEADING) * scale }
}

/// Breaks `text` at spaces into at most [`MAX_LINES`] lines of at most `width` characters. Words that are longer than a
/// line are cut; what does not fit ends in an ellipsis.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut current: Vec<char> = Vec::new();
    for word in text.split_whitespace() {
        let word: Vec<char> = word.chars().collect();
        if !current.is_empty() && current.len() + 1 + word.len() <= width {
            current.push(' ');
            current.extend(word);
            continue;
        }
        if !current.is_empty() {
            lines.push(current.iter().collect());
        }
        let mut pieces = word.chunks(width).peekable();
        current = Vec::new();
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_some() {
                lines.push(piece.iter().collect());
            } else {
                current = piece.to_vec();
            }
        }
    }
    if !current.is_empty() {
        lines.push(current.iter().collect());
    }
    if lines.len() > MAX_LINES {
        lines.truncate(MAX_LINES);
        if let Some(last) = lines.last_mut() {
            *last = with_ellipsis(last, width);
        }
    }
    lines
}

/// `line` with three dots at its end, shortened so that it has at most `width` characters.
fn with_ellipsis(line: &str, width: usize) -> String {
    let dots = width.min(3);
    let kept: String = line.chars().take(width - dots).collect();
    format!("{}{}", kept.trim_end(), ".".repeat(dots))
}

/// An RGB8 drawing surface.
struct Canvas {
    pixels: Vec<u8>,
    width: usize,
    height: usize,
}

impl Canvas {
    fn new(width: usize, height: usize, colour: [u8; 3]) -> Result<Self> {
        check_sheet(width, height)?;
        Ok(Self { pixels: colour.repeat(width * height), width, height })
    }

    /// Fills a square of `size` pixels; what lies outside the surface is left out.
    fn square(&mut self, left: usize, top: usize, size: usize, colour: [u8; 3]) {
        for y in top..(top + size).min(self.height) {
            for x in left..(left + size).min(self.width) {
                let at = (y * self.width + x) * 3;
                self.pixels[at..at + 3].copy_from_slice(&colour);
            }
        }
    }

    fn image(&mut self, image: &[u8], side: usize, upscale: usize, left: usize, top: usize) {
        for (index, pixel) in image.chunks_exact(3).enumerate() {
            let (x, y) = (left + index % side * upscale, top + index / side * upscale);
            self.square(x, y, upscale, [pixel[0], pixel[1], pixel[2]]);
        }
    }

    /// Draws `lines` centred under a cell that is `cell` pixels wide and ends at `bottom`.
    fn caption(&mut self, lines: &[String], left: usize, bottom: usize, cell: usize, options: &GridOptions) {
        let scale = options.caption_scale;
        for (number, line) in lines.iter().enumerate() {
            let width = (line.chars().count() * ADVANCE - 1) * scale;
            let start = left + cell.saturating_sub(width) / 2;
            let top = bottom + (CAPTION_GAP + number * LEADING) * scale;
            for (index, character) in line.chars().enumerate() {
                self.glyph(character, start + index * ADVANCE * scale, top, scale, options.ink);
            }
        }
    }

    fn glyph(&mut self, character: char, left: usize, top: usize, scale: usize, ink: [u8; 3]) {
        for (y, row) in glyph(character).iter().enumerate() {
            for x in 0..GLYPH_WIDTH {
                if row >> (GLYPH_WIDTH - 1 - x) & 1 == 1 {
                    self.square(left + x * scale, top + y * scale, scale, ink);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RED: [u8; 3] = [255, 0, 0];
    const BLUE: [u8; 3] = [0, 0, 255];
    const NO_CAPTIONS: [&str; 0] = [];

    fn decode(png: &[u8]) -> image::RgbImage {
        image::load_from_memory(png).unwrap().to_rgb8()
    }

    #[test]
    fn images_land_where_they_belong() {
        let images = [RED.repeat(4), BLUE.repeat(4), RED.repeat(4)];
        let options = GridOptions { columns: 2, upscale: 3, padding: 1, ..GridOptions::default() };
        let sheet = decode(&image_grid(&images, 2, &NO_CAPTIONS, &options).unwrap());
        assert_eq!(sheet.dimensions(), (15, 15));
        for (x, y, expected) in [
            (0, 0, options.background),
            (1, 1, RED),
            (6, 6, RED),
            (7, 1, options.background),
            (8, 1, BLUE),
            (13, 6, BLUE),
            (1, 8, RED),
            (8, 8, options.background),
        ] {
            assert_eq!(sheet.get_pixel(x, y).0, expected, "at {x}, {y}");
        }
    }

    #[test]
    fn captions_wrap_at_words_and_end_in_an_ellipsis() {
        assert_eq!(wrap("red apple on a teal background", 12), ["red apple on", "a teal", "background"]);
        assert_eq!(wrap("one two three four five", 5), ["one", "two", "th..."]);
        assert_eq!(wrap("incomprehensible", 6), ["incomp", "rehens", "ible"]);
        assert_eq!(wrap("  ", 6), Vec::<String>::new());
        assert_eq!(wrap("abc", 1), ["a", "b", "c"]);
        assert_eq!(wrap("abcd", 1), ["a", "b", "."]);
    }

    #[test]
    fn a_caption_is_drawn_under_its_image() {
        let options = GridOptions { columns: 2, padding: 4, ..GridOptions::default() };
        let images = [RED.repeat(40 * 40), BLUE.repeat(40 * 40)];
        let sheet = decode(&image_grid(&images, 40, &["I", ""], &options).unwrap());
        assert_eq!(sheet.dimensions(), (92, 4 + 40 + 13 + 4));
        let ink = |left: u32| {
            let area = (left..left + 40).flat_map(|x| (44..61).map(move |y| (x, y)));
            area.filter(|&(x, y)| sheet.get_pixel(x, y).0 == options.ink).count()
        };
        // The letter I: two serifs of three pixels and a stem of five.
        assert_eq!(ink(4), 11);
        assert_eq!(ink(48), 0);
    }

    #[test]
    fn every_printable_character_has_its_own_glyph() {
        let glyphs: std::collections::HashSet<_> = (' '..='~').map(glyph).collect();
        assert_eq!(glyphs.len(), 95);
        assert_eq!(glyph('ã'), glyph('a'));
        assert_eq!(glyph('’'), glyph('\''));
        assert_eq!(glyph('漢'), glyph('\u{1F600}'));
    }

    #[test]
    fn errors_name_the_image() {
        let text = |result: Result<Vec<u8>>| result.unwrap_err().to_string();
        let options = GridOptions::default();
        let images = [vec![0u8; 12], vec![0u8; 11]];
        let size = text(image_grid(&images, 2, &NO_CAPTIONS, &options));
        assert!(size.contains("image 1: expected 12 bytes, found 11"), "{size}");
        let captions = text(image_grid(&images[..1], 2, &["a", "b"], &options));
        assert!(captions.contains("captions: expected 1"), "{captions}");
        assert!(text(image_grid(&images[..0], 2, &NO_CAPTIONS, &options)).contains("at least 1"));
        let large = GridOptions { upscale: 20_000, ..options };
        assert!(text(image_grid(&images[..1], 2, &NO_CAPTIONS, &large)).contains("too large"));
    }
}
