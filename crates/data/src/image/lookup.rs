//! Changes of 8-bit images that look up each level in a table, as Pillow's `ImageOps` and timm make them.
//!
//! Source: Pillow 13.0.0, `src/PIL/ImageOps.py`; timm 1.0.31, `data/auto_augment.py` (`solarize_add`, `posterize`).

use super::RgbImage;

/// The new level of each.
type Table = [u8; 256];

impl RgbImage {
    /// `ImageOps.invert`.
    #[must_use]
    pub fn inverted(self) -> Self {
        self.looked_up(&std::array::from_fn(|level| 255 - level as u8))
    }

    /// `ImageOps.posterize`: the uppermost `bits` of each level. With 8 and more the image stays; with none it is black, as
    /// Pillow up to 12 makes it; Pillow 13 refuses that.
    #[must_use]
    pub fn posterized(self, bits: u32) -> Self {
        let mask = 0xff00u32 >> bits.min(8);
        self.looked_up(&std::array::from_fn(|level| (level as u32 & mask) as u8))
    }

    /// `ImageOps.solarize`: levels from `threshold` on are inverted.
    #[must_use]
    pub fn solarized(self, threshold: f64) -> Self {
        let new = |level: usize| if (level as f64) < threshold { level } else { 255 - level };
        self.looked_up(&std::array::from_fn(|level| new(level) as u8))
    }

    /// timm's `solarize_add`: levels below 128 become brighter by `add`.
    #[must_use]
    pub fn solarize_added(self, add: u8) -> Self {
        let new = |level: u8| if level < 128 { level.saturating_add(add) } else { level };
        self.looked_up(&std::array::from_fn(|level| new(level as u8)))
    }

    /// `ImageOps.autocontrast`: each channel's darkest level becomes 0, its brightest one 255.
    #[must_use]
    pub fn with_full_contrast(self) -> Self {
        self.by_channel(|histogram| {
            let low = histogram.iter().position(|count| *count > 0).unwrap_or(0);
            let high = histogram.iter().rposition(|count| *count > 0).unwrap_or(0);
            if high <= low {
                return None;
            }
            let scale = 255.0 / (high - low) as f64;
            let offset = -(low as f64) * scale;
            // `as` rounds towards zero, as Python's `int`, and clips.
            Some(std::array::from_fn(|level| (level as f64 * scale + offset) as u8))
        })
    }

    /// `ImageOps.equalize`: the levels of each channel become about equally frequent.
    #[must_use]
    pub fn equalized(self) -> Self {
        self.by_channel(|histogram| {
            // All pixels but those of the brightest level.
            let mut present = histogram.iter().copied().filter(|count| *count > 0);
            present.next_back();
            let step = present.sum::<usize>() / 255;
            if step == 0 {
                return None;
            }
            let mut below = step / 2;
            Some(std::array::from_fn(|level| {
                let new = (below / step).min(255) as u8;
                below += histogram[level];
                new
            }))
        })
    }

    fn looked_up(mut self, table: &Table) -> Self {
        self.data.iter_mut().for_each(|level| *level = table[usize::from(*level)]);
        self
    }

    /// Looks up each channel in a table that its histogram gives; without one it stays.
    fn by_channel(mut self, table: impl Fn(&[usize; 256]) -> Option<Table>) -> Self {
        for channel in 0..3 {
            let mut histogram = [0; 256];
            self.data.iter().skip(channel).step_by(3).for_each(|level| histogram[usize::from(*level)] += 1);
            if let Some(table) = table(&histogram) {
                let levels = self.data.iter_mut().skip(channel).step_by(3);
                levels.for_each(|level| *level = table[usize::from(*level)]);
            }
        }
        self
    }
}
