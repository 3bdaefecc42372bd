//! Line plots as self-contained SVG: no scripts, no fonts but the reader's own, light and dark colours.

use std::fmt::Write as _;

/// Size of the drawing in SVG units; it scales to the width it is given.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 380.0;
/// Margins around the plotting area.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 50.0;
/// Height of a row of the legend.
const LEGEND_ROW: f64 = 18.0;
/// Up to this many raw points are drawn as dots, more as a thin line.
const MAX_DOTS: usize = 250;
/// Horizontal buckets of a long series. Of each, the first, lowest, highest and last point are kept: what is drawn then
/// covers the same area, in a file that stays small.
const BUCKETS: usize = 240;
/// Line colours; a ninth series starts again with dashes.
const COLOURS: usize = 8;

/// The style of every plot. The class names all start with `lp-`, so that plots can stand inside any page. The colours
/// are Okabe and Ito's, which stay apart for colour-blind readers, darkened or lightened for contrast.
const STYLE: &str = "\
.lp-plot{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;--lp-ink:#24242c;--lp-soft:#6b6b78;--lp-grid:#e4e4ea;\
--lp-0:#0067a8;--lp-1:#c44e00;--lp-2:#00805c;--lp-3:#a8407c;--lp-4:#946800;--lp-5:#2c8ec4;--lp-6:#5b4bb0;--lp-7:#5a5a64}\
@media(prefers-color-scheme:dark){.lp-plot{--lp-ink:#ececf2;--lp-soft:#a0a0b0;--lp-grid:#34343f;\
--lp-0:#5cb3f0;--lp-1:#ff9350;--lp-2:#3ccf9f;--lp-3:#ea91c4;--lp-4:#e6b93c;--lp-5:#8fd0f5;--lp-6:#a99cf5;--lp-7:#b4b4c0}}\
.lp-plot text{fill:var(--lp-soft)}.lp-plot .lp-strong{fill:var(--lp-ink)}\
.lp-grid{stroke:var(--lp-grid);stroke-width:1}.lp-axis{stroke:var(--lp-soft);stroke-width:1}\
.lp-raw{fill:none;stroke-width:1;opacity:.3;stroke-linejoin:round}.lp-dots{opacity:.35}\
.lp-line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}\
.lp-dash{stroke-dasharray:7 4}";

/// One line of a [`LinePlot`].
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// (x, y), by ascending x.
    pub points: Vec<(f64, f64)>,
}

/// A plot of one or more series over a common axis, such as loss over samples seen.
///
/// Each series shows its raw points lightly and, on top, a smoothed line (see [`LinePlot::smoothing`]).
#[derive(Debug, Clone, PartialEq)]
pub struct LinePlot {
    /// Says what the plot shows; read out by screen readers.
    pub title: String,
    /// Label of the horizontal axis, with its unit.
    pub x_label: String,
    /// Label of the vertical axis, with its unit.
    pub y_label: String,
    /// Logarithmic vertical axis.
    pub log_y: bool,
    /// The lines.
    pub series: Vec<Series>,
    /// Smoothing of the line on top: the distance, as a fraction (0..1) of the points of a series, at which a
    /// neighbour counts half. 0 draws the points as they are.
    pub smoothing: f64,
}

impl LinePlot {
    /// An empty plot with linear axes.
    pub fn new(title: impl Into<String>, x_label: impl Into<String>, y_label: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            x_label: x_label.into(),
            y_label: y_label.into(),
            log_y: false,
            series: Vec::new(),
            smoothing: 0.01,
        }
    }

    /// Adds a line; `points` are (x, y) by ascending x.
    #[must_use]
    pub fn series(mut self, name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        self.series.push(Series { name: name.into(), points });
        self
    }

    /// Makes the vertical axis logarithmic.
    #[must_use]
    pub fn log_y(mut self) -> Self {
        self.log_y = true;
        self
    }

    /// Sets [`LinePlot::smoothing`].
    #[must_use]
    pub fn smoothing(mut self, fraction: f64) -> Self {
        self.smoothing = fraction;
        self
    }

    /// The plot as an `<svg>` element that can stand alone as a file or inside an HTML page.
    ///
    /// Points that cannot be drawn (not finite; at or below zero on a logarithmic axis) are left out, and a line under
    /// the plot says how many.
    pub fn to_svg(&self) -> String {
        let lines: Vec<Line> = self.series.iter().map(|series| self.line(series)).collect();
        let left_out: usize = lines.iter().map(|line| line.left_out).sum();
        let frame = Frame::around(&lines, self.log_y);
        let legend = self.legend();
        let rise = LEGEND_ROW * legend.last().map_or(0, |(_, row)| *row) as f64;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"lp-plot\" viewBox=\"0 {} {WIDTH} {}\" role=\"img\" \
             aria-label=\"{}\"><style>{STYLE}</style>",
            -rise,
            HEIGHT + rise,
            escape(&self.title)
        );
        frame.draw_axes(&mut svg, &self.x_label, &self.y_label);
        for (index, line) in lines.iter().enumerate() {
            draw_raw(&mut svg, &frame, line, index);
        }
        for (index, line) in lines.iter().enumerate() {
            draw_smooth(&mut svg, &frame, line, index);
        }
        self.draw_legend(&mut svg, &legend);
        if lines.iter().all(|line| line.raw.is_empty()) {
            text(&mut svg, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT / 2.0, "middle", "", "no points to draw");
        }
        if left_out > 0 {
            let reason = if self.log_y { "not finite or not above zero" } else { "not finite" };
            let note = format!("{left_out} points not drawn ({reason})");
            text(&mut svg, LEFT, HEIGHT - 8.0, "start", "", &note);
        }
        svg.push_str("</svg>");
        svg
    }

    fn line(&self, series: &Series) -> Line {
        let drawable = |&&(x, y): &&(f64, f64)| x.is_finite() && y.is_finite() && (!self.log_y || y > 0.0);
        let raw: Vec<(f64, f64)> = series.points.iter().filter(drawable).copied().collect();
        let half_life = self.smoothing.min(1.0) * raw.len() as f64;
        Line { smooth: smooth(&raw, half_life), left_out: series.points.len() - raw.len(), raw }
    }

    /// Places of the names of the lines: distance from the left, and row, from the top. The widths of
    /// letters are estimates, because the font is the reader's.
    fn legend(&self) -> Vec<(f64, usize)> {
        let (mut x, mut row) = (LEFT, 0);
        let mut places = Vec::new();
        for series in &self.series {
            let width = 26.0 + 6.8 * series.name.chars().count() as f64;
            if x > LEFT && x + width > WIDTH - RIGHT {
                (x, row) = (LEFT, row + 1);
            }
            places.push((x, row));
            x += width + 18.0;
        }
        places
    }

    fn draw_legend(&self, svg: &mut String, places: &[(f64, usize)]) {
        let rows = places.last().map_or(0, |(_, row)| *row);
        for (index, (series, &(x, row))) in self.series.iter().zip(places).enumerate() {
            let y = 16.0 - LEGEND_ROW * (rows - row) as f64;
            let (dash, colour) = (dash(index), index % COLOURS);
            let _ =
                write!(svg, "<path class=\"lp-line{dash}\" style=\"stroke:var(--lp-{colour})\" d=\"M{x:.1} {y}h20\"/>");
            text(svg, x + 26.0, y + 4.0, "start", "lp-strong", &series.name);
        }
    }
}

/// The drawable part of a series.
struct Line {
    raw: Vec<(f64, f64)>,
    smooth: Vec<(f64, f64)>,
    left_out: usize,
}

/// Sums over the points on one side of a point, weighted by `weight` to the power of their distance d in points.
#[derive(Clone, Copy, Default)]
struct Sums {
    one: f64,
    d: f64,
    d_squared: f64,
    y: f64,
    d_y: f64,
}

impl Sums {
    /// The sums seen from the next point, `y` being that of the point left behind.
    fn step(self, weight: f64, y: f64) -> Self {
        let (one, all_y) = (self.one + 1.0, self.y + y);
        Self {
            one: weight * one,
            d: weight * (self.d + one),
            d_squared: weight * (self.d_squared + 2.0 * self.d + one),
            y: weight * all_y,
            d_y: weight * (self.d_y + all_y),
        }
    }
}

/// A straight line is fitted around each point, the weights of its neighbours halving with every `half_life` points of
/// distance on either side (local linear regression; Cleveland 1979), in one pass forwards and one backwards.
///
/// Unlike a running average it does not lag behind a falling loss, nor start at the noise of the first point.
fn smooth(points: &[(f64, f64)], half_life: f64) -> Vec<(f64, f64)> {
    let Some((low, high)) = range(points.iter().map(|point| point.1)) else {
        return Vec::new();
    };
    if half_life.is_nan() || half_life < 0.5 {
        return points.to_vec();
    }
    let weight = 0.5f64.powf(1.0 / half_life);
    let mut after = vec![Sums::default(); points.len()];
    for index in (1..points.len()).rev() {
        after[index - 1] = after[index].step(weight, points[index].1);
    }
    let mut before = Sums::default();
    let mut smoothed = Vec::with_capacity(points.len());
    for (&(x, y), after) in points.iter().zip(after) {
        let one = before.one + after.one + 1.0;
        let d = after.d - before.d;
        let d_squared = after.d_squared + before.d_squared;
        let sum_y = before.y + after.y + y;
        let d_y = after.d_y - before.d_y;
        let determinant = one * d_squared - d * d;
        let fit = if determinant > 0.0 { (d_squared * sum_y - d * d_y) / determinant } else { y };
        // A steep end may overshoot, below zero even; no line is drawn where no point is.
        smoothed.push((x, fit.clamp(low, high)));
        before = before.step(weight, y);
    }
    smoothed
}

/// Of each of [`BUCKETS`] equal ranges of x, the first, lowest, highest and last point, in their order.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Vec::new();
    };
    if points.len() <= 4 * BUCKETS {
        return points.to_vec();
    }
    let bucket = |x: f64| {
        let fraction = (x - first.0) / (last.0 - first.0).max(f64::MIN_POSITIVE);
        (fraction * BUCKETS as f64) as usize
    };
    let mut kept = Vec::new();
    for chunk in points.chunk_by(|a, b| bucket(a.0) == bucket(b.0)) {
        let by_height = |a: &usize, b: &usize| chunk[*a].1.total_cmp(&chunk[*b].1);
        let lowest = (0..chunk.len()).min_by(by_height).unwrap_or(0);
        let highest = (0..chunk.len()).max_by(by_height).unwrap_or(0);
        let mut chosen = [0, lowest, highest, chunk.len() - 1];
        chosen.sort_unstable();
        for (position, index) in chosen.iter().enumerate() {
            if position == 0 || chosen[position - 1] != *index {
                kept.push(chunk[*index]);
            }
        }
    }
    kept
}

/// Maps values to SVG units.
struct Frame {
    x: (f64, f64),
    /// Range of y, as logarithms to base 10 on a logarithmic axis.
    y: (f64, f64),
    log_y: bool,
}

impl Frame {
    fn around(lines: &[Line], log_y: bool) -> Self {
        let all = || lines.iter().flat_map(|line| line.raw.iter().chain(&line.smooth));
        let x = range(all().map(|point| point.0)).unwrap_or((0.0, 1.0));
        let y = range(all().map(|point| if log_y { point.1.log10() } else { point.1 }));
        let (mut low, mut high) = y.unwrap_or((0.0, 1.0));
        // A loss that comes near zero is judged against zero.
        if !log_y && low > 0.0 && low < 0.4 * high {
            low = 0.0;
        }
        if high - low < 1e-9 * high.abs().max(low.abs()).max(1e-300) {
            let room = if low == 0.0 || log_y { 0.5 } else { low.abs() * 0.1 };
            (low, high) = (low - room, high + room);
        }
        let room = 0.04 * (high - low);
        let y = (if low == 0.0 { 0.0 } else { low - room }, high + room);
        let x = if x.1 > x.0 { x } else { (x.0 - 0.5, x.1 + 0.5) };
        Self { x, y, log_y }
    }

    fn x_at(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y_at(&self, y: f64) -> f64 {
        let y = if self.log_y { y.log10() } else { y };
        HEIGHT - BOTTOM - (y - self.y.0) / (self.y.1 - self.y.0) * (HEIGHT - TOP - BOTTOM)
    }

    fn draw_axes(&self, svg: &mut String, x_label: &str, y_label: &str) {
        let floor = HEIGHT - BOTTOM;
        let (ticks, labels) =
            if self.log_y { log_ticks(self.y.0, self.y.1) } else { linear_ticks(self.y.0, self.y.1, 6) };
        for (value, label) in ticks.iter().zip(labels) {
            let y = self.y_at(*value);
            let _ = write!(svg, "<path class=\"lp-grid\" d=\"M{LEFT} {y:.1}H{}\"/>", WIDTH - RIGHT);
            text(svg, LEFT - 8.0, y + 4.0, "end", "", &label);
        }
        let (ticks, labels) = linear_ticks(self.x.0, self.x.1, 8);
        for (value, label) in ticks.iter().zip(labels) {
            let x = self.x_at(*value);
            let _ = write!(svg, "<path class=\"lp-axis\" d=\"M{x:.1} {floor}v5\"/>");
            text(svg, x, floor + 18.0, "middle", "", &label);
        }
        let _ = write!(svg, "<path class=\"lp-axis\" d=\"M{LEFT} {floor}H{}\"/>", WIDTH - RIGHT);
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        text(svg, middle, HEIGHT - 10.0, "middle", "lp-strong", x_label);
        let middle = (TOP + floor) / 2.0;
        let _ = write!(
            svg,
            "<text class=\"lp-strong\" text-anchor=\"middle\" transform=\"translate(14 {middle}) rotate(-90)\">{}</text>",
            escape(y_label)
        );
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

/// About `count` round values (1, 2 or 5 times a power of ten apart) in `low..=high`, with their labels.
fn linear_ticks(low: f64, high: f64, count: usize) -> (Vec<f64>, Vec<String>) {
    let rough = (high - low) / count as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().find(|m| m * power >= rough * 0.999).unwrap_or(10.0);
    let step = step * power;
    let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
    let ticks: Vec<f64> = (first..=last).map(|index| index as f64 * step).collect();
    let labels = ticks.iter().map(|value| label(*value, step)).collect();
    (ticks, labels)
}

/// Round values for a range given as logarithms to base 10: powers of ten, with 2 and 5 times them while there is room.
fn log_ticks(low: f64, high: f64) -> (Vec<f64>, Vec<String>) {
    if high - low < 0.7 {
        // Within less than a decade, evenly spaced values are easier to read.
        return linear_ticks(10f64.powf(low), 10f64.powf(high), 5);
    }
    let every = ((high - low) / 7.0).ceil().max(1.0) as i32;
    let multiples: &[f64] = if high - low < 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let mut ticks = Vec::new();
    for exponent in low.floor() as i32..=high.ceil() as i32 {
        if exponent.rem_euclid(every) == 0 {
            ticks.extend(multiples.iter().map(|multiple| multiple * 10f64.powi(exponent)));
        }
    }
    ticks.retain(|value| (low..=high).contains(&value.log10()));
    let labels = ticks.iter().map(|value| label(*value, *value)).collect();
    (ticks, labels)
}

/// `value` with as many digits as a distance of `step` between labels needs; thousands as k, millions as M.
fn label(value: f64, step: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let size = value.abs().max(step);
    if !(1e-4..1e12).contains(&size) {
        return format!("{value:.1e}");
    }
    // A unit is used when the labels are not all small multiples of it, so that 500 does not become 0.5k beside 2k.
    let (unit, suffix) = match step {
        step if step >= 1e5 || value.abs() >= 1e7 => (1e6, "M"),
        step if step >= 1e2 && value.abs() >= 1e3 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let decimals = (-(step / unit * 1.000001).log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{:.decimals$}{suffix}", value / unit)
}

fn dash(index: usize) -> &'static str {
    if index / COLOURS % 2 == 1 { " lp-dash" } else { "" }
}

fn draw_raw(svg: &mut String, frame: &Frame, line: &Line, index: usize) {
    if line.raw.len() > MAX_DOTS {
        let colour = index % COLOURS;
        let _ = write!(svg, "<path class=\"lp-raw\" style=\"stroke:var(--lp-{colour})\" d=\"");
        path(svg, frame, &thin(&line.raw));
        svg.push_str("\"/>");
        return;
    }
    let _ = write!(svg, "<g class=\"lp-dots\" style=\"fill:var(--lp-{})\">", index % COLOURS);
    for &(x, y) in &line.raw {
        let (x, y) = (frame.x_at(x), frame.y_at(y));
        let _ = write!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.2\"/>");
    }
    svg.push_str("</g>");
}

fn draw_smooth(svg: &mut String, frame: &Frame, line: &Line, index: usize) {
    let colour = index % COLOURS;
    let _ = write!(svg, "<path class=\"lp-line{}\" style=\"stroke:var(--lp-{colour})\" d=\"", dash(index));
    path(svg, frame, &thin(&line.smooth));
    svg.push_str("\"/>");
}

fn path(svg: &mut String, frame: &Frame, points: &[(f64, f64)]) {
    for (index, &(x, y)) in points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        // Writing to a String cannot fail.
        let _ = write!(svg, "{command}{:.1} {:.1}", frame.x_at(x), frame.y_at(y));
    }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, content: &str) {
    let _ = write!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escape(content)
    );
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

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64) -> Vec<String> {
        linear_ticks(low, high, 6).1
    }

    #[test]
    fn ticks_are_round_and_labels_short() {
        assert_eq!(labels(0.0, 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert_eq!(labels(0.0, 30_000.0), ["0", "5k", "10k", "15k", "20k", "25k", "30k"]);
        assert_eq!(labels(0.0, 2_500.0), ["0", "500", "1.0k", "1.5k", "2.0k", "2.5k"]);
        assert_eq!(labels(0.0, 3e6), ["0", "0.5M", "1.0M", "1.5M", "2.0M", "2.5M", "3.0M"]);
        assert_eq!(labels(0.05, 0.061), ["0.050", "0.052", "0.054", "0.056", "0.058", "0.060"]);
        assert_eq!(labels(-1.0, 1.0), ["-1.0", "-0.5", "0", "0.5", "1.0"]);
        assert_eq!(log_ticks(-2.0, 0.5).1, ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "2"]);
        assert_eq!(log_ticks(-4.0, 2.0).1, ["0.0001", "0.001", "0.01", "0.1", "1", "10", "100"]);
    }

    #[test]
    fn smoothing_neither_lags_nor_leans() {
        let ramp: Vec<(f64, f64)> = (0..500).map(|x| (f64::from(x), 3.0 - 0.01 * f64::from(x))).collect();
        for half_life in [0.0, 1.0, 5.0, 250.0] {
            for (smooth, point) in smooth(&ramp, half_life).iter().zip(&ramp) {
                assert!((smooth.1 - point.1).abs() < 1e-9, "{smooth:?} {point:?}");
            }
        }
        let noisy: Vec<(f64, f64)> = (0..500).map(|x| (f64::from(x), f64::from(x % 2))).collect();
        assert!(smooth(&noisy, 20.0)[50..450].iter().all(|point| (point.1 - 0.5).abs() < 0.02));
        assert_eq!(smooth(&noisy[..1], 20.0), noisy[..1]);
    }

    #[test]
    fn thinning_keeps_the_extremes_and_the_ends() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|x| (f64::from(x), 1.0)).collect();
        points[33_333].1 = 9.0;
        points[66_666].1 = -9.0;
        let kept = thin(&points);
        assert!(kept.len() <= 4 * (BUCKETS + 1));
        for index in [0, 33_333, 66_666, 99_999] {
            assert!(kept.contains(&points[index]), "point {index}");
        }
        assert!(kept.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn the_svg_is_well_formed_for_any_input() {
        let ramp: Vec<(f64, f64)> = (0..2000).map(|x| (f64::from(x), 1.0 / f64::from(x + 1))).collect();
        let odd = vec![(0.0, f64::NAN), (1.0, 0.0), (2.0, -1.0), (3.0, f64::INFINITY), (4.0, 2.0)];
        for points in [Vec::new(), vec![(5.0, 5.0)], vec![(0.0, 0.0); 3], ramp, odd] {
            let plot = LinePlot::new("a < b & \"c\"", "samples", "loss").series("<i>", points);
            for svg in [plot.to_svg(), plot.log_y().to_svg()] {
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                assert!(svg.contains("a &lt; b &amp; &quot;c&quot;") && svg.contains("&lt;i&gt;"));
                assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
            }
        }
    }

    #[test]
    fn points_left_out_are_counted() {
        let points = vec![(0.0, f64::NAN), (1.0, 0.0), (2.0, 1.0)];
        let plot = LinePlot::new("t", "x", "y").series("s", points);
        assert!(plot.to_svg().contains("1 points not drawn (not finite)"));
        assert!(plot.log_y().to_svg().contains("2 points not drawn (not finite or not above zero)"));
    }
}
