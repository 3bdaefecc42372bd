//! The one pass over pictures that serves all metrics.

use crate::features::{FeatureKey, Features, Networks, hex};
use crate::figure::Figure;
use crate::metrics::Metric;
use crate::pictures::{Picture, Pictures};
use crate::state::{Part, PixelHash, Reference, State, StateFolder, States, pixel_hash};
use crate::{EvaluateError, Result};
use calotype_data::Control;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

/// Pictures that are decoded, and go through the networks, together. Features do not depend on it, memory does.
const BATCH: usize = 16;
/// Name of the work in reports of progress.
const STAGE: &str = "features";
/// Pictures between two savings of a pass that has a folder.
const SAVE_EVERY: usize = 1024;

/// What all metrics together want of the features of one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Mean and covariance.
    pub gaussian: bool,
    /// Rows.
    pub rows: BTreeSet<Part>,
}

/// What metrics want, by key.
pub fn wanted(metrics: &[Box<dyn Metric>]) -> BTreeMap<FeatureKey, Wanted> {
    let mut all: BTreeMap<FeatureKey, Wanted> = BTreeMap::new();
    for metric in metrics {
        let needs = metric.needs();
        let wanted = all.entry(needs.features).or_default();
        wanted.gaussian |= needs.gaussian;
        wanted.rows.extend(needs.rows);
    }
    all
}

/// Where a pass begins, and where it keeps what it has.
#[derive(Clone, Copy, Debug, Default)]
pub struct PassOptions<'a> {
    /// Number of its first picture among all.
    pub first: usize,
    /// A folder of its own, in which it is saved and goes on; without one, it is in temporary files and memory.
    pub folder: Option<&'a Path>,
    /// What that folder is of, such as the name of a model: states that are of something else are refused.
    pub of: &'a str,
    /// True if the rows of all features are kept, whether or not a metric wants them: mean and covariance of slices are then
    /// the same bits as of all pictures at once, and other metrics can be computed later.
    pub keep_rows: bool,
}

/// Pictures on their way through all networks that metrics need.
pub struct Pass {
    networks: Vec<Box<dyn Features>>,
    states: States,
    folder: Option<StateFolder>,
}

impl Pass {
    /// A pass for `metrics`; it goes on where the pass in its folder was saved.
    ///
    /// # Errors
    /// A network cannot be opened, a file cannot be made, or the folder's pass was of other networks or of another
    /// beginning.
    pub fn open(metrics: &[Box<dyn Metric>], networks: &Networks, options: &PassOptions<'_>) -> Result<Self> {
        let features = wanted(metrics).into_keys().map(|key| networks.open(&key)).collect::<Result<_>>()?;
        Self::of(features, metrics, options)
    }

    /// A pass with networks of one's own.
    ///
    /// # Errors
    /// As [`Pass::open`]; [`EvaluateError::State`] if a metric needs features that are not among these.
    pub fn of(
        features: Vec<Box<dyn Features>>,
        metrics: &[Box<dyn Metric>],
        options: &PassOptions<'_>,
    ) -> Result<Self> {
        let folder = options.folder.map(|folder| StateFolder::open(folder, options.of)).transpose()?;
        let mut states = States::new();
        for (key, mut wanted) in wanted(metrics) {
            if options.keep_rows {
                wanted.rows.insert(Part::Features);
            }
            let Some(features) = features.iter().find(|features| *features.key() == key) else {
                let detail = "a metric needs these features, which no network gives".to_owned();
                return Err(EvaluateError::State { key: key.to_string(), detail });
            };
            let state = match &folder {
                Some(folder) => folder.state(&**features, &wanted, options.first)?,
                None => State::temporary(&**features, &wanted, options.first)?,
            };
            states.insert(key, state);
        }
        Ok(Self { networks: features, states, folder })
    }

    /// Number of pictures that it has.
    pub fn done(&self) -> usize {
        self.states.values().map(State::count).min().unwrap_or(0)
    }

    /// Adds pictures, in their order.
    ///
    /// # Errors
    /// A picture cannot be prepared, its caption is wanted and missing, or its features are not finite. The pass must not
    /// be used any more then.
    pub fn push(&mut self, pictures: &[Picture]) -> Result<()> {
        let images: Vec<_> = pictures.iter().map(|picture| &picture.image).collect();
        let pixels: Vec<PixelHash> = images.par_iter().map(|image| pixel_hash(image)).collect();
        for features in &self.networks {
            let Some(state) = self.states.get_mut(features.key()) else { continue };
            let found = features.images(&images)?;
            let captions = match state.keeps(Part::Captions) {
                true => features.captions(&captions(pictures)?)?,
                false => Vec::new(),
            };
            state.push(pictures, &pixels, &found, &captions)?;
        }
        Ok(())
    }

    /// Saves it in its folder, if it has one: what was pushed before will survive a kill.
    ///
    /// # Errors
    /// [`EvaluateError::Io`].
    pub fn save(&self) -> Result<()> {
        match &self.folder {
            Some(folder) => folder.save(&self.states),
            None => Ok(()),
        }
    }

    /// Saves it, and returns what is kept of the pictures.
    ///
    /// # Errors
    /// As [`Pass::save`].
    pub fn finish(self) -> Result<States> {
        self.save()?;
        Ok(self.states)
    }
}

/// The captions of pictures that all need one.
fn captions(pictures: &[Picture]) -> Result<Vec<&str>> {
    fn caption(picture: &Picture) -> Result<&str> {
        let missing = || EvaluateError::NoCaption { place: String::new(), picture: picture.name.clone() };
        picture.caption.as_deref().ok_or_else(missing)
    }
    pictures.iter().map(caption).collect()
}

/// Sends the pictures of `numbers` through a pass, from where it was saved on; the next ones are read meanwhile.
///
/// # Errors
/// As [`Pass::push`]; a picture cannot be read; `control` stops the work, whose state is saved then.
pub fn judge(pictures: &Pictures, numbers: Range<usize>, pass: &mut Pass, control: &mut Control<'_>) -> Result<()> {
    let (start, total) = (numbers.start + pass.done(), numbers.len());
    let end = numbers.end;
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        scope.spawn(move || {
            for first in (start..end).step_by(BATCH) {
                // Nobody receives any more once the work has failed or was stopped.
                if sender.send(pictures.batch(first..(first + BATCH).min(end))).is_err() {
                    break;
                }
            }
        });
        let mut saved = pass.done();
        for batch in receiver {
            let done = pass.done();
            if done - saved >= SAVE_EVERY {
                pass.save()?;
                saved = done;
            }
            if let Err(stopped) = control.checkpoint(STAGE, done, total) {
                pass.save()?;
                return Err(stopped.into());
            }
            pass.push(&batch?).map_err(|error| error.of_place(&pictures.name()))?;
        }
        control.report(STAGE, total, total);
        pass.save()
    })
}

/// The states of all pictures. In a folder that `keep` names, the rows of all features are kept; each set of pictures and of
/// features has a folder of its own there, in which a second start goes on.
///
/// # Errors
/// As [`Pass::open`] and [`judge`]; [`EvaluateError::Usage`] for too few pictures.
pub fn states_of(
    pictures: &Pictures,
    metrics: &[Box<dyn Metric>],
    networks: &Networks,
    keep: Option<&Path>,
    control: &mut Control<'_>,
) -> Result<States> {
    check_number(pictures, metrics)?;
    let name = keep.map_or(Ok(String::new()), |_| name_of_pass(pictures, metrics))?;
    let folder = keep.map(|keep| keep.join(&name));
    let options = PassOptions { first: 0, folder: folder.as_deref(), of: &name, keep_rows: keep.is_some() };
    let mut pass = Pass::open(metrics, networks, &options)?;
    judge(pictures, 0..pictures.len(), &mut pass, control)?;
    pass.finish()
}

/// Refuses too few pictures before a network is opened.
///
/// # Errors
/// [`EvaluateError::Usage`] naming the pictures and the metric.
pub fn check_number(pictures: &Pictures, metrics: &[Box<dyn Metric>]) -> Result<()> {
    match metrics.iter().find(|metric| metric.needs().gaussian && pictures.len() < 2) {
        None => Ok(()),
        Some(metric) => Err(EvaluateError::Usage(format!(
            "{} holds {} picture, and {} compares covariances, which need at least 2; give more pictures, or other metrics",
            pictures.name(),
            pictures.len(),
            metric.name()
        ))),
    }
}

/// A name that passes over other pictures, or for other features, do not have.
fn name_of_pass(pictures: &Pictures, metrics: &[Box<dyn Metric>]) -> Result<String> {
    const DIGITS: usize = 16;
    // The version of what is kept: states of earlier ones are not looked at.
    const VERSION: &str = "2\n";
    let contents = pictures.digest_of_contents(pictures.len())?;
    let mut hasher = Sha256::new().chain_update(VERSION).chain_update(contents);
    for (key, wanted) in wanted(metrics) {
        let rows: Vec<&str> =
            wanted.rows.iter().filter(|part| **part != Part::Features).map(|part| part.name()).collect();
        hasher.update(format!("\n{key} {}", rows.join(" ")));
    }
    Ok(hex(&hasher.finalize())[..DIGITS].to_owned())
}

/// The figures of all metrics.
///
/// # Errors
/// A metric needs what was not kept, its formula does not take the numbers, or gives what is no finite number.
pub fn figures(metrics: &[Box<dyn Metric>], judged: &States, reference: Option<&Reference>) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for metric in metrics {
        let key = metric.needs().features;
        let state = judged.get(&key).ok_or_else(|| EvaluateError::State {
            key: key.to_string(),
            detail: format!("{} needs these features, which were not computed", metric.name()),
        })?;
        for figure in metric.figures(state, reference)? {
            if !figure.value.is_finite() {
                let detail = format!("{} ({}) is {}, no finite number", figure.metric, figure.variant, figure.value);
                return Err(EvaluateError::State { key: key.to_string(), detail });
            }
            figures.push(figure);
        }
    }
    Ok(figures)
}
