//! Components as tensor sources: stored tensors under canonical keys, and canonical tensors under stored keys.

use crate::kinds::Component;
use crate::map::{Form, StoredTensor};
use crate::networks::TensorSpec;
use calotype_models::state::int8_values;
use calotype_weights::source::{Int8Tensor, TensorInfo, TensorSource};
use calotype_weights::tensor_file::{Dtype, NamedTensor, TensorFileError};
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// One component of a checkpoint under its canonical keys, read tensor by tensor from wherever it is stored.
///
/// A tensor that is stored as it is, or as a part of another one, is borrowed from the file; a transposed one is copied
/// when it is asked for.
pub struct ComponentSource {
    /// The component.
    pub component: Component,
    /// Its configuration, as diffusers or transformers would write it.
    pub config: Value,
    /// Canonical keys that the configuration asks for and the checkpoint lacks.
    pub missing: Vec<String>,
    /// Stored keys below the component's own prefix that nothing takes.
    pub unused: Vec<String>,
    source: Arc<dyn TensorSource>,
    entries: Vec<Entry>,
    index: HashMap<String, usize>,
}

/// One canonical tensor that is there.
pub(crate) struct Entry {
    pub(crate) spec: TensorSpec,
    /// Type of the elements as they are given.
    pub(crate) dtype: Dtype,
    pub(crate) key: String,
    pub(crate) form: Form,
    /// The key of what the elements are multiplied by (8-bit weights, ComfyUI's and our own): one number, or one for each row.
    pub(crate) scale: Option<String>,
    /// Of weights that are whole numbers in 8 bits: the key of what inputs are divided by, if there is one.
    pub(crate) int8: Option<Option<String>>,
    /// Elements that follow the stored ones: rows of learned words. `spec` counts them.
    pub(crate) appended: Arc<[f32]>,
}

impl Entry {
    /// The elements before they are put into the canonical form, scaled.
    fn stored<'s>(&self, source: &'s dyn TensorSource) -> Result<NamedTensor<'s>, TensorFileError> {
        if let Some(int8) = self.int8(source)? {
            let Int8Tensor { numbers, scales, smooth } = int8;
            let values = int8_values(&numbers.data, &scales, smooth.as_deref());
            return Ok(NamedTensor { dtype: Dtype::F32, data: bytes_of(&values).into(), ..numbers });
        }
        let tensor = source.tensor(&self.key)?;
        let Some(scale_key) = &self.scale else { return Ok(tensor) };
        let (scales, file) = (source.tensor(scale_key)?, source.origin().to_owned());
        let rows = tensor.shape.first().copied().unwrap_or(1).max(1);
        let wrong = |got: &NamedTensor<'_>, expected| TensorFileError::WrongDtype {
            file: file.clone(),
            tensor: got.name.clone(),
            expected,
            got: got.dtype,
        };
        let factors = scales.to_f32_vec().ok_or_else(|| wrong(&scales, "a floating-point type"))?;
        let mut values = tensor.to_f32_vec().ok_or_else(|| wrong(&tensor, "a floating-point type"))?;
        if ![1, rows].contains(&factors.len()) {
            let (tensor, expected, got) = (scale_key.clone(), vec![rows], scales.shape);
            return Err(TensorFileError::WrongShape { file, tensor, expected, got });
        }
        let row = (values.len() / rows).max(1);
        for (at, value) in values.iter_mut().enumerate() {
            *value *= factors[(at / row).min(factors.len() - 1)];
        }
        Ok(NamedTensor { dtype: Dtype::F32, data: bytes_of(&values).into(), ..tensor })
    }

    /// Whole numbers in 8 bits as they are stored, with their scales; none for other tensors.
    fn int8<'s>(&self, source: &'s dyn TensorSource) -> Result<Option<Int8Tensor<'s>>, TensorFileError> {
        let (Some(smooth_key), Some(scale_key)) = (&self.int8, &self.scale) else { return Ok(None) };
        let numbers = source.tensor(&self.key)?;
        let [outputs, inputs] = [0, 1].map(|axis| numbers.shape.get(axis).copied().unwrap_or(1));
        let vector = |key: &String, len: usize, is_scale: bool| {
            let (tensor, file) = (source.tensor(key)?, source.origin().to_owned());
            let Some(values) = tensor.to_f32_vec() else {
                let (tensor, expected, got) = (key.clone(), "a floating-point type", tensor.dtype);
                return Err(TensorFileError::WrongDtype { file, tensor, expected, got });
            };
            let bad = |value: &f32| !value.is_finite() || *value < 0.0 || (*value == 0.0 && !is_scale);
            if let Some(index) = values.iter().position(bad) {
                return Err(TensorFileError::Scale { file, tensor: key.clone(), index, value: values[index] });
            }
            if values.len() == len {
                return Ok(values);
            }
            if is_scale && values.len() == 1 {
                return Ok(vec![values[0]; len]);
            }
            let (tensor, expected, got) = (key.clone(), vec![len], tensor.shape);
            Err(TensorFileError::WrongShape { file, tensor, expected, got })
        };
        let scales = vector(scale_key, outputs, true)?;
        let smooth = smooth_key.as_ref().map(|key| vector(key, inputs, false)).transpose()?;
        Ok(Some(Int8Tensor { numbers, scales, smooth }))
    }
}

/// The values as little-endian bytes.
fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

impl std::fmt::Debug for ComponentSource {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (component, tensors) = (self.component, self.entries.len());
        formatter.debug_struct("ComponentSource").field("component", &component).field("tensors", &tensors).finish()
    }
}

impl ComponentSource {
    pub(crate) fn new(
        component: Component,
        config: Value,
        source: Arc<dyn TensorSource>,
        entries: Vec<Entry>,
        missing: Vec<String>,
        unused: Vec<String>,
    ) -> Self {
        let index = entries.iter().enumerate().map(|(at, entry)| (entry.spec.name.clone(), at)).collect();
        Self { component, config, missing, unused, source, entries, index }
    }

    /// Number of elements of all tensors.
    pub fn parameters(&self) -> usize {
        self.entries.iter().map(|entry| entry.spec.shape.iter().product::<usize>()).sum()
    }

    /// Number of tensors that are stored in 8 bits, with scales for the products of layers.
    pub fn int8_tensors(&self) -> usize {
        self.entries.iter().filter(|entry| entry.int8.is_some()).count()
    }

    /// Whether a tensor is stored in 8 bits, as [`ComponentSource::int8_tensors`] counts them.
    pub fn is_int8(&self, name: &str) -> bool {
        self.index.get(name).is_some_and(|&at| self.entries[at].int8.is_some())
    }

    /// The canonical tensors that are there.
    pub fn specs(&self) -> Vec<TensorSpec> {
        self.entries.iter().map(|entry| entry.spec.clone()).collect()
    }
}

impl TensorSource for ComponentSource {
    fn origin(&self) -> &Path {
        self.source.origin()
    }

    fn entries(&self) -> Vec<TensorInfo> {
        let info = |entry: &Entry| TensorInfo {
            name: entry.spec.name.clone(),
            dtype: entry.dtype,
            shape: entry.spec.shape.clone(),
        };
        self.entries.iter().map(info).collect()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        let Some(&at) = self.index.get(name) else {
            // The file's own answer names it and what is like it.
            return self.source.tensor(name).and_then(|_| Err(absent(self.origin(), name, self.entries.len())));
        };
        let entry = &self.entries[at];
        let stored = entry.stored(&*self.source)?;
        if entry.appended.is_empty() {
            return Ok(entry.form.read(stored, &entry.spec));
        }
        let mut values = stored.to_f32_vec().ok_or_else(|| absent(self.origin(), name, self.entries.len()))?;
        values.extend_from_slice(&entry.appended);
        Ok(NamedTensor::new(name, Dtype::F32, entry.spec.shape.clone(), bytes_of(&values)))
    }

    fn int8(&self, name: &str) -> Result<Option<Int8Tensor<'_>>, TensorFileError> {
        let Some(&at) = self.index.get(name) else { return Ok(None) };
        let entry = &self.entries[at];
        let int8 = entry.int8(&*self.source)?;
        Ok(int8.map(|int8| Int8Tensor { numbers: entry.form.read(int8.numbers, &entry.spec), ..int8 }))
    }

    fn release(&self, name: &str) {
        if let Some(&at) = self.index.get(name) {
            self.source.release(&self.entries[at].key);
        }
    }
}

fn absent(origin: &Path, name: &str, count: usize) -> TensorFileError {
    TensorFileError::MissingTensor { file: origin.to_owned(), tensor: name.to_owned(), count, nearest: None }
}

/// Canonical tensors under the keys and in the forms of another layout.
pub(crate) struct StoredSource<'a> {
    parts: Vec<(&'a ComponentSource, Vec<TensorSpec>)>,
    tensors: Vec<(usize, StoredTensor)>,
    index: HashMap<String, usize>,
    /// Tensors that are of no component.
    marks: Vec<NamedTensor<'static>>,
}

impl<'a> StoredSource<'a> {
    /// `parts` are components with the stored tensors that their map gives for [`ComponentSource::specs`].
    pub(crate) fn new(parts: Vec<(&'a ComponentSource, Vec<StoredTensor>)>, marks: Vec<NamedTensor<'static>>) -> Self {
        let mut tensors = Vec::new();
        let mut sources = Vec::new();
        for (part, (source, stored)) in parts.into_iter().enumerate() {
            sources.push((source, source.specs()));
            tensors.extend(stored.into_iter().map(|tensor| (part, tensor)));
        }
        let index = tensors.iter().enumerate().map(|(at, (_, tensor))| (tensor.key.clone(), at)).collect();
        Self { parts: sources, tensors, index, marks }
    }
}

impl TensorSource for StoredSource<'_> {
    fn origin(&self) -> &Path {
        self.parts.first().map_or(Path::new(""), |(source, _)| source.origin())
    }

    fn entries(&self) -> Vec<TensorInfo> {
        let info = |(part, tensor): &(usize, StoredTensor)| TensorInfo {
            name: tensor.key.clone(),
            dtype: self.parts[*part].0.entries[tensor.parts[0]].dtype,
            shape: tensor.shape.clone(),
        };
        let mark = |mark: &NamedTensor<'_>| TensorInfo {
            name: mark.name.clone(),
            dtype: mark.dtype,
            shape: mark.shape.clone(),
        };
        self.tensors.iter().map(info).chain(self.marks.iter().map(mark)).collect()
    }

    fn tensor(&self, name: &str) -> Result<NamedTensor<'_>, TensorFileError> {
        let Some(&at) = self.index.get(name) else {
            let mark = self.marks.iter().find(|mark| mark.name == name).cloned();
            return mark.ok_or_else(|| absent(self.origin(), name, self.tensors.len()));
        };
        let (part, stored) = &self.tensors[at];
        let (source, specs) = &self.parts[*part];
        let parts: Result<Vec<_>, _> = stored.parts.iter().map(|&index| source.tensor(&specs[index].name)).collect();
        let parts = parts?;
        // A third that is missing, or has another type than its siblings, cannot be joined with them.
        let whole = parts.len() == 1 || parts.len() == 3;
        if let Some(odd) = parts.iter().find(|tensor| tensor.dtype != parts[0].dtype || !whole) {
            return Err(TensorFileError::Unwritable {
                file: source.origin().to_owned(),
                tensor: odd.name.clone(),
                reason: format!("it is joined with its siblings into `{name}`, which are missing or of another type"),
            });
        }
        Ok(stored.assemble(parts))
    }

    fn release(&self, name: &str) {
        if let Some(&at) = self.index.get(name) {
            let (part, stored) = &self.tensors[at];
            let (source, specs) = &self.parts[*part];
            stored.parts.iter().for_each(|&index| source.release(&specs[index].name));
        }
    }
}
