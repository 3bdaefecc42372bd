//! The table `[distributed]`.

use super::{EmaSettings, SettingError, TrainConfig, check};
use crate::optim::StateForm;
use serde::{Deserialize, Serialize};

/// How several processes share a run. One process alone takes no notice of it, but for `reproducible = "ranks"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DistributedSettings {
    /// What has the same bits.
    pub reproducible: Reproducible,
    /// Whether each process keeps the optimizer's moments and the average of a share of the parameters only, steps these, and
    /// sends them to the others: ZeRO, stage 1 (Rajbhandari et al. 2020, section 5.1). Results are the same bits, and
    /// checkpoints are whole.
    pub shard_optimizer: bool,
    /// Neighbouring processes that compute the layers of the network together, each with a part of the weights (Shoeybi et al. 2019,
    /// "Megatron-LM", section 3); such groups share out the batches. Checkpoints are those of one process, and a run goes on with
    /// any number.
    #[serde(skip_serializing_if = "is_one")]
    pub tensor_parallel: usize,
}

/// Serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(number: &usize) -> bool {
    *number == 1
}

impl Default for DistributedSettings {
    fn default() -> Self {
        Self { reproducible: Reproducible::default(), shard_optimizer: false, tensor_parallel: 1 }
    }
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
    /// are summed in one tree, whoever has them. A loss sees its own part alone, as with one process, unless it compares samples
    /// with each other. Steps are not taken in the backward pass.
    Ranks,
    /// Runs of any number of processes and any `optimizer.accumulate`: as `Ranks` where each part is one sample, whatever
    /// `optimizer.accumulate` says. The least memory, and the most time.
    Samples,
}

impl DistributedSettings {
    /// Whether any number of processes gives the same bits.
    pub fn same_for_all_worlds(&self) -> bool {
        self.reproducible != Reproducible::Run
    }

    /// In how many parts a batch of all processes goes through the network.
    pub fn parts(&self, config: &TrainConfig<'_>) -> usize {
        match self.reproducible {
            Reproducible::Run | Reproducible::Ranks => config.optimizer.accumulate,
            Reproducible::Samples => config.run.batch_size,
        }
    }

    /// The processes of `world` that compute the layers of the network together.
    pub fn sharing_layers(&self, world: usize) -> usize {
        if world == 1 { 1 } else { self.tensor_parallel }
    }

    /// The groups of processes, of one or of those that compute layers together, that share out the batches.
    pub fn sharing_batches(&self, world: usize) -> usize {
        world / self.sharing_layers(world).max(1)
    }

    /// These groups in the words of errors.
    pub(crate) fn batch_sharers(&self, world: usize) -> String {
        let (groups, together) = (self.sharing_batches(world), self.sharing_layers(world));
        match together {
            1 => format!("{groups} processes"),
            _ => format!("{groups} groups of {together} processes"),
        }
    }

    /// What is to be said of settings without effect on so many processes.
    pub(crate) fn idle(&self, world: usize) -> Option<String> {
        (world == 1 && self.tensor_parallel > 1).then(|| {
            format!(
                "distributed.tensor_parallel = {} has no effect on one process, which has all layers",
                self.tensor_parallel
            )
        })
    }

    /// Checks that `world` processes can share the layers and the batches of a run.
    ///
    /// # Errors
    /// [`SettingError`] naming the key.
    pub fn check_world(&self, config: &TrainConfig<'_>, world: usize) -> Result<(), SettingError> {
        self.check_state(config)?;
        let together = self.sharing_layers(world);
        check(world.is_multiple_of(together), "distributed.tensor_parallel", || {
            format!(
                "{world} processes do not make up groups of {together}; start a multiple of {together}, or one alone"
            )
        })?;
        self.check_batches(config, world)
    }

    /// Checks what does not depend on the number of processes, as others may join when the run goes on.
    fn check_state(&self, config: &TrainConfig<'_>) -> Result<(), SettingError> {
        check(self.tensor_parallel > 0, "distributed.tensor_parallel", || "must be at least 1".to_owned())?;
        let snapshots = config.ema.and_then(EmaSettings::snapshot_every).is_some();
        check(!(self.shard_optimizer && snapshots), "distributed.shard_optimizer", || {
            "does not go with snapshots of averages (ema.name = \"post_hoc\"), which one process writes: set it to false".to_owned()
        })?;
        check(self.tensor_parallel <= 1 || !snapshots, "distributed.tensor_parallel", || {
            "does not go with snapshots of averages (ema.name = \"post_hoc\"), which one process writes: set it to 1"
                .to_owned()
        })?;
        check(
            self.tensor_parallel <= 1 || config.optimizer.state == StateForm::F32,
            "distributed.tensor_parallel",
            || {
                "does not go with optimizer.state = \"8bit\", whose blocks would reach over the parts of a weight: set one of both \
                 to its default"
                    .to_owned()
            },
        )
    }

    /// Checks that the groups of so many processes can share out the batches.
    fn check_batches(&self, config: &TrainConfig<'_>, world: usize) -> Result<(), SettingError> {
        let (batch, parts, part) = (config.run.batch_size, config.optimizer.accumulate, config.micro_batch());
        let (groups, who) = (self.sharing_batches(world), self.batch_sharers(world));
        if self.reproducible == Reproducible::Ranks {
            return check(parts.is_multiple_of(groups), "optimizer.accumulate", || {
                format!(
                    "{parts} parts of a batch cannot be shared out to {who}, each of which takes whole ones \
                     (distributed.reproducible = \"ranks\"); use a multiple of {groups} that divides run.batch_size = {batch}"
                )
            });
        }
        let shared_out = if self.same_for_all_worlds() { batch } else { part };
        check(shared_out.is_multiple_of(groups), "run.batch_size", || match parts {
            _ if self.same_for_all_worlds() => format!(
                "{batch} samples cannot be shared out to {who}, each of which takes whole ones \
                 (distributed.reproducible = \"samples\"); use a multiple of {groups}"
            ),
            1 => format!("{batch} samples cannot be shared out to {who}; use a multiple of {groups}"),
            _ => format!(
                "{batch} samples in optimizer.accumulate = {parts} parts cannot be shared out to {who}; use a multiple of {}",
                groups * parts
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
        let [ranks, samples] = ["ranks", "samples"].map(|what| format!("reproducible = \"{what}\""));
        let [ranks, samples] = [ranks.as_str(), samples.as_str()];
        for (text, batch, parts, world) in
            [("", 4, 1, 1), ("", 4, 1, 4), ("", 8, 2, 4), (ranks, 8, 4, 2), (ranks, 8, 1, 1), (samples, 8, 4, 8)]
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
        let text = problem(samples, 6, 2, 4).unwrap();
        assert!(text.contains("`run.batch_size`: 6 samples") && text.contains("\"samples\""), "{text}");
    }

    #[test]
    fn groups_of_processes_divide_what_they_share() {
        let pairs = "tensor_parallel = 2";
        for (batch, parts, world) in [(1, 1, 1), (3, 1, 2), (4, 1, 4), (8, 2, 8), (7, 1, 1)] {
            assert_eq!(problem(pairs, batch, parts, world), None, "{batch} {parts} {world}");
        }
        let text = problem(pairs, 4, 1, 3).unwrap();
        assert!(text.contains("`distributed.tensor_parallel`: 3 processes do not make up groups of 2"), "{text}");
        let text = problem(pairs, 3, 1, 4).unwrap();
        assert!(
            text.ends_with("3 samples cannot be shared out to 2 groups of 2 processes; use a multiple of 2"),
            "{text}"
        );
        let settings: DistributedSettings = toml::from_str(pairs).unwrap();
        assert!(settings.idle(1).unwrap().contains("no effect on one process") && settings.idle(2).is_none());
        assert!(problem("tensor_parallel = 0", 4, 1, 2).unwrap().ends_with("must be at least 1"));
        let eight_bit = OptimizerSettings { state: StateForm::EightBit, ..OptimizerSettings::default() };
        let run: RunSettings =
            toml::from_str("seed = 1\nsamples = 64\nbatch_size = 4\nlog_every = 1\ncheckpoint_every = 1").unwrap();
        let error = settings.check_world(&TrainConfig::new(&run, &eight_bit, None), 1).unwrap_err();
        assert!(error.key == "distributed.tensor_parallel" && error.problem.contains("8bit"), "{error}");
        let text = toml::to_string(&DistributedSettings::default()).unwrap();
        assert!(!text.contains("tensor_parallel"), "runs of earlier versions go on: {text}");
    }

    #[test]
    fn shares_and_snapshots_are_refused_of_one_process_too() {
        let run: RunSettings =
            toml::from_str("seed = 1\nsamples = 64\nbatch_size = 4\nlog_every = 1\ncheckpoint_every = 1").unwrap();
        let ema: EmaSettings = toml::from_str("name = \"post_hoc\"\nsnapshot_every = 8").unwrap();
        let settings: DistributedSettings = toml::from_str("shard_optimizer = true").unwrap();
        let optimizer = OptimizerSettings::default();
        let config = TrainConfig::new(&run, &optimizer, Some(&ema));
        let parallel: DistributedSettings = toml::from_str("tensor_parallel = 2").unwrap();
        for world in [1, 2] {
            let error = settings.check_world(&config, world).unwrap_err();
            assert_eq!(error.key, "distributed.shard_optimizer", "{world}");
            let error = parallel.check_world(&config, world).unwrap_err();
            assert_eq!(error.key, "distributed.tensor_parallel", "{world}");
        }
    }

    #[test]
    fn unknown_keys_and_values_are_refused() {
        for text in [
            "reproducible = \"yes\"",
            "shard = true",
            "shard_optimizer = 1",
            "reproducible = true",
            "tensor_parallel = -1",
        ] {
            assert!(toml::from_str::<DistributedSettings>(text).is_err(), "{text}");
        }
    }
}
