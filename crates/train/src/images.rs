//! Images of samples as numbers.

use crate::config::{DataSettings, Normalise};
use crate::precache::InputRange;
use burn::tensor::Tensor;
use calotype_data::image::{DecodeNotes, DecodeOptions, Filter, RgbImage};
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use calotype_data::transform::{CropSettings, ImageTransform, Resize, Transform};
use calotype_data::{Error, SampleRef};
use calotype_models::state::values_of;
use calotype_pipeline::encoders::image::ImageInput;
use std::sync::Arc;

/// The image of a sample: the first of `parts` that it has.
///
/// # Errors
/// Names the sample where the image is missing.
pub fn image_bytes<'a>(sample: &SampleRef<'a>, parts: &[String]) -> Result<&'a [u8], Error> {
    let found = parts.iter().find(|part| sample.parts().any(|(extension, _)| extension == part.as_str()));
    match found {
        Some(part) => sample.part(part),
        None => {
            let present: Vec<&str> = sample.parts().map(|(extension, _)| extension).collect();
            let unlisted = present.iter().find(|part| IMAGE_EXTENSIONS.contains(part));
            let advice = unlisted.map_or_else(String::new, |part| {
                let listed: Vec<&str> = parts.iter().map(String::as_str).chain([*part]).collect();
                format!("; `{part}` is an image that the recipe's list does not name: set data.images={listed:?} (images of a precache recipe)")
            });
            let present = format!("{}{advice}", present.join(", "));
            Err(Error::MissingPart { key: sample.key().to_owned(), part: parts.join(Error::OR), present })
        }
    }
}

/// Reads samples' images as squares, cropped and mirrored as a recipe says, by its seed and the sample's position.
#[derive(Clone, Debug)]
pub struct Images {
    parts: Vec<String>,
    resizing: Resizing,
    seed: u64,
}

/// In which numbers images are resized.
#[derive(Clone, Debug)]
enum Resizing {
    /// In levels, as Pillow.
    Levels(Box<Levels>),
    /// In floats, as torchvision resizes tensors.
    Floats { input: ImageInput, decode: DecodeOptions, notes: Arc<DecodeNotes> },
}

#[derive(Clone, Debug)]
struct Levels {
    /// Counts the images that [`Images::notices`] tells of; all clones together.
    counting: ImageTransform,
    /// The same for all others.
    quiet: ImageTransform,
}

impl Images {
    /// Of `side` pixels, as numbers in -1..1.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a probability of mirroring outside of 0 to 1.
    pub fn new(data: &DataSettings, side: usize, seed: u64) -> Result<Self, Error> {
        Self::in_range(data, side, seed, InputRange::MinusOneOne)
    }

    /// The same in another range.
    ///
    /// # Errors
    /// As of [`Images::new`].
    pub fn in_range(data: &DataSettings, side: usize, seed: u64, range: InputRange) -> Result<Self, Error> {
        let resizing = match data.augment.filter.of_levels() {
            None => Resizing::Floats { input: range.of(side), decode: data.decode(), notes: Arc::default() },
            Some(filter) => {
                let crop = CropSettings { place: data.augment.crop, size: None };
                let (resize, crop) = match data.augment.resized_crop {
                    Some(resized) => (Resize::Cropped(side, resized), None),
                    None => (Resize::Shorter(side), Some(crop)),
                };
                let normalise = data.augment.normalise;
                let transform = Transform {
                    resize,
                    filter,
                    crop,
                    flip: data.augment.flip,
                    colour_jitter: data.augment.colour_jitter,
                    auto_augment: data.augment.auto_augment,
                    rand_augment: data.augment.rand_augment,
                    range: range.ends(),
                    normalise: (normalise != Normalise::Half).then(|| normalise.mean_and_deviation()),
                    decode: data.decode(),
                    ..Transform::default()
                };
                Resizing::Levels(Box::new(Levels { counting: transform.clone().build()?, quiet: transform.build()? }))
            }
        };
        Ok(Self { parts: data.images.clone(), resizing, seed })
    }

    /// The image of the sample at a position, `[side, side, 3]`.
    ///
    /// # Errors
    /// Names the sample where the image is missing or unreadable.
    pub fn read(&self, position: u64, sample: &SampleRef<'_>) -> Result<Vec<f32>, Error> {
        self.read_counting(false, position, sample)
    }

    /// [`Images::read`], for [`Images::notices`] if `counted`.
    ///
    /// # Errors
    /// Those of [`Images::read`].
    pub fn read_counting(&self, counted: bool, position: u64, sample: &SampleRef<'_>) -> Result<Vec<f32>, Error> {
        let bytes = image_bytes(sample, &self.parts)?;
        match &self.resizing {
            Resizing::Levels(levels) => {
                let mut values = Vec::new();
                let pipeline = if counted { &levels.counting } else { &levels.quiet };
                pipeline.append(sample.key(), bytes, self.seed, position, &mut values)?;
                Ok(values)
            }
            Resizing::Floats { input, decode, notes } => {
                let (image, found) = RgbImage::decode_noting(sample.key(), bytes, decode)?;
                if counted {
                    notes.add(&found);
                }
                input.prepare(&image, None)
            }
        }
    }

    /// What was changed besides, in images that were read to be counted, in sentences.
    pub fn notices(&self) -> Vec<String> {
        match &self.resizing {
            Resizing::Levels(levels) => levels.counting.notes(),
            Resizing::Floats { decode, notes, .. } => notes.sentences(decode),
        }
    }
}

/// An image as `[side, side, 3]` in `-1..1`; one of another size has its shorter side resized (bicubic) and its middle
/// cut out.
///
/// # Errors
/// Those of resizing.
pub fn fit(image: RgbImage, side: usize) -> Result<Vec<f32>, Error> {
    if (image.width(), image.height()) == (side, side) {
        return Ok(image.to_f32_hwc(-1.0, 1.0));
    }
    let image = image.resize_shorter(side, Filter::Bicubic)?.center_crop(side, side)?;
    Ok(image.to_f32_hwc(-1.0, 1.0))
}

/// `[batch, height, width, 3]` in `-1..1` as 8-bit images.
///
/// # Errors
/// [`Error`] if an image has no pixels.
pub fn images_of(images: Tensor<4>) -> Result<Vec<RgbImage>, Error> {
    let [_, height, width, channels] = images.dims();
    values_of(images)
        .chunks_exact((height * width * channels).max(1))
        .map(|pixels| RgbImage::from_f32_hwc(width, height, pixels, -1.0, 1.0))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Augment;
    use calotype_data::Sample;
    use calotype_data::image::PngEffort;
    use calotype_data::transform::Place;

    #[test]
    fn an_image_of_a_type_that_is_not_listed_is_told() {
        let parts = ["png".to_owned()];
        let error = |sample: &Sample| image_bytes(&SampleRef::from(sample), &parts).unwrap_err().to_string();
        let told = error(&Sample::new("a").with("jpg", "").with("txt", ""));
        assert!(told.contains("no part `png`") && told.contains("data.images=[\"png\", \"jpg\"]"), "{told}");
        assert!(error(&Sample::new("a").with("txt", "")).ends_with("it has: txt"));
    }

    #[test]
    fn images_are_cut_by_seed_and_position() {
        let image = RgbImage::new(40, 24, (0..40 * 24 * 3).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
        let sample = Sample::new("a").with("png", image.encode_png(PngEffort::Fast).unwrap());
        let read = |augment: &Augment, seed: u64, position: u64| {
            let data = DataSettings { augment: augment.clone(), ..toml::from_str("path = 'x'").unwrap() };
            Images::new(&data, 16, seed).unwrap().read(position, &SampleRef::from(&sample)).unwrap()
        };
        let plain = Augment::default();
        assert_eq!(read(&plain, 1, 2), fit(image, 16).unwrap());
        let random = Augment { crop: Place::Random, flip: 0.5, ..plain };
        assert_eq!(read(&random, 1, 2), read(&random, 1, 2));
        assert!((0..20).any(|position| read(&random, 1, position) != read(&random, 1, 2)));
        assert!((0..20).any(|position| read(&random, 1, position) != read(&random, 3, position)));
        let data = DataSettings {
            augment: Augment { flip: 2.0, ..Augment::default() },
            ..toml::from_str("path = 'x'").unwrap()
        };
        assert!(Images::new(&data, 16, 0).is_err());
    }

    #[test]
    fn what_is_random_is_left_out_of_evaluations() {
        let image = RgbImage::new(40, 24, (0..40 * 24 * 3).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
        let sample = Sample::new("a").with("png", image.encode_png(PngEffort::Fast).unwrap());
        let text = "path = 'x'\n[augment]\nflip = 0.5\nnormalise = 'imagenet'\nresized_crop = { scale = [0.3, 1.0] }\n\
                    rand_augment = { timm = { magnitude = 9, deviation = 0.5, increasing = true } }";
        let data: DataSettings = toml::from_str(text).unwrap();
        data.validate().unwrap();
        assert_eq!(toml::from_str::<DataSettings>(&toml::to_string(&data).unwrap()).unwrap(), data);
        let read = |data: &DataSettings, position: u64| {
            Images::new(data, 16, 7).unwrap().read(position, &SampleRef::from(&sample)).unwrap()
        };
        assert!((1..20).any(|position| read(&data, position) != read(&data, 0)));
        assert_eq!(read(&data, 3), read(&data, 3));
        let still = DataSettings { augment: data.augment.without_chance(), ..data };
        let middle = image.resize_shorter(16, Filter::Bicubic).unwrap().center_crop(16, 16).unwrap();
        let (mean, deviation) = Normalise::Imagenet.mean_and_deviation();
        let number = |(at, level): (usize, &u8)| (f32::from(*level) / 255.0 - mean[at % 3]) / deviation[at % 3];
        let expected: Vec<f32> = middle.data().iter().enumerate().map(number).collect();
        assert!((0..5).all(|position| read(&still, position) == expected));
    }

    #[test]
    fn augmentations_that_contradict_each_other_are_refused_by_key() {
        for (text, key) in [
            ("crop = 'random'\nresized_crop = {}", "data.augment.crop"),
            ("resized_crop = { scale = [0.5, 0.1] }", "data.augment.resized_crop"),
            ("rand_augment = { torchvision = { magnitude = 31 } }", "data.augment.rand_augment"),
            ("rand_augment = { timm = {} }\nauto_augment = 'imagenet'", "data.augment.rand_augment"),
            ("colour_jitter = { hue = 0.7 }", "data.augment.colour_jitter"),
            ("rand_augment = { torchvision = {} }\nfilter = 'torch_bicubic'", "data.augment.filter"),
            ("normalise = 'clip'\nfilter = 'torch_bicubic'", "data.augment.filter"),
        ] {
            let data: DataSettings = toml::from_str(&format!("path = 'x'\n[augment]\n{text}")).unwrap();
            assert_eq!(data.validate().unwrap_err().key, key, "{text}");
        }
        for text in [
            "auto_augment = 'cifar'",
            "colour_jitter = { gamma = 1 }",
            "normalise = 'imagenett'",
            "resized_crop = { size = 3 }",
            "rand_augment = { keras = {} }",
        ] {
            assert!(toml::from_str::<DataSettings>(&format!("path = 'x'\n[augment]\n{text}")).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_and_resizing_are_those_of_precaching() {
        let image = RgbImage::new(40, 24, (0..40 * 24 * 3).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
        let sample = Sample::new("a").with("png", image.encode_png(PngEffort::Fast).unwrap());
        for filter in ["bicubic", "bilinear", "lanczos", "box", "nearest", "torch_bicubic"] {
            let data: DataSettings =
                toml::from_str(&format!("path = 'x'\naugment = {{ filter = '{filter}' }}")).unwrap();
            data.validate().unwrap();
            for range in [InputRange::MinusOneOne, InputRange::MlperfZeroOne] {
                let images = Images::in_range(&data, 16, 3, range).unwrap();
                let expected = range.of(16).prepare(&image, data.augment.filter.of_levels()).unwrap();
                assert_eq!(images.read(5, &SampleRef::from(&sample)).unwrap(), expected, "{filter}");
                assert_eq!(images.read_counting(true, 5, &SampleRef::from(&sample)).unwrap(), expected, "{filter}");
            }
        }
        for wrong in ["crop = 'random'", "flip = 0.5"] {
            let text = format!("path = 'x'\naugment = {{ filter = 'torch_bicubic', {wrong} }}");
            let error = toml::from_str::<DataSettings>(&text).unwrap().validate().unwrap_err();
            assert!(error.key == "data.augment.filter" && error.problem.contains("bicubic"), "{error}");
        }
    }

    /// As diffusers and kohya read them, unless the recipe says otherwise; and counted.
    #[test]
    fn images_are_upright_and_opaque() {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/images");
        let read = |name: &str, recipe: &str| {
            let bytes = std::fs::read(golden.join(name)).unwrap();
            let sample = Sample::new("a").with("png", bytes.clone());
            let images = Images::new(&toml::from_str(recipe).unwrap(), 16, 0).unwrap();
            let pixels = images.read_counting(true, 0, &SampleRef::from(&sample)).unwrap();
            assert_eq!(images.read(0, &SampleRef::from(&sample)).unwrap(), pixels);
            (pixels, images.notices().join("; "), bytes)
        };
        for (name, recipe, note) in [
            ("orientation_6.jpg", "path = 'x'", "1 image turned upright"),
            ("orientation_6.jpg", "path = 'x'\norient = false", "1 image left as stored"),
            ("alpha.png", "path = 'x'", "1 image with transparent pixels laid on white"),
            ("alpha.png", "path = 'x'\nbackground = '#c0ffee'", "laid on #c0ffee"),
            ("alpha.png", "path = 'x'\nbackground = 'keep hidden colours'", "hidden colours were kept"),
        ] {
            let (pixels, notes, bytes) = read(name, recipe);
            assert!(notes.contains(note), "{name}, {recipe}: {notes}");
            let data: DataSettings = toml::from_str(recipe).unwrap();
            let image = RgbImage::decode_with(name, &bytes, &data.decode()).unwrap();
            assert_eq!(pixels, fit(image, 16).unwrap(), "{name}, {recipe}");
        }
        assert!(toml::from_str::<DataSettings>("path = 'x'\nbackground = 'blue'").is_err());
    }
}
