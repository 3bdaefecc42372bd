//! Levels of 8 bits as numbers: the last step before a model.

use crate::transform::Layout;

/// Pixels `[height, width, 3]` as numbers from `range.0` (level 0) to `range.1` (level 255), rows mirrored if `flip`,
/// into `out` in `layout`. Both have the same length.
pub(crate) fn levels_to_f32(
    levels: &[u8],
    width: usize,
    range: (f32, f32),
    flip: bool,
    layout: Layout,
    out: &mut [f32],
) {
    let (scale, low) = ((range.1 - range.0) / 255.0, range.0);
    match (layout, flip) {
        (Layout::Hwc, false) => convert(levels, scale, low, out),
        (Layout::Hwc, true) => {
            for (row, out) in levels.chunks_exact(3 * width).zip(out.chunks_exact_mut(3 * width)) {
                let pixels = row.as_chunks::<3>().0.iter().rev();
                for (pixel, out) in pixels.zip(out.as_chunks_mut::<3>().0) {
                    *out = pixel.map(|level| f32::from(level) * scale + low);
                }
            }
        }
        (Layout::Chw, _) => {
            let plane = levels.len() / 3;
            for (channel, out) in out.chunks_exact_mut(plane.max(1)).enumerate() {
                for (row, out) in levels.chunks_exact(3 * width).zip(out.chunks_exact_mut(width)) {
                    let values = row.iter().skip(channel).step_by(3).map(|level| f32::from(*level) * scale + low);
                    match flip {
                        false => out.iter_mut().zip(values).for_each(|(out, value)| *out = value),
                        true => out.iter_mut().rev().zip(values).for_each(|(out, value)| *out = value),
                    }
                }
            }
        }
    }
}

fn convert(levels: &[u8], scale: f32, low: f32, out: &mut [f32]) {
    for (out, level) in out.iter_mut().zip(levels) {
        *out = f32::from(*level) * scale + low;
    }
}
