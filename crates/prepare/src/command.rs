//! The stages as subcommands of `calotype data`.

use calotype_data::Control;

use crate::{Report, Result, convert, emoji, synth};

/// A stage and its settings.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum DataStage {
    /// Write the embedded captioned pictures as webdataset shards.
    Emoji(emoji::EmojiArgs),
    /// Write a dataset anew, as webdataset or MDS shards.
    Convert(convert::ConvertArgs),
    /// Make random data of any shape, to measure and to try things with.
    Synth(synth::SynthArgs),
}

impl DataStage {
    /// Does the stage's work.
    ///
    /// # Errors
    /// Those of the stage.
    pub fn run(&self, control: &mut Control<'_>) -> Result<Report> {
        match self {
            DataStage::Emoji(args) => emoji::run(args, control),
            DataStage::Convert(args) => convert::run(args, control),
            DataStage::Synth(args) => synth::run(args, control),
        }
    }
}
