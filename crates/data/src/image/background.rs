//! What stands in for transparent pixels, and accounts of what decoding changed.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::decode::{DecodeOptions, Decoded};

/// What becomes of transparent pixels where an image is read as RGB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Background {
    /// They are laid on a colour, as Pillow's `Image.alpha_composite` does.
    Colour([u8; 3]),
    /// Alpha is dropped, and the colours appear that were stored under it: Pillow's `convert("RGB")`.
    KeepHidden,
}

/// The name of [`Background::KeepHidden`].
const KEEP_HIDDEN: &str = "keep hidden colours";

/// Colours with a name.
const NAMED: [(&str, [u8; 3]); 4] = [("white", [255; 3]), ("black", [0; 3]), ("grey", [128; 3]), ("gray", [128; 3])];

impl Background {
    /// The default: white, as img2dataset and most viewers have it.
    pub const WHITE: Self = Self::Colour([255; 3]);
    /// Black.
    pub const BLACK: Self = Self::Colour([0; 3]);
}

impl Default for Background {
    fn default() -> Self {
        Self::WHITE
    }
}

/// A name that is no background.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no background: take white, black, grey, a colour such as \"#c0ffee\", or \"{KEEP_HIDDEN}\"")]
pub struct UnknownBackground {
    name: String,
}

impl FromStr for Background {
    type Err = UnknownBackground;

    fn from_str(name: &str) -> Result<Self, UnknownBackground> {
        let unknown = || UnknownBackground { name: name.to_owned() };
        if name == KEEP_HIDDEN {
            return Ok(Self::KeepHidden);
        }
        if let Some((_, colour)) = NAMED.iter().find(|(known, _)| *known == name) {
            return Ok(Self::Colour(*colour));
        }
        let digits = name.strip_prefix('#').filter(|digits| digits.len() == 6).ok_or_else(unknown)?;
        let all_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let value = u32::from_str_radix(digits, 16).ok().filter(|_| all_hex).ok_or_else(unknown)?;
        let [_, r, g, b] = value.to_be_bytes();
        Ok(Self::Colour([r, g, b]))
    }
}

impl fmt::Display for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeepHidden => f.write_str(KEEP_HIDDEN),
            Self::Colour(colour) => match NAMED.iter().find(|(_, known)| known == colour) {
                Some((name, _)) => f.write_str(name),
                None => write!(f, "#{:02x}{:02x}{:02x}", colour[0], colour[1], colour[2]),
            },
        }
    }
}

impl TryFrom<String> for Background {
    type Error = UnknownBackground;

    fn try_from(name: String) -> Result<Self, UnknownBackground> {
        name.parse()
    }
}

impl From<Background> for String {
    fn from(background: Background) -> Self {
        background.to_string()
    }
}

/// Counts of images that were not taken as they lie in their files, to be said. Threads share it.
#[derive(Debug, Default)]
pub struct DecodeNotes {
    tagged: AtomicU64,
    transparent: AtomicU64,
    clipped: AtomicU64,
    damaged: AtomicU64,
}

impl DecodeNotes {
    /// Counts an image.
    pub fn add(&self, found: &Decoded) {
        self.tagged.fetch_add(u64::from(found.tagged), Ordering::Relaxed);
        self.transparent.fetch_add(u64::from(found.transparent), Ordering::Relaxed);
        self.clipped.fetch_add(u64::from(found.clipped), Ordering::Relaxed);
        self.damaged.fetch_add(u64::from(found.damaged), Ordering::Relaxed);
    }

    /// Images whose EXIF orientation asks for a turn.
    pub fn tagged(&self) -> u64 {
        self.tagged.load(Ordering::Relaxed)
    }

    /// Images with transparent pixels.
    pub fn transparent(&self) -> u64 {
        self.transparent.load(Ordering::Relaxed)
    }

    /// Images of 16-bit grey with levels above 255.
    pub fn clipped(&self) -> u64 {
        self.clipped.load(Ordering::Relaxed)
    }

    /// JPEGs whose data are damaged.
    pub fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Sentences on images that were decoded with `options`; none if there is nothing to say.
    pub fn sentences(&self, options: &DecodeOptions) -> Vec<String> {
        let images = |count: u64| if count == 1 { "1 image".to_owned() } else { format!("{count} images") };
        let (tagged, transparent) = (self.tagged(), self.transparent());
        let mut all = Vec::new();
        if tagged > 0 {
            all.push(match options.orient {
                true => format!("{} turned upright, as the EXIF orientation says", images(tagged)),
                false => format!("{} left as stored, against the EXIF orientation", images(tagged)),
            });
        }
        if transparent > 0 {
            all.push(match options.background {
                Background::Colour(_) => {
                    format!("{} with transparent pixels laid on {}", images(transparent), options.background)
                }
                Background::KeepHidden => {
                    format!("{} with transparent pixels, whose hidden colours were kept", images(transparent))
                }
            });
        }
        if self.clipped() > 0 {
            all.push(format!(
                "{} of 16-bit grey, whose levels above 255 became white, as Pillow reads such files; where 65535 is white, write \
                 them with 8 bits first",
                images(self.clipped())
            ));
        }
        if self.damaged() > 0 {
            all.push(format!(
                "{} of damaged JPEG data, some of whose pixels are made up, as Pillow makes them up",
                images(self.damaged())
            ));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backgrounds_have_names() {
        for name in ["white", "black", "grey", "#c0ffee", "keep hidden colours"] {
            assert_eq!(name.parse::<Background>().unwrap().to_string(), name);
        }
        assert_eq!("gray".parse::<Background>(), "#808080".parse());
        for name in ["", "White", "#fff", "#12345g", "#+12345", "#ééé", "keep", "transparent"] {
            let error = name.parse::<Background>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")) && error.contains("keep hidden colours"), "{error}");
        }
    }

    #[test]
    fn counts_are_put_into_words() {
        let notes = DecodeNotes::default();
        let options = DecodeOptions::default();
        assert!(notes.sentences(&options).is_empty());
        let plain = Decoded { size: (1, 1), tagged: false, transparent: false, clipped: false, damaged: false };
        notes.add(&Decoded { tagged: true, ..plain });
        (0..2).for_each(|_| notes.add(&Decoded { transparent: true, ..plain }));
        assert_eq!(
            notes.sentences(&options),
            ["1 image turned upright, as the EXIF orientation says", "2 images with transparent pixels laid on white"]
        );
        let clipped = DecodeNotes::default();
        clipped.add(&Decoded { clipped: true, ..plain });
        assert!(
            clipped.sentences(&options)[0].starts_with("1 image of 16-bit grey, whose levels above 255 became white")
        );
        let damaged = DecodeNotes::default();
        damaged.add(&Decoded { damaged: true, ..plain });
        assert!(damaged.sentences(&options)[0].starts_with("1 image of damaged JPEG data"));
        let [stored, hidden] = notes.sentences(&DecodeOptions::as_stored()).try_into().unwrap();
        assert!(stored.contains("left as stored") && hidden.contains("hidden colours were kept"), "{stored}; {hidden}");
    }
}
