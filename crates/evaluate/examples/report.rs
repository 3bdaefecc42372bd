//! Writes the report of a made-up evaluation, for looking at: `cargo run -p calotype-evaluate --example report OUT`.
//!
//! Shapes stand for the pictures, and the figures are invented: eight guidance scales, 400 captions, a baseline that is worse at
//! most words. OUT/baseline gets the baseline's report, OUT/training the one of checkpoints, over MLPerf's reference runs.

use calotype_data::image::RgbImage;
use calotype_evaluate::report::{Baseline, Evaluation, Pictures, ReferenceCurve, ReportOptions, Setting, write};
use calotype_evaluate::{FeatureKey, Figure, Fingerprint, NetworkFingerprint};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

const SCALES: [f64; 8] = [1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
const SUBJECTS: [&str; 6] = ["a circle", "a square", "a cross", "a ring", "two circles", "a square behind a cross"];
const COLOURS: [(&str, [u8; 3]); 5] = [
    ("red", [200, 50, 40]),
    ("teal", [0, 128, 128]),
    ("navy", [30, 40, 110]),
    ("gold", [222, 170, 30]),
    ("pink", [240, 150, 180]),
];
const PLACES: [&str; 4] = ["on the left", "on the right", "in the middle", "on the right of a fence"];
const CAPTIONS: usize = 400;
const SIDE: usize = 128;

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::args().nth(1).ok_or("usage: report OUT")?);
    let folders = [out.clone(), out.join("baseline"), out.join("training")];
    folders.iter().try_for_each(std::fs::create_dir_all)?;
    let alone = ReportOptions { baseline: None, reference: None, seed: 0, pictures: 16 };
    write(&sweep("shapes-256, 1.2 M samples", 1.6, 0.4), &Shapes(0.6), &alone, &folders[1])?;

    let baseline = Baseline::read(&folders[1])?;
    let reference = ReferenceCurve {
        name: "paper".into(),
        points: SCALES.iter().map(|scale| (scale.to_string(), distance(*scale, -1.2), score(*scale) - 0.004)).collect(),
    };
    let options = ReportOptions { baseline: Some(&baseline), reference: Some(&reference), ..alone };
    write(&sweep("shapes-256, 2.4 M samples", 0.0, 1.0), &Shapes(1.0), &options, &folders[0])?;
    write(&training(), &Shapes(1.0), &alone, &folders[2])?;
    Ok(())
}

/// Numbers from 0 to 1 that look random (splitmix64's finalizer).
fn noise(number: usize) -> f64 {
    let mut state = (number as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((state ^ (state >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

fn part<T: Copy, const N: usize>(of: [T; N], sample: usize, purpose: usize) -> T {
    of[((noise(sample * 7 + purpose) * N as f64) as usize).min(N - 1)]
}

fn caption(sample: usize) -> String {
    let (subject, place) = (part(SUBJECTS, sample, 0), part(PLACES, sample, 2));
    format!("{subject} in {} {place}", part(COLOURS, sample, 1).0)
}

fn distance(scale: f64, shift: f64) -> f64 {
    9.0 + shift + 0.34 * (scale - 3.0).powi(2)
}

fn score(scale: f64) -> f64 {
    0.32 - 0.09 / scale
}

/// The score of a picture: what is hard is told by its caption.
fn picture_score(sample: usize, scale: f64, quality: f64) -> f32 {
    let caption = caption(sample);
    let hard =
        0.05 * f64::from(u8::from(caption.contains("two"))) + 0.03 * f64::from(u8::from(caption.contains("behind")));
    (score(scale) - hard * (1.6 - quality) - 0.006 * (1.0 - quality)
        + 0.05 * (noise(sample * 31 + scale as usize) - 0.5)) as f32
}

fn figure(metric: &str, variant: &str, value: f64, half: Option<f64>) -> Figure {
    let (network, weights) = match metric {
        "clip_score" => ("CLIP ViT-H/14", "5d9c…"),
        _ => ("Inception v3 (FID)", "2f1b…"),
    };
    Figure {
        metric: metric.into(),
        variant: variant.into(),
        value,
        deviation: None,
        interval: half.map(|half| [value - half, value + half]),
        count: CAPTIONS,
        fingerprint: Fingerprint {
            features: FeatureKey::new(if metric == "clip_score" { "clip" } else { "inception" }, variant),
            network: NetworkFingerprint {
                network: network.into(),
                weights: weights.into(),
                official: true,
                resize: "as published".into(),
                rounding: "none".into(),
                precision: "f32".into(),
            },
            sums: "f64".into(),
            samples: "made up".into(),
            reference: "made up".into(),
            settings: BTreeMap::new(),
        },
    }
}

fn setting(label: String, scale: f64, shift: f64, quality: f64) -> Setting {
    let clip_scores: Vec<f32> = (0..CAPTIONS).map(|sample| picture_score(sample, scale, quality)).collect();
    let mean = clip_scores.iter().map(|score| f64::from(*score)).sum::<f64>() / CAPTIONS as f64;
    let figures = vec![
        figure("fid", "pytorch-fid", distance(scale, shift), Some(0.32)),
        figure("clip_score", "vit-h-14", mean, None),
        figure("kid", "pytorch-fid", 0.0021 + 0.0004 * (distance(scale, shift) - 9.0), Some(0.0002)),
        figure("fid", "clean-fid", distance(scale, shift) + 0.21, Some(0.32)),
    ];
    Setting { label, samples_seen: None, figures, clip_scores }
}

fn sweep(title: &str, shift: f64, quality: f64) -> Evaluation {
    let facts = [
        ("sampler", "PLMS, 50 steps"),
        ("size", "256 px"),
        ("seed", "123, one for each picture"),
        ("note", "all figures are made up"),
    ];
    Evaluation {
        title: title.into(),
        facts: facts.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        recipe: "guidance = [1.5, 2, 3, 4, 5, 6, 7, 8]\nimages = 400\n".into(),
        varied: "guidance scale".into(),
        settings: SCALES.iter().map(|scale| setting(scale.to_string(), *scale, shift, quality)).collect(),
        captions: (0..CAPTIONS).map(caption).collect(),
    }
}

/// Checkpoints of a run that converges somewhat sooner than MLPerf's reference.
fn training() -> Evaluation {
    let checkpoint = |number: u64| {
        let samples = 512_000 * number;
        let progress = samples as f64 / 1e6;
        let values = (55.0 + 320.0 * (-0.95 * progress).exp(), 0.215 - 0.17 * (-0.55 * progress).exp());
        let figures = vec![figure("fid", "mlperf", values.0, None), figure("clip_score", "vit-h-14", values.1, None)];
        Setting { label: samples.to_string(), samples_seen: Some(samples), figures, clip_scores: Vec::new() }
    };
    Evaluation {
        title: "sd2-512, batch 512".into(),
        varied: "samples seen".into(),
        settings: (1..=7).map(checkpoint).collect(),
        ..sweep("", 0.0, 1.0)
    }
}

/// Pictures of shapes, the noisier the lower the quality.
struct Shapes(f64);

impl Pictures for Shapes {
    fn picture(&self, setting: usize, sample: usize) -> calotype_evaluate::Result<Option<RgbImage>> {
        let (subject, colour, place) = (part(SUBJECTS, sample, 0), part(COLOURS, sample, 1).1, part(PLACES, sample, 2));
        let centre = match place {
            "on the left" => 0.3,
            "in the middle" => 0.5,
            _ => 0.7,
        };
        let strength = 0.4 + 0.08 * setting as f64;
        let pixel = |index: usize| {
            let (x, y) = ((index % SIDE) as f64 / SIDE as f64, (index / SIDE) as f64 / SIDE as f64);
            let inside = match subject {
                "a square" => (x - centre).abs().max((y - 0.5).abs()) < 0.2,
                "a cross" => {
                    (x - centre).abs().min((y - 0.5).abs()) < 0.06 && (x - centre).abs().max((y - 0.5).abs()) < 0.24
                }
                "a ring" => ((x - centre).hypot(y - 0.5) - 0.18).abs() < 0.05,
                _ => (x - centre).hypot(y - 0.5) < 0.2,
            };
            let base = if inside { colour.map(f64::from) } else { [236.0, 233.0, 226.0] };
            let grain = (1.15 - self.0 * strength.min(1.0)) * 70.0 * (noise(index * 131 + sample) - 0.5);
            base.map(|level| (level + grain).clamp(0.0, 255.0) as u8)
        };
        let data = (0..SIDE * SIDE).flat_map(pixel).collect();
        Ok(Some(RgbImage::new(SIDE, SIDE, data)?))
    }
}
