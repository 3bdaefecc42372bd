//! What every other crate may use and what uses none of them: durable files, progress for people, stop signals, facts
//! about the process, counter-based random numbers, reading of text files, of published configurations and of command lines' numbers.

pub mod durable;
pub mod fields;
pub mod folders;
pub mod input;
pub mod lock;
mod mersenne;
pub mod names;
pub mod numbers;
pub mod numpy_random;
pub mod output;
pub mod progress;
pub mod quotes;
pub mod random;
pub mod stop;
pub mod system;
pub mod text;
pub mod torch_random;
pub mod words;

pub use fields::{FieldProblem, Fields, FieldsError};
pub use input::{absence, is_special, open_input, read_input};
pub use lock::{FolderLock, LockError};
pub use names::{Named, UnknownName};
pub use numpy_random::NumpyRandomState;
pub use progress::Progress;
pub use quotes::{OpenQuote, Quotes};
pub use random::{Philox4x32, Purpose, Stream, permutation, philox4x32_10};
pub use stop::StopFlag;
pub use text::{TextFault, decode_text, read_text};
pub use torch_random::{TorchCpuGenerator, TorchFloat};
