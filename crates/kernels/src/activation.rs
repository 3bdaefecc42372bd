//! Activation functions and the gated linear unit of diffusers, forward and backward.

use crate::element::Element;
use crate::math::{gelu, gelu_tanh, gelu_tanh_slope, map1, map2, map3to2, swish, swish_slope};
use crate::simd::{Simd, dispatch};
use crate::threads::for_chunks;

/// Elements of a task.
const CHUNK: usize = 16 * 1024;

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)`, Phi the normal distribution function: the exact form, with erf.
    Gelu,
    /// `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// `x sigmoid(1.702 x)`: CLIP's.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
}

/// The factor of [`Activation::QuickGelu`].
const QUICK: f32 = 1.702;

#[inline(always)]
fn value<S: Simd, T: Element>(s: S, kind: Activation, x: S::V) -> S::V {
    match kind {
        Activation::Silu => swish::<S, T>(s, x, 1.0),
        Activation::Gelu => gelu::<S, T>(s, x).0,
        Activation::GeluTanh => gelu_tanh::<S, T>(s, x),
        Activation::QuickGelu => swish::<S, T>(s, x, QUICK),
        // The operand that is returned for NaN stands second.
        Activation::Relu => s.max(s.splat(0.0), x),
    }
}

#[inline(always)]
fn slope<S: Simd, T: Element>(s: S, kind: Activation, x: S::V) -> S::V {
    match kind {
        Activation::Silu => swish_slope::<S, T>(s, x, 1.0),
        Activation::Gelu => gelu::<S, f32>(s, x).1,
        Activation::GeluTanh => gelu_tanh_slope::<S, T>(s, x),
        Activation::QuickGelu => swish_slope::<S, T>(s, x, QUICK),
        Activation::Relu => s.select_lt(s.splat(0.0), x, s.splat(1.0), s.splat(0.0)),
    }
}

/// Evaluates `$body` with `$kind` replaced by each constant in turn, so that the loop inside has no branch.
macro_rules! per_kind {
    ($kind:expr, |$k:ident| $body:expr) => {
        match $kind {
            Activation::Silu => {
                const $k: Activation = Activation::Silu;
                $body
            }
            Activation::Gelu => {
                const $k: Activation = Activation::Gelu;
                $body
            }
            Activation::GeluTanh => {
                const $k: Activation = Activation::GeluTanh;
                $body
            }
            Activation::QuickGelu => {
                const $k: Activation = Activation::QuickGelu;
                $body
            }
            Activation::Relu => {
                const $k: Activation = Activation::Relu;
                $body
            }
        }
    };
}

/// See [`crate::activation_forward`].
pub(crate) fn activation_forward<T: Element>(kind: Activation, x: &[T], y: &mut [T]) {
    assert!(x.len() == y.len(), "activation_forward: x has {} elements, y {}", x.len(), y.len());
    for_chunks(y, CHUNK, |i, y| {
        let x = &x[i * CHUNK..][..y.len()];
        dispatch!(|s| per_kind!(kind, |KIND| map1(
            s,
            x,
            y,
            #[inline(always)]
            |x| value::<_, T>(s, KIND, x)
        )));
    });
}

/// See [`crate::activation_backward`].
pub(crate) fn activation_backward<T: Element>(kind: Activation, x: &[T], dy: &[T], dx: &mut [T]) {
    let lens = (x.len(), dy.len(), dx.len());
    assert!(lens.0 == lens.1 && lens.0 == lens.2, "activation_backward: x, dy, dx have {lens:?} elements");
    for_chunks(dx, CHUNK, |i, dx| {
        let (x, dy) = (&x[i * CHUNK..][..dx.len()], &dy[i * CHUNK..][..dx.len()]);
        dispatch!(|s| per_kind!(kind, |KIND| map2(
            s,
            x,
            dy,
            dx,
            #[inline(always)]
            |x, dy| s.mul(dy, slope::<_, T>(s, KIND, x))
        )));
    });
}

/// Rows of a task.
fn rows_of_task(c: usize) -> usize {
    (CHUNK / c.max(1)).max(1)
}

/// See [`crate::geglu_forward`].
pub(crate) fn geglu_forward<T: Element>(x: &[T], y: &mut [T], rows: usize, c: usize) {
    assert!(x.len() == rows * 2 * c, "geglu_forward: x has {} elements, not {rows} x {}", x.len(), 2 * c);
    assert!(y.len() == rows * c, "geglu_forward: y has {} elements, not {rows} x {c}", y.len());
    if c == 0 {
        return;
    }
    let step = rows_of_task(c);
    for_chunks(y, step * c, |task, y| {
        let x = &x[task * step * 2 * c..][..2 * y.len()];
        dispatch!(|s| for (x, y) in x.chunks_exact(2 * c).zip(y.chunks_exact_mut(c)) {
            let (value, gate) = x.split_at(c);
            map2(
                s,
                value,
                gate,
                y,
                #[inline(always)]
                |v, g| s.mul(v, gelu::<_, T>(s, g).0),
            );
        });
    });
}

/// See [`crate::geglu_backward`].
pub(crate) fn geglu_backward<T: Element>(x: &[T], dy: &[T], dx: &mut [T], rows: usize, c: usize) {
    assert!(x.len() == rows * 2 * c, "geglu_backward: x has {} elements, not {rows} x {}", x.len(), 2 * c);
    assert!(dx.len() == x.len(), "geglu_backward: dx has {} elements, x {}", dx.len(), x.len());
    assert!(dy.len() == rows * c, "geglu_backward: dy has {} elements, not {rows} x {c}", dy.len());
    if c == 0 {
        return;
    }
    let step = rows_of_task(c);
    for_chunks(dx, step * 2 * c, |task, dx| {
        let begin = task * step * 2 * c;
        let x = &x[begin..][..dx.len()];
        let dy = &dy[begin / 2..][..dx.len() / 2];
        dispatch!(|s| {
            let rows = x.chunks_exact(2 * c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(2 * c));
            for ((x, dy), dx) in rows {
                let (value, gate) = x.split_at(c);
                let (dvalue, dgate) = dx.split_at_mut(c);
                map3to2(
                    s,
                    [value, gate, dy],
                    dvalue,
                    dgate,
                    #[inline(always)]
                    |v, g, dy| {
                        let (gate, slope) = gelu::<_, f32>(s, g);
                        (s.mul(dy, gate), s.mul(dy, s.mul(v, slope)))
                    },
                );
            }
        });
    });
}
