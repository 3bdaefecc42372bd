//! Optimizer steps on f32 master weights.

mod eight_bit;

pub use eight_bit::{
    MOMENT_BLOCK, MomentKind, QuantisedMoment, SteppedInEightBits, adamw_step_in_eight_bits, quantise_moment,
    widen_moment,
};

use crate::math::{load_up_to, store_up_to};
use crate::packed::{PackedWeights, Renewal};
use crate::simd::{Simd, dispatch};
use crate::stream::past_caches_done;
use crate::threads::{SharedMut, for_chunks, parallel_for};
use std::ops::Range;

/// Elements of a task.
const CHUNK: usize = 16 * 1024;

/// Settings of AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019), as in PyTorch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of their squares.
    pub beta2: f32,
    /// Added to the denominator, after the bias correction.
    pub eps: f32,
    /// Decoupled weight decay, times the learning rate per step.
    pub weight_decay: f32,
}

impl Default for AdamW {
    /// PyTorch's defaults: 1e-3, 0.9, 0.999, 1e-8, 0.01.
    fn default() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// Settings of stochastic gradient descent with momentum (Sutskever et al., "On the importance of initialization and
/// momentum in deep learning", 2013), in the form of PyTorch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate of this step.
    pub lr: f32,
    /// The old momentum's share of the new one; 0 keeps none.
    pub momentum: f32,
    /// The part that is taken off the gradient's share of the momentum, from the second step on.
    pub dampening: f32,
    /// True if the step looks ahead along the new momentum; for a momentum without dampening.
    pub nesterov: bool,
    /// The parameter's share that is added to its gradient.
    pub weight_decay: f32,
}

impl Default for Sgd {
    /// PyTorch's defaults: 1e-3, no momentum, no weight decay.
    fn default() -> Self {
        Self { lr: 1e-3, momentum: 0.0, dampening: 0.0, nesterov: false, weight_decay: 0.0 }
    }
}

/// A parameter's elements and what the optimizer keeps for them; all slices have the same length.
#[derive(Debug)]
pub struct Stepped<'a> {
    /// The parameter.
    pub parameter: &'a mut [f32],
    /// Its gradient.
    pub gradient: &'a [f32],
    /// Decaying mean of its gradients, or its momentum; empty for [`sgd_step`] without momentum.
    pub first_moment: &'a mut [f32],
    /// Decaying mean of their squares; empty for [`sgd_step`].
    pub second_moment: &'a mut [f32],
    /// Decaying mean of the parameter, if one is kept.
    pub average: Option<&'a mut [f32]>,
    /// The parameter, rows of weights, in packed form.
    pub packed: Option<&'a mut PackedWeights>,
}

impl Stepped<'_> {
    /// `moments` says of both moments whether the rule keeps them.
    fn check(&self, moments: [bool; 2]) {
        let len = self.parameter.len();
        let lens = [self.gradient.len(), self.first_moment.len(), self.second_moment.len()];
        let average = self.average.as_ref().map_or(len, |average| average.len());
        let needed = [len, if moments[0] { len } else { 0 }, if moments[1] { len } else { 0 }];
        assert!(
            lens == needed && average == len,
            "optimizer step: p has {len} elements, gradient and moments {lens:?} instead of {needed:?}, the average {average}"
        );
        if let Some(packed) = &self.packed {
            let size = packed.renewable().map(|(rows, columns)| rows * columns);
            assert!(size == Some(len), "optimizer step: the packed weights are not those of p");
        }
    }

    /// The elements in `range`.
    fn part(&mut self, range: Range<usize>) -> Stepped<'_> {
        Stepped {
            parameter: &mut self.parameter[range.clone()],
            gradient: &self.gradient[range.clone()],
            first_moment: self.first_moment.get_mut(range.clone()).unwrap_or_default(),
            second_moment: self.second_moment.get_mut(range.clone()).unwrap_or_default(),
            average: self.average.as_mut().map(|average| &mut average[range]),
            packed: None,
        }
    }
}

impl<'a> Cut<'a> for Stepped<'a> {
    fn elements(&self) -> usize {
        self.parameter.len()
    }

    fn take_packed(&mut self) -> Option<&'a mut PackedWeights> {
        self.packed.take()
    }

    fn split_off(&mut self, len: usize) -> Self {
        fn front<'a>(slice: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
            // A moment that the rule does not keep is empty.
            slice.split_off_mut(..len).unwrap_or_default()
        }
        let len = len.min(self.parameter.len());
        Self {
            parameter: front(&mut self.parameter, len),
            gradient: self.gradient.split_off(..len).expect("all slices have the same length"),
            first_moment: front(&mut self.first_moment, len),
            second_moment: front(&mut self.second_moment, len),
            average: self.average.as_mut().map(|average| front(average, len)),
            packed: None,
        }
    }
}

/// One step of all `parameters` in one pass over memory, PyTorch's semantics, with `g' = grad_scale g`:
///
/// `p *= 1 - lr weight_decay; m = beta1 m + (1 - beta1) g'; v = beta2 v + (1 - beta2) g'^2;`
/// `p -= lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)`,
/// and [`ema_step`] with `ema_decay` and the new p where an average is kept. With `eps` of at least 1e-9, v below 2^-120 and what g'
/// below 2^-56 would add to it count as zero.
///
/// `step` counts from 1; `grad_scale` is where clipping and averaging over accumulated batches go. Packed weights get the new values, while
/// these are in the cache. Small parameters share a task, large ones are cut.
///
/// # Panics
///
/// If the slices of a parameter differ in length, packed weights are not of its size or for GEGLU, or `step` is zero.
pub fn adamw_step<'a>(
    params: &AdamW,
    step: u64,
    grad_scale: f32,
    ema_decay: f32,
    parameters: impl IntoIterator<Item = Stepped<'a>>,
) {
    step_all(&Factors::new(params, step, grad_scale, ema_decay), parameters);
}

/// One step of all `parameters` in one pass over memory, PyTorch's semantics, with `g' = grad_scale g`:
///
/// `g' += weight_decay p; b = momentum b + (1 - dampening) g'`, in the first step `b = g'`; `g' = b`, or `g' + momentum b` of
/// Nesterov; `p -= lr g'`, and [`ema_step`] with `ema_decay` and the new p where an average is kept. `b` is the first moment;
/// without momentum both moments are empty.
///
/// `step` counts from 1. Packed weights get the new values, as by [`adamw_step`].
///
/// # Panics
///
/// If the slices of a parameter differ in length, packed weights are not of its size or for GEGLU, or `step` is zero.
pub fn sgd_step<'a>(
    params: &Sgd,
    step: u64,
    grad_scale: f32,
    ema_decay: f32,
    parameters: impl IntoIterator<Item = Stepped<'a>>,
) {
    assert!(step > 0, "optimizer steps count from 1");
    let share = if step == 1 { 1.0 } else { (1.0 - params.dampening as f64) as f32 };
    step_all(&SgdFactors { params: *params, share, grad_scale, ema_rest: rest_of(ema_decay) }, parameters);
}

/// The step of elements.
trait Rule: Sync {
    /// True if there are first and second moments.
    fn moments(&self) -> [bool; 2];

    /// A step of the elements of a piece, each by itself.
    fn step<S: Simd>(&self, s: S, piece: &mut Stepped<'_>);
}

fn step_all<'a, R: Rule>(rule: &R, parameters: impl IntoIterator<Item = Stepped<'a>>) {
    let checked = parameters.into_iter().inspect(|parameter| parameter.check(rule.moments()));
    let Pieces { renewals, mut pieces, tasks } = cut(checked);
    let pieces = SharedMut::new(&mut pieces);
    parallel_for(tasks.len(), |task| {
        // SAFETY: tasks have different pieces.
        for (piece, packed) in unsafe { pieces.range(tasks[task].clone()) } {
            match *packed {
                None => dispatch!(|s| rule.step(s, piece)),
                Some((renewal, row)) => step_and_pack(rule, piece, &renewals[renewal], row),
            }
        }
    });
}

/// A parameter with what is stepped beside it.
trait Cut<'a>: Sized {
    /// Elements of the parameter.
    fn elements(&self) -> usize;

    /// The packed form, which pieces do not have.
    fn take_packed(&mut self) -> Option<&'a mut PackedWeights>;

    /// Cuts off the first `len` elements, or all if they are fewer.
    fn split_off(&mut self, len: usize) -> Self;
}

/// Parameters in pieces.
struct Pieces<'a, P> {
    /// The packed weights that are renewed.
    renewals: Vec<Renewal<'a>>,
    /// Each with the number of its packed weights among them and its first row there.
    pieces: Vec<(P, Option<(usize, usize)>)>,
    /// Those of each task.
    tasks: Vec<Range<usize>>,
}

/// Cuts parameters that were checked into pieces of [`CHUNK`] elements, or of the rows that are packed together.
fn cut<'a, P: Cut<'a>>(parameters: impl IntoIterator<Item = P>) -> Pieces<'a, P> {
    let (mut renewals, mut pieces) = (Vec::new(), Vec::new());
    for mut parameter in parameters {
        let packed = parameter.take_packed().map(PackedWeights::renew);
        let rows = packed.as_ref().map(|packed| (renewals.len(), Renewal::ROWS * packed.columns()));
        renewals.extend(packed);
        let mut begin = 0;
        while parameter.elements() > 0 {
            let len = rows.map_or(CHUNK, |(_, len)| len);
            let packed = rows.map(|(renewal, len)| (renewal, begin / len * Renewal::ROWS));
            pieces.push((parameter.split_off(len), packed));
            begin += len;
        }
    }
    let tasks = group(pieces.iter().map(|(piece, _)| piece.elements()));
    Pieces { renewals, pieces, tasks }
}

/// A step of the rows of a weight from `row` on, which are packed some pieces at a time.
fn step_and_pack<R: Rule>(rule: &R, rows: &mut Stepped<'_>, packed: &Renewal<'_>, row: usize) {
    /// Columns between packing: memory is read fast in long runs, and a panel's rows of so many columns stay in the cache.
    const RUN: usize = 2048;
    let (len, columns) = (rows.parameter.len(), packed.columns());
    let (mut first, mut begin) = (0, 0);
    for (q, piece) in packed.pieces().into_iter().enumerate() {
        if piece.end - begin < RUN && piece.end < columns {
            continue;
        }
        for at in (0..len).step_by(columns) {
            dispatch!(|s| rule.step(s, &mut rows.part(at + begin..at + piece.end)));
        }
        for q in first..=q {
            // SAFETY: these are all the rows of the panel, and no other task has one of them.
            unsafe { packed.pack(q, row, rows.parameter) };
        }
        (first, begin) = (q + 1, piece.end);
    }
    past_caches_done(true);
}

/// Ranges of neighbouring pieces that have [`CHUNK`] elements together, or the one more that a last piece brings.
fn group(pieces: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let mut tasks: Vec<Range<usize>> = Vec::new();
    let mut filled = CHUNK;
    for (i, len) in pieces.enumerate() {
        match tasks.last_mut() {
            Some(task) if filled < CHUNK => task.end = i + 1,
            _ => {
                tasks.push(i..i + 1);
                filled = 0;
            }
        }
        filled += len;
    }
    tasks
}

/// The constants of a step.
struct Factors {
    params: AdamW,
    grad_scale: f32,
    /// Learning rate with the first moment's bias correction.
    rate: f32,
    /// The second moment's bias correction, for its root.
    root: f32,
    /// The factor that weight decay leaves.
    keep: f32,
    /// The new parameter's share of its average.
    ema_rest: f32,
    /// Gradients of smaller magnitude leave the second moment alone, and smaller second moments are zero.
    least: [f32; 2],
}

/// [`Factors::least`]: arithmetic with subnormal numbers is a hundred times slower. The roots of such second moments are nothing beside
/// `eps`, if that is at least [`EPS_BESIDE`]; else none are left out.
const LEAST: [f32; 2] = [1.0 / (1u64 << 56) as f32, 1.0 / (1u128 << 120) as f32];
const EPS_BESIDE: f32 = 1e-9;

impl Factors {
    fn new(params: &AdamW, step: u64, grad_scale: f32, ema_decay: f32) -> Self {
        assert!(step > 0, "optimizer steps count from 1");
        let correction = |beta: f32| 1.0 - (step as f64 * (beta as f64).ln()).exp();
        Self {
            params: *params,
            grad_scale,
            rate: (params.lr as f64 / correction(params.beta1)) as f32,
            root: (1.0 / correction(params.beta2).sqrt()) as f32,
            keep: (1.0 - params.lr as f64 * params.weight_decay as f64) as f32,
            ema_rest: rest_of(ema_decay),
            least: if params.eps >= EPS_BESIDE { LEAST } else { [0.0; 2] },
        }
    }
}

impl Rule for Factors {
    fn moments(&self) -> [bool; 2] {
        [true, true]
    }

    #[inline(always)]
    fn step<S: Simd>(&self, s: S, piece: &mut Stepped<'_>) {
        adamw_piece(s, self, piece);
    }
}

/// The constants of a step of [`sgd_step`].
struct SgdFactors {
    params: Sgd,
    /// The gradient's share of the momentum.
    share: f32,
    grad_scale: f32,
    /// The new parameter's share of its average.
    ema_rest: f32,
}

impl Rule for SgdFactors {
    fn moments(&self) -> [bool; 2] {
        [self.params.momentum != 0.0, false]
    }

    #[inline(always)]
    fn step<S: Simd>(&self, s: S, piece: &mut Stepped<'_>) {
        let Stepped { parameter: p, gradient: g, first_moment: b, average, .. } = piece;
        let Sgd { lr, momentum, nesterov, weight_decay, .. } = self.params;
        let (scale, decay, share) = (s.splat(self.grad_scale), s.splat(weight_decay), s.splat(self.share));
        let (momentum, back, ema_rest) = (s.splat(momentum), s.splat(-lr), s.splat(self.ema_rest));
        for i in (0..p.len()).step_by(S::LANES) {
            let j = (i + S::LANES).min(p.len());
            let weight = load_up_to(s, &p[i..j]);
            let mut g = s.fma(decay, weight, s.mul(load_up_to(s, &g[i..j]), scale));
            if !b.is_empty() {
                let moved = s.fma(momentum, load_up_to(s, &b[i..j]), s.mul(share, g));
                store_up_to(s, moved, &mut b[i..j]);
                g = if nesterov { s.fma(momentum, moved, g) } else { moved };
            }
            let weight = s.fma(back, g, weight);
            store_up_to(s, weight, &mut p[i..j]);
            if let Some(average) = average {
                let moved = moved(s, load_up_to(s, &average[i..j]), weight, ema_rest);
                store_up_to(s, moved, &mut average[i..j]);
            }
        }
    }
}

#[inline(always)]
fn adamw_piece<S: Simd>(s: S, factors: &Factors, piece: &mut Stepped<'_>) {
    let Stepped { parameter: p, gradient: g, first_moment: m, second_moment: v, average, .. } = piece;
    let params = &factors.params;
    let (beta1, beta2) = (s.splat(params.beta1), s.splat(params.beta2));
    let rest1 = s.splat((1.0 - params.beta1 as f64) as f32);
    let rest2 = s.splat((1.0 - params.beta2 as f64) as f32);
    let (grad_scale, rate) = (s.splat(factors.grad_scale), s.splat(factors.rate));
    let (root, keep) = (s.splat(factors.root), s.splat(factors.keep));
    let (eps, ema_rest, zero) = (s.splat(params.eps), s.splat(factors.ema_rest), s.splat(0.0));
    let [least_gradient, least_square] = factors.least.map(
        #[inline(always)]
        |least| s.splat(least),
    );
    for i in (0..p.len()).step_by(S::LANES) {
        let j = (i + S::LANES).min(p.len());
        let g = s.mul(load_up_to(s, &g[i..j]), grad_scale);
        let mean = s.fma(beta1, load_up_to(s, &m[i..j]), s.mul(rest1, g));
        let seen = s.select_lt(s.abs(g), least_gradient, zero, g);
        let square = s.fma(beta2, load_up_to(s, &v[i..j]), s.mul(rest2, s.mul(seen, seen)));
        let square = s.select_lt(square, least_square, zero, square);
        let step = s.div(s.mul(rate, mean), s.fma(s.sqrt(square), root, eps));
        let weight = s.sub(s.mul(load_up_to(s, &p[i..j]), keep), step);
        store_up_to(s, mean, &mut m[i..j]);
        store_up_to(s, square, &mut v[i..j]);
        store_up_to(s, weight, &mut p[i..j]);
        if let Some(average) = average {
            let moved = moved(s, load_up_to(s, &average[i..j]), weight, ema_rest);
            store_up_to(s, moved, &mut average[i..j]);
        }
    }
}

/// `ema = decay ema + (1 - decay) p`.
///
/// # Panics
///
/// If the slices differ in length.
pub fn ema_step(ema: &mut [f32], p: &[f32], decay: f32) {
    assert!(ema.len() == p.len(), "ema_step: ema has {} elements, p {}", ema.len(), p.len());
    let rest = rest_of(decay);
    for_chunks(ema, CHUNK, |i, ema| {
        let p = &p[i * CHUNK..][..ema.len()];
        dispatch!(|s| ema_chunk(s, ema, p, rest));
    });
}

#[inline(always)]
fn ema_chunk<S: Simd>(s: S, ema: &mut [f32], p: &[f32], rest: f32) {
    let rest = s.splat(rest);
    for i in (0..ema.len()).step_by(S::LANES) {
        let j = (i + S::LANES).min(ema.len());
        let new = moved(s, load_up_to(s, &ema[i..j]), load_up_to(s, &p[i..j]), rest);
        store_up_to(s, new, &mut ema[i..j]);
    }
}

/// `1 - decay`, rounded once.
fn rest_of(decay: f32) -> f32 {
    (1.0 - decay as f64) as f32
}

/// In the form `ema + rest (p - ema)`, which leaves an average that equals its weight alone.
#[inline(always)]
fn moved<S: Simd>(s: S, ema: S::V, p: S::V, rest: S::V) -> S::V {
    s.fma(rest, s.sub(p, ema), ema)
}

/// Sums of the squares of gradients, for clipping by the norm, in one pass over all of them. Each is f32 over runs of 1,024,
/// f64 above that, in a fixed order.
pub fn sums_of_squares(gradients: &[&[f32]]) -> Vec<f64> {
    const RUN: usize = 1024;
    let pieces: Vec<&[f32]> = gradients.iter().flat_map(|g| g.chunks(CHUNK)).collect();
    let tasks = group(pieces.iter().map(|piece| piece.len()));
    let mut runs = vec![[0.0f32; CHUNK / RUN]; pieces.len()];
    let shared = SharedMut::new(&mut runs);
    parallel_for(tasks.len(), |task| {
        // SAFETY: tasks have different pieces.
        let runs = unsafe { shared.range(tasks[task].clone()) };
        for (piece, sums) in pieces[tasks[task].clone()].iter().zip(runs) {
            for (run, sum) in piece.chunks(RUN).zip(sums) {
                *sum = dispatch!(|s| squares(s, run));
            }
        }
    });
    let mut rest = runs.as_slice();
    let total = |g: &&[f32]| {
        let (own, others) = rest.split_at(g.len().div_ceil(CHUNK));
        rest = others;
        own.as_flattened().iter().take(g.len().div_ceil(RUN)).map(|&run| f64::from(run)).sum()
    };
    gradients.iter().map(total).collect()
}

#[inline(always)]
fn squares<S: Simd>(s: S, run: &[f32]) -> f32 {
    let mut total = s.splat(0.0);
    for i in (0..run.len()).step_by(S::LANES) {
        let v = load_up_to(s, &run[i..(i + S::LANES).min(run.len())]);
        total = s.fma(v, v, total);
    }
    s.sum(total)
}
