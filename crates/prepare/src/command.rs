//! The stages as subcommands of `calotype data`.

use calotype_data::Control;

use crate::{Report, Result, coco, emoji};

/// A stage and its settings.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum DataStage {
    /// Write the embedded captioned pictures as webdataset shards.
    Emoji(emoji::EmojiArgs),
    /// Make the benchmarks' evaluation set of COCO-2014: the exact list of captions, the pictures in one size.
    Coco(coco::CocoArgs),
}

impl DataStage {
    /// Does the stage's work.
    ///
    /// # Errors
    /// Those of the stage.
    pub fn run(&self, control: &mut Control<'_>) -> Result<Report> {
        match self {
            DataStage::Emoji(args) => emoji::run(args, control),
            DataStage::Coco(args) => coco::run(args, control),
        }
    }
}
