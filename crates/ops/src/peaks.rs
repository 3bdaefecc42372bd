//! The machine's measured peaks, by precision.

use crate::Precision;
use calotype_kernels::{ArithmeticPeak, bf16_peaks, f32_peak};

/// Arithmetic peaks of the instructions that the kernels may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Peaks {
    f32: ArithmeticPeak,
    bf16: Vec<ArithmeticPeak>,
}

impl Peaks {
    /// Measures them, in about half a second.
    pub fn measure() -> Self {
        Self { f32: f32_peak(), bf16: bf16_peaks() }
    }

    /// All of them with the precision of their factors.
    pub fn all(&self) -> impl Iterator<Item = (Precision, ArithmeticPeak)> + '_ {
        let bf16 = self.bf16.iter().map(|&peak| (Precision::Bf16, peak));
        std::iter::once((Precision::F32, self.f32)).chain(bf16)
    }

    /// The one that bounds arithmetic of a precision: the fastest instruction for it. Without any for `bf16`, its
    /// arithmetic is done in `f32`.
    pub fn of(&self, precision: Precision) -> ArithmeticPeak {
        let fastest = self.bf16.iter().copied().max_by(|a, b| a.flops.total_cmp(&b.flops));
        match precision {
            Precision::F32 | Precision::Auto => self.f32,
            Precision::Bf16 => fastest.unwrap_or(self.f32),
        }
    }
}
