//! RandAugment (Cubuk et al. 2020): some changes of an image, drawn from a table, all of about the same strength.
//!
//! torchvision and timm have different tables. torchvision's numbers grow with the magnitude; timm's tables have, but for the
//! increasing one, changes that are weakest in the middle, as the first implementation for TPUs.

use super::{Draws, Operation};
use crate::image::{RgbImage, Sampling};
use crate::{Error, Result};
use calotype_core::Stream;
use serde::{Deserialize, Serialize};

/// Which table changes are drawn from, and how strong they are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RandAugment {
    /// torchvision's `RandAugment`.
    Torchvision(TorchvisionRandAugment),
    /// timm's `rand_augment_transform`.
    Timm(TimmRandAugment),
}

/// Settings of torchvision's `RandAugment` (0.29), with its defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TorchvisionRandAugment {
    /// Changes of an image, one after the other.
    pub layers: usize,
    /// Strength, from 0 to below `bins`.
    pub magnitude: usize,
    /// In how many steps strengths are divided.
    pub bins: usize,
    /// How moved pixels are read.
    pub sampling: Sampling,
    /// What lies outside of moved images.
    pub fill: [u8; 3],
}

impl Default for TorchvisionRandAugment {
    fn default() -> Self {
        Self { layers: 2, magnitude: 9, bins: 31, sampling: Sampling::Nearest, fill: [0; 3] }
    }
}

/// Settings of timm's `rand_augment_transform` (1.0), with its defaults; `rand-m9-mstd0.5-inc1` is `magnitude = 9`,
/// `deviation = 0.5`, `increasing = true`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimmRandAugment {
    /// Changes of an image, one after the other.
    pub layers: usize,
    /// Mean strength.
    pub magnitude: f64,
    /// Standard deviation of strengths.
    pub deviation: f64,
    /// The greatest strength.
    pub most: f64,
    /// Probability of each change.
    pub probability: f64,
    /// Whether all changes are the stronger, the greater the magnitude is.
    pub increasing: bool,
    /// How moved pixels are read; without it, bilinear or bicubic, as likely.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
    /// What lies outside of moved images.
    pub fill: [u8; 3],
}

impl Default for TimmRandAugment {
    fn default() -> Self {
        Self {
            layers: 2,
            magnitude: 10.0,
            deviation: 0.0,
            most: STRONGEST,
            probability: 0.5,
            increasing: false,
            sampling: None,
            fill: [128; 3],
        }
    }
}

/// The magnitude to which timm's tables are scaled.
const STRONGEST: f64 = 10.0;

/// What both tables draw from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Colour,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    SolarizeAdd,
    AutoContrast,
    Equalize,
    Invert,
}

/// torchvision's names and order.
const TORCHVISION: [(&str, Kind); 14] = [
    ("Identity", Kind::Identity),
    ("ShearX", Kind::ShearX),
    ("ShearY", Kind::ShearY),
    ("TranslateX", Kind::TranslateX),
    ("TranslateY", Kind::TranslateY),
    ("Rotate", Kind::Rotate),
    ("Brightness", Kind::Brightness),
    ("Color", Kind::Colour),
    ("Contrast", Kind::Contrast),
    ("Sharpness", Kind::Sharpness),
    ("Posterize", Kind::Posterize),
    ("Solarize", Kind::Solarize),
    ("AutoContrast", Kind::AutoContrast),
    ("Equalize", Kind::Equalize),
];

/// timm's names and order; those of the increasing table have `Increasing` behind some.
const TIMM: [(&str, Kind); 15] = [
    ("AutoContrast", Kind::AutoContrast),
    ("Equalize", Kind::Equalize),
    ("Invert", Kind::Invert),
    ("Rotate", Kind::Rotate),
    ("Posterize", Kind::Posterize),
    ("Solarize", Kind::Solarize),
    ("SolarizeAdd", Kind::SolarizeAdd),
    ("Color", Kind::Colour),
    ("Contrast", Kind::Contrast),
    ("Brightness", Kind::Brightness),
    ("Sharpness", Kind::Sharpness),
    ("ShearX", Kind::ShearX),
    ("ShearY", Kind::ShearY),
    ("TranslateXRel", Kind::TranslateX),
    ("TranslateYRel", Kind::TranslateY),
];

impl RandAugment {
    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] naming the setting.
    pub fn check(&self) -> Result<()> {
        let check = |ok: bool, detail: String| match ok {
            true => Ok(()),
            false => Err(Error::InvalidArgument { what: "rand_augment", detail }),
        };
        match self {
            Self::Torchvision(settings) => {
                let (magnitude, bins) = (settings.magnitude, settings.bins);
                check(bins > 1, format!("bins = {bins}; there are at least 2"))?;
                check(magnitude < bins, format!("magnitude = {magnitude}; it goes from 0 to below bins = {bins}"))
            }
            Self::Timm(settings) => {
                let TimmRandAugment { magnitude, deviation, most, probability, .. } = *settings;
                let sized = |number: f64| number >= 0.0 && number.is_finite();
                check(sized(magnitude), format!("magnitude = {magnitude}; it takes a number from 0 on"))?;
                check(sized(deviation), format!("deviation = {deviation}; it takes a number from 0 on"))?;
                check(sized(most), format!("most = {most}; it takes a number from 0 on"))?;
                check((0.0..=1.0).contains(&probability), format!("probability = {probability} is none"))
            }
        }
    }

    /// The changed image; what is done is drawn from `stream`, the same numbers for each change whether it needs them or not.
    #[must_use]
    pub fn apply(&self, mut image: RgbImage, stream: &mut Stream) -> RgbImage {
        let size = (image.width(), image.height());
        match self {
            Self::Torchvision(settings) => {
                for _ in 0..settings.layers {
                    let (name, kind) = TORCHVISION[Draws::below(stream, TORCHVISION.len())];
                    let negative = stream.below(2) == 1 && is_signed(kind);
                    let magnitude = TorchvisionRandAugment::magnitude_of(name, settings.magnitude, settings.bins, size);
                    let operation = from_torchvision(kind, if negative { -magnitude } else { magnitude });
                    image = operation.apply(image, settings.sampling, settings.fill);
                }
            }
            Self::Timm(settings) => {
                for _ in 0..settings.layers {
                    let kind = TIMM[Draws::below(stream, TIMM.len())].1;
                    let (skipped, noise) = (stream.uniform_f64() > settings.probability, stream.normal());
                    let (negative, bicubic) = (stream.below(2) == 1, stream.below(2) == 1);
                    if skipped {
                        continue;
                    }
                    let magnitude = settings.magnitude + settings.deviation * f64::from(noise);
                    let magnitude = magnitude.clamp(0.0, settings.most);
                    let drawn = if bicubic { Sampling::Bicubic } else { Sampling::Bilinear };
                    let operation = from_timm(kind, settings.increasing, magnitude, negative, size);
                    image = operation.apply(image, settings.sampling.unwrap_or(drawn), settings.fill);
                }
            }
        }
        image
    }
}

/// Whether torchvision draws the sign of a magnitude.
fn is_signed(kind: Kind) -> bool {
    use Kind::{Brightness, Colour, Contrast, Rotate, Sharpness, ShearX, ShearY, TranslateX, TranslateY};
    matches!(kind, ShearX | ShearY | TranslateX | TranslateY | Rotate | Brightness | Colour | Contrast | Sharpness)
}

impl TorchvisionRandAugment {
    /// The number that torchvision calls the magnitude of a change, without its sign, for step `at` of `bins` and an image of
    /// `size`, (width, height); 0 for changes without one, and for names that are none.
    pub fn magnitude_of(name: &str, at: usize, bins: usize, size: (usize, usize)) -> f64 {
        let to = |end: f64| evenly(0.0, end as f32, at, bins);
        let Some((_, kind)) = TORCHVISION.iter().find(|(known, _)| *known == name) else { return 0.0 };
        match kind {
            Kind::ShearX | Kind::ShearY => to(0.3),
            Kind::TranslateX => to(150.0 / 331.0 * size.0 as f64),
            Kind::TranslateY => to(150.0 / 331.0 * size.1 as f64),
            Kind::Rotate => to(30.0),
            Kind::Brightness | Kind::Colour | Kind::Contrast | Kind::Sharpness => to(0.9),
            Kind::Posterize => {
                let step = (bins - 1) as f64 / 4.0;
                8.0 - f64::from((at as f32 / step as f32).round_ties_even())
            }
            Kind::Solarize => evenly(255.0, 0.0, at, bins),
            _ => 0.0,
        }
    }

    /// What torchvision does for a name and a magnitude with its sign; none for names that it has not.
    pub fn operation(name: &str, magnitude: f64) -> Option<Operation> {
        let found = TORCHVISION.iter().find(|(known, _)| *known == name);
        found.map(|(_, kind)| from_torchvision(*kind, magnitude))
    }
}

/// `torch.linspace` in `f32`: from both ends to the middle.
fn evenly(start: f32, end: f32, at: usize, count: usize) -> f64 {
    let step = (end - start) / (count - 1) as f32;
    f64::from(if at < count / 2 { start + step * at as f32 } else { end - step * (count - at - 1) as f32 })
}

fn from_torchvision(kind: Kind, magnitude: f64) -> Operation {
    // The angle is handed over in degrees.
    let angle = magnitude.atan().to_degrees().to_radians();
    let factor = 1.0 + magnitude;
    match kind {
        Kind::ShearX => Operation::Affine([1.0, angle.tan(), 0.0, 0.0, 1.0, 0.0]),
        Kind::ShearY => Operation::Affine([1.0, 0.0, 0.0, angle.sin() / angle.cos(), 1.0, 0.0]),
        Kind::TranslateX => Operation::shift(-magnitude.trunc(), 0.0),
        Kind::TranslateY => Operation::shift(0.0, -magnitude.trunc()),
        Kind::Rotate => Operation::Rotate(magnitude),
        Kind::Brightness => Operation::Brightness(factor),
        Kind::Colour => Operation::Colour(factor),
        Kind::Contrast => Operation::Contrast(factor),
        Kind::Sharpness => Operation::Sharpness(factor),
        Kind::Posterize => Operation::Posterize(magnitude as u32),
        Kind::Solarize => Operation::Solarize(magnitude),
        Kind::AutoContrast => Operation::AutoContrast,
        Kind::Equalize => Operation::Equalize,
        Kind::Invert => Operation::Invert,
        Kind::Identity | Kind::SolarizeAdd => Operation::Identity,
    }
}

impl TimmRandAugment {
    /// What timm does for a name of the increasing or the other table, a magnitude, the sign that it has drawn, and an image
    /// of `size`, (width, height); none for names that it has not.
    pub fn operation(
        name: &str,
        increasing: bool,
        magnitude: f64,
        negative: bool,
        size: (usize, usize),
    ) -> Option<Operation> {
        let found = TIMM.iter().find(|(known, _)| *known == name);
        found.map(|(_, kind)| from_timm(*kind, increasing, magnitude, negative, size))
    }
}

fn from_timm(kind: Kind, increasing: bool, magnitude: f64, negative: bool, size: (usize, usize)) -> Operation {
    let share = magnitude / STRONGEST;
    let signed = |value: f64| if negative { -value } else { value };
    let factor = if increasing { (1.0 + signed(share * 0.9)).max(0.1) } else { share * 1.8 + 0.1 };
    match kind {
        Kind::ShearX => Operation::Affine([1.0, signed(share * 0.3), 0.0, 0.0, 1.0, 0.0]),
        Kind::ShearY => Operation::Affine([1.0, 0.0, 0.0, signed(share * 0.3), 1.0, 0.0]),
        Kind::TranslateX => Operation::shift(signed(share * 0.45) * size.0 as f64, 0.0),
        Kind::TranslateY => Operation::shift(0.0, signed(share * 0.45) * size.1 as f64),
        Kind::Rotate => Operation::Rotate(signed(share * 30.0)),
        Kind::Brightness => Operation::Brightness(factor),
        Kind::Colour => Operation::Colour(factor),
        Kind::Contrast => Operation::Contrast(factor),
        Kind::Sharpness => Operation::Sharpness(factor),
        Kind::Posterize => {
            let bits = (share * 4.0) as u32;
            Operation::Posterize(if increasing { 4u32.saturating_sub(bits) } else { bits })
        }
        Kind::Solarize => {
            let threshold = ((share * 256.0) as u32).min(256);
            Operation::Solarize(f64::from(if increasing { 256 - threshold } else { threshold }))
        }
        Kind::SolarizeAdd => Operation::SolarizeAdd(((share * 110.0) as u32).min(128) as u8),
        Kind::AutoContrast => Operation::AutoContrast,
        Kind::Equalize => Operation::Equalize,
        Kind::Invert => Operation::Invert,
        Kind::Identity => Operation::Identity,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_core::Purpose;

    fn image() -> RgbImage {
        RgbImage::new(24, 20, (0..24 * 20 * 3).map(|i| (i * i % 251) as u8).collect()).unwrap()
    }

    #[test]
    fn what_is_done_is_a_function_of_the_stream() {
        for settings in [
            RandAugment::Torchvision(TorchvisionRandAugment::default()),
            RandAugment::Timm(TimmRandAugment { deviation: 0.5, ..TimmRandAugment::default() }),
        ] {
            let made = |position| settings.apply(image(), &mut Stream::new(3, Purpose::RandAugment, position));
            let changed = (0..60).filter(|position| made(*position) != image()).count();
            assert!(changed > 30, "{settings:?}: {changed}");
            assert_eq!(made(7), made(7));
            assert!((0..60).any(|position| made(position) != made(7)));
        }
        let never = RandAugment::Timm(TimmRandAugment { probability: 0.0, ..TimmRandAugment::default() });
        assert_eq!(never.apply(image(), &mut Stream::new(3, Purpose::RandAugment, 0)), image());
    }

    #[test]
    fn settings_are_read_and_refused_by_name() {
        let read: RandAugment = serde_json::from_str(r#"{"timm": {"magnitude": 9, "deviation": 0.5}}"#).unwrap();
        let expected = TimmRandAugment { magnitude: 9.0, deviation: 0.5, ..TimmRandAugment::default() };
        assert_eq!(read, RandAugment::Timm(expected));
        for text in [r#"{"timm": {"magnitud": 9}}"#, r#"{"keras": {}}"#, r#"{"torchvision": {"deviation": 1}}"#] {
            assert!(serde_json::from_str::<RandAugment>(text).is_err(), "{text}");
        }
        let (torchvision, timm) = (TorchvisionRandAugment::default(), TimmRandAugment::default());
        for (bad, part) in [
            (RandAugment::Torchvision(TorchvisionRandAugment { magnitude: 31, ..torchvision }), "magnitude = 31"),
            (RandAugment::Torchvision(TorchvisionRandAugment { bins: 1, ..torchvision }), "bins = 1"),
            (RandAugment::Timm(TimmRandAugment { magnitude: -1.0, ..timm }), "magnitude = -1"),
            (RandAugment::Timm(TimmRandAugment { deviation: f64::NAN, ..timm }), "deviation"),
            (RandAugment::Timm(TimmRandAugment { most: f64::INFINITY, ..timm }), "most"),
            (RandAugment::Timm(TimmRandAugment { probability: 1.5, ..timm }), "probability = 1.5"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
