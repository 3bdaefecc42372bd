//! From decoded samples to tensors.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calotype_data::image::{Filter, RgbImage};
use calotype_data::{Error, SampleRef};
use calotype_models::tokenizer::Tokens;

/// The picture of a sample: the first of `parts` that it has.
///
/// # Errors
/// Names the sample where the picture is missing or unreadable.
pub fn decode_picture(sample: &SampleRef<'_>, parts: &[String]) -> Result<RgbImage, Error> {
    let found = parts.iter().find(|part| sample.parts().any(|(extension, _)| extension == part.as_str()));
    match found {
        Some(part) => RgbImage::decode(sample.key(), sample.part(part)?),
        None => Err(Error::MissingPart {
            key: sample.key().to_owned(),
            part: parts.join(" or "),
            present: sample.parts().map(|(extension, _)| extension).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// A square picture of a sample, `[side, side, 3]` in `-1..1`.
///
/// # Errors
/// Names the sample where the picture is missing or unreadable.
pub fn picture(sample: &SampleRef<'_>, parts: &[String], side: usize) -> Result<Vec<f32>, Error> {
    fit(decode_picture(sample, parts)?, side)
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
