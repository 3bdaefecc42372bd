use crate::error::PipelineError;
use crate::family::sampler_of;
use calotype_checkpoints::Checkpoint;
use calotype_diffusion::samplers::{Curve, SamplerConfig};

/// Changes to a checkpoint's own sampler.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplerChoice {
    /// Another sampler on the same schedule, by our name or diffusers'.
    pub name: Option<String>,
    /// Spacing of the noise levels after Karras et al. 2022.
    pub karras: bool,
    /// DDIM's share of fresh noise, 0 to 1.
    pub eta: Option<f64>,
}

impl SamplerChoice {
    /// The checkpoint's sampler with what is asked for.
    ///
    /// # Errors
    /// [`PipelineError::Sampler`] for an unknown name or an unsupported configuration; [`PipelineError::Setting`] for what the
    /// sampler does not have, or where it is not known what the UNet predicts.
    pub fn config(&self, checkpoint: &Checkpoint) -> Result<SamplerConfig, PipelineError> {
        let mut sampler = sampler_of(checkpoint, self.name.as_deref())?;
        let name = sampler.kind.name();
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
        Ok(sampler)
    }
}
