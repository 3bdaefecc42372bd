//! `calotype evaluate pictures` and `calotype evaluate compare`.

use super::{Usage, check_out, check_output, harmless, print};
use crate::args::{DeviceArgs, JsonArgs, PrecisionArgs, heading, seed};
use crate::data::with_progress;
use anyhow::{Context, Result};
use calotype_core::StopFlag;
use calotype_core::numbers::count;
use calotype_data::Control;
use calotype_evaluate::figure::{self, Comparison, Unlike};
use calotype_evaluate::metrics::{self, METRICS, MetricSettings, Metrics};
use calotype_evaluate::pass::{check_number, wanted};
use calotype_evaluate::{
    EvaluateError, FeatureKey, Figure, Networks, Part, Pictures, Reference, States, figures, states_of, statistics,
};
use calotype_ops::Precision;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Resamples of intervals of confidence, unless the command line says others.
const RESAMPLES: usize = 1000;

#[derive(Debug, Args)]
#[command(after_help = metrics_help())]
pub(crate) struct PicturesArgs {
    /// The pictures: a folder, shards or parquet files, or a pattern of shards.
    #[arg(value_name = "PICTURES")]
    pictures: String,
    /// What they are compared with: other pictures, or an `.npz` archive of mu and sigma.
    #[arg(long, value_name = "PICTURES|NPZ")]
    reference: Option<String>,
    /// What is computed, separated by commas.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', default_value = "fid")]
    metrics: Vec<String>,
    /// Whose definitions, separated by commas [default: each metric's first].
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', alias = "variant")]
    fid_variant: Vec<String>,
    /// Captions: a text with a line for each picture, or a table with file_name and caption (.csv, .jsonl) [default: those of the
    /// pictures' source].
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    /// The Inception network: pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or its weights in another layout.
    #[arg(long, value_name = "PATH", help_heading = heading::MODEL)]
    inception: Option<PathBuf>,
    /// A CLIP model with both towers.
    #[arg(long, value_name = "PATH", help_heading = heading::MODEL)]
    clip: Option<PathBuf>,
    /// Whose preparation of pictures for CLIP, where a metric's definition says none: open_clip, transformers, transformers-pillow,
    /// torchmetrics or cmmd.
    #[arg(long, value_name = "NAME", default_value = "open_clip", help_heading = heading::MODEL)]
    clip_preparation: String,
    /// Any other network that gives features of pictures, for the metric fd: DINOv2, ViT, CLIP's image tower, EfficientNet-Lite, Keras'
    /// Inception.
    #[arg(long, value_name = "PATH", help_heading = heading::MODEL)]
    features: Option<PathBuf>,
    /// Subsets of a KID.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = count::<usize>, help_heading = heading::RULES)]
    subsets: usize,
    /// Pictures in a subset of a KID.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = count::<usize>, help_heading = heading::RULES)]
    subset_size: usize,
    /// Parts of an Inception score.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = count::<usize>, help_heading = heading::RULES)]
    splits: usize,
    /// Neighbours of precision, recall, density and coverage.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = count::<usize>, help_heading = heading::RULES)]
    neighbours: usize,
    /// Seed of subsets and parts.
    #[arg(long, value_name = "N", default_value_t = 2020, value_parser = seed, help_heading = heading::RULES)]
    seed: u64,
    /// Resamples of intervals of confidence, of metrics that are means over pictures; 0 for none.
    #[arg(long, value_name = "N", default_value_t = RESAMPLES, help_heading = heading::RULES)]
    resamples: usize,
    /// Write mean and covariance of the pictures' features as an `.npz` archive; with one variant of FID.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    save_statistics: Option<PathBuf>,
    /// Keep features in this folder: a second start goes on where the first one stopped.
    #[arg(long, value_name = "DIR", help_heading = heading::OUTPUT)]
    keep: Option<PathBuf>,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    json: JsonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// A file of figures: what `calotype evaluate pictures … --json` printed, or a figures.json, or the folder with one.
    left: PathBuf,
    /// Another one.
    right: PathBuf,
    #[command(flatten)]
    json: JsonArgs,
}

/// The metrics, as `evaluate pictures --help` lists them.
fn metrics_help() -> String {
    let line = |entry: &metrics::MetricEntry| {
        let variants: Vec<&str> = entry.variants.iter().map(|variant| variant.name).collect();
        let variants = if variants.is_empty() { String::new() } else { format!(" ({})", variants.join(", ")) };
        format!("  {:16} {}{variants}", entry.name.replace('_', "-"), entry.about)
    };
    let lines: Vec<String> = METRICS.iter().map(line).collect();
    format!("Metrics, with their definitions by --fid-variant:\n{}", lines.join("\n"))
}

/// Judges pictures.
pub(crate) fn pictures(args: &PicturesArgs) -> Result<()> {
    let stop = StopFlag::install().context("cannot listen for signals")?;
    let metrics = metrics::open(&args.metrics, &settings(args))?;
    check_use(args, &metrics)?;
    if let Some(path) = &args.save_statistics {
        check_output("--save-statistics", path, STATISTICS, is_statistics)?;
    }
    if let Some(folder) = &args.keep {
        check_out("--keep", folder, &[])?;
    }
    let networks = networks(args)?;
    let mut judged = Pictures::open(&args.pictures)?;
    if let Some(captions) = &args.captions {
        judged = judged.with_captions(captions)?;
    }
    // Before the reference's features are computed.
    check_number(&judged, &metrics)?;
    // Statistics of a reference are made so.
    let judges = args.save_statistics.is_none();
    if judges && args.reference.as_deref().is_some_and(|reference| same_place(reference, &args.pictures)) {
        eprintln!("note: reference: these are the pictures that are judged: distances are those of equal sets");
    }
    let reference = with_progress(&stop, |control| reference(args, &networks, control))?;
    let keep = args.keep.as_deref();
    let states = with_progress(&stop, |control| states_of(&judged, &metrics, &networks, keep, control))?;
    tell_of(&judged, "pictures");
    if wanted(&metrics).values().any(|wanted| wanted.rows.contains(&Part::Captions)) {
        judged.told_of_captions()?.iter().for_each(|sentence| eprintln!("note: captions: {}", harmless(sentence)));
    }
    if let Some(path) = &args.save_statistics {
        save_statistics(&states, path)?;
    }
    tell(&figures(&metrics, &states, reference.as_ref())?, args.json.json)
}

/// Refuses flags that change nothing, and networks of which nothing is there.
fn check_use(args: &PicturesArgs, metrics: &Metrics) -> Result<()> {
    let wanted = wanted(metrics);
    let of_network = |name: &str| wanted.keys().any(|key| key.network() == name);
    let networks =
        [("inception", &args.inception), ("clip", &args.clip), ("custom", &args.features)].map(|(network, path)| {
            let flag = if network == "custom" { "features" } else { network };
            (format!("--{flag}"), path, of_network(network))
        });
    for (flag, path, _) in &networks {
        if let Some(path) = path.as_ref().filter(|path| !path.exists()) {
            let path = path.display();
            return Err(Usage(format!("{flag} {path}: there is no such file or folder; correct the path")).into());
        }
    }
    let usual = MetricSettings { resamples: RESAMPLES, ..MetricSettings::default() };
    let setting = metrics::idle(&args.metrics, &settings(args), &usual).map(|key| match key {
        "clip" => "--clip-preparation".to_owned(),
        "variants" => "--fid-variant".to_owned(),
        key => format!("--{}", key.replace('_', "-")),
    });
    let compares = metrics.iter().any(|metric| metric.needs().reference);
    let reads = wanted.values().any(|wanted| wanted.rows.contains(&Part::Captions));
    let flags =
        [("--reference", args.reference.is_some() && !compares), ("--captions", args.captions.is_some() && !reads)];
    let flag = flags.into_iter().find_map(|(flag, is_idle)| is_idle.then(|| flag.to_owned()));
    let network = networks.into_iter().find_map(|(flag, path, is_used)| (path.is_some() && !is_used).then_some(flag));
    match network.or(flag).or(setting) {
        None => Ok(()),
        Some(flag) => Err(Usage(format!(
            "{flag} has no effect on --metrics {}; leave it out, or name metrics that take it (--help lists them)",
            args.metrics.join(",")
        ))
        .into()),
    }
}

/// Whether two paths lead to the same place.
pub(super) fn same_place(one: &str, other: &str) -> bool {
    let place = |path: &str| std::fs::canonicalize(path).ok();
    one == other || place(one).is_some_and(|found| place(other) == Some(found))
}

fn settings(args: &PicturesArgs) -> MetricSettings {
    MetricSettings {
        variants: args.fid_variant.clone(),
        clip: args.clip_preparation.clone(),
        seed: args.seed,
        subsets: args.subsets,
        subset_size: args.subset_size,
        splits: args.splits,
        neighbours: args.neighbours,
        resamples: args.resamples,
    }
}

fn networks(args: &PicturesArgs) -> Result<Networks> {
    let device = args.device.open()?;
    let mut networks = Networks::new(device.clone());
    networks.precision = args.precision.precision.unwrap_or(Precision::F32).dtype(&device);
    networks.inception.clone_from(&args.inception);
    networks.clip.clone_from(&args.clip);
    networks.features.clone_from(&args.features);
    Ok(networks)
}

/// What the pictures are compared with, if a metric compares.
fn reference(
    args: &PicturesArgs,
    networks: &Networks,
    control: &mut Control<'_>,
) -> Result<Option<Reference>, EvaluateError> {
    let mut comparing = metrics::open(&args.metrics, &settings(args))?;
    comparing.retain(|metric| metric.needs().reference);
    let Some(metric) = comparing.first() else { return Ok(None) };
    let Some(spec) = &args.reference else {
        return Err(EvaluateError::Usage(format!(
            "{} compares with other pictures: give them by --reference, or name other metrics by --metrics",
            metric.name()
        )));
    };
    if Path::new(spec).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npz")) {
        check_statistics(spec, &comparing)?;
        let reference = Reference::read_statistics(Path::new(spec))?;
        for key in wanted(&comparing).keys() {
            let features = networks.open(key)?;
            reference.check(key, features.fingerprint(), features.width())?;
        }
        reference.told().iter().for_each(|sentence| eprintln!("note: reference: {}", harmless(sentence)));
        return Ok(Some(reference));
    }
    let pictures = Pictures::open(spec)?;
    let states = states_of(&pictures, &comparing, networks, args.keep.as_deref(), control)?;
    tell_of(&pictures, "reference");
    Ok(Some(Reference::Pictures(states)))
}

/// An archive of statistics is of one preparation, and has no rows.
fn check_statistics(spec: &str, comparing: &Metrics) -> Result<(), EvaluateError> {
    let wanted = wanted(comparing);
    let rows = comparing.iter().find(|metric| !metric.needs().rows.is_empty());
    let refusal = match (wanted.len(), rows) {
        (_, Some(metric)) => format!("{} needs the pictures of the reference, not their statistics", metric.name()),
        (2.., None) => {
            let keys: Vec<String> = wanted.keys().map(FeatureKey::to_string).collect();
            format!("statistics are of one preparation of pictures, these metrics want {}", keys.join(" and "))
        }
        _ => return Ok(()),
    };
    Err(EvaluateError::Usage(format!("--reference {spec}: {refusal}; name one --fid-variant, or give the pictures")))
}

/// What [`is_statistics`] tells, in words.
pub(super) const STATISTICS: &str = "an archive of mu and sigma";

/// Whether a file holds mean and covariance of features.
pub(super) fn is_statistics(path: &Path) -> bool {
    Reference::read_statistics(path).is_ok()
}

/// Writes the mean and covariance of the only features that have them.
fn save_statistics(states: &States, path: &Path) -> Result<()> {
    let mut found = states.values().filter(|state| state.has_gaussian());
    match (found.next(), found.next()) {
        (Some(state), None) => Ok(statistics::write_state(state, path)?),
        (None, _) => Err(Usage("--save-statistics needs a Fréchet distance among --metrics".to_owned()).into()),
        (Some(one), Some(other)) => {
            let (one, other) = (one.key(), other.key());
            Err(Usage(format!(
                "--save-statistics writes one archive, there are {one} and {other}; name one --fid-variant"
            ))
            .into())
        }
    }
}

/// Tells what of pictures was not judged, and what decoding changed.
fn tell_of(pictures: &Pictures, what: &str) {
    pictures.told().iter().for_each(|sentence| eprintln!("note: {what}: {}", harmless(sentence)));
}

/// Prints figures, and what their names do not claim.
fn tell(figures: &[Figure], json: bool) -> Result<()> {
    if json {
        return figures.iter().try_for_each(|figure| print(&serde_json::to_string(figure)?));
    }
    for figure in figures {
        let deviation = figure.deviation.map_or(String::new(), |deviation| format!(" ± {deviation:.3e}"));
        let interval = figure.interval.map_or(String::new(), |[low, high]| format!(" [{low:.5}, {high:.5}]"));
        let Figure { metric, variant, value, count, .. } = figure;
        print(&format!("{metric:16} {variant:16} {value:.6}{deviation}{interval}  of {count} pictures"))?;
    }
    if figures
        .iter()
        .any(|figure| METRICS.iter().any(|entry| entry.otherwise == figure.metric && entry.name != figure.metric))
    {
        eprintln!(
            "note: the weights are not known to be the published ones, so that figures do not bear their published names \
             (fd is not FID); they compare among themselves"
        );
    }
    Ok(())
}

/// Compares two files of figures.
pub(crate) fn compare(args: &CompareArgs) -> Result<()> {
    let (alike, unlike) = figure::compare(&figure::read(&args.left)?, &figure::read(&args.right)?);
    if args.json.json {
        print(&serde_json::to_string(&Compared { alike: &alike, unlike: &unlike })?)?;
    } else {
        // The settings of sweeps stand in front, in a column of their own.
        let width = alike.iter().map(|pair| pair.place.chars().count()).max().unwrap_or(0);
        for Comparison { place, metric, variant, left, right, difference } in &alike {
            let place = if width > 0 { format!("{place:width$} ") } else { String::new() };
            print(&harmless(&format!("{place}{metric:16} {variant:16} {left:.6} {right:.6} {difference:+.6}")))?;
        }
    }
    if alike.is_empty() && unlike.is_empty() {
        let (left, right) = (args.left.display(), args.right.display());
        return Err(Usage(format!("{left} and {right} have no metric in common")).into());
    }
    match unlike.is_empty() {
        true => Ok(()),
        false => Err(Usage(unlike.iter().map(in_words).collect::<Vec<_>>().join("\n")).into()),
    }
}

/// What `compare --json` prints.
#[derive(Serialize)]
struct Compared<'a> {
    alike: &'a [Comparison],
    unlike: &'a [Unlike],
}

fn in_words(Unlike { place, metric, variant, differences }: &Unlike) -> String {
    let words = differences.iter().map(|difference| {
        let shown = |value: &str| if value.is_empty() { "nothing".to_owned() } else { format!("`{value}`") };
        format!("  {}: {} and {}", difference.field, shown(&difference.left), shown(&difference.right))
    });
    let words: Vec<String> = words.collect();
    let place = if place.is_empty() { String::new() } else { format!("{place}: ") };
    format!("{place}{metric} ({variant}) does not compare; the two differ in\n{}", words.join("\n"))
}
