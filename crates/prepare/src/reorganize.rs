//! The stage that sorts samples into shards of equal counts.
//!
//! Downloads leave shards of unequal sizes, for a part of every list fails; trainers and encoders that count consumed
//! samples in whole shards need equal ones. All inputs' headers are read first, which decides which sample goes into which
//! output; outputs are then written independently of each other, so that the result depends neither on slices nor on
//! threads nor on kills.
//!
//! Source of `--layout nemo`, `--merge` and `--join`: `reorganize_tar.py`, `generate_wdinfo.py` and
//! `merge_source_tar.py` of NeMo-Framework-Launcher.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use calotype_data::files::{read_json, write_bytes, write_json};
use calotype_data::webdataset::ShardFile;
use calotype_data::{Control, Sample, SampleRef};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::slices::{Slice, SliceArgs, run_slices};
use crate::tars::{FoundTar, OpenTar, OpenTars, find_tars, marker, short_hash};
use crate::{Error, Report, Result};

/// Damaged shards that a message names.
const NAMED: usize = 8;

/// Settings of the stage.
#[derive(Clone, Debug, clap::Args)]
pub struct ReorganizeArgs {
    /// Tar files, and folders of them (with subfolders), in the order in which their samples are to follow each other.
    #[arg(required = true, value_name = "IN")]
    pub inputs: Vec<PathBuf>,
    /// Folder to write.
    pub out: PathBuf,
    /// Samples in each shard; the last one may have fewer.
    #[arg(long, default_value_t = 1000, value_name = "N")]
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

/// How the shards lie in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
pub enum Layout {
    /// All in one folder, numbered through.
    #[default]
    Flat,
    /// A folder for each slice, numbered from 0.
    Nemo,
}

/// Why shards cannot be reorganized.
#[derive(Debug, thiserror::Error)]
pub enum ReorganizeError {
    /// Nothing to read.
    #[error("no {what} in {paths}; check the paths")]
    NoShards {
        /// What was looked for.
        what: &'static str,
        /// Where.
        paths: String,
    },
    /// Damaged inputs.
    #[error(
        "{count} of the shards are damaged: {named}; copy them again, or use --skip-corrupt to take what lies in front of \
         the damage"
    )]
    Corrupt {
        /// How many.
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
    /// Whether the command line is to blame.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NoShards { .. } | Self::OutInside { .. } | Self::OtherPlan { .. })
    }
}

/// Sorts the samples.
///
/// # Errors
/// [`Error::Usage`], [`Error::Reorganize`], [`Error::Data`].
pub fn run(args: &ReorganizeArgs, control: &mut Control<'_>) -> Result<Report> {
    if args.samples_per_shard == 0 {
        return Err(Error::Usage("--samples-per-shard must be at least 1".to_owned()));
    }
    let inputs = inputs(args)?;
    let slices = args.slices.slices()?;
    if args.merge && slices.iter().any(|slice| slice.count > 1) {
        return Err(Error::Usage("--merge is one piece of work: run it once, without --task-count".to_owned()));
    }
    let selection = Selection::new(args)?;
    let settings = settings(args, &inputs, &selection, slices.first().map_or(1, |slice| slice.count));
    begin(&args.out, &settings)?;
    let mut whole: Option<Plan<'_>> = None;
    run_slices(&args.slices, "reorganize", &args.out, &settings, control, |slice, control| {
        if args.merge {
            let plan = Plan::new(inputs.clone(), &selection, args.skip_corrupt, control)?;
            return nemo_folder(&plan, &args.out, "last_few_", args.samples_per_shard, control);
        }
        if args.layout == Layout::Nemo {
            let part = inputs[slice.range(inputs.len())].to_vec();
            let plan = Plan::new(part, &selection, args.skip_corrupt, control)?;
            let folder = args.out.join(format!("task{:04}", slice.id));
            fs::create_dir_all(&folder).map_err(Error::io("create folder", &folder))?;
            return nemo_folder(&plan, &folder, "", args.samples_per_shard, control);
        }
        let plan = match &mut whole {
            Some(plan) => plan,
            None => whole.insert(Plan::new(inputs.clone(), &selection, args.skip_corrupt, control)?),
        };
        flat_slice(plan, args, slice, control)
    })
}

/// One slice of the flat layout: a part of the output shards, and the account of the same part of the input shards.
fn flat_slice(plan: &Plan<'_>, args: &ReorganizeArgs, slice: Slice, control: &mut Control<'_>) -> Result<Report> {
    let shards = slice.range(plan.shards(args.samples_per_shard));
    let name = |number: usize| args.out.join(format!("{}-{number:06}.tar", args.prefix));
    let mut report = plan.account(slice.range(plan.inputs.len()));
    let (samples, bytes) = plan.write(shards.clone(), args.samples_per_shard, &name, control)?;
    report.taken += samples;
    report.written += samples;
    report.bytes += bytes;
    report.notes.push(format!("{samples} samples in {} shards in {}", shards.len(), args.out.display()));
    Ok(report)
}

/// All of a plan as NeMo writes it: shards, the mark of the last one, and a line about it.
fn nemo_folder(
    plan: &Plan<'_>,
    folder: &Path,
    prefix: &str,
    per_shard: usize,
    control: &mut Control<'_>,
) -> Result<Report> {
    let name = |number: usize| folder.join(format!("{prefix}{number:05}.tar"));
    let mut report = plan.account(0..plan.inputs.len());
    let (samples, bytes) = plan.write(0..plan.shards(per_shard), per_shard, &name, control)?;
    let (last, rest) = (plan.samples() / per_shard, plan.samples() % per_shard);
    if rest > 0 {
        write_bytes(&marker(&name(last)), b"")?;
    }
    let line = format!("Last tar {last} only has {rest} files!");
    write_bytes(&folder.join("log.txt"), line.as_bytes())?;
    report.taken += samples;
    report.written += samples;
    report.bytes += bytes;
    report.notes.push(format!("{}: {line}", folder.display()));
    Ok(report)
}

/// The shards to read.
fn inputs(args: &ReorganizeArgs) -> Result<Vec<FoundTar>> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io("resolve", path));
    let out = absolute(&args.out)?;
    if let Some(input) = args.inputs.iter().find(|input| absolute(input).is_ok_and(|input| out.starts_with(input))) {
        return Err(ReorganizeError::OutInside { out: args.out.clone(), input: input.clone() }.into());
    }
    let mut found = find_tars(&args.inputs)?;
    if args.merge {
        found.retain(FoundTar::is_marked);
    }
    if found.is_empty() {
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
    /// BLAKE3 of the names and lengths of all inputs, and of the sources of joined parts.
    inputs: String,
}

fn settings(args: &ReorganizeArgs, inputs: &[FoundTar], selection: &Selection, slices: usize) -> Settings {
    let mut hasher = blake3::Hasher::new();
    for input in inputs.iter().chain(selection.join.iter().flat_map(|join| &join.files)) {
        hasher.update(format!("{}\t{}\n", input.name, input.bytes).as_bytes());
    }
    let nemo = args.layout == Layout::Nemo && !args.merge;
    Settings {
        samples_per_shard: args.samples_per_shard,
        parts: format!("{:?} {} {:?}", args.extensions, args.prefix_keys, args.join_extensions),
        layout: format!("{:?} {} {} {}", args.layout, args.prefix, args.merge, args.skip_corrupt),
        slices: if nemo { slices } else { 0 },
        inputs: hasher.finalize().to_hex().to_string(),
    }
}

/// Makes the output folder, and sees to it that shards in it are of the same plan: only then are they kept.
fn begin(out: &Path, settings: &Settings) -> Result<()> {
    let folder = out.join(".slices");
    fs::create_dir_all(&folder).map_err(Error::io("create folder", &folder))?;
    let path = folder.join("reorganize-plan.json");
    match read_json::<Settings>(&path)? {
        Some(known) if known == *settings => Ok(()),
        None if find_tars(&[out.to_path_buf()])?.is_empty() => Ok(write_json(&path, settings)?),
        _ => Err(ReorganizeError::OtherPlan { path: out.to_path_buf() }.into()),
    }
}

/// Which samples are taken, and what becomes of them.
pub(crate) struct Selection {
    extensions: Vec<String>,
    prefix_keys: bool,
    join: Option<Join>,
}

/// Parts that are added from the samples' sources.
struct Join {
    folder: PathBuf,
    files: Vec<FoundTar>,
    extensions: Vec<String>,
}

/// Number of a source's file, and of a sample in it.
type Place = (u32, u32);

/// Where samples of sources are by their key alone.
type Places = HashMap<[u8; 16], Place>;

impl Selection {
    fn new(args: &ReorganizeArgs) -> Result<Self> {
        let lower = |list: &[String]| list.iter().map(|part| part.trim_start_matches('.').to_lowercase()).collect();
        let join = match &args.join {
            None => None,
            Some(folder) => Some(Join {
                files: find_tars(std::slice::from_ref(folder))?,
                folder: folder.clone(),
                extensions: lower(&args.join_extensions),
            }),
        };
        Ok(Selection { extensions: lower(&args.extensions), prefix_keys: args.prefix_keys, join })
    }

    /// All parts of all samples, as they are.
    pub(crate) fn everything() -> Self {
        Selection { extensions: Vec::new(), prefix_keys: false, join: None }
    }

    /// The key that a sample gets.
    fn key(&self, input: &FoundTar, sample: &SampleRef<'_>) -> String {
        // Members `./a.jpg` are `a.jpg`: a tar writer drops the dot.
        let key = sample.key().trim_start_matches("./");
        if self.prefix_keys { format!("{}/{key}", input.name) } else { key.to_owned() }
    }

    /// The first part that a sample does not have but should.
    fn missing(&self, sample: &SampleRef<'_>, source: Option<&SampleRef<'_>>) -> Option<String> {
        let own = self.extensions.iter().find(|part| sample.part(part).is_err() && !self.joins(part));
        let joined = self.join.iter().flat_map(|join| &join.extensions);
        let joined = joined
            .into_iter()
            .find(|part| sample.part(part).is_err() && source.is_none_or(|source| source.part(part).is_err()));
        own.map(|part| format!("no part `{part}`"))
            .or_else(|| joined.map(|part| format!("no part `{part}` in its source")))
    }

    fn joins(&self, part: &str) -> bool {
        self.join.as_ref().is_some_and(|join| join.extensions.iter().any(|joined| joined == part))
    }

    /// A sample with the parts that it is to have.
    fn sample(&self, key: String, sample: &SampleRef<'_>, source: Option<&SampleRef<'_>>) -> Sample {
        let wanted = |part: &str| self.extensions.is_empty() || self.extensions.iter().any(|known| known == part);
        let mut taken = Sample::new(key);
        for (part, bytes) in source.into_iter().flat_map(SampleRef::parts) {
            if self.joins(part) {
                taken = taken.with(part, bytes);
            }
        }
        for (part, bytes) in sample.parts() {
            if wanted(part) || self.joins(part) {
                taken = taken.with(part, bytes);
            }
        }
        taken
    }
}

/// Which sample goes where: sample `i` of all outputs is the `i`-th usable sample of the inputs.
pub(crate) struct Plan<'a> {
    inputs: Vec<FoundTar>,
    selection: &'a Selection,
    places: Option<Places>,
    /// Numbers of each input's usable samples.
    usable: Vec<Vec<u32>>,
    /// Number, among all, of each input's first usable sample; and at last, of how many there are.
    starts: Vec<usize>,
    left_out: Vec<BTreeMap<String, u64>>,
    damage: Vec<Option<String>>,
    open: OpenTars,
}

/// What was found in one input.
struct Scanned {
    /// Usable samples, with hashes of their keys.
    samples: Vec<(u32, [u8; 16])>,
    left_out: BTreeMap<String, u64>,
    damage: Option<String>,
}

impl<'a> Plan<'a> {
    /// Reads the headers of `inputs`.
    ///
    /// # Errors
    /// [`ReorganizeError::Corrupt`] unless `skip_corrupt`; [`Error::Data`].
    pub(crate) fn new(
        inputs: Vec<FoundTar>,
        selection: &'a Selection,
        skip_corrupt: bool,
        control: &mut Control<'_>,
    ) -> Result<Self> {
        let open = OpenTars::new(2 * rayon::current_num_threads());
        let places = places(selection.join.as_ref(), &inputs, &open)?;
        let mut plan = Plan {
            selection,
            places,
            usable: Vec::with_capacity(inputs.len()),
            starts: vec![0],
            left_out: Vec::with_capacity(inputs.len()),
            damage: Vec::with_capacity(inputs.len()),
            open,
            inputs,
        };
        let mut keys = HashSet::new();
        let (total, step) = (plan.inputs.len(), 4 * rayon::current_num_threads());
        for first in (0..total).step_by(step) {
            control.checkpoint("reorganize: reading headers", first, total)?;
            let numbers = first..(first + step).min(total);
            let scanned = numbers.into_par_iter().map(|number| plan.scan(number)).collect::<Result<Vec<_>>>()?;
            scanned.into_iter().for_each(|scanned| plan.add(scanned, &mut keys));
        }
        match skip_corrupt {
            true => Ok(plan),
            false => plan.refuse_damage(),
        }
    }

    fn refuse_damage(self) -> Result<Self> {
        let damaged: Vec<&str> = self.damage.iter().flatten().map(String::as_str).collect();
        if damaged.is_empty() {
            return Ok(self);
        }
        let named = damaged.iter().take(NAMED).copied().collect::<Vec<_>>().join("; ");
        Err(ReorganizeError::Corrupt { count: damaged.len(), named }.into())
    }

    fn scan(&self, number: usize) -> Result<Scanned> {
        let input = &self.inputs[number];
        let opened = self.open.open(&input.path)?;
        let shard = opened.shard();
        let damage = shard.damage().map(ToString::to_string);
        let mut scanned = Scanned { samples: Vec::with_capacity(shard.len()), left_out: BTreeMap::new(), damage };
        let mut leave_out = |reason: String| *scanned.left_out.entry(reason).or_default() += 1;
        if shard.cut_off() {
            leave_out("cut by the damage of its shard".to_owned());
        }
        for (i, sample) in shard.samples().enumerate() {
            let source = self.source(&sample)?;
            let source = source.as_ref().and_then(|(opened, at)| opened.shard().get(*at));
            let key = self.selection.key(input, &sample);
            if let Some(reason) = self.selection.missing(&sample, source.as_ref()) {
                leave_out(reason);
            } else if !sample.parts().all(|(part, _)| is_storable(&key, part)) {
                leave_out("a name that a shard cannot hold".to_owned());
            } else {
                scanned.samples.push((i as u32, short_hash(&key)));
            }
        }
        Ok(scanned)
    }

    fn add(&mut self, scanned: Scanned, keys: &mut HashSet<[u8; 16]>) {
        let Scanned { samples, mut left_out, damage } = scanned;
        let all = samples.len();
        let usable: Vec<u32> = samples.into_iter().filter(|(_, key)| keys.insert(*key)).map(|(i, _)| i).collect();
        if usable.len() < all {
            left_out.insert("duplicate key".to_owned(), (all - usable.len()) as u64);
        }
        self.starts.push(self.samples() + usable.len());
        self.usable.push(usable);
        self.left_out.push(left_out);
        self.damage.push(damage);
    }

    /// Number of usable samples.
    pub(crate) fn samples(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Number of outputs.
    pub(crate) fn shards(&self, per_shard: usize) -> usize {
        self.samples().div_ceil(per_shard)
    }

    /// What was left out of a part of the inputs.
    pub(crate) fn account(&self, inputs: Range<usize>) -> Report {
        let mut report = Report::new("reorganize");
        for left_out in &self.left_out[inputs.clone()] {
            left_out.iter().for_each(|(reason, n)| *report.left_out.entry(reason.clone()).or_default() += n);
        }
        report.taken = report.left_out_in_all();
        report.notes.extend(self.damage[inputs].iter().flatten().map(|damage| format!("damaged: {damage}")));
        report
    }

    /// Writes some of the outputs of `per_shard` samples, named by `name`; those that are there already are kept. Returns the
    /// samples and bytes of all of them.
    ///
    /// # Errors
    /// [`Error::Data`], [`ReorganizeError::Changed`].
    pub(crate) fn write(
        &self,
        shards: Range<usize>,
        per_shard: usize,
        name: &(dyn Fn(usize) -> PathBuf + Sync),
        control: &mut Control<'_>,
    ) -> Result<(u64, u64)> {
        let step = 2 * rayon::current_num_threads();
        let (mut samples, mut bytes) = (0, 0);
        for first in shards.clone().step_by(step) {
            control.checkpoint("reorganize", (first - shards.start) * per_shard, shards.len() * per_shard)?;
            let numbers = first..(first + step).min(shards.end);
            let written = numbers.into_par_iter().map(|number| self.write_one(number, per_shard, &name(number)));
            for (count, length) in written.collect::<Result<Vec<_>>>()? {
                samples += count;
                bytes += length;
            }
        }
        Ok((samples, bytes))
    }

    fn write_one(&self, number: usize, per_shard: usize, path: &Path) -> Result<(u64, u64)> {
        let samples = number * per_shard..((number + 1) * per_shard).min(self.samples());
        if let Ok(metadata) = fs::metadata(path) {
            // A shard has its name only when it is whole, and the plan was found to be the same.
            return Ok((samples.len() as u64, metadata.len()));
        }
        let mut shard = ShardFile::create(path)?;
        for sample in samples {
            shard.write(&self.sample(sample)?)?;
        }
        let record = shard.finish()?;
        Ok((record.samples as u64, record.bytes))
    }

    /// Sample `i` of all outputs.
    fn sample(&self, i: usize) -> Result<Sample> {
        let number = self.starts.partition_point(|start| *start <= i) - 1;
        let input = &self.inputs[number];
        let opened = self.open.open(&input.path)?;
        let changed = || ReorganizeError::Changed { path: input.path.clone() };
        let sample = opened.shard().get(self.usable[number][i - self.starts[number]] as usize).ok_or_else(changed)?;
        let source = self.source(&sample)?;
        let source = source.as_ref().and_then(|(opened, at)| opened.shard().get(*at));
        Ok(self.selection.sample(self.selection.key(input, &sample), &sample, source.as_ref()))
    }

    /// The sample that a sample was made from, if parts of it are wanted and it is there.
    fn source(&self, sample: &SampleRef<'_>) -> Result<Option<(Arc<OpenTar>, usize)>> {
        let Some(join) = &self.selection.join else { return Ok(None) };
        if let Some(places) = &self.places {
            let Some(&(file, at)) = places.get(&short_hash(sample.key())) else { return Ok(None) };
            return Ok(Some((self.open.open(&join.files[file as usize].path)?, at as usize)));
        }
        let Some((tar, key)) = split_source(sample.key()) else { return Ok(None) };
        // Only what was found below the folder is opened: keys are data from elsewhere.
        let Ok(at) = join.files.binary_search_by(|file| file.name.as_str().cmp(tar)) else { return Ok(None) };
        let opened = self.open.open(&join.files[at].path)?;
        let place = opened.place(key);
        Ok(place.map(|place| (opened, place)))
    }
}

/// Where the sources are by key, unless the inputs' keys say themselves which shard they come from.
fn places(join: Option<&Join>, inputs: &[FoundTar], open: &OpenTars) -> Result<Option<Places>> {
    let Some(join) = join else { return Ok(None) };
    if join.files.is_empty() {
        let paths = join.folder.display().to_string();
        return Err(ReorganizeError::NoShards { what: "*.tar", paths }.into());
    }
    for input in inputs {
        let opened = open.open(&input.path)?;
        match opened.shard().get(0) {
            Some(sample) if split_source(sample.key()).is_some() => return Ok(None),
            Some(_) => break,
            None => {}
        }
    }
    let keys = |(number, file): (usize, &FoundTar)| -> Result<Vec<([u8; 16], Place)>> {
        let opened = open.open(&file.path)?;
        let samples = opened.shard().samples().enumerate();
        Ok(samples.map(|(i, sample)| (short_hash(sample.key()), (number as u32, i as u32))).collect())
    };
    let found = join.files.par_iter().enumerate().map(keys).collect::<Result<Vec<_>>>()?;
    let mut places = Places::new();
    for (key, place) in found.into_iter().flatten() {
        places.entry(key).or_insert(place);
    }
    Ok(Some(places))
}

/// "part/00012.tar/000120003" as shard and key.
fn split_source(key: &str) -> Option<(&str, &str)> {
    let at = key.rfind(".tar/")?;
    Some((&key[..at + 4], &key[at + 5..]))
}

/// Whether a tar header holds the name as it is.
fn is_storable(key: &str, part: &str) -> bool {
    let name = format!("{key}.{part}");
    let mut header = tar::Header::new_ustar();
    !part.is_empty() && header.set_path(&name).is_ok() && header.path_bytes() == name.as_bytes()
}
