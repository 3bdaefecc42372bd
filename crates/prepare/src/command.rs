//! The stages as subcommands of `calotype data`.

use calotype_data::Control;

use crate::{Report, Result, download, emoji};

/// A stage and its settings.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum DataStage {
    /// Write the embedded captioned pictures as webdataset shards.
    Emoji(emoji::EmojiArgs),
    /// Download the pictures of a list of addresses into webdataset shards.
    Download(Box<download::DownloadArgs>),
}

impl DataStage {
    /// Does the stage's work.
    ///
    /// # Errors
    /// Those of the stage.
    pub fn run(&self, control: &mut Control<'_>) -> Result<Report> {
        match self {
            DataStage::Emoji(args) => emoji::run(args, control),
            DataStage::Download(args) => download::run(args, control),
        }
    }
}
