//! The stages as subcommands of `calotype data`.

use calotype_data::Control;

use crate::{Report, Result, emoji};

/// A stage and its settings.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum DataStage {
    /// Write the embedded captioned pictures as webdataset shards.
    Emoji(emoji::EmojiArgs),
}

impl DataStage {
    /// Does the stage's work.
    ///
    /// # Errors
    /// Those of the stage.
    pub fn run(&self, control: &mut Control<'_>) -> Result<Report> {
        match self {
            DataStage::Emoji(args) => emoji::run(args, control),
        }
    }
}
