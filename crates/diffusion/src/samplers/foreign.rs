//! Samplers by the names that other programs give them: AUTOMATIC1111's web interface ("DPM++ 2M Karras"), kohya's
//! scripts (`euler_a`) and ComfyUI (`dpmpp_2m`). Which diffusers scheduler each is, is diffusers' own table
//! (documentation of schedulers, version 0.42); what has no counterpart there is refused by name.

use super::{Curve, DpmAlgorithm, DpmRule, SamplerConfig, SamplerError, SamplerKind, UniPcStep};
use crate::schedule::Spacing;

/// A sampler of another program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ForeignSampler {
    row: &'static Row,
    schedule: Schedule,
}

/// A sampler's names elsewhere, in small letters, and what it is here.
#[derive(Debug, PartialEq)]
struct Row {
    /// Where the first has capitals, it is also what is written for web interfaces.
    names: &'static [&'static str],
    is: Is,
    /// The curve that AUTOMATIC1111 takes if none is chosen (version 1.10, "Automatic").
    automatic: Curve,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Ddim,
    Ddpm,
    Plms,
    Euler,
    EulerAncestral,
    Heun,
    UniPc(UniPcStep),
    Lcm,
    Multistep(DpmAlgorithm, usize, DpmRule),
    Singlestep,
    /// Not one of ours; the word to say instead.
    Unknown(&'static str),
}

/// How a sampler's noise levels are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Schedule {
    Curve(Curve),
    /// Timesteps from the last one downwards.
    Trailing,
}

use DpmAlgorithm::{Noise, PlusPlus, SdePlusPlus};
use DpmRule::{Heun, Midpoint};

const fn row(names: &'static [&'static str], is: Is, automatic: Curve) -> Row {
    Row { names, is, automatic }
}

const ROWS: &[Row] = &[
    row(&["Euler", "k_euler"], Is::Euler, Curve::Timesteps),
    row(&["Euler a", "euler_a", "k_euler_a"], Is::EulerAncestral, Curve::Timesteps),
    row(&["Heun"], Is::Heun, Curve::Timesteps),
    row(&["DDIM"], Is::Ddim, Curve::Timesteps),
    row(&["DDPM"], Is::Ddpm, Curve::Timesteps),
    row(&["PLMS"], Is::Plms, Curve::Timesteps),
    row(&["LCM"], Is::Lcm, Curve::Timesteps),
    row(&["UniPC", "uni_pc_bh2"], Is::UniPc(UniPcStep::Bh2), Curve::Timesteps),
    row(&["uni_pc"], Is::UniPc(UniPcStep::Bh1), Curve::Timesteps),
    row(&["DPM++ 2M", "dpmpp_2m", "dpmsolver++"], Is::Multistep(PlusPlus, 2, Midpoint), Curve::Karras),
    row(
        &["DPM++ 2M SDE", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu"],
        Is::Multistep(SdePlusPlus, 2, Midpoint),
        Curve::Exponential,
    ),
    row(&["DPM++ 2M SDE Heun"], Is::Multistep(SdePlusPlus, 2, Heun), Curve::Exponential),
    row(
        &["DPM++ 3M SDE", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu"],
        Is::Multistep(SdePlusPlus, 3, Midpoint),
        Curve::Exponential,
    ),
    row(&["DPM++ SDE", "dpmpp_sde", "dpmpp_sde_gpu", "dpmsingle"], Is::Singlestep, Curve::Karras),
    row(&["dpmsolver"], Is::Multistep(Noise, 2, Midpoint), Curve::Timesteps),
    row(&["DPM++ 2S a", "dpmpp_2s_ancestral"], Is::Unknown("DPM++ SDE"), Curve::Karras),
    row(&["DPM2", "dpm_2", "k_dpm_2"], Is::Unknown("Heun"), Curve::Karras),
    row(&["DPM2 a", "dpm_2_a", "k_dpm_2_a", "dpm_2_ancestral"], Is::Unknown("Euler a"), Curve::Karras),
    row(&["LMS", "k_lms"], Is::Unknown("PLMS"), Curve::Timesteps),
    row(&["DPM fast", "DPM adaptive", "dpm_fast", "dpm_adaptive"], Is::Unknown("DPM++ 2M"), Curve::Timesteps),
    row(&["Restart"], Is::Unknown("Heun"), Curve::Karras),
    row(&["DDIM CFG++", "heunpp2", "ipndm", "ipndm_v", "deis"], Is::Unknown("DPM++ 2M"), Curve::Timesteps),
];

/// Names of schedules, in small letters, where they are ours.
const SCHEDULES: &[(&str, Schedule)] = &[
    ("uniform", Schedule::Curve(Curve::Timesteps)),
    ("normal", Schedule::Curve(Curve::Timesteps)),
    ("karras", Schedule::Curve(Curve::Karras)),
    ("exponential", Schedule::Curve(Curve::Exponential)),
    ("beta", Schedule::Curve(Curve::Beta)),
    ("sgm uniform", Schedule::Trailing),
    ("sgm_uniform", Schedule::Trailing),
];

/// Names of schedules that have no counterpart here.
const OTHER_SCHEDULES: [&str; 9] = [
    "polyexponential",
    "kl optimal",
    "kl_optimal",
    "align your steps",
    "simple",
    "ddim",
    "ddim_uniform",
    "turbo",
    "linear_quadratic",
];

impl ForeignSampler {
    /// By its name, which may end in that of a schedule; none if no other program is known to call a sampler so. Without a
    /// schedule, the noise levels are those of the timesteps.
    ///
    /// # Errors
    /// [`SamplerError::Foreign`] for a sampler or a schedule that is known, but has no counterpart here.
    pub fn parse(name: &str) -> Result<Option<Self>, SamplerError> {
        let small = name.trim().to_lowercase();
        if let Some(row) = find(&small) {
            return Self { row, schedule: Schedule::Curve(Curve::Timesteps) }.known(name).map(Some);
        }
        let schedules = SCHEDULES.iter().map(|(schedule, _)| *schedule).chain(OTHER_SCHEDULES).chain(["automatic"]);
        for schedule in schedules {
            let front = small.strip_suffix(schedule).and_then(|front| front.strip_suffix([' ', '_']));
            if let Some(row) = front.and_then(find) {
                return Self { row, schedule: Schedule::Curve(Curve::Timesteps) }.known(name)?.on(schedule).map(Some);
            }
        }
        Ok(None)
    }

    /// The same on another schedule, by its name; `Automatic` is the one that AUTOMATIC1111 chooses for the sampler.
    ///
    /// # Errors
    /// [`SamplerError::Foreign`] for a schedule that has no counterpart here.
    pub fn on(self, schedule: &str) -> Result<Self, SamplerError> {
        let small = schedule.trim().to_lowercase();
        if small == "automatic" {
            return Ok(Self { schedule: Schedule::Curve(self.row.automatic), ..self });
        }
        match SCHEDULES.iter().find(|(known, _)| *known == small) {
            Some((_, schedule)) => Ok(Self { schedule: *schedule, ..self }),
            None => {
                let known = SCHEDULES.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
                Err(SamplerError::Foreign { name: schedule.to_owned(), instead: format!("schedules are {known}") })
            }
        }
    }

    /// Our name of the sampler.
    pub fn name(&self) -> &'static str {
        match self.row.is {
            Is::Ddim => "ddim",
            Is::Ddpm => "ddpm",
            Is::Plms => "pndm",
            Is::Euler => "euler",
            Is::EulerAncestral => "euler_ancestral",
            Is::Heun => "heun",
            Is::UniPc(_) => "unipc",
            Is::Lcm => "lcm",
            Is::Multistep(..) => "dpm_multistep",
            Is::Singlestep | Is::Unknown(_) => "dpm_singlestep",
        }
    }

    /// Changes a configuration of [`name`](Self::name) into this sampler.
    ///
    /// # Errors
    /// [`SamplerError::Foreign`] if the sampler cannot visit the noise levels of the schedule.
    pub fn apply(&self, config: &mut SamplerConfig) -> Result<(), SamplerError> {
        match (&mut config.kind, self.row.is) {
            (SamplerKind::DpmMultistep(dpm), Is::Multistep(algorithm, order, rule)) => {
                (dpm.algorithm, dpm.order, dpm.rule) = (algorithm, order, rule);
                if algorithm == Noise {
                    // Without ++ it cannot end at no noise.
                    dpm.sigmas.last = super::FinalSigma::SigmaMin;
                }
            }
            (SamplerKind::DpmSinglestep(dpm), Is::Singlestep) => (dpm.algorithm, dpm.order) = (PlusPlus, 2),
            (SamplerKind::UniPc(unipc), Is::UniPc(step)) => unipc.step = step,
            (SamplerKind::Pndm(pndm), Is::Plms) => pndm.skip_prk = true,
            _ => {}
        }
        match (self.schedule, config.kind.curve_mut()) {
            (Schedule::Trailing, _) => config.spacing = Spacing::Trailing,
            (Schedule::Curve(curve), Some(own)) => *own = curve,
            (Schedule::Curve(Curve::Timesteps), None) => {}
            (Schedule::Curve(_), None) => {
                let instead = "it visits the noise levels of the timesteps only: leave the schedule out".to_owned();
                return Err(SamplerError::Foreign { name: self.row.names[0].to_owned(), instead });
            }
        }
        Ok(())
    }

    /// AUTOMATIC1111's names of a sampler and its schedule, as its PNG files have them; none where it has no such sampler.
    pub fn written(config: &SamplerConfig) -> Option<(&'static str, &'static str)> {
        let mut config = config.clone();
        let curve = config.kind.curve_mut().map_or(Curve::Timesteps, |curve| *curve);
        let schedule = match (config.spacing, curve) {
            (_, Curve::Karras) => "Karras",
            (_, Curve::Exponential) => "Exponential",
            (_, Curve::Beta) => "Beta",
            (_, Curve::LogSnr) => return None,
            (Spacing::Trailing, Curve::Timesteps) => "SGM Uniform",
            (_, Curve::Timesteps) => "Uniform",
        };
        let is = match &config.kind {
            SamplerKind::Ddim(_) => Is::Ddim,
            SamplerKind::Ddpm(_) => Is::Ddpm,
            SamplerKind::Pndm(pndm) if pndm.skip_prk => Is::Plms,
            SamplerKind::Euler(_) => Is::Euler,
            SamplerKind::EulerAncestral(_) => Is::EulerAncestral,
            SamplerKind::Heun(_) => Is::Heun,
            SamplerKind::UniPc(unipc) => Is::UniPc(unipc.step),
            SamplerKind::Lcm(_) => Is::Lcm,
            SamplerKind::DpmMultistep(dpm) => Is::Multistep(dpm.algorithm, dpm.order, dpm.rule),
            SamplerKind::DpmSinglestep(_) => Is::Singlestep,
            // The others have no name there.
            _ => return None,
        };
        let name = ROWS.iter().find(|row| row.is == is)?.names[0];
        name.starts_with(char::is_uppercase).then_some((name, schedule))
    }

    /// This sampler, if it is one of ours.
    fn known(self, name: &str) -> Result<Self, SamplerError> {
        match self.row.is {
            Is::Unknown(instead) => {
                Err(SamplerError::Foreign { name: name.to_owned(), instead: format!("the nearest is `{instead}`") })
            }
            _ => Ok(self),
        }
    }
}

fn find(small: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.names.iter().any(|name| name.to_lowercase() == small))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str) -> SamplerConfig {
        let foreign = ForeignSampler::parse(name).unwrap().unwrap_or_else(|| panic!("{name}"));
        let scheduler = serde_json::json!({
            "_class_name": "PNDMScheduler",
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "steps_offset": 1,
            "skip_prk_steps": true,
        });
        let mut config = SamplerConfig::from_diffusers_as(&scheduler, foreign.name()).unwrap();
        foreign.apply(&mut config).unwrap();
        config.check().unwrap_or_else(|error| panic!("{name}: {error}"));
        config
    }

    /// The table of diffusers' documentation, as fields of the scheduler: class, what differs from its defaults.
    #[test]
    fn names_of_other_programs_are_those_of_diffusers() {
        for (name, class, fields) in [
            ("DPM++ 2M", "DPMSolverMultistepScheduler", &[("algorithm_type", "dpmsolver++")][..]),
            ("DPM++ 2M Karras", "DPMSolverMultistepScheduler", &[("use_karras_sigmas", "true")]),
            ("dpm++ 2m exponential", "DPMSolverMultistepScheduler", &[("use_exponential_sigmas", "true")]),
            ("DPM++ 2M SGM Uniform", "DPMSolverMultistepScheduler", &[("timestep_spacing", "trailing")]),
            (
                "DPM++ 2M SDE Karras",
                "DPMSolverMultistepScheduler",
                &[("use_karras_sigmas", "true"), ("algorithm_type", "sde-dpmsolver++")],
            ),
            ("DPM++ 2M SDE Heun", "DPMSolverMultistepScheduler", &[("solver_type", "heun")]),
            ("DPM++ SDE Karras", "DPMSolverSinglestepScheduler", &[("use_karras_sigmas", "true")]),
            ("Euler", "EulerDiscreteScheduler", &[]),
            ("Euler a", "EulerAncestralDiscreteScheduler", &[]),
            ("euler_a", "EulerAncestralDiscreteScheduler", &[]),
            ("Heun Karras", "HeunDiscreteScheduler", &[("use_karras_sigmas", "true")]),
            ("PLMS", "PNDMScheduler", &[("skip_prk_steps", "true")]),
            ("dpmsolver", "DPMSolverMultistepScheduler", &[("algorithm_type", "dpmsolver")]),
            ("dpmsolver++", "DPMSolverMultistepScheduler", &[("algorithm_type", "dpmsolver++")]),
            ("dpmpp_2m_karras", "DPMSolverMultistepScheduler", &[("use_karras_sigmas", "true")]),
            ("UniPC", "UniPCMultistepScheduler", &[("solver_type", "bh2")]),
            ("LCM", "LCMScheduler", &[]),
        ] {
            let found = config(name).to_diffusers().unwrap();
            assert_eq!(found["_class_name"], class, "{name}");
            for (field, value) in fields {
                assert_eq!(found[field].to_string().trim_matches('"'), *value, "{name}: {field}");
            }
        }
        // The curve is what the name says, whatever the checkpoint's file does.
        assert_eq!(config("DPM++ 2M").to_diffusers().unwrap()["use_karras_sigmas"], false);
    }

    #[test]
    fn other_names_are_refused_or_left_to_others() {
        for name in ["DPM2 a", "LMS Karras", "DPM++ 2S a Karras", "Restart", "k_dpm_2"] {
            let error = ForeignSampler::parse(name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("the nearest is"), "{error}");
        }
        let error = ForeignSampler::parse("Euler Align Your Steps").unwrap_err().to_string();
        assert!(error.contains("align your steps") && error.contains("karras"), "{error}");
        assert_eq!(ForeignSampler::parse("a sampler"), Ok(None));
        assert_eq!(ForeignSampler::parse(""), Ok(None));
        let ddim = ForeignSampler::parse("DDIM Karras").unwrap().unwrap();
        let error = ddim.apply(&mut SamplerConfig::default()).unwrap_err().to_string();
        assert!(error.contains("noise levels of the timesteps only"), "{error}");
    }

    #[test]
    fn the_automatic_schedule_is_the_web_interfaces() {
        let of = |name: &str| ForeignSampler::parse(name).unwrap().unwrap().on("Automatic").unwrap().schedule;
        assert_eq!(of("DPM++ 2M"), Schedule::Curve(Curve::Karras));
        assert_eq!(of("DPM++ 2M SDE"), Schedule::Curve(Curve::Exponential));
        assert_eq!(of("Euler a"), Schedule::Curve(Curve::Timesteps));
    }

    #[test]
    fn names_are_written_as_they_are_read() {
        for (name, expected) in [
            ("DPM++ 2M Karras", Some(("DPM++ 2M", "Karras"))),
            ("Euler a", Some(("Euler a", "Uniform"))),
            ("DPM++ 3M SDE Exponential", Some(("DPM++ 3M SDE", "Exponential"))),
            ("dpmsolver", None),
        ] {
            assert_eq!(ForeignSampler::written(&config(name)), expected, "{name}");
        }
    }
}
