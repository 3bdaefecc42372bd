use crate::schedule::ScheduleError;
use calotype_core::FieldsError;

/// The reason why a sampler cannot be made or did not end.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum SamplerError {
    /// The noise schedule or the number of steps is impossible.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// A scheduler configuration that names no scheduler, or an unknown one.
    #[error("scheduler: {problem}; known are {known}")]
    Class {
        /// The name that stands there, or that none does.
        problem: String,
        /// The known names.
        known: String,
    },
    /// A sampler or schedule of another program that has no counterpart here.
    #[error("`{name}` has no counterpart among the samplers here; {instead}")]
    Foreign {
        /// Its name there.
        name: String,
        /// What there is instead.
        instead: String,
    },
    /// A scheduler configuration that is not a JSON object.
    #[error("scheduler configuration: {problem}")]
    Json {
        /// The problem.
        problem: String,
    },
    /// Fields of a scheduler configuration that are unknown, impossible or not supported.
    #[error("scheduler: {0}")]
    Fields(#[from] FieldsError),
    /// Settings that exclude each other.
    #[error("sampler `{kind}`: {problem}")]
    Setting {
        /// The sampler.
        kind: &'static str,
        /// The problem, and the remedy.
        problem: &'static str,
    },
    /// A list of timesteps or noise levels that the sampler cannot visit.
    #[error("sampler `{kind}`: {problem}")]
    Visits {
        /// The sampler.
        kind: &'static str,
        /// The problem, with the remedy.
        problem: String,
    },
    /// Too few steps for this sampler.
    #[error(
        "sampler `{kind}` needs at least {least} steps, and {steps} were asked for: take more, or the sampler `{instead}`"
    )]
    FewSteps {
        /// The sampler.
        kind: &'static str,
        /// Steps asked for.
        steps: usize,
        /// Steps needed.
        least: usize,
        /// The sampler that takes fewer.
        instead: &'static str,
    },
    /// More steps than the sampler offers.
    #[error("sampler `{kind}` offers at most {most} steps here; {steps} were asked for")]
    ManySteps {
        /// The sampler.
        kind: &'static str,
        /// Steps asked for.
        steps: usize,
        /// Steps offered.
        most: usize,
    },
    /// Spacing and offset lead beyond the schedule.
    #[error("the sampler's steps_offset leads to timestep {timestep}; the schedule ends at {last}: take a smaller one")]
    Timestep {
        /// The timestep that it leads to.
        timestep: f64,
        /// The last timestep.
        last: usize,
    },
    /// The noise is not determined: no signal is left at the first timestep.
    #[error(
        "no signal is left at timestep {timestep} (zero terminal SNR), where a predicted noise says nothing about the \
         image: take the prediction `v` or the spacing `leading`"
    )]
    NoSignal {
        /// The timestep.
        timestep: f64,
    },
    /// An image-to-image strength without a step.
    #[error("strength {strength} leaves nothing to do in {steps} steps: needs 1/{steps} to 1")]
    Strength {
        /// The strength.
        strength: f64,
        /// Steps in all.
        steps: usize,
    },
    /// A handover between two networks that leaves one of them no step.
    #[error(
        "a handover at {share} of {steps} steps leaves the {idle} network nothing to do: take another share (0.8 is usual), or \
         more steps"
    )]
    Handover {
        /// The share of the noise's way after which the second network takes over.
        share: f64,
        /// Steps in all.
        steps: usize,
        /// `first` or `second`.
        idle: &'static str,
    },
    /// A call beyond the last one.
    #[error("call {call} of the denoiser: this sampler has {calls}")]
    Call {
        /// The call, from 0.
        call: usize,
        /// Calls in all.
        calls: usize,
    },
    /// Fresh noise is needed and none is given.
    #[error("sampler `{kind}` draws fresh noise in each step, and no source of noise is given")]
    NoNoise {
        /// The sampler.
        kind: &'static str,
    },
    /// The observer ended the run.
    #[error("stopped after {step} of {steps} calls of the denoiser")]
    Stopped {
        /// Calls done.
        step: usize,
        /// Calls in all.
        steps: usize,
    },
}
