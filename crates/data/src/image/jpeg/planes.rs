//! The samples of a component.

use super::frame::Component;

/// Samples `[rows, columns]`, whole blocks.
pub(super) struct Plane {
    samples: Vec<u8>,
    stride: usize,
}

impl Plane {
    pub(super) fn new(component: &Component) -> Self {
        let [columns, rows] = component.padded.map(|blocks| 8 * blocks);
        Plane { samples: vec![0; columns * rows], stride: columns }
    }

    /// The samples from the block in `column` and `row` on, and how far its rows are apart.
    #[inline(always)]
    pub(super) fn block_mut(&mut self, column: usize, row: usize) -> (&mut [u8], usize) {
        (&mut self.samples[8 * (row * self.stride + column)..], self.stride)
    }

    /// A row of samples, with those that fill up the last block.
    pub(super) fn row(&self, row: usize) -> &[u8] {
        &self.samples[row * self.stride..][..self.stride]
    }

    #[cfg(test)]
    pub(super) fn samples_mut(&mut self) -> &mut [u8] {
        &mut self.samples
    }
}
