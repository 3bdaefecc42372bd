//! Levels of 8 bits as numbers: the last step before a model.

use crate::transform::Layout;

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
