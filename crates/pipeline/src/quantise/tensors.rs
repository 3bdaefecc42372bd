//! The tensors of a UNet whose layers are in 8 bits.

use super::layers::{Layer, Plan};
use calotype_checkpoints::ComponentSource;
use calotype_kernels::quantise_rows;
use calotype_weights::{Dtype, NamedTensor, TensorFileError, TensorInfo, TensorSource};
use std::borrow::Cow;
use std::path::Path;

/// Weights in 8 bits with their scales, and everything else as it is.
pub(super) struct Int8Tensors<'a> {
    pub(super) source: &'a ComponentSource,
    pub(super) plan: &'a Plan,
}

/// Key of the scales of a weight, and of what its inputs are divided by.
fn companions(key: &str) -> [String; 2] {
    let module = key.strip_suffix(".weight").unwrap_or(key);
    [format!("{module}.weight_scale"), format!("{module}.smooth")]
}

/// The elements of a tensor, all of which must be finite.
pub(super) fn finite(source: &ComponentSource, tensor: &NamedTensor<'_>) -> Result<Vec<f32>, TensorFileError> {
    let (file, name) = (source.origin().to_owned(), tensor.name.clone());
    let Some(values) = tensor.to_f32_vec() else {
        let expected = "a floating-point type";
        return Err(TensorFileError::WrongDtype { file, tensor: name, expected, got: tensor.dtype });
    };
    let odd = |value: &f32| !value.is_finite();
    let Some(index) = values.iter().position(odd) else { return Ok(values) };
    let count = values.iter().filter(|value| odd(value)).count();
    Err(TensorFileError::NonFinite { file, tensor: name, count, index, value: values[index] })
}

fn floats(name: &str, values: &[f32]) -> NamedTensor<'static> {
    NamedTensor::from_f32(name, vec![values.len()], values).into_owned()
}

impl Int8Tensors<'_> {
    /// The numbers of a weight, and its scales.
    fn quantised(&self, key: &str, layer: &Layer) -> Result<(Vec<i8>, Vec<f32>), TensorFileError> {
        let tensor = self.source.tensor(key)?;
        let mut values = finite(self.source, &tensor)?;
        let row = tensor.shape[1..].iter().product::<usize>();
        if let Some(factors) = &layer.factors {
            let taps = (row / factors.len().max(1)).max(1);
            for row in values.chunks_exact_mut(row.max(1)) {
                row.chunks_mut(taps).zip(factors).for_each(|(taps, factor)| taps.iter_mut().for_each(|w| *w *= factor));
            }
        }
        Ok(quantise_rows(&values, row.max(1)))
    }

    /// The layer that a tensor of scales or factors belongs to.
    fn layer_of(&self, name: &str) -> Option<(String, &Layer)> {
        let module = name.strip_suffix(".weight_scale").or_else(|| name.strip_suffix(".smooth"))?;
        let (key, layer) = self.plan.layers.get_key_value(&format!("{module}.weight"))?;
        Some((key.clone(), layer))
    }
}

impl TensorSource for Int8Tensors<'_> {
    fn origin(&self) -> &Path {
        self.source.origin()
    }

    fn entries(&self) -> Vec<TensorInfo> {
        let mut entries = Vec::new();
        for mut tensor in self.source.entries() {
            if let Some(layer) = self.plan.layers.get(&tensor.name) {
                let [scale, smooth] = companions(&tensor.name);
                let vector = |name, len| TensorInfo { name, dtype: Dtype::F32, shape: vec![len] };
                entries.push(vector(scale, tensor.shape[0]));
                let stored = layer.factors.as_ref().filter(|_| !layer.folded);
                entries.extend(stored.map(|factors| vector(smooth, factors.len())));
                tensor.dtype = Dtype::I8;
            } else if self.plan.norms.contains_key(&tensor.name) {
                tensor.dtype = Dtype::F32;
            }
            entries.push(tensor);
        }
        entries
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        if let Some(layer) = self.plan.layers.get(name) {
            let (numbers, _) = self.quantised(name, layer)?;
            let shape = self.source.tensor(name)?.shape;
            let bytes = numbers.into_iter().map(|number| number as u8).collect();
            return Ok(NamedTensor { name: name.to_owned(), dtype: Dtype::I8, shape, data: Cow::Owned(bytes) });
        }
        if let Some((key, layer)) = self.layer_of(name) {
            return Ok(match &layer.factors {
                Some(factors) if name.ends_with(".smooth") => floats(name, factors),
                _ => floats(name, &self.quantised(&key, layer)?.1),
            });
        }
        let tensor = self.source.tensor(name)?;
        let Some(factors) = self.plan.norms.get(name) else { return Ok(tensor) };
        let divided: Vec<f32> =
            finite(self.source, &tensor)?.iter().zip(factors).map(|(value, factor)| value / factor).collect();
        Ok(floats(name, &divided))
    }

    fn release(&self, name: &str) {
        self.source.release(name);
    }
}
