//! Colour, contrast, brightness and sharpness of 8-bit images, as Pillow changes them: each blends the image with another one.
//! And hues, as torchvision turns them by Pillow's HSV.
//!
//! Source: Pillow 13.0.0, `src/PIL/ImageEnhance.py`, `src/libImaging/Blend.c`, `Filter.c` (3x3) and `Convert.c` (to grey, to HSV
//! and back); torchvision 0.29.2, `transforms/_functional_pil.py` (`adjust_hue`).

use super::RgbImage;

/// The weights of the filter that blurs, row by row: Pillow's `SMOOTH`, in `f32`.
const SMOOTH: [f32; 9] = [1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0];
/// Their sum.
const SMOOTH_SUM: f32 = 13.0;

impl RgbImage {
    /// `ImageEnhance.Brightness(image).enhance(factor)`: 0 is black, 1 the image.
    #[must_use]
    pub fn with_brightness(self, factor: f64) -> Self {
        self.blended(factor, |_| [0; 3])
    }

    /// `ImageEnhance.Color(image).enhance(factor)`: 0 is grey, 1 the image.
    #[must_use]
    pub fn with_colour(self, factor: f64) -> Self {
        self.blended(factor, |pixel| [grey(pixel); 3])
    }

    /// `ImageEnhance.Contrast(image).enhance(factor)`: 0 is the mean grey everywhere, 1 the image.
    #[must_use]
    pub fn with_contrast(self, factor: f64) -> Self {
        let pixels = self.data.as_chunks::<3>().0;
        let sum: u64 = pixels.iter().map(|pixel| u64::from(grey(*pixel))).sum();
        let mean = (sum as f64 / pixels.len() as f64 + 0.5) as u8;
        self.blended(factor, |_| [mean; 3])
    }

    /// `ImageEnhance.Sharpness(image).enhance(factor)`: 0 is blurred, 1 the image, 2 sharpened.
    #[must_use]
    pub fn with_sharpness(self, factor: f64) -> Self {
        let blurred = self.smoothed();
        let data = blurred.data.iter().zip(&self.data).map(|(from, to)| blend(*from, *to, factor as f32)).collect();
        Self { data, ..self }
    }

    /// torchvision's `adjust_hue(image, turn)`: hues turned by a share of the circle, -0.5 to 0.5. Also without a turn, the way to
    /// HSV and back changes levels.
    #[must_use]
    pub fn with_hue(mut self, turn: f64) -> Self {
        let turn = (turn * 255.0) as i32 as u8;
        for pixel in self.data.as_chunks_mut::<3>().0 {
            let [hue, saturation, value] = to_hsv(*pixel);
            *pixel = from_hsv([hue.wrapping_add(turn), saturation, value]);
        }
        self
    }

    /// `image.filter(ImageFilter.SMOOTH)`; the pixels of the border stay.
    fn smoothed(&self) -> Self {
        let mut out = self.clone();
        if self.width < 3 || self.height < 3 {
            return out;
        }
        let weights = SMOOTH.map(|weight| weight / SMOOTH_SUM);
        let stride = 3 * self.width;
        for y in 1..self.height - 1 {
            for at in y * stride + 3..(y + 1) * stride - 3 {
                // Lines from below, each summed by itself: so that the sums round as Pillow's.
                let lines = [at + stride, at, at - stride].into_iter().zip(weights.as_chunks::<3>().0);
                let sum = lines.fold(0.5f32, |sum, (at, [left, middle, right])| {
                    let level = |at: usize| f32::from(self.data[at]);
                    sum + (level(at - 3) * left + level(at) * middle + level(at + 3) * right)
                });
                out.data[at] = sum.clamp(0.0, 255.0) as u8;
            }
        }
        out
    }

    /// `Image.blend(other, image, factor)`, of an image that is computed pixel by pixel.
    fn blended(mut self, factor: f64, other: impl Fn([u8; 3]) -> [u8; 3]) -> Self {
        for pixel in self.data.as_chunks_mut::<3>().0 {
            let from = other(*pixel);
            (0..3).for_each(|c| pixel[c] = blend(from[c], pixel[c], factor as f32));
        }
        self
    }
}

/// A level between two ones, rounded down, or beyond them.
fn blend(from: u8, to: u8, share: f32) -> u8 {
    (f32::from(from) + share * (f32::from(to) - f32::from(from))).clamp(0.0, 255.0) as u8
}

/// The brightness of a pixel, by ITU-R 601's weights with 16 bits behind the point.
fn grey([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19_595 + u32::from(green) * 38_470 + u32::from(blue) * 7_471 + 0x8000) >> 16) as u8
}

/// Hue, saturation and value of 8 bits; in `f32` where Pillow has `float`.
fn to_hsv([red, green, blue]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (red.max(green).max(blue), red.min(green).min(blue));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let missing = |level: u8| f32::from(most - level) / range;
    let (r, g, b) = (missing(red), missing(green), missing(blue));
    let sixths = match () {
        () if red == most => b - g,
        () if green == most => (2.0 + f64::from(r) - f64::from(b)) as f32,
        () => (4.0 + f64::from(g) - f64::from(r)) as f32,
    };
    let hue = ((f64::from(sixths) / 6.0 + 1.0) % 1.0) as f32;
    let level = |share: f32| (f64::from(share) * 255.0) as u8;
    [level(hue), level(range / f32::from(most)), most]
}

/// The way back.
fn from_hsv([hue, saturation, value]: [u8; 3]) -> [u8; 3] {
    if saturation == 0 {
        return [value; 3];
    }
    let sixths = f64::from(hue) * 6.0 / 255.0;
    let sector = sixths.floor();
    let rest = f64::from((sixths - sector) as f32);
    let share = f64::from((f64::from(saturation) / 255.0) as f32);
    let level = |factor: f64| (f64::from(value) * factor).round() as u8;
    let (p, q, t) = (level(1.0 - share), level(1.0 - share * rest), level(1.0 - share * (1.0 - rest)));
    match sector as u8 % 6 {
        0 => [value, t, p],
        1 => [q, value, p],
        2 => [p, value, t],
        3 => [p, q, value],
        4 => [t, p, value],
        _ => [value, p, q],
    }
}
