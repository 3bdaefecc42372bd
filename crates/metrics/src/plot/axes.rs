//! Axes: the range of the values, round numbers along it, and places in the drawing.

use super::drawing::{Anchor, Colour, Drawing, Shape, Stroke, TEXT, Text, text_width};

/// Height of a row of the legend.
const LEGEND_ROW: f64 = 18.0;
/// Length of a legend's sample, and of the space behind a name.
const SAMPLE: f64 = 26.0;
const BETWEEN_NAMES: f64 = 18.0;
/// Some readers' fonts are wider than ours.
const WIDER: f64 = 1.22;

/// The rectangle that values are drawn in, in units of the drawing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Area {
    pub(crate) left: f64,
    pub(crate) right: f64,
    pub(crate) top: f64,
    pub(crate) bottom: f64,
}

/// Maps values to units of the drawing.
pub(crate) struct Frame {
    pub(crate) area: Area,
    pub(crate) x: (f64, f64),
    /// Range of y, as logarithms to base 10 on a logarithmic axis.
    pub(crate) y: (f64, f64),
    pub(crate) log_y: bool,
}

impl Frame {
    pub(crate) fn x_at(&self, x: f64) -> f64 {
        self.area.left + (x - self.x.0) / (self.x.1 - self.x.0) * (self.area.right - self.area.left)
    }

    pub(crate) fn y_at(&self, y: f64) -> f64 {
        let y = if self.log_y { y.log10() } else { y };
        self.area.bottom - (y - self.y.0) / (self.y.1 - self.y.0) * (self.area.bottom - self.area.top)
    }

    pub(crate) fn at(&self, (x, y): (f64, f64)) -> (f64, f64) {
        (self.x_at(x), self.y_at(y))
    }

    /// Grid, axes, numbers and labels; vertical lines of the grid only if `columns`.
    pub(crate) fn draw(&self, drawing: &mut Drawing, x_label: &str, y_label: &str, columns: bool) {
        let Area { left, right, top, bottom } = self.area;
        let grid = Stroke::new(Colour::Grid, 1.0);
        let (ticks, labels) =
            if self.log_y { log_ticks(self.y.0, self.y.1) } else { linear_ticks(self.y.0, self.y.1, 6) };
        for (value, label) in ticks.iter().zip(labels) {
            let y = self.y_at(*value);
            drawing.line(&[(left, y), (right, y)], grid);
            drawing.text(left - 8.0, y + 4.0, Anchor::End, Colour::Soft, &label);
        }
        let (ticks, labels) = linear_ticks(self.x.0, self.x.1, 8);
        for (value, label) in ticks.iter().zip(labels) {
            let x = self.x_at(*value);
            if columns {
                drawing.line(&[(x, top), (x, bottom)], grid);
            }
            drawing.line(&[(x, bottom), (x, bottom + 5.0)], Stroke::new(Colour::Soft, 1.0));
            drawing.text(x, bottom + 18.0, Anchor::Middle, Colour::Soft, &label);
        }
        drawing.line(&[(left, bottom), (right, bottom)], Stroke::new(Colour::Soft, 1.0));
        drawing.text((left + right) / 2.0, bottom + 40.0, Anchor::Middle, Colour::Ink, x_label);
        let label = Text::new(14.0, (top + bottom) / 2.0, Anchor::Middle, Colour::Ink, y_label);
        drawing.add(Shape::Text(Text { upwards: true, ..label }));
    }
}

/// Where the names of a legend stand: distance from the left, and row, from the top.
pub(crate) struct Legend {
    places: Vec<(f64, usize)>,
}

impl Legend {
    pub(crate) fn new<'a>(names: impl IntoIterator<Item = &'a str>, left: f64, right: f64) -> Self {
        let (mut x, mut row) = (left, 0);
        let mut places = Vec::new();
        for name in names {
            let width = SAMPLE + WIDER * text_width(name, TEXT);
            if x > left && x + width > right {
                (x, row) = (left, row + 1);
            }
            places.push((x, row));
            x += width + BETWEEN_NAMES;
        }
        Self { places }
    }

    /// How far it rises above its last row.
    pub(crate) fn rise(&self) -> f64 {
        LEGEND_ROW * self.last_row() as f64
    }

    fn last_row(&self) -> usize {
        self.places.last().map_or(0, |(_, row)| *row)
    }

    /// Middle of the left edge of each name's sample, the last row being at `y`.
    pub(crate) fn samples(&self, y: f64) -> impl Iterator<Item = (f64, f64)> {
        let last = self.last_row();
        self.places.iter().map(move |&(x, row)| (x, y - LEGEND_ROW * (last - row) as f64))
    }

    pub(crate) fn name(drawing: &mut Drawing, (x, y): (f64, f64), name: &str) {
        drawing.text(x + SAMPLE, y + 4.0, Anchor::Start, Colour::Ink, name);
    }
}

/// The smallest and the largest value.
pub(crate) fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, value| match range {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

/// About `count` round values (1, 2 or 5 times a power of ten apart) in `low..=high`, with their labels.
pub(crate) fn linear_ticks(low: f64, high: f64, count: usize) -> (Vec<f64>, Vec<String>) {
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
    fn names_that_do_not_fit_take_another_row() {
        let legend = Legend::new(["one", "two", &"long ".repeat(20), "four"], 50.0, 400.0);
        let samples: Vec<_> = legend.samples(16.0).collect();
        assert_eq!(legend.rise(), 2.0 * LEGEND_ROW);
        assert_eq!(samples.iter().map(|sample| sample.1).collect::<Vec<_>>(), [-20.0, -20.0, -2.0, 16.0]);
        assert!(samples[1].0 > samples[0].0 && samples[2].0 == 50.0 && samples[3].0 == 50.0);
    }
}
