//! The speed of reading training images: shards of JPEGs through the loader to batches of numbers.
//!
//! The work is that of a training run from raw images: read a sample, decode its JPEG, resize the shorter side
//! (bicubic, Pillow's bytes), cut a random square out of it, mirror every second one, and make `f32` batches
//! `[batch, size, size, 3]` from -1 to 1. `scripts/compare-data.sh` runs PyTorch's DataLoader over the same shards.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use calotype_core::{Purpose, Stream};
use calotype_data::emoji;
use calotype_data::image::{Filter, RgbImage, RgbaImage};
use calotype_data::transform::{CropSettings, ImageTransform, Place, Resize, Transform};
use calotype_data::{
    Control, Dataset, DatasetIndex, GlobalOrder, Loader, LoaderConfig, Sample, SampleRef, ShardLimits, ShardWriter,
};
use rayon::prelude::*;
use serde::Serialize;

use crate::Result;

/// Settings of the benchmark.
#[derive(Clone, Debug, clap::Args)]
pub struct LoaderBench {
    /// Folder of the shards; they are made if it holds none.
    #[arg(long, default_value = "runs/bench-data")]
    pub shards: PathBuf,
    /// Number of images to make.
    #[arg(long, default_value_t = 600, value_name = "N", value_parser = calotype_core::numbers::count::<usize>)]
    pub samples: usize,
    /// Shortest side of the images to make, in pixels.
    #[arg(long, default_value_t = 640, value_name = "PIXELS", value_parser = calotype_core::numbers::count::<usize>)]
    pub shortest: usize,
    /// Longest side of the images to make, in pixels.
    #[arg(long, default_value_t = 1024, value_name = "PIXELS", value_parser = calotype_core::numbers::count::<usize>)]
    pub longest: usize,
    /// Side of the training images, in pixels.
    #[arg(long, default_value_t = 512, value_name = "PIXELS", value_parser = calotype_core::numbers::count::<usize>)]
    pub size: usize,
    /// Images in a batch.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = calotype_core::numbers::count::<usize>)]
    pub batch: usize,
    /// Threads that decode.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = calotype_core::numbers::count::<usize>)]
    pub threads: usize,
    /// Passes over the shards; the fastest counts.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = calotype_core::numbers::count::<usize>)]
    pub passes: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Measured figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoaderFigures {
    /// Images in a pass.
    pub images: usize,
    /// Seconds of the fastest pass.
    pub seconds: f64,
    /// Images a second in that pass.
    pub images_per_second: f64,
    /// Megabytes (10⁶) of JPEG a second in that pass.
    pub megabytes_per_second: f64,
    /// Images a second in every pass.
    pub passes: Vec<f64>,
    /// Threads that decoded.
    pub threads: usize,
    /// Images in a batch.
    pub batch: usize,
    /// Side of the images delivered.
    pub size: usize,
    /// Mean length of a JPEG, in bytes.
    pub mean_bytes: f64,
    /// Most memory that the process held, in bytes; shards count, as far as they were mapped. `None` where the system does
    /// not tell.
    pub peak_memory: Option<u64>,
    /// Milliseconds of one thread for an image: decoding alone.
    pub decode_ms: f64,
    /// Milliseconds of one thread for an image: decoding, resizing, cropping and mirroring.
    pub image_ms: f64,
    /// Milliseconds of one thread for an image: making numbers of it.
    pub numbers_ms: f64,
}

impl std::fmt::Display for LoaderFigures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let LoaderFigures { images, images_per_second, megabytes_per_second, threads, size, .. } = self;
        writeln!(f, "{images} JPEGs of {:.0} kB each to {size}x{size}, {threads} threads", self.mean_bytes / 1e3)?;
        writeln!(f, "{images_per_second:.1} images/s, {megabytes_per_second:.1} MB/s")?;
        let resize = self.image_ms - self.decode_ms;
        write!(f, "one thread: decode {:.2} ms, resize and crop {resize:.2} ms", self.decode_ms)?;
        write!(f, ", numbers {:.2} ms", self.numbers_ms)?;
        match self.peak_memory {
            Some(bytes) => write!(f, "\npeak memory {:.0} MB", bytes as f64 / 1e6),
            None => Ok(()),
        }
    }
}

/// Makes the shards if they are not there, and reads them.
///
/// # Errors
/// Those of writing and reading datasets.
pub fn bench_loader(settings: &LoaderBench, control: &mut Control<'_>) -> Result<LoaderFigures> {
    if DatasetIndex::read(&settings.shards)?.is_none() {
        make_shards(settings, control)?;
    }
    let dataset = Arc::new(Dataset::open(&settings.shards)?);
    let pipeline = Arc::new(transform(settings.size).build()?);
    let passes = (0..settings.passes.max(1)).map(|pass| one_pass(settings, &dataset, &pipeline, pass as u64));
    let passes = passes.collect::<Result<Vec<f64>>>()?;
    let peak_memory = peak_memory();
    let seconds = passes.iter().copied().fold(f64::INFINITY, f64::min);
    let images = dataset.len();
    let bytes: usize = (0..images).map(|i| Ok(jpeg(&dataset.get(i)?)?.len())).sum::<Result<usize>>()?;
    let [decode_ms, image_ms, numbers_ms] = stages(&dataset, &pipeline)?;
    Ok(LoaderFigures {
        images,
        seconds,
        images_per_second: images as f64 / seconds,
        megabytes_per_second: bytes as f64 / 1e6 / seconds,
        passes: passes.iter().map(|seconds| images as f64 / seconds).collect(),
        threads: settings.threads,
        batch: settings.batch,
        size: settings.size,
        mean_bytes: bytes as f64 / images as f64,
        peak_memory,
        decode_ms,
        image_ms,
        numbers_ms,
    })
}

/// The transform that is measured.
fn transform(size: usize) -> Transform {
    let crop = Some(CropSettings { place: Place::Random, size: None });
    Transform { resize: Resize::Shorter(size), crop, flip: 0.5, ..Transform::default() }
}

fn jpeg<'a>(sample: &SampleRef<'a>) -> calotype_data::Result<&'a [u8]> {
    sample.part("jpg")
}

/// Reads everything once, and returns the seconds that it took, from making the loader to the last batch.
fn one_pass(settings: &LoaderBench, dataset: &Arc<Dataset>, pipeline: &Arc<ImageTransform>, seed: u64) -> Result<f64> {
    let order = Arc::new(GlobalOrder::new(seed, dataset.len())?);
    let config = LoaderConfig {
        threads: settings.threads,
        prefetch: settings.threads + 1,
        end: Some(dataset.len() as u64),
        ..LoaderConfig::new(settings.batch)
    };
    let mut numbers = Vec::with_capacity(settings.batch * settings.size * settings.size * 3);
    let started = Instant::now();
    let decoding = Arc::clone(pipeline);
    let decode = move |position: u64, sample: &SampleRef<'_>| -> calotype_data::Result<RgbImage> {
        Ok(decoding.image(sample.key(), jpeg(sample)?, seed, position)?.0)
    };
    for batch in Loader::new(Arc::clone(dataset), order, config, decode)? {
        numbers.clear();
        batch?.items.iter().for_each(|image| pipeline.append_image(image, &mut numbers));
        std::hint::black_box(&numbers);
    }
    Ok(started.elapsed().as_secs_f64())
}

/// Milliseconds of this thread for an image: decoding; decoding, resizing and cropping; making numbers.
fn stages(dataset: &Dataset, pipeline: &ImageTransform) -> Result<[f64; 3]> {
    let count = dataset.len().min(64);
    let mut best = [f64::INFINITY; 3];
    for _ in 0..3 {
        let started = Instant::now();
        for i in 0..count {
            let sample = dataset.get(i)?;
            std::hint::black_box(RgbImage::decode(sample.key(), jpeg(&sample)?)?);
        }
        let decoded = started.elapsed().as_secs_f64();
        let mut images = Vec::with_capacity(count);
        let started = Instant::now();
        for i in 0..count {
            let sample = dataset.get(i)?;
            images.push(pipeline.image(sample.key(), jpeg(&sample)?, 0, i as u64)?.0);
        }
        let made = started.elapsed().as_secs_f64();
        let mut numbers = Vec::new();
        let started = Instant::now();
        for image in &images {
            numbers.clear();
            pipeline.append_image(image, &mut numbers);
            std::hint::black_box(&numbers);
        }
        let numbers = started.elapsed().as_secs_f64();
        for (best, seconds) in best.iter_mut().zip([decoded, made, numbers]) {
            *best = best.min(seconds * 1e3 / count as f64);
        }
    }
    Ok(best)
}

/// Writes the shards: images with the statistics of photographs, with drawings on them, as JPEGs of quality 90.
///
/// # Errors
/// Those of writing a dataset.
pub fn make_shards(settings: &LoaderBench, control: &mut Control<'_>) -> Result<DatasetIndex> {
    let limits = ShardLimits { samples: 100, ..ShardLimits::default() };
    let mut writer = ShardWriter::create(&settings.shards, "bench", limits)?;
    let all: Vec<usize> = (0..settings.samples).collect();
    for chunk in all.chunks(32) {
        control.checkpoint("bench data", chunk[0], settings.samples)?;
        let made: Vec<_> = chunk.par_iter().map(|number| sample(settings, *number as u64)).collect();
        for sample in made {
            writer.write(&sample?)?;
        }
    }
    Ok(writer.finish()?)
}

fn sample(settings: &LoaderBench, number: u64) -> calotype_data::Result<Sample> {
    let mut stream = Stream::new(0, Purpose::Evaluation, number);
    let room = settings.longest.saturating_sub(settings.shortest) as u64 + 1;
    let [width, height] = [0; 2].map(|_| settings.shortest + stream.below(room) as usize);
    let background = scene(width, height, &mut stream)?;
    let pairs = emoji::pairs();
    let drawing = &pairs[stream.below(pairs.len() as u64) as usize];
    let side = width.min(height) / 3;
    let overlay = RgbaImage::decode(drawing.name, drawing.png)?.resize(side, side, Filter::Bicubic)?;
    let corner = (stream.below((width - side) as u64) as usize, stream.below((height - side) as u64) as usize);
    let image = pasted(background, &overlay, corner)?;
    Ok(Sample::new(format!("{number:09}"))
        .with("jpg", image.encode_jpeg(90)?)
        .with("txt", drawing.name.as_bytes())
        .with("json", format!("{{\"width\": {width}, \"height\": {height}}}\n")))
}

/// Noise in octaves of falling power, somewhat more of the fine ones than photographs have (Field, "Relations between the
/// statistics of natural images and the response properties of cortical cells", 1987); colours vary less than light.
fn scene(width: usize, height: usize, stream: &mut Stream) -> calotype_data::Result<RgbImage> {
    let mut sum = vec![0.0f32; width * height * 3];
    let mut amplitude = 0.4;
    let mut cells = 4;
    while cells <= 1024 {
        let (w, h) = ((width * cells / 1024).max(2), (height * cells / 1024).max(2));
        let mut grid = Vec::with_capacity(w * h * 3);
        for _ in 0..w * h {
            let light = stream.below(200) as i32 + 28;
            grid.extend((0..3).map(|_| (light + stream.below(57) as i32 - 28) as u8));
        }
        let octave = RgbImage::new(w, h, grid)?.resize(width, height, Filter::Bicubic)?;
        for (sum, level) in sum.iter_mut().zip(octave.data()) {
            *sum += (f32::from(*level) - 128.0) * amplitude;
        }
        amplitude *= 0.7;
        cells *= 2;
    }
    RgbImage::new(width, height, sum.iter().map(|value| (128.0 + 1.6 * value) as u8).collect())
}

/// `overlay` laid over `background` with its upper left corner at `corner`, (x, y).
fn pasted(background: RgbImage, overlay: &RgbaImage, corner: (usize, usize)) -> calotype_data::Result<RgbImage> {
    let (width, height) = (background.width(), background.height());
    let mut data = background.into_data();
    for (y, row) in overlay.data().chunks_exact(4 * overlay.width()).enumerate() {
        let at = 3 * ((corner.1 + y) * width + corner.0);
        for (under, over) in data[at..].as_chunks_mut::<3>().0.iter_mut().zip(row.as_chunks::<4>().0) {
            let alpha = u32::from(over[3]);
            for (under, over) in under.iter_mut().zip(over) {
                *under = ((u32::from(*over) * alpha + u32::from(*under) * (255 - alpha) + 127) / 255) as u8;
            }
        }
    }
    RgbImage::new(width, height, data)
}

/// The most memory that this process has held, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_made_once_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let settings = LoaderBench {
            shards: dir.path().join("shards"),
            samples: 7,
            shortest: 40,
            longest: 70,
            size: 32,
            batch: 3,
            threads: 2,
            passes: 2,
            json: false,
        };
        let figures = bench_loader(&settings, &mut Control::default()).unwrap();
        assert_eq!((figures.images, figures.passes.len()), (7, 2));
        assert!(figures.images_per_second > 0.0 && figures.mean_bytes > 500.0, "{figures}");
        let first = std::fs::read(settings.shards.join("index.json")).unwrap();
        bench_loader(&settings, &mut Control::default()).unwrap();
        assert_eq!(std::fs::read(settings.shards.join("index.json")).unwrap(), first);
    }
}
