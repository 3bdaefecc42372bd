//! Averages of a run's weights that are made afterwards (Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion
//! models", section 3.2): sums of the snapshots that a run with `[ema] name = "post_hoc"` keeps in its folder `averages/`.

use crate::checkpoint::{self, Checkpoint, CheckpointError, CheckpointStore, LazyTensor, saved_in};
use crate::optim::ema::{EmaForm, Fit, PowerFunction, Snapshot, fit};
use crate::optim::{EmaSettings, WITHOUT_AVERAGE, snapshot_name};
use burn::module::Module;
use calotype_core::system::format_count;
use calotype_models::state;
use calotype_weights::{TensorFile, TensorFileError};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Folder of the snapshots, inside the run's own.
pub const AVERAGES: &str = "averages";
const PREFIX: &str = "average";
/// A sum that is farther away than this, as a share of the average's norm, is another average.
const USELESS: f64 = 0.5;

/// Why an average cannot be rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum AverageError {
    /// A snapshot of the run that is not whole.
    #[error(
        "{}: a snapshot that is not whole, and without it another average comes out; copy it back, or move it away",
        path.display()
    )]
    Incomplete {
        /// The snapshot.
        path: PathBuf,
    },
    /// A snapshot of another run, or one that was renamed.
    #[error("{}: {problem}; move it away, and copy the run's own snapshot back", snapshot.display())]
    Foreign {
        /// The snapshot's folder.
        snapshot: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// The run keeps no snapshots.
    #[error("{}: there are no snapshots of averages; a run keeps them with [ema] name = \"post_hoc\" in its recipe", run.display())]
    None {
        /// The run's folder.
        run: PathBuf,
    },
    /// No average has the width.
    #[error(
        "--sigma-rel {0:?}: a relative width is at least 0.000001 and below 0.2887, that of a flat average; usual are 0.01 to 0.25"
    )]
    Width(f64),
    /// The run has not come so far, or the first snapshot is later.
    #[error("--at {at}: the snapshots of {} are of {} to {} samples; choose a number among them", run.display(), format_count(*first), format_count(*last))]
    At {
        /// The run's folder.
        run: PathBuf,
        /// Samples that were asked for.
        at: u64,
        /// Those of the first snapshot.
        first: u64,
        /// Those of the last one.
        last: u64,
    },
    /// The snapshots give nothing like the average that is wanted.
    #[error(
        "--sigma-rel {sigma_rel} --at {at}: what the snapshots of {} give is {:.0} % off, and no such average; {advice}",
        run.display(), 100.0 * error
    )]
    Far {
        /// The run's folder.
        run: PathBuf,
        /// The width that was asked for.
        sigma_rel: f64,
        /// The samples that were asked for.
        at: u64,
        /// The distance as a share of the average's norm.
        error: f64,
        /// What would be nearer.
        advice: String,
    },
    /// A snapshot does not say what it averages.
    #[error("{}: this snapshot's state does not say which averages it holds ({problem}); remove its folder", snapshot.display())]
    State {
        /// The snapshot's folder.
        snapshot: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The snapshots do not determine a sum.
    #[error("{}: the snapshots do not determine a sum of them; remove those that are there twice", run.display())]
    Unsolvable {
        /// The run's folder.
        run: PathBuf,
    },
    /// A snapshot cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A snapshot lacks a tensor of the model.
    #[error(transparent)]
    Tensor(#[from] TensorFileError),
}

impl AverageError {
    /// Whether the command, not the work, is at fault.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::None { .. } | Self::Width(_) | Self::At { .. } | Self::Far { .. })
    }
}

/// Whether tensors are those of a snapshot, and not of a training checkpoint.
pub(crate) fn is_snapshot(tensors: &TensorFile) -> bool {
    let first = snapshot_name(0, "");
    tensors.names().any(|name| name.starts_with(&first))
}

/// The folder of the run that a snapshot's folder lies in.
pub(crate) fn run_of(snapshot: &Path) -> &Path {
    snapshot.parent().and_then(Path::parent).filter(|run| !run.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// What a snapshot says beside its tensors.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct State {
    /// Relative widths of the averages, in the order of their names.
    sigma_rel: Vec<f64>,
    /// The run's seed; absent in snapshots of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
}

/// Where the snapshot of a run behind some samples is kept.
pub(crate) fn place_of(run: &Path, samples: u64) -> PathBuf {
    run.join(AVERAGES).join(checkpoint::folder_name(PREFIX, samples))
}

/// Whether a run has the snapshot behind some samples. It is not looked into.
pub(crate) fn is_kept(run: &Path, samples: u64) -> bool {
    place_of(run, samples).is_dir()
}

/// Keeps a snapshot of a run with a seed, atomically; one of the same samples that is the same stays.
///
/// # Errors
/// [`CheckpointError`].
pub(crate) fn keep(
    run: &Path,
    samples: u64,
    tensors: Vec<LazyTensor<'_>>,
    ema: &EmaSettings,
    seed: u64,
) -> Result<(), CheckpointError> {
    let EmaForm::PostHoc(form) = &ema.form else { return Ok(()) };
    let state = serde_json::json!({ "sigma_rel": form.sigma_rel, "seed": seed });
    let store = CheckpointStore::open(run.join(AVERAGES), PREFIX)?;
    store.save(samples, tensors, &state).map(drop)
}

/// An average that is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// Its relative width.
    pub sigma_rel: f64,
    /// Samples seen at its end; those of the last snapshot if absent.
    pub at: Option<u64>,
}

/// The snapshots of a run and what they are multiplied by.
#[derive(Debug)]
pub struct Rebuilt {
    /// Relative width.
    pub sigma_rel: f64,
    /// Samples seen at its end.
    pub samples: u64,
    /// Snapshots with the number of averages in each.
    snapshots: Vec<(Checkpoint, usize)>,
    fit: Fit,
}

impl Rebuilt {
    /// Reads the snapshots of a run with a seed, and finds the sum of them that is nearest to the average that is wanted. Every hash is verified; no
    /// tensor is added up yet.
    ///
    /// # Errors
    /// [`AverageError`].
    pub fn open(run: &Path, seed: u64, wanted: &Wanted) -> Result<Self, AverageError> {
        let profile = PowerFunction::of_width(wanted.sigma_rel).ok_or(AverageError::Width(wanted.sigma_rel))?;
        let folder = run.join(AVERAGES);
        let mut saved = if folder.is_dir() { saved_in(&folder)? } else { Vec::new() };
        if let Some(path) = incomplete(&folder, &saved) {
            return Err(AverageError::Incomplete { path });
        }
        let (Some(first), Some(last)) = (saved.first(), saved.last()) else {
            return Err(AverageError::None { run: run.to_owned() });
        };
        let (first, last) = (first.0, last.0);
        let samples = wanted.at.unwrap_or(last);
        if !(first..=last).contains(&samples) {
            return Err(AverageError::At { run: run.to_owned(), at: samples, first, last });
        }
        // Later snapshots average what is not to be seen.
        saved.retain(|(taken, _)| *taken <= samples);
        let (mut snapshots, mut profiles) = (Vec::new(), Vec::new());
        for (taken, path) in &saved {
            let snapshot = Checkpoint::load(path)?;
            let own = profiles_of(&snapshot, *taken, seed)?;
            profiles.extend(own.iter().map(|&profile| Snapshot { samples: snapshot.samples, profile }));
            snapshots.push((snapshot, own.len()));
        }
        let fit = fit(&profiles, &Snapshot { samples, profile });
        let fit = fit.ok_or_else(|| AverageError::Unsolvable { run: run.to_owned() })?;
        if fit.error > USELESS {
            let newest = saved.last().map_or(first, |(taken, _)| *taken);
            let advice = match newest < samples {
                // Of what came behind the last snapshot they know nothing.
                true => format!("choose --at {newest}, the last snapshot in front of that"),
                false => "choose a width nearer to those of ema.sigma_rel, or keep more snapshots (ema.snapshot_every)"
                    .to_owned(),
            };
            let (run, sigma_rel) = (run.to_owned(), wanted.sigma_rel);
            return Err(AverageError::Far { run, sigma_rel, at: samples, error: fit.error, advice });
        }
        Ok(Self { sigma_rel: wanted.sigma_rel, samples, snapshots, fit })
    }

    /// How many snapshots it is a sum of.
    pub fn snapshots(&self) -> usize {
        self.snapshots.len()
    }

    /// The distance of its profile from the one that is wanted, as a share of that one's norm.
    pub fn error(&self) -> f64 {
        self.fit.error
    }

    /// A model of the run with the average in place of its weights. Tensors are read and added up one at a time.
    ///
    /// # Errors
    /// [`AverageError::Tensor`]: the snapshots are of another model.
    pub fn fill<M: Module>(&self, model: M) -> Result<M, AverageError> {
        state::load(model, |name, shape| self.values(name, shape))
    }

    fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, AverageError> {
        let without = format!("{WITHOUT_AVERAGE}{name}");
        if let Some((last, _)) = self.snapshots.last().filter(|(last, _)| last.tensors.contains(&without)) {
            return Ok(last.values(&without, shape)?);
        }
        let mut sum = vec![0f64; shape.iter().product()];
        let mut coefficients = self.fit.coefficients.iter();
        for (snapshot, averages) in &self.snapshots {
            for (index, &coefficient) in (0..*averages).zip(coefficients.by_ref()) {
                let values = snapshot.values(&snapshot_name(index, name), shape)?;
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += coefficient * f64::from(value));
            }
        }
        Ok(sum.into_iter().map(|value| value as f32).collect())
    }
}

/// A snapshot that was kept and is not whole any more: without it, another average would come out.
fn incomplete(folder: &Path, saved: &[(u64, PathBuf)]) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let paths = entries.flatten().map(|entry| entry.path());
    let is_snapshot = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    let mut lost: Vec<_> =
        paths.filter(|path| is_snapshot(path) && saved.iter().all(|(_, whole)| whole != path)).collect();
    lost.sort();
    lost.into_iter().next()
}

/// What a snapshot averages, which must be of a run with a seed, taken behind the samples that its folder's name says.
fn profiles_of(snapshot: &Checkpoint, taken: u64, seed: u64) -> Result<Vec<PowerFunction>, AverageError> {
    let foreign = |problem: String| Err(AverageError::Foreign { snapshot: snapshot.path.clone(), problem });
    if snapshot.samples != taken {
        return foreign(format!("it was taken after {} samples, and its folder's name says {taken}", snapshot.samples));
    }
    let wrong = |problem: String| AverageError::State { snapshot: snapshot.path.clone(), problem };
    let state: State = serde_json::from_value(snapshot.state.clone()).map_err(|error| wrong(error.to_string()))?;
    if let Some(other) = state.seed.filter(|other| *other != seed) {
        return foreign(format!("it is of a run whose run.seed is {other}, and this one's is {seed}"));
    }
    let profile = |&width: &f64| {
        PowerFunction::of_width(width).ok_or_else(|| wrong(format!("sigma_rel = {width} is no width of an average")))
    };
    state.sigma_rel.iter().map(profile).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::ema::PostHoc;
    use burn::module::Param;
    use burn::tensor::{Device, Tensor};

    #[derive(Module, Debug)]
    struct Pair {
        trained: Param<Tensor<1>>,
        frozen: Param<Tensor<1>>,
    }

    fn pair() -> Pair {
        let tensor = || Param::from_tensor(Tensor::zeros([2], &Device::flex()));
        Pair { trained: tensor(), frozen: tensor() }
    }

    const SEED: u64 = 3;

    /// A run whose first weight is its samples and whose second one is constant; snapshots every 100 samples.
    fn run(folder: &Path) {
        let ema = EmaSettings::new(EmaForm::PostHoc(PostHoc { snapshot_every: 100, ..PostHoc::default() }));
        let profiles: Vec<PowerFunction> = PostHoc::default().profiles().collect();
        let mut averages = [0.0; 2];
        for samples in 1..=800u64 {
            for (average, profile) in averages.iter_mut().zip(&profiles) {
                let decay = profile.decay(samples, 1);
                *average = decay * *average + (1.0 - decay) * samples as f64;
            }
            if samples % 100 == 0 {
                let tensor = |name: &str, value: f64| LazyTensor::f32(name, [2], move || vec![value as f32, 7.0]);
                let tensors = vec![
                    tensor("average0.trained", averages[0]),
                    tensor("average1.trained", averages[1]),
                    tensor("model.frozen", 3.0),
                ];
                keep(folder, samples, tensors, &ema, SEED).unwrap();
            }
        }
    }

    fn wanted(sigma_rel: f64, at: Option<u64>) -> Wanted {
        Wanted { sigma_rel, at }
    }

    #[test]
    fn averages_are_rebuilt_from_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path());
        let filled = |wanted: &Wanted| {
            let rebuilt = Rebuilt::open(folder.path(), SEED, wanted).unwrap();
            let model = rebuilt.fill(pair()).unwrap();
            assert_eq!(state::values_of(model.frozen.val()), [3.0, 7.0]);
            let values = state::values_of(model.trained.val());
            assert!((values[1] - 7.0).abs() < 1e-4, "the coefficients add up to one: {values:?}");
            (rebuilt, values[0])
        };
        // The mean time of a profile is (gamma + 1) / (gamma + 2) of its end.
        for (sigma_rel, at, samples) in
            [(0.05, None, 800.0), (0.07, None, 800.0), (0.12, Some(500), 500.0), (0.2, None, 800.0)]
        {
            let gamma = PowerFunction::of_width(sigma_rel).unwrap().gamma();
            let (rebuilt, value) = filled(&wanted(sigma_rel, at));
            let want = samples * (gamma + 1.0) / (gamma + 2.0);
            assert!((f64::from(value) - want).abs() < 0.02 * samples, "{sigma_rel}: {value} instead of {want}");
            assert_eq!(rebuilt.snapshots() as f64 * 100.0, samples);
            assert!(rebuilt.error() < 0.2 && rebuilt.samples as f64 == samples, "{sigma_rel}: {}", rebuilt.error());
        }
    }

    #[test]
    fn what_cannot_be_rebuilt_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let error = |wanted: Wanted| Rebuilt::open(folder.path(), SEED, &wanted).unwrap_err();
        assert!(matches!(error(wanted(0.1, None)), AverageError::None { .. }));
        assert!(error(wanted(0.1, None)).to_string().contains("post_hoc"));
        run(folder.path());
        for (wrong, part) in [
            (wanted(0.3, None), "--sigma-rel 0.3"),
            (wanted(0.0, None), "--sigma-rel 0"),
            (wanted(1e-300, None), "--sigma-rel 1e-300"),
            (wanted(0.1, Some(99)), "--at 99"),
            (wanted(0.1, Some(801)), "100 to 800"),
            (wanted(0.1, Some(550)), "choose --at 500"),
        ] {
            let error = error(wrong);
            assert!(error.to_string().contains(part) && error.is_usage(), "{error}");
        }
        let store = CheckpointStore::open(folder.path().join(AVERAGES), PREFIX).unwrap();
        let tensors = || [LazyTensor::f32("average0.trained", [2], || vec![0.0; 2])];
        store.save(900, tensors(), &serde_json::json!({ "sigma_rel": [2.0] })).unwrap();
        assert!(error(wanted(0.1, None)).to_string().contains("sigma_rel = 2"));
        store.save(900, tensors(), &serde_json::json!({})).unwrap();
        assert!(error(wanted(0.1, None)).to_string().contains("remove its folder"));
        assert!(!error(wanted(0.1, None)).is_usage());
        store.save(900, tensors(), &serde_json::json!({ "sigma_rel": [0.1], "seed": 99 })).unwrap();
        let foreign = error(wanted(0.1, None)).to_string();
        assert!(foreign.contains("run.seed is 99, and this one's is 3"), "{foreign}");
        let (from, to) = (place_of(folder.path(), 900), place_of(folder.path(), 1000));
        assert!(is_kept(folder.path(), 900) && !is_kept(folder.path(), 1000));
        std::fs::rename(&from, &to).unwrap();
        let renamed = error(wanted(0.1, None)).to_string();
        assert!(renamed.contains("taken after 900 samples, and its folder's name says 1000"), "{renamed}");
        std::fs::rename(&to, &from).unwrap();
        // One that lacks a file is not passed over.
        let newest = store.newest().unwrap().unwrap().path;
        std::fs::rename(newest.join("manifest.json"), folder.path().join("m")).unwrap();
        assert!(error(wanted(0.1, None)).to_string().contains("a snapshot that is not whole"));
        std::fs::rename(folder.path().join("m"), newest.join("manifest.json")).unwrap();
        // Of another model.
        let other =
            Rebuilt::open(folder.path(), SEED, &wanted(0.1, Some(800))).unwrap().fill(Other { weight: pair().trained });
        assert!(other.unwrap_err().to_string().contains("weight"));
    }

    #[derive(Module, Debug)]
    struct Other {
        weight: Param<Tensor<1>>,
    }
}
