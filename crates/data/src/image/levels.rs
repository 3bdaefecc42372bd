//! Levels of 8 bits as numbers: the last step before a model.

use crate::transform::Layout;

/// Numbers of all levels of each channel.
pub(crate) type LevelTable = [[f32; 256]; 3];

/// Appends pixels `[height, width, 3]` to `out` as the numbers of a table, in `layout`.
pub(crate) fn append_looked_up(levels: &[u8], table: &LevelTable, layout: Layout, out: &mut Vec<f32>) {
    let pixels = levels.as_chunks::<3>().0;
    let number = |channel: usize, pixel: &[u8; 3]| table[channel][usize::from(pixel[channel])];
    out.reserve(levels.len());
    match layout {
        Layout::Hwc => out.extend(pixels.iter().flat_map(|pixel| [0, 1, 2].map(|channel| number(channel, pixel)))),
        Layout::Chw => (0..3).for_each(|channel| out.extend(pixels.iter().map(|pixel| number(channel, pixel)))),
    }
}

/// Appends pixels `[height, width, 3]` to `out` as numbers from `range.0` (level 0) to `range.1` (level 255), rows
/// mirrored if `flip`, in `layout`.
pub(crate) fn append_levels(
    levels: &[u8],
    width: usize,
    range: (f32, f32),
    flip: bool,
    layout: Layout,
    out: &mut Vec<f32>,
) {
    let (scale, low) = ((range.1 - range.0) / 255.0, range.0);
    let number = |level: &u8| f32::from(*level) * scale + low;
    out.reserve(levels.len());
    match (layout, flip) {
        (Layout::Hwc, false) => out.extend(levels.iter().map(number)),
        (Layout::Hwc, true) => {
            for row in levels.chunks_exact(3 * width) {
                out.extend(row.as_chunks::<3>().0.iter().rev().flatten().map(number));
            }
        }
        (Layout::Chw, _) => {
            for channel in 0..3 {
                for row in levels.chunks_exact(3 * width) {
                    let values = row.as_chunks::<3>().0.iter().map(|pixel| number(&pixel[channel]));
                    if flip { out.extend(values.rev()) } else { out.extend(values) }
                }
            }
        }
    }
}
