//! Random changes of training images beyond crop and flip: a rectangle of random area and shape, jitter of colours, AutoAugment
//! and RandAugment.
//!
//! What is drawn and what is done with it are apart: a [`Draws`] gives the numbers, an [`Operation`] is the change that they
//! come to. So tests hand in the choices of other libraries, and runs draw by sample position.

mod auto_augment;
mod colour_jitter;
mod operation;
mod rand_augment;
mod resized_crop;

pub use auto_augment::AutoAugment;
pub use colour_jitter::ColourJitter;
pub use operation::Operation;
pub use rand_augment::{RandAugment, TimmRandAugment, TorchvisionRandAugment};
pub use resized_crop::ResizedCrop;

use calotype_core::Stream;

/// Where random choices come from.
pub trait Draws {
    /// A number from `low` to below `high`, drawn in `f32` as torch's `uniform_`.
    fn within(&mut self, low: f32, high: f32) -> f32;

    /// A whole number below `count`, which is not 0.
    fn below(&mut self, count: usize) -> usize;
}

impl Draws for Stream {
    fn within(&mut self, low: f32, high: f32) -> f32 {
        self.uniform() * (high - low) + low
    }

    fn below(&mut self, count: usize) -> usize {
        Stream::below(self, count as u64) as usize
    }
}
