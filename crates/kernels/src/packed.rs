//! Weights that are packed once and used in many products.

use half::bf16;

use crate::conv::Conv2dShape;
use crate::product::{Dense, Epilogue, Operand, Output, Rows, Source};
#[cfg(target_arch = "x86_64")]
use crate::product16::{PackedRight, product_packed};
use crate::threads::SharedMut;

/// Stands where no instructions want packed weights: there are none.
#[cfg(not(target_arch = "x86_64"))]
enum PackedRight {}

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
}

#[cfg(not(target_arch = "x86_64"))]
fn product_packed<A: Source>(_: usize, _: &Operand<A>, b: &PackedRight, _: &Output<bf16>) {
    match *b {}
}

/// The weights of a linear layer or a convolution, rounded to bf16 and in the order in which the products with bf16
/// activations read them. The results are the bits that
/// plain weights give.
pub struct PackedWeights(PackedRight);

impl PackedWeights {
    /// Packs the `[n, k]` weights of a linear layer; `None` where bf16 products gain nothing by it.
    ///
    /// # Panics
    ///
    /// If the slice does not have the length its shape says.
    pub fn for_linear(w: &[f32], n: usize, k: usize) -> Option<Self> {
        assert!(w.len() == n * k, "PackedWeights: w has {} elements, not {n} x {k}", w.len());
        let operand = Operand { source: Dense { data: w, stride: k }, k_rows: false };
        PackedRight::pack(&operand, n, k, k).map(Self)
    }

    /// Packs the `[out_channels, kernel height, kernel width, in_channels]` weights of a convolution; of the shape, only the
    /// weights' matter. `None` where bf16 products gain nothing by it.
    ///
    /// # Panics
    ///
    /// If the slice does not have the length its shape says.
    pub fn for_conv(shape: &Conv2dShape, w: &[f32]) -> Option<Self> {
        let (n, k) = (shape.out_channels, shape.patch());
        assert!(w.len() == n * k, "PackedWeights: w has {} elements, not {n} x {k}", w.len());
        let operand = Operand { source: Dense { data: w, stride: k }, k_rows: false };
        PackedRight::pack(&operand, n, k, shape.segment()).map(Self)
    }

    /// Memory that the weights take, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn check(&self, op: &str, n: usize, k: usize) {
        let (packed_n, packed_k) = self.0.size();
        assert!((n, k) == (packed_n, packed_k), "{op}: the packed weights are {packed_n} x {packed_k}, not {n} x {k}");
    }

    /// `C = A W^T` through an epilogue; rows of C are contiguous.
    pub(crate) fn product<A: Source>(&self, m: usize, a: &Operand<A>, c: &mut [bf16], epilogue: Epilogue<bf16>) {
        let (n, _) = self.0.size();
        let data = SharedMut::new(c);
        product_packed(m, a, &self.0, &Output { data: &data, rows: Rows::Linear { stride: n }, n, epilogue });
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
    w.check("linear_forward_packed", n, k);
    crate::linear::check_forward("linear_forward_packed", x, bias, residual, y, (m, k, n));
    let rows = Operand { source: Dense { data: x, stride: k }, k_rows: false };
    w.product(m, &rows, y, Epilogue { bias, residual, ..Epilogue::default() });
}

/// [`crate::conv2d_forward`] on packed weights.
///
/// # Panics
///
/// If a slice or the weights do not have the size the shape says.
pub fn conv2d_forward_packed(
    shape: &Conv2dShape,
    x: &[bf16],
    w: &PackedWeights,
    bias: Option<&[f32]>,
    channel_add: Option<&[bf16]>,
    residual: Option<&[bf16]>,
    y: &mut [bf16],
) {
    w.check("conv2d_forward_packed", shape.out_channels, shape.patch());
    shape.check("conv2d_forward_packed", x.len(), shape.weight_len(), y.len());
    let epilogue = shape.epilogue("conv2d_forward_packed", bias, channel_add, residual);
    shape.packed_product(x, w, y, epilogue);
}
