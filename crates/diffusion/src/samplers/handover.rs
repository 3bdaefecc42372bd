//! One image by two networks: the second takes over where little noise is left (Podell et al. 2023, section 2.5).

use super::{Sampler, SamplerError};

impl Sampler {
    /// The call before which the first of two networks ends, if the second takes over after `share` of the noise's way; what
    /// diffusers' pipelines call `denoising_end`. `first` is the call that the run begins with.
    ///
    /// # Errors
    /// [`SamplerError::Handover`] for a share outside `0..1`, or one that leaves no call.
    pub fn handed_over_at(&self, share: f64, first: usize) -> Result<usize, SamplerError> {
        let least = self.least_timestep(share, "first")?;
        let calls = self.timesteps().iter().skip(first).filter(|&&t| t >= least).count();
        if calls == 0 { Err(self.idle(share, "first")) } else { Ok(first + calls) }
    }

    /// The call with which the second of two networks begins; what diffusers' pipelines call `denoising_start`.
    ///
    /// # Errors
    /// As of [`Sampler::handed_over_at`].
    pub fn taken_over_at(&self, share: f64) -> Result<usize, SamplerError> {
        let least = self.least_timestep(share, "second")?;
        let calls = self.timesteps().len();
        let left = self.timesteps().iter().filter(|&&t| t < least).count();
        // Two calls make a step of the second order: it is not begun in the middle.
        let halves = self.config().kind.calls_per_step() == 2 && left.is_multiple_of(2);
        let left = (left + usize::from(halves)).min(calls);
        if left == 0 { Err(self.idle(share, "second")) } else { Ok(calls - left) }
    }

    /// The least timestep of the first network.
    fn least_timestep(&self, share: f64, idle: &'static str) -> Result<f64, SamplerError> {
        let config = self.config();
        let kind = config.kind.name();
        if config.kind.is_edm() {
            let problem = "noise levels of EDM are no timesteps, by which two networks could share an image: leave out the second";
            return Err(SamplerError::Setting { kind, problem });
        }
        if !(share > 0.0 && share < 1.0) {
            return Err(self.idle(share, idle));
        }
        let timesteps = config.schedule.timesteps as f64;
        Ok((timesteps - share * timesteps).round_ties_even())
    }

    fn idle(&self, share: f64, idle: &'static str) -> SamplerError {
        SamplerError::Handover { share, steps: self.timetable.steps, idle }
    }
}
