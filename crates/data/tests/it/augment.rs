//! Augmentations on given choices, to the pixel those of Pillow 13.0.0, torchvision 0.29.2 and timm 1.0.31; `make_augmentations.py`
//! made the golden values.

use calotype_data::augment::{AutoAugment, ColourJitter, Draws, ResizedCrop, TimmRandAugment, TorchvisionRandAugment};
use calotype_data::image::{Filter, RgbImage, Sampling};
use serde_json::Value;
use std::path::PathBuf;
use std::sync::LazyLock;

static GOLDEN: LazyLock<Value> = LazyLock::new(|| {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/augmentations.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
});

fn cases(group: &str) -> &'static Vec<Value> {
    GOLDEN[group].as_array().unwrap()
}

/// Levels by formula, as the script computes them.
fn picture(case: &Value) -> RgbImage {
    let (kind, [width, height]) = (case[0].as_str().unwrap(), [1, 2].map(|at| case[at].as_u64().unwrap() as usize));
    let level = |i: usize| {
        let (x, y, c) = (i / 3 % width, i / 3 / width, i % 3);
        match kind {
            "noise" => (i * i * 31 + i * 7) % 256,
            "ramp" => (5 * x + 3 * y + 40 * c) % 256,
            "dull" => 90 + (i * 7 + y) % 60,
            _ => 77,
        }
    };
    RgbImage::new(width, height, (0..3 * width * height).map(|i| level(i) as u8).collect()).unwrap()
}

fn checksum(image: &RgbImage) -> u64 {
    crc32fast::hash(image.data()).into()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

#[test]
fn operations_of_torchvision_are_pillows_to_the_pixel() {
    for case in cases("torchvision") {
        let operation = TorchvisionRandAugment::operation(text(&case[3]), case[4].as_f64().unwrap()).unwrap();
        let sampling: Sampling = text(&case[5]).parse().unwrap();
        let found = operation.apply(picture(case), sampling, [10, 20, 30]);
        assert_eq!(Some(checksum(&found)), case[6].as_u64(), "{case}: {operation:?}");
    }
    assert!(cases("torchvision").len() > 400);
    assert_eq!(TorchvisionRandAugment::operation("Cutout", 1.0), None);
}

#[test]
fn operations_of_timm_are_pillows_to_the_pixel() {
    for case in cases("timm") {
        let image = picture(case);
        let size = (image.width(), image.height());
        let [increasing, negative] = [4, 6].map(|at| case[at].as_bool().unwrap());
        let magnitude = case[5].as_f64().unwrap();
        let operation = TimmRandAugment::operation(text(&case[3]), increasing, magnitude, negative, size).unwrap();
        let sampling: Sampling = text(&case[7]).parse().unwrap();
        let found = operation.apply(image, sampling, [124, 116, 104]);
        assert_eq!(Some(checksum(&found)), case[8].as_u64(), "{case}: {operation:?}");
    }
    assert!(cases("timm").len() > 400);
}

#[test]
fn jitter_is_torchvisions_to_the_pixel() {
    let jitter = ColourJitter { brightness: 1.0, contrast: 1.0, saturation: 1.0, hue: 0.5 };
    for case in cases("jitters") {
        let order = [0, 1, 2, 3].map(|at| case[3][at].as_u64().unwrap() as usize);
        let factors = [0, 1, 2, 3].map(|which| case[4][which].as_f64().unwrap());
        let found = jitter.changed(picture(case), order, factors);
        assert_eq!(Some(checksum(&found)), case[5].as_u64(), "{case}");
    }
    assert_eq!(cases("jitters").len(), 24);
}

#[test]
fn policies_of_auto_augment_are_those_of_nemo_to_the_pixel() {
    for case in cases("policies") {
        let made = [0, 1].map(|at| case[4][at].as_bool().unwrap());
        let negative = [case[5].as_bool().unwrap(); 2];
        let policy = case[3].as_u64().unwrap() as usize;
        let found = AutoAugment::Imagenet.changed(picture(case), policy, made, negative);
        assert_eq!(Some(checksum(&found)), case[6].as_u64(), "{case}");
    }
    assert_eq!(cases("policies").len(), 300);
}

/// Within a unit or two in the last place: torch computes with vectors of whatever length the processor has.
#[test]
fn magnitudes_are_those_of_torchvision() {
    for case in cases("magnitudes") {
        let expected = case[1].as_array().unwrap();
        assert_eq!(expected.len(), 31);
        for (at, expected) in expected.iter().enumerate() {
            let found = TorchvisionRandAugment::magnitude_of(text(&case[0]), at, 31, (37, 29));
            let apart = (found - expected.as_f64().unwrap()).abs();
            assert!(apart <= 2e-7 * found.abs().max(1.0), "{case} {at}: {found}");
        }
    }
    assert_eq!(cases("magnitudes").len(), 11);
}

/// Numbers that were drawn elsewhere.
struct Drawn<'a>(std::slice::Iter<'a, Value>);

impl Draws for Drawn<'_> {
    fn within(&mut self, _: f32, _: f32) -> f32 {
        self.0.next().unwrap().as_f64().unwrap() as f32
    }

    fn below(&mut self, _: usize) -> usize {
        self.0.next().unwrap().as_u64().unwrap() as usize
    }
}

#[test]
fn resized_crops_are_those_of_torchvision_to_the_pixel() {
    for case in cases("crops") {
        let [width, height] = [0, 1].map(|at| case[at].as_u64().unwrap() as usize);
        let pair = |value: &Value| (value[0].as_f64().unwrap(), value[1].as_f64().unwrap());
        let crop = ResizedCrop { scale: pair(&case[2]), ratio: pair(&case[3]), ..ResizedCrop::default() };
        let mut drawn = Drawn(case[4].as_array().unwrap().iter());
        let rectangle = crop.rectangle((width, height), &mut drawn);
        let expected: Vec<usize> = case[5].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        assert_eq!((rectangle.as_slice(), drawn.0.len()), (expected.as_slice(), 0), "{case}");
        let image = picture(&serde_json::json!(["noise", width, height]));
        let [x, y, columns, rows] = rectangle;
        let filter = if case[6] == 0 { Filter::Bilinear } else { Filter::Bicubic };
        let found = image.crop(x, y, columns, rows).unwrap().resize(16, 16, filter).unwrap();
        assert_eq!(Some(checksum(&found)), case[7].as_u64(), "{case}");
    }
    assert_eq!(cases("crops").len(), 90);
}
