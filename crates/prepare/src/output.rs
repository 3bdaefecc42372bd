//! Datasets written shard by shard, by stages that know beforehand which samples each shard gets.
//!
//! A shard's bytes are a function of the input and the settings alone. So shards are written by any number of threads and
//! jobs, in any order; what was written before a kill is kept; and however the work was divided, the dataset is the
//! same. The account of each finished shard is a file in `.slices`; whoever finds them all there writes the index.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calotype_data::files::{read_json, write_json};
use calotype_data::mds::{
    self, Compression, HASHES, MdsFault, MdsIndex, MdsOptions, MdsSchema, MdsShard, MdsShardInfo,
};
use calotype_data::webdataset::{END_BYTES, INDEX_FILE, ShardRecord, is_shard_name, size_in_shard, write_shard};
use calotype_data::{Control, DatasetIndex, Sample, ShardLimits, Slice};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::paths::check_out;
use crate::slices::{LEDGER, SliceArgs, run_slices_unless};
use crate::words::counted;
use crate::{Account, Error, Result};

/// Layouts of datasets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Tar shards, as the webdataset library reads them.
    Webdataset,
    /// MosaicML Streaming's shards.
    Mds,
}

/// The layout of what a stage writes.
#[derive(Clone, Debug, clap::Args)]
pub struct OutputArgs {
    /// Layout to write.
    #[arg(long, value_enum, default_value = "webdataset")]
    pub to: Layout,
    /// Most samples in a shard [default: 10000; mds: as many as its bytes allow].
    #[arg(long, value_name = "N", value_parser = calotype_core::numbers::count::<usize>)]
    pub shard_samples: Option<usize>,
    /// Most bytes in a shard: 64mb, 1gb [default: 256mb; mds: 64mb, as Streaming].
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub shard_bytes: Option<u64>,
    /// First part of the names of tar shards: NAME-000000.tar.
    #[arg(long, value_name = "NAME", default_value = PREFIX)]
    pub prefix: String,
    /// Compression of MDS shards: zstd, zstd:1 to zstd:22, gz, br, snappy.
    #[arg(long, value_name = "NAME[:LEVEL]")]
    pub compression: Option<Compression>,
    /// Hashes of MDS shards in their index, comma separated: sha1, md5, xxh64, ...
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub hashes: Vec<String>,
}

/// "64mb" in bytes; units are powers of 1024, as Streaming has them.
fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text[digits.len()..].replace("ib", "b");
    let power = ["", "kb", "mb", "gb", "tb"].iter().position(|known| *known == unit || unit == "b" && known.is_empty());
    let number: Option<u64> = digits.trim().parse().ok().filter(|number| *number > 0);
    let bytes = number.zip(power).and_then(|(number, power)| number.checked_mul(1 << (10 * power)));
    bytes.ok_or_else(|| format!("`{text}` is no size; write a number of bytes, or 500kb, 64mb, 2gb"))
}

/// The usual first part of the names of tar shards.
const PREFIX: &str = "shard";

impl OutputArgs {
    /// Settings that shape the output.
    pub(crate) fn settings(&self) -> Value {
        let compression = self.compression.map(|compression| compression.to_string());
        json!([self.to, self.shard_samples, self.shard_bytes, self.prefix, compression, self.hashes])
    }

    /// Limits of tar shards.
    pub(crate) fn limits(&self) -> ShardLimits {
        let default = ShardLimits::default();
        ShardLimits {
            samples: self.shard_samples.unwrap_or(default.samples),
            bytes: self.shard_bytes.unwrap_or(default.bytes),
        }
    }

    /// Options of MDS shards.
    pub(crate) fn mds_options(&self) -> MdsOptions {
        MdsOptions {
            compression: self.compression,
            hashes: self.hashes.clone(),
            size_limit: Some(self.shard_bytes.unwrap_or(mds::SIZE_LIMIT)),
            samples: self.shard_samples,
        }
    }

    /// Refuses settings that do nothing.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the option.
    pub(crate) fn check(&self) -> Result<()> {
        if self.shard_samples == Some(0) {
            return Err(Error::Usage("--shard-samples must be at least 1".to_owned()));
        }
        if self.to == Layout::Webdataset && (self.compression.is_some() || !self.hashes.is_empty()) {
            return Err(Error::Usage(
                "--compression and --hashes are of MDS shards (--to mds); tar shards always have a BLAKE3 in their index"
                    .to_owned(),
            ));
        }
        if self.to == Layout::Mds && self.prefix != PREFIX {
            return Err(Error::Usage(format!("--prefix {} is of tar shards; MDS names its own", self.prefix)));
        }
        check_prefix(&self.prefix)?;
        let known: Vec<&str> = HASHES.split(", ").collect();
        match self.hashes.iter().find(|hash| !known.contains(&hash.as_str())) {
            Some(hash) => Err(Error::Usage(format!("--hashes: `{hash}` is not known; known are {HASHES}"))),
            None => Ok(()),
        }
    }
}

/// Refuses a `--prefix` that leads out of the folder, or to hidden files.
///
/// # Errors
/// [`Error::Usage`].
pub(crate) fn check_prefix(prefix: &str) -> Result<()> {
    match prefix.is_empty() || prefix.starts_with('.') || prefix.contains(['/', '\\', '\0']) {
        true => Err(Error::Usage(format!("--prefix `{prefix}` cannot begin a file name"))),
        false => Ok(()),
    }
}

/// Form of the shards.
pub(crate) enum Form {
    Webdataset { prefix: String, limits: ShardLimits },
    Mds(Box<MdsSchema>),
}

/// Outcome of one sample of the input.
pub(crate) enum Made {
    Sample(Sample),
    /// Left out, for this reason.
    LeftOut(String),
}

/// The account of one shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Done {
    taken: u64,
    samples: u64,
    /// Length of the file.
    bytes: u64,
    left_out: BTreeMap<String, u64>,
    entry: Entry,
}

/// A shard's entry in the index.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Entry {
    /// All of its samples were left out.
    Empty,
    Webdataset(ShardRecord),
    Mds(Box<MdsShardInfo>),
}

impl Entry {
    fn file(&self) -> Option<&str> {
        match self {
            Entry::Empty => None,
            Entry::Webdataset(record) => Some(&record.file),
            Entry::Mds(info) => Some(&info.zip_data.as_ref().unwrap_or(&info.raw_data).basename),
        }
    }
}

/// Reason for which a sample does not go into a shard.
pub(crate) fn misfit(fault: &MdsFault) -> String {
    match fault {
        MdsFault::Value { column, .. } => format!("does not fit column `{column}`"),
        MdsFault::TooLarge { .. } => "too large".to_owned(),
        other => other.to_string(),
    }
}

impl Form {
    /// Bytes that a sample takes, or why it cannot be written.
    pub(crate) fn size(&self, sample: &Sample) -> std::result::Result<u64, String> {
        match self {
            Form::Webdataset { .. } => size_in_shard(sample).map_err(|e| match e {
                calotype_data::Error::MissingPart { .. } => "without any part".to_owned(),
                calotype_data::Error::InvalidName { .. } => "key or part that a tar cannot name".to_owned(),
                other => other.to_string(),
            }),
            Form::Mds(schema) => schema.encode(sample).map(|bytes| 4 + bytes.len() as u64).map_err(|e| misfit(&e)),
        }
    }

    /// Bytes of a shard without samples.
    fn empty(&self) -> u64 {
        match self {
            Form::Webdataset { .. } => END_BYTES,
            Form::Mds(schema) => schema.empty_shard(),
        }
    }

    fn has_room(&self, samples: usize, bytes: u64, next: u64) -> bool {
        match self {
            Form::Webdataset { limits, .. } => samples == 0 || samples < limits.samples && bytes + next <= limits.bytes,
            Form::Mds(schema) => schema.has_room(samples, bytes, next),
        }
    }

    /// Writes shard `number` from `samples`.
    fn write(
        &self,
        dir: &Path,
        number: usize,
        samples: &mut dyn Iterator<Item = calotype_data::Result<Made>>,
    ) -> Result<Done> {
        let (mut taken, mut left_out) = (0, BTreeMap::new());
        let mut leave_out = |reason: String| *left_out.entry(reason).or_default() += 1;
        let kept = samples.inspect(|_| taken += 1);
        let (entry, written, bytes) = match self {
            Form::Webdataset { prefix, .. } => {
                let kept = kept.filter_map(|made| match made {
                    Ok(Made::Sample(sample)) => match self.size(&sample) {
                        Ok(_) => Some(Ok(sample)),
                        Err(reason) => {
                            leave_out(reason);
                            None
                        }
                    },
                    Ok(Made::LeftOut(reason)) => {
                        leave_out(reason);
                        None
                    }
                    Err(error) => Some(Err(error)),
                });
                match write_shard(&dir.join(format!("{prefix}-{number:06}.tar")), kept)? {
                    Some(record) => {
                        let (samples, bytes) = (record.samples as u64, record.bytes);
                        (Entry::Webdataset(record), samples, bytes)
                    }
                    None => (Entry::Empty, 0, 0),
                }
            }
            Form::Mds(schema) => {
                let mut shard = MdsShard::new(schema);
                for made in kept {
                    match made? {
                        Made::Sample(sample) => match schema.encode(&sample) {
                            Ok(bytes) => shard.push(&bytes),
                            Err(fault) => {
                                tracing::warn!(sample = sample.key, "left out: {fault}");
                                leave_out(misfit(&fault));
                            }
                        },
                        Made::LeftOut(reason) => leave_out(reason),
                    }
                }
                write_mds(shard, dir, number)?
            }
        };
        Ok(Done { taken, samples: written, bytes, left_out, entry })
    }
}

fn write_mds(shard: MdsShard<'_>, dir: &Path, number: usize) -> Result<(Entry, u64, u64)> {
    if shard.is_empty() {
        return Ok((Entry::Empty, 0, 0));
    }
    let samples = shard.len() as u64;
    let info = shard.write(dir, &mds::shard_name(number))?;
    let bytes = info.zip_data.as_ref().unwrap_or(&info.raw_data).bytes;
    Ok((Entry::Mds(Box::new(info)), samples, bytes))
}

/// Divides samples of the given sizes (0 for those that are left out) over shards: the first sample of each.
pub(crate) fn divide(form: &Form, sizes: impl IntoIterator<Item = u64>) -> Vec<usize> {
    let mut starts = Vec::new();
    let (mut samples, mut bytes) = (0, form.empty());
    for (number, size) in sizes.into_iter().enumerate() {
        if starts.is_empty() || size > 0 && !form.has_room(samples, bytes, size) {
            starts.push(number);
            (samples, bytes) = (0, form.empty());
        }
        if size > 0 {
            samples += 1;
            bytes += size;
        }
    }
    starts
}

/// A dataset to be written.
pub(crate) struct Job<'a> {
    pub stage: &'static str,
    pub out: &'a Path,
    pub form: &'a Form,
    /// First sample of each shard.
    pub starts: &'a [usize],
    /// Number of samples of the input.
    pub total: usize,
    /// Folder of the shards' accounts, as [`open_ledger`] gave it.
    pub ledger: &'a Path,
    /// Everything that shapes the output.
    pub settings: &'a Value,
    /// Free-form facts for the index of tar shards.
    pub meta: Map<String, Value>,
    /// Makes sample `i`.
    pub make: &'a (dyn Fn(usize) -> calotype_data::Result<Made> + Sync),
}

/// Makes sure that `out` holds nothing else than what `settings` say, and returns the folder of the accounts. It is not
/// made yet, so that a stage that fails before it knows what to write leaves nothing in the way.
///
/// Shards are the stage's own where that folder is: it is made before the first of them.
///
/// # Errors
/// [`calotype_data::Error::FolderInUse`] for another dataset, be it without an index, [`Error::Usage`] for one of the same
/// stage that was begun with other settings, and for something else than a dataset.
pub(crate) fn open_ledger(stage: &'static str, out: &Path, settings: &Value) -> Result<PathBuf> {
    check_out(out)?;
    let digest = blake3::hash(settings.to_string().as_bytes()).to_hex();
    let (ledgers, name) = (out.join(LEDGER), format!("{stage}-{}", &digest[..16]));
    let ledger = ledgers.join(&name);
    // Looked for before the ledger, which a job beside this one may make just now.
    let shard = shard_in(out)?;
    if out.join(INDEX_FILE).exists() && !ledger.is_dir() {
        let (path, found) = (out.to_path_buf(), INDEX_FILE.to_owned());
        return Err(calotype_data::Error::FolderInUse { path, found }.into());
    }
    if ledgers.is_dir() {
        for entry in fs::read_dir(&ledgers).map_err(Error::io("list", &ledgers))? {
            let path = entry.map_err(Error::io("list", &ledgers))?.path();
            if path.is_dir() && path != ledger {
                return Err(Error::Usage(format!(
                    "{} holds a dataset that was begun from another input or with other settings; choose another folder, \
                     or remove it",
                    out.display()
                )));
            }
        }
    }
    match shard.filter(|_| !ledger.is_dir()) {
        Some(found) => Err(calotype_data::Error::FolderInUse { path: out.to_path_buf(), found }.into()),
        None => Ok(ledger),
    }
}

/// The first name of a tar or MDS shard in a folder, whatever is behind it.
fn shard_in(folder: &Path) -> Result<Option<String>> {
    if !folder.is_dir() {
        return Ok(None);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        names.push(entry.map_err(Error::io("list", folder))?.file_name().to_string_lossy().into_owned());
    }
    let is_mds = |name: &str| name.starts_with("shard.") && name.contains(".mds");
    Ok(names.into_iter().filter(|name| is_shard_name(name) || is_mds(name)).min())
}

impl Job<'_> {
    /// Writes the shards of this process's slices, and the index if all shards are there then.
    ///
    /// # Errors
    /// Those of making samples and of writing; [`calotype_data::Error::Interrupted`].
    pub(crate) fn run(&self, slices: &SliceArgs, control: &mut Control<'_>) -> Result<Account> {
        let shards = self.starts.len();
        fs::create_dir_all(self.ledger).map_err(Error::io("create folder", self.ledger))?;
        let is_whole = |slice: Slice| -> Result<bool> {
            for number in slice.range(shards) {
                if self.done(number)?.is_none() {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let out = self.out;
        let mut account =
            run_slices_unless(&is_whole, slices, self.stage, out, self.settings, control, |slice, control| {
                let mut account = Account::new(self.stage);
                let range = slice.range(shards);
                let group = rayon::current_num_threads().max(1);
                for first in range.clone().step_by(group) {
                    control.checkpoint(self.stage, self.start(first), self.total)?;
                    let group: Vec<usize> = (first..range.end.min(first + group)).collect();
                    let done: Result<Vec<Done>> = group.into_par_iter().map(|number| self.shard(number)).collect();
                    done?.iter().for_each(|done| add_shard(&mut account, done));
                }
                control.report(self.stage, self.start(range.end), self.total);
                Ok(account)
            })?;
        account.notes.push(self.finish()?);
        Ok(account)
    }

    fn start(&self, shard: usize) -> usize {
        self.starts.get(shard).copied().unwrap_or(self.total)
    }

    fn account_file(&self, shard: usize) -> PathBuf {
        self.ledger.join(format!("{shard:06}.json"))
    }

    /// The account of shard `number`, which is written unless it is there.
    fn shard(&self, number: usize) -> Result<Done> {
        if let Some(done) = self.done(number)? {
            return Ok(done);
        }
        let mut samples = (self.start(number)..self.start(number + 1)).map(|i| (self.make)(i));
        let done = self.form.write(self.out, number, &mut samples)?;
        write_json(&self.account_file(number), &done)?;
        Ok(done)
    }

    /// The account of shard `number`, if it is there with its whole length.
    fn done(&self, number: usize) -> Result<Option<Done>> {
        Ok(read_json::<Done>(&self.account_file(number))?.filter(|done| self.is_there(done)))
    }

    fn is_there(&self, done: &Done) -> bool {
        let length = |file: &str| fs::metadata(self.out.join(file)).map(|metadata| metadata.len());
        done.entry.file().is_none_or(|file| length(file).is_ok_and(|length| length == done.bytes))
    }

    /// Writes the index if all shards are there; what is to be said of it.
    fn finish(&self) -> Result<String> {
        let out = self.out.display();
        let mut entries = Vec::with_capacity(self.starts.len());
        for number in 0..self.starts.len() {
            entries.extend(self.done(number)?.map(|done| done.entry));
        }
        let all = self.starts.len();
        if entries.len() < all {
            let missing = all - entries.len();
            return Ok(format!("{missing} of {all} shards left to other slices; the last one writes the index"));
        }
        let shards = entries.iter().filter(|entry| entry.file().is_some()).count();
        if shards == 0 {
            return Err(calotype_data::Error::EmptyDataset { path: self.out.to_path_buf() }.into());
        }
        self.write_index(entries)?;
        Ok(format!("{out}: {}, all there", counted(shards, "shard")))
    }

    fn write_index(&self, entries: Vec<Entry>) -> Result<()> {
        let (mut tars, mut mds) = (Vec::new(), Vec::new());
        for entry in entries {
            match entry {
                Entry::Empty => {}
                Entry::Webdataset(record) => tars.push(record),
                Entry::Mds(info) => mds.push(*info),
            }
        }
        match self.form {
            Form::Webdataset { .. } => DatasetIndex::new(tars, self.meta.clone()).write(self.out)?,
            Form::Mds(_) => MdsIndex { shards: mds, version: 2 }.write(self.out)?,
        }
        Ok(())
    }
}

fn add_shard(account: &mut Account, done: &Done) {
    account.taken += done.taken;
    account.written += done.samples;
    account.bytes += done.bytes;
    for (reason, count) in &done.left_out {
        *account.left_out.entry(reason.clone()).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in
            [("1", 1), ("12b", 12), ("2kb", 2048), ("64MB", 64 << 20), ("1GiB", 1 << 30), ("3 tb", 3 << 40)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "mb", "1.5mb", "-1", "0", "5xb", "99999999999tb"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn samples_are_divided_by_number_and_bytes() {
        let form = |samples, bytes| Form::Webdataset { prefix: "x".to_owned(), limits: ShardLimits { samples, bytes } };
        assert_eq!(divide(&form(2, 1 << 20), [1, 1, 0, 1, 1, 1]), [0, 3, 5]);
        assert_eq!(divide(&form(99, END_BYTES + 10), [4, 6, 1, 30, 0, 5]), [0, 2, 3, 5]);
        assert!(divide(&form(1, 1), []).is_empty());
    }
}
