//! The stage that writes the embedded captioned images as shards.

use std::path::PathBuf;
use std::time::Instant;

use calotype_data::emoji::{Split, write_dataset};
use calotype_data::{Control, ShardLimits};

use crate::paths::check_out;
use crate::{Account, Result};

/// Settings of the stage.
#[derive(Clone, Debug, clap::Args)]
pub struct EmojiArgs {
    /// Folder to write.
    pub out: PathBuf,
    /// train (all but the held-out tenth) or held_out.
    #[arg(long, default_value = "train", value_parser = ["train", "held_out"])]
    pub split: String,
    /// Side of the images in pixels.
    #[arg(long, default_value_t = 64, value_name = "PIXELS", value_parser = calotype_core::numbers::count::<usize>)]
    pub resolution: usize,
    /// Use only this many drawings, evenly chosen.
    #[arg(long, value_name = "N", value_parser = calotype_core::numbers::count::<usize>)]
    pub drawings: Option<usize>,
}

/// Writes the shards.
///
/// # Errors
/// Those of [`write_dataset`].
pub fn run(args: &EmojiArgs, control: &mut Control<'_>) -> Result<Account> {
    let started = Instant::now();
    check_out(&args.out)?;
    let split = if args.split == "train" { Split::Train } else { Split::HeldOut };
    let index = write_dataset(&args.out, args.resolution, ShardLimits::default(), split, args.drawings, control)?;
    let samples = index.samples as u64;
    Ok(Account {
        taken: samples,
        written: samples,
        bytes: index.shards.iter().map(|shard| shard.bytes).sum(),
        seconds: started.elapsed().as_secs_f64(),
        notes: vec![format!("{samples} samples in {} shards in {}", index.shards.len(), args.out.display())],
        ..Account::new("emoji")
    })
}
