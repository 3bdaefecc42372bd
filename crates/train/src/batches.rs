//! From decoded samples to tensors.

use crate::settings::DataSettings;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calotype_data::image::{Filter, RgbImage};
use calotype_data::transform::{CropSettings, Pipeline, Resize, Transform};
use calotype_data::{Error, SampleRef};
use calotype_models::tokenizer::Tokens;

/// The picture of a sample: the first of `parts` that it has.
///
/// # Errors
/// Names the sample where the picture is missing.
pub fn picture_bytes<'a>(sample: &SampleRef<'a>, parts: &[String]) -> Result<&'a [u8], Error> {
    let found = parts.iter().find(|part| sample.parts().any(|(extension, _)| extension == part.as_str()));
    match found {
        Some(part) => sample.part(part),
        None => Err(Error::MissingPart {
            key: sample.key().to_owned(),
            part: parts.join(" or "),
            present: sample.parts().map(|(extension, _)| extension).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// Reads samples' pictures as squares, cropped and mirrored as a recipe says, by its seed and the sample's position.
#[derive(Clone, Debug)]
pub struct Pictures {
    parts: Vec<String>,
    pipeline: Pipeline,
    seed: u64,
}

impl Pictures {
    /// Of `side` pixels.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a probability of mirroring outside of 0 to 1.
    pub fn new(data: &DataSettings, side: usize, seed: u64) -> Result<Self, Error> {
        let augment = &data.augment;
        let transform = Transform {
            resize: Resize::Shorter(side),
            filter: augment.filter,
            crop: Some(CropSettings { place: augment.crop, size: None }),
            flip: augment.flip,
            ..Transform::default()
        };
        Ok(Self { parts: data.pictures.clone(), pipeline: transform.build()?, seed })
    }

    /// The picture of the sample at a position, `[side, side, 3]` in `-1..1`.
    ///
    /// # Errors
    /// Names the sample where the picture is missing or unreadable.
    pub fn read(&self, position: u64, sample: &SampleRef<'_>) -> Result<Vec<f32>, Error> {
        let mut values = Vec::new();
        let bytes = picture_bytes(sample, &self.parts)?;
        self.pipeline.append(sample.key(), bytes, self.seed, position, &mut values)?;
        Ok(values)
    }
}

/// A picture as `[side, side, 3]` in `-1..1`; one of another size has its shorter side resized (bicubic) and its middle
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

/// Stacks equal rows into a tensor whose first dimension counts them.
pub fn stack<'a, const D: usize>(
    rows: impl ExactSizeIterator<Item = &'a [f32]>,
    row_shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Tensor<D> {
    let mut shape = [rows.len(); D];
    shape[1..].copy_from_slice(row_shape);
    let mut data = Vec::with_capacity(shape.iter().product());
    rows.for_each(|row| data.extend_from_slice(row));
    let tensor = Tensor::from_data(TensorData::new(data, shape), device);
    if dtype == DType::F32 { tensor } else { tensor.cast(dtype) }
}

/// Token ids as the text tower takes them, `[batch, tokens]`, and the positions of the end tokens.
pub fn token_ids(tokens: &[Tokens], device: &Device) -> (Tensor<2, Int>, Vec<usize>) {
    let length = tokens.first().map_or(0, |t| t.ids.len());
    let ids: Vec<i32> = tokens.iter().flat_map(|t| t.ids.iter().copied()).collect();
    let ids = Tensor::from_data(TensorData::new(ids, [tokens.len(), length]), device);
    (ids, tokens.iter().map(|t| t.end).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Augment;
    use calotype_data::Sample;
    use calotype_data::image::PngEffort;
    use calotype_data::transform::Place;

    #[test]
    fn pictures_are_cut_by_seed_and_position() {
        let picture = RgbImage::new(40, 24, (0..40 * 24 * 3).map(|i| (i * 7 % 251) as u8).collect()).unwrap();
        let sample = Sample::new("a").with("png", picture.encode_png(PngEffort::Fast).unwrap());
        let read = |augment: &Augment, seed: u64, position: u64| {
            let data = DataSettings { augment: augment.clone(), ..toml::from_str("path = 'x'").unwrap() };
            Pictures::new(&data, 16, seed).unwrap().read(position, &SampleRef::from(&sample)).unwrap()
        };
        let plain = Augment::default();
        assert_eq!(read(&plain, 1, 2), fit(picture, 16).unwrap());
        let random = Augment { crop: Place::Random, flip: 0.5, ..plain };
        assert_eq!(read(&random, 1, 2), read(&random, 1, 2));
        assert!((0..20).any(|position| read(&random, 1, position) != read(&random, 1, 2)));
        assert!((0..20).any(|position| read(&random, 1, position) != read(&random, 3, position)));
        let data = DataSettings {
            augment: Augment { flip: 2.0, ..Augment::default() },
            ..toml::from_str("path = 'x'").unwrap()
        };
        assert!(Pictures::new(&data, 16, 0).is_err());
    }
}
