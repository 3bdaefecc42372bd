//! What a run has recorded beside its checkpoints, looked at before it goes on: what is gone is told, not found out later.

use super::{CHECKPOINTS, end_of};
use crate::averages;
use crate::config::{EmaSettings, TrainingRecipe};
use crate::trackers::{CSV_LINES, JSON_LINES};
use calotype_core::system::format_count;
use std::path::Path;

/// What is missing in the folder of a run that goes on from `samples` samples, of which it has recorded those behind `begun`: a
/// sentence each. `begun` is above 0 in runs that began with another one's checkpoint.
pub(super) fn missing<R: TrainingRecipe>(folder: &Path, recipe: &R, begun: u64, samples: u64) -> Vec<String> {
    if samples <= begun {
        return anew(folder, samples).into_iter().collect();
    }
    let mut missing = Vec::new();
    let trackers = recipe.trackers();
    let logged = samples / recipe.config().run.log_every > begun / recipe.config().run.log_every;
    for (name, on) in [(JSON_LINES, trackers.json_lines), (CSV_LINES, trackers.csv)] {
        if on && logged && !folder.join(name).exists() {
            let samples = format_count(samples);
            missing
                .push(format!("{name} is gone: the new one begins behind {samples} samples, without what is earlier"));
        }
    }
    missing.extend(lost_snapshots(folder, recipe, begun, samples));
    missing
}

/// A run that begins although it has been there. (One that has left a model is refused before.)
fn anew(folder: &Path, samples: u64) -> Option<String> {
    let has_metrics = folder.join(JSON_LINES).metadata().is_ok_and(|file| file.len() > 0);
    has_metrics.then(|| {
        format!(
            "{JSON_LINES} is there, but no checkpoint in {CHECKPOINTS}/: the run begins anew from {samples} samples, and what is there \
             is replaced"
        )
    })
}

/// Snapshots of averages that the run has kept: without them, `calotype ema` comes to other averages.
fn lost_snapshots<R: TrainingRecipe>(folder: &Path, recipe: &R, begun: u64, samples: u64) -> Option<String> {
    let config = recipe.config();
    let every = config.ema.and_then(EmaSettings::snapshot_every)?;
    let batch = config.run.batch_size as u64;
    // A snapshot is taken behind the step that reaches or passes a multiple, and behind the last one.
    let kept = (begun / every + 1..=samples / every).map(|number| (number * every).next_multiple_of(batch));
    let kept = kept.filter(|kept| *kept <= samples.min(end_of(&config)));
    let mut lost: Vec<u64> = kept.filter(|kept| !averages::is_kept(folder, *kept)).collect();
    lost.dedup();
    let (first, last) = (lost.first()?, lost.last()?);
    Some(format!(
        "{} of the snapshots in {}/ are gone, of {} to {} samples: averages that are rebuilt without them are others",
        lost.len(),
        averages::AVERAGES,
        format_count(*first),
        format_count(*last)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::autoencoder::AutoencoderRecipe;

    fn recipe(more: &str) -> AutoencoderRecipe {
        toml::from_str(&format!(
            "kind = \"autoencoder\"\n[data]\npath = \"x\"\n[model]\n[objective]\nresolution = 32\nreconstruction = \"l1\"\n\
             kl_weight = 0.1\n[optimizer]\n[ema]\nname = \"post_hoc\"\nsnapshot_every = 10\n[run]\nseed = 1\nsamples = 64\n\
             batch_size = 4\nlog_every = 8\ncheckpoint_every = 8\n{more}"
        ))
        .unwrap()
    }

    #[test]
    fn what_a_run_has_recorded_and_is_gone_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path();
        let told = |begun: u64, samples: u64| missing(place, &recipe("[trackers]\ncsv = true"), begun, samples);
        assert_eq!(told(0, 0), Vec::<String>::new(), "a new run");
        assert_eq!(told(24, 24), Vec::<String>::new(), "one that begins with another's checkpoint");
        assert_eq!(told(0, 4), Vec::<String>::new(), "nothing was recorded yet");
        let all = told(0, 32);
        assert!(all[0].starts_with("metrics.jsonl is gone") && all[1].starts_with("metrics.csv is gone"), "{all:?}");
        assert!(all[2].contains("3 of the snapshots in averages/ are gone, of 12 to 32 samples"), "{all:?}");
        for name in [JSON_LINES, CSV_LINES] {
            std::fs::write(place.join(name), "x").unwrap();
        }
        // Multiples of 10 are passed by the steps to 12, 20 and 32 samples.
        for samples in [12, 20] {
            std::fs::create_dir_all(averages::place_of(place, samples)).unwrap();
        }
        assert_eq!(told(0, 28), Vec::<String>::new());
        assert!(told(0, 32)[0].contains("1 of the snapshots in averages/ are gone, of 32 to 32 samples"));
        assert!(told(0, 0)[0].starts_with("metrics.jsonl is there, but no checkpoint in checkpoints/"));
    }
}
