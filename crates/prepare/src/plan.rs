//! The plan of an output: each sample's place in input and output.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use calotype_data::webdataset::{ShardFile, is_shard_name, is_storable};
use calotype_data::{Control, Quarantine, Sample, SampleRef};
use rayon::prelude::*;

use crate::reorganize::{ReorganizeArgs, ReorganizeError};
use crate::tars::{FoundTar, OpenTar, OpenTars, find_tars, named, short_hash};
use crate::words::counted;
use crate::{Account, Result};

/// The samples that are taken, and their treatment.
pub(crate) struct Selection {
    extensions: Vec<String>,
    prefix_keys: bool,
    join: Option<Join>,
    /// True if samples that a quarantine lists are taken all the same.
    quarantined: bool,
}

/// Parts that are added from the samples' sources.
struct Join {
    files: Vec<FoundTar>,
    extensions: Vec<String>,
}

/// Number of a source's file, and of a sample in it.
type Place = (u32, u32);

/// Places of the samples of sources by their key alone.
type Places = HashMap<[u8; 16], Place>;

impl Selection {
    /// The selection that the command line asks for.
    ///
    /// # Errors
    /// [`crate::Error::Io`], [`ReorganizeError::NoShards`] if there is nothing to join from.
    pub(crate) fn new(args: &ReorganizeArgs) -> Result<Self> {
        let lower = |list: &[String]| list.iter().map(|part| part.trim_start_matches('.').to_lowercase()).collect();
        let join = match &args.join {
            None => None,
            Some(folder) => {
                let files = find_tars(std::slice::from_ref(folder))?;
                if files.is_empty() {
                    let paths = folder.display().to_string();
                    return Err(ReorganizeError::NoShards { what: "*.tar", paths }.into());
                }
                Some(Join { files, extensions: lower(&args.join_extensions) })
            }
        };
        Ok(Selection { extensions: lower(&args.extensions), prefix_keys: args.prefix_keys, join, quarantined: false })
    }

    /// The shards that parts are joined from.
    pub(crate) fn joined_files(&self) -> &[FoundTar] {
        self.join.as_ref().map_or(&[], |join| &join.files)
    }

    /// All parts of all samples, as they are.
    pub(crate) fn everything() -> Self {
        Selection { extensions: Vec::new(), prefix_keys: false, join: None, quarantined: true }
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

/// The plan of an output: sample `i` of all outputs is the `i`-th usable sample of the inputs.
pub(crate) struct Plan<'a> {
    inputs: Vec<FoundTar>,
    selection: &'a Selection,
    places: Option<Places>,
    quarantines: Quarantines,
    /// Numbers of each input's usable samples.
    usable: Vec<Vec<u32>>,
    /// Number, among all, of each input's first usable sample; and at last, of how many there are.
    starts: Vec<usize>,
    left_out: Vec<BTreeMap<String, u64>>,
    damage: Vec<Option<String>>,
    /// Numbers of samples whose members do not lie together.
    scattered: Vec<usize>,
    open: OpenTars,
}

/// Findings in one input.
struct Scanned {
    /// Usable samples, with hashes of their keys.
    samples: Vec<(u32, [u8; 16])>,
    left_out: BTreeMap<String, u64>,
    damage: Option<String>,
    scattered: usize,
}

impl<'a> Plan<'a> {
    /// Reads the headers of `inputs`.
    ///
    /// # Errors
    /// [`ReorganizeError::Corrupt`] unless `skip_corrupt`; [`crate::Error::Data`].
    pub(crate) fn new(
        inputs: Vec<FoundTar>,
        selection: &'a Selection,
        skip_corrupt: bool,
        control: &mut Control<'_>,
    ) -> Result<Self> {
        let open = OpenTars::new(2 * rayon::current_num_threads());
        let places = places(selection.join.as_ref(), &inputs, &open)?;
        let quarantines = if selection.quarantined { Quarantines::default() } else { Quarantines::of(&inputs)? };
        let mut plan = Plan {
            selection,
            places,
            quarantines,
            usable: Vec::with_capacity(inputs.len()),
            starts: vec![0],
            left_out: Vec::with_capacity(inputs.len()),
            damage: Vec::with_capacity(inputs.len()),
            scattered: Vec::with_capacity(inputs.len()),
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
        control.report("reorganize: reading headers", total, total);
        match skip_corrupt {
            true => Ok(plan),
            false => plan.refuse_damage(),
        }
    }

    fn refuse_damage(self) -> Result<Self> {
        let damaged: Vec<String> = self.damage.iter().flatten().cloned().collect();
        match damaged.len() {
            0 => Ok(self),
            count => Err(ReorganizeError::Corrupt { count, named: named(&damaged) }.into()),
        }
    }

    fn scan(&self, number: usize) -> Result<Scanned> {
        let input = &self.inputs[number];
        let opened = self.open.open(&input.path)?;
        let shard = opened.shard();
        let damage = shard.damage().map(ToString::to_string);
        let (left_out, scattered) = (BTreeMap::new(), shard.scattered());
        let mut scanned = Scanned { samples: Vec::with_capacity(shard.len()), left_out, damage, scattered };
        let mut leave_out = |reason: String| *scanned.left_out.entry(reason).or_default() += 1;
        if shard.cut_off() {
            leave_out("cut by the damage of its shard".to_owned());
        }
        for (i, sample) in shard.samples().enumerate() {
            let source = self.source(&sample)?;
            let source = source.as_ref().and_then(|(opened, at)| opened.shard().get(*at));
            let key = self.selection.key(input, &sample);
            if self.quarantines.list(input, sample.key()) {
                leave_out("in quarantine".to_owned());
            } else if let Some(reason) = self.selection.missing(&sample, source.as_ref()) {
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
        let Scanned { samples, mut left_out, damage, scattered } = scanned;
        let all = samples.len();
        let usable: Vec<u32> = samples.into_iter().filter(|(_, key)| keys.insert(*key)).map(|(i, _)| i).collect();
        if usable.len() < all {
            left_out.insert("duplicate key".to_owned(), (all - usable.len()) as u64);
        }
        self.starts.push(self.samples() + usable.len());
        self.usable.push(usable);
        self.left_out.push(left_out);
        self.damage.push(damage);
        self.scattered.push(scattered);
    }

    /// Number of inputs.
    pub(crate) fn inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Number of usable samples.
    pub(crate) fn samples(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Number of outputs.
    pub(crate) fn shards(&self, per_shard: usize) -> usize {
        self.samples().div_ceil(per_shard)
    }

    /// The number that the first sample of a key in an input has among those of all outputs, if it is taken.
    ///
    /// # Errors
    /// [`crate::Error::Data`] if the input cannot be read.
    pub(crate) fn place(&self, input: usize, key: &str) -> Result<Option<usize>> {
        let Some(sample) = self.open.open(&self.inputs[input].path)?.place(key) else { return Ok(None) };
        let place = self.usable[input].binary_search(&(sample as u32)).ok();
        Ok(place.map(|place| self.starts[input] + place))
    }

    /// The account of what was left out of a part of the inputs.
    pub(crate) fn account(&self, inputs: Range<usize>) -> Account {
        let mut account = Account::new("reorganize");
        for left_out in &self.left_out[inputs.clone()] {
            left_out.iter().for_each(|(reason, n)| *account.left_out.entry(reason.clone()).or_default() += n);
        }
        account.taken = account.left_out_in_all();
        let scattered: usize = self.scattered[inputs.clone()].iter().sum();
        if scattered > 0 {
            let samples = counted(scattered, "sample");
            account.notes.push(format!("{samples}, whose members did not lie together, put together"));
        }
        account.notes.extend(self.damage[inputs].iter().flatten().map(|damage| format!("damaged: {damage}")));
        account
    }

    /// Writes some of the outputs of `per_shard` samples, named by `name`; those that are there already are kept, if
    /// `keeps` says so of path and length. Returns the samples and bytes of all of them.
    ///
    /// # Errors
    /// [`crate::Error::Data`] if an input cannot be read or an output not written, [`ReorganizeError::Changed`] if an
    /// input is not what it was.
    pub(crate) fn write(
        &self,
        shards: Range<usize>,
        per_shard: usize,
        name: &(dyn Fn(usize) -> PathBuf + Sync),
        keeps: &(dyn Fn(&Path, u64) -> bool + Sync),
        control: &mut Control<'_>,
    ) -> Result<(u64, u64)> {
        let step = 2 * rayon::current_num_threads();
        let (mut samples, mut bytes) = (0, 0);
        for first in shards.clone().step_by(step) {
            control.checkpoint("reorganize", (first - shards.start) * per_shard, shards.len() * per_shard)?;
            let numbers = first..(first + step).min(shards.end);
            let written = numbers.into_par_iter().map(|number| self.write_one(number, per_shard, &name(number), keeps));
            for (count, length) in written.collect::<Result<Vec<_>>>()? {
                samples += count;
                bytes += length;
            }
        }
        control.report("reorganize", samples as usize, samples as usize);
        Ok((samples, bytes))
    }

    fn write_one(
        &self,
        number: usize,
        per_shard: usize,
        path: &Path,
        keeps: &(dyn Fn(&Path, u64) -> bool + Sync),
    ) -> Result<(u64, u64)> {
        let samples = number * per_shard..((number + 1) * per_shard).min(self.samples());
        if let Ok(metadata) = fs::metadata(path)
            && keeps(path, metadata.len())
        {
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

/// The quarantines of the folders that inputs lie in.
#[derive(Default)]
pub(crate) struct Quarantines(BTreeMap<PathBuf, Quarantine>);

impl Quarantines {
    /// Reads the lists that lie in the folders that were searched, and beside the shards.
    ///
    /// # Errors
    /// [`crate::Error::Data`] if a list cannot be read.
    pub(crate) fn of(inputs: &[FoundTar]) -> Result<Self> {
        let mut lists = BTreeMap::new();
        for (folder, _) in inputs.iter().flat_map(FoundTar::homes) {
            if !lists.contains_key(folder) {
                lists.insert(folder.to_path_buf(), Quarantine::read(folder)?);
            }
        }
        Ok(Quarantines(lists))
    }

    /// True if a sample of an input is listed.
    fn list(&self, input: &FoundTar, key: &str) -> bool {
        let listed = |(folder, name): (&Path, &str)| self.0.get(folder).is_some_and(|list| list.contains(name, key));
        input.homes().into_iter().any(listed)
    }

    /// A checksum of what is listed.
    pub(crate) fn digest(&self) -> String {
        self.0.values().map(Quarantine::digest).collect::<Vec<_>>().join(" ")
    }
}

/// Places of the sources by key, unless the inputs' keys say themselves which shard they come from.
fn places(join: Option<&Join>, inputs: &[FoundTar], open: &OpenTars) -> Result<Option<Places>> {
    let Some(join) = join else { return Ok(None) };
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
    let slashes = key.match_indices('/').map(|(at, _)| at).rev();
    slashes
        .map(|at| (&key[..at], &key[at + 1..]))
        .find(|(shard, _)| is_shard_name(shard.rsplit('/').next().unwrap_or(shard)))
}
