//! `report.html`: everything a reader wants to see of a run, in one file.

use crate::judge::Combination;
use crate::{QuickstartError, Stages, Summary};
use calotype_metrics::report::{TWEMOJI_NOTICE, Timing, figure, percent};
use calotype_metrics::{LinePlot, Report, Section, Table};
use std::path::Path;

/// Stages that write `metrics.jsonl`.
const TRAINED: [(&str, &str); 3] = [
    ("clip", "Contrastive loss of CLIP"),
    ("autoencoder", "Loss of the autoencoder"),
    ("diffusion", "Loss of the UNet"),
];

pub(crate) fn write(
    out: &Path,
    summary: &Summary,
    stages: &Stages,
    chosen: &[Combination],
) -> Result<(), QuickstartError> {
    let j = &summary.judgement;
    let candidates = stages.evaluation.value.candidates;
    let report = Report::new(
        "Calotype quickstart",
        format!(
            "A CLIP model, an autoencoder and a Stable Diffusion UNet, trained from nothing on {} captioned images, \
             and judged on {} combinations of drawing and background that training never saw.",
            stages.dataset.value.drawings.unwrap_or(calotype_data::emoji::pairs().len()),
            chosen.len()
        ),
    )
    .card("Background right", percent(j.trained.background_accuracy), "measured from pixels; chance 12.5 %")
    .card("Caption retrieved", percent(j.trained.retrieval_top1), format!("among {candidates} on the same background"))
    .card(
        "Fréchet distance",
        figure(j.trained.frechet_distance),
        format!("untrained {}", figure(j.untrained.frechet_distance)),
    )
    .card("Images seen", summary.samples_seen.to_string(), "by the UNet in training")
    .section(images(out, chosen.len(), summary.warning())?)
    .section(Section::new("Figures").table(figures(summary, candidates)).text(EXPLANATION))
    .section(curves(out)?)
    .section(timings(summary))
    .section(recipes(stages))
    .machine("Device", summary.device.clone())
    .machine("Kernels", calotype_kernels::isa_name())
    .machine("Threads", calotype_kernels::threads().to_string())
    .machine("Peak memory", format!("{:.2} GiB", summary.peak_rss_gib))
    .machine("Seed", summary.seed.to_string())
    .notice(TWEMOJI_NOTICE);
    let path = out.join("report.html");
    report.write(&path).map_err(QuickstartError::from)
}

const EXPLANATION: &str = "The Fréchet distance compares drawn images with all real held-out images on the \
    image features of the CLIP model trained here. It is not a FID and not comparable with one. The CLIP score is the \
    mean cosine between image and caption in the same model. Caption retrieval asks whether an image's own caption is \
    nearer than others that share its background. The background is measured from the image's border and uses no \
    learned model. The column of real images is the ceiling that the judging models allow.";

fn images(out: &Path, count: usize, warning: Option<&str>) -> Result<Section, QuickstartError> {
    let folder = out.join("pictures");
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(QuickstartError::io(&path))
    };
    let section = Section::new("Images");
    let section = match warning {
        Some(warning) => section.text(warning),
        None => section,
    };
    Ok(section
        .image(
            read("held_out.png")?,
            "Grid of images drawn for held-out captions",
            format!(
                "Held-out combinations, evenly chosen from the {count} that were drawn; none was seen in training."
            ),
        )
        .image(read("real.png")?, "Grid of real images", "The real images of the same captions.")
        .image(read("prompts.png")?, "Grid of images drawn for free prompts", "Free prompts.")
        .image(read("untrained.png")?, "Grid of noise", "The same captions drawn by the untrained UNet."))
}

fn figures(summary: &Summary, candidates: usize) -> Table {
    let j = &summary.judgement;
    let columns = ["untrained", "trained", "real images", "chance"];
    let row = |f: fn(&crate::Figures) -> String| [f(&j.untrained), f(&j.trained), f(&j.real)];
    let with = |cells: [String; 3], chance: String| [cells.to_vec(), vec![chance]].concat();
    Table::new("Figures of the drawn images", "figure", columns)
        .emphasise(1)
        .row(
            "Background colour right",
            "measured from pixels",
            with(row(|f| percent(f.background_accuracy)), percent(1.0 / 8.0)),
        )
        .row(
            format!("Caption retrieval, top 1 of {candidates}"),
            "captions that share the background",
            with(row(|f| percent(f.retrieval_top1)), percent(1.0 / candidates as f64)),
        )
        .row(
            "Fréchet distance",
            "own CLIP features of unit length, lower is better",
            with(row(|f| figure(f.frechet_distance)), String::new()),
        )
        .row("CLIP score", "mean cosine", with(row(|f| figure(f.clip_score)), String::new()))
}

/// `(samples, loss)` of a stage's `metrics.jsonl`.
fn loss_points(path: &Path) -> Result<Vec<(f64, f64)>, QuickstartError> {
    let text = std::fs::read_to_string(path).map_err(QuickstartError::io(path))?;
    text.lines()
        .map(|line| {
            let entry: serde_json::Value = serde_json::from_str(line).map_err(QuickstartError::io(path))?;
            let number = |key: &str| entry.get(key).and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
            Ok((number("samples"), number("loss")))
        })
        .collect()
}

fn curves(out: &Path) -> Result<Section, QuickstartError> {
    let mut section = Section::new("Loss curves");
    for (stage, title) in TRAINED {
        let points = loss_points(&out.join(stage).join("metrics.jsonl"))?;
        let plot = LinePlot::new(title, "samples", "loss").series("loss", points);
        section = section.plot(plot, String::new());
    }
    Ok(section)
}

fn timings(summary: &Summary) -> Section {
    let order = ["dataset", "clip", "autoencoder", "precache", "diffusion", "generate", "judge"];
    let timing = |stage: &&str| Timing {
        stage: (*stage).to_owned(),
        seconds: summary.seconds.get(*stage).copied().unwrap_or(0.0),
        note: String::new(),
    };
    Section::new("Time").timings(order.iter().map(timing).collect())
}

fn recipes(stages: &Stages) -> Section {
    stages
        .texts()
        .into_iter()
        .fold(Section::new("Recipes"), |section, (stage, text)| section.verbatim(format!("{stage}.toml"), text))
}
