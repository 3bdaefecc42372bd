//! The stage that writes a dataset anew in another layout.
//!
//! A first pass over the input finds keys, parts and sizes, and divides the samples over shards; its findings are kept beside
//! the output, so that an array of jobs makes it once or finds the same. Then shards are written, each on its own
//! ([`crate::output`]).

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use calotype_data::files::{read_json, write_json};
use calotype_data::mds::encoding::RawKind;
use calotype_data::mds::{Encoding, KEY_COLUMN, MdsColumn, MdsDataset, MdsSchema};
use calotype_data::source::metadata::is_metadata;
use calotype_data::source::{self, CaptionChoice, SourceKind};
use calotype_data::{Control, Sample, SampleRef, Source, SourceOptions};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::captions::{CaptionCount, is_caption};
use crate::output::{Form, Job, Layout, Made, OutputArgs, divide, open_ledger};
use crate::paths::lies_in;
use crate::slices::SliceArgs;
use crate::{Account, Error, Result};

const STAGE: &str = "convert";

/// Name of the first pass's findings, beside the accounts of shards.
const PLAN: &str = "plan.json";

/// Samples looked at between two reports of progress.
const CHUNK: usize = 1024;

/// Settings of the stage.
#[derive(Clone, Debug, clap::Args)]
pub struct ConvertArgs {
    /// Dataset to read: a folder of tar shards (also of gzip), of MDS shards, of images (with metadata.jsonl or metadata.csv, caption files
    /// beside the images, or in folders by class) or of parquet files; a file; a pattern like x-{000..831}.tar; an address.
    pub input: String,
    /// Folder to write.
    pub out: PathBuf,
    /// Destination of the dataset.
    #[command(flatten)]
    pub output: OutputArgs,
    /// Kind of the input, if its content does not tell.
    #[arg(long, value_name = "KIND", value_parser = ["webdataset", "mds", "imagefolder", "parquet"])]
    pub from: Option<String>,
    /// Column of images in parquet files.
    #[arg(long, value_name = "NAME")]
    pub image_column: Option<String>,
    /// Column of captions in parquet files and metadata tables.
    #[arg(long, value_name = "NAME")]
    pub caption_column: Option<String>,
    /// Column of unique keys in parquet files.
    #[arg(long, value_name = "NAME")]
    pub key_column: Option<String>,
    /// Choice among several captions of an image: first; or random, by --caption-seed and the row's number. All of them stay
    /// in the samples' JSON.
    #[arg(long, value_enum, default_value = "first", value_name = "CHOICE")]
    pub captions: Captions,
    /// Seed of --captions random.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub caption_seed: u64,
    /// Extensions of caption files beside images, comma separated [default: txt,caption].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub caption_extensions: Vec<String>,
    /// Take the samples, too, that quarantine.json names.
    #[arg(long)]
    pub with_quarantined: bool,
    /// New names of parts (tar: extensions, MDS: columns), as OLD=NEW, comma separated: jpg=image,txt=caption.
    #[arg(long, value_name = "OLD=NEW", value_delimiter = ',', value_parser = parse_pair)]
    pub map: Vec<(String, String)>,
    /// Take these parts only, by their old names, comma separated [default: all].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub parts: Vec<String>,
    /// Encoding of an MDS column, as NAME=ENCODING, by its new name; may be repeated. By default jpg is jpeg, png is png, txt
    /// is str, json is json, npy is ndarray, cls is int, all others are bytes.
    #[arg(long, value_name = "NAME=ENCODING", value_parser = parse_pair)]
    pub encoding: Vec<(String, String)>,
    /// Treatment of samples without a part that others have; only MDS asks, whose samples are all alike.
    #[arg(long, value_enum, default_value = "fail")]
    pub missing: Missing,
    /// Write no column of keys to MDS.
    #[arg(long)]
    pub without_keys: bool,
    /// Take keys from the text of this part, by its old name.
    #[arg(long, value_name = "NAME")]
    pub key_part: Option<String>,
    /// Leave out samples that cannot be read, and rows of tables that cannot be used, and count them, instead of stopping
    /// there. Images are packed as they are, without a look into them: `data check` finds those that are damaged.
    #[arg(long)]
    pub skip_bad: bool,
    /// This process's slices of the work.
    #[command(flatten)]
    pub slices: SliceArgs,
}

/// Choice among several captions of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Captions {
    /// The first.
    First,
    /// Any, by the seed and the row's number.
    Random,
}

impl Captions {
    /// The choice with its seed.
    ///
    /// # Errors
    /// [`Error::Usage`] for a seed that chooses nothing.
    pub(crate) fn choice(self, seed: u64) -> Result<CaptionChoice> {
        match self {
            Captions::First if seed != 0 => {
                Err(Error::Usage(format!("--caption-seed {seed} has no effect without --captions random")))
            }
            Captions::First => Ok(CaptionChoice::First),
            Captions::Random => Ok(CaptionChoice::Random { seed }),
        }
    }
}

/// Treatment of samples that lack a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// The stage stops before anything is written.
    Fail,
    /// They are left out, and counted.
    LeaveOut,
    /// The part is empty there.
    Empty,
}

fn parse_pair(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => Ok((old.to_owned(), new.to_owned())),
        _ => Err(format!("`{text}` is no pair; write OLD=NEW")),
    }
}

/// The encoding that a part gets in MDS, by the last piece of its extension.
const ENCODINGS: [(&str, &str); 9] = [
    ("jpg", "jpeg"),
    ("jpeg", "jpeg"),
    ("png", "png"),
    ("txt", "str"),
    ("text", "str"),
    ("caption", "str"),
    ("json", "json"),
    ("npy", "ndarray"),
    ("cls", "int"),
];

/// A dataset to be read.
struct Input {
    source: Arc<dyn Source>,
    /// Columns that all samples have, where that is known.
    columns: Option<Vec<MdsColumn>>,
}

impl Input {
    fn open(args: &ConvertArgs) -> Result<Self> {
        let options = args.source_options()?;
        let path = Path::new(&args.input);
        let is_mds = match options.kind {
            Some(kind) => kind == SourceKind::Mds,
            None => source::detect(&args.input)? == Some(SourceKind::Mds),
        };
        if is_mds {
            source::tell_beside(path, SourceKind::Mds);
        }
        if !is_mds {
            return Ok(Input { source: source::open(&args.input, &options)?, columns: None });
        }
        let dataset = MdsDataset::open(path)?;
        let dataset = if options.quarantine { dataset.without_quarantined()? } else { dataset };
        let columns = Some(dataset.columns().to_vec());
        Ok(Input { source: Arc::new(dataset), columns })
    }

    fn len(&self) -> usize {
        self.source.len()
    }

    fn get(&self, i: usize) -> calotype_data::Result<Sample> {
        Ok(self.source.get(i)?.into_sample())
    }

    fn columns(&self) -> Option<&[MdsColumn]> {
        self.columns.as_deref()
    }

    /// True if every sample's key is its number.
    fn is_numbered(&self) -> bool {
        self.columns().is_some_and(|columns| !columns.iter().any(|column| column.name == KEY_COLUMN))
    }
}

impl ConvertArgs {
    /// Refuses to write into the folder that is read: the next start would find another dataset there.
    fn check_folders(&self) -> Result<()> {
        let input = Path::new(&self.input);
        let folder = if is_metadata(input) { input.parent().unwrap_or(input) } else { input };
        // A metadata table may be given by its name alone.
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        match folder.is_dir() && lies_in(&self.out, folder) {
            true => Err(Error::Usage(format!(
                "folder {} lies in the input {}; choose one beside it",
                self.out.display(),
                folder.display()
            ))),
            false => Ok(()),
        }
    }

    /// Refuses flags that say nothing about tar shards.
    fn check_output(&self) -> Result<()> {
        self.output.check()?;
        let of_mds = [
            (!self.encoding.is_empty(), "--encoding"),
            (self.missing != Missing::Fail, "--missing"),
            (self.without_keys, "--without-keys"),
        ];
        match of_mds.into_iter().find(|(given, _)| *given && self.output.to == Layout::Webdataset) {
            Some((_, flag)) => Err(Error::Usage(format!("{flag} has no effect on tar shards: it is of --to mds"))),
            None => Ok(()),
        }
    }

    /// Refuses flags that say nothing about the input.
    fn check_input(&self, options: &SourceOptions) -> Result<()> {
        match source::idle(&self.input, options)? {
            Some(idle) => {
                let flags = idle.sentence(|key| format!("--{}", key.replace('_', "-")));
                Err(Error::Usage(format!("{}: {flags}", self.input)))
            }
            None => Ok(()),
        }
    }

    fn source_options(&self) -> Result<SourceOptions> {
        let kind = match &self.from {
            Some(name) => Some(
                serde_json::from_value(Value::String(name.clone()))
                    .map_err(|e| Error::Usage(format!("--from {name}: {e}")))?,
            ),
            None => None,
        };
        let mut options = SourceOptions {
            kind,
            image_column: self.image_column.clone(),
            caption_column: self.caption_column.clone(),
            key_column: self.key_column.clone(),
            quarantine: !self.with_quarantined,
            captions: self.captions.choice(self.caption_seed)?,
            skip_bad: self.skip_bad,
            ..SourceOptions::default()
        };
        if !self.caption_extensions.is_empty() {
            options.caption_extensions = self.caption_extensions.clone();
        }
        Ok(options)
    }

    /// True if the stage goes on without a sample after this error of reading it.
    fn skips(&self, error: &calotype_data::Error) -> bool {
        use calotype_data::Error::{Fetch, Io};
        self.skip_bad && !matches!(error, Io { .. } | Fetch { .. })
    }
}

/// The first pass's findings.
#[derive(Serialize, Deserialize)]
struct Plan {
    /// First sample of each shard.
    starts: Vec<usize>,
    /// New keys of samples whose own would come twice, or cannot be written.
    renamed: BTreeMap<usize, String>,
    /// Names of parts, and how many samples have them.
    parts: BTreeMap<String, usize>,
    notes: Vec<String>,
}

/// The facts that turn a sample of the input into one of the output.
struct Conversion<'a> {
    args: &'a ConvertArgs,
    input: &'a Input,
    /// Columns whose elements are parts of their own.
    lists: Vec<&'a str>,
    renamed: BTreeMap<usize, String>,
    /// Names of parts that all samples must have.
    required: Vec<String>,
}

/// Converts the dataset.
///
/// # Errors
/// [`Error::Usage`] for settings that do not fit the dataset; those of reading, unless they are to be skipped, and of
/// writing; [`calotype_data::Error::Interrupted`].
pub fn run(args: &ConvertArgs, control: &mut Control<'_>) -> Result<Account> {
    convert(args, control).map_err(|error| match error {
        Error::Data(source) if source.concerns_one_sample() && !args.skip_bad => Error::OneSample { source },
        other => other,
    })
}

fn convert(args: &ConvertArgs, control: &mut Control<'_>) -> Result<Account> {
    args.check_output()?;
    args.check_folders()?;
    let input = Input::open(args)?;
    args.check_input(&args.source_options()?)?;
    let settings = settings(args, &input);
    let ledger = open_ledger(STAGE, &args.out, &settings)?;
    let mut conversion = Conversion::new(args, &input);
    let plan = match read_json::<Plan>(&ledger.join(PLAN))? {
        Some(plan) => plan,
        None => {
            let plan = conversion.plan(control)?;
            std::fs::create_dir_all(&ledger).map_err(Error::io("create folder", &ledger))?;
            write_json(&ledger.join(PLAN), &plan)?;
            plan
        }
    };
    let form = conversion.form(&plan.parts)?;
    conversion.renamed = plan.renamed;
    let make = |i: usize| conversion.sample(i);
    let job = Job {
        stage: STAGE,
        out: &args.out,
        form: &form,
        starts: &plan.starts,
        total: input.len(),
        ledger: &ledger,
        settings: &settings,
        meta: input.source.meta().clone(),
        make: &make,
    };
    let mut account = job.run(&args.slices, control)?;
    account.notes.extend(plan.notes);
    let left_out = input.source.left_out();
    account.notes.extend(left_out.iter().map(|(reason, count)| format!("not taken from the input: {count} {reason}")));
    Ok(account)
}

/// All settings that shape the output.
fn settings(args: &ConvertArgs, input: &Input) -> Value {
    json!({
        "input": input.source.digest(),
        "output": args.output.settings(),
        "map": args.map,
        "parts": args.parts,
        "encoding": args.encoding,
        "missing": args.missing,
        "keys": [json!(args.without_keys), json!(args.key_part)],
        "skip_bad": args.skip_bad,
        "captions": args.source_options().ok().map(|options| options.captions),
    })
}

/// The facts that one sample adds to the plan.
struct Found {
    key: String,
    parts: Vec<String>,
    /// Whether it has a caption without any letter.
    empty: bool,
}

impl<'a> Conversion<'a> {
    fn new(args: &'a ConvertArgs, input: &'a Input) -> Self {
        let is_list = |column: &&MdsColumn| matches!(column.encoding, Encoding::List(_) | Encoding::JpegArray);
        let columns = input.columns().unwrap_or_default();
        let lists = columns.iter().filter(is_list).map(|column| column.name.as_str()).collect();
        Conversion { args, input, lists, renamed: BTreeMap::new(), required: Vec::new() }
    }

    /// Reads everything once: keys and parts, then sizes.
    fn plan(&mut self, control: &mut Control<'_>) -> Result<Plan> {
        let mut seen = HashSet::new();
        let (mut parts, mut unreadable): (BTreeMap<String, usize>, usize) = (BTreeMap::new(), 0);
        let (mut renamed, mut doubles) = (BTreeMap::new(), 0usize);
        let mut captions = CaptionCount::default();
        let mut note = |i: usize, found: Option<Found>| {
            let Some(Found { key, parts: names, empty }) = found else {
                unreadable += 1;
                return;
            };
            let taken: Vec<String> = names.iter().filter_map(|name| self.new_name(name)).collect();
            captions.add(taken.iter().map(String::as_str), 1);
            captions.empty += u64::from(empty);
            for name in names {
                *parts.entry(name).or_default() += 1;
            }
            let mut unique = self.writable_key(&key);
            if !seen.insert(short_hash(&unique)) {
                doubles += 1;
                while !seen.insert(short_hash(&unique)) {
                    unique = format!("{unique}-{i}");
                }
            }
            if unique != key {
                renamed.insert(i, unique);
            }
        };
        self.in_order(control, &|i| self.look(i), &mut note)?;
        let mut notes = Vec::new();
        if !renamed.is_empty() {
            let first = renamed.iter().next().map_or("", |(_, key)| key);
            let were = if renamed.len() == 1 { "key was" } else { "keys were" };
            notes.push(format!(
                "{} {were} changed, {doubles} of them because they came twice: the first is now `{first}`",
                renamed.len()
            ));
        }
        self.check_parts(&parts, self.input.len() - unreadable)?;
        notes.extend(captions.notes());
        let form = self.form(&parts)?;
        self.renamed = renamed;
        let mut sizes = Vec::with_capacity(self.input.len());
        let size = |i: usize| match self.sample(i)? {
            Made::Sample(sample) => Ok(form.size(&sample).unwrap_or(0)),
            Made::LeftOut(_) => Ok(0),
        };
        self.in_order(control, &size, &mut |_, size| sizes.push(size))?;
        let starts = divide(&form, sizes);
        // All was read: what is known of it from reading is complete.
        notes.extend(self.input.source.notes());
        Ok(Plan { starts, renamed: std::mem::take(&mut self.renamed), parts, notes })
    }

    /// Calls `each` for all samples, in parallel, and `then` for what comes of it, in order.
    fn in_order<T: Send>(
        &self,
        control: &mut Control<'_>,
        each: &(dyn Fn(usize) -> calotype_data::Result<T> + Sync),
        then: &mut dyn FnMut(usize, T),
    ) -> Result<()> {
        let all = self.input.len();
        for first in (0..all).step_by(CHUNK) {
            control.checkpoint("convert: first look", first, all)?;
            let chunk = first..all.min(first + CHUNK);
            let found: Vec<T> = chunk.into_par_iter().map(each).collect::<calotype_data::Result<_>>()?;
            found.into_iter().enumerate().for_each(|(place, found)| then(first + place, found));
        }
        control.report("convert: first look", all, all);
        Ok(())
    }

    /// Key and parts of sample `i`; none if it cannot be read and that is to be skipped.
    fn look(&self, i: usize) -> calotype_data::Result<Option<Found>> {
        let found = match self.input.source.get(i) {
            Ok(held) => {
                let sample = held.sample();
                let parts = sample.parts().map(|(name, _)| self.column_of(name).to_owned()).collect();
                let empty = sample.parts().any(|(name, bytes)| self.is_empty_caption(name, bytes));
                self.own_key(sample).map(|key| Some(Found { key, parts, empty }))
            }
            Err(error) => Err(error),
        };
        match found {
            Err(error) if self.args.skips(&error) => Ok(None),
            other => other,
        }
    }

    /// Whether a part that is taken is a caption of nothing but spaces.
    fn is_empty_caption(&self, name: &str, bytes: &[u8]) -> bool {
        self.new_name(name).is_some_and(|name| is_caption(&name)) && bytes.trim_ascii().is_empty()
    }

    /// The key that a sample brings along.
    fn own_key(&self, sample: SampleRef<'_>) -> calotype_data::Result<String> {
        Ok(match &self.args.key_part {
            Some(part) => sample.text(part)?.trim().to_owned(),
            None => sample.key().to_owned(),
        })
    }

    /// The key as the output can hold it.
    fn writable_key(&self, key: &str) -> String {
        if self.args.output.to == Layout::Mds {
            return key.to_owned();
        }
        let key = key.replace('\0', "_");
        let pieces: Vec<&str> = key.split('/').filter(|piece| !matches!(*piece, "" | ".")).collect();
        let (file, folders) = pieces.split_last().unwrap_or((&"_", &[]));
        let mut pieces = folders.to_vec();
        let file = file.replace('.', "_");
        pieces.push(&file);
        pieces.join("/")
    }

    /// The column that a part belongs to: itself, but for the elements of lists.
    fn column_of<'n>(&self, part: &'n str) -> &'n str {
        match part.rsplit_once('.') {
            Some((column, number)) if self.lists.contains(&column) && number.bytes().all(|b| b.is_ascii_digit()) => {
                column
            }
            _ => part,
        }
    }

    /// New name of a part; none if it is not taken.
    fn new_name(&self, part: &str) -> Option<String> {
        let column = self.column_of(part);
        if !self.args.parts.is_empty() && !self.args.parts.iter().any(|wanted| wanted == column) {
            return None;
        }
        let new = self.args.map.iter().find(|(old, _)| old == column).map_or(column, |(_, new)| new);
        let name = format!("{new}{}", &part[column.len()..]);
        Some(if self.args.output.to == Layout::Webdataset { name.to_lowercase() } else { name })
    }

    /// Compares the settings with the parts that there are.
    fn check_parts(&self, parts: &BTreeMap<String, usize>, samples: usize) -> Result<()> {
        let there = || parts.iter().map(|(name, count)| format!("{name} ({count})")).collect::<Vec<_>>().join(", ");
        let named = self.args.map.iter().map(|(old, _)| old).chain(&self.args.parts).chain(&self.args.key_part);
        let columns = self.input.columns().unwrap_or_default();
        for name in named {
            if !parts.contains_key(name) && !columns.iter().any(|column| column.name == *name) {
                return Err(Error::Usage(format!("no sample has a part `{name}`; there are: {}", there())));
            }
        }
        let mut new: Vec<String> = parts.keys().filter_map(|part| self.new_name(part)).collect();
        new.sort();
        if let Some(pair) = new.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::Usage(format!("two parts would be called `{}`; give another name by --map", pair[0])));
        }
        if new.is_empty() && columns.is_empty() {
            return Err(Error::Usage(format!("no parts are left to write; there are: {}", there())));
        }
        let alike = parts.iter().all(|(name, count)| *count == samples || self.new_name(name).is_none());
        if self.args.output.to == Layout::Mds && self.args.missing == Missing::Fail && columns.is_empty() && !alike {
            return Err(Error::Usage(format!(
                "MDS samples all have the same columns, but of {samples} samples these numbers have a part: {}; choose with \
                 --parts, or say --missing leave-out or --missing empty",
                there()
            )));
        }
        Ok(())
    }

    /// Form of the output; sets the parts that each sample must have.
    fn form(&mut self, parts: &BTreeMap<String, usize>) -> Result<Form> {
        let output = &self.args.output;
        if output.to == Layout::Webdataset {
            return Ok(Form::Webdataset { prefix: output.prefix.clone(), limits: output.limits() });
        }
        let columns = self.mds_columns(parts)?;
        if self.input.columns().is_none() {
            let names = columns.iter().map(|column| column.name.clone());
            self.required = names.filter(|name| name != KEY_COLUMN).collect();
        }
        Ok(Form::Mds(Box::new(MdsSchema::new(columns, output.mds_options())?)))
    }

    fn mds_columns(&self, parts: &BTreeMap<String, usize>) -> Result<Vec<MdsColumn>> {
        let mut columns: Vec<MdsColumn> = Vec::new();
        let mut add = |name: &str, encoding: Encoding| {
            if let Some(name) = self.new_name(name) {
                columns.push(MdsColumn { name, encoding });
            }
        };
        match self.input.columns() {
            // Pickles are read as JSON; the key is added below.
            Some(known) => known.iter().filter(|column| column.name != KEY_COLUMN).for_each(|column| {
                let json = Encoding::Raw(RawKind::Json);
                add(&column.name, if column.encoding == Encoding::Pickle { json } else { column.encoding.clone() });
            }),
            None => parts.keys().for_each(|name| add(name, default_encoding(name))),
        }
        if !self.args.without_keys && (!self.input.is_numbered() || self.args.key_part.is_some()) {
            let encoding = Encoding::Raw(RawKind::Text);
            columns.push(MdsColumn { name: KEY_COLUMN.to_owned(), encoding });
        }
        for (name, encoding) in &self.args.encoding {
            let encoding = encoding.parse().map_err(|e| Error::Usage(format!("--encoding {name}={encoding}: {e}")))?;
            match columns.iter_mut().find(|column| column.name == *name) {
                Some(column) => column.encoding = encoding,
                None => {
                    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
                    let names = names.join(", ");
                    return Err(Error::Usage(format!(
                        "--encoding {name}: there is no such column; there are: {names}"
                    )));
                }
            }
        }
        Ok(columns)
    }

    /// Sample `i` of the output.
    fn sample(&self, i: usize) -> calotype_data::Result<Made> {
        let read = self.input.get(i).and_then(|source| match self.renamed.get(&i) {
            Some(key) => Ok((key.clone(), source)),
            None => Ok((self.own_key(SampleRef::from(&source))?, source)),
        });
        let (key, source) = match read {
            Ok(read) => read,
            Err(error) if self.args.skips(&error) => {
                tracing::warn!(sample = i, "left out: {error}");
                return Ok(Made::LeftOut("cannot be read".to_owned()));
            }
            Err(error) => return Err(error),
        };
        let mut sample = Sample::new(key);
        for (name, bytes) in source.parts {
            if let Some(name) = self.new_name(&name) {
                sample.parts.insert(name, bytes);
            }
        }
        for name in &self.required {
            match (sample.parts.contains_key(name), self.args.missing) {
                (true, _) => {}
                (false, Missing::Empty) => drop(sample.parts.insert(name.clone(), Vec::new())),
                (false, _) => return Ok(Made::LeftOut(format!("without part `{name}`"))),
            }
        }
        Ok(Made::Sample(sample))
    }
}

fn default_encoding(part: &str) -> Encoding {
    let last = part.rsplit('.').next().unwrap_or(part);
    let known = ENCODINGS.iter().find(|(extension, _)| *extension == last);
    known.and_then(|(_, encoding)| encoding.parse().ok()).unwrap_or(Encoding::Raw(RawKind::Bytes))
}

/// 128 bits: a billion keys collide with probability below 2⁻⁶⁸.
fn short_hash(key: &str) -> u128 {
    u128::from_le_bytes(*blake3::hash(key.as_bytes()).as_bytes().first_chunk().unwrap_or(&[0; 16]))
}
