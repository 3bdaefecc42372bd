//! Aspect-ratio buckets: a few image sizes of about the same area, so that images keep their shape and still make
//! batches.
//!
//! Source: NovelAI, "Aspect Ratio Bucketing", 2022, in the form that trainers of Stable Diffusion use: widths in steps,
//! and for each width the greatest height that keeps within the area. An image goes into the bucket whose aspect ratio
//! has the nearest logarithm, so that twice as wide is as far off as twice as tall.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Limits of the bucket sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BucketSettings {
    /// Side of the square bucket in pixels; no bucket has more pixels than its square.
    pub side: usize,
    /// Sides are multiples of this many pixels. SDXL's UNet and autoencoder need 64 at most, and SD's too.
    pub step: usize,
    /// Shortest side in pixels.
    pub shortest: usize,
    /// Longest side in pixels.
    pub longest: usize,
}

impl Default for BucketSettings {
    /// Buckets around 1,024 x 1,024 in steps of 64, sides from 512 to 2,048, as in SDXL's training (Podell et al.,
    /// arXiv:2307.01952, appendix I).
    fn default() -> Self {
        BucketSettings { side: 1024, step: 64, shortest: 512, longest: 2048 }
    }
}

/// The bucket sizes, and the choice of one for an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets {
    sizes: Vec<(usize, usize)>,
}

impl Buckets {
    /// The buckets of `settings`, in the order of their widths.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if no bucket meets the settings, or a side is beyond 65,536.
    pub fn new(settings: &BucketSettings) -> Result<Self> {
        let BucketSettings { side, step, shortest, longest } = *settings;
        let bad = |detail: String| Err(Error::InvalidArgument { what: "buckets", detail });
        if step == 0 || side == 0 || longest > 1 << 16 || side > 1 << 16 {
            return bad(format!(
                "side {side}, step {step}, longest {longest}; a side is 1 to 65536, a step at least 1"
            ));
        }
        let area = side * side;
        let mut sizes = Vec::new();
        // Both ways around: with sides that are no multiples of the step the two differ.
        for width in (shortest.max(1).next_multiple_of(step)..=longest).step_by(step) {
            let height = (area / width).min(longest) / step * step;
            if height >= shortest.max(1) {
                sizes.extend([(width, height), (height, width)]);
            }
        }
        let square = side / step * step;
        if (shortest.max(1)..=longest).contains(&square) {
            sizes.push((square, square));
        }
        sizes.sort_unstable();
        sizes.dedup();
        if sizes.is_empty() {
            return bad(format!(
                "no multiple of {step} from {shortest} to {longest} gives at most {side}x{side} pixels"
            ));
        }
        Ok(Buckets { sizes })
    }

    /// Width and height of each bucket.
    pub fn sizes(&self) -> &[(usize, usize)] {
        &self.sizes
    }

    /// Number of the bucket of an image of `width` x `height` pixels: the nearest by the logarithm of width over
    /// height; of two that are equally near, the one of more pixels, then the narrower one.
    pub fn nearest(&self, width: usize, height: usize) -> usize {
        let aspect = |w: usize, h: usize| (w.max(1) as f64).ln() - (h.max(1) as f64).ln();
        let wanted = aspect(width, height);
        let key = |(w, h): (usize, usize)| ((aspect(w, h) - wanted).abs(), std::cmp::Reverse(w * h));
        let mut best = 0;
        for (number, size) in self.sizes.iter().enumerate().skip(1) {
            let (distance, area) = key(*size);
            let (least, most) = key(self.sizes[best]);
            // Distances of the same aspect in other sizes differ by rounding alone.
            let closer = distance < least - 1e-12;
            if closer || ((distance - least).abs() <= 1e-12 && area < most) {
                best = number;
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buckets_of_sdxl_are_among_the_default_ones() {
        let buckets = Buckets::new(&BucketSettings::default()).unwrap();
        // Podell et al., table 2: some of its heights and widths.
        for size in
            [(512, 2048), (704, 1408), (896, 1152), (1024, 1024), (1152, 896), (1344, 768), (1536, 640), (2048, 512)]
        {
            assert!(buckets.sizes().contains(&size), "{size:?} in {:?}", buckets.sizes());
        }
        for (w, h) in buckets.sizes() {
            assert!(w % 64 == 0 && h % 64 == 0 && w * h <= 1024 * 1024, "{w}x{h}");
            assert!(buckets.sizes().contains(&(*h, *w)));
        }
    }

    #[test]
    fn an_image_goes_where_its_shape_is_nearest() {
        let buckets = Buckets::new(&BucketSettings { side: 512, step: 64, shortest: 256, longest: 1024 }).unwrap();
        let size = |w, h| buckets.sizes()[buckets.nearest(w, h)];
        assert_eq!(size(3000, 3000), (512, 512));
        assert_eq!(size(100, 10_000), (256, 1024));
        assert_eq!(size(10_000, 100), (1024, 256));
        assert_eq!(size(640, 480), (576, 448));
        // Every bucket's own shape is its own.
        for (number, (w, h)) in buckets.sizes().iter().enumerate() {
            let found = buckets.nearest(*w, *h);
            assert!(found == number || buckets.sizes()[found].0 * h == buckets.sizes()[found].1 * w, "{w}x{h}");
        }
    }

    #[test]
    fn impossible_settings_are_refused() {
        let cases =
            [(0, 64, 1, 512), (512, 0, 1, 512), (512, 64, 513, 520), (512, 1024, 64, 512), (512, 64, 256, 1 << 17)];
        for (side, step, shortest, longest) in cases {
            let settings = BucketSettings { side, step, shortest, longest };
            assert!(matches!(Buckets::new(&settings), Err(Error::InvalidArgument { .. })), "{settings:?}");
        }
    }
}
