//! `report.html`: what a run did, in one file that can be mailed, archived and opened anywhere.
//!
//! A [`Report`] is a title, summary cards and [`Section`]s of [`Block`]s. The page holds its style, images and plots
//! itself: no scripts, no links to other files, nothing fetched. It follows the reader's light or dark colour scheme.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use calotype_core::durable;

use crate::error::{MetricsError, Result};
use crate::plot::{Drawing, escape};

/// The notice that Twemoji images must carry wherever they are shown.
pub const TWEMOJI_NOTICE: &str = "Emoji images: Twemoji graphics, licensed under CC-BY 4.0 \
    (https://creativecommons.org/licenses/by/4.0/), Copyright Twitter, Inc and other contributors. \
    Composited on coloured backgrounds; generated images are the output of models trained on them.";

/// A report under construction. Texts are plain; the page escapes them.
///
/// ```
/// use calotype_metrics::{Report, Section};
///
/// let report = Report::new("Run 7", "A UNet after 10,000 steps.")
///     .card("Fréchet distance", "12.3", "untrained 310")
///     .section(Section::new("Data").text("13,552 images & captions."));
/// let page = report.to_html();
/// assert!(page.contains("<h1>Run 7</h1>") && page.contains("images &amp; captions"));
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Heading and window title.
    pub title: String,
    /// One or two sentences under the title.
    pub summary: String,
    /// The answer to the question that the report is read for; none if it asks nothing.
    pub verdict: Option<Verdict>,
    /// The few figures that matter most.
    pub cards: Vec<Card>,
    /// The body, in order.
    pub sections: Vec<Section>,
    /// Machine, device, version, seed and the like: (name, value), printed as one line at the end.
    pub machine: Vec<(String, String)>,
    /// Licence and attribution lines at the end, such as [`TWEMOJI_NOTICE`].
    pub notices: Vec<String>,
}

/// A figure that stands out at the top of the page.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// Name of the figure.
    pub name: String,
    /// The figure with its unit.
    pub value: String,
    /// A value to compare it with; may be empty.
    pub note: String,
    /// What changed against something else, and whether for the better.
    pub change: Option<Verdict>,
}

/// How something turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// For the better.
    Better,
    /// For the worse.
    Worse,
    /// No more than chance would do, or partly so and partly so.
    Open,
}

impl Outcome {
    fn class(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Open => "open",
        }
    }

    /// A sign that differs in form, not only in colour.
    fn sign(self) -> &'static str {
        match self {
            Self::Better => "\u{25b2}",
            Self::Worse => "\u{25bc}",
            Self::Open => "\u{25c6}",
        }
    }
}

/// An outcome in words.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// What it is.
    pub outcome: Outcome,
    /// The words, which say all without colour and sign.
    pub text: String,
}

/// A heading with blocks under it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Section {
    /// The heading.
    pub title: String,
    /// The contents, in order.
    pub blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Debug, Clone, PartialEq)]
pub enum Block {
    /// A paragraph.
    Text(String),
    /// One image, such as a contact sheet.
    Image(Image),
    /// Many small images side by side, each with its caption as text.
    Gallery(Gallery),
    /// Blocks side by side where the page is wide enough, each column's below each other.
    Columns(Vec<Vec<Block>>),
    /// Values as bars.
    Bars(Bars),
    /// A plot with a caption.
    Plot {
        /// The plot.
        plot: Drawing,
        /// Text under it.
        caption: String,
    },
    /// A table of figures.
    Table(Table),
    /// Time that each stage took.
    Timings(Vec<Timing>),
    /// A text to keep as it is, such as a recipe or a log, folded away until asked for.
    Verbatim {
        /// The line that is visible when folded.
        title: String,
        /// The text.
        text: String,
    },
}

/// An image.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Image {
    /// The bytes of a PNG or JPEG file.
    pub file: Vec<u8>,
    /// Description of the image, for readers who do not see it.
    pub alt: String,
    /// A figure of the image, in bold above the caption; may be empty.
    pub figure: String,
    /// Text under it; may be empty.
    pub caption: String,
    /// Draw with hard pixel edges when enlarged; right for small images.
    pub pixelated: bool,
}

/// Small images of one size.
#[derive(Debug, Clone, PartialEq)]
pub struct Gallery {
    /// Text above all of them; may be empty.
    pub caption: String,
    /// Width of an image on the page, in CSS pixels.
    pub width: usize,
    /// The images.
    pub images: Vec<Image>,
}

/// A table of figures: a row for each quantity, a column for each subject (such as untrained, trained, real, chance).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// Text above the table; may be empty.
    pub caption: String,
    /// Heading over the names of the rows.
    pub corner: String,
    /// Headings of the columns of figures.
    pub columns: Vec<String>,
    /// Index of a column to set in bold.
    pub emphasised: Option<usize>,
    /// Index of a row to set in bold.
    pub emphasised_row: Option<usize>,
    /// The rows.
    pub rows: Vec<Row>,
}

/// A row of a [`Table`].
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The quantity.
    pub name: String,
    /// Its unit, or which way is better; may be empty.
    pub note: String,
    /// One per column; missing and empty ones are shown as a dash.
    pub cells: Vec<String>,
}

/// Values as bars that begin at zero, to the right if positive and else to the left.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bars {
    /// Text above them; may be empty.
    pub caption: String,
    /// Heading over the names.
    pub corner: String,
    /// Heading over the values.
    pub heading: String,
    /// The bars.
    pub bars: Vec<Bar>,
}

/// A bar of [`Bars`].
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// What it stands for.
    pub name: String,
    /// More of it; may be empty.
    pub note: String,
    /// Its length.
    pub value: f64,
    /// The value in words.
    pub text: String,
}

/// Time that a stage took.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// The stage.
    pub stage: String,
    /// Seconds by the clock on the wall.
    pub seconds: f64,
    /// Such as images per second; may be empty.
    pub note: String,
}

impl Report {
    /// An empty report.
    pub fn new(title: impl Into<String>, summary: impl Into<String>) -> Self {
        Self { title: title.into(), summary: summary.into(), ..Self::default() }
    }

    /// Adds a summary card.
    #[must_use]
    pub fn card(mut self, name: impl Into<String>, value: impl Into<String>, note: impl Into<String>) -> Self {
        self.cards.push(Card { name: name.into(), value: value.into(), note: note.into(), change: None });
        self
    }

    /// Sets the answer under the summary.
    #[must_use]
    pub fn verdict(mut self, outcome: Outcome, text: impl Into<String>) -> Self {
        self.verdict = Some(Verdict { outcome, text: text.into() });
        self
    }

    /// Adds a section.
    #[must_use]
    pub fn section(mut self, section: Section) -> Self {
        self.sections.push(section);
        self
    }

    /// Adds to the line about the machine.
    #[must_use]
    pub fn machine(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.machine.push((name.into(), value.into()));
        self
    }

    /// Adds a licence or attribution line.
    #[must_use]
    pub fn notice(mut self, notice: impl Into<String>) -> Self {
        self.notices.push(notice.into());
        self
    }

    /// The page.
    pub fn to_html(&self) -> String {
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{0}</title>\n<style>\n{STYLE}</style>\n</head>\n\
             <body>\n<header>\n<h1>{0}</h1>\n",
            escape(&self.title)
        );
        element(&mut page, "p", " class=\"lead\"", &self.summary);
        if let Some(verdict) = &self.verdict {
            verdict.html(&mut page, "p", "verdict");
        }
        page.push_str("</header>\n<main>\n");
        self.cards_html(&mut page);
        for section in &self.sections {
            section.html(&mut page);
        }
        page.push_str("</main>\n<footer>\n");
        self.machine_html(&mut page);
        for notice in &self.notices {
            element(&mut page, "p", "", notice);
        }
        page.push_str("</footer>\n</body>\n</html>\n");
        page
    }

    /// Writes the page to `path`, all or nothing: an older file stays until the new one is complete on disk.
    ///
    /// # Errors
    /// If the folder does not exist or cannot be written to, or the disk is full.
    pub fn write(&self, path: &Path) -> Result<()> {
        durable::write_bytes(path, self.to_html().as_bytes())
            .map_err(|source| MetricsError::Write { path: path.to_path_buf(), source })
    }

    fn cards_html(&self, page: &mut String) {
        if self.cards.is_empty() {
            return;
        }
        page.push_str("<dl class=\"cards\">\n");
        for card in &self.cards {
            page.push_str("<div>");
            element(page, "dt", "", &card.name);
            element(page, "dd", " class=\"value\"", &card.value);
            element(page, "dd", "", &card.note);
            if let Some(change) = &card.change {
                change.html(page, "dd", "change");
            }
            page.push_str("</div>\n");
        }
        page.push_str("</dl>\n");
    }

    fn machine_html(&self, page: &mut String) {
        if self.machine.is_empty() {
            return;
        }
        page.push_str("<p class=\"machine\">");
        for (name, value) in &self.machine {
            // Writing to a String cannot fail, here and below.
            let _ = write!(page, "<span>{}: <b>{}</b></span> ", escape(name), escape(value));
        }
        page.push_str("</p>\n");
    }
}

impl Section {
    /// An empty section.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), blocks: Vec::new() }
    }

    /// Adds any block.
    #[must_use]
    pub fn block(mut self, block: Block) -> Self {
        self.blocks.push(block);
        self
    }

    /// Adds a paragraph.
    #[must_use]
    pub fn text(self, text: impl Into<String>) -> Self {
        self.block(Block::Text(text.into()))
    }

    /// Adds an image.
    #[must_use]
    pub fn image(self, file: Vec<u8>, alt: impl Into<String>, caption: impl Into<String>) -> Self {
        self.block(Block::Image(Image { file, alt: alt.into(), caption: caption.into(), ..Image::default() }))
    }

    /// Adds many small images, each with its caption; `width` is that of an image on the page, in CSS pixels.
    #[must_use]
    pub fn gallery(self, caption: impl Into<String>, width: usize, images: Vec<Image>) -> Self {
        self.block(Block::Gallery(Gallery { caption: caption.into(), width, images }))
    }

    /// Adds a plot.
    #[must_use]
    pub fn plot(self, plot: impl Into<Drawing>, caption: impl Into<String>) -> Self {
        self.block(Block::Plot { plot: plot.into(), caption: caption.into() })
    }

    /// Adds a table.
    #[must_use]
    pub fn table(self, table: Table) -> Self {
        self.block(Block::Table(table))
    }

    /// Adds the table of timings.
    #[must_use]
    pub fn timings(self, timings: Vec<Timing>) -> Self {
        self.block(Block::Timings(timings))
    }

    /// Adds a folded text.
    #[must_use]
    pub fn verbatim(self, title: impl Into<String>, text: impl Into<String>) -> Self {
        self.block(Block::Verbatim { title: title.into(), text: text.into() })
    }

    fn html(&self, page: &mut String) {
        page.push_str("<section>\n");
        element(page, "h2", "", &self.title);
        for block in &self.blocks {
            block.html(page);
        }
        page.push_str("</section>\n");
    }
}

impl Table {
    /// A table without rows.
    pub fn new<C: Into<String>>(
        caption: impl Into<String>,
        corner: impl Into<String>,
        columns: impl IntoIterator<Item = C>,
    ) -> Self {
        Self {
            caption: caption.into(),
            corner: corner.into(),
            columns: columns.into_iter().map(Into::into).collect(),
            emphasised: None,
            emphasised_row: None,
            rows: Vec::new(),
        }
    }

    /// Sets the column with this index in bold.
    #[must_use]
    pub fn emphasise(mut self, column: usize) -> Self {
        self.emphasised = Some(column);
        self
    }

    /// Sets the row with this index in bold.
    #[must_use]
    pub fn emphasise_row(mut self, row: usize) -> Self {
        self.emphasised_row = Some(row);
        self
    }

    /// Adds a row; an empty cell is shown as a dash.
    #[must_use]
    pub fn row<C: Into<String>>(
        mut self,
        name: impl Into<String>,
        note: impl Into<String>,
        cells: impl IntoIterator<Item = C>,
    ) -> Self {
        let cells = cells.into_iter().map(Into::into).collect();
        self.rows.push(Row { name: name.into(), note: note.into(), cells });
        self
    }

    fn html(&self, page: &mut String) {
        open_scroll(page, if self.caption.is_empty() { &self.corner } else { &self.caption });
        page.push_str("<table>\n");
        element(page, "caption", "", &self.caption);
        page.push_str("<thead><tr>");
        // An empty heading would be skipped by `element`; the corner cell must exist all the same.
        let _ = write!(page, "<th scope=\"col\">{}</th>", escape(&self.corner));
        // A row with more cells than there are headings would otherwise lose them.
        let width = self.rows.iter().map(|row| row.cells.len()).fold(self.columns.len(), usize::max);
        for column in 0..width {
            let heading = self.columns.get(column).map_or("", String::as_str);
            let _ = write!(page, "<th scope=\"col\"{}>{}</th>", self.emphasis(column), escape(heading));
        }
        page.push_str("</tr></thead>\n<tbody>\n");
        for (index, row) in self.rows.iter().enumerate() {
            let strong = if self.emphasised_row == Some(index) { " class=\"strong\"" } else { "" };
            let _ = write!(page, "<tr{strong}><th scope=\"row\">{}", escape(&row.name));
            element(page, "small", "", &row.note);
            page.push_str("</th>");
            for column in 0..width {
                let cell = row.cells.get(column).filter(|cell| !cell.is_empty());
                let cell = cell.map_or("–", String::as_str);
                let _ = write!(page, "<td{}>{}</td>", self.emphasis(column), escape(cell));
            }
            page.push_str("</tr>\n");
        }
        page.push_str("</tbody>\n</table></div>\n");
    }

    fn emphasis(&self, column: usize) -> &'static str {
        if self.emphasised == Some(column) { " class=\"strong\"" } else { "" }
    }
}

impl Block {
    fn html(&self, page: &mut String) {
        match self {
            Self::Text(text) => element(page, "p", "", text),
            Self::Image(image) => image.html(page, " class=\"sheet\""),
            Self::Gallery(gallery) => gallery.html(page),
            Self::Plot { plot, caption } => {
                page.push_str("<figure class=\"plot\">");
                element(page, "h3", "", plot.title());
                open_scroll(page, plot.title());
                page.push_str(&plot.to_svg());
                page.push_str("</div>");
                if !caption.is_empty() {
                    element(page, "figcaption", "", caption);
                }
                page.push_str("</figure>\n");
            }
            Self::Columns(columns) => {
                page.push_str("<div class=\"columns\">\n");
                for column in columns {
                    page.push_str("<div>\n");
                    column.iter().for_each(|block| block.html(page));
                    page.push_str("</div>\n");
                }
                page.push_str("</div>\n");
            }
            Self::Bars(bars) => bars.html(page),
            Self::Table(table) => table.html(page),
            Self::Timings(timings) => timings_html(timings, page),
            Self::Verbatim { title, text } => {
                let _ = write!(page, "<details><summary>{}</summary>", escape(title));
                // The parser drops one line break after <pre>; this one is for it.
                let _ = write!(page, "<pre tabindex=\"0\">\n{}</pre></details>\n", escape(text));
            }
        }
    }
}

impl Image {
    fn html(&self, page: &mut String, attributes: &str) {
        let class = if self.pixelated { " class=\"pixelated\"" } else { "" };
        let kind = if self.file.starts_with(&[0xff, 0xd8]) { "jpeg" } else { "png" };
        let _ = write!(
            page,
            "<figure{attributes}><div><img{class} src=\"data:image/{kind};base64,{}\" alt=\"{}\"{}></div>",
            STANDARD.encode(&self.file),
            escape(&self.alt),
            self.size_attributes()
        );
        if !(self.figure.is_empty() && self.caption.is_empty()) {
            page.push_str("<figcaption>");
            element(page, "b", "", &self.figure);
            let _ = writeln!(page, "{}</figcaption>", escape(&self.caption));
        }
        page.push_str("</figure>\n");
    }

    /// Width and height, so that the page does not jump while it loads.
    fn size_attributes(&self) -> String {
        let size = image::ImageReader::new(std::io::Cursor::new(&self.file)).with_guessed_format();
        match size.map(|reader| reader.into_dimensions()) {
            Ok(Ok((width, height))) => format!(" width=\"{width}\" height=\"{height}\""),
            _ => String::new(),
        }
    }
}

impl Verdict {
    fn html(&self, page: &mut String, name: &str, class: &str) {
        let Self { outcome, text } = self;
        let (kind, sign) = (outcome.class(), outcome.sign());
        let text = escape(text);
        let _ =
            writeln!(page, "<{name} class=\"{class} {kind}\"><span aria-hidden=\"true\">{sign}</span> {text}</{name}>");
    }
}

impl Bars {
    fn html(&self, page: &mut String) {
        let values = || self.bars.iter().map(|bar| bar.value).filter(|value| value.is_finite());
        let (low, high) = values().fold((0.0f64, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
        let percent = |length: f64| if high > low { 100.0 * length / (high - low) } else { 0.0 };
        open_scroll(page, if self.caption.is_empty() { &self.corner } else { &self.caption });
        page.push_str("<table class=\"bars\">\n");
        element(page, "caption", "", &self.caption);
        let _ = writeln!(
            page,
            "<thead><tr><th scope=\"col\">{}</th><th scope=\"col\" colspan=\"2\">{}</th></tr></thead>\n<tbody>",
            escape(&self.corner),
            escape(&self.heading)
        );
        for bar in &self.bars {
            let value = if bar.value.is_finite() { bar.value } else { 0.0 };
            let (start, length) = (percent(value.min(0.0) - low), percent(value.abs()));
            let side = if value < 0.0 { "below" } else { "above" };
            let _ = write!(page, "<tr><th scope=\"row\">{}", escape(&bar.name));
            element(page, "small", "", &bar.note);
            let _ = writeln!(
                page,
                "</th><td>{}</td><td class=\"bar\" aria-hidden=\"true\"><i class=\"{side}\" \
                 style=\"margin-left:{start:.1}%;width:{length:.1}%\"></i></td></tr>",
                escape(&bar.text)
            );
        }
        page.push_str("</tbody>\n</table></div>\n");
    }
}

impl Gallery {
    fn html(&self, page: &mut String) {
        page.push_str("<figure>");
        element(page, "figcaption", " class=\"heading\"", &self.caption);
        page.push_str("<div class=\"gallery\">\n");
        let style = format!(" style=\"width:{}px\"", self.width);
        for image in &self.images {
            image.html(page, &style);
        }
        page.push_str("</div></figure>\n");
    }
}

fn timings_html(timings: &[Timing], page: &mut String) {
    let longest = timings.iter().map(|timing| timing.seconds).fold(0.0, f64::max);
    let total: f64 = timings.iter().map(|timing| timing.seconds).sum();
    open_scroll(page, "Time per stage");
    page.push_str(
        "<table class=\"timings\">\n<thead><tr><th scope=\"col\">Stage</th>\
         <th scope=\"col\">Time</th><th scope=\"col\"><span class=\"unseen\">Share</span></th></tr></thead>\n<tbody>\n",
    );
    for timing in timings {
        let share = if longest > 0.0 { 100.0 * timing.seconds / longest } else { 0.0 };
        let _ = write!(page, "<tr><th scope=\"row\">{}", escape(&timing.stage));
        element(page, "small", "", &timing.note);
        let _ = writeln!(
            page,
            "</th><td>{}</td><td class=\"bar\" aria-hidden=\"true\"><i style=\"width:{share:.1}%\"></i></td></tr>",
            duration(timing.seconds)
        );
    }
    let _ = write!(
        page,
        "</tbody>\n<tfoot><tr><th scope=\"row\">Total</th><td>{}</td><td></td></tr></tfoot>\n</table></div>\n",
        duration(total)
    );
}

/// `seconds` for a reader: `0.42 s`, `12.3 s`, `4 min 05 s`, `2 h 03 min`; a number and its unit stay on one line.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "–".into();
    }
    // Compared after rounding, so that 59.96 does not become "60.0 s".
    if seconds < 9.995 {
        return format!("{seconds:.2}\u{a0}s");
    }
    if seconds < 59.95 {
        return format!("{seconds:.1}\u{a0}s");
    }
    let whole = seconds.round() as u64;
    if whole < 3600 {
        return format!("{}\u{a0}min {:02}\u{a0}s", whole / 60, whole % 60);
    }
    let minutes = (seconds / 60.0).round() as u64;
    format!("{}\u{a0}h {:02}\u{a0}min", minutes / 60, minutes % 60)
}

/// A fraction (0..1) as percent with one decimal; number and sign stay on one line.
pub fn percent(fraction: f64) -> String {
    if fraction.is_finite() { format!("{:.1}\u{a0}%", 100.0 * fraction) } else { "–".into() }
}

/// `value` with three significant digits, in plain notation where that is short.
pub fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    let size = value.abs();
    if size != 0.0 && !(1e-4..1e7).contains(&size) {
        return format!("{value:.2e}");
    }
    let decimals = if size == 0.0 { 0 } else { (2 - size.log10().floor() as i32).max(0) as usize };
    format!("{value:.decimals$}")
}

/// Starts a `<div>` that scrolls sideways on narrow screens, by keyboard too; `label` names it to screen readers.
fn open_scroll(page: &mut String, label: &str) {
    let _ = write!(page, "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{}\">", escape(label));
}

/// `<name attributes>text</name>`, or nothing when there is no text.
fn element(page: &mut String, name: &str, attributes: &str, text: &str) {
    if !text.is_empty() {
        let _ = writeln!(page, "<{name}{attributes}>{}</{name}>", escape(text));
    }
}

const STYLE: &str = include_str!("report.css");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grid::encode_png;
    use crate::plot::LinePlot;

    fn bars() -> Bars {
        let bar = |name: &str, value: f64| Bar { name: name.into(), note: String::new(), value, text: figure(value) };
        let bars = vec![bar("<two>", -0.03), bar("cat", 0.01), bar("nothing", f64::NAN)];
        Bars { caption: "Words".into(), corner: "Word".into(), heading: "Difference".into(), bars }
    }

    fn sample() -> Report {
        let png = encode_png(&[200; 12], 2, 2).unwrap();
        let (alt, figure) = ("x".to_owned(), "0.123".to_owned());
        let tile = Image { file: png.clone(), alt, figure, caption: "y".into(), pixelated: true };
        Report::new("A <b>run</b>", "Summary & more")
            .verdict(Outcome::Better, "Better than <last>")
            .card("Accuracy", percent(0.934), "chance 12.5 %")
            .section(
                Section::new("All")
                    .text("Some text")
                    .image(png.clone(), "A \"quoted\" alt", "A caption")
                    .gallery("", 96, vec![tile])
                    .plot(LinePlot::new("Loss", "samples", "loss"), "A plot")
                    .block(Block::Columns(vec![vec![Block::Text("left".into())], vec![Block::Bars(bars())]]))
                    .table(
                        Table::new("Figures", "Figure", ["untrained", "trained"])
                            .emphasise(1)
                            .emphasise_row(0)
                            .row("FD", "lower is better", ["12", "3", "1"])
                            .row("Score", "", [""]),
                    )
                    .timings(vec![Timing { stage: "one".into(), seconds: 5.0, note: String::new() }])
                    .verbatim("recipe.toml", "</pre><script>alert(1)</script>"),
            )
            .machine("Device", "cpu")
            .notice(TWEMOJI_NOTICE)
    }

    #[test]
    fn the_page_is_self_contained_and_escaped() {
        let html = sample().to_html();
        assert!(html.contains("<h1>A &lt;b&gt;run&lt;/b&gt;</h1>"));
        assert!(html.contains("&lt;/pre&gt;&lt;script&gt;alert(1)"));
        assert!(html.contains("alt=\"A &quot;quoted&quot; alt\" width=\"2\" height=\"2\""));
        for forbidden in ["<script", "<link", "href=", "src=\"http", "@import", "url("] {
            assert!(!html.contains(forbidden), "{forbidden}");
        }
        for tag in ["figure", "table", "section", "div", "details", "svg", "dl", "main", "tr", "th"] {
            let opened = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "<{tag}>");
        }
    }

    #[test]
    fn outcomes_are_told_in_words_and_signs() {
        let html = sample().to_html();
        assert!(html.contains(
            "<p class=\"verdict better\"><span aria-hidden=\"true\">\u{25b2}</span> Better than &lt;last&gt;</p>"
        ));
        let change = Some(Verdict { outcome: Outcome::Worse, text: "+0.4".into() });
        let mut report = sample();
        report.cards[0].change = change;
        assert!(
            report
                .to_html()
                .contains("<dd class=\"change worse\"><span aria-hidden=\"true\">\u{25bc}</span> +0.4</dd>")
        );
    }

    #[test]
    fn bars_begin_at_zero() {
        let html = sample().to_html();
        assert!(html.contains("&lt;two&gt;</th><td>-0.0300</td>"));
        assert!(html.contains("<i class=\"below\" style=\"margin-left:0.0%;width:75.0%\">"));
        assert!(html.contains("<i class=\"above\" style=\"margin-left:75.0%;width:25.0%\">"));
        assert!(html.contains("<i class=\"above\" style=\"margin-left:75.0%;width:0.0%\">"));
    }

    #[test]
    fn images_of_both_kinds_have_their_type_and_size() {
        let mut jpeg = Vec::new();
        let pixels = image::RgbImage::from_pixel(5, 3, image::Rgb([9, 99, 199]));
        pixels.write_to(&mut std::io::Cursor::new(&mut jpeg), image::ImageFormat::Jpeg).unwrap();
        let html = Report::new("t", "").section(Section::new("s").image(jpeg, "a", "")).to_html();
        assert!(html.contains("data:image/jpeg;base64,") && html.contains("alt=\"a\" width=\"5\" height=\"3\""));
        assert!(!html.contains("<figcaption"));
    }

    #[test]
    fn tables_keep_extra_cells_and_mark_missing_ones() {
        let html = sample().to_html();
        assert!(
            html.contains("<tr class=\"strong\"><th scope=\"row\">FD") && html.contains("<tr><th scope=\"row\">Score")
        );
        assert!(html.contains("<td>12</td><td class=\"strong\">3</td><td>1</td>"));
        assert!(html.contains("<td>–</td><td class=\"strong\">–</td><td>–</td>"));
    }

    #[test]
    fn numbers_are_short() {
        let durations = [0.417, 9.999, 12.34, 59.96, 245.4, 3599.7, 7384.0];
        let expected = ["0.42 s", "10.0 s", "12.3 s", "1 min 00 s", "4 min 05 s", "1 h 00 min", "2 h 03 min"];
        assert_eq!(durations.map(|seconds| duration(seconds).replace('\u{a0}', " ")), expected);
        assert_eq!([0.0, 0.012345, 1.5, 123.456, 43210.0].map(figure), ["0", "0.0123", "1.50", "123", "43210"]);
        assert_eq!([percent(0.125), percent(f64::NAN), figure(1e-9)], ["12.5\u{a0}%", "–", "1.00e-9"]);
    }

    #[test]
    fn writing_replaces_whole_files_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.html");
        std::fs::write(&path, "old").unwrap();
        sample().write(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), sample().to_html());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let missing = folder.path().join("none").join("report.html");
        let error = sample().write(&missing).unwrap_err().to_string();
        assert!(error.contains("none/report.html"), "{error}");
    }
}
