use super::{AverageForm, AverageProgress, PowerFunction};
use crate::config::{SettingError, check};
use serde::{Deserialize, Serialize};

/// Averages by powers of time, of which snapshots are kept, so that any other width can be rebuilt afterwards by `calotype ema`
/// (Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 3).
///
/// Evaluations, previews and the run's result have the average of the first width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostHoc {
    /// Relative widths of the averages that are tracked: the standard deviation of the weights' times as a share of the run so far.
    #[serde(default = "widths")]
    pub sigma_rel: Vec<f64>,
    /// Samples seen between two snapshots; there is one at the end, too.
    pub snapshot_every: u64,
}

/// The paper's.
fn widths() -> Vec<f64> {
    vec![0.05, 0.1]
}

impl Default for PostHoc {
    fn default() -> Self {
        Self { sigma_rel: widths(), snapshot_every: 500_000 }
    }
}

impl PostHoc {
    /// The averages that are tracked. Widths that are none, which [`AverageForm::validate`] refuses, are left out.
    pub fn profiles(&self) -> impl Iterator<Item = PowerFunction> + '_ {
        self.sigma_rel.iter().filter_map(|&sigma_rel| PowerFunction::of_width(sigma_rel))
    }
}

impl AverageForm for PostHoc {
    fn decay(&self, at: &AverageProgress) -> f64 {
        self.profiles().next().map_or(0.0, |profile| profile.decay(at.samples, at.interval))
    }

    fn beside(&self) -> Vec<PowerFunction> {
        self.profiles().skip(1).collect()
    }

    fn validate(&self) -> Result<(), SettingError> {
        let wrong = self.sigma_rel.iter().find(|&&sigma_rel| PowerFunction::of_width(sigma_rel).is_none());
        if let Some(wrong) = wrong {
            let problem = format!("{wrong} is not above 0 and below 0.2887, the width of a flat average");
            return Err(SettingError { key: "ema.sigma_rel", problem });
        }
        let ascending = self.sigma_rel.windows(2).all(|pair| pair[0] < pair[1]);
        check(self.sigma_rel.len() >= 2 && ascending, "ema.sigma_rel", || {
            "must be two widths or more, ascending: others are rebuilt out of them".to_owned()
        })?;
        check(self.snapshot_every > 0, "ema.snapshot_every", || "must be at least 1".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{decays, near};
    use super::super::{EmaForm, EmaSettings};
    use super::*;
    use crate::optim::{Position, Span};

    #[test]
    fn the_first_width_decays_and_the_others_stand_beside_it() {
        let form = PostHoc::default();
        let [narrow, wide] = [0.05, 0.1].map(|width| PowerFunction::of_width(width).unwrap());
        near(&decays(&form, &[1, 2, 100]), &[0.0, narrow.decay(16, 8), narrow.decay(800, 8)]);
        assert_eq!(form.beside(), [wide]);
        let settings = EmaSettings::new(EmaForm::PostHoc(form));
        let at = Position { samples: 800, batch_size: 8, total: 8000 };
        assert_eq!(settings.beside(&at), [wide.decay(800, 8) as f32]);
        assert_eq!(settings.snapshot_every(), Some(500_000));
        assert!(EmaSettings::new(EmaForm::Constant(Default::default())).beside(&at).is_empty());
    }

    #[test]
    fn what_cannot_be_is_named() {
        let form = |sigma_rel: &[f64], snapshot_every| PostHoc { sigma_rel: sigma_rel.to_vec(), snapshot_every };
        for (form, part) in [
            (form(&[0.05, 0.3], 1), "`ema.sigma_rel`: 0.3 is not"),
            (form(&[0.1], 1), "two widths"),
            (form(&[], 1), "two widths"),
            (form(&[0.1, 0.05], 1), "ascending"),
            (form(&[0.1, 0.1], 1), "ascending"),
            (form(&[0.05, 0.1], 0), "`ema.snapshot_every`: must be"),
        ] {
            let error = form.validate().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let settings = EmaSettings::new(EmaForm::PostHoc(PostHoc::default()));
        assert_eq!(settings.validate(), Ok(()));
        for settings in [
            EmaSettings { start: Span::Samples(8), ..settings.clone() },
            EmaSettings { interval: Span::Steps(2), ..settings },
        ] {
            assert!(settings.validate().unwrap_err().to_string().contains("post_hoc"));
        }
        let error = toml::from_str::<EmaSettings>("name = 'post_hoc'").unwrap_err().to_string();
        assert!(error.contains("snapshot_every"), "{error}");
    }
}
