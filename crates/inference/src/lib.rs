//! MLPerf Inference's text-to-image benchmark, Stable Diffusion XL.
//!
//! LoadGen ([`calotype_loadgen`]) issues samples, which are captions by number. A [`Queue`] keeps them; hands take batches from it and
//! answer with pictures: threads of this process, which share one pipeline ([`Artist`]), and other processes ([`remote`]). [`run()`] is
//! one run of one scenario, from a [`Recipe`] to a folder with LoadGen's own logs and a summary that says what of it is not as the
//! benchmark asks ([`benchmark`]). [`accuracy`] judges the pictures of an accuracy run as the reference's `accuracy_coco.py` does, and
//! [`compliance`] has the audit configurations and verdicts of TEST01 and TEST04.

pub mod accuracy;
pub mod benchmark;
pub mod compliance;
mod draw;
mod drawing;
mod error;
mod hands;
mod latents;
mod layout;
mod outcome;
mod plan;
mod python;
mod queue;
mod recipe;
pub mod remote;
mod run;
mod samples;
mod unofficial;
mod workers;

pub use benchmark::Variant;
pub use calotype_mlperf::inference::Round;
pub use draw::Artist;
pub use error::InferenceError;
pub use hands::{HandSettings, Hands};
pub use latents::fixed_latent;
pub use layout::Layout;
pub use outcome::Outcome;
pub use plan::{Plan, Wishes};
pub use queue::{Answers, Job, Queue};
pub use recipe::{
    CaptionSettings, KIND, LatentSettings, LoadSettings, LostWorker, ProcessSettings, Recipe, SamplerSettings,
    ServeSettings,
};
pub use run::{Processes, Work, run};
pub use samples::Samples;
pub use unofficial::unofficial;
pub use workers::{listen, rank};
