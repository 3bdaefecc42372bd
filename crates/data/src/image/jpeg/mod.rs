//! JPEG: [`encode`] writes baseline files of RGB, [`Jpeg`] reads files of any kind as Pillow does.

mod bits;
mod colour;
mod frame;
mod huffman;
mod idct;
mod planes;
mod progressive;
mod read;
mod scan;
mod smooth;
mod upsample;
mod write;

pub(super) use frame::TRUNCATED;
pub(super) use read::{Jpeg, fault};
pub(super) use write::encode;
