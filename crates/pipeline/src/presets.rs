//! How students of few steps are sampled, by name: what their authors published, which no weights say.

use calotype_core::names::nearest;
use calotype_diffusion::samplers::SamplerConfig;
use calotype_diffusion::{Prediction, Spacing};
use std::fmt;

/// The sampling of one kind of few-step student.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// The sampler, by our name.
    pub sampler: &'static str,
    /// Steps.
    pub steps: usize,
    /// Guidance scale; 1 is none. Networks that are told their scale take it without a second pass.
    pub guidance: f32,
    /// The timesteps' spacing; none: the checkpoint's.
    pub spacing: Option<Spacing>,
    /// The timesteps themselves; empty: those of the spacing.
    pub timesteps: &'static [f64],
    /// Share of fresh noise; none: the sampler's own.
    pub eta: Option<f64>,
    /// The quantity that the network predicts, where it is not the checkpoint's.
    pub prediction: Option<Prediction>,
    /// Where the values are from.
    pub source: &'static str,
}

/// Rows say what differs from it.
const USUAL: Preset = Preset {
    name: "",
    sampler: "",
    steps: 4,
    guidance: 1.0,
    spacing: None,
    timesteps: &[],
    eta: None,
    prediction: None,
    source: "",
};

const LIGHTNING: Preset = Preset {
    sampler: "euler",
    spacing: Some(Spacing::Trailing),
    source: "model card of ByteDance/SDXL-Lightning (Lin et al. 2024)",
    ..USUAL
};

const HYPER: Preset = Preset {
    sampler: "ddim",
    spacing: Some(Spacing::Trailing),
    source: "model card of ByteDance/Hyper-SD (Ren et al. 2024)",
    ..USUAL
};

const DMD2: Preset = Preset { sampler: "lcm", source: "model card of tianweiy/DMD2 (Yin et al. 2024)", ..USUAL };

/// The table. Authors who write a guidance scale of 0 mean none, as 1 does.
const PRESETS: &[Preset] = &[
    Preset {
        name: "lcm",
        sampler: "lcm",
        guidance: 8.5,
        source: "Luo et al. 2023, and the defaults of diffusers' LatentConsistencyModelPipeline; for networks that are told their \
                 guidance scale",
        ..USUAL
    },
    Preset {
        name: "lcm-lora",
        sampler: "lcm",
        source: "model card of latent-consistency/lcm-lora-sdv1-5 (Luo et al. 2023, \"LCM-LoRA\")",
        ..USUAL
    },
    Preset {
        name: "tcd",
        sampler: "tcd",
        eta: Some(0.3),
        source: "model card of h1t/TCD-SDXL-LoRA (Zheng et al. 2024)",
        ..USUAL
    },
    Preset {
        name: "turbo",
        sampler: "euler_ancestral",
        steps: 1,
        spacing: Some(Spacing::Trailing),
        source: "model card and scheduler of stabilityai/sdxl-turbo (Sauer et al. 2023): 1 to 4 steps",
        ..USUAL
    },
    Preset { name: "lightning-1", steps: 1, prediction: Some(Prediction::Sample), ..LIGHTNING },
    Preset { name: "lightning-2", steps: 2, ..LIGHTNING },
    Preset { name: "lightning-4", steps: 4, ..LIGHTNING },
    Preset { name: "lightning-8", steps: 8, ..LIGHTNING },
    Preset { name: "dmd2", timesteps: &[999.0, 749.0, 499.0, 249.0], ..DMD2 },
    Preset { name: "dmd2-1", steps: 1, timesteps: &[399.0], ..DMD2 },
    Preset { name: "hyper-sd-1", sampler: "lcm", steps: 1, spacing: None, timesteps: &[800.0], ..HYPER },
    Preset { name: "hyper-sd-2", steps: 2, ..HYPER },
    Preset { name: "hyper-sd-4", steps: 4, ..HYPER },
    Preset { name: "hyper-sd-8", steps: 8, ..HYPER },
    Preset { name: "hyper-sd-lora", sampler: "tcd", steps: 1, spacing: None, eta: Some(1.0), ..HYPER },
];

impl Preset {
    /// The names of all presets.
    pub fn names() -> Vec<&'static str> {
        PRESETS.iter().map(|preset| preset.name).collect()
    }

    /// Every preset.
    pub fn all() -> &'static [Self] {
        PRESETS
    }

    /// By its name.
    ///
    /// # Errors
    /// What names there are.
    pub fn by_name(name: &str) -> Result<&'static Self, String> {
        PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
            let meant =
                nearest(name, Self::names()).map_or_else(String::new, |meant| format!(" (did you mean {meant}?)"));
            format!("there is no preset `{name}`{meant}; there are {}", Self::names().join(", "))
        })
    }

    /// The preset of a checkpoint whose own `scheduler_config.json` names a scheduler that only such students have; none for all
    /// others. `told`: its network is told the guidance scale.
    pub fn of_scheduler(class: &str, told: bool) -> Option<&'static Self> {
        let name = match (class, told) {
            ("LCMScheduler", true) => "lcm",
            ("LCMScheduler", false) => "lcm-lora",
            ("TCDScheduler", _) => "tcd",
            _ => return None,
        };
        Self::by_name(name).ok()
    }

    /// Changes a configuration of its sampler into its own.
    pub fn apply(&self, config: &mut SamplerConfig) {
        config.spacing = self.spacing.unwrap_or(config.spacing);
        config.prediction = self.prediction.unwrap_or(config.prediction);
        config.timesteps = self.timesteps.to_vec();
        if let Some((own, eta)) = config.kind.eta_mut().zip(self.eta) {
            *own = eta;
        }
    }
}

/// Its values in one line.
impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, sampler, steps, guidance, .. } = self;
        write!(f, "{name}: sampler {sampler}, {steps} step{}", if *steps == 1 { "" } else { "s" })?;
        match self.timesteps {
            [] => {}
            list => write!(f, " at timesteps {}", joined(list))?,
        }
        match self.spacing {
            Some(Spacing::Trailing) => write!(f, " in trailing spacing")?,
            Some(Spacing::Leading) => write!(f, " in leading spacing")?,
            Some(Spacing::Linspace) => write!(f, " in linspace spacing")?,
            None => {}
        }
        if let Some(eta) = self.eta {
            write!(f, ", eta {eta}")?;
        }
        if self.prediction == Some(Prediction::Sample) {
            write!(f, ", the network predicts the clean latent")?;
        }
        let none = if *guidance <= 1.0 { " (none)" } else { "" };
        write!(f, ", guidance {guidance}{none}; {}", self.source)
    }
}

/// Numbers with commas between them.
pub(crate) fn joined(list: &[f64]) -> String {
    list.iter().map(f64::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use calotype_diffusion::{Sampler, SamplerKind};

    /// Timesteps of diffusers 0.42.1 for each preset on Stable Diffusion's schedule.
    #[test]
    fn timesteps_are_those_of_diffusers() {
        for (name, expected) in [
            ("lcm", &[999.0, 759.0, 499.0, 259.0][..]),
            ("lcm-lora", &[999.0, 759.0, 499.0, 259.0]),
            ("tcd", &[999.0, 759.0, 499.0, 259.0]),
            ("turbo", &[999.0]),
            ("lightning-1", &[999.0]),
            ("lightning-2", &[999.0, 499.0]),
            ("lightning-4", &[999.0, 749.0, 499.0, 249.0]),
            ("lightning-8", &[999.0, 874.0, 749.0, 624.0, 499.0, 374.0, 249.0, 124.0]),
            ("dmd2", &[999.0, 749.0, 499.0, 249.0]),
            ("dmd2-1", &[399.0]),
            ("hyper-sd-1", &[800.0]),
            ("hyper-sd-2", &[999.0, 499.0]),
            ("hyper-sd-4", &[999.0, 749.0, 499.0, 249.0]),
            ("hyper-sd-8", &[999.0, 874.0, 749.0, 624.0, 499.0, 374.0, 249.0, 124.0]),
            ("hyper-sd-lora", &[999.0]),
        ] {
            let preset = Preset::by_name(name).unwrap();
            let kind = SamplerKind::by_name(preset.sampler).unwrap();
            let mut config = SamplerConfig { kind, ..SamplerConfig::default() };
            preset.apply(&mut config);
            let sampler = Sampler::new(&config, preset.steps).unwrap();
            assert_eq!(sampler.timesteps(), expected, "{name}");
            assert!(preset.to_string().contains(preset.source), "{preset}");
        }
        assert_eq!(PRESETS.len(), 15);
    }

    #[test]
    fn presets_are_told_by_name() {
        let error = Preset::by_name("lightening-4").unwrap_err();
        assert!(error.contains("did you mean lightning-4") && error.contains("hyper-sd-lora"), "{error}");
        assert_eq!(Preset::of_scheduler("LCMScheduler", true).unwrap().name, "lcm");
        assert_eq!(Preset::of_scheduler("LCMScheduler", false).unwrap().name, "lcm-lora");
        // A plain model may be drawn so, too.
        assert_eq!(Preset::of_scheduler("EulerAncestralDiscreteScheduler", false), None);
        let said = Preset::by_name("dmd2").unwrap().to_string();
        assert!(
            said.starts_with("dmd2: sampler lcm, 4 steps at timesteps 999,749,499,249, guidance 1 (none); "),
            "{said}"
        );
    }
}
