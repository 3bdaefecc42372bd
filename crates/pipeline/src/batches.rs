//! Rows of numbers and of tokens as tensors.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use calotype_models::tokenizer::Tokens;

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
