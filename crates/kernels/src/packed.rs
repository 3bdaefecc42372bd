//! Weights that are packed once and used in many products.

use half::bf16;

use crate::conv::Conv2dShape;
use crate::element::Element;
use crate::product::{Dense, Epilogue, GATED, Operand, Output, RowCount, Rows, Source};
#[cfg(target_arch = "x86_64")]
use crate::product16::{PackedRight, PackedRows, Renewal as ProductRenewal, product_packed};
use crate::simd::Simd;
use crate::stored::StoredWeight;
use crate::threads::SharedMut;
#[cfg(target_arch = "x86_64")]
use crate::winograd16::{self, FilterRenewal, Filters, Pass};
use std::ops::Range;
#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

/// Stands where no instructions want packed weights: there are none.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) enum PackedRight {}

#[cfg(not(target_arch = "x86_64"))]
impl PackedRight {
    fn pack<B: Source>(_: &Operand<B>, _: usize, _: usize, _: usize) -> Option<Self> {
        None
    }
    fn pack_stored(_: &StoredWeight, _: usize, _: impl Fn(usize) -> usize + Sync) -> Option<Self> {
        None
    }
    fn unpack(&self, _: impl Fn(usize) -> usize + Sync) -> Vec<bf16> {
        match *self {}
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
fn product_packed<A: Source>(_: RowCount, _: &Operand<A>, b: &PackedRight, _: &Output<bf16>) {
    match *b {}
}

/// The use that weights are packed for.
enum Packing {
    /// Products of matrices.
    Product(PackedRight),
    /// Convolutions by Winograd.
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
    /// Of convolutions by Winograd.
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
    /// True if values and gates stand in panels side by side.
    gated: bool,
    /// True if gradients of the layer's input can be computed from it.
    for_input: bool,
    /// Filters that were transformed for Winograd once and for all, by the first convolution of few tiles.
    #[cfg(target_arch = "x86_64")]
    transformed: OnceLock<Filters>,
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
        self.rows.fill(s, gated_row(row, self.c), column, out);
    }
}

/// The row of `[2 c, k]` values and gates that stands at a place of the panels of [`GatedRows`].
#[inline(always)]
pub(crate) fn gated_row(row: usize, c: usize) -> usize {
    let (panel, place) = (row / (2 * GATED), row % (2 * GATED));
    panel * GATED + if place < GATED { place } else { c + place - GATED }
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
        PackedRight::pack(&operand, n, k, k).map(Self::of_product)
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
        PackedRight::pack(&operand, 2 * c, k, k).map(|right| Self::new(Packing::Product(right), true, false))
    }

    /// Packs the `[out_channels, kernel height, kernel width, in_channels]` weights of a convolution, for all shapes that
    /// [share](Conv2dShape::uses_winograd) its way of computing. `None` where bf16 products gain nothing by it.
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
            return Some(Self::new(packing, false, true));
        }
        Self::for_product_conv(shape, w)
    }

    /// [`PackedWeights::for_conv`] for convolutions that are never computed by Winograd, such as [`conv2d_relu_forward_packed`].
    ///
    /// # Panics
    ///
    /// If the slice does not have the length its shape says.
    pub fn for_product_conv<W: Element>(shape: &Conv2dShape, w: &[W]) -> Option<Self> {
        let (n, k) = (shape.out_channels, shape.patch());
        assert!(w.len() == n * k, "PackedWeights: w has {} elements, not {n} x {k}", w.len());
        let operand = Operand { source: Dense { data: w, stride: k }, k_rows: false };
        let right = PackedRight::pack(&operand, n, k, shape.segment())?;
        let for_input = right.gives_rows() && shape.in_channels.is_multiple_of(32);
        Some(Self::new(Packing::Product(right), false, for_input))
    }

    /// Packs the weights of a linear layer as they are stored, `[n, k]`, in one pass on all threads; they are rounded to nearest even.
    /// `None` where bf16 products gain nothing by it.
    ///
    /// # Panics
    ///
    /// If the weight does not have the length its sizes say, or more than one tap.
    pub fn for_stored_linear(w: &StoredWeight) -> Option<Self> {
        w.check("for_stored_linear", 1);
        PackedRight::pack_stored(w, w.row_len(), |row| row).map(Self::of_product)
    }

    /// [`PackedWeights::for_stored_linear`] for a layer whose outputs are values and as many gates; `None` as well where there are not
    /// a multiple of 16 of each.
    ///
    /// # Panics
    ///
    /// If the weight does not have the length its sizes say, or more than one tap.
    pub fn for_stored_geglu(w: &StoredWeight) -> Option<Self> {
        w.check("for_stored_geglu", 1);
        let c = w.outputs / 2;
        if !w.outputs.is_multiple_of(2) || !c.is_multiple_of(GATED) {
            return None;
        }
        let right = PackedRight::pack_stored(w, w.row_len(), |row| gated_row(row, c))?;
        Some(Self::new(Packing::Product(right), true, false))
    }

    /// Packs the weights of a convolution as they are stored, `[out_channels, in_channels, kernel height, kernel width]`, in one pass on
    /// all threads, for images of any size; they are rounded to nearest even. `None` where bf16 products gain nothing by it.
    ///
    /// Filters are not transformed, which would take 16/9 of the memory: Winograd transforms them in passing, or keeps them transformed
    /// as well once they meet images so small that this would take longer than reading more.
    ///
    /// # Panics
    ///
    /// If the weight does not have the length its sizes say, or other taps than the kernel.
    pub fn for_stored_conv(w: &StoredWeight, kernel: [usize; 2]) -> Option<Self> {
        w.check("for_stored_conv", kernel[0] * kernel[1]);
        let segment = crate::conv::segment(kernel[1] * w.inputs, w.row_len());
        let right = PackedRight::pack_stored(w, segment, |row| row)?;
        let for_input = right.gives_rows() && w.inputs.is_multiple_of(32);
        Some(Self::new(Packing::Product(right), false, for_input))
    }

    fn of_product(right: PackedRight) -> Self {
        let for_input = right.gives_rows();
        Self::new(Packing::Product(right), false, for_input)
    }

    fn new(packing: Packing, gated: bool, for_input: bool) -> Self {
        Self {
            packing,
            gated,
            for_input,
            #[cfg(target_arch = "x86_64")]
            transformed: OnceLock::new(),
        }
    }

    /// The weights as they were packed, rounded to bf16: `[n, k]`, values before gates. `None` for those that were transformed for
    /// Winograd, which are not kept.
    pub fn unpack(&self) -> Option<Vec<bf16>> {
        match &self.packing {
            Packing::Product(right) if self.gated => {
                let c = right.size().0 / 2;
                Some(right.unpack(|row| gated_row(row, c)))
            }
            Packing::Product(right) => Some(right.unpack(|row| row)),
            #[cfg(target_arch = "x86_64")]
            Packing::Filters(_) => None,
        }
    }

    /// True if they were packed for [`linear_geglu_forward_packed`].
    pub fn is_gated(&self) -> bool {
        self.gated
    }

    /// Memory that the weights take, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.packing {
            #[cfg(target_arch = "x86_64")]
            Packing::Product(right) => right.bytes() + self.transformed.get().map_or(0, Filters::bytes),
            #[cfg(not(target_arch = "x86_64"))]
            Packing::Product(right) => right.bytes(),
            #[cfg(target_arch = "x86_64")]
            Packing::Filters(filters) => filters.bytes(),
        }
    }

    /// True if gradients of the layer's input can be computed from it: where inputs and outputs are multiples of 32, and for
    /// weights that were not packed for GEGLU.
    pub fn gives_input_gradients(&self) -> bool {
        self.for_input
    }

    /// Rows and columns, `None` for weights that were packed for GEGLU: only others are packed anew by optimizer steps.
    pub(crate) fn renewable(&self) -> Option<(usize, usize)> {
        (!self.gated).then(|| self.packing.size())
    }

    pub(crate) fn renew(&mut self) -> Renewal<'_> {
        #[cfg(target_arch = "x86_64")]
        self.transformed.take();
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

    /// A convolution by Winograd.
    #[cfg(target_arch = "x86_64")]
    fn convolve(&self, pass: Pass, shape: &Conv2dShape, x: &[bf16], out: &Output<bf16>) {
        match &self.packing {
            Packing::Filters(filters) => winograd16::convolve(pass, shape, x, filters, out),
            Packing::Product(right) if pass == Pass::Forward && winograd16::keeps_filters(shape) => {
                let filters = self.transformed.get_or_init(|| Filters::of_packed(shape, right));
                winograd16::convolve(pass, shape, x, filters, out);
            }
            Packing::Product(right) => winograd16::convolve_packed(pass, shape, x, right, out),
        }
    }

    /// `C = A W^T` through an epilogue; rows of C are contiguous.
    pub(crate) fn product<A: Source>(&self, m: RowCount, a: &Operand<A>, c: &mut [bf16], epilogue: Epilogue<bf16>) {
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
    m: RowCount,
    k: usize,
    n: usize,
) {
    w.check("linear_forward_packed", n, k, false);
    crate::linear::check_forward("linear_forward_packed", x, bias, residual, y, (m.all, k, n));
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
    m: RowCount,
    k: usize,
    c: usize,
) {
    const OP: &str = "linear_geglu_forward_packed";
    w.check(OP, 2 * c, k, true);
    crate::linear::check_forward(OP, x, None, None, y, (m.all, k, c));
    assert!(bias.is_none_or(|bias| bias.len() == 2 * c), "{OP}: the bias does not have {} elements", 2 * c);
    let rows = Operand { source: Dense { data: x, stride: k }, k_rows: false };
    w.product(m, &rows, y, Epilogue { bias, gated: true, ..Epilogue::default() });
}

/// [`crate::conv2d_forward`] on packed weights.
///
/// # Panics
///
/// If a slice or the weights do not have the size the shape says, or the weights were transformed for
/// [Winograd](Conv2dShape::uses_winograd) by [`PackedWeights::for_conv`] and the shape is none for it.
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
    if shape.uses_winograd() {
        return Output::to_rows(y, shape.out_channels, epilogue, |out| w.convolve(Pass::Forward, shape, x, out));
    }
    shape.packed_product(x, w, y, epilogue);
}

/// [`crate::conv2d_relu_forward`] on packed weights.
///
/// # Panics
///
/// If a slice or the weights do not have the size the shape says, or the weights were transformed for Winograd.
pub fn conv2d_relu_forward_packed(
    shape: &Conv2dShape,
    x: &[bf16],
    w: &PackedWeights,
    bias: Option<&[f32]>,
    y: &mut [bf16],
) {
    const OP: &str = "conv2d_relu_forward_packed";
    w.check(OP, shape.out_channels, shape.patch(), false);
    shape.check(OP, x.len(), shape.weight_len(), y.len());
    let epilogue = shape.epilogue(OP, bias, None, None);
    shape.packed_product(x, w, y, Epilogue { relu: true, ..epilogue });
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
/// If a slice or the weights do not have the size the shape says, the weights do not give input gradients, or they were transformed for
/// [Winograd](Conv2dShape::uses_winograd) by [`PackedWeights::for_conv`] and the shape is none for it.
pub fn conv2d_backward_input_packed(shape: &Conv2dShape, dy: &[bf16], w: &PackedWeights, dx: &mut [bf16]) {
    const OP: &str = "conv2d_backward_input_packed";
    w.check(OP, shape.out_channels, shape.patch(), false);
    assert!(w.gives_input_gradients(), "{OP}: these weights give no input gradients");
    shape.check(OP, dx.len(), shape.weight_len(), dy.len());
    #[cfg(target_arch = "x86_64")]
    if shape.uses_winograd() {
        return Output::to_rows(dx, shape.in_channels, Epilogue::default(), |out| {
            w.convolve(Pass::BackwardInput, shape, dy, out)
        });
    }
    crate::conv::backward_input(shape, dy, PackedRows(w.right(OP)), dx);
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::{StoredType, conv2d_backward_input, conv2d_forward};
    use calotype_core::{Purpose, Stream};
    use half::f16;

    /// Numbers that must be rounded to bf16, with some that are easily rounded wrongly.
    fn values(len: usize, index: u64) -> Vec<f32> {
        let mut values = vec![0.0; len];
        Stream::new(17, Purpose::Evaluation, index).fill_normal(&mut values);
        let special = [f32::from_bits(0x3f80_8000), f32::from_bits(0x3f81_8000), -0.0, f32::MAX, f32::NAN, 1e-40];
        values.iter_mut().step_by(7).zip(special).for_each(|(value, special)| *value = special);
        values
    }

    /// `[outputs, taps, inputs]` values as checkpoints store them, and the values that are read from there.
    fn stored(values: &[f32], dtype: StoredType, [outputs, taps, inputs]: [usize; 3]) -> (Vec<u8>, Vec<bf16>) {
        let at = |i: usize| (i / (taps * inputs) * taps + i % taps) * inputs + i / taps % inputs;
        let inside = (0..outputs * taps * inputs).map(|i| values[at(i)]);
        let through = |value: f32| match dtype {
            StoredType::F64 | StoredType::F32 => value,
            StoredType::F16 => f16::from_f32(value).to_f32(),
            StoredType::BF16 => bf16::from_f32(value).to_f32(),
        };
        let bytes = inside.flat_map(|value| match dtype {
            StoredType::F64 => f64::from(value).to_le_bytes().to_vec(),
            StoredType::F32 => value.to_le_bytes().to_vec(),
            StoredType::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            StoredType::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        });
        (bytes.collect(), values.iter().map(|&value| bf16::from_f32(through(value))).collect())
    }

    fn bits(halves: &[bf16]) -> Vec<u16> {
        halves.iter().map(|half| half.to_bits()).collect()
    }

    fn halves(packed: &PackedWeights) -> Vec<u16> {
        bits(packed.right("test").halves())
    }

    const TYPES: [StoredType; 4] = [StoredType::F64, StoredType::F32, StoredType::F16, StoredType::BF16];

    #[test]
    fn stored_linear_weights_are_packed_as_loaded_ones() {
        for (outputs, inputs) in [(1, 1), (5, 3), (33, 65), (64, 1300), (100, 96), (4, 0)] {
            for dtype in TYPES {
                let (bytes, loaded) = stored(&values(outputs * inputs, 1), dtype, [outputs, 1, inputs]);
                // One byte further, elements are not aligned.
                let unaligned: Vec<u8> = std::iter::once(0).chain(bytes).collect();
                let weight = StoredWeight { bytes: &unaligned[1..], dtype, outputs, inputs, taps: 1 };
                let Some(packed) = PackedWeights::for_stored_linear(&weight) else { return };
                let old = PackedWeights::for_linear(&loaded, outputs, inputs).expect("packed as well");
                assert!(halves(&packed) == halves(&old), "{outputs} x {inputs} {dtype:?}");
                assert_eq!(bits(&packed.unpack().expect("a product")), bits(&loaded));
                assert_eq!((packed.bytes(), packed.for_input), (old.bytes(), old.for_input));
            }
        }
    }

    #[test]
    fn stored_weights_of_gates_are_packed_as_loaded_ones() {
        for (c, inputs) in [(16, 3), (48, 65), (208, 1300)] {
            for dtype in TYPES {
                let (bytes, loaded) = stored(&values(2 * c * inputs, 2), dtype, [2 * c, 1, inputs]);
                let weight = StoredWeight { bytes: &bytes, dtype, outputs: 2 * c, inputs, taps: 1 };
                let Some(packed) = PackedWeights::for_stored_geglu(&weight) else { return };
                let old = PackedWeights::for_linear_geglu(&loaded, c, inputs).expect("packed as well");
                assert!(halves(&packed) == halves(&old) && packed.is_gated(), "{c} x {inputs} {dtype:?}");
                assert_eq!(bits(&packed.unpack().expect("a product")), bits(&loaded));
            }
        }
        let weight = StoredWeight { bytes: &[0; 136], dtype: StoredType::F16, outputs: 34, inputs: 2, taps: 1 };
        assert!(PackedWeights::for_stored_geglu(&weight).is_none());
    }

    fn shape(size: usize, channels: [usize; 2], kernel: usize, stride: usize) -> Conv2dShape {
        let [in_channels, out_channels] = channels;
        let (kernel, padding) = ([kernel; 2], [kernel / 2; 4]);
        let (batch, height, width, per_image) = (2, size, size + 1, false);
        Conv2dShape { batch, height, width, in_channels, out_channels, kernel, stride, padding, per_image }
    }

    #[test]
    fn stored_convolution_weights_are_packed_as_loaded_ones() {
        for (size, channels, kernel, stride) in
            [(4, [32, 33], 3, 1), (16, [64, 40], 3, 2), (7, [5, 70], 1, 1), (9, [4, 32], 3, 1), (8, [3, 64], 4, 4)]
        {
            let shape = shape(size, channels, kernel, stride);
            let sizes = [channels[1], kernel * kernel, channels[0]];
            for dtype in TYPES {
                let (bytes, loaded) = stored(&values(shape.weight_len(), 3), dtype, sizes);
                let [outputs, taps, inputs] = sizes;
                let weight = StoredWeight { bytes: &bytes, dtype, outputs, inputs, taps };
                let Some(packed) = PackedWeights::for_stored_conv(&weight, shape.kernel) else { return };
                let old = PackedWeights::for_conv(&shape, &loaded).expect("packed as well");
                assert!(halves(&packed) == halves(&old), "{shape:?} {dtype:?}");
                assert_eq!(bits(&packed.unpack().expect("a product")), bits(&loaded));
            }
        }
    }

    #[test]
    fn filters_of_weights_packed_for_products_give_the_same_bits() {
        // One block of filters, then several blocks of filters and, with the last one, of pixels.
        for (size, channels) in [(11, [32, 64]), (16, [96, 32]), (12, [1024, 1120]), (30, [1632, 352])] {
            let shape = shape(size, channels, 3, 1);
            let loaded: Vec<bf16> = (0..shape.weight_len()).map(|i| bf16::from_f32((i % 251) as f32 - 125.0)).collect();
            let x: Vec<bf16> = (0..shape.input_len()).map(|i| bf16::from_f32((i % 127) as f32 / 64.0 - 1.0)).collect();
            let (bytes, _) = stored(
                &loaded.iter().map(|x| x.to_f32()).collect::<Vec<_>>(),
                StoredType::BF16,
                [channels[1], 9, channels[0]],
            );
            let weight = StoredWeight {
                bytes: &bytes,
                dtype: StoredType::BF16,
                outputs: channels[1],
                inputs: channels[0],
                taps: 9,
            };
            let Some(packed) = PackedWeights::for_stored_conv(&weight, [3, 3]) else { return };
            if !shape.uses_winograd() {
                return;
            }
            assert!(packed.gives_input_gradients() && packed.bytes() == 2 * shape.weight_len());
            let filters = PackedWeights::for_conv(&shape, &loaded).expect("packed as well");
            assert!(filters.unpack().is_none());
            let [mut y, mut old] = [(); 2].map(|()| vec![bf16::NAN; shape.output_len()]);
            conv2d_forward_packed(&shape, &x, &packed, None, None, None, &mut y);
            conv2d_forward_packed(&shape, &x, &filters, None, None, None, &mut old);
            assert!(y == old, "{shape:?}");
            let wide: Vec<f32> = loaded.iter().map(|x| x.to_f32()).collect();
            conv2d_forward(&shape, &x, &wide, None, None, None, &mut old);
            assert!(y == old, "{shape:?}");
            let [mut dx, mut old] = [(); 2].map(|()| vec![bf16::NAN; shape.input_len()]);
            conv2d_backward_input_packed(&shape, &y, &packed, &mut dx);
            conv2d_backward_input(&shape, &y, &wide, &mut old);
            assert!(dx == old, "dx {shape:?}");
        }
    }

    #[test]
    #[should_panic(expected = "for_stored_linear: the weight has 7 bytes, its sizes say 8")]
    fn stored_weights_of_another_length() {
        let weight = StoredWeight { bytes: &[0; 7], dtype: StoredType::F32, outputs: 2, inputs: 1, taps: 1 };
        let _ = PackedWeights::for_stored_linear(&weight);
    }
}
