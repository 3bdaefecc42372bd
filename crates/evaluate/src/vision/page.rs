//! `report.html` and `confusion.png` of an evaluation of a vision model: figures, what each class is taken for, and, of a training run,
//! its curves.

use super::recipe::Outcome;
use super::report::{ClassResult, per_class};
use crate::figure::Figure;
use crate::{EvaluateError, Result};
use calotype_core::durable::write_bytes;
use calotype_core::read_text;
use calotype_metrics::LinePlot;
use calotype_metrics::plot::Confusion;
use calotype_metrics::report::{Report, Section, Table, percent};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The page.
pub const REPORT: &str = "report.html";
/// What each class is taken for, as a picture.
pub const CONFUSION: &str = "confusion.png";
/// Numbers of a training run, a JSON object a line.
const METRICS: &str = "metrics.jsonl";
/// The most classes that the picture shows.
const MOST: usize = 60;
/// Pixels of the picture for each unit.
const SCALE: usize = 2;
/// Figures at the top of the page.
const CARDS: usize = 4;

impl Outcome {
    /// Writes the page into a folder, and the picture of classes where there are classes. `model` is what was judged: of the folder of a
    /// training run, its curves are shown.
    ///
    /// # Errors
    /// [`EvaluateError::Io`]; [`EvaluateError::Metric`] for a picture that cannot be made.
    pub fn write_page(&self, folder: &Path, model: &Path) -> Result<()> {
        let title = self.figures.first().map_or("evaluation", |figure| figure.variant.as_str()).replace('_', " ");
        let summary = format!("{}, judged by {}.", model.display(), pictures_in_words(&self.figures));
        let mut report = Report::new(capitalised(&title), summary);
        for figure in self.figures.iter().take(CARDS) {
            report = report.card(name_of(figure), percent(figure.value), interval(figure));
        }
        report = report.section(Section::new("Figures").table(figures(&self.figures)));
        if !self.pictures.is_empty() {
            let classes = per_class(&self.pictures);
            let (plot, caption) = confusion(&classes, &self.names);
            let drawing = plot.drawing();
            let file = folder.join(CONFUSION);
            let png = drawing.to_png(SCALE).map_err(EvaluateError::metric("confusion".to_owned()))?;
            write_bytes(&file, &png).map_err(EvaluateError::io("write", &file))?;
            report = report
                .section(Section::new("What classes are taken for").plot(drawing, caption))
                .section(Section::new("Classes").table(table(&classes, &self.names)));
        }
        let curves = curves(model)?;
        if !curves.is_empty() {
            let section = Section::new("Training");
            report = report
                .section(curves.into_iter().fold(section, |section, (plot, caption)| section.plot(plot, caption)));
        }
        let file = folder.join(REPORT);
        let page = report.machine("Calotype", env!("CARGO_PKG_VERSION")).to_html();
        write_bytes(&file, page.as_bytes()).map_err(EvaluateError::io("write", &file))
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn pictures_in_words(figures: &[Figure]) -> String {
    let count = figures.first().map_or(0, |figure| figure.count);
    if count == 1 { "1 picture".to_owned() } else { format!("{count} pictures") }
}

/// A figure's name; with its variant where that is a direction.
fn name_of(figure: &Figure) -> String {
    let metric = figure.metric.replace('_', " ");
    match figure.variant.contains("_to_") {
        true => format!("{metric}, {}", figure.variant.replace('_', " ")),
        false => metric,
    }
}

fn interval(figure: &Figure) -> String {
    figure.interval.map_or(String::new(), |[low, high]| format!("{} to {}", percent(low), percent(high)))
}

fn figures(figures: &[Figure]) -> Table {
    let table = Table::new(
        "Intervals of 95\u{a0}% confidence, by bootstrap over the pictures",
        "figure",
        ["value", "interval", "pictures"],
    );
    figures.iter().fold(table, |table, figure| {
        let cells = [percent(figure.value), interval(figure), figure.count.to_string()];
        table.row(name_of(figure), "", cells)
    })
}

/// The classes that the picture shows, and what is said under it: all of those with pictures, or those with the most wrong ones.
fn confusion(classes: &BTreeMap<usize, ClassResult>, names: &[String]) -> (Confusion, String) {
    let mut shown: Vec<usize> = classes.keys().copied().collect();
    let caption = match shown.len() > MOST {
        false => "Rows are classes, columns what their pictures are taken for; colours are shares of a row.".to_owned(),
        true => {
            let all = shown.len();
            let wrong = |class: &usize| classes[class].pictures - classes[class].right;
            shown.sort_by_key(|class| (std::cmp::Reverse(wrong(class)), *class));
            shown.truncate(MOST);
            shown.sort_unstable();
            format!(
                "The {MOST} classes with the most pictures taken for others, of {all}. Rows are classes, columns what their pictures are \
                 taken for; colours are shares of all pictures of a row."
            )
        }
    };
    let counts = shown.iter().map(|class| {
        let found = &classes[class];
        shown
            .iter()
            .map(|other| if class == other { found.right } else { found.others.get(other).copied().unwrap_or(0) })
            .collect()
    });
    let counts = counts.collect();
    let plot = Confusion {
        title: "Confusion".to_owned(),
        names: shown.iter().map(|class| names[*class].clone()).collect(),
        counts,
        totals: shown.iter().map(|class| classes[class].pictures).collect(),
    };
    (plot, caption)
}

/// Every class, the worst first.
fn table(classes: &BTreeMap<usize, ClassResult>, names: &[String]) -> Table {
    let mut rows: Vec<(&usize, &ClassResult)> = classes.iter().collect();
    rows.sort_by(|a, b| a.1.share().total_cmp(&b.1.share()).then(a.0.cmp(b.0)));
    let table = Table::new("", "class", ["pictures", "top 1", "most often taken for", "times"]);
    rows.into_iter().fold(table, |table, (class, found)| {
        let (other, times) =
            found.taken_for().map_or_else(Default::default, |(other, times)| (names[other].clone(), times.to_string()));
        table.row(&names[*class], "", [found.pictures.to_string(), percent(found.share()), other, times])
    })
}

/// Values over samples seen, by name.
type Logged = BTreeMap<String, Vec<(f64, f64)>>;

/// Plots of a training run's numbers: losses, and figures of evaluations; none where `model` is no run.
fn curves(model: &Path) -> Result<Vec<(LinePlot, String)>> {
    let file = model.join(METRICS);
    if !file.is_file() {
        return Ok(Vec::new());
    }
    let logged = logged(&read_text(&file).map_err(EvaluateError::io("read", &file))?);
    let is_share = |name: &str| name.contains("top_") || name.contains("recall_at_") || name.ends_with("accuracy");
    let is_loss = |name: &str| name == "loss" || name.ends_with("/loss");
    let plots = [
        (
            "Loss",
            "loss",
            is_loss as fn(&str) -> bool,
            "Points are means over the samples since the one before; the line is smoothed.",
        ),
        ("Accuracy while training", "share of pictures", is_share, "As judged by the run itself."),
    ];
    let made = plots.into_iter().filter_map(|(title, label, wanted, caption)| {
        let mut lines = logged.iter().filter(|(name, points)| wanted(name) && points.len() > 1).peekable();
        lines.peek()?;
        let plot = LinePlot::new(title, "samples seen", label);
        let plot = lines.fold(plot, |plot, (name, points)| plot.series(name, points.clone()));
        Some((plot, caption.to_owned()))
    });
    Ok(made.collect())
}

/// The finite numbers of the lines. Those of a run that is being written may end in the middle: what is no object is passed over.
fn logged(text: &str) -> Logged {
    let mut logged = Logged::new();
    for line in text.lines() {
        let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(line) else { continue };
        let Some(samples) = fields.get("samples").and_then(Value::as_f64) else { continue };
        for (name, value) in &fields {
            if let Some(value) = value.as_f64().filter(|_| !matches!(name.as_str(), "samples" | "seconds")) {
                logged.entry(name.clone()).or_default().push((samples, value));
            }
        }
    }
    logged
}

#[cfg(test)]
mod tests {
    use super::super::accuracy::Ranked;
    use super::*;

    fn ranked(name: &str, class: usize, best: usize) -> Ranked {
        Ranked { name: name.to_owned(), class, best: vec![best], tied: false }
    }

    #[test]
    fn a_page_has_the_classes_and_the_curves_of_a_run() {
        let folder = tempfile::tempdir().unwrap();
        let lines = "{\"samples\": 10, \"seconds\": 1, \"loss\": 2.5, \"vision/zero_shot_top_1\": 0.1}\n\
                     {\"samples\": 20, \"seconds\": 2, \"loss\": 1.5, \"vision/zero_shot_top_1\": 0.4, \"x\": \"NaN\"}\n{\"samples\": 3";
        std::fs::write(folder.path().join(METRICS), lines).unwrap();
        let outcome = Outcome {
            figures: Vec::new(),
            pictures: vec![ranked("a", 0, 0), ranked("b", 0, 2), ranked("c", 2, 2)],
            names: ["cat", "dog", "fox & co"].map(str::to_owned).to_vec(),
            line: None,
            notices: Vec::new(),
        };
        outcome.write_page(folder.path(), folder.path()).unwrap();
        let page = std::fs::read_to_string(folder.path().join(REPORT)).unwrap();
        for part in
            ["fox &amp; co", "What classes are taken for", "samples seen", "vision/zero_shot_top_1", "Loss", "50"]
        {
            assert!(page.contains(part), "`{part}` is not in the page");
        }
        // No picture is of it.
        assert!(!page.contains("dog"));
        assert!(std::fs::read(folder.path().join(CONFUSION)).unwrap().starts_with(b"\x89PNG"));

        let elsewhere = tempfile::tempdir().unwrap();
        let none = Outcome { pictures: Vec::new(), ..outcome };
        none.write_page(elsewhere.path(), Path::new("model.nemo")).unwrap();
        let page = std::fs::read_to_string(elsewhere.path().join(REPORT)).unwrap();
        assert!(page.contains("model.nemo") && !page.contains("Training"));
        assert!(!elsewhere.path().join(CONFUSION).exists());
    }

    #[test]
    fn of_many_classes_those_with_the_most_mistakes_are_shown() {
        let names: Vec<String> = (0..100).map(|class| format!("c{class}")).collect();
        let pictures: Vec<Ranked> =
            (0..100).map(|class| ranked("x", class, if class < 70 { 99 } else { class })).collect();
        let (plot, caption) = confusion(&per_class(&pictures), &names);
        assert_eq!(plot.names.len(), MOST);
        assert_eq!((plot.names[0].as_str(), plot.names[59].as_str()), ("c0", "c59"));
        assert!(caption.contains("of 100"), "{caption}");
    }
}
