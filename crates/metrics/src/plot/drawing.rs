//! What a plot draws: lines, areas, dots and letters in one list, from which SVG and PNG are made.

use std::fmt::Write as _;

use super::lettering;
use super::raster;
use crate::error::Result;

/// Size of ordinary letters, in units of the drawing.
pub(crate) const TEXT: f64 = 12.0;
/// Size of a title's letters.
const TITLE: f64 = 16.0;
/// Height that a title adds to a file.
const TITLE_HEIGHT: f64 = 30.0;
/// Space around the drawing in a file.
const FILE_MARGIN: f64 = 8.0;

/// A colour by its part in the plot.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Colour {
    /// Behind everything, in files.
    Page,
    /// Titles, names and labels.
    Ink,
    /// Axes, their numbers, what stands back.
    Soft,
    /// Lines of the grid.
    Grid,
    /// A curve, by number; the ninth has the first one's.
    Series(usize),
}

/// Name in the style sheet, light and dark.
type Row = (&'static str, [u8; 3], [u8; 3]);

const BASIC: [Row; 4] = [
    ("page", [0xff, 0xff, 0xff], [0x1c, 0x1c, 0x23]),
    ("ink", [0x24, 0x24, 0x2c], [0xec, 0xec, 0xf2]),
    ("soft", [0x6b, 0x6b, 0x78], [0xa0, 0xa0, 0xb0]),
    ("grid", [0xe4, 0xe4, 0xea], [0x34, 0x34, 0x3f]),
];

const SERIES: [Row; 8] = [
    ("0", [0x00, 0x67, 0xa8], [0x5c, 0xb3, 0xf0]),
    ("1", [0xc4, 0x4e, 0x00], [0xff, 0x93, 0x50]),
    ("2", [0x00, 0x80, 0x5c], [0x3c, 0xcf, 0x9f]),
    ("3", [0xa8, 0x40, 0x7c], [0xea, 0x91, 0xc4]),
    ("4", [0x94, 0x68, 0x00], [0xe6, 0xb9, 0x3c]),
    ("5", [0x2c, 0x8e, 0xc4], [0x8f, 0xd0, 0xf5]),
    ("6", [0x5b, 0x4b, 0xb0], [0xa9, 0x9c, 0xf5]),
    ("7", [0x5a, 0x5a, 0x64], [0xb4, 0xb4, 0xc0]),
];

impl Colour {
    fn row(self) -> &'static Row {
        match self {
            Self::Page => &BASIC[0],
            Self::Ink => &BASIC[1],
            Self::Soft => &BASIC[2],
            Self::Grid => &BASIC[3],
            Self::Series(number) => &SERIES[number % SERIES.len()],
        }
    }

    fn name(self) -> &'static str {
        self.row().0
    }

    /// RGB on a light page.
    pub(crate) fn light(self) -> [u8; 3] {
        self.row().1
    }
}

/// The style of every plot. Class and variables start with `lp-`, so that plots can stand inside any page.
fn style() -> String {
    let variables = |pick: fn(&Row) -> [u8; 3]| {
        let rows = BASIC.iter().chain(&SERIES);
        let rows = rows.map(|row| {
            let [r, g, b] = pick(row);
            format!("--lp-{}:#{r:02x}{g:02x}{b:02x}", row.0)
        });
        rows.collect::<Vec<_>>().join(";")
    };
    let (light, dark) = (variables(|row| row.1), variables(|row| row.2));
    format!(
        ".lp-plot{{font:{TEXT}px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;{light}}}\
         @media screen and (prefers-color-scheme:dark){{.lp-plot{{{dark}}}}}\
         .lp-plot text{{font-variant-numeric:tabular-nums}}\
         .lp-halo{{paint-order:stroke;stroke:var(--lp-page);stroke-width:3px;stroke-linejoin:round}}"
    )
}

/// Where a text's position lies on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a line is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Stroke {
    pub(crate) colour: Colour,
    pub(crate) width: f64,
    /// Lengths of dash and gap.
    pub(crate) dash: Option<(f64, f64)>,
    pub(crate) opacity: f64,
}

impl Stroke {
    pub(crate) fn new(colour: Colour, width: f64) -> Self {
        Self { colour, width, dash: None, opacity: 1.0 }
    }

    pub(crate) fn dashed(self, dash: Option<(f64, f64)>) -> Self {
        Self { dash, ..self }
    }

    pub(crate) fn opacity(self, opacity: f64) -> Self {
        Self { opacity, ..self }
    }
}

/// A piece of writing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Text {
    pub(crate) at: (f64, f64),
    pub(crate) anchor: Anchor,
    pub(crate) colour: Colour,
    pub(crate) size: f64,
    pub(crate) bold: bool,
    /// Runs upwards.
    pub(crate) upwards: bool,
    /// Stands out from lines behind it.
    pub(crate) halo: bool,
    pub(crate) content: String,
}

impl Text {
    pub(crate) fn new(x: f64, y: f64, anchor: Anchor, colour: Colour, content: impl Into<String>) -> Self {
        let content = content.into();
        Self { at: (x, y), anchor, colour, size: TEXT, bold: false, upwards: false, halo: false, content }
    }
}

/// A piece of a drawing. Lengths are in its units, y grows downwards.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    /// A line through points.
    Line(Vec<(f64, f64)>, Stroke),
    /// A filled polygon.
    Area(Vec<(f64, f64)>, Colour, f64),
    /// Filled circles of one radius.
    Dots(Vec<(f64, f64)>, f64, Colour, f64),
    /// Letters.
    Text(Text),
}

/// A plot that is drawn, as a list of lines, areas, dots and texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawing {
    title: String,
    alt: String,
    width: f64,
    height: f64,
    /// The y of the upper edge.
    top: f64,
    shapes: Vec<Shape>,
}

impl Drawing {
    /// An empty drawing, from `top` to `bottom`.
    pub(crate) fn new(title: &str, alt: &str, width: f64, top: f64, bottom: f64) -> Self {
        let alt = if alt.is_empty() { title.to_owned() } else { format!("{title}. {alt}") };
        Self { title: title.to_owned(), alt, width, height: bottom - top, top, shapes: Vec::new() }
    }

    pub(crate) fn add(&mut self, shape: Shape) {
        self.shapes.push(shape);
    }

    pub(crate) fn line(&mut self, points: &[(f64, f64)], stroke: Stroke) {
        self.add(Shape::Line(points.to_vec(), stroke));
    }

    pub(crate) fn text(&mut self, x: f64, y: f64, anchor: Anchor, colour: Colour, content: &str) {
        self.add(Shape::Text(Text::new(x, y, anchor, colour, content)));
    }

    /// What the plot shows; the heading of a file.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The drawing as an `<svg>` element for an HTML page that has the title as a heading.
    pub fn to_svg(&self) -> String {
        self.svg((0.0, self.top, self.width, self.height), &self.shapes)
    }

    /// The drawing with its title, as a file of its own.
    pub fn to_svg_file(&self) -> String {
        let (frame, shapes) = self.page();
        format!("{}\n", self.svg(frame, &shapes))
    }

    /// The drawing with its title as PNG bytes (RGB8, light), `scale` pixels a unit; 2 suits documents.
    ///
    /// # Errors
    /// If the scale is zero or makes the image too large to encode.
    pub fn to_png(&self, scale: usize) -> Result<Vec<u8>> {
        let (frame, shapes) = self.page();
        raster::png(frame, &shapes, scale)
    }

    /// Left, top, width and height of a file, and what it shows.
    fn page(&self) -> ((f64, f64, f64, f64), Vec<Shape>) {
        let (left, top) = (-FILE_MARGIN, self.top - TITLE_HEIGHT - FILE_MARGIN);
        let (width, height) = (self.width + 2.0 * FILE_MARGIN, self.height + TITLE_HEIGHT + 2.0 * FILE_MARGIN);
        let (right, bottom) = (left + width, top + height);
        let page = Shape::Area(vec![(left, top), (right, top), (right, bottom), (left, bottom)], Colour::Page, 1.0);
        let title = Text::new(FILE_MARGIN, top + FILE_MARGIN + 20.0, Anchor::Start, Colour::Ink, self.title.as_str());
        let title = Shape::Text(Text { size: TITLE, bold: true, ..title });
        ((left, top, width, height), [page, title].into_iter().chain(self.shapes.iter().cloned()).collect())
    }

    fn svg(&self, (left, top, width, height): (f64, f64, f64, f64), shapes: &[Shape]) -> String {
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"lp-plot\" viewBox=\"{left} {top} {width} {height}\" role=\"img\" \
             aria-label=\"{}\"><style>{}</style>",
            escape(&self.alt),
            style()
        );
        for shape in shapes {
            shape.svg(&mut svg);
        }
        svg.push_str("</svg>");
        svg
    }
}

impl Shape {
    // Writing to a String cannot fail, here and below.
    fn svg(&self, svg: &mut String) {
        match self {
            Self::Line(points, stroke) => {
                let (name, width) = (stroke.colour.name(), stroke.width);
                let _ = write!(
                    svg,
                    "<path fill=\"none\" stroke-linecap=\"round\" stroke-linejoin=\"round\" stroke-width=\"{width}\""
                );
                opacity(svg, stroke.opacity);
                if let Some((dash, gap)) = stroke.dash {
                    let _ = write!(svg, " stroke-dasharray=\"{dash} {gap}\"");
                }
                let _ = write!(svg, " style=\"stroke:var(--lp-{name})\" d=\"");
                path(svg, points);
                svg.push_str("\"/>");
            }
            Self::Area(points, colour, alpha) => {
                svg.push_str("<path");
                opacity(svg, *alpha);
                let _ = write!(svg, " style=\"fill:var(--lp-{})\" d=\"", colour.name());
                path(svg, points);
                svg.push_str("Z\"/>");
            }
            Self::Dots(points, radius, colour, alpha) => {
                svg.push_str("<g");
                opacity(svg, *alpha);
                let _ = write!(svg, " style=\"fill:var(--lp-{})\">", colour.name());
                for (x, y) in points {
                    let _ = write!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\"/>");
                }
                svg.push_str("</g>");
            }
            Self::Text(text) => text.svg(svg),
        }
    }
}

impl Text {
    fn svg(&self, svg: &mut String) {
        let (x, y) = self.at;
        svg.push_str("<text");
        if self.upwards {
            let _ = write!(svg, " transform=\"translate({x:.1} {y:.1}) rotate(-90)\"");
        } else {
            let _ = write!(svg, " x=\"{x:.1}\" y=\"{y:.1}\"");
        }
        match self.anchor {
            Anchor::Start => {}
            Anchor::Middle => svg.push_str(" text-anchor=\"middle\""),
            Anchor::End => svg.push_str(" text-anchor=\"end\""),
        }
        if self.halo {
            svg.push_str(" class=\"lp-halo\"");
        }
        if self.size != TEXT {
            let _ = write!(svg, " font-size=\"{}\"", self.size);
        }
        if self.bold {
            svg.push_str(" font-weight=\"600\"");
        }
        let _ = write!(svg, " style=\"fill:var(--lp-{})\">{}</text>", self.colour.name(), escape(&self.content));
    }
}

fn opacity(svg: &mut String, opacity: f64) {
    if opacity < 1.0 {
        let _ = write!(svg, " opacity=\"{opacity}\"");
    }
}

fn path(svg: &mut String, points: &[(f64, f64)]) {
    for (index, (x, y)) in points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        let _ = write!(svg, "{command}{x:.1} {y:.1}");
    }
}

/// The width of a text in units of the drawing, as far as it can be told: the font is the reader's, and of ours the letters of a
/// PNG.
pub(crate) fn text_width(content: &str, size: f64) -> f64 {
    lettering::width(content) * size
}

/// `text` for use in XML and HTML, inside elements and inside quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Not allowed in XML 1.0, however they are written.
            control if control.is_control() && !matches!(control, '\n' | '\t') => {
                escaped.push('\u{fffd}');
            }
            other => escaped.push(other),
        }
    }
    escaped
}
