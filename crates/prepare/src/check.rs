//! The stage that reads all samples and lists the corrupt and odd ones.
//!
//! Shards are taken one after the other and their samples in parallel, so memory is that of a decoded image for each
//! thread. Facts that are compared over all samples (keys, parts, shapes) are kept as hashes and numbers.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use calotype_core::output::check_file;
use calotype_core::{TextFault, decode_text};
use calotype_data::files::{read_json, write_json};
use calotype_data::image::{DecodeNotes, DecodeOptions, RgbImage};
use calotype_data::json;
use calotype_data::npy::NpyArray;
use calotype_data::pickled::{PICKLE_PART, read_arrays};
use calotype_data::quarantine::QUARANTINE_FILE;
use calotype_data::source::folder::IMAGE_EXTENSIONS;
use calotype_data::source::{self, SourceKind};
use calotype_data::webdataset::{DatasetIndex, ShardRecord, TarShard};
use calotype_data::{Control, Quarantine, SampleRef};
use rayon::prelude::*;
use serde::Serialize;

use crate::captions::CaptionCount;
use crate::tars::{FoundTar, find_tars, refuse_named_twice, refuse_other_kinds, short_hash};
use crate::words::counted;
use crate::{Account, Error, Result};

/// Samples that are checked between two reports of progress.
const STEP: usize = 512;

/// Share of the samples that must agree in a part or shape for others to be odd, in tenths.
const MAJORITY_TENTHS: usize = 9;

/// Share of the samples that must be more than matched by those with a caption for others to be odd, in tenths: training
/// that needs captions ends at the first sample without.
const CAPTIONED_TENTHS: usize = 5;

/// Different forms of samples that are told apart; data without any regularity have no majority to compare with.
const MOST_FORMS: usize = 4096;

/// Settings of the stage.
#[derive(Clone, Debug, clap::Args)]
pub struct CheckArgs {
    /// Folders of shards (searched with their subfolders), or single tar files.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Write the list of samples that are corrupt or odd into each folder's quarantine.json: training leaves them out. What
    /// the list said before of the shards that are checked is replaced.
    #[arg(long)]
    pub quarantine: bool,
    /// Kinds of problems that are not looked for, "empty-caption,odd-array".
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KINDS")]
    pub ignore: Vec<Problem>,
    /// Images with a shorter side than this are odd.
    #[arg(long, value_name = "PIXELS", default_value_t = 1)]
    pub min_side: usize,
    /// Images whose longer side is more than so many times the shorter one are odd.
    #[arg(long, value_name = "RATIO", value_parser = calotype_core::numbers::not_negative)]
    pub max_aspect: Option<f64>,
    /// Look for samples whose images (without images: all parts) are the same, byte for byte.
    #[arg(long)]
    pub duplicates: bool,
    /// Write the findings, all of them, to this file as JSON.
    #[arg(long, value_name = "FILE")]
    pub findings: Option<PathBuf>,
    /// Examples that are shown of each kind of problem.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub examples: usize,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// A shard that is cut or no tar.
    DamagedShard,
    /// A shard whose samples' members do not lie together.
    ScatteredShard,
    /// A shard with several samples of one key, which readers refuse.
    RepeatedKey,
    /// A shard that differs from its index.
    OtherShard,
    /// An image that cannot be decoded, or not to its end.
    BadImage,
    /// A caption that is not UTF-8.
    BadCaption,
    /// A part that is not JSON but should be.
    BadJson,
    /// Arrays that cannot be read.
    BadArray,
    /// Arrays with NaN or infinite values.
    NotFinite,
    /// An image below --min-side.
    SmallImage,
    /// An image beyond --max-aspect.
    LongImage,
    /// A caption without any letter.
    EmptyCaption,
    /// An array of nothing but zeros.
    ZeroArray,
    /// A sample that lacks a part that nine in ten have, or a caption, if more than half have one.
    MissingPart,
    /// An array of another shape or type than nine in ten have.
    OddArray,
    /// A key that a sample of another shard has.
    DuplicateKey,
    /// The same content as another sample.
    DuplicateContent,
}

impl Problem {
    /// True if it makes a sample unusable, and not only odd.
    pub fn is_corrupt(self) -> bool {
        self <= Problem::NotFinite
    }

    /// True if it concerns a whole shard, which no quarantine leaves out.
    fn is_of_shard(self) -> bool {
        self <= Problem::OtherShard
    }

    /// True if `data reorganize` mends it, with nothing lost.
    fn is_mended_by_reorganizing(self) -> bool {
        matches!(self, Problem::ScatteredShard | Problem::RepeatedKey)
    }

    /// The kind in a few words.
    fn name(self) -> &'static str {
        match self {
            Problem::DamagedShard => "damaged shard",
            Problem::ScatteredShard => "shard whose samples do not lie together",
            Problem::RepeatedKey => "shard with a key more than once",
            Problem::OtherShard => "shard not as its index says",
            Problem::BadImage => "image that cannot be decoded",
            Problem::BadCaption => "caption that is not UTF-8",
            Problem::BadJson => "malformed JSON",
            Problem::BadArray => "array that cannot be read",
            Problem::NotFinite => "array with NaN or infinite values",
            Problem::SmallImage => "small image",
            Problem::LongImage => "long image",
            Problem::EmptyCaption => "empty caption",
            Problem::ZeroArray => "array of zeros",
            Problem::MissingPart => "missing part",
            Problem::OddArray => "array of another shape or type",
            Problem::DuplicateKey => "duplicate key",
            Problem::DuplicateContent => "duplicate content",
        }
    }
}

/// The error of a check that found corrupt samples.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// Corrupt samples or shards, with the table of everything that was found.
    #[error("corrupt samples or shards: {corrupt}\n{table}\n{advice}")]
    Corrupt {
        /// Number of samples.
        corrupt: usize,
        /// All findings, by kind.
        table: String,
        /// The remedy.
        advice: &'static str,
    },
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Kind.
    pub problem: Problem,
    /// The shard.
    pub shard: String,
    /// The sample; empty where it is the whole shard.
    pub key: String,
    /// The fault in detail.
    pub detail: String,
    /// Number of the folder among the paths.
    #[serde(skip)]
    folder: usize,
}

/// Content of the file of `--findings`.
#[derive(Serialize)]
struct Findings<'a> {
    shards: usize,
    samples: u64,
    bytes: u64,
    shards_without_checksum: usize,
    counts: &'a BTreeMap<Problem, u64>,
    findings: &'a [Finding],
}

/// Whether a file holds what `--findings` wrote.
fn is_findings(path: &Path) -> bool {
    let found = read_json::<serde_json::Value>(path).ok().flatten();
    found.is_some_and(|found| ["findings", "counts"].iter().all(|key| found.get(key).is_some()))
}

/// Checks everything.
///
/// # Errors
/// [`Error::Check`] if something is corrupt that no quarantine lists, [`Error::Data`], [`Error::Io`].
pub fn run(args: &CheckArgs, control: &mut Control<'_>) -> Result<Account> {
    let started = Instant::now();
    if let Some(path) = &args.findings {
        check_file(path, "a list of findings", is_findings)
            .map_err(|problem| Error::Usage(format!("--findings {problem}")))?;
    }
    let mut check = Check::new(args, folders(args)?);
    check.read(control)?;
    check.compare()?;
    check
        .findings
        .sort_by(|a, b| (a.folder, &a.shard, &a.key, a.problem).cmp(&(b.folder, &b.shard, &b.key, b.problem)));
    let mut account = check.account();
    if let Some(path) = &args.findings {
        check.write_json(path)?;
    }
    if args.quarantine {
        account.notes.extend(check.write_quarantine()?);
    }
    account.seconds = started.elapsed().as_secs_f64();
    check.verdict(&account)?;
    account.notes.extend(check.table().lines().map(str::to_owned));
    if check.unlisted()?.iter().any(|finding| !finding.problem.is_of_shard()) {
        let note = "training meets these samples all the same; --quarantine has it leave them out";
        account.notes.push(note.to_owned());
    }
    Ok(account)
}

/// A folder of shards, or a single tar file's.
struct Folder {
    dir: PathBuf,
    shards: Vec<FoundTar>,
    index: Option<DatasetIndex>,
}

fn folders(args: &CheckArgs) -> Result<Vec<Folder>> {
    let mut folders = Vec::new();
    for path in &args.paths {
        let shards = find_tars(std::slice::from_ref(path))?;
        match shards.is_empty() {
            true => refuse_other_kinds(path, "check")?,
            false => source::tell_beside(path, SourceKind::Webdataset),
        }
        let (dir, index) = match path.is_dir() {
            true => (path.clone(), DatasetIndex::read(path)?),
            false => (path.parent().map(Path::to_path_buf).unwrap_or_default(), None),
        };
        if shards.is_empty() && index.is_none() {
            return Err(calotype_data::Error::EmptyDataset { path: path.clone() }.into());
        }
        folders.push(Folder { dir, shards, index });
    }
    refuse_named_twice(args.paths.iter().zip(&folders).map(|(path, folder)| (path.as_path(), &*folder.shards)))?;
    Ok(folders)
}

/// Type and shape of an array.
type ArrayForm = (&'static str, Vec<usize>);

/// A sample's parts; arrays, those of pickles under their own names, with type and shape.
type Form = Vec<(String, Option<ArrayForm>)>;

/// The parts of one sample that are looked at.
#[derive(Default)]
struct Looked {
    problems: Vec<(Problem, String)>,
    form: Form,
    content: Option<[u8; 16]>,
}

/// The check in the making.
struct Check<'a> {
    args: &'a CheckArgs,
    folders: Vec<Folder>,
    findings: Vec<Finding>,
    shards: usize,
    samples: u64,
    bytes: u64,
    without_checksum: usize,
    /// Images that are turned, and transparent ones.
    images: DecodeNotes,
    /// Place where each key, and each content, was seen first: folder and shard.
    keys: HashMap<[u8; 16], (u32, u32)>,
    contents: HashMap<[u8; 16], (u32, u32, u32)>,
    forms: HashMap<Form, u32>,
    /// Number of the form of each sample, by folder and shard.
    form_of: BTreeMap<(usize, usize), Vec<u32>>,
}

impl<'a> Check<'a> {
    fn new(args: &'a CheckArgs, folders: Vec<Folder>) -> Self {
        Check {
            args,
            folders,
            findings: Vec::new(),
            shards: 0,
            samples: 0,
            bytes: 0,
            without_checksum: 0,
            images: DecodeNotes::default(),
            keys: HashMap::new(),
            contents: HashMap::new(),
            forms: HashMap::new(),
            form_of: BTreeMap::new(),
        }
    }

    fn find(&mut self, problem: Problem, folder: usize, shard: &str, key: &str, detail: String) {
        if !self.args.ignore.contains(&problem) {
            self.findings.push(Finding { problem, shard: shard.to_owned(), key: key.to_owned(), detail, folder });
        }
    }

    fn read(&mut self, control: &mut Control<'_>) -> Result<()> {
        // Samples that the indices tell; shards without are counted when they are opened.
        let indices = self.folders.iter().filter_map(|folder| folder.index.as_ref());
        let known: usize = indices.flat_map(|index| &index.shards).map(|record| record.samples).sum();
        let mut done = 0;
        for folder in 0..self.folders.len() {
            let found = self.folders[folder].shards.clone();
            let records: HashMap<String, ShardRecord> = (self.folders[folder].index.iter())
                .flat_map(|index| index.shards.iter().map(|record| (record.file.clone(), record.clone())))
                .collect();
            for name in records.keys().filter(|name| !found.iter().any(|tar| tar.name == **name)) {
                self.find(Problem::OtherShard, folder, name, "", "is named by the index but absent".to_owned());
            }
            for (number, tar) in found.iter().enumerate() {
                self.read_shard((folder, number), tar, records.get(&tar.name), &mut |samples, in_shard| {
                    Ok(control.checkpoint("check", samples, known.max(in_shard))?)
                })?;
                done += 1;
            }
        }
        control.report("check", self.samples as usize, self.samples as usize);
        self.shards = done;
        Ok(())
    }

    fn read_shard(
        &mut self,
        (folder, number): (usize, usize),
        tar: &FoundTar,
        record: Option<&ShardRecord>,
        checkpoint: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let shard = TarShard::open(&tar.path)?;
        self.bytes += shard.bytes();
        if let Some(damage) = shard.damage() {
            self.find(Problem::DamagedShard, folder, &tar.name, "", damage.to_string());
        }
        if shard.scattered() > 0 {
            let detail = format!(
                "members of {} samples lie apart, as if sorted by kind; `data reorganize` puts them together",
                shard.scattered()
            );
            self.find(Problem::ScatteredShard, folder, &tar.name, "", detail);
        }
        if let Some(detail) = repeated_keys(&shard) {
            self.find(Problem::RepeatedKey, folder, &tar.name, "", detail);
        }
        match record.map(|record| differs(record, &shard)) {
            Some(Some(difference)) => self.find(Problem::OtherShard, folder, &tar.name, "", difference),
            Some(None) if record.is_some_and(|record| record.blake3.is_some()) => {}
            _ => self.without_checksum += 1,
        }
        let mut forms = Vec::with_capacity(shard.len());
        for first in (0..shard.len()).step_by(STEP) {
            let before = self.samples as usize;
            checkpoint(before + first, before + shard.len())?;
            let numbers: Vec<usize> = (first..(first + STEP).min(shard.len())).collect();
            let looked: Vec<Option<Looked>> =
                numbers.par_iter().map(|i| shard.get(*i).map(|sample| self.look(&sample))).collect();
            for (i, looked) in numbers.into_iter().zip(looked) {
                if let (Some(sample), Some(looked)) = (shard.get(i), looked) {
                    forms.push(self.note(folder, number, i, &tar.name, sample.key(), looked));
                }
            }
        }
        self.samples += shard.len() as u64;
        self.form_of.insert((folder, number), forms);
        Ok(())
    }

    /// Keeps what was found in a sample; returns the number of its form.
    fn note(&mut self, folder: usize, number: usize, i: usize, shard: &str, key: &str, looked: Looked) -> u32 {
        for (problem, detail) in looked.problems {
            self.find(problem, folder, shard, key, detail);
        }
        // The first of equal samples is kept.
        let place = (folder as u32, number as u32);
        let hash = short_hash(key);
        match self.keys.get(&hash).copied() {
            None => drop(self.keys.insert(hash, place)),
            // The same shard: its own fault, which no quarantine mends.
            Some(first) if first == place => {}
            Some(first) => {
                let detail = format!("is in {} too", self.shard_name(first));
                self.find(Problem::DuplicateKey, folder, shard, key, detail);
            }
        }
        if let Some(content) = looked.content {
            let first = *self.contents.entry(content).or_insert((place.0, place.1, i as u32));
            if first != (place.0, place.1, i as u32) {
                let detail =
                    format!("has the content of sample {} of {}", first.2, self.shard_name((first.0, first.1)));
                self.find(Problem::DuplicateContent, folder, shard, key, detail);
            }
        }
        let next = self.forms.len() as u32;
        match self.forms.get(&looked.form) {
            Some(known) => *known,
            None if self.forms.len() < MOST_FORMS => *self.forms.entry(looked.form).or_insert(next),
            None => u32::MAX,
        }
    }

    fn shard_name(&self, (folder, number): (u32, u32)) -> &str {
        &self.folders[folder as usize].shards[number as usize].name
    }

    /// Reads all parts of a sample.
    fn look(&self, sample: &SampleRef<'_>) -> Looked {
        let mut looked = Looked::default();
        let mut content = blake3::Hasher::new();
        let images = sample.parts().any(|(part, _)| kind_of(part) == Part::Image);
        for (part, bytes) in sample.parts() {
            let kind = kind_of(part);
            if self.args.duplicates && (kind == Part::Image || !images) {
                content.update(format!("{part}\t{}\t", bytes.len()).as_bytes()).update(bytes);
            }
            looked.form.push((part.to_owned(), None));
            match kind {
                Part::Image => self.look_at_image(sample.key(), part, bytes, &mut looked),
                Part::Caption => look_at_caption(part, bytes, &mut looked),
                Part::Json => look_at_json(part, bytes, &mut looked),
                Part::Array => match NpyArray::from_bytes(bytes) {
                    Ok(array) => look_at_array(part, &array, &mut looked),
                    Err(error) => looked.problems.push((Problem::BadArray, format!("`{part}`: {error}"))),
                },
                Part::Pickle => match read_arrays(sample.key(), bytes) {
                    Ok(arrays) => arrays.iter().for_each(|(name, array)| look_at_array(name, array, &mut looked)),
                    Err(error) => looked.problems.push((Problem::BadArray, error.to_string())),
                },
                Part::Other => {}
            }
        }
        looked.form.sort();
        if self.args.duplicates {
            let mut short = [0; 16];
            short.copy_from_slice(&content.finalize().as_bytes()[..16]);
            looked.content = Some(short);
        }
        looked
    }

    fn look_at_image(&self, key: &str, part: &str, bytes: &[u8], looked: &mut Looked) {
        let image = match RgbImage::decode_noting(key, bytes, &DecodeOptions::default()) {
            Ok((image, found)) => {
                self.images.add(&found);
                image
            }
            Err(error) => return looked.problems.push((Problem::BadImage, format!("`{part}`: {error}"))),
        };
        let (short, long) = (image.width().min(image.height()), image.width().max(image.height()));
        let size = format!("`{part}` has {} x {} pixels", image.width(), image.height());
        if short < self.args.min_side {
            looked.problems.push((Problem::SmallImage, size.clone()));
        }
        if self.args.max_aspect.is_some_and(|most| long as f64 > most * short as f64) {
            looked.problems.push((Problem::LongImage, size));
        }
    }

    /// Compares the samples' forms with what most have.
    fn compare(&mut self) -> Result<()> {
        let mut count = vec![0usize; self.forms.len()];
        let numbers = self.form_of.values().flatten().filter(|form| **form != u32::MAX);
        numbers.for_each(|form| count[*form as usize] += 1);
        let usual = Usual::of(&self.forms, &count, self.samples as usize);
        let odd: HashMap<u32, Vec<(Problem, String)>> = (self.forms.iter())
            .map(|(form, number)| (*number, usual.oddities(form)))
            .filter(|(_, oddities)| !oddities.is_empty())
            .collect();
        if odd.is_empty() {
            return Ok(());
        }
        let form_of = std::mem::take(&mut self.form_of);
        for ((folder, number), forms) in &form_of {
            if !forms.iter().any(|form| odd.contains_key(form)) {
                continue;
            }
            let tar = self.folders[*folder].shards[*number].clone();
            let shard = TarShard::open(&tar.path)?;
            for (sample, form) in shard.samples().zip(forms) {
                for (problem, detail) in odd.get(form).into_iter().flatten() {
                    self.find(*problem, *folder, &tar.name, sample.key(), detail.clone());
                }
            }
        }
        self.form_of = form_of;
        Ok(())
    }

    fn counts(&self) -> BTreeMap<Problem, u64> {
        let mut counts = BTreeMap::new();
        self.findings.iter().for_each(|finding| *counts.entry(finding.problem).or_default() += 1);
        counts
    }

    /// Captions of all samples, by the forms that samples have.
    fn captions(&self) -> CaptionCount {
        let mut of_form = vec![0u64; self.forms.len()];
        for number in self.form_of.values().flatten() {
            if let Some(count) = of_form.get_mut(*number as usize) {
                *count += 1;
            }
        }
        let mut captions = CaptionCount::default();
        for (form, number) in &self.forms {
            let count = of_form.get(*number as usize).copied().unwrap_or(0);
            captions.add(form.iter().map(|(part, _)| part.as_str()), count);
        }
        captions
    }

    /// `written` are the good samples; a sample with several problems counts as left out once, by the first of them.
    fn account(&self) -> Account {
        let mut account = Account { taken: self.samples, bytes: self.bytes, looks_only: true, ..Account::new("check") };
        let of_samples = self.findings.iter().filter(|finding| !finding.problem.is_of_shard());
        let mut last = None;
        for finding in of_samples {
            let place = (finding.folder, &finding.shard, &finding.key);
            if last.replace(place) != Some(place) {
                account.leave_out(finding.problem.name());
            }
        }
        account.written = account.taken.saturating_sub(account.left_out_in_all());
        let images = self.images.sentences(&DecodeOptions::default());
        account.notes.extend(images.iter().map(|change| format!("whenever they are read: {change}")));
        if self.images.tagged() + self.images.transparent() > 0 {
            account.notes.push("data.orient and data.background of the recipes choose otherwise".to_owned());
        }
        account.notes.extend(self.captions().notes());
        if self.without_checksum > 0 {
            account.notes.push(format!("without a checksum to compare: {}", counted(self.without_checksum, "shard")));
        }
        account
    }

    fn write_json(&self, path: &Path) -> Result<()> {
        let (counts, findings) = (&self.counts(), &self.findings);
        let (shards, samples, bytes) = (self.shards, self.samples, self.bytes);
        let shards_without_checksum = self.without_checksum;
        Ok(write_json(path, &Findings { shards, samples, bytes, shards_without_checksum, counts, findings })?)
    }

    /// Writes the list of each folder. Records of shards that were not checked now stay.
    fn write_quarantine(&self) -> Result<Vec<String>> {
        let mut notes = Vec::new();
        let dirs: BTreeSet<&Path> = self.folders.iter().map(|folder| folder.dir.as_path()).collect();
        for dir in dirs {
            let of_dir = |folder: &&Folder| folder.dir == dir;
            let checked = self.folders.iter().filter(of_dir).flat_map(|folder| &folder.shards);
            let checked: HashSet<&str> = checked.map(|tar| tar.name.as_str()).collect();
            let before = Quarantine::read(dir)?;
            let mut list: Quarantine =
                before.records().filter(|record| !checked.contains(record.shard.as_str())).collect();
            for finding in self.findings.iter().filter(|finding| of_dir(&&self.folders[finding.folder])) {
                if !finding.problem.is_of_shard() {
                    let reason = format!("{}: {}", finding.problem.name(), finding.detail);
                    list.insert(finding.shard.clone(), finding.key.clone(), reason);
                }
            }
            list.write(dir)?;
            let (samples, file) = (counted(list.len(), "sample"), dir.join(QUARANTINE_FILE));
            notes.push(format!("{samples} listed in {}, which training leaves out", file.display()));
        }
        Ok(notes)
    }

    /// All kinds of problems with their counts and some examples.
    fn table(&self) -> String {
        let mut table = String::new();
        for (problem, count) in self.counts() {
            let grade = if problem.is_corrupt() { "corrupt" } else { "odd" };
            // Writing to a text cannot fail.
            let _ = writeln!(table, "{count:>8}  {grade:<8}{}", problem.name());
            let of_kind = self.findings.iter().filter(|finding| finding.problem == problem);
            for Finding { shard, key, detail, folder, .. } in of_kind.take(self.args.examples) {
                let shard = self.folders[*folder].dir.join(shard);
                let separator = if key.is_empty() { "" } else { " " };
                let _ = writeln!(table, "            {}{separator}{key}: {detail}", shard.display());
            }
            let more = count.saturating_sub(self.args.examples as u64);
            if more > 0 {
                let _ = writeln!(table, "            and {more} more, which --findings FILE lists");
            }
        }
        table.truncate(table.trim_end().len());
        table
    }

    /// What was found and is in no quarantine.
    fn unlisted(&self) -> Result<Vec<&Finding>> {
        let lists = self.folders.iter().map(|folder| Ok(Quarantine::read(&folder.dir)?)).collect::<Result<Vec<_>>>()?;
        let listed = |finding: &&Finding| lists[finding.folder].contains(&finding.shard, &finding.key);
        Ok(self.findings.iter().filter(|finding| !listed(finding)).collect())
    }

    /// Fails if there is something corrupt that training would come upon.
    fn verdict(&self, account: &Account) -> Result<()> {
        let corrupt = self.unlisted()?.into_iter().filter(|finding| finding.problem.is_corrupt());
        let (shards, samples): (Vec<&Finding>, Vec<&Finding>) =
            corrupt.partition(|finding| finding.problem.is_of_shard());
        let advice = match (shards.len(), samples.len()) {
            (0, 0) => return Ok(()),
            (0, _) => "use --quarantine to have training leave them out",
            _ if shards.iter().all(|finding| finding.problem.is_mended_by_reorganizing()) => {
                "write the shards anew with `data reorganize`, which puts samples together and keeps the first of equal keys; for \
                 samples, use --quarantine"
            }
            _ => "copy the shards again, or `data reorganize --skip-corrupt` them; for samples, use --quarantine",
        };
        let table = format!("{account}\n{}", self.table());
        Err(Error::Check(CheckError::Corrupt { corrupt: shards.len() + samples.len(), table, advice }))
    }
}

/// What is wrong with the keys of a shard, in words.
fn repeated_keys(shard: &TarShard) -> Option<String> {
    let mut seen = HashSet::with_capacity(shard.len());
    let mut repeated =
        shard.samples().map(|sample| sample.key().to_owned()).filter(|key| !seen.insert(short_hash(key)));
    let first = repeated.next()?;
    let samples = counted(1 + repeated.count(), "sample");
    Some(format!(
        "`{first}` is there more than once ({samples} with the key of an earlier one); training and `data convert` refuse the shard, and \
         `data reorganize` keeps the first of equal keys"
    ))
}

/// The difference of a shard from its index's record, in words.
fn differs(record: &ShardRecord, shard: &TarShard) -> Option<String> {
    if record.bytes != shard.bytes() {
        return Some(format!("has {} bytes, its index says {}", shard.bytes(), record.bytes));
    }
    if record.samples != shard.len() {
        return Some(format!("holds {} samples, its index says {}", shard.len(), record.samples));
    }
    let found = record.blake3.as_ref().map(|_| shard.blake3());
    (found != record.blake3).then(|| {
        let (found, expected) = (found.unwrap_or_default(), record.blake3.clone().unwrap_or_default());
        format!("has blake3 {found}, its index says {expected}")
    })
}

/// What a sample may have: a part of this name, or an image of any type. Types of images mix in one dataset, and readers
/// take whichever is there: `png` here and `jpg` there are one part, and so are `mask.png` and `mask.jpg`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Had<'n> {
    /// The image, by what is in front of its type: nothing, or `mask`.
    Image(&'n str),
    Part(&'n str),
}

impl<'n> Had<'n> {
    fn of(name: &'n str) -> Self {
        match kind_of(name) {
            Part::Image => Had::Image(name.rsplit_once('.').map_or("", |(before, _)| before)),
            _ => Had::Part(name),
        }
    }

    /// All of a form, each once.
    fn all(form: &'n Form) -> BTreeSet<Self> {
        form.iter().map(|(name, _)| Had::of(name)).collect()
    }

    /// True if `count` of `samples` have it, and so many that those without are odd.
    fn is_usual(self, count: usize, samples: usize) -> bool {
        match self {
            Had::Part(name) if kind_of(name) == Part::Caption => count * 10 > samples * CAPTIONED_TENTHS,
            _ => count * 10 >= samples * MAJORITY_TENTHS,
        }
    }
}

impl fmt::Display for Had<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Had::Image("") => f.write_str("image"),
            Had::Image(name) => write!(f, "image `{name}`"),
            Had::Part(name) => write!(f, "`{name}`"),
        }
    }
}

/// Parts and shapes that most samples have.
struct Usual<'n> {
    /// Parts and arrays that most samples have.
    parts: Vec<Had<'n>>,
    /// Type and shape that nine in ten arrays of a name have.
    arrays: HashMap<String, ArrayForm>,
}

impl<'n> Usual<'n> {
    fn of(forms: &'n HashMap<Form, u32>, count: &[usize], samples: usize) -> Self {
        let mut parts: BTreeMap<Had<'n>, usize> = BTreeMap::new();
        let mut arrays: HashMap<&str, HashMap<&ArrayForm, usize>> = HashMap::new();
        for (form, number) in forms {
            let count = count[*number as usize];
            Had::all(form).into_iter().for_each(|had| *parts.entry(had).or_default() += count);
            for (name, array) in form {
                if let Some(array) = array {
                    *arrays.entry(name).or_default().entry(array).or_default() += count;
                }
            }
        }
        let most = |count: usize, all: usize| count * 10 >= all * MAJORITY_TENTHS;
        let usual = parts.into_iter().filter(|(had, count)| had.is_usual(*count, samples)).map(|(had, _)| had);
        let usual = usual.collect();
        let usual_array = |(name, counts): (&str, HashMap<&ArrayForm, usize>)| {
            let all: usize = counts.values().sum();
            let (form, _) = counts.into_iter().find(|(_, count)| most(*count, all))?;
            Some((name.to_owned(), form.clone()))
        };
        Usual { parts: usual, arrays: arrays.into_iter().filter_map(usual_array).collect() }
    }

    fn oddities(&self, form: &Form) -> Vec<(Problem, String)> {
        let all = Had::all(form);
        let missing = self.parts.iter().filter(|had| !all.contains(had));
        let mut odd: Vec<(Problem, String)> =
            missing.map(|had| (Problem::MissingPart, format!("no {had}, which most samples have"))).collect();
        for (name, array) in form {
            if let (Some(array), Some(usual)) = (array, self.arrays.get(name))
                && array != usual
            {
                let detail = format!("`{name}` is {} {:?}, most are {} {:?}", array.0, array.1, usual.0, usual.1);
                odd.push((Problem::OddArray, detail));
            }
        }
        odd
    }
}

/// Kind of a part, by its extension.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Image,
    Caption,
    Json,
    Array,
    Pickle,
    Other,
}

fn kind_of(part: &str) -> Part {
    match part.rsplit('.').next().unwrap_or(part) {
        image if IMAGE_EXTENSIONS.contains(&image) => Part::Image,
        "txt" | "text" | "caption" => Part::Caption,
        "json" => Part::Json,
        "npy" => Part::Array,
        PICKLE_PART => Part::Pickle,
        _ => Part::Other,
    }
}

fn look_at_caption(part: &str, bytes: &[u8], looked: &mut Looked) {
    match decode_text(bytes) {
        Err(fault) => looked.problems.push((Problem::BadCaption, format!("`{part}` {fault}"))),
        // A shard's parts are read as they lie there.
        Ok(Cow::Owned(_)) => looked.problems.push((Problem::BadCaption, format!("`{part}` {}", TextFault::Utf16))),
        Ok(text) if text.trim().is_empty() => {
            looked.problems.push((Problem::EmptyCaption, format!("`{part}` is empty")))
        }
        Ok(_) => {}
    }
}

fn look_at_json(part: &str, bytes: &[u8], looked: &mut Looked) {
    let found = match decode_text(bytes) {
        Err(fault) => Some(fault.to_string()),
        Ok(text) => json::check(text.as_bytes()).err().map(|error| error.to_string()),
    };
    if let Some(detail) = found {
        looked.problems.push((Problem::BadJson, format!("`{part}`: {detail}")));
    }
}

fn look_at_array(name: &str, array: &NpyArray, looked: &mut Looked) {
    let form = Some((array.data().descr(), array.shape().to_vec()));
    // An array of a `.npy` part is that part.
    match looked.form.iter_mut().find(|(known, _)| known == name) {
        Some(part) => part.1 = form,
        None => looked.form.push((name.to_owned(), form)),
    }
    let (finite, zero) = match array.to_f64() {
        Ok(values) => (values.iter().all(|x| x.is_finite()), values.iter().all(|x| *x == 0.0)),
        // Integers are finite, and zeros among them mean nothing.
        Err(_) => (true, false),
    };
    if !finite {
        looked.problems.push((Problem::NotFinite, format!("`{name}`")));
    } else if zero && !array.data().is_empty() {
        looked.problems.push((Problem::ZeroArray, format!("`{name}`")));
    }
}
