//! What a classifier takes each class for.

use super::drawing::{Anchor, Colour, Drawing, Shape, Stroke, TEXT, Text, text_width};

/// Height and width of the cells together, in units of the drawing, and of one cell.
const SIDE: f64 = 640.0;
const SMALLEST: f64 = 11.0;
const LARGEST: f64 = 44.0;
/// The least cell that has room for a number.
const ROOM_FOR_NUMBER: f64 = 24.0;
/// Width of the longest name that is drawn whole.
const LONGEST_NAME: f64 = 190.0;
/// Room for the label of an axis, and between names and cells.
const LABEL: f64 = 24.0;
const GAP: f64 = 8.0;
/// The letters of a reader's font may be so much wider than ours.
const WIDER: f64 = 1.2;
/// Right of the last cell, where a name's letters may reach.
const MARGIN: f64 = 12.0;
/// Share above which letters on a cell are those of the page.
const DARK: f64 = 0.55;

/// A confusion matrix: how often pictures of each class were taken for each.
///
/// A cell's colour is its share of the row, so that rare classes are seen as well as frequent ones: of the diagonal, which is right, in
/// one colour, of all else in another.
///
/// ```
/// use calotype_metrics::plot::Confusion;
///
/// let names = ["cat", "dog"].map(str::to_owned).to_vec();
/// let plot = Confusion { title: "Pets".into(), names, counts: vec![vec![9, 1], vec![0, 4]], totals: vec![10, 4] };
/// assert!(plot.drawing().to_svg_file().contains("cat"));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Confusion {
    /// Says what the plot shows.
    pub title: String,
    /// Names of the classes.
    pub names: Vec<String>,
    /// How many pictures of the class of a row were taken for the class of a column: as many rows and columns as names.
    pub counts: Vec<Vec<usize>>,
    /// Pictures of each class; more than the row's sum where other classes are not shown.
    pub totals: Vec<usize>,
}

impl Confusion {
    /// The plot as it is drawn. What is missing of the counts counts as none.
    pub fn drawing(&self) -> Drawing {
        let classes = self.names.len().max(1);
        let cell = (SIDE / classes as f64).clamp(SMALLEST, LARGEST);
        let size = (cell - 1.0).min(TEXT);
        let names: Vec<String> = self.names.iter().map(|name| shortened(name, size)).collect();
        let longest = WIDER * names.iter().map(|name| text_width(name, size)).fold(0.0, f64::max);
        let (left, side) = (LABEL + longest + GAP, cell * classes as f64);
        let bottom = side + GAP + longest + LABEL;
        let mut drawing = Drawing::new(&self.title, &self.in_words(), left + side + MARGIN, 0.0, bottom);
        self.draw_cells(&mut drawing, (left, cell, size));
        draw_grid(&mut drawing, (left, cell, classes));
        for (at, name) in names.iter().enumerate() {
            let middle = (at as f64 + 0.5) * cell + size / 3.0;
            let text = |x, y, anchor| Text { size, ..Text::new(x, y, anchor, Colour::Ink, name.as_str()) };
            drawing.add(Shape::Text(text(left - GAP, middle, Anchor::End)));
            let below = Text { upwards: true, ..text(left + middle, side + GAP, Anchor::End) };
            drawing.add(Shape::Text(below));
        }
        let label = |x, y, content: &str| Text::new(x, y, Anchor::Middle, Colour::Soft, content);
        drawing.add(Shape::Text(Text { upwards: true, ..label(LABEL / 2.0, side / 2.0, "class") }));
        drawing.add(Shape::Text(label(left + side / 2.0, bottom - GAP, "taken for")));
        drawing
    }

    fn count(&self, row: usize, column: usize) -> usize {
        self.counts.get(row).and_then(|row| row.get(column)).copied().unwrap_or(0)
    }

    fn total(&self, row: usize) -> usize {
        self.totals.get(row).copied().unwrap_or(0).max(1)
    }

    fn draw_cells(&self, drawing: &mut Drawing, (left, cell, size): (f64, f64, f64)) {
        for row in 0..self.names.len() {
            for column in 0..self.names.len() {
                let count = self.count(row, column);
                if count == 0 {
                    continue;
                }
                let share = (count as f64 / self.total(row) as f64).min(1.0);
                let (x, y) = (left + column as f64 * cell, row as f64 * cell);
                let corners = vec![(x, y), (x + cell, y), (x + cell, y + cell), (x, y + cell)];
                let colour = if row == column { Colour::Series(0) } else { Colour::Series(1) };
                // What is there at all is seen.
                let opacity = ((0.12 + 0.88 * share) * 100.0).round() / 100.0;
                drawing.add(Shape::Area(corners, colour, opacity));
                if cell >= ROOM_FOR_NUMBER {
                    let ink = if share > DARK { Colour::Page } else { Colour::Ink };
                    let (x, y) = (x + cell / 2.0, y + cell / 2.0 + size / 3.0);
                    drawing.add(Shape::Text(Text { size, ..Text::new(x, y, Anchor::Middle, ink, count.to_string()) }));
                }
            }
        }
    }

    /// The share that is right, and the most frequent confusion.
    fn in_words(&self) -> String {
        let rows = 0..self.names.len();
        let right: usize = rows.clone().map(|row| self.count(row, row)).sum();
        let all: usize = rows.clone().map(|row| self.totals.get(row).copied().unwrap_or(0)).sum();
        let wrong = rows.clone().flat_map(|row| rows.clone().map(move |column| (row, column)));
        let worst = wrong.filter(|(row, column)| row != column).max_by_key(|&(row, column)| {
            // Of equal ones, the first.
            (self.count(row, column), std::cmp::Reverse((row, column)))
        });
        let worst =
            worst.filter(|&(row, column)| self.count(row, column) > 0).map_or(String::new(), |(row, column)| {
                let (class, other, times) = (&self.names[row], &self.names[column], self.count(row, column));
                format!("; most often, {class} is taken for {other}: {times} times")
            });
        format!("{right} of {all} are right{worst}.")
    }
}

/// Thin lines around all cells.
fn draw_grid(drawing: &mut Drawing, (left, cell, classes): (f64, f64, usize)) {
    let side = cell * classes as f64;
    for line in 0..=classes {
        let at = line as f64 * cell;
        drawing.line(&[(left, at), (left + side, at)], Stroke::new(Colour::Grid, 0.6));
        drawing.line(&[(left + at, 0.0), (left + at, side)], Stroke::new(Colour::Grid, 0.6));
    }
}

/// A name without its end, if it is too long.
fn shortened(name: &str, size: f64) -> String {
    if text_width(name, size) <= LONGEST_NAME {
        return name.to_owned();
    }
    let mut kept = String::new();
    for character in name.chars() {
        kept.push(character);
        if text_width(&kept, size) > LONGEST_NAME - size {
            break;
        }
    }
    kept.trim_end().to_owned() + "…"
}

impl From<Confusion> for Drawing {
    fn from(plot: Confusion) -> Self {
        plot.drawing()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(names: &[&str], counts: &[&[usize]]) -> Confusion {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let counts: Vec<Vec<usize>> = counts.iter().map(|row| row.to_vec()).collect();
        let totals = counts.iter().map(|row| row.iter().sum()).collect();
        Confusion { title: "Confusion".into(), names, counts, totals }
    }

    #[test]
    fn counts_names_and_the_worst_confusion_are_told() {
        let pets = plot(&["cat & co", "dog", "fox"], &[&[3, 1, 0], &[0, 0, 2], &[0, 2, 5]]);
        let svg = pets.drawing().to_svg_file();
        for part in
            [">cat &amp; co<", ">dog<", ">fox<", ">taken for<", "8 of 13 are right", "dog is taken for fox: 2 times"]
        {
            assert!(svg.contains(part), "`{part}` is not in {svg}");
        }
        assert_eq!(svg.matches(">2<").count(), 2, "{svg}");
        assert!(pets.drawing().to_png(1).unwrap().starts_with(b"\x89PNG"));
    }

    #[test]
    fn many_classes_have_small_cells_and_long_names_are_cut() {
        let names: Vec<String> = (0..100).map(|class| format!("class {class} {}", "x".repeat(class))).collect();
        let diagonal = |row: usize| (0..100).map(|column| usize::from(row == column)).collect::<Vec<_>>();
        let counts: Vec<Vec<usize>> = (0..100).map(diagonal).collect();
        let many = Confusion { title: "Many".into(), names, counts, totals: vec![1; 100] };
        let svg = many.drawing().to_svg();
        assert!(svg.contains('…') && !svg.contains(&"x".repeat(99)) && !svg.contains(">1<"));
        assert!(svg.contains("100 of 100 are right."));
    }

    #[test]
    fn what_is_missing_counts_as_none() {
        let empty = Confusion { title: "None".into(), names: vec!["a".into()], counts: vec![], totals: vec![] };
        assert!(empty.drawing().to_svg().contains("0 of 0 are right."));
        assert!(plot(&[], &[]).drawing().to_png(1).is_ok());
    }
}
