//! The stage that sorts samples into shards of equal counts.
//!
//! Downloads leave shards of unequal sizes, for a part of every list fails; trainers and encoders that count consumed
//! samples in whole shards need equal ones. All inputs' headers are read first, which decides which sample goes into which
//! output; outputs are then written independently of each other, so that the result depends neither on slices nor on
//! threads nor on kills.
//!
//! Source of `--layout nemo`, `--merge` and `--join`: `reorganize_tar.py`, `generate_wdinfo.py` and
//! `merge_source_tar.py` of NeMo-Framework-Launcher.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use calotype_data::files::{read_json, write_bytes, write_json};
use calotype_data::{Control, Slice};
use serde::{Deserialize, Serialize};

use crate::output::check_prefix;
use crate::paths::{check_out, lies_in};
use crate::plan::{Plan, Quarantines, Selection};
use crate::slices::{LEDGER, SliceArgs, run_slices_unless};
use crate::tars::{FoundTar, find_tars, marker, refuse_named_twice, refuse_other_kinds};
use crate::words::counted;
use crate::{Account, Error, Result};

/// Settings of the stage.
#[derive(Clone, Debug, clap::Args)]
pub struct ReorganizeArgs {
    /// Tar files, and folders of them (with subfolders), in the order in which their samples are to follow each other.
    /// Samples that a quarantine.json beside them lists are left out and counted.
    #[arg(required = true, value_name = "IN")]
    pub inputs: Vec<PathBuf>,
    /// Folder to write.
    pub out: PathBuf,
    /// Samples in each shard; the last one may have fewer.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = calotype_core::numbers::count::<usize>)]
    pub samples_per_shard: usize,
    /// Parts to keep, "jpg,txt"; a sample that lacks one is left out and counted [default: all parts that there are].
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    pub extensions: Vec<String>,
    /// flat: OUT/PREFIX-000000.tar, ... The same shards for any number of slices.
    /// nemo: OUT/task0000/00000.tar, ..., a folder for each slice; its last shard, if not full, is marked by an empty
    /// file 00007.tar.INCOMPLETE.
    #[arg(long, value_enum, default_value_t = Layout::Flat)]
    pub layout: Layout,
    /// Beginning of the shards' names in the flat layout.
    #[arg(long, default_value = "shard", value_name = "NAME")]
    pub prefix: String,
    /// Put the name of the shard that a sample comes from in front of its key ("00012.tar/000120003"), so that keys that
    /// repeat in different shards stay apart. Without it, the first of equal keys is kept and the others are counted.
    #[arg(long)]
    pub prefix_keys: bool,
    /// Take from damaged shards what lies in front of the damage. Without it, nothing is written if a shard is damaged.
    #[arg(long)]
    pub skip_corrupt: bool,
    /// Take only the shards that NeMo's mark .INCOMPLETE says are not full, and write last_few_00000.tar, ...
    #[arg(long)]
    pub merge: bool,
    /// Folder of the shards that the samples were made from: parts of them are added to the samples. They are found by the
    /// shard in front of the key ("00012.tar/000120003"), or else by the key alone.
    #[arg(long, value_name = "FOLDER", requires = "join_extensions")]
    pub join: Option<PathBuf>,
    /// Parts to add from --join, "json,txt"; a sample whose source lacks one is left out and counted.
    #[arg(long, value_delimiter = ',', value_name = "LIST", requires = "join")]
    pub join_extensions: Vec<String>,
    /// The slice to do.
    #[command(flatten)]
    pub slices: SliceArgs,
}

/// Layout of the shards in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub enum Layout {
    /// All in one folder, numbered through.
    #[default]
    Flat,
    /// A folder for each slice, numbered from 0.
    Nemo,
}

/// The reason for which shards cannot be reorganized.
#[derive(Debug, thiserror::Error)]
pub enum ReorganizeError {
    /// Nothing to read.
    #[error("no {what} in {paths}; check the paths")]
    NoShards {
        /// Kind of file that was looked for.
        what: &'static str,
        /// The searched paths.
        paths: String,
    },
    /// Damaged inputs.
    #[error(
        "{count} of the shards are damaged: {named}; copy them again, or use --skip-corrupt to take what lies in front of \
         the damage"
    )]
    Corrupt {
        /// Number of them.
        count: usize,
        /// The first of them, with what is wrong.
        named: String,
    },
    /// The output lies in an input.
    #[error("folder {} lies in the input {}; choose another one", out.display(), input.display())]
    OutInside {
        /// The output.
        out: PathBuf,
        /// The input.
        input: PathBuf,
    },
    /// The output holds something else.
    #[error(
        "folder {} holds shards that were made of other inputs or with other settings; choose another folder, or remove it",
        path.display()
    )]
    OtherPlan {
        /// The folder.
        path: PathBuf,
    },
    /// An input changed meanwhile.
    #[error("shard {} changed while it was read; start again when nobody writes to it", path.display())]
    Changed {
        /// The shard.
        path: PathBuf,
    },
}

impl ReorganizeError {
    /// True if the command line is to blame.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NoShards { .. } | Self::OutInside { .. } | Self::OtherPlan { .. })
    }
}

/// Sorts the samples.
///
/// # Errors
/// [`Error::Usage`] for impossible settings, [`Error::Reorganize`] for inputs that do not allow the layout,
/// [`Error::Data`] if shards cannot be read or written.
pub fn run(args: &ReorganizeArgs, control: &mut Control<'_>) -> Result<Account> {
    if args.samples_per_shard == 0 {
        return Err(Error::Usage("--samples-per-shard must be at least 1".to_owned()));
    }
    check_prefix(&args.prefix)?;
    let inputs = inputs(args)?;
    let slices = args.slices.slices()?;
    if args.merge && slices.iter().any(|slice| slice.count > 1) {
        return Err(Error::Usage("--merge is one piece of work: run it once, without --task-count".to_owned()));
    }
    let selection = Selection::new(args)?;
    let settings = settings(args, &inputs, &selection, slices.first().map_or(1, |slice| slice.count))?;
    begin(&args.out, &settings)?;
    let mut whole: Option<Plan<'_>> = None;
    let is_whole = |slice: Slice| -> Result<bool> { Ok(Written::read(&args.out, slice)?.is_whole()) };
    run_slices_unless(&is_whole, &args.slices, "reorganize", &args.out, &settings, control, |slice, control| {
        let written = Written::read(&args.out, slice)?;
        if args.merge {
            let plan = Plan::new(inputs.clone(), &selection, args.skip_corrupt, control)?;
            return nemo_folder(&plan, &args.out, "last_few_", args.samples_per_shard, &written, control);
        }
        if args.layout == Layout::Nemo {
            let part = inputs[slice.range(inputs.len())].to_vec();
            let plan = Plan::new(part, &selection, args.skip_corrupt, control)?;
            let folder = args.out.join(format!("task{:04}", slice.id));
            fs::create_dir_all(&folder).map_err(Error::io("create folder", &folder))?;
            return nemo_folder(&plan, &folder, "", args.samples_per_shard, &written, control);
        }
        let plan = match &mut whole {
            Some(plan) => plan,
            None => whole.insert(Plan::new(inputs.clone(), &selection, args.skip_corrupt, control)?),
        };
        flat_slice(plan, args, &written, control)
    })
}

/// The shards that a slice has written before, and is to write.
struct Written<'a> {
    out: &'a Path,
    slice: Slice,
    /// Lengths by path below the output's folder, once the slice was done.
    lengths: Option<BTreeMap<String, u64>>,
}

impl<'a> Written<'a> {
    fn read(out: &'a Path, slice: Slice) -> Result<Self> {
        Ok(Written { out, slice, lengths: read_json(&Self::file(out, slice))? })
    }

    fn file(out: &Path, slice: Slice) -> PathBuf {
        out.join(LEDGER).join(format!("reorganize-{}-of-{}.shards.json", slice.id, slice.count))
    }

    fn below(&self, path: &Path) -> String {
        path.strip_prefix(self.out).unwrap_or(path).to_string_lossy().into_owned()
    }

    /// True if all shards are there with the lengths that they had.
    fn is_whole(&self) -> bool {
        let is_there = |(name, bytes): (&String, &u64)| {
            fs::metadata(self.out.join(name)).is_ok_and(|metadata| metadata.len() == *bytes)
        };
        self.lengths.as_ref().is_some_and(|lengths| lengths.iter().all(is_there))
    }

    /// Writes the shards that are not there, or have lost their length, and notes the lengths; answers as [`Plan::write`].
    fn write(
        &self,
        plan: &Plan<'_>,
        shards: Range<usize>,
        per_shard: usize,
        name: &(dyn Fn(usize) -> PathBuf + Sync),
        control: &mut Control<'_>,
    ) -> Result<(u64, u64)> {
        let known = |path: &Path| self.lengths.as_ref().and_then(|lengths| lengths.get(&self.below(path)).copied());
        let keeps = |path: &Path, bytes: u64| known(path).is_none_or(|known| known == bytes);
        let written = plan.write(shards.clone(), per_shard, name, &keeps, control)?;
        let length = |number: usize| -> Result<(String, u64)> {
            let path = name(number);
            let bytes = fs::metadata(&path).map_err(Error::io("open", &path))?.len();
            Ok((self.below(&path), bytes))
        };
        let lengths = shards.map(length).collect::<Result<BTreeMap<_, _>>>()?;
        write_json(&Self::file(self.out, self.slice), &lengths)?;
        Ok(written)
    }
}

/// One slice of the flat layout: a part of the output shards, and the account of the same part of the input shards.
fn flat_slice(
    plan: &Plan<'_>,
    args: &ReorganizeArgs,
    written: &Written<'_>,
    control: &mut Control<'_>,
) -> Result<Account> {
    let slice = written.slice;
    let shards = slice.range(plan.shards(args.samples_per_shard));
    let name = |number: usize| args.out.join(format!("{}-{number:06}.tar", args.prefix));
    let mut account = plan.account(slice.range(plan.inputs()));
    let (samples, bytes) = written.write(plan, shards.clone(), args.samples_per_shard, &name, control)?;
    account.taken += samples;
    account.written += samples;
    account.bytes += bytes;
    let [samples, shards] = [counted(samples, "sample"), counted(shards.len(), "shard")];
    account.notes.push(format!("{samples} in {shards} in {}", args.out.display()));
    Ok(account)
}

/// All of a plan as NeMo writes it: shards, the mark of the last one, and a line about it.
fn nemo_folder(
    plan: &Plan<'_>,
    folder: &Path,
    prefix: &str,
    per_shard: usize,
    written: &Written<'_>,
    control: &mut Control<'_>,
) -> Result<Account> {
    let name = |number: usize| folder.join(format!("{prefix}{number:05}.tar"));
    let mut account = plan.account(0..plan.inputs());
    let (samples, bytes) = written.write(plan, 0..plan.shards(per_shard), per_shard, &name, control)?;
    let (last, rest) = (plan.samples() / per_shard, plan.samples() % per_shard);
    if rest > 0 {
        write_bytes(&marker(&name(last)), b"")?;
    }
    let line = format!("Last tar {last} only has {rest} files!");
    write_bytes(&folder.join("log.txt"), line.as_bytes())?;
    account.taken += samples;
    account.written += samples;
    account.bytes += bytes;
    account.notes.push(format!("{}: {line}", folder.display()));
    Ok(account)
}

/// The shards to read.
fn inputs(args: &ReorganizeArgs) -> Result<Vec<FoundTar>> {
    if let Some(input) = args.inputs.iter().find(|input| lies_in(&args.out, input)) {
        return Err(ReorganizeError::OutInside { out: args.out.clone(), input: input.clone() }.into());
    }
    let of_inputs: Vec<Vec<FoundTar>> =
        args.inputs.iter().map(|input| find_tars(std::slice::from_ref(input))).collect::<Result<_>>()?;
    refuse_named_twice(args.inputs.iter().zip(&of_inputs).map(|(input, found)| (input.as_path(), &**found)))?;
    let mut found = of_inputs.concat();
    if args.merge {
        found.retain(FoundTar::is_marked);
    }
    if found.is_empty() {
        args.inputs.iter().try_for_each(|input| refuse_other_kinds(input, "reorganize"))?;
        let what = if args.merge { "*.tar with a mark *.tar.INCOMPLETE" } else { "*.tar" };
        let paths = args.inputs.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(ReorganizeError::NoShards { what, paths }.into());
    }
    Ok(found)
}

/// Everything that the output depends on.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Settings {
    samples_per_shard: usize,
    parts: String,
    layout: String,
    /// Number of slices, where the layout depends on it.
    slices: usize,
    /// BLAKE3 of the names and lengths of all inputs, of the sources of joined parts, and of what quarantines list.
    inputs: String,
}

fn settings(args: &ReorganizeArgs, inputs: &[FoundTar], selection: &Selection, slices: usize) -> Result<Settings> {
    let mut hasher = blake3::Hasher::new();
    for input in inputs.iter().chain(selection.joined_files()) {
        hasher.update(format!("{}\t{}\n", input.name, input.bytes).as_bytes());
    }
    hasher.update(Quarantines::of(inputs)?.digest().as_bytes());
    let nemo = args.layout == Layout::Nemo && !args.merge;
    Ok(Settings {
        samples_per_shard: args.samples_per_shard,
        parts: format!("{:?} {} {:?}", args.extensions, args.prefix_keys, args.join_extensions),
        layout: format!("{:?} {} {} {}", args.layout, args.prefix, args.merge, args.skip_corrupt),
        slices: if nemo { slices } else { 0 },
        inputs: hasher.finalize().to_hex().to_string(),
    })
}

/// Makes the output folder, and sees to it that shards in it are of the same plan: only then are they kept. A plan without
/// shards is one that failed.
fn begin(out: &Path, settings: &Settings) -> Result<()> {
    check_out(out)?;
    let folder = out.join(LEDGER);
    let path = folder.join("reorganize-plan.json");
    if read_json::<Settings>(&path)?.is_some_and(|known| known == *settings) {
        return Ok(());
    }
    if out.is_dir() && !find_tars(&[out.to_path_buf()])?.is_empty() {
        return Err(ReorganizeError::OtherPlan { path: out.to_path_buf() }.into());
    }
    fs::create_dir_all(&folder).map_err(Error::io("create folder", &folder))?;
    Ok(write_json(&path, settings)?)
}
