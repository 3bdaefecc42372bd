//! Line plots of long, noisy series, such as losses.

use super::axes::{Area, Frame, Legend, range};
use super::drawing::{Anchor, Colour, Drawing, Shape, Stroke};

/// Size of the drawing; it scales to the width it is given.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 380.0;
/// Where values are drawn.
const AREA: Area = Area { left: 62.0, right: 882.0, top: 34.0, bottom: 330.0 };
/// Up to this many raw points are drawn as dots, more as a thin line.
const MAX_DOTS: usize = 250;
/// Horizontal buckets of a long series. Of each, the first, lowest, highest and last point are kept: what is drawn then
/// covers the same area, in a file that stays small.
const BUCKETS: usize = 240;
/// Line colours; a ninth series starts again with dashes.
const COLOURS: usize = 8;

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

    /// The plot as it is drawn.
    ///
    /// Points that cannot be drawn (not finite; at or below zero on a logarithmic axis) are left out, and a line under
    /// the plot says how many.
    pub fn drawing(&self) -> Drawing {
        let lines: Vec<Line> = self.series.iter().map(|series| self.line(series)).collect();
        let left_out: usize = lines.iter().map(|line| line.left_out).sum();
        let frame = frame(&lines, self.log_y);
        let legend = Legend::new(self.series.iter().map(|series| series.name.as_str()), AREA.left, AREA.right);
        let mut drawing = Drawing::new(&self.title, "", WIDTH, -legend.rise(), HEIGHT);
        frame.draw(&mut drawing, &self.x_label, &self.y_label, false);
        for (index, line) in lines.iter().enumerate() {
            draw_raw(&mut drawing, &frame, line, index);
        }
        for (index, line) in lines.iter().enumerate() {
            drawing.line(&placed(&frame, &thin(&line.smooth)), stroke(index));
        }
        for ((index, series), (x, y)) in self.series.iter().enumerate().zip(legend.samples(16.0)) {
            drawing.line(&[(x, y), (x + 20.0, y)], stroke(index));
            Legend::name(&mut drawing, (x, y), &series.name);
        }
        if lines.iter().all(|line| line.raw.is_empty()) {
            let middle = (AREA.left + AREA.right) / 2.0;
            drawing.text(middle, HEIGHT / 2.0, Anchor::Middle, Colour::Soft, "no points to draw");
        }
        if left_out > 0 {
            let reason = if self.log_y { "not finite or not above zero" } else { "not finite" };
            let note = format!("{left_out} points not drawn ({reason})");
            drawing.text(AREA.left, HEIGHT - 8.0, Anchor::Start, Colour::Soft, &note);
        }
        drawing
    }

    /// The plot as an `<svg>` element; see [`Drawing::to_svg`].
    pub fn to_svg(&self) -> String {
        self.drawing().to_svg()
    }

    fn line(&self, series: &Series) -> Line {
        let drawable = |&&(x, y): &&(f64, f64)| x.is_finite() && y.is_finite() && (!self.log_y || y > 0.0);
        let raw: Vec<(f64, f64)> = series.points.iter().filter(drawable).copied().collect();
        let half_life = self.smoothing.min(1.0) * raw.len() as f64;
        Line { smooth: smooth(&raw, half_life), left_out: series.points.len() - raw.len(), raw }
    }
}

impl From<LinePlot> for Drawing {
    fn from(plot: LinePlot) -> Self {
        plot.drawing()
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

fn frame(lines: &[Line], log_y: bool) -> Frame {
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
    Frame { area: AREA, x, y, log_y }
}

fn stroke(index: usize) -> Stroke {
    let dash = (index / COLOURS % 2 == 1).then_some((7.0, 4.0));
    Stroke::new(Colour::Series(index), 2.2).dashed(dash)
}

fn placed(frame: &Frame, points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    points.iter().map(|point| frame.at(*point)).collect()
}

fn draw_raw(drawing: &mut Drawing, frame: &Frame, line: &Line, index: usize) {
    let colour = Colour::Series(index);
    if line.raw.len() > MAX_DOTS {
        drawing.line(&placed(frame, &thin(&line.raw)), Stroke::new(colour, 1.0).opacity(0.3));
    } else {
        drawing.add(Shape::Dots(placed(frame, &line.raw), 2.2, colour, 0.35));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let file = plot.drawing().to_svg_file();
            plot.drawing().to_png(1).unwrap();
            for svg in [plot.to_svg(), file, plot.log_y().to_svg()] {
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
