use super::{Schedule, check, check_share, share_done, warming};
use crate::config::SettingError;
use crate::optim::{Position, Span};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// Half a cosine from the peak to `final` (Loshchilov & Hutter 2017, "SGDR", equation 5); with several `cycles` it starts
/// again at the peak after each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cosine {
    /// Rise from zero.
    pub warmup: Span,
    /// The last rate, as a share of the peak.
    #[serde(rename = "final")]
    pub final_share: f64,
    /// How many times it goes down, in equal lengths.
    pub cycles: u32,
    /// Where it ends, the warm-up included; by default with the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<Span>,
    /// Which step has which rate.
    #[serde(skip_serializing_if = "CosineVariant::is_usual")]
    pub variant: CosineVariant,
}

calotype_core::names! {
    /// Whose steps a cosine counts. Of a warm-up of w steps in a run of t steps, step n, counted from 0, has the share of the peak
    /// that is named here, and behind the warm-up `(1 + cos(π d)) / 2` of what is above `final`.
    CosineVariant, "variant of the cosine" {
        /// transformers' `get_cosine_schedule_with_warmup` behind the step: `(n + 1) / w`, then `d = (n + 1 - w) / (t - w)`.
        Transformers = "transformers",
        /// open_clip's `cosine_lr`: `(n + 1) / w`, then `d = (n - w) / (t - w)`.
        OpenClip = "open_clip",
        /// NeMo's `CosineAnnealing`: `(n + 1) / (w + 1)` up to step w, then `d = (n - w) / (t - w)`; `min_lr` is `final` times the peak.
        Nemo = "nemo",
    }
}

impl CosineVariant {
    /// Whether it is the one of recipes that name none.
    #[allow(clippy::trivially_copy_pass_by_ref)] // Serde hands over a reference.
    fn is_usual(&self) -> bool {
        *self == Self::Transformers
    }
}

impl Default for Cosine {
    fn default() -> Self {
        let variant = CosineVariant::Transformers;
        Self { warmup: Span::ZERO, final_share: 0.0, cycles: 1, length: None, variant }
    }
}

impl Schedule for Cosine {
    fn rate(&self, peak: f64, at: &Position) -> f64 {
        let before = Position { samples: at.samples.saturating_sub(at.batch_size), ..*at };
        let (behind, warmup) = (self.warmup.samples(at.batch_size), self.warmup);
        let done = match self.variant {
            CosineVariant::Transformers => match warming(warmup, peak, at) {
                Some(rate) => return rate,
                None => share_done(warmup, self.length, at),
            },
            CosineVariant::OpenClip if before.samples < behind => {
                return peak * at.samples as f64 / behind as f64;
            }
            CosineVariant::Nemo if behind > 0 && before.samples <= behind => {
                return peak * (at.samples as f64 / (behind + at.batch_size) as f64).min(1.0);
            }
            CosineVariant::OpenClip | CosineVariant::Nemo => share_done(warmup, self.length, &before),
        };
        let within = if self.cycles > 1 && done < 1.0 { (f64::from(self.cycles) * done).fract() } else { done };
        peak * (self.final_share + (1.0 - self.final_share) * (0.5 * (1.0 + (PI * within).cos())))
    }

    fn validate(&self) -> Result<(), SettingError> {
        check(self.cycles > 0, "optimizer.schedule.cycles", || "must be at least 1".to_owned())?;
        check_share("optimizer.schedule.final", self.final_share)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{near, rates};
    use super::*;

    /// transformers.get_cosine_schedule_with_warmup(optimizer, 10, 110) and get_cosine_with_hard_restarts_schedule_with_warmup(…, 2).
    #[test]
    fn equals_transformers() {
        let once = Cosine { warmup: Span::Steps(10), length: Some(Span::Steps(110)), ..Cosine::default() };
        let quarter = 0.853_553_390_593_273_7;
        near(&rates(&once, &[0, 5, 10, 35, 60, 110, 200]), &[0.0, 0.5, 1.0, quarter, 0.5, 0.0, 0.0]);
        let twice = Cosine { cycles: 2, ..once };
        near(&rates(&twice, &[10, 35, 60, 85, 110]), &[1.0, 0.5, 1.0, 0.5, 0.0]);
    }

    /// The factors of open_clip_train.scheduler.cosine_lr(optimizer, 1.0, 4, 20), and of NeMo's CosineAnnealing with min_lr 0.1, by
    /// hand from their definitions; long runs of both are in `tests/golden/schedules.txt`.
    #[test]
    fn other_variants_count_from_the_step_before() {
        let length = Some(Span::Steps(20));
        let open_clip =
            Cosine { warmup: Span::Steps(4), length, variant: CosineVariant::OpenClip, ..Cosine::default() };
        near(&rates(&open_clip, &[1, 2, 4, 5, 13, 21]), &[0.25, 0.5, 1.0, 1.0, 0.5, 0.0]);
        let nemo = Cosine { final_share: 0.1, variant: CosineVariant::Nemo, ..open_clip };
        near(&rates(&nemo, &[1, 2, 4, 5, 13, 21, 40]), &[0.2, 0.4, 0.8, 1.0, 0.55, 0.1, 0.1]);
        assert!(
            toml::from_str::<Cosine>("variant = 'nemo'").is_ok() && toml::from_str::<Cosine>("variant = 'x'").is_err()
        );
    }

    #[test]
    fn ends_at_the_final_share() {
        let schedule = Cosine { final_share: 0.1, ..Cosine::default() };
        near(&rates(&schedule, &[0, 50, 100]), &[1.0, 0.55, 0.1]);
        assert!(Cosine { cycles: 0, ..Cosine::default() }.validate().unwrap_err().key.ends_with(".cycles"));
        assert!(Cosine { final_share: -1.0, ..Cosine::default() }.validate().unwrap_err().key.ends_with(".final"));
    }
}
