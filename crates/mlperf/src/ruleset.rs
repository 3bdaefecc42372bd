//! Rounds, benchmarks and what they aim at.

calotype_core::names! {
    /// The rules of a round of MLPerf training.
    Ruleset, "MLPerf training ruleset" {
        /// Round 4.0.
        V4_0 = "4.0.0" | "4.0",
        /// Round 4.1.
        V4_1 = "4.1.0" | "4.1",
        /// Round 5.0, the last with Stable Diffusion.
        V5_0 = "5.0.0" | "5.0",
        /// Round 5.1, the first with Flux.1.
        V5_1 = "5.1.0" | "5.1",
        /// Round 6.0.
        V6_0 = "6.0.0" | "6.0",
        /// Round 6.1.
        V6_1 = "6.1.0" | "6.1",
    }
}

calotype_core::names! {
    /// A benchmark that trains a text-to-image model.
    Benchmark, "text-to-image benchmark of MLPerf training" {
        /// Stable Diffusion v2 at 512x512, rounds 3.1 to 5.0.
        StableDiffusion = "stable_diffusion",
        /// Flux.1-schnell at 256x256, from round 5.1 on.
        Flux1 = "flux1",
    }
}

calotype_core::names! {
    /// What a submission may change.
    Division, "division" {
        /// Nothing but what the rules name.
        Closed = "closed",
        /// Model and training, too.
        Open = "open",
    }
}

calotype_core::names! {
    /// How the system can be had.
    SubmissionStatus, "submission status" {
        /// To be bought.
        OnPremises = "onprem",
        /// To be rented.
        Cloud = "cloud",
        /// Soon to be had.
        Preview = "preview",
        /// Neither.
        Research = "research",
    }
}

calotype_core::names! {
    /// How a run ended.
    RunStatus, "run status" {
        /// The targets were reached.
        Success = "success",
        /// They were not.
        Aborted = "aborted",
    }
}

calotype_core::names! {
    /// What an evaluation measures.
    Metric, "metric" {
        /// Fréchet distance on Inception features, of 30,000 images.
        Fid = "FID",
        /// Mean cosine of image and caption by CLIP ViT-H/14, not times 100.
        Clip = "CLIP",
        /// Mean loss on the validation samples.
        ValidationLoss = "validation_loss",
    }
}

/// The target of Stable Diffusion: a FID of at most this …
pub(crate) const FID: f64 = 90.0;
/// … and at the same sample count a CLIP score of at least this.
pub(crate) const CLIP: f64 = 0.15;
/// The target of Flux.1: a validation loss of at most this.
pub(crate) const LOSS: f64 = 0.586;

impl Ruleset {
    /// Benchmarks that logs of the round may name, of all kinds of models.
    pub(crate) fn benchmarks(self) -> &'static [&'static str] {
        match self {
            Self::V4_0 | Self::V4_1 => &[
                "resnet",
                "ssd",
                "stable_diffusion",
                "maskrcnn",
                "gpt3",
                "dlrm_dcnv2",
                "bert",
                "rnnt",
                "unet3d",
                "gnn",
                "llama2_70b_lora",
            ],
            Self::V5_0 => {
                &["retinanet", "stable_diffusion", "dlrm_dcnv2", "bert", "rgat", "llama2_70b_lora", "llama31_405b"]
            }
            Self::V5_1 => {
                &["retinanet", "flux1", "dlrm_dcnv2", "llama31_8b", "rgat", "llama2_70b_lora", "llama31_405b"]
            }
            Self::V6_0 => &[
                "flux1",
                "dlrm_dcnv2",
                "llama31_8b",
                "llama2_70b_lora",
                "llama31_405b",
                "gpt_oss_20b",
                "deepseekv3_671b",
            ],
            Self::V6_1 => &[
                "flux1",
                "llama31_8b",
                "llama2_70b_lora",
                "gpt_oss_20b",
                "deepseekv3_671b",
                "qwen35_397b_grpo",
                "dlrmv4",
            ],
        }
    }
}

impl Benchmark {
    /// Rounds that have the benchmark.
    pub fn rulesets(self) -> &'static [Ruleset] {
        match self {
            Self::StableDiffusion => &[Ruleset::V4_0, Ruleset::V4_1, Ruleset::V5_0],
            Self::Flux1 => &[Ruleset::V5_1, Ruleset::V6_0, Ruleset::V6_1],
        }
    }

    /// Runs that a result is made of.
    pub fn runs(self) -> usize {
        10
    }

    /// Training samples between two evaluations: the published distance (512,000 for Stable Diffusion, 262,144 for Flux.1) in
    /// whole batches, rounded up. A batch of 0 counts as 1.
    pub fn evaluation_interval(self, global_batch: u64) -> u64 {
        let distance: u64 = match self {
            Self::StableDiffusion => 512_000,
            Self::Flux1 => 262_144,
        };
        distance.next_multiple_of(global_batch.max(1))
    }

    /// Samples of an evaluation: images of Stable Diffusion (30,000 captions of COCO 2014), validation samples of Flux.1.
    pub fn evaluation_samples(self) -> u64 {
        match self {
            Self::StableDiffusion => 30_000,
            Self::Flux1 => 29_696,
        }
    }

    /// What an evaluation measures.
    pub fn metrics(self) -> &'static [Metric] {
        match self {
            Self::StableDiffusion => &[Metric::Fid, Metric::Clip],
            Self::Flux1 => &[Metric::ValidationLoss],
        }
    }

    /// Whether an evaluation meets the closed division's targets: FID from 0 to 90 and CLIP score from 0.15 to 1, or a
    /// validation loss above 0 and up to 0.586. A result that is missing is not met.
    pub fn reached(self, results: &[(Metric, f64)]) -> bool {
        self.metrics().iter().all(|metric| {
            let result = results.iter().rev().find(|(found, _)| found == metric);
            result.is_some_and(|(_, value)| metric.reached(*value))
        })
    }
}

impl Metric {
    /// The name in settings and in files of figures.
    pub fn key(self) -> &'static str {
        match self {
            Self::Fid => "fid",
            Self::Clip => "clip",
            Self::ValidationLoss => "validation_loss",
        }
    }

    /// The closed division's target: a result of at most this, of a CLIP score at least.
    pub fn target(self) -> f64 {
        match self {
            Self::Fid => FID,
            Self::Clip => CLIP,
            Self::ValidationLoss => LOSS,
        }
    }

    /// Whether a result meets the closed division's target; see [`Benchmark::reached`].
    pub fn reached(self, value: f64) -> bool {
        match self {
            Self::Fid => (0.0..=FID).contains(&value),
            Self::Clip => (CLIP..=1.0).contains(&value),
            Self::ValidationLoss => value > 0.0 && value <= LOSS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evaluations_lie_whole_batches_apart() {
        // Sample counts of the published reference runs: 384 does not divide 512,000.
        for (batch, interval) in [(256, 512_000), (384, 512_256), (512, 512_000), (2048, 512_000), (0, 512_000)] {
            assert_eq!(Benchmark::StableDiffusion.evaluation_interval(batch), interval);
        }
        assert_eq!(2_049_024, 4 * Benchmark::StableDiffusion.evaluation_interval(384));
        assert_eq!(Benchmark::Flux1.evaluation_interval(1024), 262_144);
        assert_eq!(Benchmark::Flux1.evaluation_interval(1152), 228 * 1152);
    }

    #[test]
    fn targets_count_their_ends() {
        let sd = |fid, clip| Benchmark::StableDiffusion.reached(&[(Metric::Fid, fid), (Metric::Clip, clip)]);
        assert!(sd(90.0, 0.15) && sd(0.0, 1.0));
        assert!(!sd(90.1, 0.2) && !sd(80.0, 0.149) && !sd(-1.0, 0.2) && !sd(80.0, 15.5) && !sd(f64::NAN, 0.2));
        assert!(!Benchmark::StableDiffusion.reached(&[(Metric::Fid, 80.0)]));
        assert!(Benchmark::Flux1.reached(&[(Metric::ValidationLoss, 0.586)]));
        assert!(!Benchmark::Flux1.reached(&[(Metric::ValidationLoss, 0.0)]));
    }
}
