//! The table `[distributed]`.

use super::{EmaSettings, SettingError, TrainConfig, check};
use serde::{Deserialize, Serialize};

/// How several processes share a run. One process alone takes no notice of it, but for `reproducible = "ranks"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistributedSettings {
    /// What has the same bits.
    pub reproducible: Reproducible,
    /// Whether each process keeps the optimizer's moments and the average of a share of the parameters only, steps these, and
    /// sends them to the others: ZeRO, stage 1 (Rajbhandari et al. 2020, section 5.1). Results are the same bits, and
    /// checkpoints are whole.
    pub shard_optimizer: bool,
}

/// What has the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reproducible {
    /// Runs of as many processes. Each takes its part of each of the `optimizer.accumulate` parts of a batch; another number
    /// of processes agrees but for rounding.
    #[default]
    Run,
    /// Runs of any number of processes. Each takes whole ones of the `optimizer.accumulate` parts of a batch, whose gradients
    /// are summed in one tree, whoever has them. A loss sees its own part alone, as with one process. Steps are not
    /// taken in the backward pass.
    Ranks,
}

impl DistributedSettings {
    /// Whether any number of processes gives the same bits.
    pub fn same_for_all_worlds(&self) -> bool {
        self.reproducible == Reproducible::Ranks
    }

    /// Checks that `world` processes can share the batches of a run.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    pub fn check_world(&self, config: &TrainConfig<'_>, world: usize) -> Result<(), SettingError> {
        let snapshots = config.ema.and_then(EmaSettings::snapshot_every).is_some();
        // Of one process, too, which others may join when the run goes on.
        check(!(self.shard_optimizer && snapshots), "distributed.shard_optimizer", || {
            "does not go with snapshots of averages (ema.name = \"post_hoc\"), which one process writes: set it to false".to_owned()
        })?;
        let (batch, parts, part) = (config.run.batch_size, config.optimizer.accumulate, config.micro_batch());
        if self.same_for_all_worlds() {
            return check(parts.is_multiple_of(world), "optimizer.accumulate", || {
                format!(
                    "{parts} parts of a batch cannot be shared out to {world} processes, each of which takes whole ones \
                     (distributed.reproducible = \"ranks\"); use a multiple of {world} that divides run.batch_size = {batch}"
                )
            });
        }
        check(part.is_multiple_of(world), "run.batch_size", || match parts {
            1 => format!("{batch} samples cannot be shared out to {world} processes; use a multiple of {world}"),
            _ => format!(
                "{batch} samples in optimizer.accumulate = {parts} parts cannot be shared out to {world} processes; use a \
                 multiple of {}",
                world * parts
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{OptimizerSettings, RunSettings};

    fn problem(text: &str, batch_size: usize, accumulate: usize, world: usize) -> Option<String> {
        let settings: DistributedSettings = toml::from_str(text).unwrap();
        let run = format!("seed = 1\nsamples = 64\nbatch_size = {batch_size}\nlog_every = 1\ncheckpoint_every = 1");
        let run: RunSettings = toml::from_str(&run).unwrap();
        let optimizer = OptimizerSettings { accumulate, ..OptimizerSettings::default() };
        settings.check_world(&TrainConfig::new(&run, &optimizer, None), world).err().map(|error| error.to_string())
    }

    #[test]
    fn processes_must_divide_what_they_share() {
        let ranks = "reproducible = \"ranks\"";
        for (text, batch, parts, world) in
            [("", 4, 1, 1), ("", 4, 1, 4), ("", 8, 2, 4), (ranks, 8, 4, 2), (ranks, 8, 1, 1)]
        {
            assert_eq!(problem(text, batch, parts, world), None, "{text} {batch} {parts} {world}");
        }
        let text = problem("", 6, 1, 4).unwrap();
        assert_eq!(
            text,
            "recipe key `run.batch_size`: 6 samples cannot be shared out to 4 processes; use a multiple of 4"
        );
        let text = problem("", 8, 4, 4).unwrap();
        assert!(text.contains("`run.batch_size`") && text.ends_with("use a multiple of 16"), "{text}");
        let text = problem(ranks, 8, 2, 4).unwrap();
        assert!(text.contains("`optimizer.accumulate`: 2 parts") && text.contains("run.batch_size = 8"), "{text}");
    }

    #[test]
    fn shares_and_snapshots_are_refused_of_one_process_too() {
        let run: RunSettings =
            toml::from_str("seed = 1\nsamples = 64\nbatch_size = 4\nlog_every = 1\ncheckpoint_every = 1").unwrap();
        let ema: EmaSettings = toml::from_str("name = \"post_hoc\"\nsnapshot_every = 8").unwrap();
        let settings: DistributedSettings = toml::from_str("shard_optimizer = true").unwrap();
        let optimizer = OptimizerSettings::default();
        let config = TrainConfig::new(&run, &optimizer, Some(&ema));
        for world in [1, 2] {
            let error = settings.check_world(&config, world).unwrap_err();
            assert_eq!(error.key, "distributed.shard_optimizer", "{world}");
        }
    }

    #[test]
    fn unknown_keys_and_values_are_refused() {
        for text in ["reproducible = \"yes\"", "shard = true", "shard_optimizer = 1", "reproducible = true"] {
            assert!(toml::from_str::<DistributedSettings>(text).is_err(), "{text}");
        }
    }
}
