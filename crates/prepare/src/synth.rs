//! The stage that makes random data: for benchmarks that measure training alone, and to try recipes without a dataset.
//!
//! Every part of every sample is a function of (seed, name of the part, number of the sample): it does not change with
//! the other parts, nor with how the work is divided.

use std::path::PathBuf;
use std::str::FromStr;

use calotype_core::{Purpose, Stream};
use calotype_data::emoji::{BACKGROUNDS, caption, pairs};
use calotype_data::image::{Filter, PngEffort, RgbImage};
use calotype_data::mds::encoding::{RawKind, Scalar};
use calotype_data::mds::{ArrayType, Encoding, KEY_COLUMN, MdsColumn, MdsOptions, MdsSchema};
use calotype_data::npy::header_bytes;
use calotype_data::{Control, Sample};
use calotype_kernels::f16;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use serde_json::{Map, json};

use crate::output::{Form, Job, Layout, Made, OutputArgs, open_ledger};
use crate::slices::SliceArgs;
use crate::{Account, Error, Result};

const STAGE: &str = "synth";

/// Samples in a shard.
const SHARD_SAMPLES: usize = 1000;

/// Pixels between two random colours of an image.
const CELL: usize = 32;

/// Quality of JPEGs.
const QUALITY: u8 = 90;

/// Largest part that is made, in values.
const MOST_VALUES: usize = 1 << 30;

/// Settings of the stage.
#[derive(Clone, Debug, clap::Args)]
pub struct SynthArgs {
    /// Folder to write.
    pub out: PathBuf,
    /// Number of samples.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = calotype_core::numbers::count::<usize>)]
    pub samples: usize,
    /// Content of the samples: images (png and txt), mosaic (jpg and caption), mosaic-latents (the same with latents_256,
    /// latents_512 and caption_latents, raw float16), mlperf (moments as npy, and txt), nemo (npy of float32 pixels, and txt),
    /// nemo-precached (moments and hidden states of texts as npy), vit (jpg and cls).
    #[arg(long, value_name = "NAME", default_value = "images", value_parser = PRESETS.map(|(name, _)| name))]
    pub preset: String,
    /// A part of each sample instead of the preset's, as NAME=KIND; may be repeated. Kinds: png:HEIGHTxWIDTH,
    /// jpg:HEIGHTxWIDTH, text, class:NUMBER, array:TYPE:SHAPE and raw:TYPE:SHAPE (the same without .npy header). Arrays of
    /// floats are normally distributed; those of integers end with their range: array:int64:77:0..128.
    #[arg(long, value_name = "NAME=KIND")]
    pub part: Vec<String>,
    /// Side of the preset's images, in pixels; latents have an eighth of it.
    #[arg(long, value_name = "PIXELS", default_value_t = 512, value_parser = calotype_core::numbers::count::<usize>)]
    pub resolution: usize,
    /// Number of classes of the preset vit.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = calotype_core::numbers::count::<u64>)]
    pub classes: u64,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Destination of the data.
    #[command(flatten)]
    pub output: OutputArgs,
    /// This process's slices of the work.
    #[command(flatten)]
    pub slices: SliceArgs,
}

/// Parts of the presets; {s} is the side of images, {l} that of latents, {c} the number of classes. Shapes: mosaicml's
/// `precompute_latents` columns and benchmark, NeMo's `SDSyntheticDataset`, MLPerf's moments.
const PRESETS: [(&str, &[&str]); 7] = [
    ("images", &["png=png:{s}x{s}", "txt=text"]),
    ("mosaic", &["jpg=jpg:{s}x{s}", "caption=text"]),
    (
        "mosaic-latents",
        &[
            "jpg=jpg:{s}x{s}",
            "caption=text",
            "latents_256=raw:float16:4,32,32",
            "latents_512=raw:float16:4,64,64",
            "caption_latents=raw:float16:77,1024",
        ],
    ),
    ("mlperf", &["npy=array:float32:1,8,{l},{l}", "txt=text"]),
    ("nemo", &["image.npy=array:float32:{s},{s},3", "txt=text"]),
    ("nemo-precached", &["moments.npy=array:float16:8,{l},{l}", "text.npy=array:float32:80,768"]),
    ("vit", &["jpg=jpg:{s}x{s}", "cls=class:{c}"]),
];

/// Content of a part.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Image { height: usize, width: usize, jpeg: bool },
    Text,
    Class(u64),
    Array { values: ArrayType, shape: Vec<usize>, range: Option<(i64, i64)>, raw: bool },
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let bad = || {
            format!(
                "`{text}` is no kind of part; write png:512x512, jpg:512x512, text, class:1000, array:float32:8,64,64, \
                 raw:float16:4,64,64 or array:int64:77:0..128"
            )
        };
        let mut words = text.split(':');
        let (kind, arguments): (&str, Vec<&str>) = (words.next().unwrap_or_default(), words.collect());
        let axes = |text: &str, separator: char| -> Option<Vec<usize>> {
            let axes: Vec<usize> = text.split(separator).map(|axis| axis.trim().parse().ok()).collect::<Option<_>>()?;
            let values = axes.iter().try_fold(1usize, |n, axis| n.checked_mul(*axis));
            values.is_some_and(|n| (1..=MOST_VALUES).contains(&n)).then_some(axes)
        };
        match (kind, arguments.as_slice()) {
            ("text", []) => Ok(Kind::Text),
            ("class", [classes]) => {
                classes.parse().ok().filter(|classes| *classes > 0).map(Kind::Class).ok_or_else(bad)
            }
            ("png" | "jpg", [size]) => match axes(size, 'x').ok_or_else(bad)?[..] {
                [height, width] if height.max(width) <= 1 << 15 => {
                    Ok(Kind::Image { height, width, jpeg: kind == "jpg" })
                }
                _ => Err(bad()),
            },
            ("array" | "raw", [values, shape, range @ ..]) => {
                let (values, shape) = (ArrayType::named(values).ok_or_else(bad)?, axes(shape, ',').ok_or_else(bad)?);
                let range = match range {
                    [] => None,
                    [range] => Some(parse_range(range, values).ok_or_else(bad)?),
                    _ => return Err(bad()),
                };
                if values.name().starts_with("float") != range.is_none() {
                    return Err(bad());
                }
                Ok(Kind::Array { values, shape, range, raw: kind == "raw" })
            }
            _ => Err(bad()),
        }
    }
}

/// "0..128" as numbers that the type of values can hold.
fn parse_range(text: &str, values: ArrayType) -> Option<(i64, i64)> {
    let (low, high) = text.split_once("..")?;
    let (low, high): (i64, i64) = (low.parse().ok()?, high.parse().ok()?);
    let bits = 8 * values.size() as u32;
    let (least, most) = match values.name().starts_with('u') {
        true => (0, if bits == 64 { i64::MAX } else { (1 << bits) - 1 }),
        false => (i64::MIN >> (64 - bits), i64::MAX >> (64 - bits)),
    };
    // The upper end is not part of the range; the width has to fit 63 bits.
    (least <= low && low < high && high - 1 <= most && high.checked_sub(low).is_some()).then_some((low, high))
}

/// A part: its name, what it holds, and the key of its random numbers.
struct Part {
    name: String,
    kind: Kind,
    seed: u64,
}

/// Writes the data.
///
/// # Errors
/// [`Error::Usage`] for parts that cannot be made; those of writing; [`calotype_data::Error::Interrupted`].
pub fn run(args: &SynthArgs, control: &mut Control<'_>) -> Result<Account> {
    args.output.check()?;
    let parts = parts(args)?;
    if args.samples == 0 || args.output.shard_bytes.is_some() {
        return Err(Error::Usage(
            "synth needs at least 1 sample, and divides them by --shard-samples alone".to_owned(),
        ));
    }
    let samples = args.output.shard_samples.unwrap_or(SHARD_SAMPLES);
    let kinds: Vec<String> = parts.iter().map(|part| format!("{}={:?}", part.name, part.kind)).collect();
    let settings = json!([args.output.settings(), args.samples, args.seed, kinds]);
    let ledger = open_ledger(STAGE, &args.out, &settings)?;
    let form = form(args, &parts, samples)?;
    let starts: Vec<usize> = (0..args.samples).step_by(samples).collect();
    let job = Job {
        stage: STAGE,
        out: &args.out,
        form: &form,
        starts: &starts,
        total: args.samples,
        ledger: &ledger,
        settings: &settings,
        meta: Map::from_iter([("synthetic".to_owned(), json!({"seed": args.seed, "parts": kinds}))]),
        make: &|i| make(&parts, i).map(Made::Sample),
    };
    job.run(&args.slices, control)
}

/// The parts that are asked for.
fn parts(args: &SynthArgs) -> Result<Vec<Part>> {
    let preset = PRESETS.iter().find(|(name, _)| *name == args.preset).map_or(PRESETS[0].1, |(_, parts)| parts);
    let (side, latent) = (args.resolution.to_string(), (args.resolution / 8).to_string());
    let fill =
        |text: &&str| text.replace("{s}", &side).replace("{l}", &latent).replace("{c}", &args.classes.to_string());
    let texts = if args.part.is_empty() { preset.iter().map(fill).collect() } else { args.part.clone() };
    let mut parts: Vec<Part> = Vec::with_capacity(texts.len());
    for text in texts {
        let (name, kind) = text
            .split_once('=')
            .ok_or_else(|| Error::Usage(format!("--part `{text}`: write NAME=KIND, as in png=png:64x64")))?;
        let kind: Kind = kind.parse().map_err(|e| Error::Usage(format!("part {name}: {e}")))?;
        if parts.iter().any(|part| part.name == name) {
            return Err(Error::Usage(format!("--part: `{name}` is there twice")));
        }
        let hash = blake3::hash(name.as_bytes());
        let own = u64::from_le_bytes(*hash.as_bytes().first_chunk().unwrap_or(&[0; 8]));
        parts.push(Part { name: name.to_owned(), kind, seed: args.seed ^ own });
    }
    Ok(parts)
}

fn form(args: &SynthArgs, parts: &[Part], samples: usize) -> Result<Form> {
    let output = &args.output;
    if output.to == Layout::Webdataset {
        return Ok(Form::Webdataset { prefix: output.prefix.clone(), limits: output.limits() });
    }
    let column = |part: &Part| {
        let encoding = match &part.kind {
            Kind::Image { jpeg: true, .. } => Encoding::Raw(RawKind::Jpeg),
            Kind::Image { jpeg: false, .. } => Encoding::Raw(RawKind::Png),
            Kind::Text => Encoding::Raw(RawKind::Text),
            Kind::Class(_) => Encoding::Scalar(Scalar::Int),
            Kind::Array { raw: true, .. } => Encoding::Raw(RawKind::Bytes),
            Kind::Array { values, shape, .. } => Encoding::Array { kind: Some(*values), shape: Some(shape.clone()) },
        };
        MdsColumn { name: part.name.clone(), encoding }
    };
    let mut columns: Vec<MdsColumn> = parts.iter().map(column).collect();
    columns.push(MdsColumn { name: KEY_COLUMN.to_owned(), encoding: Encoding::Raw(RawKind::Text) });
    let options = MdsOptions { size_limit: None, samples: Some(samples), ..output.mds_options() };
    Ok(Form::Mds(Box::new(MdsSchema::new(columns, options)?)))
}

/// Sample `i`.
fn make(parts: &[Part], i: usize) -> calotype_data::Result<Sample> {
    let mut sample = Sample::new(format!("{i:09}"));
    for part in parts {
        let mut random = Stream::new(part.seed, Purpose::Noise, i as u64);
        let bytes = match &part.kind {
            Kind::Image { height, width, jpeg } => image(&mut random, *width, *height, *jpeg, &sample.key)?,
            Kind::Text => text(&mut random).into_bytes(),
            Kind::Class(classes) => random.below(*classes).to_string().into_bytes(),
            Kind::Array { values, shape, range, raw } => {
                let mut out = if *raw { Vec::new() } else { header_bytes(values.descr(), shape) };
                let count = shape.iter().product();
                push_values(&mut random, *values, *range, count, &mut out);
                out
            }
        };
        sample.parts.insert(part.name.clone(), bytes);
    }
    Ok(sample)
}

/// Random colours, one in every 32nd pixel, and smooth between them: about as large as photographs when encoded.
fn image(random: &mut Stream, width: usize, height: usize, jpeg: bool, key: &str) -> calotype_data::Result<Vec<u8>> {
    let (columns, rows) = (width.div_ceil(CELL) + 1, height.div_ceil(CELL) + 1);
    let levels = (0..3 * columns * rows).map(|_| random.next_u32() as u8).collect();
    let image = RgbImage::new(columns, rows, levels)?.resize(width, height, Filter::Bicubic)?;
    if !jpeg {
        return image.encode_png(PngEffort::Fast);
    }
    let mut out = Vec::new();
    JpegEncoder::new_with_quality(&mut out, QUALITY)
        .write_image(image.data(), width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|e| calotype_data::Error::BadImage { key: key.to_owned(), detail: e.to_string() })?;
    Ok(out)
}

/// The caption of one of the embedded images on one of the backgrounds.
fn text(random: &mut Stream) -> String {
    let images = pairs();
    let name = images[random.below(images.len() as u64) as usize].name;
    caption(name, BACKGROUNDS[random.below(BACKGROUNDS.len() as u64) as usize].0)
}

fn push_values(random: &mut Stream, values: ArrayType, range: Option<(i64, i64)>, count: usize, out: &mut Vec<u8>) {
    out.reserve_exact(count * values.size());
    let Some((low, high)) = range else {
        for _ in 0..count {
            let value = random.normal();
            match values.size() {
                2 => out.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
                4 => out.extend_from_slice(&value.to_le_bytes()),
                _ => out.extend_from_slice(&f64::from(value).to_le_bytes()),
            }
        }
        return;
    };
    for _ in 0..count {
        let value = low + random.below((high - low) as u64) as i64;
        // Two's complement: the low bytes are the value's in every width that can hold it.
        out.extend_from_slice(&value.to_le_bytes()[..values.size()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_read_and_slips_refused() {
        assert_eq!("png:3x5".parse(), Ok(Kind::Image { height: 3, width: 5, jpeg: false }));
        assert_eq!("class:10".parse(), Ok(Kind::Class(10)));
        let tokens: Kind = "array:int64:77:0..128".parse().unwrap();
        assert!(matches!(tokens, Kind::Array { range: Some((0, 128)), raw: false, .. }));
        let wrong = [
            "",
            "png",
            "png:0x4",
            "png:4",
            "jpg:99999x2",
            "text:1",
            "class:0",
            "array:float32",
            "array:int8:4",
            "array:int8:4:0..300",
            "array:uint8:4:-1..3",
            "array:float32:4:0..1",
            "array:complex64:4",
            "raw:float16:0",
            "array:float32:99999999,99999999",
            "array:int64:2:5..5",
        ];
        for text in wrong {
            assert!(text.parse::<Kind>().is_err(), "{text}");
        }
        assert!("array:int8:4:-128..128".parse::<Kind>().is_ok() && "array:uint64:4:0..9".parse::<Kind>().is_ok());
    }

    #[test]
    fn presets_are_made_of_known_kinds() {
        for (name, parts) in PRESETS {
            for part in parts {
                let kind = part.split_once('=').unwrap().1.replace("{s}", "64").replace("{l}", "8").replace("{c}", "9");
                assert!(kind.parse::<Kind>().is_ok(), "{name}: {kind}");
            }
        }
    }
}
