//! The embedded real images: Twemoji drawings (72x72, CC-BY 4.0) with their Unicode names, on coloured backgrounds.
//!
//! A captioned dataset that needs no download: 1,694 images x 8 backgrounds = 13,552 samples, of which 1,355 are
//! held out.
//!
//! # Images
//!
//! Every emoji of the crate `emojis` (default skin tone only) whose fully qualified form is the key of a drawing
//! in the crate `twemoji-assets`. Twemoji drops the variation selector U+FE0F from most of its names; the 220 emoji
//! that would match only without it (and the 9 newer than the drawings) are left out, which keeps the set equal to
//! what `PngTwemojiAsset::from_emoji(emoji.as_str())` finds.
//!
//! # Held-out combinations
//!
//! A tenth of all (image, colour) combinations, by a rule without seed: images are ranked by the BLAKE3 hash of
//! their slug; the first 1,355 = round(13,552 / 10) of them have one held-out colour each, number `rank % 8`. So every
//! image is seen in training on at least seven backgrounds, every colour is held out 169 or 170 times, and neither
//! changes with resolution, subset or run. Images for held-out captions show if a model composes or only remembers.

use std::path::Path;
use std::sync::{LazyLock, OnceLock};

use rayon::prelude::*;
use serde_json::{Map, Value, json};
use twemoji_assets::png::PngTwemojiAsset;

use crate::image::{Filter, PngEffort, RgbImage, RgbaImage};
use crate::{Control, DatasetIndex, Error, Result, Sample, ShardLimits, ShardWriter};

/// Side of the drawings, in pixels.
pub const IMAGE_SIDE: usize = 72;

/// Background around a drawing on each side, in the drawing's pixels. Some drawings (coloured squares, families, signs)
/// fill their 72x72 pixels: without a margin their captions would name a background that nobody sees.
pub const MARGIN: usize = 4;

/// The backgrounds: name and colour. Any two are at least 109 apart in RGB (Euclidean).
pub const BACKGROUNDS: [(&str, [u8; 3]); 8] = [
    ("red", [215, 25, 30]),
    ("orange", [255, 128, 0]),
    ("yellow", [255, 225, 50]),
    ("green", [30, 150, 60]),
    ("blue", [35, 85, 220]),
    ("purple", [140, 50, 170]),
    ("white", [255, 255, 255]),
    ("black", [0, 0, 0]),
];

/// Prefix of the shards.
const PREFIX: &str = "emoji";

/// Samples rendered between two looks at the stop flag.
const CHUNK: usize = 512;

/// One drawing and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmojiImage {
    /// Unicode's short name in English, lower case as a rule: "grinning face".
    pub name: &'static str,
    /// The emoji itself.
    pub emoji: &'static str,
    /// Its code points in hexadecimal, joined by `-`: "1f600".
    pub slug: &'static str,
    /// Unicode's group: "Smileys & Emotion".
    pub group: &'static str,
    /// The drawing: a PNG of 72x72 pixels with alpha.
    pub png: &'static [u8],
}

/// Part of the combinations that a dataset holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The combinations that are not held out.
    Train,
    /// The held-out combinations.
    HeldOut,
}

impl Split {
    /// "train" or "held-out".
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::HeldOut => "held-out",
        }
    }
}

static IMAGES: LazyLock<Vec<EmojiImage>> = LazyLock::new(|| emojis::iter().filter_map(image).collect());

/// The images, in Unicode's order (that of `emojis::iter`).
pub fn pairs() -> &'static [EmojiImage] {
    &IMAGES
}

fn image(emoji: &'static emojis::Emoji) -> Option<EmojiImage> {
    let asset = PngTwemojiAsset::from_emoji(emoji.as_str())?;
    let slug = emoji.as_str().chars().map(|c| format!("{:x}", u32::from(c))).collect::<Vec<_>>().join("-");
    Some(EmojiImage {
        name: emoji.name(),
        emoji: emoji.as_str(),
        // Lives as long as the process, like the table that it belongs to.
        slug: Box::leak(slug.into_boxed_str()),
        group: group_name(emoji.group()),
        png: asset,
    })
}

/// Group names as in Unicode's emoji-test.txt.
fn group_name(group: emojis::Group) -> &'static str {
    match group {
        emojis::Group::SmileysAndEmotion => "Smileys & Emotion",
        emojis::Group::PeopleAndBody => "People & Body",
        emojis::Group::AnimalsAndNature => "Animals & Nature",
        emojis::Group::FoodAndDrink => "Food & Drink",
        emojis::Group::TravelAndPlaces => "Travel & Places",
        emojis::Group::Activities => "Activities",
        emojis::Group::Objects => "Objects",
        emojis::Group::Symbols => "Symbols",
        emojis::Group::Flags => "Flags",
    }
}

/// "`<name>` on a `<colour>` background", with "an" where English wants it.
pub fn caption(name: &str, colour: &str) -> String {
    let article = if colour.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{name} on {article} {colour} background")
}

/// The colour (number in [`BACKGROUNDS`]) on which image number `image` (in [`pairs`]) is held out, if any.
pub fn held_out_colour(image: usize) -> Option<usize> {
    static COLOURS: OnceLock<Vec<Option<usize>>> = OnceLock::new();
    COLOURS.get_or_init(held_out_colours).get(image).copied().flatten()
}

fn held_out_colours() -> Vec<Option<usize>> {
    let images = pairs();
    let mut ranked: Vec<usize> = (0..images.len()).collect();
    ranked.sort_by_cached_key(|i| *blake3::hash(images[*i].slug.as_bytes()).as_bytes());
    let tenth = (images.len() * BACKGROUNDS.len() + 5) / 10;
    let mut colours = vec![None; images.len()];
    for (rank, image) in ranked.into_iter().take(tenth).enumerate() {
        colours[image] = Some(rank % BACKGROUNDS.len());
    }
    colours
}

/// The combinations (image, colour) of a split, image by image; of all images, or of `subset` of them, chosen
/// evenly over the list.
///
/// # Errors
/// [`Error::InvalidArgument`] if `subset` is 0 or more than there are.
pub fn combinations(split: Split, subset: Option<usize>) -> Result<Vec<(usize, usize)>> {
    let all = pairs().len();
    let count = subset.unwrap_or(all);
    if count == 0 || count > all {
        return Err(Error::InvalidArgument { what: "emoji subset", detail: format!("{count} of {all} images") });
    }
    let images = (0..count).map(|i| i * all / count);
    let both = images.flat_map(|image| (0..BACKGROUNDS.len()).map(move |colour| (image, colour)));
    Ok(both.filter(|(p, c)| (held_out_colour(*p) == Some(*c)) == (split == Split::HeldOut)).collect())
}

/// Draws an image on a colour: composited at 72x72, framed by [`MARGIN`] (80x80), then resized with Pillow's Lanczos
/// filter.
///
/// # Errors
/// [`Error::InvalidArgument`] for a resolution of 0 or beyond 2²⁴.
pub fn render(image: &EmojiImage, colour: [u8; 3], resolution: usize) -> Result<RgbImage> {
    let drawing = RgbaImage::decode(image.slug, image.png)?;
    let framed = drawing.over(colour).padded(MARGIN, colour);
    framed.resize(resolution, resolution, Filter::Lanczos3)
}

/// The background (number in [`BACKGROUNDS`]) that an image shows.
///
/// The rule: each pixel of the outermost ring (one 32nd of the shorter side wide, at least 1 pixel: 2 pixels at 64)
/// votes for the nearest colour in RGB; most votes win, the earlier colour in a tie. A vote, not a mean or median, so
/// that a drawing that touches the border, or noise in a generated image, cannot mix two colours into a third. On all 13,552
/// combinations it is right at 32 and 64 pixels (see the tests).
pub fn background_of(image: &RgbImage) -> usize {
    let (width, height) = (image.width(), image.height());
    let ring = (width.min(height) / 32).max(1);
    let mut votes = [0usize; BACKGROUNDS.len()];
    for y in 0..height {
        let inner_row = y >= ring && y + ring < height;
        for x in 0..width {
            if !(inner_row && x >= ring && x + ring < width) {
                votes[nearest_background(image.pixel(x, y))] += 1;
            }
        }
    }
    let mut best = 0;
    for (colour, vote) in votes.iter().enumerate() {
        if *vote > votes[best] {
            best = colour;
        }
    }
    best
}

/// Nearest background (number in [`BACKGROUNDS`]), Euclidean in RGB.
pub fn nearest_background(pixel: [u8; 3]) -> usize {
    let distance = |colour: &[u8; 3]| -> i32 {
        colour.iter().zip(pixel).map(|(a, b)| (i32::from(*a) - i32::from(b)).pow(2)).sum()
    };
    let mut best = 0;
    for (number, (_, colour)) in BACKGROUNDS.iter().enumerate() {
        if distance(colour) < distance(&BACKGROUNDS[best].1) {
            best = number;
        }
    }
    best
}

/// Writes a split as dataset: samples `{slug}-{colour}` with the parts `png` (`resolution` x `resolution`), `txt` (the
/// caption) and `json` (name, colour, group, codepoints). Rendering uses rayon's threads; the result does not depend on
/// their number.
///
/// # Errors
/// Those of [`combinations`], [`render`] and [`ShardWriter`]; [`Error::Interrupted`] if a stop was asked for.
pub fn write_dataset(
    out_dir: impl AsRef<Path>,
    resolution: usize,
    limits: ShardLimits,
    split: Split,
    subset: Option<usize>,
    control: &mut Control<'_>,
) -> Result<DatasetIndex> {
    let combinations = combinations(split, subset)?;
    let mut writer = ShardWriter::create(out_dir, PREFIX, limits)?;
    writer.set_meta(meta(resolution, split, subset))?;
    for chunk in combinations.chunks(CHUNK) {
        control.checkpoint("emoji dataset", writer.samples_written(), combinations.len())?;
        let samples = chunk.par_iter().map(|(p, c)| sample(*p, *c, resolution)).collect::<Result<Vec<_>>>()?;
        samples.iter().try_for_each(|sample| writer.write(sample))?;
    }
    let index = writer.finish()?;
    // The dataset is whole: a stop that is asked for now changes nothing.
    control.report("emoji dataset", index.samples, combinations.len());
    Ok(index)
}

fn meta(resolution: usize, split: Split, subset: Option<usize>) -> Map<String, Value> {
    let mut meta = Map::new();
    meta.insert("generator".to_owned(), json!("emoji"));
    meta.insert("resolution".to_owned(), json!(resolution));
    meta.insert("split".to_owned(), json!(split.name()));
    meta.insert("pictures".to_owned(), json!(subset.unwrap_or(pairs().len())));
    meta.insert("backgrounds".to_owned(), json!(BACKGROUNDS.map(|(name, _)| name)));
    meta.insert(
        "licence".to_owned(),
        json!("Drawings: Twemoji, copyright Twitter, Inc and other contributors, CC-BY 4.0; names: Unicode CLDR"),
    );
    meta
}

fn sample(image: usize, colour: usize, resolution: usize) -> Result<Sample> {
    let image = &pairs()[image];
    let (colour, rgb) = BACKGROUNDS[colour];
    let facts = json!({
        "name": image.name,
        "colour": colour,
        "group": image.group,
        "codepoints": image.slug,
    });
    let png = render(image, rgb, resolution)?.encode_png(PngEffort::Fast)?;
    Ok(Sample::new(format!("{}-{colour}", image.slug))
        .with("png", png)
        .with("txt", caption(image.name, colour))
        .with("json", facts.to_string()))
}
