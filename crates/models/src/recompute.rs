//! Which blocks of a stack of equal ones keep only their inputs for the backward pass, which computes the rest again
//! ("activation checkpointing"; Chen et al. 2016).

use burn::module::Module;
use burn::tensor::Tensor;
use calotype_ops::recomputed;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::ops::Range;

/// The blocks that are computed twice, as Megatron's `activations_checkpoint_method` says it. The results are the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// All: in groups of so many blocks, of which only the first one's input is kept. Groups of the root of the depth take the
    /// least memory.
    Uniform(usize),
    /// The first so many blocks, one by one; the others keep their activations.
    Block(usize),
}

/// Blocks of a stack that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    /// One that keeps its activations.
    Kept(usize),
    /// Some of which only the first one's input is kept.
    Twice(Range<usize>),
}

impl Recompute {
    /// Whether there are blocks of which it says something.
    pub fn is_possible(self) -> bool {
        matches!(self, Self::Uniform(1..) | Self::Block(1..))
    }

    fn pieces(self, depth: usize) -> Vec<Piece> {
        match self {
            Self::Uniform(size) => {
                let size = size.max(1);
                (0..depth).step_by(size).map(|first| Piece::Twice(first..depth.min(first + size))).collect()
            }
            Self::Block(count) => {
                let piece = |at| if at < count { Piece::Twice(at..at + 1) } else { Piece::Kept(at) };
                (0..depth).map(piece).collect()
            }
        }
    }
}

/// A block with all that it computes by.
pub(crate) trait Stacked: Module + Debug + 'static {
    /// `[batch, tokens, channels]` to the same.
    fn apply(&self, x: Tensor<3>) -> Tensor<3>;
}

/// The states behind the first `depth` blocks. `keeping` is a block by its number; `block` gives one that can be computed
/// again, which holds the same weights.
pub(crate) fn through<B: Stacked>(
    recompute: Option<Recompute>,
    depth: usize,
    x: Tensor<3>,
    keeping: impl Fn(usize, Tensor<3>) -> Tensor<3>,
    block: impl Fn(usize) -> B,
) -> Tensor<3> {
    let Some(recompute) = recompute else { return (0..depth).fold(x, |x, at| keeping(at, x)) };
    recompute.pieces(depth).into_iter().fold(x, |x, piece| match piece {
        Piece::Kept(at) => keeping(at, x),
        Piece::Twice(blocks) => {
            let blocks: Vec<B> = blocks.map(&block).collect();
            recomputed(blocks, (x,), |blocks, (x,)| blocks.iter().fold(x, |x, block| block.apply(x)))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_in_one_piece() {
        use Piece::{Kept, Twice};
        assert_eq!(Recompute::Uniform(2).pieces(5), [Twice(0..2), Twice(2..4), Twice(4..5)]);
        assert_eq!(Recompute::Uniform(9).pieces(2), [Twice(0..2)]);
        assert_eq!(Recompute::Block(1).pieces(3), [Twice(0..1), Kept(1), Kept(2)]);
        assert_eq!(Recompute::Block(9).pieces(2), [Twice(0..1), Twice(1..2)]);
        assert_eq!(Recompute::Uniform(1).pieces(0), []);
    }

    #[test]
    fn it_is_read_as_a_table() {
        let read = |text: &str| serde_json::from_str::<Recompute>(text);
        assert_eq!(read(r#"{"uniform": 2}"#).unwrap(), Recompute::Uniform(2));
        assert_eq!(read(r#"{"block": 6}"#).unwrap(), Recompute::Block(6));
        for text in [r#"{"uniform": -1}"#, r#"{"full": 1}"#, r#""uniform""#, r#"{"uniform": 1, "block": 2}"#] {
            assert!(read(text).is_err(), "{text}");
        }
        assert!(!Recompute::Uniform(0).is_possible() && Recompute::Block(1).is_possible());
    }
}
