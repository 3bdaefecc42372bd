//! `calotype data fid-stats`: what the Fréchet inception distance compares generated pictures with.

use anyhow::Result;
use calotype_data::image::RgbImage;
use calotype_data::npz::FeatureStatistics;
use calotype_data::source::folder::PICTURES;
use calotype_data::source::{SourceOptions, open};
use calotype_data::{Control, Source};
use calotype_metrics::GaussianAccumulator;
use calotype_prepare::Report;
use calotype_train::batches::picture_bytes;
use calotype_train::device::device;
use calotype_train::fid::FidEncoder;
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Args)]
pub(crate) struct FidStatsArgs {
    /// The pictures: a folder of pictures, shards or parquet files, or a pattern of shards.
    pictures: String,
    /// File to write: an `.npz` archive of `mu` and `sigma`, as pytorch-fid and MLPerf read it.
    out: PathBuf,
    /// The Inception network: pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or its weights in another layout.
    #[arg(long, value_name = "PATH")]
    inception: PathBuf,
    /// Pictures at once.
    #[arg(long, default_value_t = 32, value_name = "N")]
    batch: usize,
    /// cpu, or a device that this build was made with.
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    device: String,
}

/// Mean and covariance of the features of all pictures.
pub(crate) fn fid_stats(args: &FidStatsArgs, control: &mut Control<'_>) -> Result<Report> {
    let started = Instant::now();
    let source = open(&args.pictures, &SourceOptions::default())?;
    let encoder = FidEncoder::load(&args.inception, &device(&args.device)?)?;
    let statistics = statistics(source.as_ref(), &encoder, args.batch.max(1), control)?;
    statistics.write(&args.out)?;
    let pictures = source.len() as u64;
    let mut report = Report { taken: pictures, written: pictures, ..Report::new("fid-stats") };
    report.seconds = started.elapsed().as_secs_f64();
    report.notes.extend(source.left_out().iter().map(|(reason, count)| format!("{count} pictures: {reason}")));
    report.notes.push(format!("mean and covariance of {} features in {}", FidEncoder::WIDTH, args.out.display()));
    Ok(report)
}

fn statistics(
    source: &dyn Source,
    encoder: &FidEncoder,
    batch: usize,
    control: &mut Control<'_>,
) -> Result<FeatureStatistics> {
    let parts = PICTURES.map(str::to_owned);
    let picture = |number: usize| {
        let held = source.get(number)?;
        let sample = held.sample();
        RgbImage::decode(sample.key(), picture_bytes(&sample, &parts)?)
    };
    let mut features = GaussianAccumulator::new(FidEncoder::WIDTH)?;
    for first in (0..source.len()).step_by(batch) {
        control.checkpoint("fid-stats", first, source.len())?;
        let numbers = first..(first + batch).min(source.len());
        let pictures = numbers.map(picture).collect::<calotype_data::Result<Vec<_>>>()?;
        features.push(&encoder.features(&pictures)?)?;
    }
    let found = features.finish()?;
    Ok(FeatureStatistics { mean: found.mean, covariance: found.covariance })
}
