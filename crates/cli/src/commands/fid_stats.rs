//! `calotype data fid-stats`: what the Fréchet inception distance compares generated images with.

use super::check_output;
use super::judging::{STATISTICS, is_statistics};
use crate::args::DeviceArgs;
use anyhow::Result;
use calotype_core::numbers::count;
use calotype_data::Control;
use calotype_data::image::DecodeNotes;
use calotype_data::source::{SourceOptions, open};
use calotype_evaluate::features::inception::InceptionNetwork;
use calotype_evaluate::statistics;
use calotype_prepare::Account;
use calotype_prepare::pixels::PixelArgs;
use clap::Args;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, Args)]
pub(crate) struct FidStatsArgs {
    /// The images: a folder of images, shards or parquet files, or a pattern of shards.
    #[arg(value_name = "IMAGES")]
    images: String,
    /// File to write: an `.npz` archive of `mu` and `sigma`, as pytorch-fid and MLPerf read it.
    out: PathBuf,
    /// The Inception network: pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or its weights in another layout.
    #[arg(long, value_name = "PATH")]
    inception: PathBuf,
    /// Images at once.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = count::<usize>)]
    batch: usize,
    #[command(flatten)]
    pixels: PixelArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Mean and covariance of the features of all images.
pub(crate) fn fid_stats(args: &FidStatsArgs, control: &mut Control<'_>) -> Result<Account> {
    let started = Instant::now();
    check_output("OUT", &args.out, STATISTICS, is_statistics)?;
    let source = open(&args.images, &SourceOptions::default())?;
    let network = InceptionNetwork::load(&args.inception, &args.device.open()?)?;
    let (options, notes) = (args.pixels.options(), DecodeNotes::default());
    let (found, origin) = statistics::of_source(&*source, network, args.batch, (&options, &notes), control)?;
    let width = found.width();
    statistics::write(found, &origin, &args.out)?;
    let images = source.len() as u64;
    let mut account = Account { taken: images, written: images, ..Account::new("fid-stats") };
    account.seconds = started.elapsed().as_secs_f64();
    account.notes.extend(source.left_out().iter().map(|(reason, count)| format!("{count} images: {reason}")));
    account.notes.extend(notes.sentences(&options));
    account.notes.push(format!("mean and covariance of {width} features in {}", args.out.display()));
    Ok(account)
}
