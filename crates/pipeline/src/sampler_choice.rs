use crate::error::PipelineError;
use crate::family::{CheckpointSampler, sampler_of};
use crate::presets::Preset;
use calotype_checkpoints::Checkpoint;
use calotype_diffusion::samplers::{Curve, ForeignSampler, SamplerConfig, SamplerKind};

/// Changes to a checkpoint's own sampler.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplerChoice {
    /// Another sampler on the same schedule, by our name, diffusers', or that of another program ([`ForeignSampler`]).
    pub name: Option<String>,
    /// Spacing of the noise levels after Karras et al. 2022.
    pub karras: bool,
    /// The share of fresh noise of DDIM and TCD, 0 to 1.
    pub eta: Option<f64>,
    /// The sampling of a few-step student, whose sampler takes the place of the checkpoint's.
    pub preset: Option<&'static Preset>,
    /// The timesteps to visit ([`SamplerConfig::timesteps`]); empty: the sampler's own.
    pub timesteps: Vec<f64>,
    /// The noise levels to visit ([`SamplerConfig::sigmas`]), likewise.
    pub sigmas: Vec<f64>,
}

impl SamplerChoice {
    /// The name of the sampler that is asked for, if any.
    pub fn sampler_name(&self) -> Option<&str> {
        self.name.as_deref().or(self.preset.map(|preset| preset.sampler))
    }

    /// What holds for a second network, a refiner: neither another network's preset nor its list of timesteps.
    pub fn of_refiner(&self) -> Self {
        let Self { name, karras, eta, .. } = self.clone();
        Self { name, karras, eta, ..Self::default() }
    }

    /// The checkpoint's sampler with what is asked for.
    ///
    /// # Errors
    /// [`PipelineError::Sampler`] for an unknown name or an unsupported configuration; [`PipelineError::Setting`] for what the
    /// sampler does not have, or where it is not known what the UNet predicts.
    pub fn config(&self, checkpoint: &Checkpoint) -> Result<SamplerConfig, PipelineError> {
        self.resolve(checkpoint).map(|found| found.config)
    }

    /// The same with notes on what was passed over or corrected.
    ///
    /// # Errors
    /// As of [`config`](Self::config).
    pub fn resolve(&self, checkpoint: &Checkpoint) -> Result<CheckpointSampler, PipelineError> {
        let mut found = match self.foreign()? {
            None => sampler_of(checkpoint, self.sampler_name())?,
            Some(foreign) => {
                let mut found = sampler_of(checkpoint, Some(foreign.name()))?;
                foreign.apply(&mut found.config)?;
                found.config.check()?;
                found
            }
        };
        self.change(&mut found.config)?;
        Ok(found)
    }

    /// Another image's sampler with what is asked for besides a name; with another checkpoint, on the schedule of that one.
    ///
    /// # Errors
    /// As of [`config`](Self::config).
    pub fn changed(&self, own: SamplerConfig, other: Option<&Checkpoint>) -> Result<SamplerConfig, PipelineError> {
        let mut sampler = match other {
            None => own,
            Some(checkpoint) => {
                let usual = sampler_of(checkpoint, Some(own.kind.name()))?.config;
                SamplerConfig { schedule: usual.schedule, prediction: usual.prediction, ..own }
            }
        };
        self.change(&mut sampler)?;
        Ok(sampler)
    }

    fn change(&self, sampler: &mut SamplerConfig) -> Result<(), PipelineError> {
        let name = sampler.kind.name();
        if let Some(preset) = self.preset {
            preset.apply(sampler);
        }
        if !self.timesteps.is_empty() || !self.sigmas.is_empty() {
            (sampler.timesteps, sampler.sigmas) = (self.timesteps.clone(), self.sigmas.clone());
        }
        if self.karras {
            match sampler.kind.curve_mut() {
                Some(curve) => *curve = Curve::Karras,
                None => {
                    return Err(PipelineError::setting(format!("--karras: the sampler {name} has no such spacing")));
                }
            }
        }
        if let Some(eta) = self.eta {
            match sampler.kind.eta_mut() {
                Some(own) => *own = eta,
                None => return Err(PipelineError::setting(format!("--eta: the sampler {name} has no such share"))),
            }
        }
        Ok(sampler.check()?)
    }

    /// The sampler, if it is named as other programs do; names that are ours too are ours.
    fn foreign(&self) -> Result<Option<ForeignSampler>, PipelineError> {
        match self.name.as_deref() {
            Some(name) if SamplerKind::by_name(name).is_none() => Ok(ForeignSampler::parse(name)?),
            _ => Ok(None),
        }
    }
}
