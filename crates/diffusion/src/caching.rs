//! Deep features of a UNet that are kept between steps (Ma et al. 2023, "DeepCache").

use calotype_models::{DeepFeatures, UNet};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which steps compute a whole UNet, and which blocks the others leave out. It changes what is drawn: features are taken to
/// be what they were up to `interval - 1` steps ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Caching {
    /// Steps from one whole pass to the next (`cache_interval` of DeepCache); 1 leaves nothing out.
    pub interval: usize,
    /// The skip connection below which features are kept, as [`DeepFeatures`] numbers them (`cache_branch_id` of DeepCache).
    pub branch: usize,
}

impl Caching {
    /// Whether the calls of a run compute the whole network: those whose number, counted from the run's first call, is a
    /// multiple of the interval (`uniform` of DeepCache 0.1.1). Calls of one timestep have the number of the first of them.
    ///
    /// `timesteps` are those of all calls, `first` is the run's first call.
    pub fn whole_calls(&self, timesteps: &[f64], first: usize) -> Vec<bool> {
        let number = |t: f64| timesteps.iter().position(|&other| other == t);
        let start = timesteps.get(first).and_then(|&t| number(t));
        timesteps.iter().skip(first).map(|&t| self.is_whole(number(t), start)).collect()
    }

    fn is_whole(&self, number: Option<usize>, start: Option<usize>) -> bool {
        let since = number.zip(start).map(|(number, start)| number.saturating_sub(start));
        since.is_none_or(|since| since.is_multiple_of(self.interval.max(1)))
    }
}

/// The features of one run of a sampler.
#[derive(Debug)]
pub struct CachedRun {
    caching: Caching,
    timesteps: Vec<f64>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Number of the run's first call.
    start: Option<usize>,
    features: DeepFeatures,
}

impl CachedRun {
    /// Nothing yet, for a run of a network over the timesteps of all calls of a sampler; none if the network has no such
    /// branch.
    pub fn new(caching: Caching, unet: &UNet, timesteps: &[f64]) -> Option<Self> {
        let state = Mutex::new(State { start: None, features: unet.deep_features(caching.branch)? });
        Some(Self { caching, timesteps: timesteps.to_vec(), state })
    }

    /// Makes a pass at a timestep, with the features of earlier ones where the rule says so.
    pub(crate) fn pass<T>(&self, t: f64, pass: impl FnOnce(&mut DeepFeatures) -> T) -> T {
        let mut state = self.lock();
        let number = self.timesteps.iter().position(|&other| other == t);
        state.start = state.start.or(number);
        if self.caching.is_whole(number, state.start) {
            state.features.forget();
        }
        pass(&mut state.features)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps of which `DeepCacheSDHelper` 0.1.1 computes the whole network, from `is_skip_step`.
    #[test]
    fn the_rule_is_deepcaches() {
        let whole = |interval: usize, timesteps: &[f64], first: usize| {
            let calls = Caching { interval, branch: 0 }.whole_calls(timesteps, first);
            calls.into_iter().map(u8::from).collect::<Vec<_>>()
        };
        let seven = [900.0, 800.0, 700.0, 600.0, 500.0, 400.0, 300.0];
        assert_eq!(whole(3, &seven, 0), [1, 0, 0, 1, 0, 0, 1]);
        assert_eq!(whole(1, &seven, 0), [1; 7]);
        // A run that begins with an image counts from its own first step.
        assert_eq!(whole(3, &seven, 2), [1, 0, 0, 1, 0]);
        // Of PLMS, whose second timestep is visited twice.
        let plms = [900.0, 800.0, 800.0, 700.0, 600.0, 500.0, 400.0, 300.0];
        assert_eq!(whole(2, &plms, 0), [1, 0, 0, 0, 1, 0, 1, 0]);
        assert_eq!(whole(3, &plms, 0), [1, 0, 0, 1, 0, 0, 1, 0]);
    }
}
