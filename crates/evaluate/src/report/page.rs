//! `report.html`: is this model better, and where is it bad.

use super::compare::{Comparison, compare};
use super::pictures::{Pictures, shown};
use super::plots::Plot;
use super::words::{self, Word};
use super::{Evaluation, ReportOptions, Setting, count, digits, label, signed};
use crate::{Figure, Result};
use calotype_metrics::report::{Bar, Bars, Block, Card, Gallery, Image, Report, Section, Table};

/// Width of a picture on the page, in CSS pixels.
const WIDTH: usize = 126;
/// … and in the first screen.
const SMALL: usize = 112;
/// Pictures in the first screen.
const FIRST: usize = 8;
/// Cards at the top.
const CARDS: usize = 4;
/// Words that are told.
const WORDS: usize = 8;
/// Captions that are shown in all settings.
const ACROSS: usize = 4;

/// What the sections of a page are made of.
struct Page<'a> {
    evaluation: &'a Evaluation,
    pictures: &'a dyn Pictures,
    options: &'a ReportOptions<'a>,
    /// Number of the setting that the page is about.
    best: usize,
    comparison: Option<Comparison>,
}

/// The page of an evaluation whose plots are made.
pub(super) fn report(
    evaluation: &Evaluation,
    pictures: &dyn Pictures,
    options: &ReportOptions<'_>,
    plots: Vec<Plot>,
) -> Result<Report> {
    let best = evaluation.best();
    let comparison = options.baseline.map(|baseline| compare(evaluation, best, baseline, options.seed)).transpose()?;
    let page = Page { evaluation, pictures, options, best, comparison };
    let mut report = Report::new(page.title(), page.summary());
    report.verdict = page.comparison.as_ref().map(|comparison| comparison.verdict(page.baseline_name()));
    report.cards = page.cards();
    // Of checkpoints, the curves over training say more.
    let over_training = plots.iter().any(|plot| plot.is_over_training());
    let (first, later): (Vec<Plot>, Vec<Plot>) =
        plots.into_iter().partition(|plot| plot.is_over_training() == over_training);
    report.sections = [
        page.overview(&first)?,
        page.figures(),
        page.words(&first),
        page.galleries()?,
        page.against_baseline()?,
        page.across()?,
        more(&later),
        page.making(),
    ]
    .into_iter()
    .flatten()
    .collect();
    Ok(report.machine("Calotype", env!("CARGO_PKG_VERSION")))
}

impl Page<'_> {
    fn setting(&self) -> Option<&Setting> {
        self.evaluation.settings.get(self.best)
    }

    fn baseline_name(&self) -> &str {
        let title = self.options.baseline.map_or("", |baseline| baseline.evaluation.title.as_str());
        if title.is_empty() { "the baseline" } else { title }
    }

    fn title(&self) -> &str {
        if self.evaluation.title.is_empty() { "Evaluation" } else { &self.evaluation.title }
    }

    fn summary(&self) -> String {
        let Some(setting) = self.setting() else { return "No pictures were judged.".into() };
        let pictures = setting.figures.iter().map(|figure| figure.count).max().unwrap_or(setting.clip_scores.len());
        let mut text = format!("{} pictures", count(pictures));
        if self.evaluation.settings.len() > 1 {
            let (settings, varied) = (self.evaluation.settings.len(), &self.evaluation.varied);
            text += &format!(
                " at each of {settings} settings of {varied}; shown is {varied} {}, the best",
                label(&setting.label)
            );
        }
        if self.options.baseline.is_none() {
            text += ". Compared with nothing: no baseline was given";
        }
        text + "."
    }

    fn cards(&self) -> Vec<Card> {
        let Some(setting) = self.setting() else { return Vec::new() };
        let main = [setting.distance(), setting.clip_score()].into_iter().flatten();
        let others = setting.figures.iter().filter(|figure| main.clone().all(|shown| shown != *figure));
        main.clone().chain(others).take(CARDS).map(|figure| self.card(figure)).collect()
    }

    fn card(&self, figure: &Figure) -> Card {
        let change = self.comparison.as_ref().and_then(|comparison| comparison.change(figure));
        Card {
            name: figure.full_title(),
            value: digits(figure.value),
            note: spread(figure).unwrap_or_else(|| direction(figure).into()),
            change: change.map(super::compare::Change::verdict),
        }
    }

    /// The first screen: the curve, or else the weakest words, beside the worst pictures.
    fn overview(&self, plots: &[Plot]) -> Result<Option<Section>> {
        let mut left: Vec<Block> = plots.iter().map(block).collect();
        if left.is_empty() {
            left.extend(self.word_bars());
        }
        let columns: Vec<Vec<Block>> = match self.ranked(FIRST, SMALL, false)? {
            Some(worst) => {
                [left, vec![Block::Gallery(worst)]].into_iter().filter(|column| !column.is_empty()).collect()
            }
            None => left.into_iter().map(|block| vec![block]).collect(),
        };
        Ok((!columns.is_empty()).then(|| Section::new("").block(Block::Columns(columns))))
    }

    fn figures(&self) -> Option<Section> {
        let settings = &self.evaluation.settings;
        let mut kinds: Vec<&Figure> = Vec::new();
        for figure in settings.iter().flat_map(|setting| &setting.figures) {
            if kinds.iter().all(|kind| !same_kind(kind, figure)) {
                kinds.push(figure);
            }
        }
        if kinds.is_empty() {
            return None;
        }
        let of_baseline = self.options.baseline.zip(self.comparison.as_ref());
        let of_baseline = of_baseline.and_then(|(baseline, found)| baseline.evaluation.settings.get(found.number));
        let columns = kinds.iter().map(|figure| match direction(figure) {
            "" => figure.full_title(),
            direction => format!("{}, {direction}", figure.full_title()),
        });
        let corner = if self.evaluation.varied.is_empty() { "Setting" } else { &self.evaluation.varied };
        let mut table = Table::new("", corner, columns).emphasise_row(self.best);
        let names = settings.iter().map(|setting| (label(&setting.label), setting));
        for (name, setting) in
            names.chain(of_baseline.map(|setting| (format!("baseline, {}", label(&setting.label)), setting)))
        {
            let found = |kind: &&Figure| setting.figures.iter().find(|figure| same_kind(figure, kind));
            table = table.row(name, "", kinds.iter().map(|kind| found(kind).map_or(String::new(), in_cell)));
        }
        let unlike = self.comparison.iter().flat_map(|comparison| &comparison.unlike);
        let section = Section::new("Figures").table(table).text(notes(settings));
        Some(unlike.fold(section, |section, text| section.text(format!("{text}."))))
    }

    /// Words, but for those that the first screen has told in place of a curve.
    fn words(&self, plots: &[Plot]) -> Option<Section> {
        let section = Section::new("Where it is bad");
        let bars = if plots.is_empty() { None } else { self.word_bars() };
        let columns: Vec<Vec<Block>> = [bars, self.lost_words()].into_iter().flatten().map(|bars| vec![bars]).collect();
        let told = !columns.is_empty();
        told.then_some(section.block(Block::Columns(columns)).text(
            "Words of the captions whose pictures score lower than all by more than three standard errors. CLIP itself finds some \
             words harder than others; a comparison with a baseline, or with real pictures as one, is free of that.",
        ))
    }

    fn word_bars(&self) -> Option<Block> {
        let setting = self.setting()?;
        let scores: Vec<f64> = setting.clip_scores.iter().map(|score| f64::from(*score)).collect();
        let words = words::lowest(&self.evaluation.captions, &scores, WORDS);
        bars("Weakest words", "CLIP score, less the mean of all", words)
    }

    /// Words at which the baseline is better by more than elsewhere.
    fn lost_words(&self) -> Option<Block> {
        let words = words::lowest(&self.evaluation.captions, &self.differences()?, WORDS);
        bars(
            &format!("Words that lost most against {}", self.baseline_name()),
            "difference, less the mean of all",
            words,
        )
    }

    /// CLIP scores less the baseline's, by sample; `None` if they are not of the same captions.
    fn differences(&self) -> Option<Vec<f64>> {
        let baseline = &self.options.baseline?.evaluation;
        let theirs = baseline.settings.get(self.comparison.as_ref()?.number)?;
        let ours = self.setting()?;
        let comparable = baseline.captions == self.evaluation.captions
            && !ours.clip_scores.is_empty()
            && ours.clip_scores.len() == theirs.clip_scores.len();
        let pairs = ours.clip_scores.iter().zip(&theirs.clip_scores);
        comparable.then(|| pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)).collect())
    }

    fn galleries(&self) -> Result<Option<Section>> {
        let more = self.options.pictures;
        let (worst, best) = (self.ranked(more, WIDTH, false)?, self.ranked(more, WIDTH, true)?);
        let sampled = self.sampled(more)?;
        let galleries: Vec<Block> = [worst, best, sampled].into_iter().flatten().map(Block::Gallery).collect();
        let section = Section::new("Pictures");
        Ok((!galleries.is_empty()).then(|| galleries.into_iter().fold(section, Section::block)))
    }

    /// Pictures of the lowest or highest scores.
    fn ranked(&self, most: usize, width: usize, highest: bool) -> Result<Option<Gallery>> {
        let Some(setting) = self.setting() else { return Ok(None) };
        let mut order: Vec<usize> =
            (0..setting.clip_scores.len()).filter(|at| setting.clip_scores[*at].is_finite()).collect();
        order.sort_by(|a, b| setting.clip_scores[*a].total_cmp(&setting.clip_scores[*b]));
        if highest {
            order.reverse();
        }
        let caption = if highest { "Highest CLIP scores" } else { "Lowest CLIP scores" };
        self.gallery(caption, width, order.into_iter().take(most), |sample| {
            format!("{:.3}", setting.clip_scores[sample])
        })
    }

    /// Pictures evenly taken from all, which no score has chosen.
    fn sampled(&self, most: usize) -> Result<Option<Gallery>> {
        self.gallery("Evenly taken from all, whatever their scores", WIDTH, self.even(most), |_| String::new())
    }

    fn even(&self, most: usize) -> impl Iterator<Item = usize> + use<> {
        let all = self.evaluation.captions.len();
        let shown = most.min(all);
        (0..shown).map(move |index| index * all / shown)
    }

    fn gallery(
        &self,
        caption: &str,
        width: usize,
        samples: impl Iterator<Item = usize>,
        figure: impl Fn(usize) -> String,
    ) -> Result<Option<Gallery>> {
        let mut images: Vec<Image> = Vec::new();
        for sample in samples {
            images.extend(shown(self.pictures, self.best, sample, figure(sample), self.caption(sample))?);
        }
        Ok((!images.is_empty()).then(|| Gallery { caption: caption.to_owned(), width, images }))
    }

    fn caption(&self, sample: usize) -> String {
        self.evaluation.captions.get(sample).cloned().unwrap_or_default()
    }

    /// The pictures that lost most against the baseline, beside the baseline's.
    fn against_baseline(&self) -> Result<Option<Section>> {
        let (Some(baseline), Some(found), Some(differences)) =
            (self.options.baseline, &self.comparison, self.differences())
        else {
            return Ok(None);
        };
        let mut order: Vec<usize> = (0..differences.len()).filter(|at| differences[*at] < 0.0).collect();
        order.sort_by(|a, b| differences[*a].total_cmp(&differences[*b]));
        let mut images = Vec::new();
        for sample in order.into_iter().take(self.options.pictures.div_ceil(2)) {
            let lost = signed(differences[sample]);
            images.extend(shown(self.pictures, self.best, sample, format!("now, {lost}"), self.caption(sample))?);
            images.extend(shown(&baseline.pictures, found.number, sample, "baseline".into(), String::new())?);
        }
        let caption = "Pictures whose CLIP score fell most, each before that of the baseline".to_owned();
        let gallery = Gallery { caption, width: WIDTH, images };
        let section = Section::new(format!("Against {}", self.baseline_name()));
        Ok((!gallery.images.is_empty()).then(|| section.block(Block::Gallery(gallery))))
    }

    /// Some captions in all settings.
    fn across(&self) -> Result<Option<Section>> {
        let settings = &self.evaluation.settings;
        if settings.len() < 2 {
            return Ok(None);
        }
        let mut section = Section::new(format!("The same captions by {}", self.evaluation.varied));
        for sample in self.even(ACROSS) {
            let mut images = Vec::new();
            for (number, setting) in settings.iter().enumerate() {
                let score = setting.clip_scores.get(sample).filter(|score| score.is_finite());
                let score = score.map_or(String::new(), |score| format!("CLIP {score:.3}"));
                let image = shown(self.pictures, number, sample, label(&setting.label), String::new())?;
                let alt = format!("drawn at {} for: {}", label(&setting.label), self.caption(sample));
                images.extend(image.map(|image| Image { alt, caption: score, ..image }));
            }
            let gallery = Gallery { caption: self.caption(sample), width: SMALL, images };
            if !gallery.images.is_empty() {
                section = section.block(Block::Gallery(gallery));
            }
        }
        Ok((!section.blocks.is_empty()).then_some(section))
    }

    /// How the pictures were made, and what the figures depend on.
    fn making(&self) -> Option<Section> {
        let mut section = Section::new("How it was made");
        if !self.evaluation.facts.is_empty() {
            let table = Table::new("", "Pictures", [""]);
            let facts = self.evaluation.facts.iter();
            section = section.table(facts.fold(table, |table, (name, value)| table.row(name, "", [value.as_str()])));
        }
        let setting = self.setting();
        for figure in setting.iter().flat_map(|setting| &setting.figures) {
            section = section.verbatim(format!("Fingerprint: {}", figure.full_title()), fingerprint(figure));
        }
        if !self.evaluation.recipe.is_empty() {
            section = section.verbatim("Recipe", &self.evaluation.recipe);
        }
        (!section.blocks.is_empty()).then_some(section)
    }
}

fn more(plots: &[Plot]) -> Option<Section> {
    let section = Section::new("Curve of the settings");
    (!plots.is_empty()).then(|| plots.iter().map(block).fold(section, Section::block))
}

fn block(plot: &Plot) -> Block {
    Block::Plot { plot: plot.drawing.clone(), caption: plot.caption.clone() }
}

fn same_kind(a: &Figure, b: &Figure) -> bool {
    (&a.metric, &a.variant) == (&b.metric, &b.variant)
}

fn direction(figure: &Figure) -> &'static str {
    match figure.lower_is_better() {
        Some(true) => "lower is better",
        Some(false) => "higher is better",
        None => "",
    }
}

/// What stands beside figures in a table, in words.
fn notes(settings: &[Setting]) -> String {
    let figures = || settings.iter().flat_map(|setting| &setting.figures);
    let brackets = figures().any(|figure| figure.interval.is_some());
    let deviations = figures().any(|figure| figure.interval.is_none() && figure.deviation.is_some());
    let brackets = brackets.then_some("In brackets: 95\u{a0}% of what chance does.");
    let deviations = deviations.then_some("Behind \u{b1}: standard deviation.");
    brackets.into_iter().chain(deviations).collect::<Vec<_>>().join(" ")
}

/// How far chance moves a figure, in words.
fn spread(figure: &Figure) -> Option<String> {
    let interval = figure.interval.map(|[low, high]| format!("95\u{a0}%: {} to {}", digits(low), digits(high)));
    interval.or_else(|| Some(format!("standard deviation {}", calotype_metrics::report::figure(figure.deviation?))))
}

fn in_cell(figure: &Figure) -> String {
    let value = digits(figure.value);
    match (figure.interval, figure.deviation) {
        (Some([low, high]), _) => format!("{value} [{}, {}]", digits(low), digits(high)),
        (None, Some(deviation)) => format!("{value} \u{b1} {}", calotype_metrics::report::figure(deviation)),
        (None, None) => value,
    }
}

/// The fingerprint, a line for each field.
fn fingerprint(figure: &Figure) -> String {
    // Text keys and finite numbers only, which JSON can hold.
    let value = serde_json::to_value(&figure.fingerprint).unwrap_or_default();
    let mut text = format!("value: {}\ncount: {}\n", figure.value, figure.count);
    for (name, value) in value.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text += &format!("{name}: {value}\n");
    }
    text
}

fn bars(caption: &str, heading: &str, words: Vec<Word>) -> Option<Block> {
    let bar = |word: Word| Bar {
        note: format!("in {} captions", count(word.captions)),
        value: word.difference,
        text: format!("{} \u{b1} {}", signed(word.difference), calotype_metrics::report::figure(word.error)),
        name: word.word,
    };
    let bars: Vec<Bar> = words.into_iter().map(bar).collect();
    let block = Bars { caption: caption.into(), corner: "Word".into(), heading: heading.into(), bars };
    (!block.bars.is_empty()).then_some(Block::Bars(block))
}
