//! Weights that are packed once and used in many products.

use half::bf16;

use crate::conv::Conv2dShape;
use crate::element::Element;
use crate::product::{Dense, Epilogue, GATED, Operand, Output, Rows, Source};
#[cfg(target_arch = "x86_64")]
use crate::product16::{PackedRight, PackedRows, Renewal as ProductRenewal, product_packed};
use crate::simd::Simd;
use crate::threads::SharedMut;
#[cfg(target_arch = "x86_64")]
use crate::winograd16::{self, FilterRenewal, Filters, Pass};
use std::ops::Range;

/// Stands where no instructions want packed weights: there are none.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) enum PackedRight {}

#[cfg(not(target_arch = "x86_64"))]
impl PackedRight {
    fn pack<B: Source>(_: &Operand<B>, _: usize, _: usize, _: usize) -> Option<Self> {
        None
    }
    fn size(&self) -> (usize, usize) {
        match *self {}
    }
    fn bytes(&self) -> usize {
        match *self {}
    }
    fn gives_rows(&self) -> bool {
        match *self {}
    }
    fn renew(&mut self) -> ProductRenewal<'_> {
        match *self {}
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[derive(Clone, Copy)]
struct PackedRows<'a>(&'a PackedRight);

#[cfg(not(target_arch = "x86_64"))]
impl Source for PackedRows<'_> {
    const DIRECT: bool = false;
    const HALF: bool = true;
    fn fill<S: Simd, E: Element>(&self, _: S, _: usize, _: usize, _: &mut [E]) {
        match *self.0 {}
    }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) enum ProductRenewal<'a> {
    #[expect(dead_code)]
    None(&'a PackedRight),
}

#[cfg(not(target_arch = "x86_64"))]
impl ProductRenewal<'_> {
    fn columns(&self) -> usize {
        match *self {
            Self::None(right) => match *right {},
        }
    }
    fn pieces(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        std::iter::empty()
    }
    unsafe fn pack(&self, _: usize, _: usize, _: &[f32]) {}
}

#[cfg(not(target_arch = "x86_64"))]
fn product_packed<A: Source>(_: usize, _: &Operand<A>, b: &PackedRight, _: &Output<bf16>) {
    match *b {}
}

/// What weights are packed for.
enum Packing {
    /// Products of matrices.
    Product(PackedRight),
    /// Convolutions by minimal filtering.
    #[cfg(target_arch = "x86_64")]
    Filters(Filters),
}

impl Packing {
    fn size(&self) -> (usize, usize) {
        match self {
            Self::Product(right) => right.size(),
            #[cfg(target_arch = "x86_64")]
            Self::Filters(filters) => filters.size(),
        }
    }
}

/// Packed weights that get new values.
pub(crate) enum Renewal<'a> {
    /// Of products of matrices.
    Product(ProductRenewal<'a>),
    /// Of convolutions by minimal filtering.
    #[cfg(target_arch = "x86_64")]
    Filters(FilterRenewal<'a>),
}

impl Renewal<'_> {
    /// Rows that are packed together.
    pub(crate) const ROWS: usize = 32;

    /// Columns of a row.
    pub(crate) fn columns(&self) -> usize {
        match self {
            Self::Product(right) => right.columns(),
            #[cfg(target_arch = "x86_64")]
            Self::Filters(filters) => filters.columns(),
        }
    }

    /// Ranges of columns that are packed together, in order.
    pub(crate) fn pieces(&self) -> Vec<Range<usize>> {
        match self {
            Self::Product(right) => right.pieces().collect(),
            #[cfg(target_arch = "x86_64")]
            Self::Filters(filters) => std::iter::once(0..filters.columns()).collect(),
        }
    }

    /// Packs piece `q` of the rows from `row` on, a multiple of [`Renewal::ROWS`]; `w` holds whole rows, at most as many.
    ///
    /// # Safety
    ///
    /// No other thread may pack the same piece of the same rows meanwhile, and none may read what this one has packed before it has
    /// called [`past_caches_done`](crate::stream::past_caches_done).
    pub(crate) unsafe fn pack(&self, q: usize, row: usize, w: &[f32]) {
        // SAFETY: the contract of this function.
        unsafe {
            match self {
                Self::Product(right) => right.pack(q, row, w),
                #[cfg(target_arch = "x86_64")]
                Self::Filters(filters) => filters.transform(row, w),
            }
        }
    }
}

/// The weights of a linear layer or a convolution, rounded to bf16 where they are f32, and in the order in which the products with bf16
/// activations read them. The results are the bits that
/// plain weights give.
pub struct PackedWeights {
    packing: Packing,
    /// Whether values and gates stand in panels side by side.
    gated: bool,
    /// Whether gradients of the layer's input can be computed from it.
    for_input: bool,
}

/// Weights `[2 c, k]` of values and gates, in panels of [`GATED`] rows of each.
struct GatedRows<'a, W> {
    rows: Dense<'a, W>,
    c: usize,
}

impl<W: Element> Source for GatedRows<'_, W> {
    const DIRECT: bool = false;
    const HALF: bool = false;

    #[inline(always)]
    fn fill<S: Simd, E: Element>(&self, s: S, row: usize, column: usize, out: &mut [E]) {
        let (panel, place) = (row / (2 * GATED), row % (2 * GATED));
        let half = if place < GATED { place } else { self.c + place - GATED };
        self.rows.fill(s, panel * GATED + half, column, out);
    }
}

impl std::fmt::Debug for PackedWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (n, k) = self.packing.size();
        write!(f, "PackedWeights({n} x {k}, gated: {})", self.gated)
    }
}

impl PackedWeights {
    /// Packs the `[n, k]` weights of a linear layer; `None` where bf16 products gain nothing by it.
    ///
    /// # Panics
    ///
    /// If the slice does not have the length its shape says.
    pub fn for_linear<W: Element>(w: &[W], n: usize, k: usize) -> Option<Self> {
        assert!(w.len() == n * k, "PackedWeights: w has {} elements, not {n} x {k}", w.len());
        let operand = Operand { source: Dense { data: w, stride: k }, k_rows: false };
        PackedRight::pack(&operand, n, k, k).map(|right| Self {
            for_input: right.gives_rows(),
            packing: Packing::Product(right),
            gated: false,
        })
    }

    /// Packs the `[2 c, k]` weights of a linear layer whose outputs are c values and c gates; `None` where bf16 products gain
    /// nothing by it, or c is not a multiple of 16.
    ///
    /// # Panics
    ///
    /// If the slice does not have the length its shape says.
    pub fn for_linear_geglu<W: Element>(w: &[W], c: usize, k: usize) -> Option<Self> {
        assert!(w.len() == 2 * c * k, "PackedWeights: w has {} elements, not {} x {k}", w.len(), 2 * c);
        if !c.is_multiple_of(GATED) {
            return None;
        }
        let operand = Operand { source: GatedRows { rows: Dense { data: w, stride: k }, c }, k_rows: false };
        PackedRight::pack(&operand, 2 * c, k, k).map(|right| Self {
            packing: Packing::Product(right),
            gated: true,
            for_input: false,
        })
    }

    /// Packs the `[out_channels, kernel height, kernel width, in_channels]` weights of a convolution, for all shapes that
    /// [share](Conv2dShape::minimal_filtering) its way of computing. `None` where bf16 products gain nothing by it.
    ///
    /// # Panics
    ///
    /// If the slice does not have the length its shape says.
    pub fn for_conv<W: Element>(shape: &Conv2dShape, w: &[W]) -> Option<Self> {
        let (n, k) = (shape.out_channels, shape.patch());
        assert!(w.len() == n * k, "PackedWeights: w has {} elements, not {n} x {k}", w.len());
        #[cfg(target_arch = "x86_64")]
        if let Some(token) = winograd16::suits(shape) {
            let packing = Packing::Filters(Filters::new(token, w, n, shape.in_channels));
            return Some(Self { packing, gated: false, for_input: true });
        }
        let operand = Operand { source: Dense { data: w, stride: k }, k_rows: false };
        let right = PackedRight::pack(&operand, n, k, shape.segment())?;
        let for_input = right.gives_rows() && shape.in_channels.is_multiple_of(32);
        Some(Self { packing: Packing::Product(right), gated: false, for_input })
    }

    /// Memory that the weights take, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.packing {
            Packing::Product(right) => right.bytes(),
            #[cfg(target_arch = "x86_64")]
            Packing::Filters(filters) => filters.bytes(),
        }
    }

    /// Whether gradients of the layer's input can be computed from it: where inputs and outputs are multiples of 32, and for
    /// weights that were not packed for GEGLU.
    pub fn gives_input_gradients(&self) -> bool {
        self.for_input
    }

    /// Rows and columns, `None` for weights that were packed for GEGLU: only others are packed anew by optimizer steps.
    pub(crate) fn renewable(&self) -> Option<(usize, usize)> {
        (!self.gated).then(|| self.packing.size())
    }

    pub(crate) fn renew(&mut self) -> Renewal<'_> {
        match &mut self.packing {
            Packing::Product(right) => Renewal::Product(right.renew()),
            #[cfg(target_arch = "x86_64")]
            Packing::Filters(filters) => Renewal::Filters(filters.renew()),
        }
    }

    fn check(&self, op: &str, n: usize, k: usize, gated: bool) {
        let (packed_n, packed_k) = self.packing.size();
        assert!(self.gated == gated, "{op}: the weights were packed for another use");
        assert!((n, k) == (packed_n, packed_k), "{op}: the packed weights are {packed_n} x {packed_k}, not {n} x {k}");
    }

    /// The weights of products of matrices.
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
    fn right(&self, op: &str) -> &PackedRight {
        match &self.packing {
            Packing::Product(right) => right,
            #[cfg(target_arch = "x86_64")]
            Packing::Filters(_) => panic!("{op}: the weights were packed for another shape"),
        }
    }

    /// The filters of convolutions by minimal filtering.
    #[cfg(target_arch = "x86_64")]
    fn filters(&self, op: &str) -> &Filters {
        match &self.packing {
            Packing::Filters(filters) => filters,
            Packing::Product(_) => panic!("{op}: the weights were packed for another shape"),
        }
    }

    /// `C = A W^T` through an epilogue; rows of C are contiguous.
    pub(crate) fn product<A: Source>(&self, m: usize, a: &Operand<A>, c: &mut [bf16], epilogue: Epilogue<bf16>) {
        let right = self.right("product");
        let (n, _) = right.size();
        let data = SharedMut::new(c);
        let stride = if self.gated { n / 2 } else { n };
        product_packed(m, a, right, &Output { data: &data, rows: Rows::Linear { stride }, n, epilogue });
    }
}

/// [`crate::linear_forward`] on packed weights.
///
/// # Panics
///
/// If a slice or the weights do not have the size the shape says.
pub fn linear_forward_packed(
    x: &[bf16],
    w: &PackedWeights,
    bias: Option<&[f32]>,
    residual: Option<&[bf16]>,
    y: &mut [bf16],
    m: usize,
    k: usize,
    n: usize,
) {
    w.check("linear_forward_packed", n, k, false);
    crate::linear::check_forward("linear_forward_packed", x, bias, residual, y, (m, k, n));
    let rows = Operand { source: Dense { data: x, stride: k }, k_rows: false };
    w.product(m, &rows, y, Epilogue { bias, residual, ..Epilogue::default() });
}

/// `y = value gelu(gate)` with `(value, gate) = x w^T + bias`: a linear layer of 2 c outputs and [`crate::geglu_forward`] in one
/// go, with the bits that the two give. x is `[m, k]`, bias `[2 c]`, y `[m, c]`.
///
/// # Panics
///
/// If a slice or the weights do not have the size the shape says.
pub fn linear_geglu_forward_packed(
    x: &[bf16],
    w: &PackedWeights,
    bias: Option<&[f32]>,
    y: &mut [bf16],
    m: usize,
    k: usize,
    c: usize,
) {
    const OP: &str = "linear_geglu_forward_packed";
    w.check(OP, 2 * c, k, true);
    crate::linear::check_forward(OP, x, None, None, y, (m, k, c));
    assert!(bias.is_none_or(|bias| bias.len() == 2 * c), "{OP}: the bias does not have {} elements", 2 * c);
    let rows = Operand { source: Dense { data: x, stride: k }, k_rows: false };
    w.product(m, &rows, y, Epilogue { bias, gated: true, ..Epilogue::default() });
}

/// [`crate::conv2d_forward`] on packed weights.
///
/// # Panics
///
/// If a slice or the weights do not have the size the shape says, or the weights were packed for another
/// [way of computing](Conv2dShape::minimal_filtering).
pub fn conv2d_forward_packed(
    shape: &Conv2dShape,
    x: &[bf16],
    w: &PackedWeights,
    bias: Option<&[f32]>,
    channel_add: Option<&[bf16]>,
    residual: Option<&[bf16]>,
    y: &mut [bf16],
) {
    w.check("conv2d_forward_packed", shape.out_channels, shape.patch(), false);
    shape.check("conv2d_forward_packed", x.len(), shape.weight_len(), y.len());
    let epilogue = shape.epilogue("conv2d_forward_packed", bias, channel_add, residual);
    #[cfg(target_arch = "x86_64")]
    if shape.minimal_filtering() {
        let filters = w.filters("conv2d_forward_packed");
        return Output::to_rows(y, shape.out_channels, epilogue, |out| {
            winograd16::convolve(Pass::Forward, shape, x, filters, out)
        });
    }
    shape.packed_product(x, w, y, epilogue);
}

/// [`crate::linear_backward_input`] on packed weights, with the bits that plain ones give.
///
/// # Panics
///
/// If a slice or the weights do not have the size the shape says, or the weights do not give input gradients.
pub fn linear_backward_input_packed(dy: &[bf16], w: &PackedWeights, dx: &mut [bf16], m: usize, k: usize, n: usize) {
    const OP: &str = "linear_backward_input_packed";
    w.check(OP, n, k, false);
    assert!(w.gives_input_gradients(), "{OP}: {n} x {k} weights give no input gradients");
    assert!(dy.len() == m * n, "{OP}: dy has {} elements, not {m} x {n}", dy.len());
    assert!(dx.len() == m * k, "{OP}: dx has {} elements, not {m} x {k}", dx.len());
    crate::linear::backward_input(dy, PackedRows(w.right(OP)), dx, (m, k, n));
}

/// [`crate::conv2d_backward_input`] on packed weights, with the bits that plain ones give.
///
/// # Panics
///
/// If a slice or the weights do not have the size the shape says, the weights do not give input gradients, or they were packed for another
/// [way of computing](Conv2dShape::minimal_filtering).
pub fn conv2d_backward_input_packed(shape: &Conv2dShape, dy: &[bf16], w: &PackedWeights, dx: &mut [bf16]) {
    const OP: &str = "conv2d_backward_input_packed";
    w.check(OP, shape.out_channels, shape.patch(), false);
    assert!(w.gives_input_gradients(), "{OP}: these weights give no input gradients");
    shape.check(OP, dx.len(), shape.weight_len(), dy.len());
    #[cfg(target_arch = "x86_64")]
    if shape.minimal_filtering() {
        let filters = w.filters(OP);
        return Output::to_rows(dx, shape.in_channels, Epilogue::default(), |out| {
            winograd16::convolve(Pass::BackwardInput, shape, dy, filters, out)
        });
    }
    crate::conv::backward_input(shape, dy, PackedRows(w.right(OP)), dx);
}
