//! `scheduler/scheduler_config.json` of the families, whole, as the original repositories publish it: the one table from
//! which single files are drawn and folders are written.
//!
//! Fields of other schedulers than the one that is named count too: they hold once another sampler is chosen, as diffusers'
//! `from_config` takes them over. A field that the repositories leave out is left out here, too, if its default is not the same in
//! all schedulers: `timestep_spacing` stands in the files of SDXL alone, and with those of Stable Diffusion 1 and 2 each sampler
//! has its own. `prediction_type`, which is older than some files, is written out.

use crate::kinds::Prediction;
use serde_json::{Value, json};

/// What the configurations of all Stable Diffusions have in common.
fn stable_diffusion(class: &str, prediction: Prediction) -> Value {
    json!({
        "_class_name": class,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": prediction.name(),
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
        "trained_betas": null,
    })
}

/// Stable Diffusion 1.4 and 1.5, InstructPix2Pix, 2 base, 2.1 base and 2 inpainting.
pub(super) fn pndm() -> Value {
    stable_diffusion("PNDMScheduler", Prediction::Epsilon)
}

/// Stable Diffusion 1.5 inpainting.
pub(super) fn ddim() -> Value {
    stable_diffusion("DDIMScheduler", Prediction::Epsilon)
}

/// Stable Diffusion 2 and 2.1 (768-v).
pub(super) fn ddim_v() -> Value {
    stable_diffusion("DDIMScheduler", Prediction::V)
}

/// Stable Diffusion XL: base 1.0, refiner 1.0, inpainting 0.1.
pub(super) fn euler() -> Value {
    let mut config = stable_diffusion("EulerDiscreteScheduler", Prediction::Epsilon);
    config["interpolation_type"] = "linear".into();
    config["sample_max_value"] = 1.0.into();
    config["timestep_spacing"] = "leading".into();
    config["use_karras_sigmas"] = false.into();
    config
}

/// What the configurations of EDM's schedulers have in common.
fn edm(class: &str, prediction: Prediction, curve: &str, [sigma_min, sigma_max, sigma_data]: [f64; 3]) -> Value {
    json!({
        "_class_name": class,
        "final_sigmas_type": "zero",
        "num_train_timesteps": 1000,
        "prediction_type": prediction.name(),
        "rho": 7.0,
        "sigma_data": sigma_data,
        "sigma_max": sigma_max,
        "sigma_min": sigma_min,
        "sigma_schedule": curve,
    })
}

/// CosXL (Stability AI, 2024), which has no scheduler of its own in the repository: the one of diffusers' documentation of
/// `EDMEulerScheduler`, with the ends that the file says.
pub(crate) fn cosxl(sigma_min: f64, sigma_max: f64) -> Value {
    edm("EDMEulerScheduler", Prediction::V, "exponential", [sigma_min, sigma_max, 1.0])
}

/// Playground 2.5 (2024).
pub(crate) fn playground() -> Value {
    let mut config = edm("EDMDPMSolverMultistepScheduler", Prediction::Epsilon, "karras", [0.002, 80.0, 0.5]);
    config["algorithm_type"] = "dpmsolver++".into();
    config["euler_at_final"] = false.into();
    config["lower_order_final"] = true.into();
    config["solver_order"] = 2.into();
    config["solver_type"] = "midpoint".into();
    config
}
