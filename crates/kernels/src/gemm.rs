//! General matrix products.

use crate::element::Element;
use crate::product::{Dense, Epilogue, Operand, Rows, product};

/// The operands of [`gemm`] that lie transposed in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// A is `[m, k]`, B is `[k, n]`.
    NN,
    /// A is `[m, k]`, B is `[n, k]`: the forward pass of a linear layer.
    NT,
    /// A is `[k, m]`, B is `[k, n]`: the weight gradient of a linear layer.
    TN,
    /// A is `[k, m]`, B is `[n, k]`.
    TT,
}

/// A dense matrix in memory: rows of contiguous elements, `row_stride` elements apart.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Distance between the beginnings of rows, at least the number of columns.
    pub row_stride: usize,
}

/// See [`crate::gemm`].
pub(crate) fn gemm<A: Element, B: Element, C: Element>(
    layout: Layout,
    (m, n, k): (usize, usize, usize),
    a: Matrix<A>,
    b: Matrix<B>,
    c: &mut [C],
    accumulate: bool,
) {
    let a_rows = matches!(layout, Layout::TN | Layout::TT);
    let b_rows = matches!(layout, Layout::NN | Layout::TN);
    check("A", a.data.len(), a.row_stride, if a_rows { (k, m) } else { (m, k) });
    check("B", b.data.len(), b.row_stride, if b_rows { (k, n) } else { (n, k) });
    assert!(c.len() == m * n, "gemm: C has {} elements, not {m} x {n}", c.len());
    product(
        (m.into(), n, k),
        &Operand { source: Dense { data: a.data, stride: a.row_stride }, k_rows: a_rows },
        &Operand { source: Dense { data: b.data, stride: b.row_stride }, k_rows: b_rows },
        true,
        (c, Rows::Linear { stride: n }),
        Epilogue { accumulate, ..Epilogue::default() },
    );
}

fn check(name: &str, len: usize, stride: usize, (rows, columns): (usize, usize)) {
    if rows > 0 && columns > 0 {
        assert!(stride >= columns, "gemm: rows of {name} are {stride} apart and {columns} long");
        let needed = (rows - 1) * stride + columns;
        assert!(len >= needed, "gemm: {name} has {len} elements, needs {needed}");
    }
}
