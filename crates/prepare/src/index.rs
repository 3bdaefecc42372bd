//! The stage that lists the shards of a folder: `index.json`, and NeMo's `wdinfo`.
//!
//! Only new and changed shards are read; of the others, told by length and time of change, the headers alone, and these
//! only if there is anything new, to see that no key is there twice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, UNIX_EPOCH};

use calotype_core::durable::sync_folder;
use calotype_data::files::{partial_name, read_json, write_bytes, write_json};
use calotype_data::quarantine::QUARANTINE_FILE;
use calotype_data::wdinfo::{WDINFO_JSON, WDINFO_PICKLE};
use calotype_data::webdataset::{DatasetIndex, INDEX_FILE, PROGRESS_FILE, ShardRecord, TarShard, is_shard_name};
use calotype_data::{Control, Quarantine, WdInfo};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::plan::{Plan, Selection};
use crate::tars::{FoundTar, find_tars, marker, named, refuse_other_kinds, short_hash};
use crate::words::counted;
use crate::{Account, Error, Result};

/// File of the facts about the shards, by which unchanged ones are told.
const STATE_FILE: &str = ".index-state.json";

/// File of what a merge is about to replace, so that one that is killed can be finished or undone.
const JOURNAL_FILE: &str = ".merge.json";

/// Beginning of the names of merged shards, as in NeMo.
const MERGED: &str = "last_few_";

/// Settings of the stage.
#[derive(Clone, Debug, clap::Args)]
pub struct IndexArgs {
    /// Folder of shards (*.tar).
    pub dir: PathBuf,
    /// Write wdinfo.json and wdinfo.pkl, NeMo's list of shards of equal counts, too. Shards of another count are not in it.
    #[arg(long)]
    pub wdinfo: bool,
    /// Samples in each shard that wdinfo lists, and in each merged shard [default: what most shards have].
    #[arg(long, value_name = "N", value_parser = calotype_core::numbers::count::<usize>)]
    pub chunk_size: Option<usize>,
    /// First replace the shards that are not full (fewer samples, or NeMo's mark .INCOMPLETE) by full ones, named
    /// last_few_00000.tar, ...; the last of them may be not full again.
    #[arg(long)]
    pub merge: bool,
    /// Read all shards again, even those that look unchanged.
    #[arg(long)]
    pub reread: bool,
}

/// The reason for which a folder cannot be indexed.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// No shards in the folder.
    #[error("folder {} holds no *.tar files{}", dir.display(), if *below { "; index each of its subfolders, or `data reorganize` them into one" } else { "" })]
    NoShards {
        /// The folder.
        dir: PathBuf,
        /// True if there are some in its subfolders.
        below: bool,
    },
    /// Damaged shards.
    #[error(
        "{count} shards are damaged: {named}; copy them again, or leave them out with `data reorganize --skip-corrupt`"
    )]
    Damaged {
        /// Number of them.
        count: usize,
        /// The first of them, with what is wrong.
        named: String,
    },
    /// A shard of another count than the list says.
    #[error(
        "{} says that shard `{shard}` holds {expected} samples, and it {found}; write the list again with --wdinfo, or copy the \
         shard again",
        list.display()
    )]
    WdInfo {
        /// The list.
        list: PathBuf,
        /// The shard.
        shard: String,
        /// Samples by the list.
        expected: usize,
        /// Content that is there.
        found: String,
    },
    /// Samples that a merge would lose.
    #[error("shards of {} cannot be merged: {detail}; look at them with `data check`", dir.display())]
    NotMergeable {
        /// The folder.
        dir: PathBuf,
        /// The reason.
        detail: String,
    },
}

impl IndexError {
    /// True if the command line is to blame.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NoShards { .. })
    }
}

/// Indexes a folder.
///
/// # Errors
/// [`Error::Index`], [`Error::Data`] (among them a key that is in two shards).
pub fn run(args: &IndexArgs, control: &mut Control<'_>) -> Result<Account> {
    if args.chunk_size == Some(0) {
        return Err(Error::Usage("--chunk-size must be at least 1".to_owned()));
    }
    if let Some(chunk) = args.chunk_size.filter(|_| !args.wdinfo && !args.merge) {
        return Err(Error::Usage(format!("--chunk-size {chunk} has no effect without --wdinfo or --merge")));
    }
    let started = Instant::now();
    refuse_unfinished(&args.dir)?;
    if find_tars(std::slice::from_ref(&args.dir))?.is_empty() {
        refuse_other_kinds(&args.dir, "index")?;
    }
    let mut account = Account::new("index");
    let meta = finish_merge(&args.dir)?;
    let meta = match meta {
        Some(meta) => meta,
        None => DatasetIndex::read(&args.dir)?.map(|index| index.meta).unwrap_or_default(),
    };
    if args.merge {
        account.notes.extend(merge(args, &meta, control)?);
    }
    let folder = Folder::read(&args.dir, args.reread, control)?;
    let index = folder.index(meta, &mut account)?;
    folder.save(&index)?;
    remove(&args.dir.join(JOURNAL_FILE))?;
    account.taken = folder.shards.iter().map(|shard| shard.known.record.samples as u64).sum();
    account.written = index.samples as u64;
    account.bytes = index.shards.iter().map(|shard| shard.bytes).sum();
    account.notes.push(format!(
        "{} in {}, {} of them read, the others unchanged",
        counted(index.samples, "sample"),
        counted(index.shards.len(), "shard"),
        folder.shards.iter().filter(|shard| shard.read).count()
    ));
    if args.wdinfo {
        account.notes.push(write_wdinfo(args, &index)?);
    } else {
        check_wdinfo(&args.dir, &index)?;
    }
    account.seconds = started.elapsed().as_secs_f64();
    Ok(account)
}

fn refuse_unfinished(dir: &Path) -> Result<()> {
    if !dir.is_dir() {
        return Err(calotype_data::Error::MissingFolder { path: dir.to_path_buf() }.into());
    }
    if dir.join(PROGRESS_FILE).exists() {
        return Err(calotype_data::Error::Unfinished { path: dir.to_path_buf() }.into());
    }
    Ok(())
}

/// The shards of the folder itself, sorted by name.
fn shards_of(dir: &Path) -> Result<Vec<FoundTar>> {
    let mut found = find_tars(&[dir.to_path_buf()])?;
    let all = found.len();
    found.retain(|tar| !tar.name.contains('/'));
    if found.is_empty() {
        return Err(IndexError::NoShards { dir: dir.to_path_buf(), below: all > 0 }.into());
    }
    Ok(found)
}

/// Facts that are remembered of each shard, by name.
type State = BTreeMap<String, Known>;

/// A shard when it was read.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Known {
    /// Time of its last change, in nanoseconds since 1970.
    modified: u64,
    /// True if NeMo's mark was beside it.
    marked: bool,
    record: ShardRecord,
}

/// The shards of a folder, with what is known of them.
struct Folder<'a> {
    dir: &'a Path,
    before: Option<DatasetIndex>,
    shards: Vec<Indexed>,
    /// True if all is as it was when the index was made: then no keys were read, and the old index tells which shards count.
    unchanged: bool,
}

/// One shard.
struct Indexed {
    tar: FoundTar,
    known: Known,
    /// True if its content was read, and not only its headers or nothing.
    read: bool,
    /// Hashes of its keys; empty if the folder is unchanged.
    keys: Vec<[u8; 16]>,
}

impl<'a> Folder<'a> {
    fn read(dir: &'a Path, reread: bool, control: &mut Control<'_>) -> Result<Self> {
        let found = shards_of(dir)?;
        let before = DatasetIndex::read(dir)?;
        let state: State = read_json(&dir.join(STATE_FILE))?.unwrap_or_default();
        let mut work = Vec::with_capacity(found.len());
        for tar in found {
            let (modified, marked) = (modified(&tar.path)?, tar.is_marked());
            let same = |known: &&Known| {
                !reread && known.modified == modified && known.marked == marked && known.record.bytes == tar.bytes
            };
            let known = state.get(&tar.name).filter(same);
            work.push((tar, modified, marked, known));
        }
        let unchanged = before.is_some() && state.len() == work.len() && work.iter().all(|(.., known)| known.is_some());
        let (mut shards, mut damaged) = (Vec::with_capacity(work.len()), Vec::new());
        for (number, some) in work.chunks(2 * rayon::current_num_threads()).enumerate() {
            control.checkpoint("index", number * 2 * rayon::current_num_threads(), work.len())?;
            let read = some.par_iter().map(|(tar, modified, marked, known)| match known {
                Some(known) if unchanged => {
                    Ok(Ok(Indexed { tar: tar.clone(), known: (*known).clone(), read: false, keys: Vec::new() }))
                }
                _ => read_shard(tar, *modified, *marked, *known),
            });
            for shard in read.collect::<Result<Vec<_>>>()? {
                match shard {
                    Ok(shard) => shards.push(shard),
                    Err(damage) => damaged.push(damage),
                }
            }
        }
        control.report("index", work.len(), work.len());
        if !damaged.is_empty() {
            return Err(IndexError::Damaged { count: damaged.len(), named: named(&damaged) }.into());
        }
        Ok(Folder { dir, before, shards, unchanged })
    }

    /// The index, without shards that NeMo has merged into others.
    fn index(&self, meta: Map<String, Value>, account: &mut Account) -> Result<DatasetIndex> {
        let mut records = Vec::with_capacity(self.shards.len());
        let merged: HashSet<[u8; 16]> =
            self.shards.iter().filter(|shard| is_merged(shard)).flat_map(|shard| shard.keys.iter().copied()).collect();
        let mut seen: HashMap<[u8; 16], usize> = HashMap::new();
        let listed = self.before.iter().filter(|_| self.unchanged).flat_map(|index| &index.shards);
        let listed: HashSet<&str> = listed.map(|record| record.file.as_str()).collect();
        for (number, shard) in self.shards.iter().enumerate() {
            let repeats = match self.unchanged {
                true => !listed.contains(shard.tar.name.as_str()),
                false => is_left_over(shard, &merged),
            };
            if repeats {
                let reason = format!("in a shard that was merged into {MERGED}*");
                *account.left_out.entry(reason).or_default() += shard.known.record.samples as u64;
                continue;
            }
            for (place, key) in shard.keys.iter().enumerate() {
                if let Some(first) = seen.insert(*key, number) {
                    return Err(duplicate(shard, place, &self.shards[first]));
                }
            }
            records.push(shard.known.record.clone());
        }
        Ok(DatasetIndex::new(records, meta))
    }

    fn save(&self, index: &DatasetIndex) -> Result<()> {
        if self.before.as_ref() != Some(index) {
            index.write(self.dir)?;
        }
        let state: State = self.shards.iter().map(|shard| (shard.tar.name.clone(), shard.known.clone())).collect();
        Ok(write_json(&self.dir.join(STATE_FILE), &state)?)
    }
}

/// True if a shard is one that NeMo has merged into others, and left where it was.
fn is_left_over(shard: &Indexed, merged: &HashSet<[u8; 16]>) -> bool {
    let marked = shard.known.marked && !is_merged(shard) && !shard.keys.is_empty();
    marked && shard.keys.iter().all(|key| merged.contains(key))
}

fn is_merged(shard: &Indexed) -> bool {
    shard.tar.name.starts_with(MERGED)
}

fn duplicate(shard: &Indexed, place: usize, first: &Indexed) -> Error {
    let key = TarShard::open(&shard.tar.path).ok().and_then(|tar| tar.get(place).map(|sample| sample.key().to_owned()));
    let (first, second) = (first.tar.path.clone(), shard.tar.path.clone());
    calotype_data::Error::DuplicateKey { key: key.unwrap_or_else(|| format!("(sample {place})")), first, second }.into()
}

fn modified(path: &Path) -> Result<u64> {
    let time = fs::metadata(path).and_then(|metadata| metadata.modified()).map_err(Error::io("open", path))?;
    Ok(time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64))
}

/// Reads a shard, or only its headers if it is `known`; what is damaged is told in words.
fn read_shard(
    tar: &FoundTar,
    modified: u64,
    marked: bool,
    known: Option<&Known>,
) -> Result<std::result::Result<Indexed, String>> {
    let shard = TarShard::open(&tar.path)?;
    if let Some(damage) = shard.damage() {
        return Ok(Err(damage.to_string()));
    }
    if shard.scattered() > 0 {
        let (path, samples) = (tar.path.display(), shard.scattered());
        return Ok(Err(format!(
            "shard {path}: members of {samples} samples lie apart, as if sorted by kind (`data reorganize` puts them together)"
        )));
    }
    let keys: Vec<[u8; 16]> = shard.samples().map(|sample| short_hash(sample.key())).collect();
    let read = known.is_none();
    let known = known.cloned().unwrap_or_else(|| Known {
        modified,
        marked,
        record: ShardRecord {
            file: tar.name.clone(),
            samples: shard.len(),
            bytes: shard.bytes(),
            blake3: Some(shard.blake3()),
        },
    });
    Ok(Ok(Indexed { tar: tar.clone(), known, read, keys }))
}

/// Number of samples that most shards hold; the larger count if two are equally frequent.
fn usual_count(counts: impl Iterator<Item = usize>) -> usize {
    let mut frequency: BTreeMap<usize, usize> = BTreeMap::new();
    counts.filter(|count| *count > 0).for_each(|count| *frequency.entry(count).or_default() += 1);
    frequency.into_iter().max_by_key(|(_, shards)| *shards).map_or(1, |(count, _)| count)
}

/// Writes NeMo's list in both forms, and tells what it has.
fn write_wdinfo(args: &IndexArgs, index: &DatasetIndex) -> Result<String> {
    let full = |record: &&ShardRecord| !marker(&args.dir.join(&record.file)).exists();
    let counts = index.shards.iter().filter(full).map(|record| record.samples);
    let chunk = args.chunk_size.unwrap_or_else(|| usual_count(counts));
    let listed = index.shards.iter().filter(full).filter(|record| record.samples == chunk);
    let info = WdInfo::new(listed.map(|record| record.file.clone()).collect(), chunk);
    for name in [WDINFO_JSON, WDINFO_PICKLE] {
        info.write(&args.dir.join(name))?;
    }
    let (shards, rest) = (info.tar_files.len(), index.samples - info.total_key_count);
    let mut note = format!("wdinfo: {shards} shards of {chunk} samples");
    if rest > 0 {
        note.push_str(&format!(
            "; {rest} samples in {} shards of other counts are not in it (--merge makes full ones)",
            index.shards.len() - shards
        ));
    }
    Ok(note)
}

/// Compares the lists that are there with the shards.
fn check_wdinfo(dir: &Path, index: &DatasetIndex) -> Result<()> {
    let counts: HashMap<&str, usize> = index.shards.iter().map(|shard| (shard.file.as_str(), shard.samples)).collect();
    for name in [WDINFO_JSON, WDINFO_PICKLE] {
        let list = dir.join(name);
        if !list.exists() {
            continue;
        }
        let info = WdInfo::read(&list)?;
        for shard in &info.tar_files {
            let found = match counts.get(shard.as_str()) {
                Some(count) if *count == info.chunk_size => continue,
                Some(count) => format!("holds {count}"),
                None => "is not there".to_owned(),
            };
            return Err(IndexError::WdInfo { list, shard: shard.clone(), expected: info.chunk_size, found }.into());
        }
    }
    Ok(())
}

/// The shards of a merge, old and new; written before anything changes.
#[derive(Serialize, Deserialize)]
struct Journal {
    inputs: Vec<String>,
    outputs: Vec<String>,
    /// Free-form facts of the index, which is gone until there is a new one.
    meta: Map<String, Value>,
    /// True if the outputs are complete. Until then a killed merge is undone, and finished from then on.
    written: bool,
}

/// Replaces the shards that are not full; tells what it did.
fn merge(args: &IndexArgs, meta: &Map<String, Value>, control: &mut Control<'_>) -> Result<Option<String>> {
    let dir = &args.dir;
    let found = shards_of(dir)?;
    let counts = found.par_iter().map(|tar| Ok(TarShard::open(&tar.path)?.len())).collect::<Result<Vec<_>>>()?;
    let marked: Vec<bool> = found.iter().map(FoundTar::is_marked).collect();
    let full = counts.iter().zip(&marked).filter(|(_, marked)| !**marked).map(|(count, _)| *count);
    let chunk = args.chunk_size.unwrap_or_else(|| usual_count(full));
    let parts = (found.iter().zip(&counts).zip(&marked)).filter(|((_, count), marked)| **marked || **count < chunk);
    let inputs: Vec<FoundTar> = parts.map(|((tar, _), _)| tar.clone()).collect();
    if inputs.len() < 2 {
        return Ok(None);
    }
    let everything = Selection::everything();
    let plan = Plan::new(inputs.clone(), &everything, true, control)?;
    let account = plan.account(0..inputs.len());
    if let Some(detail) = account.notes.first().cloned().or_else(|| reasons(&account)) {
        return Err(IndexError::NotMergeable { dir: dir.clone(), detail }.into());
    }
    let first = found.iter().filter_map(|tar| merged_number(&tar.name)).max().map_or(0, |last| last + 1);
    let name = |number: usize| format!("{MERGED}{:05}.tar", first + number);
    let shards = plan.shards(chunk);
    let mut journal = Journal {
        inputs: inputs.iter().map(|tar| tar.name.clone()).collect(),
        outputs: (0..shards).map(name).collect(),
        meta: meta.clone(),
        written: false,
    };
    write_json(&dir.join(JOURNAL_FILE), &journal)?;
    plan.write(0..shards, chunk, &|number| dir.join(name(number)), &|_, _| true, control)?;
    if plan.samples() % chunk > 0 {
        write_bytes(&marker(&dir.join(name(shards - 1))), b"")?;
    }
    move_quarantine(dir, &plan, &journal, chunk)?;
    journal.written = true;
    write_json(&dir.join(JOURNAL_FILE), &journal)?;
    finish_merge(dir)?;
    let samples = plan.samples();
    Ok(Some(format!("{} shards that were not full, of {samples} samples, merged into {shards}", inputs.len())))
}

/// Lists the samples of the quarantine that lie in merged shards in their new shards, too.
fn move_quarantine(dir: &Path, plan: &Plan<'_>, journal: &Journal, chunk: usize) -> Result<()> {
    let mut list = Quarantine::read(dir)?;
    for record in list.records().collect::<Vec<_>>() {
        let Some(input) = journal.inputs.iter().position(|name| *name == record.shard) else { continue };
        if let Some(place) = plan.place(input, &record.key)? {
            list.insert(journal.outputs[place / chunk].clone(), record.key, record.reason);
        }
    }
    write_quarantine(dir, &list)
}

/// Writes the list, unless there is none and nothing to list.
fn write_quarantine(dir: &Path, list: &Quarantine) -> Result<()> {
    if list.is_empty() && !dir.join(QUARANTINE_FILE).exists() {
        return Ok(());
    }
    Ok(list.write(dir)?)
}

fn reasons(account: &Account) -> Option<String> {
    let all: Vec<String> =
        account.left_out.iter().map(|(reason, count)| format!("{count} samples: {reason}")).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

fn merged_number(name: &str) -> Option<usize> {
    name.strip_prefix(MERGED)?.strip_suffix(".tar")?.parse().ok()
}

/// Finishes or undoes a merge that was killed. One that is finished leaves its journal, for there is no index now; what
/// the index is to say beside the shards is returned.
fn finish_merge(dir: &Path) -> Result<Option<Map<String, Value>>> {
    let path = dir.join(JOURNAL_FILE);
    let Some(journal) = read_json::<Journal>(&path)? else { return Ok(None) };
    let gone = if journal.written { &journal.inputs } else { &journal.outputs };
    if let Some(name) = gone.iter().find(|name| name.contains(['/', '\\']) || !is_shard_name(name)) {
        let detail = format!("`{name}` is no shard of this folder");
        return Err(calotype_data::Error::BadIndex { path, detail }.into());
    }
    for name in gone {
        let shard = dir.join(name);
        for file in [marker(&shard), partial_name(&shard), shard] {
            remove(&file)?;
        }
    }
    sync_folder(dir).map_err(Error::io("synchronise folder", dir))?;
    let list = Quarantine::read(dir)?;
    write_quarantine(dir, &list.records().filter(|record| !gone.contains(&record.shard)).collect())?;
    if !journal.written {
        remove(&path)?;
        return Ok(None);
    }
    // The old index names shards that are gone.
    remove(&dir.join(INDEX_FILE))?;
    Ok(Some(journal.meta))
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", file)(e)),
        _ => Ok(()),
    }
}
