//! Precision of activations by name.

use burn::tensor::{DType, Device};
use calotype_core::names;
use calotype_kernels::multiplies_bf16;

names! {
    /// Precision of activations and their gradients; trained weights and optimizer state are always `f32`.
    #[derive(Default)]
    Precision, "precision" {
        /// Everything in `f32`.
        #[default]
        F32 = "f32",
        /// Activations in `bf16`.
        Bf16 = "bf16",
        /// `bf16` on a CPU with instructions that multiply it, `f32` elsewhere.
        Auto = "auto",
    }
}

impl Precision {
    /// `f32` or `bf16`: what `auto` means on a device.
    pub fn resolve(self, device: &Device) -> Self {
        if self.dtype(device) == DType::BF16 { Self::Bf16 } else { Self::F32 }
    }

    /// The dtype of activations on a device.
    pub fn dtype(self, device: &Device) -> DType {
        match self {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
            Precision::Auto if crate::uses_kernels(device) && multiplies_bf16() => DType::BF16,
            Precision::Auto => DType::F32,
        }
    }
}
