//! The tests of the public interface, as one program.

mod common;
mod encoders;
mod features;
mod formula;
mod half_precision;
mod init;
mod kernels_equal_portable;
mod parallel;
mod parity;
mod recompute;
mod tokenizer;
