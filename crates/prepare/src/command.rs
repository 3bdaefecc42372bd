//! The stages as subcommands of `calotype data`.

use calotype_data::Control;

use crate::{Account, Result, check, coco, convert, download, emoji, fetch, filter, index, reorganize, synth};

/// A stage and its settings.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum DataStage {
    /// Fetch checkpoints and datasets: by name, from repositories, from lists of addresses with checksums.
    Fetch(fetch::FetchArgs),
    /// Leave out rows of parquet tables: by licence, size, similarity, or any condition.
    Filter(filter::FilterArgs),
    /// Download the images of a list of addresses into webdataset shards.
    Download(Box<download::DownloadArgs>),
    /// Write a dataset anew, as webdataset or MDS shards.
    Convert(convert::ConvertArgs),
    /// Sort samples into shards of equal counts; merge shards that are not full; join parts from other shards.
    Reorganize(reorganize::ReorganizeArgs),
    /// List the shards of a folder with sizes, counts and checksums: index.json, and NeMo's wdinfo.
    Index(index::IndexArgs),
    /// Read everything, and list corrupt and odd samples.
    Check(check::CheckArgs),
    /// Make the benchmarks' evaluation set of COCO-2014: the exact list of captions, the images in one size.
    Coco(coco::CocoArgs),
    /// Make random data of any shape, to measure and to try things with.
    Synth(synth::SynthArgs),
    /// Write the embedded captioned images as webdataset shards.
    Emoji(emoji::EmojiArgs),
}

impl DataStage {
    /// Does the stage's work.
    ///
    /// # Errors
    /// Those of the stage.
    pub fn run(&self, control: &mut Control<'_>) -> Result<Account> {
        match self {
            DataStage::Fetch(args) => fetch::run(args, control),
            DataStage::Filter(args) => filter::run(args, control),
            DataStage::Download(args) => download::run(args, control),
            DataStage::Convert(args) => convert::run(args, control),
            DataStage::Reorganize(args) => reorganize::run(args, control),
            DataStage::Index(args) => index::run(args, control),
            DataStage::Check(args) => check::run(args, control),
            DataStage::Coco(args) => coco::run(args, control),
            DataStage::Synth(args) => synth::run(args, control),
            DataStage::Emoji(args) => emoji::run(args, control),
        }
    }
}
