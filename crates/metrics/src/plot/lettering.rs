//! Letters as lines of a pen, for plots in PNG: drawn by hand for this crate, so that a plot looks the same on every machine and
//! needs no font files.
//!
//! A glyph is a width and a path. Units: 20 to the size of the letters; capitals are 14 high, small letters 10, tails reach -4; y
//! grows upwards from the base line. `M x y` lifts the pen, `L x y` draws a line, `Q cx cy x y` a quadratic curve, `O x y x y` an
//! ellipse in a box.

use crate::font::fold;

/// Units in the size of letters.
const UNITS: f64 = 20.0;
/// Space between two glyphs.
const SPACE: f64 = 2.7;
/// Lines that a curve and an ellipse become.
const CURVE: usize = 8;
const ELLIPSE: usize = 36;

/// Lines of a pen, each through points.
pub(crate) type Strokes = Vec<Vec<(f64, f64)>>;

/// The width of a text, for letters of size 1.
pub(crate) fn width(text: &str) -> f64 {
    let advances = text.chars().map(|character| glyph(character).0 + SPACE).sum::<f64>();
    (advances - SPACE).max(0.0) / UNITS
}

/// A text's lines from its lower left corner on, for letters of size 1; y grows upwards.
pub(crate) fn strokes(text: &str) -> Strokes {
    let mut all = Strokes::new();
    let mut left = 0.0;
    for character in text.chars() {
        let (width, path) = glyph(character);
        let place = |(x, y): (f64, f64)| ((x + left) / UNITS, y / UNITS);
        all.extend(draw(path).into_iter().map(|line| line.into_iter().map(place).collect::<Vec<_>>()));
        left += width + SPACE;
    }
    all
}

/// Width and path of a character; an empty box if it has none.
fn glyph(character: char) -> (f64, &'static str) {
    let find =
        |wanted: char| GLYPHS.iter().find(|(known, ..)| *known == wanted).map(|(_, width, path)| (*width, *path));
    find(character).or_else(|| find(fold(character))).unwrap_or((8.0, "M0 0 L8 0 L8 14 L0 14 L0 0"))
}

fn draw(path: &str) -> Strokes {
    let mut lines = Strokes::new();
    let mut commands = path.split_inclusive(|c: char| c.is_ascii_alphabetic()).map(str::trim);
    let mut command = commands.next().and_then(|first| first.chars().last());
    for part in commands {
        let next = part.chars().last().filter(char::is_ascii_alphabetic);
        let numbers = part.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let numbers: Vec<f64> = numbers.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        add(&mut lines, command, &numbers);
        command = next;
    }
    lines
}

fn add(lines: &mut Strokes, command: Option<char>, numbers: &[f64]) {
    match (command, numbers) {
        (Some('M'), &[x, y]) => lines.push(vec![(x, y)]),
        (Some('O'), &[x0, y0, x1, y1]) => {
            let angle = |step: usize| std::f64::consts::TAU * step as f64 / ELLIPSE as f64;
            let centre = ((x0 + x1) / 2.0, (y0 + y1) / 2.0);
            let at = |a: f64| (centre.0 + (x1 - x0) / 2.0 * a.cos(), centre.1 + (y1 - y0) / 2.0 * a.sin());
            lines.push((0..=ELLIPSE).map(|step| at(angle(step))).collect());
        }
        (Some('L'), &[x, y]) => lines.last_mut().into_iter().for_each(|line| line.push((x, y))),
        (Some('Q'), &[cx, cy, x, y]) => {
            let Some(line) = lines.last_mut() else { return };
            let Some(&start) = line.last() else { return };
            for step in 1..=CURVE {
                let t = step as f64 / CURVE as f64;
                let mix = |a: f64, b: f64, c: f64| (1.0 - t) * (1.0 - t) * a + 2.0 * t * (1.0 - t) * b + t * t * c;
                line.push((mix(start.0, cx, x), mix(start.1, cy, y)));
            }
        }
        _ => {}
    }
}

#[rustfmt::skip]
const GLYPHS: &[(char, f64, &str)] = &[
    (' ', 3.0, ""),
    ('!', 1.0, "M.5 14 L.5 4.5 M.5 .4 L.5 0"),
    ('"', 4.0, "M.5 14 L.5 10 M3.5 14 L3.5 10"),
    ('#', 9.0, "M3 14 L1.5 0 M7.5 14 L6 0 M.5 9.5 L9 9.5 M0 4.5 L8.5 4.5"),
    ('$', 8.0, "M7.8 11 Q7 13 4 13 Q.4 13 .4 10 Q.4 7.6 4 7 Q8 6.4 8 3.8 Q8 1 4 1 Q1 1 0 3 M4 15 L4 -1"),
    ('%', 12.0, "O0 8 5 14 O7 0 12 6 M10.5 14 L1.5 0"),
    ('&', 10.0, "M9.6 6.6 Q8.6 0 4 0 Q0 0 0 3.6 Q0 6 3.4 8 Q6.5 9.7 6.5 11.6 Q6.5 14 4.2 14 Q2 14 2 11.6 Q2 9.5 4.6 6.6 L10 0"),
    ('\'', 1.0, "M.5 14 L.5 10"),
    ('(', 3.5, "M3.5 15.5 Q0 12 0 6 Q0 0 3.5 -3.5"),
    (')', 3.5, "M0 15.5 Q3.5 12 3.5 6 Q3.5 0 0 -3.5"),
    ('*', 6.0, "M3 14 L3 8 M.4 12.5 L5.6 9.5 M5.6 12.5 L.4 9.5"),
    ('+', 8.0, "M4 10.5 L4 2.5 M0 6.5 L8 6.5"),
    (',', 1.5, "M1.2 .6 L.2 -2.8"),
    ('-', 5.0, "M0 5.5 L5 5.5"),
    ('.', 1.0, "M.5 .4 L.5 0"),
    ('/', 6.0, "M6 15 L0 -2"),
    ('0', 8.0, "O0 0 8 14"),
    ('1', 8.0, "M1.4 11.4 L5 14 L5 0"),
    ('2', 8.0, "M.4 10.4 Q.4 14 4 14 Q7.6 14 7.6 10.4 Q7.6 8.2 5.4 5.8 L.2 0 L8 0"),
    ('3', 8.0, "M.4 12 Q1.4 14 4 14 Q7.4 14 7.4 10.8 Q7.4 7.6 3.4 7.6 Q8 7.6 8 3.9 Q8 0 3.9 0 Q1 0 0 2.2"),
    ('4', 8.0, "M6 0 L6 14 L0 4 L8 4"),
    ('5', 8.0, "M7.4 14 L1.4 14 L.8 7.8 Q2.2 8.9 4 8.9 Q8 8.9 8 4.5 Q8 0 3.9 0 Q1 0 0 2.2"),
    ('6', 8.0, "M7.2 12.4 Q6.2 14 4.3 14 Q0 14 0 6.4 Q0 0 4 0 Q8 0 8 4.3 Q8 8.6 4.2 8.6 Q.4 8.6 .1 4.6"),
    ('7', 8.0, "M0 14 L8 14 L2.6 0"),
    ('8', 8.0, "O.4 7.6 7.6 14 O0 0 8 7.6"),
    ('9', 8.0, "M.8 1.6 Q1.8 0 3.7 0 Q8 0 8 7.6 Q8 14 4 14 Q0 14 0 9.7 Q0 5.4 3.8 5.4 Q7.6 5.4 7.9 9.4"),
    (':', 1.0, "M.5 9 L.5 8.6 M.5 .4 L.5 0"),
    (';', 1.5, "M1 9 L1 8.6 M1.2 .6 L.2 -2.8"),
    ('<', 8.0, "M8 11 L0 6.5 L8 2"),
    ('=', 8.0, "M0 9 L8 9 M0 4 L8 4"),
    ('>', 8.0, "M0 11 L8 6.5 L0 2"),
    ('?', 7.0, "M0 11 Q.4 14 3.5 14 Q7 14 7 10.8 Q7 8.6 4.8 7.2 Q3.4 6.2 3.4 4.2 M3.4 .4 L3.4 0"),
    ('@', 14.0, "M10 9 Q9.4 10 7.4 10 Q4 10 4 6 Q4 2.6 6.8 2.6 Q9.4 2.6 9.8 6 M10 10 L9.8 4.4 Q9.8 2.6 11.4 2.6 Q14 2.6 14 7 \
        Q14 14 7.2 14 Q0 14 0 6 Q0 -2.6 7.4 -2.6 Q9.6 -2.6 11.4 -1.8"),
    ('A', 10.0, "M0 0 L5 14 L10 0 M1.8 5 L8.2 5"),
    ('B', 8.6, "M4.6 7.4 L0 7.4 M0 0 L0 14 L4.6 14 Q8 14 8 10.7 Q8 7.4 4.6 7.4 Q8.6 7.4 8.6 3.7 Q8.6 0 4.8 0 L0 0"),
    ('C', 9.8, "M9.8 11.4 Q8.4 14 5.4 14 Q0 14 0 7 Q0 0 5.4 0 Q8.4 0 9.8 2.6"),
    ('D', 9.6, "M0 0 L0 14 L4 14 Q9.6 14 9.6 7 Q9.6 0 4 0 L0 0"),
    ('E', 7.6, "M7.6 14 L0 14 L0 0 L7.6 0 M0 7.3 L6.6 7.3"),
    ('F', 7.4, "M7.4 14 L0 14 L0 0 M0 7 L6.4 7"),
    ('G', 10.2, "M9.8 11.4 Q8.4 14 5.4 14 Q0 14 0 7 Q0 0 5.4 0 Q8.6 0 10 2 L10 6.6 L5.8 6.6"),
    ('H', 9.2, "M0 14 L0 0 M9.2 14 L9.2 0 M0 7.3 L9.2 7.3"),
    ('I', 1.0, "M.5 14 L.5 0"),
    ('J', 5.0, "M5 14 L5 4 Q5 0 2 0 Q.6 0 0 .8"),
    ('K', 9.0, "M0 14 L0 0 M8.4 14 L0 5.4 M3 8.4 L9 0"),
    ('L', 7.0, "M0 14 L0 0 L7 0"),
    ('M', 11.0, "M0 0 L0 14 L5.5 3 L11 14 L11 0"),
    ('N', 9.4, "M0 0 L0 14 L9.4 0 L9.4 14"),
    ('O', 11.0, "O0 0 11 14"),
    ('P', 8.4, "M0 0 L0 14 L4.6 14 Q8.4 14 8.4 10.2 Q8.4 6.4 4.6 6.4 L0 6.4"),
    ('Q', 11.0, "O0 0 11 14 M7 3 L11 -1.4"),
    ('R', 8.8, "M0 0 L0 14 L4.6 14 Q8.4 14 8.4 10.4 Q8.4 6.8 4.6 6.8 L0 6.8 M4.8 6.8 L8.8 0"),
    ('S', 8.4, "M8 11.6 Q7 14 4.2 14 Q.6 14 .6 10.8 Q.6 8 4.2 7.3 Q8.4 6.5 8.4 3.6 Q8.4 0 4.3 0 Q1.2 0 0 2.6"),
    ('T', 9.0, "M0 14 L9 14 M4.5 14 L4.5 0"),
    ('U', 9.0, "M0 14 L0 4.6 Q0 0 4.5 0 Q9 0 9 4.6 L9 14"),
    ('V', 10.0, "M0 14 L5 0 L10 14"),
    ('W', 14.0, "M0 14 L3.5 0 L7 12.4 L10.5 0 L14 14"),
    ('X', 9.0, "M.2 14 L8.8 0 M8.8 14 L.2 0"),
    ('Y', 9.4, "M0 14 L4.7 7 L9.4 14 M4.7 7 L4.7 0"),
    ('Z', 8.8, "M.2 14 L8.6 14 L0 0 L8.8 0"),
    ('[', 3.0, "M3 15.5 L0 15.5 L0 -3.5 L3 -3.5"),
    ('\\', 6.0, "M0 15 L6 -2"),
    (']', 3.0, "M0 15.5 L3 15.5 L3 -3.5 L0 -3.5"),
    ('^', 7.0, "M.4 8.6 L3.5 14 L6.6 8.6"),
    ('_', 8.0, "M0 -2.4 L8 -2.4"),
    ('`', 2.4, "M0 14 L2.4 11.6"),
    ('a', 7.0, "M.8 8.4 Q1.8 10 4 10 Q7 10 7 6.8 L7 0 M7 5.9 L3.6 5.7 Q0 5.4 0 2.7 Q0 0 3 0 Q5.8 0 7 2.8"),
    ('b', 7.6, "M0 14 L0 0 M0 6.6 Q.8 10 3.9 10 Q7.6 10 7.6 5 Q7.6 0 3.9 0 Q.8 0 0 3.4"),
    ('c', 7.0, "M7 8 Q6 10 4 10 Q0 10 0 5 Q0 0 4 0 Q6 0 7 2"),
    ('d', 7.6, "M7.6 14 L7.6 0 M7.6 6.6 Q6.8 10 3.7 10 Q0 10 0 5 Q0 0 3.7 0 Q6.8 0 7.6 3.4"),
    ('e', 7.6, "M0 5.4 L7.6 5.4 Q7.6 10 3.9 10 Q0 10 0 5 Q0 0 4 0 Q6.4 0 7.3 2"),
    ('f', 4.8, "M4.8 13.9 Q1.8 14.6 1.8 11.2 L1.8 0 M0 10 L4.4 10"),
    ('g', 7.6, "M7.6 10 L7.6 0 Q7.6 -4 3.8 -4 Q1.6 -4 .6 -2.6 M7.6 6.6 Q6.8 10 3.7 10 Q0 10 0 5.2 Q0 .4 3.7 .4 Q6.8 .4 7.6 3.6"),
    ('h', 7.0, "M0 14 L0 0 M0 6.2 Q.8 10 4 10 Q7 10 7 6.4 L7 0"),
    ('i', 1.0, "M.5 10 L.5 0 M.5 13.6 L.5 13.2"),
    ('j', 1.6, "M1.1 10 L1.1 -1.4 Q1.1 -4 -1.2 -3.9 M1.1 13.6 L1.1 13.2"),
    ('k', 7.0, "M0 14 L0 0 M6.6 10 L0 3.6 M2.6 6.1 L7 0"),
    ('l', 1.0, "M.5 14 L.5 0"),
    ('m', 11.6, "M0 10 L0 0 M0 6.2 Q.6 10 3.2 10 Q5.8 10 5.8 6.6 L5.8 0 M5.8 6.2 Q6.4 10 9 10 Q11.6 10 11.6 6.6 L11.6 0"),
    ('n', 7.0, "M0 10 L0 0 M0 6.2 Q.8 10 4 10 Q7 10 7 6.4 L7 0"),
    ('o', 7.8, "O0 0 7.8 10"),
    ('p', 7.6, "M0 10 L0 -4 M0 6.6 Q.8 10 3.9 10 Q7.6 10 7.6 5 Q7.6 0 3.9 0 Q.8 0 0 3.4"),
    ('q', 7.6, "M7.6 10 L7.6 -4 M7.6 6.6 Q6.8 10 3.7 10 Q0 10 0 5 Q0 0 3.7 0 Q6.8 0 7.6 3.4"),
    ('r', 4.2, "M0 10 L0 0 M0 5.6 Q.6 10 4.2 9.8"),
    ('s', 6.5, "M6.2 8.2 Q5.4 10 3.2 10 Q.4 10 .4 7.6 Q.4 5.6 3.2 5.1 Q6.5 4.5 6.5 2.5 Q6.5 0 3.3 0 Q.9 0 0 1.8"),
    ('t', 4.8, "M1.8 13 L1.8 3 Q1.8 0 4.8 .2 M0 10 L4.6 10"),
    ('u', 7.0, "M7 10 L7 0 M0 10 L0 3.6 Q0 0 3 0 Q6.2 0 7 3.8"),
    ('v', 7.6, "M0 10 L3.8 0 L7.6 10"),
    ('w', 11.4, "M0 10 L2.9 0 L5.7 9 L8.5 0 L11.4 10"),
    ('x', 7.0, "M.2 10 L6.8 0 M6.8 10 L.2 0"),
    ('y', 7.6, "M0 10 L3.9 0 M7.6 10 L3.3 -2 Q2.4 -4 .4 -3.9"),
    ('z', 6.8, "M.2 10 L6.4 10 L0 0 L6.8 0"),
    ('{', 4.0, "M4 15.5 Q1.6 15.5 1.6 13 L1.6 8.4 Q1.6 6 0 6 Q1.6 6 1.6 3.6 L1.6 -1 Q1.6 -3.5 4 -3.5"),
    ('|', 1.0, "M.5 15.5 L.5 -3.5"),
    ('}', 4.0, "M0 15.5 Q2.4 15.5 2.4 13 L2.4 8.4 Q2.4 6 4 6 Q2.4 6 2.4 3.6 L2.4 -1 Q2.4 -3.5 0 -3.5"),
    ('~', 8.0, "M0 5.4 Q.4 8 2.4 8 Q3.6 8 4.6 6.6 Q5.6 5 6.2 5 Q7.6 5 8 7.6"),
    ('\u{a0}', 3.0, ""),
    ('±', 8.0, "M4 12 L4 4.6 M0 8.3 L8 8.3 M0 1 L8 1"),
    ('×', 7.0, "M0 10 L7 3 M7 10 L0 3"),
    ('·', 1.0, "M.5 6 L.5 5.6"),
    ('–', 7.0, "M0 5.5 L7 5.5"),
    ('−', 8.0, "M0 6.5 L8 6.5"),
    ('…', 9.0, "M.5 .4 L.5 0 M4.5 .4 L4.5 0 M8.5 .4 L8.5 0"),
    ('≤', 8.0, "M8 12 L0 8 L8 4 M0 1 L8 1"),
    ('≥', 8.0, "M0 12 L8 8 L0 4 M0 1 L8 1"),
    ('→', 10.0, "M0 6 L10 6 M6.5 9.5 L10 6 L6.5 2.5"),
    ('°', 4.0, "O0 10 4 14"),
    ('µ', 7.0, "M7 10 L7 0 M0 10 L0 -4 M0 3.6 Q0 0 3 0 Q6.2 0 7 3.8"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printable_character_has_a_glyph_inside_its_box() {
        for character in (' '..='~').chain("±×·–−…≤≥→°µ".chars()) {
            assert!(GLYPHS.iter().any(|(known, ..)| *known == character), "{character}");
            let (width, path) = glyph(character);
            let lines = draw(path);
            let pens = path.matches(['M', 'O']).count();
            assert_eq!(lines.len(), pens, "{character}: a command was not understood");
            for (x, y) in lines.into_iter().flatten() {
                assert!((-1.3..=width + 0.1).contains(&x) && (-4.1..=15.6).contains(&y), "{character}: {x} {y}");
            }
        }
        assert_eq!(glyph('é'), glyph('e'));
        assert_eq!(glyph('漢'), glyph('\u{1F600}'));
    }

    #[test]
    fn texts_are_as_wide_as_their_glyphs() {
        assert_eq!(width(""), 0.0);
        assert!((width("00") - (8.0 + SPACE + 8.0) / UNITS).abs() < 1e-12);
        let right = strokes("H").into_iter().flatten().map(|point| point.0).fold(0.0, f64::max);
        assert!((right - width("H")).abs() < 1e-12);
    }
}
