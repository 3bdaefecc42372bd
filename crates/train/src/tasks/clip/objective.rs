//! How images and captions are compared: the table `[objective]` of CLIP's recipes.

use crate::config::{SettingError, check};
use crate::optim::GroupRule;
use calotype_core::{Purpose, Stream};
use calotype_models::clip::{LOGIT_BIAS, MAX_LOGIT_SCALE, initial_logit_scale};
use calotype_models::{Contrast, Logits};
use serde::{Deserialize, Serialize};

calotype_core::names! {
    /// The loss of CLIP's training. All of them are over the batches of all processes, with the whole gradient.
    ClipLoss, "loss of CLIP" {
        /// Cross-entropy of each image over all texts and of each text over all images (Radford et al. 2021, figure 3), of the whole
        /// batch on every process: open_clip's default with `--gather-with-grad`. Without that, open_clip divides the gradient of the
        /// towers, but not that of the temperature, by the number of processes.
        Full = "full",
        /// The same loss, of which each process computes its own rows: `--local-loss --gather-with-grad` of open_clip, `local_loss` and
        /// `gather_with_grad` of NeMo.
        Local = "local",
        /// A decision for each image with each text (SigLIP, Zhai et al. 2023): `--siglip` of open_clip. The model has a `logit_bias`.
        Siglip = "siglip",
    }
}

calotype_core::names! {
    /// Where the inverse temperature is kept at or below 100.
    Clamp, "place of the clamp" {
        /// In the loss, as OpenAI's code has it; above 100, the parameter has no gradient.
        Loss = "loss",
        /// Behind each step: the parameter is put back to 0 to ln 100, as open_clip has it.
        Step = "step",
        /// Nowhere: NeMo.
        None = "none",
    }
}

/// How images and captions are compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipObjective {
    /// The loss.
    pub loss: ClipLoss,
    /// What the logarithm of the inverse temperature begins at; if absent, `ln(1 / 0.07)`, and `ln 10` with `siglip`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_scale_init: Option<f32>,
    /// What the bias of `siglip` begins at; -10 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_bias_init: Option<f32>,
    /// Whether the inverse temperature is trained.
    pub learn_logit_scale: bool,
    /// Where the inverse temperature is kept at or below 100.
    pub clamp: Clamp,
    /// Share of each image's patches that training leaves out (FLIP, Li et al. 2023; open_clip's `--force-patch-dropout`): the same
    /// number of each image, by its position in the run; the class token stays.
    pub patch_dropout: f64,
}

impl Default for ClipObjective {
    fn default() -> Self {
        Self {
            loss: ClipLoss::Full,
            logit_scale_init: None,
            logit_bias_init: None,
            learn_logit_scale: true,
            clamp: Clamp::Loss,
            patch_dropout: 0.0,
        }
    }
}

/// Name of the parameter that holds the logarithm of the inverse temperature.
const LOGIT_SCALE: &str = "logit_scale";

impl ClipObjective {
    /// Checks what the types cannot, of a model with or without a bias of its logits.
    pub(super) fn validate(&self, logit_bias: bool) -> Result<(), SettingError> {
        let siglip = self.loss == ClipLoss::Siglip;
        check(logit_bias == siglip, "model.logit_bias", || match siglip {
            true => "is false, and the loss `siglip` needs it: set model.logit_bias = true".to_owned(),
            false => format!(
                "is true, and the loss `{}` does not change with it: leave it out, or set objective.loss = \"siglip\"",
                self.loss
            ),
        })?;
        check(siglip || self.logit_bias_init.is_none(), "objective.logit_bias_init", || {
            format!("is of the loss `siglip`, and this is `{}`: leave it out", self.loss)
        })?;
        for (key, value) in
            [("objective.logit_scale_init", self.logit_scale_init), ("objective.logit_bias_init", self.logit_bias_init)]
        {
            check(value.is_none_or(|value| value.abs() <= 50.0), key, || {
                format!("{} is far from any logit; use a number such as 2.66 or -10", value.unwrap_or_default())
            })?;
        }
        check((0.0..1.0).contains(&self.patch_dropout), "objective.patch_dropout", || {
            format!("{} is not a share from 0 to below 1", self.patch_dropout)
        })
    }

    /// The initial logarithm of the inverse temperature, and the initial bias.
    pub(super) fn begin(&self) -> (f32, f32) {
        let usual = if self.loss == ClipLoss::Siglip { 10f32.ln() } else { initial_logit_scale() };
        (self.logit_scale_init.unwrap_or(usual), self.logit_bias_init.unwrap_or(LOGIT_BIAS))
    }

    /// What is trained differently.
    pub(super) fn groups(&self) -> Vec<GroupRule> {
        let clamp = (self.clamp == Clamp::Step).then(|| [0.0, f64::from(MAX_LOGIT_SCALE).ln()]);
        let frozen = (!self.learn_logit_scale).then_some(true);
        match (clamp, frozen) {
            (None, None) => Vec::new(),
            _ => vec![GroupRule { names: vec![LOGIT_SCALE.to_owned()], frozen, clamp, ..GroupRule::default() }],
        }
    }

    pub(super) fn contrast(&self) -> Contrast {
        match self.loss {
            ClipLoss::Full | ClipLoss::Local => Contrast::Softmax,
            ClipLoss::Siglip => Contrast::Sigmoid,
        }
    }

    /// The largest inverse temperature that a loss takes.
    pub(super) fn largest_scale(&self) -> f32 {
        if self.clamp == Clamp::Loss { MAX_LOGIT_SCALE } else { f32::INFINITY }
    }

    /// What cosines are made logits by, of the parameters' values; and the derivative of the inverse temperature with respect to its
    /// parameter.
    pub(super) fn logits(&self, log_scale: f32, bias: f32) -> (Logits, f32) {
        let (scale, largest) = (log_scale.exp(), self.largest_scale());
        let slope = if scale > largest { 0.0 } else { scale };
        (Logits { scale: scale.min(largest), bias }, slope)
    }
}

/// The patches, of so many, that training looks at of the image at a position of the run, in their order; all the others, a share of
/// `rate`, are left out. As many are kept as open_clip's `PatchDropout` keeps, one at least.
pub fn kept_patches(seed: u64, position: u64, patches: usize, rate: f64) -> Vec<usize> {
    let mut random = Stream::new(seed, Purpose::Dropout, position);
    let mut drawn: Vec<(u32, usize)> = (0..patches).map(|patch| (random.next_u32(), patch)).collect();
    drawn.sort_unstable();
    drawn.truncate(((patches as f64 * (1.0 - rate)) as usize).max(1));
    let mut kept: Vec<usize> = drawn.into_iter().map(|(_, patch)| patch).collect();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> ClipObjective {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (text, bias, key) in [
            ("loss = 'siglip'", false, "model.logit_bias"),
            ("", true, "model.logit_bias"),
            ("logit_bias_init = -5.0", false, "objective.logit_bias_init"),
            ("logit_scale_init = 1e9", false, "objective.logit_scale_init"),
            ("logit_scale_init = nan", false, "objective.logit_scale_init"),
            ("patch_dropout = 1.0", false, "objective.patch_dropout"),
            ("patch_dropout = -0.1", false, "objective.patch_dropout"),
        ] {
            assert_eq!(read(text).validate(bias).unwrap_err().key, key, "{text}");
        }
        for (text, bias) in [("", false), ("loss = 'siglip'\nlogit_bias_init = -5.0", true), ("loss = 'local'", false)]
        {
            assert_eq!(read(text).validate(bias), Ok(()), "{text}");
        }
        assert!(toml::from_str::<ClipObjective>("loss = 'softmax'").unwrap_err().to_string().contains("siglip"));
        assert!(toml::from_str::<ClipObjective>("temperature = 1").is_err());
    }

    #[test]
    fn temperatures_begin_and_end_as_those_of_the_references() {
        assert_eq!(read("").begin(), ((1.0f32 / 0.07).ln(), -10.0));
        assert_eq!(read("loss = 'siglip'").begin(), (10f32.ln(), -10.0));
        assert_eq!(read("logit_scale_init = 1.5").begin().0, 1.5);
        let (logits, slope) = read("").logits(5.0, 0.0);
        assert_eq!((logits.scale, slope), (100.0, 0.0));
        let (logits, slope) = read("clamp = 'none'").logits(5.0, 1.0);
        assert!(logits.scale > 148.0 && logits.bias == 1.0 && slope == logits.scale);
        assert!(read("").groups().is_empty());
        let [rule] = read("clamp = 'step'\nlearn_logit_scale = false").groups().try_into().unwrap();
        assert_eq!((rule.frozen, rule.clamp), (Some(true), Some([0.0, 100f64.ln()])));
        assert!(rule.matches("logit_scale", &[1]) && !rule.matches("logit_bias", &[1]));
    }

    #[test]
    fn as_many_patches_are_kept_of_each_image_by_its_position() {
        let kept = |position| kept_patches(7, position, 49, 0.5);
        for position in 0..50 {
            let kept = kept(position);
            assert!(kept.len() == 24 && kept.windows(2).all(|pair| pair[0] < pair[1]) && kept[23] < 49);
        }
        assert!(kept(1) == kept(1) && kept(1) != kept(2) && kept_patches(8, 1, 49, 0.5) != kept(1));
        assert_eq!(kept_patches(7, 3, 4, 0.99).len(), 1);
        assert_eq!(kept_patches(7, 3, 4, 0.0), [0, 1, 2, 3]);
        let mut seen = [0; 49];
        (0..1000).for_each(|position| kept(position).into_iter().for_each(|patch| seen[patch] += 1));
        assert!(seen.iter().all(|count| (400..600).contains(count)), "{seen:?}");
    }
}
