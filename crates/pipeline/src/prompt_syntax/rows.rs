//! Weighted fragments as rows of tokens.

use super::a1111::BREAK;
use super::{Fragment, WeightedRow};
use calotype_models::tokenizer::{ClipTokenizer, TextToken};

/// How far back a comma is looked for at the end of a row (the interface's `comma_padding_backtrack`).
const BACKTRACK: usize = 20;

/// The fragments as rows of tokens, at least one. Nothing is cut.
pub(crate) fn a1111_rows(tokenizer: &ClipTokenizer, fragments: &[Fragment]) -> Vec<WeightedRow> {
    let comma = match tokenizer.text_tokens(",").as_slice() {
        [comma] => Some(comma.id),
        _ => None,
    };
    let mut rows = Rows { tokenizer, comma, done: Vec::new(), row: Vec::new(), last_comma: None };
    for fragment in fragments {
        if (fragment.text.as_str(), fragment.weight) == BREAK {
            rows.end_row();
            continue;
        }
        for token in tokenizer.text_tokens(&fragment.text) {
            rows.push(token.id, fragment.weight as f32);
        }
    }
    if !rows.row.is_empty() || rows.done.is_empty() {
        rows.end_row();
    }
    rows.done
}

struct Rows<'a> {
    tokenizer: &'a ClipTokenizer,
    comma: Option<i32>,
    done: Vec<WeightedRow>,
    /// Tokens of the row that is not full, with their weights.
    row: Vec<(i32, f32)>,
    /// Where its last comma stands.
    last_comma: Option<usize>,
}

impl Rows<'_> {
    fn push(&mut self, id: i32, weight: f32) {
        let room = self.tokenizer.room().max(1);
        if Some(id) == self.comma {
            self.last_comma = Some(self.row.len());
        } else if self.row.len() == room
            && let Some(comma) = self.last_comma.filter(|comma| room - comma <= BACKTRACK)
        {
            let moved = self.row.split_off(comma + 1);
            self.end_row();
            self.row = moved;
        }
        if self.row.len() == room {
            self.end_row();
        }
        self.row.push((id, weight));
    }

    fn end_row(&mut self) {
        let row = std::mem::take(&mut self.row);
        let tokens = self.tokenizer.row(row.iter().map(|(id, _)| *id));
        let mut weights = vec![1.0; tokens.ids.len()];
        weights[1..].iter_mut().zip(&row).for_each(|(weight, (_, own))| *weight = *own);
        self.done.push(WeightedRow { tokens, weights });
        self.last_comma = None;
    }
}

/// A prompt in rows of tokens, with what is blended in for fragments of less weight than 1.
#[derive(Clone, Debug)]
pub(crate) struct Weighted {
    /// The rows.
    pub(crate) rows: Vec<WeightedRow>,
    /// For each such fragment its share beside the whole prompt's 1, and which tokens of each row are hidden.
    pub(crate) without: Vec<(f64, Vec<Vec<bool>>)>,
}

/// Puts fragments into rows: one, whose end is cut, or with `long` as many as it takes, which end at sentences, else
/// phrases, else words (compel's `SplitLongTextMode.SENTENCES`).
pub(crate) fn compel_rows(tokenizer: &ClipTokenizer, fragments: &[Fragment], long: bool) -> Weighted {
    let room = tokenizer.room();
    let mut tokens: Vec<(TextToken, f32, usize)> = Vec::new();
    for (number, fragment) in fragments.iter().enumerate() {
        let own = tokenizer.text_tokens(&fragment.text);
        let kept = if long { own.len() } else { own.len().min(room) };
        tokens.extend(own[..kept].iter().map(|token| (*token, fragment.weight as f32, number)));
    }
    let (mut rows, mut owners) = (Vec::new(), Vec::new());
    let mut rest = tokens.as_slice();
    loop {
        let (row, behind) = rest.split_at(if long { split_point(tokenizer, rest) } else { rest.len().min(room) });
        let framed = tokenizer.row(row.iter().map(|(token, ..)| token.id));
        let mut weights = vec![1.0; framed.ids.len()];
        let mut owner = vec![None; framed.ids.len()];
        for (at, (_, weight, fragment)) in row.iter().enumerate() {
            (weights[at + 1], owner[at + 1]) = (*weight, Some(*fragment));
        }
        // A fragment that is cut hides the end of the row too.
        if !long && let Some((_, _, last)) = row.last().filter(|(_, _, last)| behind.iter().any(|next| next.2 == *last))
        {
            owner[framed.end] = Some(*last);
        }
        rows.push(WeightedRow { tokens: framed, weights });
        owners.push(owner);
        rest = behind;
        if rest.is_empty() || !long {
            break;
        }
    }
    let hidden = |number: usize| hidden(&owners, number, long);
    let without = fragments.iter().enumerate().filter(|(_, fragment)| fragment.weight < 1.0);
    let without = without.map(|(number, fragment)| (share(fragment.weight), hidden(number)));
    let without = without.filter(|(_, rows)| rows.iter().flatten().any(|hidden| *hidden)).collect();
    Weighted { rows, without }
}

/// Which tokens of each row are hidden without a fragment: all from its first to its last, padding between two rows
/// included, but never the ends of long prompts' rows.
fn hidden(owners: &[Vec<Option<usize>>], number: usize, long: bool) -> Vec<Vec<bool>> {
    let length = owners.first().map_or(0, Vec::len);
    let own = |owner: &Option<usize>| *owner == Some(number);
    let all: Vec<usize> = owners.iter().flatten().enumerate().filter(|(_, o)| own(o)).map(|(at, _)| at).collect();
    let range = all.first().copied().unwrap_or(1)..=all.last().copied().unwrap_or(0);
    let is_end = |at: usize| long && (at == 0 || at + 1 == length);
    let row = |row: usize| (0..length).map(|at| range.contains(&(row * length + at)) && !is_end(at)).collect();
    (0..owners.len()).map(row).collect()
}

/// The share of the prompt without a fragment: none for weight 1, as much as the whole prompt for 0.5, all for 0.
fn share(weight: f64) -> f64 {
    ((1.0 - weight.max(1e-5)) * std::f64::consts::PI / 2.0).tan()
}

/// Tokens that go into the next row.
fn split_point(tokenizer: &ClipTokenizer, rest: &[(TextToken, f32, usize)]) -> usize {
    let room = tokenizer.room().max(1);
    if rest.len() <= room {
        return rest.len();
    }
    let sign = |text: &str| tokenizer.text_tokens(text).first().map(|token| token.id);
    let ends = |signs: &[&str]| {
        let ids: Vec<_> = signs.iter().map(|text| sign(text)).collect();
        rest[..room].iter().rposition(|(token, ..)| ids.contains(&Some(token.id)))
    };
    let word = || rest[..room].iter().rposition(|(token, ..)| token.ends_word);
    ends(&["."]).or_else(|| ends(&[".", ",", ";", ":"])).or_else(word).map_or(room, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::super::{a1111, compel};
    use super::*;

    #[test]
    fn rows_end_at_commas_that_are_near() {
        let tokenizer = ClipTokenizer::new(77);
        let words = |count: usize| "cat ".repeat(count);
        let lengths = |prompt: &str| -> Vec<usize> {
            a1111_rows(&tokenizer, &a1111::parse(prompt).unwrap()).iter().map(|row| row.tokens.end - 1).collect()
        };
        assert_eq!(lengths(""), [0]);
        assert_eq!(lengths(&words(75)), [75]);
        assert_eq!(lengths(&words(76)), [75, 1]);
        assert_eq!(lengths(&format!("{}, {}", words(59), words(30))), [60, 30]);
        assert_eq!(lengths(&format!("{}, {}", words(50), words(39))), [75, 15]);
        assert_eq!(lengths(&format!("{}BREAK {}", words(3), words(2))), [3, 2]);
        let weighted = a1111_rows(&tokenizer, &a1111::parse("a (cat:1.5)").unwrap());
        assert_eq!(weighted[0].weights[..4], [1.0, 1.0, 1.5, 1.0]);
    }

    #[test]
    fn rows_know_what_they_hide() {
        let tokenizer = ClipTokenizer::new(77);
        let weighted = compel_rows(&tokenizer, &compel::parse("a cat-- on a mat++").unwrap(), false);
        assert_eq!(weighted.rows.len(), 1);
        assert_eq!(weighted.without.len(), 1);
        let (share, hidden) = &weighted.without[0];
        assert!((share - ((1.0 - 0.81) * std::f64::consts::PI / 2.0).tan()).abs() < 1e-12);
        assert_eq!(hidden[0].iter().position(|hidden| *hidden), Some(2));
        assert_eq!(hidden[0].iter().filter(|hidden| **hidden).count(), 1);
        let long = format!("{}. {}", "cat ".repeat(70), "dog ".repeat(70));
        let lengths = |long_prompts| -> Vec<usize> {
            compel_rows(&tokenizer, &compel::parse(&long).unwrap(), long_prompts)
                .rows
                .iter()
                .map(|row| row.tokens.end - 1)
                .collect()
        };
        assert_eq!((lengths(false), lengths(true)), (vec![75], vec![71, 70]));
    }
}
