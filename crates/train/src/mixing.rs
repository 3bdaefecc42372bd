//! Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), as timm's `Mixup` makes them: a sample is mixed with another one of
//! its batch, and so are their target probabilities.
//!
//! What is drawn is a function of the seed and of a position: with `mode = "batch"` the first one of what goes through the network at
//! once, as timm draws for the batch of each process, so that another number of processes, or of parts of a batch, mixes other
//! samples; with `mode = "pair"` of each two neighbours, whatever the batch is divided into.

use crate::config::{SettingError, check};
use calotype_core::{Purpose, Stream};
use serde::{Deserialize, Serialize};

calotype_core::names! {
    /// Which samples are mixed with which, and by how many draws.
    MixMode, "mode of mixing" {
        /// The first with the last, the second with the last but one, all in the same way: timm's `mode = "batch"`.
        Batch = "batch",
        /// Neighbours with each other, each two in a way of their own.
        Pair = "pair",
    }
}

/// The table `objective.mix`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixSettings {
    /// Mixup: both parameters of the beta distribution that shares are drawn from; 0 is none.
    pub mixup: f64,
    /// CutMix: the same for the share of the area that stays; 0 is none.
    pub cutmix: f64,
    /// Probability of mixing at all.
    pub probability: f64,
    /// Probability of CutMix where there are both.
    pub switch: f64,
    /// Which samples are mixed with which.
    pub mode: MixMode,
}

impl Default for MixSettings {
    fn default() -> Self {
        Self { mixup: 0.0, cutmix: 0.0, probability: 1.0, switch: 0.5, mode: MixMode::Batch }
    }
}

/// How two images become one.
#[derive(Clone, Debug, PartialEq)]
pub enum Mix {
    /// All pixels by this share of the first one.
    Share(f64),
    /// The rows and columns of a rectangle are the second one's.
    Rectangle {
        /// Rows, from the first to behind the last.
        rows: [usize; 2],
        /// Columns, likewise.
        columns: [usize; 2],
    },
}

impl MixSettings {
    pub(crate) fn validate(&self) -> Result<(), SettingError> {
        let alpha = |value: f64| (0.0..=100.0).contains(&value);
        check(alpha(self.mixup), "objective.mix.mixup", || format!("{} is not a number from 0 to 100", self.mixup))?;
        check(alpha(self.cutmix), "objective.mix.cutmix", || format!("{} is not a number from 0 to 100", self.cutmix))?;
        check(self.mixup > 0.0 || self.cutmix > 0.0, "objective.mix", || {
            "mixes nothing: set mixup (such as 0.8), cutmix (such as 1.0) or both, or leave the table out".to_owned()
        })?;
        for (value, key) in [(self.probability, "objective.mix.probability"), (self.switch, "objective.mix.switch")] {
            check((0.0..=1.0).contains(&value), key, || format!("{value} is no probability; use 0 to 1"))?;
        }
        Ok(())
    }

    /// What is done at a position to images of `side` pixels; none if nothing is. Draws are the same numbers whether they are
    /// needed or not.
    fn draw(&self, seed: u64, position: u64, side: usize) -> Option<Mix> {
        let mut stream = Stream::new(seed, Purpose::Mixing, position);
        let (any, switch) = (stream.uniform_f64(), stream.uniform_f64());
        let centre = [stream.below(side as u64) as usize, stream.below(side as u64) as usize];
        let cut = if self.mixup > 0.0 && self.cutmix > 0.0 { switch < self.switch } else { self.cutmix > 0.0 };
        let share = beta(&mut stream, if cut { self.cutmix } else { self.mixup });
        let mix = if cut { rectangle(side, share, centre) } else { Mix::Share(share) };
        (any < self.probability).then_some(mix)
    }

    /// Mixes images `[side, side, 3]` of consecutive positions, and gives for each image the other one and the share of itself.
    ///
    /// # Errors
    /// Says so if they are no even number, or do not begin with the first one of a pair.
    pub fn apply(
        &self,
        seed: u64,
        first_position: u64,
        images: &mut [Vec<f32>],
        side: usize,
    ) -> Result<Vec<(usize, f64)>, String> {
        let count = images.len();
        if !count.is_multiple_of(2) {
            return Err(format!(
                "{count} samples go through the network at once, of which two each are mixed (objective.mix): use an even number \
                 for each process"
            ));
        }
        let mut shares: Vec<(usize, f64)> = (0..count).map(|at| (at, 1.0)).collect();
        match self.mode {
            MixMode::Batch => {
                let Some(mix) = self.draw(seed, first_position, side) else { return Ok(shares) };
                for at in 0..count / 2 {
                    let other = count - 1 - at;
                    mix_both(&mix, images, at, other, side);
                    (shares[at], shares[other]) = ((other, mix.share(side)), (at, mix.share(side)));
                }
            }
            MixMode::Pair if !first_position.is_multiple_of(2) => {
                return Err("pairs of neighbours were divided (objective.mix): use an even run.batch_size".to_owned());
            }
            MixMode::Pair => {
                for at in (0..count).step_by(2) {
                    let Some(mix) = self.draw(seed, first_position + at as u64, side) else { continue };
                    mix_both(&mix, images, at, at + 1, side);
                    (shares[at], shares[at + 1]) = ((at + 1, mix.share(side)), (at, mix.share(side)));
                }
            }
        }
        Ok(shares)
    }
}

impl Mix {
    /// How much of the first image is left: of a rectangle by its area inside the image.
    pub fn share(&self, side: usize) -> f64 {
        match self {
            Self::Share(share) => *share,
            Self::Rectangle { rows, columns } => {
                1.0 - ((rows[1] - rows[0]) * (columns[1] - columns[0])) as f64 / (side * side) as f64
            }
        }
    }
}

/// A square whose area is what the share leaves, around a centre, `[row, column]`, as far as it lies inside.
fn rectangle(side: usize, share: f64, centre: [usize; 2]) -> Mix {
    let cut = (side as f64 * (1.0 - share).sqrt()) as usize;
    let [rows, columns] = centre.map(|at| [at.saturating_sub(cut / 2), (at + cut.div_ceil(2)).min(side)]);
    Mix::Rectangle { rows, columns }
}

/// Mixes two images with each other.
fn mix_both(mix: &Mix, images: &mut [Vec<f32>], at: usize, other: usize, side: usize) {
    let Ok([first, second]) = images.get_disjoint_mut([at, other]) else { return };
    match mix {
        Mix::Share(share) => {
            let (own, rest) = (*share as f32, (1.0 - share) as f32);
            for (a, b) in first.iter_mut().zip(second) {
                (*a, *b) = (*a * own + *b * rest, *b * own + *a * rest);
            }
        }
        Mix::Rectangle { rows, columns } => {
            for row in rows[0]..rows[1] {
                let place = 3 * (row * side + columns[0])..3 * (row * side + columns[1]);
                first[place.clone()].swap_with_slice(&mut second[place]);
            }
        }
    }
}

/// From the beta distribution with both parameters equal: a gamma variate's share of two.
fn beta(stream: &mut Stream, parameter: f64) -> f64 {
    let (a, b) = (gamma_logarithm(stream, parameter), gamma_logarithm(stream, parameter));
    1.0 / (1.0 + (b - a).exp())
}

/// The logarithm of a gamma variate (Marsaglia & Tsang 2000, "A simple method for generating gamma variables"; section 6 for
/// parameters below one). Logarithms, since small parameters give numbers too small for `f64`.
fn gamma_logarithm(stream: &mut Stream, parameter: f64) -> f64 {
    let boosted = if parameter < 1.0 { parameter + 1.0 } else { parameter };
    let boost = if parameter < 1.0 { positive(stream).ln() / parameter } else { 0.0 };
    let d = boosted - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let normal = f64::from(stream.normal());
        let uniform = positive(stream);
        let v = (1.0 + c * normal).powi(3);
        if v > 0.0 && uniform.ln() < 0.5 * normal * normal + d - d * v + d * v.ln() {
            return (d * v).ln() + boost;
        }
    }
}

/// Uniform above 0.
fn positive(stream: &mut Stream) -> f64 {
    1.0 - stream.uniform_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(count: usize, side: usize) -> Vec<Vec<f32>> {
        (0..count).map(|n| (0..3 * side * side).map(|i| (i * 7 % 11) as f32 - n as f32).collect()).collect()
    }

    /// `timm.data.Mixup` (1.0.31, mode batch) on the same choices: shares of 0.3, and the rectangle of `rand_bbox` for 0.36 in an
    /// image of 10 pixels around (2, 7), which gives rows 0 to 6 and columns 3 to 10.
    #[test]
    fn given_choices_are_those_of_timm() {
        assert_eq!(rectangle(10, 0.36, [2, 7]), Mix::Rectangle { rows: [0, 6], columns: [3, 10] });
        assert!((rectangle(10, 0.36, [2, 7]).share(10) - 0.58).abs() < 1e-12);
        assert_eq!(rectangle(9, 0.75, [8, 0]), Mix::Rectangle { rows: [6, 9], columns: [0, 2] });
        let (mut mixed, plain) = (images(2, 4), images(2, 4));
        mix_both(&Mix::Share(0.3), &mut mixed, 0, 1, 4);
        for (at, value) in mixed[0].iter().enumerate() {
            assert!((value - (plain[0][at] * 0.3 + plain[1][at] * 0.7)).abs() < 1e-6);
            assert!((mixed[1][at] - (plain[1][at] * 0.3 + plain[0][at] * 0.7)).abs() < 1e-6);
        }
        let mut cut = images(2, 4);
        mix_both(&Mix::Rectangle { rows: [1, 3], columns: [0, 2] }, &mut cut, 0, 1, 4);
        for at in 0..48 {
            let (row, column) = (at / 12, at / 3 % 4);
            let inside = (1..3).contains(&row) && column < 2;
            assert_eq!(cut[0][at], plain[usize::from(inside)][at], "{at}");
        }
    }

    #[test]
    fn shares_follow_the_beta_distribution() {
        for (parameter, variance) in [(0.2, 1.0 / (4.0 * 1.4)), (1.0, 1.0 / 12.0), (3.0, 1.0 / (4.0 * 7.0))] {
            let drawn: Vec<f64> = (0..4000).map(|n| beta(&mut Stream::new(1, Purpose::Mixing, n), parameter)).collect();
            let mean = drawn.iter().sum::<f64>() / 4000.0;
            let found = drawn.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / 4000.0;
            assert!((mean - 0.5).abs() < 0.03 && (found / variance - 1.0).abs() < 0.1, "{parameter}: {mean} {found}");
            assert!(drawn.iter().all(|share| (0.0..=1.0).contains(share)));
        }
        assert!(beta(&mut Stream::new(1, Purpose::Mixing, 0), 1e-4).is_finite());
    }

    #[test]
    fn pairs_do_not_depend_on_how_a_batch_is_divided() {
        let settings = MixSettings { mixup: 0.8, cutmix: 1.0, mode: MixMode::Pair, ..MixSettings::default() };
        let mut whole = images(8, 6);
        let shares = settings.apply(3, 16, &mut whole, 6).unwrap();
        let (mut first, mut second) = (images(8, 6), images(8, 6).split_off(4));
        first.truncate(4);
        let mut parts = settings.apply(3, 16, &mut first, 6).unwrap();
        let behind = settings.apply(3, 20, &mut second, 6).unwrap();
        parts.extend(behind.into_iter().map(|(other, share)| (other + 4, share)));
        assert_eq!((parts, [first, second].concat()), (shares.clone(), whole.clone()));
        assert!(whole != images(8, 6) && shares.iter().any(|(_, share)| *share < 1.0));
        assert!(settings.apply(3, 1, &mut images(2, 6), 6).unwrap_err().contains("pairs"));
        assert!(settings.apply(3, 0, &mut images(3, 6), 6).unwrap_err().contains("even number"));
    }

    #[test]
    fn batches_are_mixed_with_their_reverse_in_one_way() {
        let settings = MixSettings { mixup: 0.8, ..MixSettings::default() };
        let mut mixed = images(4, 5);
        let shares = settings.apply(3, 8, &mut mixed, 5).unwrap();
        let others: Vec<usize> = shares.iter().map(|(other, _)| *other).collect();
        assert_eq!(others, [3, 2, 1, 0]);
        assert!(shares.iter().all(|(_, share)| *share == shares[0].1));
        let never = MixSettings { probability: 0.0, ..settings };
        let mut plain = images(4, 5);
        assert_eq!(never.apply(3, 8, &mut plain, 5).unwrap(), [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)]);
        assert_eq!(plain, images(4, 5));
    }

    #[test]
    fn impossible_settings_are_refused_by_key() {
        let usual = MixSettings { mixup: 0.8, ..MixSettings::default() };
        for (bad, key) in [
            (MixSettings::default(), "objective.mix"),
            (MixSettings { mixup: -1.0, ..usual }, "objective.mix.mixup"),
            (MixSettings { cutmix: f64::NAN, ..usual }, "objective.mix.cutmix"),
            (MixSettings { probability: 1.5, ..usual }, "objective.mix.probability"),
            (MixSettings { switch: -0.1, ..usual }, "objective.mix.switch"),
        ] {
            assert_eq!(bad.validate().unwrap_err().key, key);
        }
        usual.validate().unwrap();
    }
}
