//! `similarity`: how well pictures and texts go together, by CLIP.

use crate::args::{DeviceArgs, JsonArgs, PrecisionArgs, heading};
use crate::checkpoint;
use crate::commands::{Usage, harmless, print};
use anyhow::Result;
use calotype_checkpoints::OpenOptions;
use calotype_core::numbers::count;
use calotype_core::text::read_text;
use calotype_data::image::{DecodeNotes, RgbImage};
use calotype_evaluate::EvaluateError;
use calotype_evaluate::vision::{Comparison, Placing, Similarity, open_clip, picture_files, read_pictures};
use calotype_ops::Precision;
use calotype_prepare::pixels::PixelArgs;
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct SimilarityArgs {
    /// A CLIP model in any layout, or the folder of a training run.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A picture, or a folder of pictures; may be given several times.
    #[arg(long, value_name = "PATH", required = true, help_heading = heading::IMAGE)]
    image: Vec<PathBuf>,
    /// A text; may be given several times.
    #[arg(long, value_name = "TEXT", help_heading = heading::PROMPTS)]
    text: Vec<String>,
    /// More texts, one a line.
    #[arg(long, value_name = "FILE", help_heading = heading::PROMPTS)]
    texts: Option<PathBuf>,
    #[command(flatten, next_help_heading = heading::IMAGE)]
    pixels: PixelArgs,
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

/// What is told of a picture and a text.
#[derive(Serialize)]
struct Pair<'a> {
    image: &'a str,
    text: &'a str,
    cosine: f32,
    probability: f64,
}

/// Compares pictures with texts.
pub(crate) fn similarity_command(args: &SimilarityArgs) -> Result<()> {
    let texts = args.all_texts()?;
    let files = picture_files(&args.image)?;
    let device = args.device.open()?;
    let dtype = args.precision.precision.unwrap_or(Precision::Auto).dtype(&device);
    let checkpoint = checkpoint::open(&args.model, &OpenOptions::default())?;
    let clip = open_clip(&checkpoint, &Placing { device, dtype })?;
    let (decode, notes) = (args.pixels.options(), DecodeNotes::default());
    let compared = Comparison::new(&clip, texts.iter().map(String::as_str).collect())?;
    for (text, cut) in texts.iter().zip(compared.cut()).filter(|(_, cut)| *cut > 0) {
        eprintln!(
            "warning: the last {cut} tokens of `{}` are not read: the model reads {}",
            harmless(text),
            clip.context()
        );
    }
    for files in files.chunks(args.batch) {
        let images = read_pictures(files, &decode, &notes).into_iter().collect::<Result<Vec<_>, _>>()?;
        let pixels: Vec<&RgbImage> = images.iter().collect();
        tell(files, &texts, &compared.with(&pixels)?, args.json.json)?;
    }
    for sentence in notes.sentences(&decode) {
        eprintln!("note: {sentence}");
    }
    Ok(())
}

/// Prints what was found of some pictures.
fn tell(files: &[PathBuf], texts: &[String], found: &Similarity, json: bool) -> Result<()> {
    let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    for (at, pair) in pairs(&names, texts, found).iter().enumerate() {
        match (json, at % texts.len()) {
            (true, _) => print(&serde_json::to_string(pair)?)?,
            (false, 0) => print(&harmless(&format!("{}\n{}", pair.image, line(pair))))?,
            (false, _) => print(&harmless(&line(pair)))?,
        }
    }
    Ok(())
}

fn pairs<'a>(images: &'a [String], texts: &'a [String], found: &Similarity) -> Vec<Pair<'a>> {
    let all = images.iter().flat_map(|image| texts.iter().map(move |text| (image, text)));
    let numbers = found.cosines.iter().zip(&found.probabilities);
    all.zip(numbers).map(|((image, text), (&cosine, &probability))| Pair { image, text, cosine, probability }).collect()
}

fn line(pair: &Pair<'_>) -> String {
    format!("  cosine {:7.4}  probability {:.4}  {}", pair.cosine, pair.probability, pair.text)
}

impl SimilarityArgs {
    fn all_texts(&self) -> Result<Vec<String>> {
        let mut texts = self.text.clone();
        if let Some(file) = &self.texts {
            let text = read_text(file).map_err(EvaluateError::io("read", file))?;
            let before = texts.len();
            texts.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
            if texts.len() == before {
                let file = file.display();
                return Err(
                    Usage(format!("--texts {file}: there is no text in the file, which has one on each line")).into()
                );
            }
        }
        match texts.is_empty() {
            true => Err(Usage("there is no text: give one by --text, or a file of them by --texts".to_owned()).into()),
            false => Ok(texts),
        }
    }
}
