//! `classify`: what is on pictures, by a classifier or by CLIP and a list of classes.

use crate::args::{DeviceArgs, JsonArgs, PrecisionArgs, heading, named};
use crate::checkpoint;
use crate::commands::{Usage, check_output, harmless, message, print};
use anyhow::{Result, anyhow};
use calotype_checkpoints::OpenOptions;
use calotype_core::durable::write_bytes;
use calotype_core::numbers::count;
use calotype_data::image::{DecodeNotes, RgbImage};
use calotype_evaluate::vision::{
    Classifier, ClassifierInput, Guess, Placing, ZeroShot, check_classifies, class_names, classify, has_head,
    open_clip, open_head, picture_files, read_pictures, templates,
};
use calotype_ops::Precision;
use calotype_prepare::pixels::PixelArgs;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Args)]
pub(crate) struct ClassifyArgs {
    /// A classifier (ViT, EfficientNet-Lite) or a CLIP model, in any layout, or the folder of a training run.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Pictures, or folders of pictures.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Names of the classes: a built-in list (imagenet), a file with one on each line or JSON, or, given several times, the
    /// names themselves [default: a classifier's own].
    #[arg(long, value_name = "LIST", help_heading = heading::MODEL)]
    classes: Vec<String>,
    /// Text around the names, for CLIP: with {} in the place of a name, a built-in list (openai, simple), or a file; may be given
    /// several times [default: "a photo of a {}."].
    #[arg(long, value_name = "TEXT", help_heading = heading::MODEL)]
    template: Vec<String>,
    /// How pictures are prepared for a classifier [default: checkpoint].
    #[arg(long, value_name = "NAME", value_parser = named::<ClassifierInput>(), help_heading = heading::MODEL)]
    preparation: Option<ClassifierInput>,
    #[command(flatten, next_help_heading = heading::IMAGE)]
    pixels: PixelArgs,
    /// Classes of each picture that are told, the most probable ones.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = count::<usize>, help_heading = heading::OUTPUT)]
    top: usize,
    /// Write a table of pictures and classes; they are printed with --json alone then.
    #[arg(long, value_name = "FILE", help_heading = heading::OUTPUT)]
    csv: Option<PathBuf>,
    #[command(flatten)]
    json: JsonArgs,
    /// Pictures at once.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = count::<usize>, help_heading = heading::MACHINE)]
    batch: usize,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What is told of a picture.
#[derive(Serialize)]
struct Told {
    image: String,
    classes: Vec<Guess>,
}

/// Classifies pictures.
pub(crate) fn classify_command(args: &ClassifyArgs) -> Result<()> {
    let files = picture_files(&args.images)?;
    if let Some(file) = &args.csv {
        check_output("--csv", file, "a table of classes", is_table)?;
    }
    let classifier = args.classifier()?;
    let (decode, notes) = (args.pixels.options(), DecodeNotes::default());
    let (mut told, mut unread) = (Vec::new(), 0);
    for files in files.chunks(args.batch) {
        let mut images: Vec<(&Path, RgbImage)> = Vec::new();
        for (file, image) in files.iter().zip(read_pictures(files, &decode, &notes)) {
            match image {
                Ok(image) => images.push((file.as_path(), image)),
                Err(error) => {
                    eprintln!("warning: {}", message(&error.into()));
                    unread += 1;
                }
            }
        }
        let pixels: Vec<&RgbImage> = images.iter().map(|(_, image)| image).collect();
        let found = if pixels.is_empty() { Vec::new() } else { classify(&*classifier, &pixels, args.top)? };
        let new =
            images.iter().zip(found).map(|((file, _), classes)| Told { image: file.display().to_string(), classes });
        let new: Vec<Told> = new.collect();
        if args.csv.is_none() || args.json.json {
            new.iter().try_for_each(|told| print_one(told, args.json.json))?;
        }
        told.extend(new);
    }
    for sentence in notes.sentences(&decode) {
        eprintln!("note: {sentence}");
    }
    if let Some(file) = &args.csv {
        write_bytes(file, &table(&told)?).map_err(|error| anyhow!("cannot write {}: {error}", file.display()))?;
        let said = format!("{} pictures in {}", told.len(), file.display());
        // Standard output is JSON alone.
        if args.json.json { eprintln!("{said}") } else { print(&said)? }
    }
    if unread > 0 {
        return Err(anyhow!("{unread} of {} pictures cannot be read", files.len()));
    }
    Ok(())
}

impl ClassifyArgs {
    fn classifier(&self) -> Result<Box<dyn Classifier>> {
        let checkpoint = checkpoint::open(&self.model, &OpenOptions::default())?;
        check_classifies(&checkpoint)?;
        let device = self.device.open()?;
        let dtype = self.precision.precision.unwrap_or(Precision::Auto).dtype(&device);
        let placing = Placing { device, dtype };
        if has_head(&checkpoint) {
            if !self.template.is_empty() {
                return Err(Usage("--template is of CLIP models, and this one has a head of classes".to_owned()).into());
            }
            let preparation = self.preparation.unwrap_or_default();
            return Ok(Box::new(open_head(&checkpoint, &self.classes, preparation, &placing)?));
        }
        if self.preparation.is_some() {
            return Err(Usage("--preparation is of classifiers; a CLIP model has its own".to_owned()).into());
        }
        let clip = open_clip(&checkpoint, &placing)?;
        if self.classes.is_empty() {
            return Err(Usage(
                "a CLIP model needs names of classes: --classes imagenet, or a file, or several names".to_owned(),
            )
            .into());
        }
        let usual = vec!["a photo of a {}.".to_owned()];
        let texts = templates(if self.template.is_empty() { &usual } else { &self.template })?;
        let scale = clip.scale();
        Ok(Box::new(ZeroShot::new(clip, scale, class_names(&self.classes)?, texts)?))
    }
}

fn print_one(told: &Told, json: bool) -> Result<()> {
    if json {
        return print(&serde_json::to_string(told)?);
    }
    let guesses = told.classes.iter().map(|guess| format!("\n  {:.4}  {}", guess.probability, guess.name));
    print(&harmless(&format!("{}{}", told.image, guesses.collect::<String>())))
}

/// The columns of `--csv`.
const COLUMNS: [&str; 5] = ["image", "rank", "class", "name", "probability"];

/// Whether a file begins as a table that was written before.
fn is_table(path: &Path) -> bool {
    csv::Reader::from_path(path).is_ok_and(|mut table| table.headers().is_ok_and(|found| found.iter().eq(COLUMNS)))
}

fn table(told: &[Told]) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS)?;
    for Told { image, classes } in told {
        for (at, Guess { class, name, probability }) in classes.iter().enumerate() {
            let (rank, class, probability) = ((at + 1).to_string(), class.to_string(), probability.to_string());
            writer.write_record([image, &rank, &class, name, &probability])?;
        }
    }
    writer.into_inner().map_err(|error| anyhow!("{error}"))
}
