//! `quantize`: a checkpoint whose UNet is in 8 bits.

use super::ema::refuse_taken;
use super::{Usage, print};
use crate::args::{DeviceArgs, JsonArgs, PrecisionArgs, heading, seed};
use crate::checkpoint::{OpenArgs, open};
use anyhow::{Context, Result};
use calotype_core::numbers::{count, finite, share};
use calotype_core::{Progress, StopFlag, absence};
use calotype_data::emoji::{self, BACKGROUNDS, Split};
use calotype_evaluate::sweep::{CaptionSettings, Captions};
use calotype_pipeline::quantise::{Calibration, Quantisation, quantise};
use calotype_pipeline::{CutPrompt, LoadOptions, Observer, Pipeline, Settings, Step};
use clap::Args;
use std::path::PathBuf;

/// The captions that are built in.
const EMBEDDED: &str = "embedded";

#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    /// The checkpoint, in any layout.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// New folder for the result, a diffusers pipeline whose UNet only Calotype reads.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Share of the unevenness of activations that moves to the weights, 0 to 1 (SmoothQuant's alpha); 0: none, and nothing is
    /// calibrated.
    #[arg(long, default_value_t = 0.5, value_name = "X", value_parser = share, allow_negative_numbers = true)]
    smoothing: f64,
    /// A layer that stays as it is, or what it is in; * stands for any text (mid_block, *.conv_shortcut). Several times for several.
    #[arg(long, value_name = "LAYER", value_delimiter = ',')]
    keep: Vec<String>,
    #[command(flatten, next_help_heading = "Calibration")]
    calibration: CalibrationArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    json: JsonArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten, next_help_heading = heading::MODEL)]
    open: OpenArgs,
}

#[derive(Debug, Args)]
struct CalibrationArgs {
    /// Captions to draw: a .tsv table, a .txt file with one on each line, or whatever else `evaluate` takes; or embedded.
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    /// The column of the captions in tables.
    #[arg(long, value_name = "NAME", requires = "captions")]
    column: Option<String>,
    /// Number of captions [default: 16].
    #[arg(long, value_name = "N", value_parser = count::<usize>)]
    count: Option<usize>,
    /// Sampling steps [default: 20].
    #[arg(long, value_name = "N", value_parser = count::<usize>)]
    steps: Option<usize>,
    /// Side of the images in pixels [default: the checkpoint's].
    #[arg(long, value_name = "PIXELS", value_parser = count::<usize>)]
    size: Option<usize>,
    /// Images that are drawn in one batch [default: 1].
    #[arg(long, value_name = "N", value_parser = count::<usize>)]
    batch: Option<usize>,
    /// Guidance scale [default: the checkpoint's].
    #[arg(long, value_name = "X", value_parser = finite::<f32>, allow_negative_numbers = true)]
    guidance: Option<f32>,
    /// Seed of the noise [default: 0].
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true)]
    seed: Option<u64>,
}

impl CalibrationArgs {
    /// The first flag that is given.
    fn given(&self) -> Option<&'static str> {
        let given = [
            (self.captions.is_some(), "--captions"),
            (self.count.is_some(), "--count"),
            (self.steps.is_some(), "--steps"),
            (self.size.is_some(), "--size"),
            (self.batch.is_some(), "--batch"),
            (self.guidance.is_some(), "--guidance"),
            (self.seed.is_some(), "--seed"),
        ];
        given.into_iter().find(|(given, _)| *given).map(|(_, flag)| flag)
    }

    fn captions(&self) -> Result<Vec<String>> {
        let count = self.count.unwrap_or(16);
        let path = self.captions.as_ref().filter(|path| path.as_os_str() != EMBEDDED);
        let Some(path) = path else {
            let all = emoji::combinations(Split::Train, None)?;
            if count > all.len() {
                return Err(Usage(format!("--count {count}: there are {} embedded captions", all.len())).into());
            }
            let evenly = (0..count).map(|i| all[i * all.len() / count]);
            return Ok(evenly.map(|(i, c)| emoji::caption(emoji::pairs()[i].name, BACKGROUNDS[c].0)).collect());
        };
        if !path.exists() {
            let (path, near) = (path.display(), absence(path));
            return Err(Usage(format!(
                "--captions {path}: there is no such file{near}; `embedded` are captions that are built in"
            ))
            .into());
        }
        let settings = CaptionSettings { path: path.display().to_string(), column: self.column.clone() };
        let read = Captions::read(&settings, count);
        let captions = read.with_context(|| format!("--count asks for {count} captions"))?;
        Ok(captions.list.into_iter().map(|caption| caption.text).collect())
    }
}

/// Tells how far the drawing is, and ends it on a signal.
struct Watch {
    progress: Progress,
    batches: u64,
    done: u64,
    stop: StopFlag,
}

impl Observer for Watch {
    fn prompt_cut(&mut self, cut: &CutPrompt) {
        self.progress.message(&format!("note: a caption is cut: its last {} tokens are not drawn", cut.tokens));
    }

    fn step(&mut self, step: &Step<'_>) {
        self.progress.set_total(self.batches * step.progress.steps as u64);
        self.done += 1;
        self.progress.set(self.done, &[]);
    }

    fn go_on(&mut self) -> bool {
        !self.stop.is_set()
    }
}

/// Quantises the UNet of a checkpoint.
pub(crate) fn quantize_command(args: &QuantizeArgs) -> Result<()> {
    let QuantizeArgs { model, out, smoothing, keep, calibration, .. } = args;
    args.open.check(model)?;
    refuse_taken(out)?;
    if let Some(flag) = calibration.given().filter(|_| *smoothing == 0.0) {
        return Err(Usage(format!("{flag} has no effect with --smoothing 0, for which nothing is calibrated")).into());
    }
    let device = args.device.open()?;
    let checkpoint = open(model, &args.open.options())?;
    let quantisation = Quantisation { smoothing: *smoothing, keep: keep.clone() };
    quantisation.check(&checkpoint)?;
    let seen = match *smoothing > 0.0 {
        true => {
            let captions = calibration.captions()?;
            let precision = args.precision.precision.unwrap_or(calotype_ops::Precision::Auto);
            let options =
                LoadOptions { device, precision, start_images: false, low_memory: true, ..LoadOptions::default() };
            Some(calibrate(args, &Pipeline::load(&checkpoint, &options)?, &captions)?)
        }
        false => None,
    };
    let quantised = quantise(&checkpoint, seen.as_ref(), &quantisation, out)?;
    print(&if args.json.json { serde_json::to_string(&quantised)? } else { quantised.to_string() })
}

fn calibrate(args: &QuantizeArgs, pipeline: &Pipeline, captions: &[String]) -> Result<Calibration> {
    let CalibrationArgs { steps, size, batch, guidance, seed, .. } = args.calibration;
    let (steps, batch) = (steps.unwrap_or(20), batch.unwrap_or(1));
    let settings = Settings { width: size, height: size, steps, batch, ..Settings::default() };
    let stop = StopFlag::install_mute().context("cannot listen for signals")?;
    let batches = captions.len().div_ceil(batch) as u64;
    let progress = Progress::new("calibrate", batches * steps as u64).counting(["steps", "steps/s"]);
    let mut watch = Watch { progress, batches, done: 0, stop };
    let seen = Calibration::draw(pipeline, captions, (seed.unwrap_or(0), guidance), &settings, &mut watch)?;
    watch.progress.finish();
    Ok(seen)
}
