//! Resizing in floats, as torchvision resizes tensors.
//!
//! `Resize` behind `ToTensor` does not round between its passes, nor at the end, and lets cubic overshoot stand: on busy
//! images it is up to two levels from Pillow's result (which [`RgbImage::resize`] repeats), and a quarter of a level in
//! the mean. Source: torch 2, `aten/src/ATen/native/cpu/UpSampleKernel.cpp` (antialiased bicubic, whose filter is
//! Pillow's), torchvision 0.17 and later (where tensors are antialiased by default).

use super::RgbImage;
use crate::{Error, Result};

/// Keys' cubic convolution with a = -0.5, at distance `x`.
fn cubic(x: f64) -> f64 {
    let x = x.abs();
    match x {
        _ if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        _ if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        _ => 0.0,
    }
}

/// Weights of the source pixels `start..` for one output pixel.
struct Window {
    start: usize,
    weights: Vec<f32>,
}

/// Windows of the output pixels `first..first + count` of a line resized from `from` to `to` pixels.
fn windows(from: usize, to: usize, first: usize, count: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let wider = scale.max(1.0);
    let support = 2.0 * wider;
    let window = |at: usize| {
        let center = scale * (at as f64 + 0.5);
        let start = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (start..end).map(|x| cubic((x as f64 - center + 0.5) / wider)).collect();
        let sum: f64 = weights.iter().sum();
        Window { start, weights: weights.into_iter().map(|weight| (weight / sum) as f32).collect() }
    };
    (first..first + count).map(window).collect()
}

/// The middle `side` x `side` pixels of the image whose shorter side is resized to `side`: torchvision's `ToTensor`,
/// `Resize(side, bicubic)`, `CenterCrop(side)`, as `[side, side, 3]` in about `0..1`.
///
/// # Errors
/// [`Error::InvalidArgument`] if `side` is 0.
pub fn fit_floats(image: &RgbImage, side: usize) -> Result<Vec<f32>> {
    if side == 0 {
        return Err(Error::InvalidArgument { what: "image", detail: "a side of 0 pixels".to_owned() });
    }
    let (width, height) = (image.width(), image.height());
    let shorter = width.min(height);
    let (to_width, to_height) = (side * width / shorter, side * height / shorter);
    let middle = |all: usize| ((all - side) as f64 / 2.0).round_ties_even() as usize;
    let columns = windows(width, to_width, middle(to_width), side);
    let rows = windows(height, to_height, middle(to_height), side);
    // Only the source rows that any window reaches.
    let first = rows.iter().map(|row| row.start).min().unwrap_or(0);
    let end = rows.iter().map(|row| row.start + row.weights.len()).max().unwrap_or(0);
    let mut narrow = Vec::with_capacity((end - first) * side * 3);
    for y in first..end {
        let line = &image.data()[y * width * 3..(y + 1) * width * 3];
        for Window { start, weights } in &columns {
            let mut sum = [0f32; 3];
            for (pixel, weight) in line[3 * start..].chunks_exact(3).zip(weights) {
                (0..3).for_each(|c| sum[c] += f32::from(pixel[c]) / 255.0 * weight);
            }
            narrow.extend_from_slice(&sum);
        }
    }
    let stride = 3 * side;
    let mut out = vec![0f32; side * stride];
    for (line, Window { start, weights }) in out.chunks_exact_mut(stride).zip(&rows) {
        for (source, weight) in narrow[(start - first) * stride..].chunks_exact(stride).zip(weights) {
            line.iter_mut().zip(source).for_each(|(sum, value)| *sum += value * weight);
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_the_right_size_stays_as_it_is() {
        let image = RgbImage::new(4, 4, (0..48).map(|i| i * 5).collect()).unwrap();
        let expected: Vec<f32> = image.to_f32_hwc(0.0, 1.0);
        let found = fit_floats(&image, 4).unwrap();
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6));
        assert!(fit_floats(&image, 0).is_err());
    }
}
