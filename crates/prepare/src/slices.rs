//! One stage as an array of jobs: which slice of the work is this process's, and which slices are done already.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use calotype_core::durable;
use calotype_data::files::{read_json, write_json};
use calotype_data::{Control, Slice};
use serde::{Deserialize, Serialize};

use crate::{Account, Error, Result};

/// Folder, in a stage's output, of the accounts of finished slices.
pub(crate) const LEDGER: &str = ".slices";

/// Split of a stage over jobs. Without any of these and outside of a Slurm array, the work is one slice.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct SliceArgs {
    /// Number of this slice, from 0 [default: SLURM_ARRAY_TASK_ID, or all slices one after the other].
    #[arg(long, value_name = "N")]
    pub task_id: Option<usize>,
    /// Number of slices [default: SLURM_ARRAY_TASK_COUNT, or 1].
    #[arg(long, value_name = "N")]
    pub task_count: Option<usize>,
    /// Slices to do one after the other: "50-99", "3,7,10-12".
    #[arg(long, value_name = "RANGES", conflicts_with = "task_id")]
    pub tasks: Option<String>,
}

/// The kept record of a finished slice.
#[derive(Serialize, Deserialize)]
struct Finished {
    /// BLAKE3 of the settings that it was done with.
    settings: String,
    #[serde(alias = "report")]
    account: Account,
}

impl SliceArgs {
    /// The slices that this process has to do, in order.
    ///
    /// # Errors
    /// [`Error::Usage`] if ids and counts contradict each other, or Slurm's variables are no numbers.
    pub fn slices(&self) -> Result<Vec<Slice>> {
        self.slices_in(&|name| std::env::var(name).ok())
    }

    fn slices_in(&self, env: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Slice>> {
        let number = |name: &str| -> Result<Option<usize>> {
            let parse = |text: String| {
                text.parse().map_err(|_| Error::Usage(format!("{name} is `{text}`, which is no number of a task")))
            };
            env(name).map(parse).transpose()
        };
        // Settings of the command line go before those of an array job that it may run in.
        let array_id = if self.tasks.is_none() { number("SLURM_ARRAY_TASK_ID")? } else { None };
        let count = match self.task_count {
            Some(count) => count,
            None if self.task_id.is_some() || self.tasks.is_some() => {
                return Err(Error::Usage("--task-id and --tasks need --task-count N, the number of slices".to_owned()));
            }
            None => array_count(array_id, &number)?,
        };
        let ids = match (self.task_id.or(array_id), &self.tasks) {
            (Some(id), _) => vec![id],
            (None, Some(ranges)) => parse_ranges(ranges)?,
            (None, None) => (0..count).collect(),
        };
        if count == 0 {
            return Err(Error::Usage("0 tasks do nothing: --task-count must be at least 1".to_owned()));
        }
        match ids.iter().find(|id| **id >= count) {
            Some(id) => Err(Error::Usage(format!("task {id} of {count}: tasks are numbered from 0 to {}", count - 1))),
            None => Ok(ids.into_iter().map(|id| Slice { id, count }).collect()),
        }
    }
}

/// The number of slices by Slurm's variables. An array that does not begin at 0 is a part of a larger one, of which
/// Slurm does not tell the size.
fn array_count(id: Option<usize>, number: &dyn Fn(&str) -> Result<Option<usize>>) -> Result<usize> {
    if id.is_none() {
        return Ok(1);
    }
    let (count, first, step) =
        (number("SLURM_ARRAY_TASK_COUNT")?, number("SLURM_ARRAY_TASK_MIN")?, number("SLURM_ARRAY_TASK_STEP")?);
    match (count, first.unwrap_or(0), step.unwrap_or(1)) {
        (Some(count), 0, 1) => Ok(count),
        _ => Err(Error::Usage(
            "this array of jobs is not numbered 0, 1, 2, ...: say with --task-count N how many slices there are in all"
                .to_owned(),
        )),
    }
}

/// "3,7,10-12" as numbers, in the order given.
///
/// # Errors
/// [`Error::Usage`] if it is no such list.
fn parse_ranges(text: &str) -> Result<Vec<usize>> {
    let bad = || Error::Usage(format!("`{text}` is no list of tasks; write numbers and ranges as in 3,7,10-12"));
    let mut ids = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last): (usize, usize) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
        // More tasks than anybody can submit: a slip of the keyboard that would fill the memory.
        if first > last || last - first > 10_000_000 {
            return Err(bad());
        }
        ids.extend(first..=last);
    }
    Ok(ids)
}

/// Does the slices of `args` one after the other with `work`, passing by those that an earlier run has finished with
/// the same `settings`, and adds up their accounts.
///
/// `work` has to leave its output complete, for the slice is never done again unless settings change; what it finds of
/// a slice that was killed in the middle, it continues.
///
/// # Errors
/// Those of [`SliceArgs::slices`] and of `work`; [`Error::Data`] if the ledger of slices in `out` cannot be read or
/// written.
pub fn run_slices(
    args: &SliceArgs,
    stage: &'static str,
    out: &Path,
    settings: &impl Serialize,
    control: &mut Control<'_>,
    work: impl FnMut(Slice, &mut Control<'_>) -> Result<Account>,
) -> Result<Account> {
    run_slices_unless(&|_| Ok(true), args, stage, out, settings, control, work)
}

/// As [`run_slices`], but a finished slice is done again unless `is_whole` finds all that it wrote: somebody may have
/// removed a part of it. `work` then has to make what is missing, and to keep the rest.
///
/// # Errors
/// As of [`run_slices`], and those of `is_whole`.
pub(crate) fn run_slices_unless(
    is_whole: &dyn Fn(Slice) -> Result<bool>,
    args: &SliceArgs,
    stage: &'static str,
    out: &Path,
    settings: &impl Serialize,
    control: &mut Control<'_>,
    mut work: impl FnMut(Slice, &mut Control<'_>) -> Result<Account>,
) -> Result<Account> {
    let text = serde_json::to_string(settings).map_err(|e| Error::Usage(format!("settings of {stage}: {e}")))?;
    let settings = blake3::hash(text.as_bytes()).to_hex().to_string();
    let mut all = Account::new(stage);
    for folder in [out, &out.join(LEDGER)] {
        durable::remove_leftovers_in(folder);
    }
    for slice in args.slices()? {
        let ledger = ledger(out, stage, slice);
        if let Some(finished) = read_json::<Finished>(&ledger)?.filter(|finished| finished.settings == settings)
            && is_whole(slice)?
        {
            tracing::info!(stage, slice = slice.id, of = slice.count, "slice is done already");
            all.add(&Account { seconds: 0.0, ..finished.account });
            continue;
        }
        let started = Instant::now();
        let mut account = work(slice, control)?;
        account.seconds = started.elapsed().as_secs_f64();
        let folder = out.join(LEDGER);
        fs::create_dir_all(&folder).map_err(Error::io("create folder", &folder))?;
        let finished = Finished { settings: settings.clone(), account };
        write_json(&ledger, &finished)?;
        all.add(&finished.account);
    }
    Ok(all)
}

fn ledger(out: &Path, stage: &str, slice: Slice) -> PathBuf {
    out.join(LEDGER).join(format!("{stage}-{}-of-{}.json", slice.id, slice.count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slices(args: SliceArgs, env: &[(&str, &str)]) -> Result<Vec<(usize, usize)>> {
        let env: std::collections::HashMap<String, String> =
            env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let found = args.slices_in(&|name| env.get(name).cloned())?;
        Ok(found.into_iter().map(|slice| (slice.id, slice.count)).collect())
    }

    #[test]
    fn slices_come_from_the_command_line_or_from_slurm() {
        let args = |id, count, tasks: Option<&str>| SliceArgs {
            task_id: id,
            task_count: count,
            tasks: tasks.map(str::to_owned),
        };
        let array = [("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_TASK_COUNT", "8"), ("SLURM_ARRAY_TASK_MIN", "0")];
        let part = [("SLURM_ARRAY_TASK_ID", "53"), ("SLURM_ARRAY_TASK_COUNT", "50"), ("SLURM_ARRAY_TASK_MIN", "50")];
        assert_eq!(slices(args(None, None, None), &[]).unwrap(), [(0, 1)]);
        assert_eq!(slices(args(Some(2), Some(4), None), &array).unwrap(), [(2, 4)]);
        assert_eq!(slices(args(None, None, None), &array).unwrap(), [(3, 8)]);
        assert_eq!(slices(args(None, Some(100), None), &part).unwrap(), [(53, 100)]);
        assert_eq!(slices(args(None, Some(9), Some("1,4-6")), &array).unwrap(), [(1, 9), (4, 9), (5, 9), (6, 9)]);
        assert_eq!(slices(args(None, Some(2), None), &[]).unwrap(), [(0, 2), (1, 2)]);
        for (bad, env) in [
            (args(Some(2), None, None), &[][..]),
            (args(Some(4), Some(4), None), &[]),
            (args(None, Some(0), Some("0")), &[]),
            (args(None, Some(9), Some("4-")), &[]),
            (args(None, Some(9), Some("6-4")), &[]),
            (args(None, None, None), &part),
            (args(None, None, None), &[("SLURM_ARRAY_TASK_ID", "x")]),
        ] {
            assert!(slices(bad.clone(), env).unwrap_err().is_usage(), "{bad:?}");
        }
    }

    #[test]
    fn finished_slices_are_not_done_again_unless_settings_change() {
        let dir = tempfile::tempdir().unwrap();
        let args = SliceArgs { task_count: Some(3), ..SliceArgs::default() };
        let mut done = Vec::new();
        let mut run = |settings: &str, failing: Option<usize>| {
            let result = run_slices(&args, "test", dir.path(), &settings, &mut Control::default(), |slice, _| {
                if failing == Some(slice.id) {
                    return Err(Error::Usage("fails".to_owned()));
                }
                done.push(slice.id);
                Ok(Account { taken: 1, written: 1, ..Account::new("test") })
            });
            (result.map(|account| account.taken).ok(), std::mem::take(&mut done))
        };
        assert_eq!(run("a", Some(1)), (None, vec![0]));
        assert_eq!(run("a", None), (Some(3), vec![1, 2]));
        assert_eq!(run("a", None), (Some(3), vec![]));
        assert_eq!(run("b", None), (Some(3), vec![0, 1, 2]));
    }
}
