//! Writes a sample of every block of a report, for looking at: `cargo run -p calotype-metrics --example sample_report OUT.html`.
//! The figures are made up; the images are Twemoji. Beside OUT.html go its contact sheet, OUT.png, and a chart, OUT.chart.{svg,png}.

use std::error::Error;
use std::path::PathBuf;

use calotype_metrics::plot::{Axis, Chart, Point, Role};
use calotype_metrics::report::{Bar, Bars, Block, Image, Outcome, TWEMOJI_NOTICE, Timing, percent};
use calotype_metrics::{GridOptions, LinePlot, Report, Section, Table, encode_png, image_grid};
use twemoji_assets::png::PngTwemojiAsset;

const SIDE: usize = 72;
const COLOURS: [(&str, [u8; 3]); 4] =
    [("teal", [0, 128, 128]), ("white", [255, 255, 255]), ("navy", [20, 30, 90]), ("pink", [250, 170, 190])];

fn main() -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(std::env::args().nth(1).ok_or("usage: sample_report OUT.html")?);
    let (images, captions) = emoji(28)?;
    let options = GridOptions { upscale: 2, caption_scale: 1, columns: 7, ..GridOptions::default() };
    let sheet = image_grid(&images, SIDE, &captions, &options)?;
    calotype_core::durable::write_bytes(&path.with_extension("png"), &sheet)?;

    let chart = chart().drawing();
    calotype_core::durable::write_bytes(&path.with_extension("chart.svg"), chart.to_svg_file().as_bytes())?;
    calotype_core::durable::write_bytes(&path.with_extension("chart.png"), &chart.to_png(2)?)?;

    let tiles = images.iter().zip(&captions).take(16).map(|(pixels, caption)| {
        let png = encode_png(pixels, SIDE, SIDE)?;
        Ok(Image { file: png, alt: caption.clone(), caption: caption.clone(), pixelated: true, ..Image::default() })
    });
    let tiles = tiles.collect::<calotype_metrics::Result<Vec<_>>>()?;

    Report::new(
        "Quickstart: images from words",
        "A text-to-image model trained from nothing in eleven minutes, on two cores.",
    )
    .card("Background colour right", percent(0.943), "chance 12.5\u{a0}%, untrained 11.9\u{a0}%")
    .card("Right caption of 16", percent(0.412), "chance 6.3\u{a0}%, real images 88.1\u{a0}%")
    .card("Fréchet distance", "0.081", "untrained 0.912, on our CLIP features")
    .verdict(Outcome::Better, "Better than last week's: Fréchet distance 0.081 instead of 0.104 (−0.023).")
    .card("Images seen", "240 000", "in 6 min 12 s")
    .section(
        Section::new("Held-out combinations")
            .text("None of these pairs of image and colour was seen in training.")
            .image(
                sheet,
                "Contact sheet of 28 generated images with their prompts",
                "Prompts under each image; DDIM, 30 steps, guidance 3.",
            ),
    )
    .section(Section::new("Free prompts").gallery(
        "Each is the first image for its prompt, not the best of several.",
        110,
        tiles,
    ))
    .section(Section::new("Figures").table(figures()))
    .section(
        Section::new("Loss")
            .plot(loss("CLIP loss", 5_000, 40_000.0, 2.8), "Contrastive loss of the two CLIP towers.")
            .plot(
                loss("Diffusion loss", 12_000, 240_000.0, 1.0).series("held out", held_out()).log_y(),
                "Mean squared error of v.",
            ),
    )
    .section(Section::new("Figures beside each other").block(Block::Columns(vec![
        vec![Block::Plot { plot: chart, caption: "Labels are guidance scales.".into() }],
        vec![Block::Bars(words())],
    ])))
    .section(Section::new("Time").timings(timings()))
    .section(
        Section::new("Recipes")
            .verbatim("training/clip/emoji_64.toml", "[model]\nwidth = 128 # <channels>\nlayers = 4\n")
            .verbatim(
                "training/stable_diffusion/emoji_64.toml",
                "base = \"sd_2\"\n\n[optimizer]\nlr = 2e-4\n".repeat(9),
            ),
    )
    .machine("Device", "cpu (2 threads, AVX-512 bf16)")
    .machine("Processor", "AMD EPYC 9B45")
    .machine("Seed", "0")
    .machine("Calotype", "0.1.0")
    .notice(TWEMOJI_NOTICE)
    .write(&path)?;
    Ok(())
}

/// RGB8 images and their captions.
type Captioned = (Vec<Vec<u8>>, Vec<String>);

fn emoji(count: usize) -> Result<Captioned, Box<dyn Error>> {
    let assets =
        emojis::iter().step_by(37).filter_map(|emoji| Some((emoji, PngTwemojiAsset::from_emoji(emoji.as_str())?)));
    let (mut images, mut captions) = (Vec::new(), Vec::new());
    for (index, (emoji, asset)) in assets.take(count).enumerate() {
        let (name, colour) = COLOURS[index % COLOURS.len()];
        let bytes: &[u8] = asset;
        let image = image::load_from_memory(bytes)?.to_rgba8();
        let over = |pixel: &image::Rgba<u8>| -> [u8; 3] {
            let alpha = u32::from(pixel[3]);
            std::array::from_fn(|c| ((u32::from(pixel[c]) * alpha + u32::from(colour[c]) * (255 - alpha)) / 255) as u8)
        };
        images.push(image.pixels().flat_map(over).collect());
        captions.push(format!("{} on a {name} background", emoji.name()));
    }
    Ok((images, captions))
}

fn figures() -> Table {
    Table::new("128 held-out prompts", "Figure", ["untrained", "trained", "real images (ceiling)", "chance"])
        .emphasise(1)
        .row("Background colour", "share of images, higher is better", ["11.9 %", "94.3 %", "100.0 %", "12.5 %"])
        .row("Caption retrieval, top 1 of 16", "higher is better", ["6.9 %", "41.2 %", "88.1 %", "6.3 %"])
        .row("CLIP score", "mean cosine, higher is better", ["0.021", "0.412", "0.633", ""])
        .row("Fréchet distance", "project CLIP features, lower is better", ["0.912", "0.081", "0.012", ""])
}

fn timings() -> Vec<Timing> {
    [
        ("Dataset", 4.31, "13 552 images"),
        ("CLIP", 92.4, "433 images/s"),
        ("Autoencoder", 131.0, "305 images/s"),
        ("Precache", 21.8, "622 images/s"),
        ("Diffusion", 372.2, "645 images/s"),
        ("Generate", 31.2, "30 steps"),
        ("Judge", 3.4, ""),
    ]
    .map(|(stage, seconds, note)| Timing { stage: stage.into(), seconds, note: note.into() })
    .to_vec()
}

/// A falling curve with noise from a plain LCG.
fn loss(title: &str, points: usize, samples: f64, start: f64) -> LinePlot {
    let mut state = 9u64;
    let curve = (0..points).map(|index| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let noise = (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5;
        let done = index as f64 / points as f64;
        let level = start * (0.12 + 0.88 * (-9.0 * done).exp());
        (done * samples, level * (1.0 + 0.5 * noise))
    });
    LinePlot::new(title, "samples seen", "loss").series("training", curve.collect())
}

fn held_out() -> Vec<(f64, f64)> {
    (0..=24).map(|index| (f64::from(index) * 1e4, 0.13 + 0.87 * (-0.375 * f64::from(index)).exp())).collect()
}

/// A curve with intervals over a reference and a background of runs.
fn chart() -> Chart {
    let curve = |shift: f64| {
        let scales = [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        scales.map(|scale: f64| {
            let (score, distance) = (0.32 - 0.09 / scale + shift / 200.0, 9.0 + 0.35 * (scale - 3.0 + shift).powi(2));
            let intervals = (Some((score - 0.0012, score + 0.0012)), Some((distance - 0.3, distance + 0.3)));
            let (x_interval, y_interval) = intervals;
            Point { x_interval, y_interval, ..Point::new(score, distance).label(scale.to_string()) }
        })
    };
    let bare = |shift| curve(shift).map(|point| Point { x_interval: None, y_interval: None, ..point });
    let pale = |shift: f64| bare(shift).map(|point| Point::new(point.x, point.y * (1.0 + 0.05 * shift)));
    Chart::new("FID and CLIP score by guidance scale", "CLIP score (cosine, higher is better)", "FID (lower is better)")
        .alt("The distance is smallest at guidance 3 and grows from there; the score grows with guidance.")
        .curve("ours", Role::Main, curve(0.0))
        .curve("other seed", Role::Main, curve(0.4))
        .curve("reference", Role::Reference, bare(-0.6))
        .curve("earlier runs", Role::Background, pale(1.0))
        .curve("earlier runs", Role::Background, pale(-1.5))
        .band("band", 0.27, 0.28, Some(0.274))
        .target("at most 17", Axis::Y, 17.0)
}

fn words() -> Bars {
    let bar = |(name, value): (&str, f64)| {
        let note = "in 14 captions".to_owned();
        Bar { name: name.into(), note, value, text: format!("{value:+.3}") }
    };
    let bars = [("two", -0.041), ("giraffe", -0.022), ("behind", -0.014), ("pizza", 0.012)].map(bar).to_vec();
    Bars {
        caption: "Words of the lowest scores".into(),
        corner: "Word".into(),
        heading: "CLIP score, less the mean".into(),
        bars,
    }
}
