//! Linear layers: `y = x w^T + bias`.

use crate::element::Element;
use crate::pointwise::sum_rows;
use crate::product::{Dense, Epilogue, Operand, Rows, product};

/// `y[m, n] = x[m, k] w[n, k]^T + bias[n] + residual[m, n]`.
///
/// # Panics
///
/// If a slice does not have the length its shape says.
pub fn linear_forward<T: Element>(
    x: &[T],
    w: &[f32],
    bias: Option<&[f32]>,
    residual: Option<&[T]>,
    y: &mut [T],
    m: usize,
    k: usize,
    n: usize,
) {
    assert!(w.len() == n * k, "linear_forward: w has {} elements, not {n} x {k}", w.len());
    check_forward("linear_forward", x, bias, residual, y, (m, k, n));
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

/// `dx[m, k] = dy[m, n] w[n, k]`.
///
/// # Panics
///
/// If a slice does not have the length its shape says.
pub fn linear_backward_input<T: Element>(dy: &[T], w: &[f32], dx: &mut [T], m: usize, k: usize, n: usize) {
    assert!(dy.len() == m * n, "linear_backward_input: dy has {} elements, not {m} x {n}", dy.len());
    assert!(w.len() == n * k, "linear_backward_input: w has {} elements, not {n} x {k}", w.len());
    assert!(dx.len() == m * k, "linear_backward_input: dx has {} elements, not {m} x {k}", dx.len());
    product(
        (m, k, n),
        &Operand { source: Dense { data: dy, stride: n }, k_rows: false },
        &Operand { source: Dense { data: w, stride: k }, k_rows: true },
        true,
        (dx, Rows::Linear { stride: k }),
        Epilogue::default(),
    );
}

/// `dw[n, k] = dy[m, n]^T x[m, k]` and `db[n]`, the sum of the rows of dy. Both are overwritten.
///
/// # Panics
///
/// If a slice does not have the length its shape says.
pub fn linear_backward_weight<T: Element>(
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
    product(
        (n, k, m),
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
