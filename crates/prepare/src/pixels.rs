//! Arguments of all commands that decode images.

use calotype_data::image::{Background, DecodeOptions};

/// What is made of an image's orientation and transparency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct PixelArgs {
    /// Take pixels as they are stored; otherwise they are turned upright, as the EXIF orientation says.
    #[arg(long)]
    pub as_stored: bool,
    /// What stands behind transparent pixels: white, black, grey, a colour such as "#c0ffee", or "keep hidden colours", the
    /// ones stored under them [default: white].
    #[arg(long, value_name = "COLOUR")]
    pub background: Option<Background>,
}

impl PixelArgs {
    /// The same for the decoder.
    pub fn options(&self) -> DecodeOptions {
        let usual = DecodeOptions::default();
        let background = self.background.unwrap_or(usual.background);
        DecodeOptions { orient: !self.as_stored, background, ..usual }
    }
}
