//! AdamW whose moments are kept in 8 bits (Dettmers et al. 2022, "8-bit optimizers via block-wise quantization").
//!
//! A moment is cut into blocks of [`MOMENT_BLOCK`] elements. Each is divided by its largest magnitude, and what is left is one of the
//! 256 numbers of a code book, those of dynamic tree quantisation (section 2.1 there): seven decades, of which each has
//! twice as many evenly spaced numbers as the one below. A step widens a block, does the arithmetic of [`super::adamw_step`] on
//! it, and rounds it to the nearest codes again, all in the nearest cache.

use super::{AdamW, Cut, Factors, Pieces, Stepped, adamw_piece, cut};
use crate::math::load_up_to;
use crate::packed::{PackedWeights, Renewal};
use crate::simd::{Simd, dispatch};
use crate::stream::past_caches_done;
use crate::threads::{SharedMut, for_chunks, parallel_for};

/// Elements with one scale. The paper has 2,048; smaller blocks lose less to large elements, and bitsandbytes uses 256 today.
pub const MOMENT_BLOCK: usize = 256;

/// Which moment a code book is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MomentKind {
    /// Means of gradients, of either sign.
    Signed,
    /// Means of squares. One above zero stays above zero: a root of zero in the denominator would make the next step of its parameter
    /// thirty times too large, where bitsandbytes rounds what is below half of the smallest code to zero.
    Unsigned,
}

impl MomentKind {
    /// The code of zero.
    pub const fn zero(self) -> u8 {
        match self {
            Self::Signed => 127,
            Self::Unsigned => 0,
        }
    }

    /// The numbers of all codes, ascending.
    pub fn codes(self) -> &'static [f32; 256] {
        &self.book().values
    }

    fn book(self) -> &'static CodeBook {
        match self {
            Self::Signed => &SIGNED,
            Self::Unsigned => &UNSIGNED,
        }
    }
}

const DECADES: usize = 7;
const POWERS: [f64; DECADES] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// The numbers of a moment's codes, and what finds the nearest code. A number's rank counts the numbers of its sign from zero, which has
/// rank 0; one, the largest, is beyond all decades.
struct CodeBook {
    values: [f32; 256],
    decades: Decades,
    /// Magnitudes below have rank 0.
    least: f32,
    /// Magnitudes from here on have the last rank.
    most: f32,
    /// The last rank.
    last: f32,
}

/// What is true of each decade, and zeros behind the last.
struct Decades {
    /// The smallest magnitude that is nearest to one of its numbers.
    from: [f32; 8],
    /// The rank of its first number.
    first: [f32; 8],
    /// The rank of its last number.
    last: [f32; 8],
    /// `scale magnitude + offset` is the rank, to be rounded.
    scale: [f32; 8],
    offset: [f32; 8],
}

static SIGNED: CodeBook = CodeBook::new(MomentKind::Signed);
static UNSIGNED: CodeBook = CodeBook::new(MomentKind::Unsigned);

impl CodeBook {
    const fn new(kind: MomentKind) -> Self {
        let signed = matches!(kind, MomentKind::Signed);
        let zero = kind.zero() as usize;
        let mut book = Self {
            values: [0.0; 256],
            decades: Decades { from: [0.0; 8], first: [0.0; 8], last: [0.0; 8], scale: [0.0; 8], offset: [0.0; 8] },
            least: 0.0,
            most: 0.0,
            last: (255 - zero) as f32,
        };
        let (mut rank, mut before) = (1, 0.0);
        let mut i = 0;
        while i < DECADES {
            let count = if signed { 1 << i } else { 2 << i };
            let step = 0.9 * POWERS[i] / count as f64;
            let first = 0.1 * POWERS[i] + 0.5 * step;
            book.decades.from[i] = ((before + first) / 2.0) as f32;
            book.decades.first[i] = rank as f32;
            book.decades.last[i] = (rank + count - 1) as f32;
            book.decades.scale[i] = (1.0 / step) as f32;
            book.decades.offset[i] = (rank as f64 - first / step) as f32;
            let mut j = 0;
            while j < count {
                before = first + j as f64 * step;
                book.values[zero + rank] = before as f32;
                if signed {
                    book.values[zero - rank] = -(before as f32);
                }
                rank += 1;
                j += 1;
            }
            i += 1;
        }
        book.values[255] = 1.0;
        book.most = ((before + 1.0) / 2.0) as f32;
        // Of squares, only zero is zero.
        book.least = if signed { book.decades.from[0] } else { 0.0 };
        book
    }
}

/// A moment in 8 bits.
#[derive(Debug)]
pub struct QuantisedMoment<'a> {
    /// A code for each element.
    pub codes: &'a mut [u8],
    /// The largest magnitude of each block of [`MOMENT_BLOCK`] elements; the last block may be shorter.
    pub maxima: &'a mut [f32],
}

impl QuantisedMoment<'_> {
    fn check(&self, len: usize) {
        let (codes, maxima) = (self.codes.len(), self.maxima.len());
        let blocks = len.div_ceil(MOMENT_BLOCK);
        assert!(
            (codes, maxima) == (len, blocks),
            "8-bit moment: {codes} codes and {maxima} maxima instead of {len} and {blocks}"
        );
    }

    /// Cuts off the first `len` elements, whole blocks unless they are all.
    fn split_off(&mut self, len: usize) -> Self {
        fn front<'a, T>(slice: &mut &'a mut [T], len: usize) -> &'a mut [T] {
            slice.split_off_mut(..len).expect("checked before")
        }
        Self { codes: front(&mut self.codes, len), maxima: front(&mut self.maxima, len.div_ceil(MOMENT_BLOCK)) }
    }
}

/// A parameter's elements and what the optimizer keeps for them, with moments in 8 bits.
#[derive(Debug)]
pub struct SteppedInEightBits<'a> {
    /// The parameter.
    pub parameter: &'a mut [f32],
    /// Its gradient.
    pub gradient: &'a [f32],
    /// Decaying mean of its gradients.
    pub first_moment: QuantisedMoment<'a>,
    /// Decaying mean of their squares.
    pub second_moment: QuantisedMoment<'a>,
    /// Decaying mean of the parameter, if one is kept.
    pub average: Option<&'a mut [f32]>,
    /// The parameter, rows of weights, in packed form that [`PackedWeights::renews_in_blocks`].
    pub packed: Option<&'a mut PackedWeights>,
}

impl SteppedInEightBits<'_> {
    fn check(&self) {
        let len = self.parameter.len();
        let average = self.average.as_ref().map_or(len, |average| average.len());
        assert!(
            self.gradient.len() == len && average == len,
            "8-bit step: p has {len} elements, the gradient {}, the average {average}",
            self.gradient.len()
        );
        self.first_moment.check(len);
        self.second_moment.check(len);
        if let Some(packed) = &self.packed {
            let size = packed.renewable().map(|(rows, columns)| rows * columns);
            assert!(
                size == Some(len) && packed.renews_in_blocks(),
                "8-bit step: the packed weights are not those of p, or do not renew in blocks"
            );
        }
    }
}

impl<'a> Cut<'a> for SteppedInEightBits<'a> {
    fn elements(&self) -> usize {
        self.parameter.len()
    }

    fn take_packed(&mut self) -> Option<&'a mut PackedWeights> {
        self.packed.take()
    }

    /// Of whole blocks, but for the last piece.
    fn split_off(&mut self, len: usize) -> Self {
        const CHECKED: &str = "all slices have the same length";
        let len = len.min(self.parameter.len());
        let average = self.average.as_mut();
        Self {
            parameter: self.parameter.split_off_mut(..len).expect(CHECKED),
            gradient: self.gradient.split_off(..len).expect(CHECKED),
            first_moment: self.first_moment.split_off(len),
            second_moment: self.second_moment.split_off(len),
            average: average.map(|average| average.split_off_mut(..len).expect(CHECKED)),
            packed: None,
        }
    }
}

impl PackedWeights {
    /// Whether [`adamw_step_in_eight_bits`] can renew it: the rows that are packed together are whole blocks of moments.
    pub fn renews_in_blocks(&self) -> bool {
        self.renewable().is_some_and(|(_, columns)| (Renewal::ROWS * columns).is_multiple_of(MOMENT_BLOCK))
    }
}

/// [`super::adamw_step`] with moments in 8 bits: the same arithmetic between widening and rounding. The result is a function of the
/// inputs alone, whatever the number of threads and whether weights are packed.
///
/// # Panics
///
/// If the slices of a parameter differ in length, packed weights are not of its size or do not renew in blocks, or `step` is zero.
pub fn adamw_step_in_eight_bits(
    params: &AdamW,
    step: u64,
    grad_scale: f32,
    ema_decay: f32,
    parameters: Vec<SteppedInEightBits<'_>>,
) {
    let factors = Factors::new(params, step, grad_scale, ema_decay);
    let checked = parameters.into_iter().inspect(SteppedInEightBits::check);
    let Pieces { renewals, mut pieces, tasks } = cut(checked);
    let pieces = SharedMut::new(&mut pieces);
    parallel_for(tasks.len(), |task| {
        // SAFETY: tasks have different pieces.
        for (piece, packed) in unsafe { pieces.range(tasks[task].clone()) } {
            dispatch!(|s| step_blocks(s, &factors, piece));
            let Some((renewal, row)) = *packed else { continue };
            for q in 0..renewals[renewal].pieces().len() {
                // SAFETY: these are all the rows of the panel, and no other task has one of them.
                unsafe { renewals[renewal].pack(q, row, piece.parameter) };
            }
            past_caches_done(true);
        }
    });
}

/// The step of all blocks of a piece.
#[inline(always)]
fn step_blocks<S: Simd>(s: S, factors: &Factors, piece: &mut SteppedInEightBits<'_>) {
    let (mut mean, mut square) = ([0.0; MOMENT_BLOCK], [0.0; MOMENT_BLOCK]);
    for (block, begin) in (0..piece.parameter.len()).step_by(MOMENT_BLOCK).enumerate() {
        let end = (begin + MOMENT_BLOCK).min(piece.parameter.len());
        let (mean, square) = (&mut mean[..end - begin], &mut square[..end - begin]);
        let (first, second) = (&mut piece.first_moment, &mut piece.second_moment);
        widen(s, &SIGNED, &first.codes[begin..end], first.maxima[block], mean);
        widen(s, &UNSIGNED, &second.codes[begin..end], second.maxima[block], square);
        let mut widened = Stepped {
            parameter: &mut piece.parameter[begin..end],
            gradient: &piece.gradient[begin..end],
            first_moment: &mut *mean,
            second_moment: &mut *square,
            average: piece.average.as_mut().map(|average| &mut average[begin..end]),
            packed: None,
        };
        adamw_piece(s, factors, &mut widened);
        first.maxima[block] = round_block(s, MomentKind::Signed, mean, &mut first.codes[begin..end]);
        second.maxima[block] = round_block(s, MomentKind::Unsigned, square, &mut second.codes[begin..end]);
    }
}

/// The numbers of a block of codes.
#[inline(always)]
fn widen<S: Simd>(s: S, book: &CodeBook, codes: &[u8], largest: f32, values: &mut [f32]) {
    let scale = s.splat(largest);
    let whole = codes.len() - codes.len() % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        s.store(s.mul(s.look_up(&codes[i..], &book.values), scale), &mut values[i..]);
    }
    for (value, &code) in values[whole..].iter_mut().zip(&codes[whole..]) {
        *value = book.values[usize::from(code)] * largest;
    }
}

/// The codes nearest to the numbers of a block, and its largest magnitude. Blocks of subnormal numbers are blocks of zeros.
#[inline(always)]
fn round_block<S: Simd>(s: S, kind: MomentKind, values: &[f32], codes: &mut [u8]) -> f32 {
    let mut largest = s.splat(0.0);
    for i in (0..values.len()).step_by(S::LANES) {
        largest = s.max(largest, s.abs(load_up_to(s, &values[i..(i + S::LANES).min(values.len())])));
    }
    let largest = s.max_lane(largest);
    if largest < f32::MIN_POSITIVE {
        codes.fill(kind.zero());
        return 0.0;
    }
    let inverse = s.splat(1.0 / largest);
    let whole = values.len() - values.len() % S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        s.store_bytes(nearest(s, kind, inverse, s.load(&values[i..])), &mut codes[i..]);
    }
    if whole < values.len() {
        let mut rest = [0f32; MOMENT_BLOCK];
        s.store(nearest(s, kind, inverse, s.load_part(&values[whole..])), &mut rest);
        for (code, nearest) in codes[whole..].iter_mut().zip(rest) {
            *code = nearest as u8;
        }
    }
    largest
}

/// The codes nearest to numbers that are divided by the largest magnitude of their block.
#[inline(always)]
fn nearest<S: Simd>(s: S, kind: MomentKind, inverse: S::V, value: S::V) -> S::V {
    let rank = rank(s, kind.book(), s.mul(s.abs(value), inverse));
    match kind {
        MomentKind::Unsigned => rank,
        MomentKind::Signed => {
            let zero = s.splat(f32::from(kind.zero()));
            // One has no negative: the number below it is the nearest.
            s.select_lt(value, s.splat(0.0), s.sub(zero, s.min(rank, zero)), s.add(zero, rank))
        }
    }
}

/// The ranks of the numbers nearest to magnitudes of 0 to 1.
#[inline(always)]
fn rank<S: Simd>(s: S, book: &CodeBook, magnitude: S::V) -> S::V {
    let mut decade = s.splat(0.0);
    for (number, from) in book.decades.from.iter().enumerate().take(DECADES).skip(1) {
        decade = s.select_lt(magnitude, s.splat(*from), decade, s.splat(number as f32));
    }
    let Decades { first, last, scale, offset, .. } = &book.decades;
    let within = s.round(s.fma(magnitude, s.pick(decade, scale), s.pick(decade, offset)));
    let rank = s.min(s.max(within, s.pick(decade, first)), s.pick(decade, last));
    let rank = s.select_lt(magnitude, s.splat(book.most), rank, s.splat(book.last));
    let zero = s.splat(0.0);
    let rank = s.select_lt(zero, magnitude, rank, zero);
    s.select_lt(magnitude, s.splat(book.least), zero, rank)
}

/// The nearest codes of a moment and the largest magnitude of each of its blocks.
pub fn quantise_moment(kind: MomentKind, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let mut codes = vec![kind.zero(); values.len()];
    let mut maxima = vec![0.0; values.len().div_ceil(MOMENT_BLOCK)];
    let blocks = values.chunks(MOMENT_BLOCK).zip(codes.chunks_mut(MOMENT_BLOCK));
    for ((values, codes), largest) in blocks.zip(&mut maxima) {
        *largest = dispatch!(|s| round_block(s, kind, values, codes));
    }
    (codes, maxima)
}

/// The numbers of a moment.
///
/// # Panics
///
/// If there is not one number in `maxima` for each block of codes.
pub fn widen_moment(kind: MomentKind, codes: &[u8], maxima: &[f32]) -> Vec<f32> {
    assert!(maxima.len() == codes.len().div_ceil(MOMENT_BLOCK), "8-bit moment: a maximum for each block");
    let mut values = vec![0.0; codes.len()];
    for_chunks(&mut values, MOMENT_BLOCK, |i, values| {
        dispatch!(|s| widen(s, kind.book(), &codes[i * MOMENT_BLOCK..][..values.len()], maxima[i], values));
    });
    values
}

#[cfg(test)]
mod tests {
    use super::super::adamw_step;
    use super::*;
    use crate::threads::set_threads;

    fn numbers(len: usize, seed: u32) -> Vec<f32> {
        let wave = |i: usize| ((i as f32 + seed as f32 * 0.7) * 1.37).sin();
        (0..len).map(|i| wave(i).powi(3) * 10f32.powi(i as i32 % 5 - 3)).collect()
    }

    /// The nearest number by search.
    fn nearest(kind: MomentKind, value: f32) -> f32 {
        let distance = |code: &&f32| (f64::from(**code) - f64::from(value)).abs();
        let skipped = usize::from(kind == MomentKind::Unsigned && value > 0.0);
        let by_distance = |a: &&f32, b: &&f32| distance(a).total_cmp(&distance(b));
        *kind.codes()[skipped..].iter().min_by(by_distance).expect("256 codes")
    }

    #[test]
    fn codes_ascend_and_keep_themselves() {
        for kind in [MomentKind::Signed, MomentKind::Unsigned] {
            let book = kind.codes();
            assert!(book.windows(2).all(|pair| pair[0] < pair[1]), "{kind:?}");
            assert_eq!(book[usize::from(kind.zero())], 0.0);
            // One is among them, so that numbers are divided by it.
            let (codes, maxima) = quantise_moment(kind, book);
            assert_eq!(maxima, [1.0]);
            assert_eq!(codes, (0..=255).collect::<Vec<u8>>(), "{kind:?}");
        }
    }

    #[test]
    fn rounding_finds_the_nearest_code() {
        for kind in [MomentKind::Signed, MomentKind::Unsigned] {
            let mut values: Vec<f32> = (0..4000).map(|i| 10f32.powf(-8.0 * i as f32 / 4000.0)).collect();
            values.extend(kind.codes().windows(2).map(|pair| 0.5 * pair[0] + 0.5 * pair[1]));
            for value in values.into_iter().flat_map(|value| [value, value * 1.01, value * 0.99, -value]) {
                if value.abs() > 1.0 || (kind == MomentKind::Unsigned && value < 0.0) {
                    continue;
                }
                let (codes, maxima) = quantise_moment(kind, &[1.0, value]);
                let got = widen_moment(kind, &codes, &maxima)[1];
                let (own, best) = ((got - value).abs(), (nearest(kind, value) - value).abs());
                assert!(own <= best * 1.0002 + 1e-12, "{kind:?} {value}: {got} is {own} off, and {best} can be");
            }
        }
    }

    #[test]
    fn extremes_stay_what_they_are() {
        for kind in [MomentKind::Signed, MomentKind::Unsigned] {
            for values in [vec![0.0; 300], vec![1e-40; 300], Vec::new()] {
                let (codes, maxima) = quantise_moment(kind, &values);
                assert!(codes.iter().all(|&code| code == kind.zero()) && maxima.iter().all(|&max| max == 0.0));
                assert!(widen_moment(kind, &codes, &maxima).iter().all(|&value| value == 0.0));
            }
            let (codes, maxima) = quantise_moment(kind, &[f32::INFINITY, 1.0]);
            assert!(!widen_moment(kind, &codes, &maxima)[0].is_finite(), "{kind:?}");
            let (codes, maxima) = quantise_moment(kind, &[3e38, 1e-38]);
            assert!(widen_moment(kind, &codes, &maxima).iter().all(|value| value.is_finite()));
        }
        let (codes, maxima) = quantise_moment(MomentKind::Unsigned, &[1.0, 1e-20]);
        assert!(widen_moment(MomentKind::Unsigned, &codes, &maxima)[1] > 0.0, "a square above zero stays above zero");
    }

    /// A parameter of a test with its moments.
    #[derive(Clone, PartialEq, Debug)]
    struct Held {
        parameter: Vec<f32>,
        gradient: Vec<f32>,
        first: (Vec<u8>, Vec<f32>),
        second: (Vec<u8>, Vec<f32>),
        average: Option<Vec<f32>>,
    }

    impl Held {
        fn new(len: usize, seed: u32) -> Self {
            let squares: Vec<f32> = numbers(len, seed + 2).into_iter().map(|value| value * value).collect();
            Self {
                parameter: numbers(len, seed),
                gradient: numbers(len, seed + 1),
                first: quantise_moment(MomentKind::Signed, &numbers(len, seed + 2)),
                second: quantise_moment(MomentKind::Unsigned, &squares),
                average: seed.is_multiple_of(2).then(|| numbers(len, seed + 3)),
            }
        }

        fn stepped(&mut self) -> SteppedInEightBits<'_> {
            SteppedInEightBits {
                parameter: &mut self.parameter,
                gradient: &self.gradient,
                first_moment: QuantisedMoment { codes: &mut self.first.0, maxima: &mut self.first.1 },
                second_moment: QuantisedMoment { codes: &mut self.second.0, maxima: &mut self.second.1 },
                average: self.average.as_deref_mut(),
                packed: None,
            }
        }
    }

    /// Widened, stepped and rounded moment by moment, the way that the kernel does in one pass.
    fn by_steps(mut held: Held, params: &AdamW) -> Held {
        let mut first = widen_moment(MomentKind::Signed, &held.first.0, &held.first.1);
        let mut second = widen_moment(MomentKind::Unsigned, &held.second.0, &held.second.1);
        let stepped = Stepped {
            parameter: &mut held.parameter,
            gradient: &held.gradient,
            first_moment: &mut first,
            second_moment: &mut second,
            average: held.average.as_deref_mut(),
            packed: None,
        };
        adamw_step(params, 3, 0.5, 0.9, [stepped]);
        held.first = quantise_moment(MomentKind::Signed, &first);
        held.second = quantise_moment(MomentKind::Unsigned, &second);
        held
    }

    #[test]
    fn a_step_is_that_of_f32_between_widening_and_rounding() {
        let params = AdamW { lr: 1e-2, weight_decay: 0.1, ..AdamW::default() };
        let lens = [0, 1, 17, 255, 256, 257, 5000, 40_000, 16_385];
        let start: Vec<Held> = lens.iter().zip(0..).map(|(&len, seed)| Held::new(len, seed)).collect();
        let want: Vec<Held> = start.iter().map(|held| by_steps(held.clone(), &params)).collect();
        for threads in [1, 2, 3] {
            set_threads(threads);
            let mut got = start.clone();
            adamw_step_in_eight_bits(&params, 3, 0.5, 0.9, got.iter_mut().map(Held::stepped).collect());
            assert!(got == want, "{threads} threads");
        }
    }

    #[test]
    fn packed_weights_get_the_new_values() {
        for (rows, columns) in [(70, 40), (33, 8), (64, 2056)] {
            let mut plain = Held::new(rows * columns, 4);
            let mut held = plain.clone();
            let Some(mut packed) = PackedWeights::for_linear(&held.parameter, rows, columns) else { return };
            assert!(packed.renews_in_blocks());
            for (held, packed) in [(&mut plain, None), (&mut held, Some(&mut packed))] {
                let stepped = SteppedInEightBits { packed, ..held.stepped() };
                adamw_step_in_eight_bits(&AdamW::default(), 3, 0.5, 0.9, vec![stepped]);
            }
            assert!(plain == held, "packing changes the step");
            let anew = PackedWeights::for_linear(&held.parameter, rows, columns).expect("packed before");
            assert!(packed.unpack() == anew.unpack(), "{rows} x {columns}");
        }
        let other = PackedWeights::for_linear(&numbers(70 * 36, 0), 70, 36);
        assert!(other.is_none_or(|packed| !packed.renews_in_blocks()));
    }
}
