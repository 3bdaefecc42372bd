//! Two-dimensional convolution, channels last, as a matrix product whose left operand (the patches) is gathered while
//! it is packed and never exists as a whole.

use half::bf16;

use crate::element::Element;
use crate::packed::PackedWeights;
use crate::pointwise::sum_rows;
#[cfg(target_arch = "x86_64")]
use crate::product::Output;
use crate::product::{Dense, Epilogue, Operand, RowCount, Rows, Source, copy, product};
#[cfg(target_arch = "x86_64")]
use crate::product16::Panels;
use crate::scratch::with_scratch;
#[cfg(target_arch = "x86_64")]
use crate::simd::Avx512Bf16;
use crate::simd::{Simd, isa_name, multiplies_bf16};
use crate::threads::for_chunks;
#[cfg(target_arch = "x86_64")]
use crate::winograd16::{self, Pass};

/// Shape of a convolution (in fact a cross-correlation, as everywhere in deep learning):
/// `y[b, oy, ox, o] = sum over (ky, kx, i) of x[b, oy * stride + ky - top, ox * stride + kx - left, i] w[o, ky, kx, i]`,
/// with zeros outside of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conv2dShape {
    /// Images.
    pub batch: usize,
    /// Height of the input.
    pub height: usize,
    /// Width of the input.
    pub width: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Step between windows, in both directions.
    pub stride: usize,
    /// Zeros added at the top, bottom, left and right.
    pub padding: [usize; 4],
    /// The size of one image says how outputs are computed, so that an image is the same bits in any batch: for inference. Otherwise that
    /// of the whole batch does, which is faster in training.
    pub per_image: bool,
}

impl Conv2dShape {
    /// Height of the output; zero if the kernel does not fit.
    pub fn out_height(&self) -> usize {
        out_size(self.height + self.padding[0] + self.padding[1], self.kernel[0], self.stride)
    }

    /// Width of the output; zero if the kernel does not fit.
    pub fn out_width(&self) -> usize {
        out_size(self.width + self.padding[2] + self.padding[3], self.kernel[1], self.stride)
    }

    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.batch * self.height * self.width * self.in_channels
    }

    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.positions() * self.out_channels
    }

    /// Elements of the weights.
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.patch()
    }

    pub(crate) fn positions(&self) -> usize {
        self.batch * self.out_height() * self.out_width()
    }

    /// The rows of a forward product: positions.
    fn row_count(&self) -> RowCount {
        let all = self.positions();
        RowCount { all, deciding: if self.per_image { self.out_height() * self.out_width() } else { all } }
    }

    /// Length of the sums of a product: taps times input channels.
    pub(crate) fn patch(&self) -> usize {
        self.kernel[0] * self.kernel[1] * self.in_channels
    }

    /// True if the output positions are the input positions and the patches the pixels.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == 1 && self.padding == [0; 4]
    }

    fn patches<'a, T>(&self, x: &'a [T]) -> Patches<'a, T> {
        Patches {
            data: x,
            size: [self.height, self.width],
            channels: self.in_channels,
            taps: self.kernel,
            step: self.stride,
            offset: [-(self.padding[0] as isize), -(self.padding[2] as isize)],
            positions: [self.out_height(), self.out_width()],
        }
    }

    /// Checks the lengths of a convolution's operands.
    pub(crate) fn check(&self, op: &str, x: usize, w: usize, y: usize) {
        assert!(self.stride > 0, "{op}: the stride is zero");
        assert!(self.kernel[0] > 0 && self.kernel[1] > 0, "{op}: the kernel is empty");
        assert!(x == self.input_len(), "{op}: the input has {x} elements, the shape {}", self.input_len());
        assert!(w == self.weight_len(), "{op}: the weights have {w} elements, the shape {}", self.weight_len());
        assert!(y == self.output_len(), "{op}: the output has {y} elements, the shape {}", self.output_len());
    }

    /// Checks what is added in a forward pass, and puts it together.
    pub(crate) fn epilogue<'a, T: Element>(
        &self,
        op: &str,
        bias: Option<&'a [f32]>,
        channel_add: Option<&'a [T]>,
        residual: Option<&'a [T]>,
    ) -> Epilogue<'a, T> {
        let (m, n) = (self.positions(), self.out_channels);
        assert!(m < u32::MAX as usize, "{op}: more than 2^32 positions");
        assert!(bias.is_none_or(|bias| bias.len() == n), "{op}: the bias does not have {n} elements");
        let added = self.batch * n;
        assert!(channel_add.is_none_or(|a| a.len() == added), "{op}: channel_add does not have {added} elements");
        assert!(residual.is_none_or(|r| r.len() == m * n), "{op}: the residual does not have {m} x {n} elements");
        let pixels = self.out_height() * self.out_width();
        Epilogue { bias, group: channel_add.map(|a| (a, pixels)), residual, ..Epilogue::default() }
    }

    /// True if bf16 convolutions of this shape are computed by Winograd, F(2x2, 3x3): fewer multiplications, and an error up to
    /// 1.8 times as large. A function of the shape, the instruction set and the environment variable `CALOTYPE_CONV` (`direct`: never).
    pub fn uses_winograd(&self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return winograd16::suits(self).is_some();
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// True if weights that change after each pass should be kept packed for bf16: not where products are so short against packing, and so
    /// slow (without AMX), that little more than memory is at stake.
    pub fn packs_changing_weights(&self) -> bool {
        /// Positions that read the whole weights, and weights whose memory counts.
        const FEW: usize = 64;
        const MANY: usize = 1 << 20;
        isa_name() == "avx512+amx" || self.positions() > FEW || self.weight_len() < MANY
    }

    /// Length of the parts of a patch in which bf16 products cut their sums: lines of a window, if whole steps fit.
    pub(crate) fn segment(&self) -> usize {
        segment(self.kernel[1] * self.in_channels, self.patch())
    }

    /// The forward pass on packed weights.
    pub(crate) fn packed_product(&self, x: &[bf16], w: &PackedWeights, y: &mut [bf16], epilogue: Epilogue<bf16>) {
        let m = self.row_count();
        if self.is_pointwise() {
            let pixels = Dense { data: x, stride: self.in_channels };
            return w.product(m, &Operand { source: pixels, k_rows: false }, y, epilogue);
        }
        let done = self.patches(x).with_windows(self.batch, |windows| {
            w.product(m, &Operand { source: windows, k_rows: false }, y, epilogue);
        });
        assert!(done.is_some(), "weights are only packed where bf16 products are");
    }
}

/// A line of a window, if whole steps of all bf16 products fit into it, or the whole patch.
pub(crate) fn segment(line: usize, patch: usize) -> usize {
    if line.is_multiple_of(32) { line } else { patch }
}

fn out_size(padded: usize, kernel: usize, stride: usize) -> usize {
    if padded < kernel { 0 } else { (padded - kernel) / stride + 1 }
}

/// The matrix `[batch * positions, taps * channels]` of the windows of images.
struct Patches<'a, T> {
    data: &'a [T],
    /// Height and width of the images.
    size: [usize; 2],
    channels: usize,
    /// Height and width of a window.
    taps: [usize; 2],
    /// Distance between windows, and where the first one begins.
    step: usize,
    offset: [isize; 2],
    /// Windows down and across.
    positions: [usize; 2],
}

impl<T: Element> Source for Patches<'_, T> {
    const DIRECT: bool = false;
    const HALF: bool = T::IS_HALF;

    #[inline(always)]
    fn fill<S: Simd, E: Element>(&self, s: S, row: usize, column: usize, out: &mut [E]) {
        if out.is_empty() {
            return;
        }
        // 32-bit divisions are several times as fast as 64-bit ones; the constructor of a slice bounds the numbers.
        let (row, across) = (row as u32, self.positions[1] as u32);
        let (line, px) = (row / across, row % across);
        let (b, py) = (line / self.positions[0] as u32, line % self.positions[0] as u32);
        let y0 = (py as usize * self.step) as isize + self.offset[0];
        let x0 = (px as usize * self.step) as isize + self.offset[1];
        let [height, width] = self.size;
        // The taps of one line of a window are contiguous in memory: `span` elements, of which those in
        // `inside.0..inside.1` are in the image.
        let span = self.taps[1] * self.channels;
        let left = (-x0).clamp(0, self.taps[1] as isize) as usize * self.channels;
        let right = (width as isize - x0).clamp(0, self.taps[1] as isize) as usize * self.channels;
        let mut ky = column / span;
        let mut from = column - ky * span;
        let mut rest = out;
        while !rest.is_empty() {
            let len = (span - from).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            let y = y0 + ky as isize;
            if y < 0 || y >= height as isize || right <= left {
                now.fill(E::ZERO);
            } else {
                let begin = ((b as usize * height + y as usize) * width) as isize + x0;
                let begin = begin * self.channels as isize;
                let (i, j) = (left.clamp(from, from + len), right.clamp(from, from + len));
                now[..i - from].fill(E::ZERO);
                now[j - from..].fill(E::ZERO);
                if i < j {
                    let at = (begin + i as isize) as usize;
                    copy(s, &self.data[at..at + (j - i)], &mut now[i - from..j - from]);
                }
            }
            rest = later;
            from = 0;
            ky += 1;
        }
    }
}

/// The matrix of [`Patches`] on images that have their padding in memory: windows need no checks, and as long as they
/// stay in a line, the parts of neighbouring windows lie evenly apart, so that products can read them in place.
struct Windows<'a> {
    data: &'a [bf16],
    /// Height and width of the images, with their padding.
    size: [usize; 2],
    channels: usize,
    taps: [usize; 2],
    step: usize,
    /// The beginning of the first window.
    offset: [usize; 2],
    positions: [usize; 2],
}

impl Windows<'_> {
    /// The beginning of a row's window.
    #[inline(always)]
    fn begin(&self, row: usize) -> usize {
        let (row, across) = (row as u32, self.positions[1] as u32);
        let (line, px) = (row / across, (row % across) as usize);
        let (b, py) = ((line / self.positions[0] as u32) as usize, (line % self.positions[0] as u32) as usize);
        let y = b * self.size[0] + py * self.step + self.offset[0];
        (y * self.size[1] + px * self.step + self.offset[1]) * self.channels
    }

    /// Length of a window's line, and distance between the lines.
    #[inline(always)]
    fn lines(&self) -> (usize, usize) {
        (self.taps[1] * self.channels, self.size[1] * self.channels)
    }
}

impl Source for Windows<'_> {
    const DIRECT: bool = false;
    const HALF: bool = true;

    #[inline(always)]
    fn fill<S: Simd, E: Element>(&self, s: S, row: usize, column: usize, out: &mut [E]) {
        if out.is_empty() {
            return;
        }
        let (span, pitch) = self.lines();
        let (mut ky, mut from) = (column / span, column % span);
        let begin = self.begin(row);
        let mut rest = out;
        while !rest.is_empty() {
            let len = (span - from).min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            copy(s, &self.data[begin + ky * pitch + from..][..len], now);
            (rest, from, ky) = (later, 0, ky + 1);
        }
    }

    #[inline(always)]
    fn half_row(&self, row: usize, column: usize, len: usize) -> Option<&[bf16]> {
        let (span, pitch) = self.lines();
        if len == 0 {
            return None;
        }
        let (ky, from) = (column / span, column % span);
        (from + len <= span).then(|| &self.data[self.begin(row) + ky * pitch + from..][..len])
    }

    #[inline(always)]
    fn even_rows(&self, row: usize) -> usize {
        self.positions[1] - (row as u32 % self.positions[1] as u32) as usize
    }

    #[inline(always)]
    fn half_rows(&self, row: usize, rows: usize, column: usize, k: usize) -> Option<(&[bf16], usize)> {
        if k == 0 {
            return None;
        }
        let (span, pitch) = self.lines();
        let (ky, from) = (column / span, column % span);
        let across = self.positions[1];
        if row % across + rows > across || from + k > span {
            return None;
        }
        let stride = self.step * self.channels;
        Some((&self.data[self.begin(row) + ky * pitch + from..][..(rows - 1) * stride + k], stride))
    }

    fn segment(&self, k: usize) -> usize {
        segment(self.lines().0, k)
    }
}

impl<T: Element> Patches<'_, T> {
    /// The product of the windows and `b`.
    fn product<B: Source>(
        self,
        size: (RowCount, usize, usize),
        batch: usize,
        b: &Operand<B>,
        (c, rows): (&mut [T], Rows),
        epilogue: Epilogue<T>,
    ) {
        let done = self.with_windows(batch, |windows| {
            product(size, &Operand { source: windows, k_rows: false }, b, true, (&mut *c, rows), epilogue);
        });
        if done.is_none() {
            product(size, &Operand { source: self, k_rows: false }, b, true, (c, rows), epilogue);
        }
    }

    /// The product of `a` and the windows.
    fn right_product<A: Source>(
        self,
        size: (RowCount, usize, usize),
        batch: usize,
        a: &Operand<A>,
        (c, rows): (&mut [f32], Rows),
    ) {
        // Windows that need no checks are packed by each task that wants them, the others once.
        let done = self.with_windows(batch, |windows| {
            let b = Operand { source: windows, k_rows: true };
            product(size, a, &b, false, (&mut *c, rows), Epilogue::default());
        });
        if done.is_none() {
            product(size, a, &Operand { source: self, k_rows: true }, true, (c, rows), Epilogue::default());
        }
    }

    /// Calls `f` with the same windows on a padded copy of the images, or on the images where no window leaves them;
    /// `None` where bf16 products have no instructions, or the elements are not bf16.
    fn with_windows<R>(&self, batch: usize, f: impl FnOnce(&Windows) -> R) -> Option<R> {
        let data = T::as_half(self.data).filter(|_| multiplies_bf16())?;
        let (mut before, mut size) = ([0; 2], self.size);
        for axis in 0..2 {
            let end = (self.positions[axis].max(1) - 1) * self.step + self.taps[axis];
            let end = end as isize + self.offset[axis];
            before[axis] = (-self.offset[axis]).max(0) as usize;
            size[axis] = before[axis] + self.size[axis].max(end.max(0) as usize);
        }
        let windows = Windows {
            data,
            size,
            channels: self.channels,
            taps: self.taps,
            step: self.step,
            offset: [0, 1].map(|axis| (self.offset[axis] + before[axis] as isize) as usize),
            positions: self.positions,
        };
        if size == self.size {
            return Some(f(&windows));
        }
        let len = batch * size[0] * size[1] * self.channels;
        Some(with_scratch(len.div_ceil(2), |memory| {
            let padded = &mut bytemuck::cast_slice_mut::<f32, bf16>(memory)[..len];
            pad(data, self.size, padded, size, before, self.channels);
            f(&Windows { data: padded, ..windows })
        }))
    }
}

/// Copies images of `from_size` into the middle of zeros.
fn pad(from: &[bf16], from_size: [usize; 2], to: &mut [bf16], size: [usize; 2], before: [usize; 2], channels: usize) {
    let (line, used) = (size[1] * channels, from_size[1] * channels);
    if line == 0 {
        return;
    }
    let left = before[1] * channels;
    for_chunks(to, line, |i, to| {
        let (b, y) = (i / size[0], i % size[0]);
        if y < before[0] || y >= before[0] + from_size[0] {
            to.fill(bf16::ZERO);
            return;
        }
        to[..left].fill(bf16::ZERO);
        to[left..left + used].copy_from_slice(&from[(b * from_size[0] + y - before[0]) * used..][..used]);
        to[left + used..].fill(bf16::ZERO);
    });
}

/// See [`crate::conv2d_forward`].
pub(crate) fn conv2d_forward<T: Element>(
    shape: &Conv2dShape,
    x: &[T],
    w: &[f32],
    bias: Option<&[f32]>,
    channel_add: Option<&[T]>,
    residual: Option<&[T]>,
    y: &mut [T],
) {
    shape.check("conv2d_forward", x.len(), w.len(), y.len());
    let epilogue = shape.epilogue("conv2d_forward", bias, channel_add, residual);
    #[cfg(target_arch = "x86_64")]
    if let (Some(token), Some(x)) = (winograd16::suits(shape), T::as_half(x)) {
        return Output::to_rows(y, shape.out_channels, epilogue, |out| {
            winograd16::convolve_plain(token, Pass::Forward, shape, x, w, out)
        });
    }
    forward(shape, x, w, y, epilogue);
}

/// See [`crate::conv2d_relu_forward`].
pub(crate) fn conv2d_relu_forward<T: Element>(
    shape: &Conv2dShape,
    x: &[T],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [T],
) {
    shape.check("conv2d_relu_forward", x.len(), w.len(), y.len());
    let epilogue = shape.epilogue("conv2d_relu_forward", bias, None, None);
    forward(shape, x, w, y, Epilogue { relu: true, ..epilogue });
}

/// The forward pass as a product.
fn forward<T: Element>(shape: &Conv2dShape, x: &[T], w: &[f32], y: &mut [T], epilogue: Epilogue<T>) {
    let (m, n, k) = (shape.row_count(), shape.out_channels, shape.patch());
    let weights = Operand { source: Dense { data: w, stride: k }, k_rows: false };
    let out = (y, Rows::Linear { stride: n });
    if shape.is_pointwise() {
        let pixels = Operand { source: Dense { data: x, stride: k }, k_rows: false };
        product((m, n, k), &pixels, &weights, true, out, epilogue);
    } else {
        shape.patches(x).product((m, n, k), shape.batch, &weights, out, epilogue);
    }
}

/// The weights, `[out_channels, patch]`, as the gradient of the input meets them: a matrix `[taps * out_channels, in_channels]`, the
/// taps in reverse, only every `step`-th of them beginning with `first`.
struct Flipped<W> {
    w: W,
    kernel: [usize; 2],
    out_channels: usize,
    in_channels: usize,
    first: [usize; 2],
    step: usize,
    taps: [usize; 2],
}

impl<W> Flipped<W> {
    /// Row and column of the weights where column 0 of `row` lies.
    #[inline(always)]
    fn at(&self, row: usize) -> (usize, usize) {
        let (tap, o) = (row / self.out_channels, row % self.out_channels);
        let (ty, tx) = (tap / self.taps[1], tap % self.taps[1]);
        let ky = self.first[0] + (self.taps[0] - 1 - ty) * self.step;
        let kx = self.first[1] + (self.taps[1] - 1 - tx) * self.step;
        (o, (ky * self.kernel[1] + kx) * self.in_channels)
    }
}

impl<W: Source> Source for Flipped<W> {
    const DIRECT: bool = false;
    const HALF: bool = W::HALF;

    #[inline(always)]
    fn fill<S: Simd, E: Element>(&self, s: S, row: usize, column: usize, out: &mut [E]) {
        let (o, begin) = self.at(row);
        self.w.fill(s, o, begin + column, out);
    }

    #[inline(always)]
    fn wide_row(&self, row: usize, column: usize, len: usize) -> Option<&[f32]> {
        let (o, begin) = self.at(row);
        self.w.wide_row(o, begin + column, len)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn pack_pairs(&self, s: Avx512Bf16, (row, rows): (usize, usize), columns: (usize, usize), to: &mut Panels) -> bool {
        let mut done = 0;
        while done < rows {
            let (o, begin) = self.at(row + done);
            let len = (self.out_channels - o).min(rows - done);
            let mut to = to.after(done);
            if !self.w.pack_pairs(s, (o, len), (begin + columns.0, columns.1), &mut to) {
                return false;
            }
            done += len;
        }
        true
    }
}

/// See [`crate::conv2d_backward_input`].
pub(crate) fn conv2d_backward_input<T: Element>(shape: &Conv2dShape, dy: &[T], w: &[f32], dx: &mut [T]) {
    shape.check("conv2d_backward_input", dx.len(), w.len(), dy.len());
    #[cfg(target_arch = "x86_64")]
    if let (Some(token), Some(dy)) = (winograd16::suits(shape), T::as_half(dy)) {
        return Output::to_rows(dx, shape.in_channels, Epilogue::default(), |out| {
            winograd16::convolve_plain(token, Pass::BackwardInput, shape, dy, w, out)
        });
    }
    backward_input(shape, dy, Dense { data: w, stride: shape.patch() }, dx);
}

/// [`conv2d_backward_input`] with weights `[out_channels, patch]` from any source.
pub(crate) fn backward_input<T: Element, W: Source + Copy>(shape: &Conv2dShape, dy: &[T], w: W, dx: &mut [T]) {
    let (cin, cout) = (shape.in_channels, shape.out_channels);
    if shape.is_pointwise() {
        crate::linear::backward_input(dy, w, dx, (shape.positions(), cin, cout));
        return;
    }
    assert!(shape.batch * shape.height * shape.width < u32::MAX as usize, "conv2d_backward_input: over 2^32 pixels");
    let step = shape.stride;
    for class in 0..step * step {
        let class = [class / step, class % step];
        let size = [shape.height, shape.width];
        let pad = [shape.padding[0], shape.padding[2]];
        let [mut count, mut first, mut taps, mut offset] = [[0; 2]; 4];
        let mut begin = [0isize; 2];
        for axis in 0..2 {
            count[axis] = size[axis].saturating_sub(class[axis]).div_ceil(step);
            // Pixel class + step j meets tap first + step t at output j + offset - t.
            first[axis] = (class[axis] + pad[axis]) % step;
            offset[axis] = (class[axis] + pad[axis]) / step;
            taps[axis] = shape.kernel[axis].saturating_sub(first[axis]).div_ceil(step);
            begin[axis] = offset[axis] as isize + 1 - taps[axis] as isize;
        }
        let k = taps[0] * taps[1] * cout;
        let patches = Patches {
            data: dy,
            size: [shape.out_height(), shape.out_width()],
            channels: cout,
            taps,
            step: 1,
            offset: begin,
            positions: count,
        };
        let weights = Flipped { w, kernel: shape.kernel, out_channels: cout, in_channels: cin, first, step, taps };
        let rows = Rows::Grid {
            height: count[0],
            width: count[1],
            batch: shape.height * shape.width * cin,
            row: step * shape.width * cin,
            column: step * cin,
            start: (class[0] * shape.width + class[1]) * cin,
        };
        let weights = Operand { source: weights, k_rows: true };
        let size = ((shape.batch * count[0] * count[1]).into(), cin, k);
        patches.product(size, shape.batch, &weights, (dx, rows), Epilogue::default());
    }
}

/// See [`crate::conv2d_backward_weight`].
pub(crate) fn conv2d_backward_weight<T: Element>(
    shape: &Conv2dShape,
    dy: &[T],
    x: &[T],
    dw: &mut [f32],
    db: Option<&mut [f32]>,
) {
    shape.check("conv2d_backward_weight", x.len(), dw.len(), dy.len());
    let (m, n, k) = (shape.positions(), shape.out_channels, shape.patch());
    if shape.is_pointwise() {
        crate::linear::linear_backward_weight(dy, x, dw, db, m, k, n);
        return;
    }
    assert!(m < u32::MAX as usize, "conv2d_backward_weight: more than 2^32 positions");
    if let Some(db) = db {
        sum_rows(dy, db, m, n);
    }
    #[cfg(target_arch = "x86_64")]
    if let (Some(token), Some(dy), Some(x)) = (winograd16::suits_filters(shape), T::as_half(dy), T::as_half(x)) {
        return winograd16::backward_weight(token, shape, dy, x, dw);
    }
    let dy_columns = Operand { source: Dense { data: dy, stride: n }, k_rows: true };
    shape.patches(x).right_product((n.into(), k, m), shape.batch, &dy_columns, (dw, Rows::Linear { stride: k }));
}
