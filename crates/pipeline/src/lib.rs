//! From prompts to images: the networks of a checkpoint, loaded once, and what they draw.
//!
//! [`Pipeline::load`] reads a checkpoint of any layout; [`Pipeline::generate`] draws [`Request`]s, which may differ in prompt,
//! seed, guidance and image to begin with inside one batch, and an [`Observer`] follows. Its stages stand alone too:
//! [`Pipeline::encode_prompts`], [`Pipeline::sample`], [`Pipeline::decode`].
//!
//! [`quantise`] makes a checkpoint whose UNet is in 8 bits.
//!
//! Beside it are the encoders that training reads frozen ([`encoders`]), single networks on given tensors ([`probe`]), what stands inside an image's file ([`GenerationRecord`]),
//! and checkpoints of random weights for tests and benchmarks ([`random_checkpoint`]).

mod adapters;
mod batch;
pub mod batches;
pub mod belonging;
pub mod contents;
pub mod encoders;
mod error;
pub mod family;
pub mod foreign;
pub mod images;
mod memory;
pub mod network;
pub mod noise;
mod observer;
mod pipeline;
mod presets;
mod preview;
pub mod probe;
pub mod prompt_syntax;
mod prompts;
pub mod quantise;
pub mod random_checkpoint;
mod refiner;
mod request;
mod sampler_choice;
mod serving;
mod settings_text;

pub use adapters::{AdapterFile, load_adapters};
pub use error::PipelineError;
pub use family::{CheckpointSampler, Defaults};
pub use foreign::ForeignRecord;
pub use images::StartImage;
pub use noise::NoiseKind;
pub use observer::{DrawnImage, Observer, Step};
pub use pipeline::{LoadOptions, Parts, Pipeline};
pub use presets::Preset;
pub use preview::{LatentColours, preview};
pub use prompt_syntax::PromptSyntax;
pub use prompts::{CutPrompt, EncodedPrompt, EncodedPrompts, PromptOptions};
pub use refiner::Refiner;
pub use request::{Request, Settings, Timings};
pub use sampler_choice::SamplerChoice;
pub use settings_text::{
    GenerationRecord, Recorded, RecordedInputs, RecordedRefiner, RecordedRequest, RecordedSettings,
};
