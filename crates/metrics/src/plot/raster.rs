//! Shapes as pixels, with smooth edges: the part of each pixel that a shape covers is how much of its colour the pixel takes.

use super::drawing::{Anchor, Colour, Shape, Stroke, Text};
use super::lettering;
use crate::error::{MetricsError, Result};
use crate::grid::encode_png;

/// Of the size of letters: the width of the pen that draws them.
const PEN: f64 = 0.077;
const BOLD_PEN: f64 = 0.115;
/// Width of the edge that keeps labels apart from lines behind them, in units of the drawing.
const HALO: f64 = 3.0;
/// Lines of a pixel at which areas are measured.
const SCANS: usize = 4;

/// Shapes inside a frame (left, top, width, height) as PNG bytes, `scale` pixels a unit.
pub(crate) fn png(frame: (f64, f64, f64, f64), shapes: &[Shape], scale: usize) -> Result<Vec<u8>> {
    if scale == 0 {
        return Err(MetricsError::Zero("scale of the plot"));
    }
    let mut canvas = Canvas::new(frame, scale as f64)?;
    shapes.iter().for_each(|shape| canvas.shape(shape));
    encode_png(&canvas.pixels, canvas.width, canvas.height)
}

struct Canvas {
    pixels: Vec<u8>,
    width: usize,
    height: usize,
    origin: (f64, f64),
    scale: f64,
}

/// How much of each pixel of a rectangle a shape covers.
struct Mask {
    left: usize,
    top: usize,
    width: usize,
    cover: Vec<f64>,
}

impl Canvas {
    fn new((left, top, width, height): (f64, f64, f64, f64), scale: f64) -> Result<Self> {
        let (width, height) = ((width * scale).ceil() as usize, (height * scale).ceil() as usize);
        crate::grid::check_sheet(width, height)?;
        Ok(Self { pixels: vec![255; 3 * width * height], width, height, origin: (left, top), scale })
    }

    fn shape(&mut self, shape: &Shape) {
        match shape {
            Shape::Line(points, stroke) => {
                let points = self.placed(points);
                match stroke.dash {
                    None => self.stroke(&[points], *stroke),
                    Some((dash, gap)) => {
                        let pieces = dashes(&points, dash * self.scale, gap * self.scale);
                        self.stroke(&pieces, *stroke);
                    }
                }
            }
            Shape::Area(points, colour, opacity) => {
                let points = self.placed(points);
                let mut mask = self.mask(&points, 0.0);
                mask.fill(&points);
                self.blend(&mask, *colour, *opacity);
            }
            Shape::Dots(points, radius, colour, opacity) => {
                // One mask for all: where dots lie on each other, they are not darker.
                let points = self.placed(points);
                let mut mask = self.mask(&points, radius * self.scale);
                points.iter().for_each(|point| mask.segment(*point, *point, radius * self.scale));
                self.blend(&mask, *colour, *opacity);
            }
            Shape::Text(text) => self.text(text),
        }
    }

    fn placed(&self, points: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let place = |(x, y): &(f64, f64)| ((x - self.origin.0) * self.scale, (y - self.origin.1) * self.scale);
        points.iter().map(place).collect()
    }

    fn stroke(&mut self, lines: &[Vec<(f64, f64)>], stroke: Stroke) {
        let all: Vec<(f64, f64)> = lines.iter().flatten().copied().collect();
        let radius = stroke.width * self.scale / 2.0;
        let mut mask = self.mask(&all, radius);
        for line in lines {
            if let [single] = line[..] {
                mask.segment(single, single, radius);
            }
            line.windows(2).for_each(|pair| mask.segment(pair[0], pair[1], radius));
        }
        self.blend(&mask, stroke.colour, stroke.opacity);
    }

    fn text(&mut self, text: &Text) {
        let width = lettering::width(&text.content) * text.size;
        let back = match text.anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => width / 2.0,
            Anchor::End => width,
        };
        let (left, base) = text.at;
        let place = |(x, y): (f64, f64)| {
            let (along, up) = (x * text.size - back, y * text.size);
            if text.upwards { (left - up, base - along) } else { (left + along, base - up) }
        };
        let lines = lettering::strokes(&text.content);
        let lines: Vec<_> =
            lines.into_iter().map(|line| self.placed(&line.into_iter().map(place).collect::<Vec<_>>())).collect();
        let pen = text.size * if text.bold { BOLD_PEN } else { PEN };
        if text.halo {
            self.stroke(&lines, Stroke::new(Colour::Page, pen + HALO));
        }
        self.stroke(&lines, Stroke::new(text.colour, pen));
    }

    /// An empty mask around points.
    fn mask(&self, points: &[(f64, f64)], radius: f64) -> Mask {
        let bound = |value: f64, limit: usize| value.clamp(0.0, limit as f64) as usize;
        let (mut low, mut high) = ((f64::MAX, f64::MAX), (0.0f64, 0.0f64));
        for (x, y) in points {
            low = (low.0.min(*x), low.1.min(*y));
            high = (high.0.max(*x), high.1.max(*y));
        }
        let (left, top) = (bound(low.0 - radius - 1.0, self.width), bound(low.1 - radius - 1.0, self.height));
        let right = bound((high.0 + radius + 2.0).ceil(), self.width).max(left);
        let bottom = bound((high.1 + radius + 2.0).ceil(), self.height).max(top);
        Mask { left, top, width: right - left, cover: vec![0.0; (right - left) * (bottom - top)] }
    }

    fn blend(&mut self, mask: &Mask, colour: Colour, opacity: f64) {
        let ink = colour.light();
        for (index, cover) in mask.cover.iter().enumerate().filter(|(_, cover)| **cover > 0.0) {
            let (x, y) = (mask.left + index % mask.width, mask.top + index / mask.width);
            let at = 3 * (y * self.width + x);
            let part = cover.min(1.0) * opacity;
            for (pixel, ink) in self.pixels[at..at + 3].iter_mut().zip(ink) {
                *pixel = (f64::from(*pixel) + part * (f64::from(ink) - f64::from(*pixel))).round() as u8;
            }
        }
    }
}

impl Mask {
    fn height(&self) -> usize {
        self.cover.len().checked_div(self.width).unwrap_or(0)
    }

    /// Rows and columns of the mask between two bounds.
    fn within(low: f64, high: f64, start: usize, length: usize) -> std::ops::Range<usize> {
        let clamp = |value: f64| (value - start as f64).clamp(0.0, length as f64) as usize;
        clamp(low.floor())..clamp(high.ceil())
    }

    /// A line with round ends; a dot, if they are one point.
    fn segment(&mut self, a: (f64, f64), b: (f64, f64), radius: f64) {
        let reach = radius + 1.0;
        let rows = Self::within(a.1.min(b.1) - reach, a.1.max(b.1) + reach, self.top, self.height());
        let columns = Self::within(a.0.min(b.0) - reach, a.0.max(b.0) + reach, self.left, self.width);
        let (dx, dy) = (b.0 - a.0, b.1 - a.1);
        let length = dx * dx + dy * dy;
        for row in rows {
            for column in columns.clone() {
                let (x, y) = ((self.left + column) as f64 + 0.5 - a.0, (self.top + row) as f64 + 0.5 - a.1);
                let along = if length > 0.0 { ((x * dx + y * dy) / length).clamp(0.0, 1.0) } else { 0.0 };
                let distance = (x - along * dx).hypot(y - along * dy);
                let cover = (radius + 0.5 - distance).clamp(0.0, 1.0).min(2.0 * radius);
                let cell = &mut self.cover[row * self.width + column];
                *cell = cell.max(cover);
            }
        }
    }

    /// The inside of a polygon (even-odd): exact along rows, at a few lines in each.
    fn fill(&mut self, points: &[(f64, f64)]) {
        for row in 0..self.height() {
            for scan in 0..SCANS {
                let y = (self.top + row) as f64 + (scan as f64 + 0.5) / SCANS as f64;
                let mut crossings = crossings(points, y);
                crossings.sort_by(f64::total_cmp);
                for pair in crossings.chunks_exact(2) {
                    self.span(row, pair[0], pair[1]);
                }
            }
        }
    }

    fn span(&mut self, row: usize, start: f64, end: f64) {
        for column in Self::within(start, end, self.left, self.width) {
            let x = (self.left + column) as f64;
            let part = (end.min(x + 1.0) - start.max(x)).max(0.0);
            self.cover[row * self.width + column] += part / SCANS as f64;
        }
    }
}

/// Where the edges of a polygon cross a horizontal line.
fn crossings(points: &[(f64, f64)], y: f64) -> Vec<f64> {
    let next = points.iter().cycle().skip(1);
    let edges = points.iter().zip(next).filter(|(a, b)| (a.1 <= y) != (b.1 <= y));
    edges.map(|(a, b)| a.0 + (y - a.1) / (b.1 - a.1) * (b.0 - a.0)).collect()
}

/// A line cut into dashes.
fn dashes(points: &[(f64, f64)], dash: f64, gap: f64) -> Vec<Vec<(f64, f64)>> {
    let mut pieces: Vec<Vec<(f64, f64)>> = Vec::new();
    let (mut drawing, mut left) = (true, dash);
    pieces.extend(points.first().map(|first| vec![*first]));
    for pair in points.windows(2) {
        let (mut from, to) = (pair[0], pair[1]);
        let mut rest = (to.0 - from.0).hypot(to.1 - from.1);
        while rest > left {
            let share = left / rest;
            from = (from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1));
            rest -= left;
            match (drawing, pieces.last_mut()) {
                (true, Some(piece)) => piece.push(from),
                _ => pieces.push(vec![from]),
            }
            drawing = !drawing;
            left = if drawing { dash } else { gap };
        }
        left -= rest;
        if drawing {
            pieces.last_mut().into_iter().for_each(|piece| piece.push(to));
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixels(shapes: &[Shape]) -> image::RgbImage {
        image::load_from_memory(&png((0.0, 0.0, 20.0, 10.0), shapes, 1).unwrap()).unwrap().to_rgb8()
    }

    /// The sum of what is drawn in black on white, in pixels.
    fn ink(image: &image::RgbImage) -> f64 {
        let page = Colour::Page.light().map(f64::from)[0];
        let ink = Colour::Ink.light().map(f64::from)[0];
        image.pixels().map(|pixel| (page - f64::from(pixel.0[0])) / (page - ink)).sum()
    }

    #[test]
    fn shapes_cover_their_area() {
        let square = vec![(2.25, 2.5), (9.75, 2.5), (9.75, 6.0), (2.25, 6.0)];
        let triangle = vec![(1.0, 1.0), (9.0, 1.0), (1.0, 9.0)];
        let stroke = Stroke::new(Colour::Ink, 2.0);
        let dashed = Stroke { width: 1.0, ..stroke.dashed(Some((2.0, 3.0))) };
        for (name, shape, area) in [
            ("square", Shape::Area(square, Colour::Ink, 1.0), 7.5 * 3.5),
            ("triangle", Shape::Area(triangle, Colour::Ink, 1.0), 32.0),
            ("half", Shape::Area(vec![(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0)], Colour::Ink, 0.5), 8.0),
            ("dot", Shape::Dots(vec![(6.0, 5.0)], 3.0, Colour::Ink, 1.0), 9.0 * std::f64::consts::PI),
            ("dots on each other", Shape::Dots(vec![(6.0, 5.0); 9], 3.0, Colour::Ink, 0.5), 4.5 * std::f64::consts::PI),
            ("line", Shape::Line(vec![(3.0, 5.0), (15.0, 5.0)], stroke), 24.0 + std::f64::consts::PI),
            ("dashes", Shape::Line(vec![(3.0, 4.5), (13.0, 4.5)], dashed), 2.0 * (2.0 + std::f64::consts::PI / 4.0)),
            ("nothing", Shape::Line(Vec::new(), stroke), 0.0),
            ("outside", Shape::Line(vec![(-50.0, -50.0), (-40.0, 90.0)], stroke), 0.0),
        ] {
            let found = ink(&pixels(&[shape]));
            assert!((found - area).abs() < 0.02 * area + 0.35, "{name}: {found} for {area}");
        }
    }

    #[test]
    fn letters_stand_where_they_are_put() {
        let text = |anchor, upwards| {
            let text = Text { upwards, ..Text::new(10.0, 8.0, anchor, Colour::Ink, "I") };
            let image = pixels(&[Shape::Text(text)]);
            let weight = |x: u32, y: u32| 255.0 - f64::from(image.get_pixel(x, y).0[0]);
            let all = || (0..20).flat_map(|x| (0..10).map(move |y| (x, y)));
            let sum: f64 = all().map(|(x, y)| weight(x, y)).sum();
            let x: f64 = all().map(|(x, y)| (f64::from(x) + 0.5) * weight(x, y)).sum();
            let y: f64 = all().map(|(x, y)| (f64::from(y) + 0.5) * weight(x, y)).sum();
            (x / sum, y / sum)
        };
        // A stem of 14 units of 20 to 12 pixels: 8.4 high, its middle 4.2 above the base line.
        let near = |found: (f64, f64), x: f64, y: f64| {
            assert!((found.0 - x).abs() < 0.2 && (found.1 - y).abs() < 0.3, "{found:?} for {x}, {y}");
        };
        near(text(Anchor::Middle, false), 10.0, 4.0);
        near(text(Anchor::Start, false), 10.3, 4.0);
        near(text(Anchor::End, false), 9.7, 4.0);
        near(text(Anchor::Middle, true), 5.8, 8.0);
    }
}
