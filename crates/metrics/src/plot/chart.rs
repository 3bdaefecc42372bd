//! Charts of measured points: curves with labels and intervals, others' curves, bands and targets behind them.

use super::axes::{Area, Frame, Legend, range};
use super::drawing::{Anchor, Colour, Drawing, Shape, Stroke, TEXT, Text, text_width};

/// Size of the drawing if no other is set.
const SIZE: (f64, f64) = (900.0, 460.0);
/// The least that has room for axes and labels.
const LEAST: (f64, f64) = (320.0, 240.0);
/// Margins around the values.
const LEFT: f64 = 66.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 50.0;
/// Half the size of a marker.
const MARKER: f64 = 4.6;
/// Half the width of the bars at the ends of an interval.
const CAP: f64 = 4.0;
/// Room around the values, as a part of their range.
const ROOM: f64 = 0.06;

/// How a curve is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What the chart is about: a line in colour with markers and labels.
    Main,
    /// One curve to compare with: dashed and grey, with hollow markers and labels.
    Reference,
    /// One of many to compare with: thin and pale, without markers; those of one name share a line of the legend.
    Background,
}

/// A measured point.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Point {
    /// Its place.
    pub x: f64,
    /// Its height.
    pub y: f64,
    /// What stands beside it, such as a guidance scale; may be empty.
    pub label: String,
    /// The interval that x lies in by chance, low and high.
    pub x_interval: Option<(f64, f64)>,
    /// The interval that y lies in by chance, low and high.
    pub y_interval: Option<(f64, f64)>,
}

impl Point {
    /// A point without label and intervals.
    pub fn new(x: f64, y: f64) -> Self {
        Self { x, y, ..Self::default() }
    }

    /// Sets the label.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    fn is_drawable(&self, log_y: bool) -> bool {
        self.x.is_finite() && self.y.is_finite() && (!log_y || self.y > 0.0)
    }
}

/// Points that a line joins, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// How it is drawn.
    pub role: Role,
    /// Its points.
    pub points: Vec<Point>,
}

/// Which axis a value lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// The horizontal one.
    X,
    /// The vertical one.
    Y,
}

/// A range of x, shaded from the bottom to the top.
#[derive(Debug, Clone, PartialEq)]
pub struct Band {
    /// Name in the legend.
    pub name: String,
    /// Its left edge.
    pub low: f64,
    /// Its right edge.
    pub high: f64,
    /// A line inside it, such as a mean.
    pub middle: Option<f64>,
}

/// A value that is to be reached or not to be passed.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// What stands beside its line.
    pub name: String,
    /// Its axis.
    pub axis: Axis,
    /// The value.
    pub value: f64,
}

/// A chart of measured points, such as FID over CLIP score.
///
/// ```
/// use calotype_metrics::plot::{Chart, Point, Role};
///
/// let points = [(0.24, 9.8, "1.5"), (0.27, 8.9, "3"), (0.28, 11.2, "8")];
/// let points = points.map(|(score, fid, scale)| Point::new(score, fid).label(scale));
/// let drawing = Chart::new("FID and CLIP score", "CLIP score (cosine)", "FID").curve("ours", Role::Main, points).drawing();
/// assert!(drawing.to_svg_file().contains("CLIP score (cosine)"));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Says what the chart shows.
    pub title: String,
    /// What is to be seen in it, for readers who do not see it.
    pub alt: String,
    /// Label of the horizontal axis, with its unit.
    pub x_label: String,
    /// Label of the vertical axis, with its unit.
    pub y_label: String,
    /// Logarithmic vertical axis.
    pub log_y: bool,
    /// Width and height of the drawing without further rows of the legend, 900 and 460 by default, where letters are 12. It scales to
    /// the width it is given.
    pub size: (f64, f64),
    /// The curves; later ones of a role lie over earlier ones.
    pub curves: Vec<Curve>,
    /// Shaded ranges.
    pub bands: Vec<Band>,
    /// Lines of targets.
    pub targets: Vec<Target>,
}

impl Chart {
    /// An empty chart with linear axes.
    pub fn new(title: impl Into<String>, x_label: impl Into<String>, y_label: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            alt: String::new(),
            x_label: x_label.into(),
            y_label: y_label.into(),
            log_y: false,
            size: SIZE,
            curves: Vec::new(),
            bands: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// Sets [`Chart::alt`].
    #[must_use]
    pub fn alt(mut self, alt: impl Into<String>) -> Self {
        self.alt = alt.into();
        self
    }

    /// Sets [`Chart::size`].
    #[must_use]
    pub fn size(mut self, width: f64, height: f64) -> Self {
        self.size = (width, height);
        self
    }

    /// Makes the vertical axis logarithmic.
    #[must_use]
    pub fn log_y(mut self) -> Self {
        self.log_y = true;
        self
    }

    /// Adds a curve.
    #[must_use]
    pub fn curve(mut self, name: impl Into<String>, role: Role, points: impl IntoIterator<Item = Point>) -> Self {
        self.curves.push(Curve { name: name.into(), role, points: points.into_iter().collect() });
        self
    }

    /// Adds a shaded range of x, with a line inside it.
    #[must_use]
    pub fn band(mut self, name: impl Into<String>, low: f64, high: f64, middle: Option<f64>) -> Self {
        self.bands.push(Band { name: name.into(), low, high, middle });
        self
    }

    /// Adds the line of a target.
    #[must_use]
    pub fn target(mut self, name: impl Into<String>, axis: Axis, value: f64) -> Self {
        self.targets.push(Target { name: name.into(), axis, value });
        self
    }

    /// The chart as it is drawn.
    ///
    /// Points that cannot be drawn (not finite; at or below zero on a logarithmic axis) are left out, and a line under the chart says
    /// how many.
    pub fn drawing(&self) -> Drawing {
        let entries = self.entries();
        let (width, height) = (self.size.0.max(LEAST.0), self.size.1.max(LEAST.1));
        let frame = self.frame(Area { left: LEFT, right: width - RIGHT, top: TOP, bottom: height - BOTTOM });
        let legend = Legend::new(entries.iter().map(|entry| entry.name), frame.area.left, frame.area.right);
        let mut drawing = Drawing::new(&self.title, &self.alt, width, -legend.rise(), height);
        self.bands.iter().for_each(|band| draw_band(&mut drawing, &frame, band));
        frame.draw(&mut drawing, &self.x_label, &self.y_label, true);
        self.targets.iter().for_each(|target| draw_target(&mut drawing, &frame, target));
        let (mut taken, mut labels) = (Taken::within(frame.area), Vec::new());
        for (curve, look) in self.drawn_curves() {
            let points = look.draw(&mut drawing, &frame, curve, self.log_y);
            // Labels have to cross the many curves of a background.
            if look.role != Role::Background {
                taken.curve(&points);
                taken.lines.extend(curve.points.iter().flat_map(|point| interval_lines(&frame, point)));
                labels.extend(points.into_iter().map(|(at, label)| (at, label, look)));
            }
        }
        for (at, label, look) in labels.into_iter().filter(|(_, label, _)| !label.is_empty()) {
            taken.label(&mut drawing, at, &label, look.text_colour());
        }
        for (entry, place) in entries.iter().zip(legend.samples(16.0)) {
            entry.sample.draw(&mut drawing, place);
            Legend::name(&mut drawing, place, entry.name);
        }
        self.draw_notes(&mut drawing, frame.area);
        drawing
    }

    /// Curves with how they look, those behind first.
    fn drawn_curves(&self) -> Vec<(&Curve, Look)> {
        let mut all: Vec<(&Curve, Look)> = Vec::new();
        for role in [Role::Background, Role::Reference, Role::Main] {
            let of_role = self.curves.iter().filter(|curve| curve.role == role);
            all.extend(of_role.enumerate().map(|(number, curve)| (curve, Look { role, number })));
        }
        all
    }

    fn entries(&self) -> Vec<Entry<'_>> {
        let mut entries: Vec<Entry> = Vec::new();
        for (curve, look) in self.drawn_curves().into_iter().rev() {
            if entries.iter().all(|entry| entry.name != curve.name) {
                entries.push(Entry { name: &curve.name, sample: Sample::Curve(look) });
            }
        }
        // Drawn from back to front, told from front to back: the first curve of each role is still told first.
        entries.sort_by_key(|entry| entry.sample.order());
        entries.extend(self.bands.iter().map(|band| Entry { name: &band.name, sample: Sample::Band }));
        entries.retain(|entry| !entry.name.is_empty());
        entries
    }

    fn frame(&self, area: Area) -> Frame {
        let points = || self.curves.iter().flat_map(|curve| &curve.points).filter(|p| p.is_drawable(self.log_y));
        let ends = |interval: Option<(f64, f64)>| interval.into_iter().flat_map(|(low, high)| [low, high]);
        let targets = |axis| self.targets.iter().filter(move |target| target.axis == axis).map(|target| target.value);
        let bands = self.bands.iter().flat_map(|band| [band.low, band.high]);
        let x = points().flat_map(|point| ends(point.x_interval).chain([point.x]));
        let x = x.chain(bands).chain(targets(Axis::X)).filter(|x| x.is_finite());
        let y = points().flat_map(|point| ends(point.y_interval).chain([point.y]));
        let y = y.chain(targets(Axis::Y)).filter(|y| y.is_finite() && (!self.log_y || *y > 0.0));
        let y = y.map(|y| if self.log_y { y.log10() } else { y });
        Frame { area, x: with_room(range(x), false), y: with_room(range(y), self.log_y), log_y: self.log_y }
    }

    fn draw_notes(&self, drawing: &mut Drawing, area: Area) {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let left_out = points().filter(|point| !point.is_drawable(self.log_y)).count();
        if left_out == points().count() {
            let middle = ((area.left + area.right) / 2.0, (area.top + area.bottom) / 2.0);
            drawing.text(middle.0, middle.1, Anchor::Middle, Colour::Soft, "no points to draw");
        }
        if left_out > 0 {
            let reason = if self.log_y { "not finite or not above zero" } else { "not finite" };
            let note = format!("{left_out} points not drawn ({reason})");
            drawing.text(area.left, area.bottom + BOTTOM - 8.0, Anchor::Start, Colour::Soft, &note);
        }
    }
}

impl From<Chart> for Drawing {
    fn from(chart: Chart) -> Self {
        chart.drawing()
    }
}

/// A range, of logarithms if `log`, with room around it. Values that come near zero without passing it are judged against zero.
fn with_room(range: Option<(f64, f64)>, log: bool) -> (f64, f64) {
    let (low, high) = range.unwrap_or((0.0, 1.0));
    if high - low < 1e-9 * high.abs().max(low.abs()).max(1e-300) {
        let room = if low == 0.0 || log { 0.5 } else { low.abs() * 0.1 };
        return (low - room, high + room);
    }
    let room = ROOM * (high - low);
    (if !log && low >= 0.0 && low < room { 0.0 } else { low - room }, high + room)
}

/// How a curve looks: by its role, and its number among those of its role.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Look {
    role: Role,
    number: usize,
}

impl Look {
    fn colour(self) -> Colour {
        match self.role {
            Role::Main => Colour::Series(self.number),
            Role::Reference | Role::Background => Colour::Soft,
        }
    }

    fn text_colour(self) -> Colour {
        if self.role == Role::Main { Colour::Ink } else { Colour::Soft }
    }

    fn stroke(self) -> Stroke {
        match self.role {
            Role::Main => Stroke::new(self.colour(), 2.4),
            Role::Reference => Stroke::new(self.colour(), 1.8).dashed(Some((6.0, 4.5))),
            Role::Background => Stroke::new(self.colour(), 1.1).opacity(0.45),
        }
    }

    /// Draws the line, the intervals and the markers; what could be drawn, with its labels.
    fn draw(self, drawing: &mut Drawing, frame: &Frame, curve: &Curve, log_y: bool) -> Vec<((f64, f64), String)> {
        let points: Vec<&Point> = curve.points.iter().filter(|point| point.is_drawable(log_y)).collect();
        let places: Vec<(f64, f64)> = points.iter().map(|point| frame.at((point.x, point.y))).collect();
        drawing.line(&places, self.stroke());
        if self.role != Role::Background {
            points.iter().for_each(|point| self.intervals(drawing, frame, point));
            places.iter().for_each(|place| self.marker(drawing, *place));
        }
        places.into_iter().zip(points.into_iter().map(|point| point.label.clone())).collect()
    }

    fn intervals(self, drawing: &mut Drawing, frame: &Frame, point: &Point) {
        let stroke = Stroke::new(self.colour(), 1.2).opacity(0.8);
        for [from, to] in interval_lines(frame, point) {
            drawing.line(&[from, to], stroke);
            // The bars at both ends lie across.
            let (dx, dy) = if from.1 == to.1 { (0.0, CAP) } else { (CAP, 0.0) };
            for (x, y) in [from, to] {
                drawing.line(&[(x - dx, y - dy), (x + dx, y + dy)], stroke);
            }
        }
    }

    /// Curves differ in the form of their markers, too.
    fn marker(self, drawing: &mut Drawing, (x, y): (f64, f64)) {
        let form: &[(f64, f64)] = match self.number % 4 {
            0 => &[],
            1 => &[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            2 => &[(0.0, -1.2), (1.15, 0.8), (-1.15, 0.8)],
            _ => &[(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)],
        };
        let mut draw = |size: f64, colour: Colour| {
            let corners = form.iter().map(|(dx, dy)| (x + size * dx, y + size * dy)).collect::<Vec<_>>();
            drawing.add(match corners.is_empty() {
                true => Shape::Dots(vec![(x, y)], size, colour, 1.0),
                false => Shape::Area(corners, colour, 1.0),
            });
        };
        draw(MARKER, self.colour());
        if self.role == Role::Reference {
            draw(MARKER - 2.0, Colour::Page);
        }
    }
}

/// The lines of a point's intervals.
fn interval_lines(frame: &Frame, point: &Point) -> Vec<[(f64, f64); 2]> {
    let (x, y) = frame.at((point.x, point.y));
    let drawable = |value: f64| value.is_finite() && (!frame.log_y || value > 0.0);
    let across = point.x_interval.filter(|(low, high)| low.is_finite() && high.is_finite());
    let upright = point.y_interval.filter(|(low, high)| drawable(*low) && drawable(*high));
    let across = across.map(|(low, high)| [(frame.x_at(low), y), (frame.x_at(high), y)]);
    let upright = upright.map(|(low, high)| [(x, frame.y_at(low)), (x, frame.y_at(high))]);
    across.into_iter().chain(upright).collect()
}

/// A line of the legend.
struct Entry<'a> {
    name: &'a str,
    sample: Sample,
}

enum Sample {
    Curve(Look),
    Band,
}

impl Sample {
    fn order(&self) -> (usize, usize) {
        match self {
            Self::Curve(look) => match look.role {
                Role::Main => (0, look.number),
                Role::Reference => (1, look.number),
                Role::Background => (2, look.number),
            },
            Self::Band => (3, 0),
        }
    }

    fn draw(&self, drawing: &mut Drawing, (x, y): (f64, f64)) {
        match self {
            Self::Curve(look) => {
                drawing.line(&[(x, y), (x + 20.0, y)], look.stroke());
                if look.role != Role::Background {
                    look.marker(drawing, (x + 10.0, y));
                }
            }
            Self::Band => {
                let corners = vec![(x, y - 6.0), (x + 20.0, y - 6.0), (x + 20.0, y + 6.0), (x, y + 6.0)];
                drawing.add(Shape::Area(corners, BAND.0, BAND.1));
            }
        }
    }
}

/// Colour and opacity of bands.
const BAND: (Colour, f64) = (Colour::Series(4), 0.16);

fn draw_band(drawing: &mut Drawing, frame: &Frame, band: &Band) {
    if !(band.low.is_finite() && band.high.is_finite()) {
        return;
    }
    let (low, high, Area { top, bottom, .. }) = (frame.x_at(band.low), frame.x_at(band.high), frame.area);
    drawing.add(Shape::Area(vec![(low, top), (high, top), (high, bottom), (low, bottom)], BAND.0, BAND.1));
    if let Some(middle) = band.middle.filter(|middle| middle.is_finite()) {
        let x = frame.x_at(middle);
        drawing.line(&[(x, top), (x, bottom)], Stroke::new(BAND.0, 1.4));
    }
}

fn draw_target(drawing: &mut Drawing, frame: &Frame, target: &Target) {
    let Area { left, right, top, bottom } = frame.area;
    let stroke = Stroke::new(Colour::Series(1), 1.4).dashed(Some((2.0, 4.0)));
    let drawable = target.value.is_finite() && (target.axis == Axis::X || !frame.log_y || target.value > 0.0);
    if !drawable {
        return;
    }
    let (line, text) = match target.axis {
        Axis::Y => {
            let y = frame.y_at(target.value);
            let text = Text::new(right - 6.0, y - 6.0, Anchor::End, Colour::Series(1), target.name.as_str());
            ([(left, y), (right, y)], text)
        }
        Axis::X => {
            let x = frame.x_at(target.value);
            let text = Text::new(x - 6.0, top + 6.0, Anchor::End, Colour::Series(1), target.name.as_str());
            ([(x, top), (x, bottom)], Text { upwards: true, ..text })
        }
    };
    drawing.line(&line, stroke);
    drawing.add(Shape::Text(Text { halo: true, ..text }));
}

/// A rectangle: left, top, right, bottom.
type Rectangle = (f64, f64, f64, f64);

/// What labels should not lie on.
struct Taken {
    area: Area,
    labels: Vec<Rectangle>,
    markers: Vec<(f64, f64)>,
    lines: Vec<[(f64, f64); 2]>,
}

impl Taken {
    fn within(area: Area) -> Self {
        Self { area, labels: Vec::new(), markers: Vec::new(), lines: Vec::new() }
    }

    fn curve(&mut self, points: &[((f64, f64), String)]) {
        self.lines.extend(points.windows(2).map(|pair| [pair[0].0, pair[1].0]));
        self.markers.extend(points.iter().map(|(at, _)| *at));
    }

    /// Draws a label where it covers the least.
    fn label(&mut self, drawing: &mut Drawing, at: (f64, f64), label: &str, colour: Colour) {
        const PLACES: [(f64, f64); 8] =
            [(1.0, -1.0), (1.0, 0.0), (-1.0, -1.0), (1.0, 1.0), (0.0, -1.0), (-1.0, 0.0), (-1.0, 1.0), (0.0, 1.0)];
        let boxes = PLACES.map(|place| label_box(at, place, text_width(label, TEXT)));
        let costs = boxes.map(|rectangle| self.cost(rectangle));
        // The first of the best, for the earlier places are easier to read.
        let best = (0..PLACES.len()).min_by(|a, b| costs[*a].total_cmp(&costs[*b])).unwrap_or(0);
        let (left, _, right, bottom) = boxes[best];
        // Held where it is beside its point, for the reader's font may be wider.
        let (x, anchor) = match PLACES[best].0 {
            side if side > 0.0 => (left, Anchor::Start),
            side if side < 0.0 => (right, Anchor::End),
            _ => ((left + right) / 2.0, Anchor::Middle),
        };
        let text = Text::new(x, bottom - 2.0, anchor, colour, label);
        drawing.add(Shape::Text(Text { halo: true, ..text }));
        self.labels.push(boxes[best]);
    }

    fn cost(&self, rectangle: Rectangle) -> f64 {
        let (left, top, right, bottom) = rectangle;
        let Area { left: first, right: last, top: highest, bottom: lowest } = self.area;
        let outside = left < first || right > last || top < highest || bottom > lowest;
        let labels = self.labels.iter().filter(|other| overlap(**other, rectangle)).count();
        let marker = |(x, y): (f64, f64)| (x - MARKER, y - MARKER, x + MARKER, y + MARKER);
        let markers = self.markers.iter().filter(|place| overlap(marker(**place), rectangle)).count();
        let lines = self.lines.iter().filter(|line| crosses(**line, rectangle)).count();
        200.0 * f64::from(u8::from(outside)) + 50.0 * labels as f64 + 20.0 * markers as f64 + 4.0 * lines as f64
    }
}

/// The place of a label of some width beside a point, in a direction.
fn label_box((x, y): (f64, f64), (right, down): (f64, f64), width: f64) -> Rectangle {
    let gap = MARKER + 3.0;
    let diagonal = if right != 0.0 && down != 0.0 { 0.55 } else { 1.0 };
    let left = x + right * gap * diagonal + (right - 1.0) / 2.0 * width;
    let top = y + down * gap * diagonal + (down - 1.0) / 2.0 * TEXT;
    (left, top, left + width, top + TEXT)
}

fn overlap(a: Rectangle, b: Rectangle) -> bool {
    a.0 < b.2 && b.0 < a.2 && a.1 < b.3 && b.1 < a.3
}

/// Whether a line passes through a rectangle (Liang and Barsky's clipping).
fn crosses([from, to]: [(f64, f64); 2], (left, top, right, bottom): Rectangle) -> bool {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let (mut enters, mut leaves) = (0.0f64, 1.0f64);
    for (step, room) in [(-dx, from.0 - left), (dx, right - from.0), (-dy, from.1 - top), (dy, bottom - from.1)] {
        if step == 0.0 {
            if room < 0.0 {
                return false;
            }
        } else if step < 0.0 {
            enters = enters.max(room / step);
        } else {
            leaves = leaves.min(room / step);
        }
    }
    enters <= leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Chart {
        let points = [(0.24, 9.8, "1.5"), (0.27, 8.9, "3"), (0.28, f64::NAN, "8"), (0.281, 9.0, "<9>")];
        let points = points.map(|(x, y, label)| Point {
            y_interval: Some((y - 0.5, y + 0.5)),
            x_interval: Some((x - 0.001, x + 0.001)),
            ..Point::new(x, y).label(label)
        });
        Chart::new("a < b", "score", "FID")
            .alt("FID falls & rises")
            .curve("runs", Role::Background, [Point::new(0.2, 12.0), Point::new(0.3, 7.0)])
            .curve("runs", Role::Background, [Point::new(0.2, 11.0), Point::new(0.3, 6.0)])
            .curve("ours", Role::Main, points.clone())
            .curve("theirs", Role::Reference, points)
            .band("band", 0.25, 0.26, Some(0.255))
            .target("at most 9", Axis::Y, 9.0)
            .target("at least 0.25", Axis::X, 0.25)
    }

    #[test]
    fn all_parts_are_drawn_and_escaped() {
        for chart in [sample(), sample().log_y()] {
            let svg = chart.drawing().to_svg_file();
            for part in ["a &lt; b", "a &lt; b. FID falls &amp; rises", "&lt;9&gt;", "at most 9", ">1.5<", ">band<"] {
                assert!(svg.contains(part), "{part}");
            }
            assert_eq!(svg.matches(">runs<").count(), 1);
            assert!(svg.contains("2 points not drawn"));
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            assert_eq!(svg, chart.drawing().to_svg_file());
        }
    }

    #[test]
    fn the_legend_tells_what_the_chart_is_about_first() {
        let chart = sample();
        let names: Vec<_> = chart.entries().iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["ours", "theirs", "runs", "band"]);
    }

    #[test]
    fn svg_and_png_have_the_same_shape() {
        let drawing = sample().drawing();
        let image = image::load_from_memory(&drawing.to_png(1).unwrap()).unwrap();
        let svg = drawing.to_svg_file();
        let (_, rest) = svg.split_once("viewBox=\"").unwrap();
        let sides: Vec<f64> = rest.split('"').next().unwrap().split(' ').map(|side| side.parse().unwrap()).collect();
        assert_eq!((f64::from(image.width()), f64::from(image.height())), (sides[2], sides[3]));
        assert!(drawing.to_png(0).is_err() && drawing.to_png(100).is_err());
    }

    #[test]
    fn odd_input_is_drawn_without_panic() {
        let nothing = Chart::new("t", "x", "y");
        let odd = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300, -1e300, 1e-300];
        for (index, x) in odd.into_iter().enumerate() {
            for y in odd {
                let point = Point { x_interval: Some((y, x)), y_interval: Some((x, y)), ..Point::new(x, y) };
                let one = nothing.clone().curve("c", Role::Main, [point.clone(), point]).target("t", Axis::X, y);
                let one = one.band("b", x, y, Some(x)).target("u", Axis::Y, x);
                let one = if index.is_multiple_of(2) { one.log_y() } else { one };
                let svg = one.drawing().to_svg();
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{x} {y}: {svg}");
                one.drawing().to_png(1).unwrap();
            }
        }
        assert!(nothing.drawing().to_svg().contains("no points to draw"));
    }

    #[test]
    fn labels_keep_off_each_other_and_off_lines() {
        let mut taken = Taken::within(Area { left: 0.0, right: SIZE.0, top: 0.0, bottom: SIZE.1 });
        let places = [(300.0, 200.0), (304.0, 200.0), (308.0, 200.0)];
        taken.curve(&places.map(|place| (place, String::new())));
        let mut drawing = Drawing::new("", "", SIZE.0, 0.0, SIZE.1);
        places.iter().for_each(|place| taken.label(&mut drawing, *place, "1.5", Colour::Ink));
        for (index, a) in taken.labels.iter().enumerate() {
            assert!(taken.labels[..index].iter().all(|b| !overlap(*a, *b)));
        }
        assert!(crosses([(0.0, 0.0), (10.0, 10.0)], (4.0, 4.0, 6.0, 6.0)));
        assert!(!crosses([(0.0, 0.0), (10.0, 0.0)], (4.0, 4.0, 6.0, 6.0)));
        assert!(!crosses([(0.0, 0.0), (3.0, 3.0)], (4.0, 4.0, 6.0, 6.0)));
    }
}
