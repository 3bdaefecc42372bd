//! Linear layers: `y = x w^T + bias`.

use crate::element::Element;
use crate::math::{load_up_to, store_up_to};
use crate::pointwise::sum_rows;
use crate::product::{Dense, Epilogue, Operand, RowCount, Rows, Source, product};
use crate::simd::{Simd, dispatch};
use crate::threads::for_chunks;

/// See [`crate::linear_forward`].
pub(crate) fn linear_forward<T: Element>(
    x: &[T],
    w: &[f32],
    bias: Option<&[f32]>,
    residual: Option<&[T]>,
    y: &mut [T],
    m: RowCount,
    k: usize,
    n: usize,
) {
    assert!(w.len() == n * k, "linear_forward: w has {} elements, not {n} x {k}", w.len());
    check_forward("linear_forward", x, bias, residual, y, (m.all, k, n));
    product(
        (m, n, k),
        &Operand { source: Dense { data: x, stride: k }, k_rows: false },
        &Operand { source: Dense { data: w, stride: k }, k_rows: false },
        true,
        (y, Rows::Linear { stride: n }),
        Epilogue { bias, residual, ..Epilogue::default() },
    );
}

/// Checks the operands of a forward pass but the weights.
pub(crate) fn check_forward<T: Element>(
    op: &str,
    x: &[T],
    bias: Option<&[f32]>,
    residual: Option<&[T]>,
    y: &[T],
    (m, k, n): (usize, usize, usize),
) {
    assert!(x.len() == m * k, "{op}: x has {} elements, not {m} x {k}", x.len());
    assert!(y.len() == m * n, "{op}: y has {} elements, not {m} x {n}", y.len());
    assert!(bias.is_none_or(|bias| bias.len() == n), "{op}: the bias does not have {n} elements");
    assert!(residual.is_none_or(|r| r.len() == m * n), "{op}: the residual is not {m} x {n}");
}

/// See [`crate::linear_backward_input`].
pub(crate) fn linear_backward_input<T: Element>(dy: &[T], w: &[f32], dx: &mut [T], m: usize, k: usize, n: usize) {
    assert!(dy.len() == m * n, "linear_backward_input: dy has {} elements, not {m} x {n}", dy.len());
    assert!(w.len() == n * k, "linear_backward_input: w has {} elements, not {n} x {k}", w.len());
    assert!(dx.len() == m * k, "linear_backward_input: dx has {} elements, not {m} x {k}", dx.len());
    backward_input(dy, Dense { data: w, stride: k }, dx, (m, k, n));
}

/// [`linear_backward_input`] with weights `[n, k]` from any source.
pub(crate) fn backward_input<T: Element, W: Source>(dy: &[T], w: W, dx: &mut [T], (m, k, n): (usize, usize, usize)) {
    product(
        (m.into(), k, n),
        &Operand { source: Dense { data: dy, stride: n }, k_rows: false },
        &Operand { source: w, k_rows: true },
        true,
        (dx, Rows::Linear { stride: k }),
        Epilogue::default(),
    );
}

/// See [`crate::linear_backward_weight`].
pub(crate) fn linear_backward_weight<T: Element>(
    dy: &[T],
    x: &[T],
    dw: &mut [f32],
    db: Option<&mut [f32]>,
    m: usize,
    k: usize,
    n: usize,
) {
    assert!(dy.len() == m * n, "linear_backward_weight: dy has {} elements, not {m} x {n}", dy.len());
    assert!(x.len() == m * k, "linear_backward_weight: x has {} elements, not {m} x {k}", x.len());
    assert!(dw.len() == n * k, "linear_backward_weight: dw has {} elements, not {n} x {k}", dw.len());
    if m <= FEW {
        outer_products(dy, x, dw, (m, k, n));
        return db.into_iter().for_each(|db| sum_rows(dy, db, m, n));
    }
    product(
        (n.into(), k, m),
        &Operand { source: Dense { data: dy, stride: n }, k_rows: true },
        &Operand { source: Dense { data: x, stride: k }, k_rows: true },
        true,
        (dw, Rows::Linear { stride: k }),
        Epilogue::default(),
    );
    if let Some(db) = db {
        sum_rows(dy, db, m, n);
    }
}

/// Rows for which tiles and packing are more work than the sums.
const FEW: usize = 4;

/// `dw = dy^T x` for a few rows, in their order: the work is to write dw.
fn outer_products<T: Element>(dy: &[T], x: &[T], dw: &mut [f32], (m, k, n): (usize, usize, usize)) {
    /// Elements of a task.
    const CHUNK: usize = 16 * 1024;
    let rows = CHUNK.div_ceil(k.max(1));
    for_chunks(dw, (rows * k).max(1), |task, dw| {
        dispatch!(|s| for (i, dw) in dw.chunks_exact_mut(k.max(1)).enumerate() {
            outer_row(s, dy, x, dw, (m, task * rows + i, n));
        });
    });
}

/// Row `i` of dw.
#[inline(always)]
fn outer_row<S: Simd, T: Element>(s: S, dy: &[T], x: &[T], dw: &mut [f32], (m, i, n): (usize, usize, usize)) {
    let k = dw.len();
    for c in (0..k).step_by(S::LANES) {
        let end = (c + S::LANES).min(k);
        let mut sum = s.splat(0.0);
        for r in 0..m {
            sum = s.fma(s.splat(dy[r * n + i].to_f32()), load_up_to(s, &x[r * k + c..r * k + end]), sum);
        }
        store_up_to(s, sum, &mut dw[c..end]);
    }
}
