//! Tests of the operations: against the other body, against differences, with and without autodiff, and the optimizer.
//!
//! `CALOTYPE_TEST_DEVICE` names the device: `cpu` (the kernels, held against the portable body) or, in a program built
//! with `--features wgpu`, `wgpu` (the portable body there, held against the kernels).

mod adamw;
mod against_oracle;
#[path = "../common/mod.rs"]
mod common;
mod differences;
mod eight_bit;
mod half_weights;
mod in_backward;
mod optimizer;
mod packed_training;
mod packed_weights;
mod parallel;
mod tracking;
