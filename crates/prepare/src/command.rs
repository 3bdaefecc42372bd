//! The stages as subcommands of `calotype data`.

use calotype_data::Control;

use crate::{Report, Result, emoji, fetch, filter};

/// A stage and its settings.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum DataStage {
    /// Write the embedded captioned pictures as webdataset shards.
    Emoji(emoji::EmojiArgs),
    /// Fetch checkpoints and datasets: by name, from repositories, from lists of addresses with checksums.
    Fetch(fetch::FetchArgs),
    /// Leave out rows of parquet tables: by licence, size, similarity, or any condition.
    Filter(filter::FilterArgs),
}

impl DataStage {
    /// Does the stage's work.
    ///
    /// # Errors
    /// Those of the stage.
    pub fn run(&self, control: &mut Control<'_>) -> Result<Report> {
        match self {
            DataStage::Emoji(args) => emoji::run(args, control),
            DataStage::Fetch(args) => fetch::run(args, control),
            DataStage::Filter(args) => filter::run(args, control),
        }
    }
}
