//! What every other crate may use and what uses none of them: durable files, progress for people, stop signals, facts
//! about the process, counter-based random numbers, reading of published configurations.

pub mod durable;
pub mod fields;
pub mod names;
pub mod progress;
pub mod random;
pub mod stop;
pub mod system;
pub mod torch_random;

pub use fields::{FieldProblem, Fields, FieldsError};
pub use names::UnknownName;
pub use progress::Progress;
pub use random::{Philox4x32, Purpose, Stream, permutation, philox4x32_10};
pub use stop::StopFlag;
pub use torch_random::{TorchCpuGenerator, TorchFloat};
