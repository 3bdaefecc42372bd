//! In what form moments are kept.

use calotype_ops::{EightBitMoment, MomentKind};

calotype_core::names! {
    /// In what form the optimizer keeps its moments; `optimizer.state` of a recipe.
    StateForm, "form of optimizer state" {
        /// As they are.
        F32 = "f32",
        /// In 8 bits by blocks (Dettmers et al. 2022, "8-bit optimizers via block-wise quantization"), but for small parameters.
        EightBit = "8bit",
    }
}

/// Smaller parameters keep their moments in `f32`, as in bitsandbytes (`min_8bit_size`): they are biases and scales, which need
/// precision more than memory.
const LEAST_ELEMENTS: usize = 4096;

/// What follows a parameter's name in a checkpoint: its codes in memory order, and the largest magnitude of each block.
pub(super) const CODES: &str = ".codes";
pub(super) const MAXIMA: &str = ".maxima";

impl StateForm {
    /// Zero moments in 8 bits, if those of a parameter of so many elements are kept in them.
    pub(super) fn eight_bit(self, elements: usize) -> Option<[EightBitMoment; 2]> {
        let kinds = [MomentKind::Signed, MomentKind::Unsigned];
        let small = self == Self::EightBit && elements >= LEAST_ELEMENTS;
        small.then(|| kinds.map(|kind| EightBitMoment::zeros(kind, elements)))
    }

    /// Bytes on disk of one moment of a parameter's element, at most: in 8 bits for networks of which less than a third is in
    /// small parameters.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::EightBit => 2,
        }
    }
}
