//! From the components' samples to RGB, row by row.

use super::frame::{Colour, Frame};
use super::planes::Plane;
use super::upsample::{Ratio, row};

/// Fills `out`, `[height, width, 3]`.
pub(super) fn convert(frame: &Frame, planes: &[Plane], ratios: &[Ratio], colour: Colour, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions.
        return unsafe { convert_avx2(frame, planes, ratios, colour, out) };
    }
    convert_any(frame, planes, ratios, colour, out);
}

/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn convert_avx2(frame: &Frame, planes: &[Plane], ratios: &[Ratio], colour: Colour, out: &mut [u8]) {
    convert_any(frame, planes, ratios, colour, out);
}

#[inline(always)]
fn convert_any(frame: &Frame, planes: &[Plane], ratios: &[Ratio], colour: Colour, out: &mut [u8]) {
    let padded = 8 * frame.units[0] * frame.largest[0];
    let mut sums = vec![0u16; padded];
    let mut lines: [Vec<u8>; 4] = std::array::from_fn(|_| vec![0; padded]);
    for (y, out) in out.chunks_exact_mut(3 * frame.width).enumerate() {
        let mut rows: [&[u8]; 4] = [&[]; 4];
        for ((number, line), found) in lines.iter_mut().enumerate().zip(&mut rows).take(planes.len()) {
            let size = frame.components[number].size;
            *found = &row(&planes[number], size, ratios[number], y, &mut sums, line)[..frame.width];
        }
        let pixels = out.as_chunks_mut::<3>().0;
        match colour {
            Colour::Grey => pixels.iter_mut().zip(rows[0]).for_each(|(pixel, level)| *pixel = [*level; 3]),
            Colour::Rgb => {
                for (((pixel, r), g), b) in pixels.iter_mut().zip(rows[0]).zip(rows[1]).zip(rows[2]) {
                    *pixel = [*r, *g, *b];
                }
            }
            Colour::YCbCr => {
                for (((pixel, y), cb), cr) in pixels.iter_mut().zip(rows[0]).zip(rows[1]).zip(rows[2]) {
                    *pixel = rgb(*y, *cb, *cr);
                }
            }
            Colour::Cmyk | Colour::Ycck => {
                for ((((pixel, c), m), y), k) in pixels.iter_mut().zip(rows[0]).zip(rows[1]).zip(rows[2]).zip(rows[3]) {
                    let inks = match colour {
                        Colour::Ycck => rgb(*c, *m, *y).map(|level| 255 - level),
                        _ => [*c, *m, *y],
                    };
                    *pixel = inks.map(|ink| under_black(ink, *k));
                }
            }
        }
    }
}

/// ITU-T T.871 with 16 bits behind the point; red and blue are rounded before they are added, the two parts of green
/// together.
#[inline(always)]
fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    const HALF: i32 = 1 << 15;
    let (y, cb, cr) = (i32::from(y), i32::from(cb) - 128, i32::from(cr) - 128);
    let red = y + ((91_881 * cr + HALF) >> 16);
    let green = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let blue = y + ((116_130 * cb + HALF) >> 16);
    [red, green, blue].map(|level| level.clamp(0, 255) as u8)
}

/// What Pillow makes of an ink and black, both stored inverted as Adobe's programs do.
#[inline(always)]
fn under_black(ink: u8, black: u8) -> u8 {
    let (ink, black) = (255 - i32::from(ink), i32::from(black));
    let product = ink * black + 128;
    (black - (((product >> 8) + product) >> 8)).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::super::frame::Segments;
    use super::super::upsample::ratios;
    use super::*;

    #[test]
    fn pixels_do_not_depend_on_the_processor() {
        for (factors, colour) in
            [(0x22, Colour::YCbCr), (0x21, Colour::YCbCr), (0x12, Colour::Rgb), (0x11, Colour::Ycck)]
        {
            let mut head = vec![0xff, 0xd8, 0xff, 0xc0, 0, 20, 8, 0, 45, 0, 77, 4];
            [factors, 0x11, 0x11, 0x11].iter().for_each(|factor| head.extend([1, *factor, 0]));
            let mut segments = Segments::new(&head);
            // The frame is read before the file is found to end.
            assert!(segments.next_scan(None).is_err());
            let frame = segments.frame.unwrap();
            let mut planes: Vec<Plane> = frame.components.iter().map(Plane::new).collect();
            let mut state = 5u32;
            for plane in &mut planes {
                for sample in plane.samples_mut() {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    *sample = (state >> 24) as u8;
                }
            }
            let ratios = ratios(&frame).unwrap();
            let mut pixels = [vec![0; 3 * 77 * 45], vec![0; 3 * 77 * 45]];
            convert(&frame, &planes, &ratios, colour, &mut pixels[0]);
            convert_any(&frame, &planes, &ratios, colour, &mut pixels[1]);
            assert!(pixels[0] == pixels[1], "{factors:x}");
        }
    }
}
