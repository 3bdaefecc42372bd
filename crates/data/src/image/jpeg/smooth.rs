//! Progressive files that hold only part of the coefficients: libjpeg-turbo (since 2.1) estimates those that are 0 from
//! the first coefficients of 5x5 blocks, in the manner of ITU-T T.81, K.8.

use super::frame::{Component, Frame, Steps};
use super::scan::Coefficients;

/// Weights of the first coefficients of 5x5 blocks, in 256ths.
type Weights = [[i32; 5]; 5];

struct Rule {
    /// Place of the coefficient, by the order of files and row by row.
    order: usize,
    place: usize,
    /// Where no coefficient but the first is known.
    alone: Weights,
    /// Where some are; without them it is left.
    beside: Option<Weights>,
}

const NONE: [i32; 5] = [0; 5];

/// The first coefficient itself, if nothing else is known.
const FIRST: Weights =
    [[-2, -6, -8, -6, -2], [-6, 6, 42, 6, -6], [-8, 42, 152, 42, -8], [-6, 6, 42, 6, -6], [-2, -6, -8, -6, -2]];

const ACROSS: Weights =
    [[-1, -1, 0, 1, 1], [-3, 13, 0, -13, 3], [-3, 38, 0, -38, 3], [-3, 13, 0, -13, 3], [-1, -1, 0, 1, 1]];
const ACROSS_BESIDE: Weights = [NONE, NONE, [-7, 50, 0, -50, 7], NONE, NONE];
const ACROSS_TWICE: Weights = [NONE, [0, 2, -5, 2, 0], [1, 7, -14, 7, 1], [0, 2, -5, 2, 0], NONE];
const ACROSS_TWICE_BESIDE: Weights = [NONE, NONE, [-1, 13, -24, 13, -1], NONE, NONE];
const ACROSS_THRICE: Weights = [NONE, [0, 1, 0, -1, 0], [0, 2, 0, -2, 0], [0, 1, 0, -1, 0], NONE];
const BOTH: Weights = [[-1, 0, 0, 0, 1], [0, 9, 0, -9, 0], NONE, [0, -9, 0, 9, 0], [1, 0, 0, 0, -1]];
const BOTH_BESIDE: Weights = [[0, -1, 0, 1, 0], [-1, 10, 0, -10, 1], NONE, [1, -10, 0, 10, -1], [0, 1, 0, -1, 0]];
const DOWN_AND_TWICE_ACROSS: Weights = [NONE, [0, 1, -3, 1, 0], NONE, [0, -1, 3, -1, 0], NONE];

static RULES: [Rule; 9] = [
    Rule { order: 1, place: 1, alone: ACROSS, beside: Some(ACROSS_BESIDE) },
    Rule { order: 2, place: 8, alone: swapped(ACROSS), beside: Some(swapped(ACROSS_BESIDE)) },
    Rule { order: 3, place: 16, alone: swapped(ACROSS_TWICE), beside: Some(swapped(ACROSS_TWICE_BESIDE)) },
    Rule { order: 4, place: 9, alone: BOTH, beside: Some(BOTH_BESIDE) },
    Rule { order: 5, place: 2, alone: ACROSS_TWICE, beside: Some(ACROSS_TWICE_BESIDE) },
    Rule { order: 6, place: 3, alone: ACROSS_THRICE, beside: None },
    Rule { order: 7, place: 10, alone: DOWN_AND_TWICE_ACROSS, beside: None },
    Rule { order: 8, place: 17, alone: swapped(DOWN_AND_TWICE_ACROSS), beside: None },
    Rule { order: 9, place: 24, alone: swapped(ACROSS_THRICE), beside: None },
];

const fn swapped(weights: Weights) -> Weights {
    let mut out = [NONE; 5];
    let mut at = 0;
    while at < 25 {
        out[at % 5][at / 5] = weights[at / 5][at % 5];
        at += 1;
    }
    out
}

/// True if a file leaves something to estimate, and all that is needed for it is known.
pub(super) fn is_useful(file: &Coefficients, frame: &Frame) -> bool {
    let is_possible = |number: usize| {
        let divides = |steps: &Steps| steps[0] != 0 && RULES.iter().all(|rule| steps[rule.place] != 0);
        file.steps[number].as_ref().is_some_and(divides) && file.known[number][0] >= 0
    };
    let numbers = 0..frame.components.len();
    numbers.clone().all(is_possible)
        && numbers.clone().any(|number| file.known[number][1..10].iter().any(|bit| *bit != 0))
}

/// Estimates coefficients of `block`, the one in `column` and `row` of `blocks`. `known` says which bits are known.
pub(super) fn estimate(
    block: &mut [i16; 64],
    blocks: &[[i16; 64]],
    component: &Component,
    steps: &Steps,
    known: &[i8; 64],
    (column, row): (usize, usize),
) {
    let around = around(blocks, component, column, row);
    let alone = known[1..10].iter().all(|bit| *bit == -1);
    let sum = |weights: &Weights| -> i64 {
        let products = weights.as_flattened().iter().zip(around.as_flattened());
        i64::from(steps[0]) * products.map(|(weight, first)| i64::from(*weight) * i64::from(*first)).sum::<i64>()
    };
    for rule in &RULES {
        let bit = known[rule.order];
        let weights = if alone { Some(&rule.alone) } else { rule.beside.as_ref() };
        if let Some(weights) = weights
            && bit != 0
            && block[rule.place] == 0
        {
            block[rule.place] = rounded(sum(weights), steps[rule.place], bit);
        }
    }
    if alone {
        block[0] = rounded(sum(&FIRST), steps[0], 0);
    }
}

/// `sum` in 256ths of a step, rounded; below what the bits that are known would show (those from `bit` on).
fn rounded(sum: i64, step: u16, bit: i8) -> i16 {
    let step = i64::from(step);
    let mut size = ((step << 7) + sum.abs()) / (step << 8);
    if bit > 0 {
        size = size.min((1 << bit) - 1);
    }
    (if sum < 0 { -size } else { size }) as i16
}

/// The first coefficients of 5x5 blocks; beyond a border those at it.
fn around(blocks: &[[i16; 64]], component: &Component, column: usize, row: usize) -> Weights {
    let [columns, rows] = component.blocks;
    let in_unit = component.factors[1];
    let (unit, last) = (row / in_unit, (rows - 1) / in_unit);
    let above = row.saturating_sub(1);
    // Of a second unit that is the last and has one row, libjpeg-turbo takes the row above twice, and above the last unit
    // it sees the rows that fill that one up.
    let above_that =
        if row < 2 || unit == 1 && row + 1 == rows && row.is_multiple_of(in_unit) { above } else { row - 2 };
    let below = (row + 1).min(rows - 1);
    let seen = if unit == last { rows } else { component.padded[1] };
    let below_that = if row + 2 < seen { row + 2 } else { below };
    let first = |row: usize, column: usize| i32::from(blocks[row * component.padded[0] + column][0]);
    [above_that, above, row, below, below_that]
        .map(|row| [-2, -1, 0, 1, 2].map(|step| first(row, column.saturating_add_signed(step).min(columns - 1))))
}
