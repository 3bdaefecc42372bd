//! Weights of layers, as tensors or in the form alone that the kernels multiply with.

use burn::tensor::{DType, Device, Tensor, TensorData};
use calotype_kernels::{PackedWeights, StoredType, StoredWeight};
use half::bf16;
use std::borrow::Cow;
use std::sync::Arc;

/// The operation that a weight is multiplied in, which decides how it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightUse {
    /// [`crate::linear`].
    Linear,
    /// [`crate::linear_geglu`]: values and gates stand side by side.
    LinearGeglu,
    /// [`crate::conv2d`].
    Conv2d,
}

/// A weight in the order in which products with `bf16` activations read it, and in no other: for inference on the CPU.
///
/// Clones share the memory. Its numbers are those of the `bf16` tensor that it was packed from.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    packed: Arc<PackedWeights>,
    /// As the tensor's would be: `[out, in]` or `[out, rows, columns, in]`.
    shape: Vec<usize>,
}

impl PackedWeight {
    /// Packs a weight of `shape`, `[out, in]` or `[out, rows, columns, in]`, from the elements that a checkpoint stores for it,
    /// `[out, in]` or `[out, in, rows, columns]`, little-endian and in any alignment; they are rounded to nearest even. Works on all
    /// threads, with the same bits for any number of them.
    ///
    /// `None` if the processor does not multiply `bf16`, the rank does not go with the use, or there are not as many bytes as the
    /// shape needs: the weight is a tensor then, or an error.
    pub fn from_stored(bytes: &[u8], dtype: StoredType, shape: &[usize], usage: WeightUse) -> Option<Self> {
        let (outputs, inputs, kernel) = match (usage, shape) {
            (WeightUse::Linear | WeightUse::LinearGeglu, &[outputs, inputs]) => (outputs, inputs, [1, 1]),
            (WeightUse::Conv2d, &[outputs, rows, columns, inputs]) => (outputs, inputs, [rows, columns]),
            _ => return None,
        };
        let needed = shape.iter().try_fold(dtype.size(), |product, &size| product.checked_mul(size));
        if needed != Some(bytes.len()) {
            return None;
        }
        let stored = StoredWeight { bytes, dtype, outputs, inputs, taps: kernel[0] * kernel[1] };
        let packed = match usage {
            WeightUse::Conv2d => PackedWeights::for_stored_conv(&stored, kernel),
            WeightUse::Linear => PackedWeights::for_stored_linear(&stored),
            WeightUse::LinearGeglu => {
                PackedWeights::for_stored_geglu(&stored).or_else(|| PackedWeights::for_stored_linear(&stored))
            }
        };
        Some(Self { packed: Arc::new(packed?), shape: shape.to_vec() })
    }

    /// The shape of the tensor that it stands for: `[out, in]` or `[out, rows, columns, in]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.packed.bytes()
    }

    /// The tensor that it stands for, `bf16`: a copy, which takes as much memory again.
    ///
    /// # Panics
    /// If `D` is not the rank of [`PackedWeight::shape`].
    pub fn tensor<const D: usize>(&self, device: &Device) -> Tensor<D> {
        let shape: [usize; D] =
            self.shape.as_slice().try_into().unwrap_or_else(|_| panic!("rank {D} of a weight of {:?}", self.shape));
        Tensor::from_data(TensorData::new(self.plain(), shape), (device, DType::BF16))
    }

    /// The packed weights, if they were packed for GEGLU or for what else is wanted.
    pub(crate) fn packed(&self, gated: bool) -> Option<&PackedWeights> {
        (self.packed.is_gated() == gated).then_some(&*self.packed)
    }

    /// The numbers as `f32`, in the tensor's order.
    pub(crate) fn wide(&self) -> Cow<'static, [f32]> {
        self.plain().into_iter().map(bf16::to_f32).collect()
    }

    fn plain(&self) -> Vec<bf16> {
        // None were packed in another way, see `from_stored`.
        self.packed.unpack().unwrap_or_default()
    }
}

/// The weight of a layer: a tensor, which can be trained, or packed for inference.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one a layer; a tensor behind a pointer would cost each call")]
pub enum Weight<const D: usize> {
    /// A tensor, `f32`, or `bf16` for inference.
    Plain(Tensor<D>),
    /// Packed, on the CPU.
    Packed(PackedWeight),
}

impl<const D: usize> From<Tensor<D>> for Weight<D> {
    fn from(tensor: Tensor<D>) -> Self {
        Self::Plain(tensor)
    }
}

impl<const D: usize> From<PackedWeight> for Weight<D> {
    fn from(packed: PackedWeight) -> Self {
        Self::Packed(packed)
    }
}

impl<const D: usize> Weight<D> {
    /// The tensor; a packed weight is unpacked to `device`.
    pub fn into_tensor(self, device: &Device) -> Tensor<D> {
        match self {
            Self::Plain(tensor) => tensor,
            Self::Packed(packed) => packed.tensor(device),
        }
    }
}
