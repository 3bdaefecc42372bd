//! The driver of products of activations and weights in 8 bits: like [`crate::product`], on tiles of [`crate::tile8`].
//!
//! Activations come as they are everywhere else and are quantised while they are packed: each row by itself, or, in a convolution
//! whose windows are more than a pixel, each image by itself, so that sums over a window have one scale. They are stored with 128 added,
//! for the instructions multiply unsigned with signed numbers; 128 times the sums of the weights are subtracted again. Sums are whole
//! numbers, so that a result is the same bits however work is cut, on every instruction set, and in any batch.

use crate::conv::Conv2dShape;
use crate::element::Element;
use crate::packed::gated_row;
use crate::product::{Epilogue, GATED, Output, Rows};
use crate::quantise8::{OFFSET, Scale, greater, largest, quantise};
use crate::scratch::{Line, with_scratch};
use crate::simd::dispatch;
use crate::threads::{SharedMut, parallel_for, threads};
use crate::tile8::{Isa8, MOST_ROWS, STEP, Tile8, WIDTH, isa8};
use std::ops::Range;

/// Longest sums: 255 times 128 times as many terms are a whole number of 32 bits.
pub(crate) const LONGEST: usize = 65_536;

/// The weights of a layer in 8 bits, as checkpoints store them: `[outputs, inputs, kernel height, kernel width]`, row-major.
#[derive(Clone, Copy, Debug)]
pub struct StoredWeight8<'a> {
    /// The numbers, two's complement.
    pub bytes: &'a [u8],
    /// What the numbers of an output are multiplied by, `[outputs]`.
    pub scales: &'a [f32],
    /// What inputs are divided by before they are quantised, `[inputs]`; none: nothing.
    pub smooth: Option<&'a [f32]>,
    /// Outputs of the layer.
    pub outputs: usize,
    /// Inputs of the layer: features, or channels.
    pub inputs: usize,
    /// Kernel height and width, 1 and 1 for linear layers.
    pub kernel: [usize; 2],
}

/// The weights of a linear layer or a convolution in 8 bits, in the order in which products read them.
///
/// The inner dimension is in segments, the lines of a window; each is padded to [`STEP`] with zeros: `[panel, segment, step / 4, WIDTH, 4]`.
pub struct QuantisedWeights {
    data: Vec<Line>,
    outputs: usize,
    inputs: usize,
    kernel: [usize; 2],
    /// By place in the panels, as `offsets`.
    scales: Vec<f32>,
    /// [`OFFSET`] times the sum of a column.
    offsets: Vec<i32>,
    /// What inputs are multiplied by.
    factors: Option<Vec<f32>>,
    /// True if values and gates stand in panels side by side.
    gated: bool,
}

impl std::fmt::Debug for QuantisedWeights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { outputs, inputs, kernel, gated, .. } = self;
        write!(f, "QuantisedWeights({outputs} x {kernel:?} x {inputs}, gated: {gated})")
    }
}

impl QuantisedWeights {
    /// Packs stored weights, on all threads. `None` for sums of more than 65,536 terms, which 32 bits may not hold, and for empty ones.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length the sizes say.
    pub fn new(w: &StoredWeight8) -> Option<Self> {
        Self::pack(w, false)
    }

    /// [`QuantisedWeights::new`] for a linear layer whose outputs are values and as many gates; `None` as well where there are not a
    /// multiple of 16 of each.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length the sizes say.
    pub fn for_geglu(w: &StoredWeight8) -> Option<Self> {
        let whole = w.outputs.is_multiple_of(2 * GATED) && w.kernel == [1, 1];
        if whole { Self::pack(w, true) } else { None }
    }

    fn pack(w: &StoredWeight8, gated: bool) -> Option<Self> {
        let StoredWeight8 { outputs, inputs, kernel, .. } = *w;
        let row = inputs * kernel[0] * kernel[1];
        assert!(w.bytes.len() == outputs * row, "QuantisedWeights: {} bytes, not {outputs} x {row}", w.bytes.len());
        assert!(w.scales.len() == outputs, "QuantisedWeights: {} scales of {outputs} outputs", w.scales.len());
        assert!(w.smooth.is_none_or(|s| s.len() == inputs), "QuantisedWeights: not {inputs} factors of the inputs");
        if !(1..=LONGEST).contains(&row) || outputs == 0 {
            return None;
        }
        let panels = outputs.div_ceil(WIDTH);
        let mut weights = Self {
            data: Vec::new(),
            outputs,
            inputs,
            kernel,
            scales: vec![0.0; panels * WIDTH],
            offsets: vec![0; panels * WIDTH],
            factors: w.smooth.map(|smooth| smooth.iter().map(|smooth| 1.0 / smooth).collect()),
            gated,
        };
        weights.fill(w, panels);
        Some(weights)
    }

    fn fill(&mut self, w: &StoredWeight8, panels: usize) {
        let size = self.panel_size();
        let mut data = bytemuck::zeroed_vec::<Line>((panels * size).div_ceil(size_of::<Line>()));
        {
            let mut scales = std::mem::take(&mut self.scales);
            let mut offsets = std::mem::take(&mut self.offsets);
            let shared = SharedMut::new(bytemuck::cast_slice_mut::<Line, u8>(&mut data));
            let (shared_scales, shared_offsets) = (SharedMut::new(&mut scales), SharedMut::new(&mut offsets));
            parallel_for(panels, |panel| {
                let places = panel * WIDTH..(panel + 1) * WIDTH;
                // SAFETY: panels do not overlap.
                let (data, scales, offsets) = unsafe {
                    let data = shared.range(panel * size..(panel + 1) * size);
                    (data, shared_scales.range(places.clone()), shared_offsets.range(places.clone()))
                };
                for (column, place) in places.take_while(|&place| place < self.outputs).enumerate() {
                    let output = self.output_at(place);
                    scales[column] = w.scales[output];
                    offsets[column] = OFFSET * self.fill_column(w, output, &mut data[4 * column..]);
                }
            });
            (self.scales, self.offsets) = (scales, offsets);
        }
        self.data = data;
    }

    /// Writes the column of an output, whose first four numbers are the first ones of `to`; the sum of all.
    fn fill_column(&self, w: &StoredWeight8, output: usize, to: &mut [u8]) -> i32 {
        let [rows, columns] = self.kernel;
        let (inputs, taps, padded) = (self.inputs, rows * columns, self.padded());
        let stored = &w.bytes[output * inputs * taps..][..inputs * taps];
        for y in 0..rows {
            for x in 0..columns {
                let tap = stored[y * columns + x..].iter().step_by(taps);
                for (input, &number) in tap.enumerate().take(inputs) {
                    let at = y * padded + x * inputs + input;
                    to[at / 4 * 4 * WIDTH + at % 4] = number;
                }
            }
        }
        stored.iter().map(|&number| i32::from(number as i8)).sum()
    }

    /// The output whose column stands at a place of the panels.
    fn output_at(&self, place: usize) -> usize {
        if self.gated { gated_row(place, self.outputs / 2) } else { place }
    }

    /// Length of a segment.
    fn segment(&self) -> usize {
        self.kernel[1] * self.inputs
    }

    /// Length of a segment with its padding.
    fn padded(&self) -> usize {
        self.segment().next_multiple_of(STEP)
    }

    /// Bytes of a panel.
    fn panel_size(&self) -> usize {
        self.kernel[0] * self.padded() * WIDTH
    }

    fn panel(&self, panel: usize) -> &[i8] {
        let size = self.panel_size();
        &bytemuck::cast_slice::<Line, i8>(&self.data)[panel * size..][..size]
    }

    /// The weights that they stand for, `[outputs, kernel height, kernel width, inputs]`: numbers times scales, and divided by what the
    /// inputs are divided by.
    pub fn unpack(&self) -> Vec<f32> {
        let [rows, columns] = self.kernel;
        let (inputs, padded) = (self.inputs, self.padded());
        let row = rows * columns * inputs;
        let mut all = vec![0f32; self.outputs * row];
        let shared = SharedMut::new(&mut all);
        parallel_for(self.outputs, |place| {
            let output = self.output_at(place);
            let panel = &self.panel(place / WIDTH)[4 * (place % WIDTH)..];
            // SAFETY: outputs do not overlap, and each comes from one place.
            let to = unsafe { shared.range(output * row..(output + 1) * row) };
            for (i, to) in to.iter_mut().enumerate() {
                let at = i / (columns * inputs) * padded + i % (columns * inputs);
                let number = panel[at / 4 * 4 * WIDTH + at % 4];
                let factor = self.factors.as_ref().map_or(1.0, |factors| factors[i % inputs]);
                *to = f32::from(number) * self.scales[place] * factor;
            }
        });
        all
    }

    /// True if they were packed for [`crate::linear_geglu_forward_int8`].
    pub fn is_gated(&self) -> bool {
        self.gated
    }

    /// Memory that they take, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.data) + 8 * self.scales.len() + 4 * self.factors.as_ref().map_or(0, Vec::len)
    }

    fn check(&self, op: &str, outputs: usize, inputs: usize, kernel: [usize; 2], gated: bool) {
        let Self { outputs: n, inputs: k, kernel: taps, .. } = self;
        assert!(self.gated == gated, "{op}: the weights were packed for another use");
        let same = (*n, *k, *taps) == (outputs, inputs, kernel);
        assert!(same, "{op}: the weights are {n} x {taps:?} x {k}, not {outputs} x {kernel:?} x {inputs}");
    }
}

/// Name of the instruction set that multiplies 8-bit numbers in this process: `"amx-int8"`, `"avx512-vnni"`, `"avx2"` or `"scalar"`.
pub fn int8_isa_name() -> &'static str {
    isa8().name()
}

/// See [`crate::linear_forward_int8`].
pub(crate) fn linear_forward_int8<T: Element>(
    x: &[T],
    w: &QuantisedWeights,
    bias: Option<&[f32]>,
    residual: Option<&[T]>,
    y: &mut [T],
    m: usize,
    k: usize,
    n: usize,
) {
    const OP: &str = "linear_forward_int8";
    w.check(OP, n, k, [1, 1], false);
    crate::linear::check_forward(OP, x, bias, residual, y, (m, k, n));
    rows_product(x, w, m, y, n, Epilogue { bias, residual, ..Epilogue::default() });
}

/// See [`crate::linear_geglu_forward_int8`].
pub(crate) fn linear_geglu_forward_int8<T: Element>(
    x: &[T],
    w: &QuantisedWeights,
    bias: Option<&[f32]>,
    y: &mut [T],
    m: usize,
    k: usize,
    c: usize,
) {
    const OP: &str = "linear_geglu_forward_int8";
    w.check(OP, 2 * c, k, [1, 1], true);
    crate::linear::check_forward(OP, x, None, None, y, (m, k, c));
    assert!(bias.is_none_or(|bias| bias.len() == 2 * c), "{OP}: the bias does not have {} elements", 2 * c);
    rows_product(x, w, m, y, c, Epilogue { bias, gated: true, ..Epilogue::default() });
}

/// See [`crate::conv2d_forward_int8`].
pub(crate) fn conv2d_forward_int8<T: Element>(
    shape: &Conv2dShape,
    x: &[T],
    w: &QuantisedWeights,
    bias: Option<&[f32]>,
    channel_add: Option<&[T]>,
    residual: Option<&[T]>,
    y: &mut [T],
) {
    const OP: &str = "conv2d_forward_int8";
    w.check(OP, shape.out_channels, shape.in_channels, shape.kernel, false);
    shape.check(OP, x.len(), shape.weight_len(), y.len());
    let epilogue = shape.epilogue(OP, bias, channel_add, residual);
    if shape.is_pointwise() {
        return rows_product(x, w, shape.positions(), y, shape.out_channels, epilogue);
    }
    if y.is_empty() {
        return;
    }
    let padded = Padded::new(shape);
    let scales = image_scales(x, w, shape.batch);
    with_bytes(padded.len(), |images| {
        padded.fill(x, w, &scales, images);
        let data = SharedMut::new(y);
        let n = shape.out_channels;
        let out = Output { data: &data, rows: Rows::Linear { stride: n }, n, epilogue };
        let [height, width] = [shape.out_height(), shape.out_width()];
        let work = Product { w, isa: isa8(), out: &out };
        let lines = shape.batch * height;
        let (down, across) = cut(lines, width, work.isa.rows(), w.outputs.div_ceil(WIDTH));
        let images = &*images;
        parallel_for(down.len() * across.len(), |task| {
            let (lines, panels) = (&down[task % down.len()], &across[task / down.len()]);
            let windows = Windows { images, padded: &padded, scales: &scales, size: [height, width] };
            work.windows(&windows, lines.clone(), panels.clone());
        });
    });
}

/// [`with_scratch`] for bytes, aligned to a cache line.
#[inline(always)]
fn with_bytes<R>(len: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    with_scratch(
        len.div_ceil(4),
        #[inline(always)]
        |memory| f(&mut bytemuck::cast_slice_mut(memory)[..len]),
    )
}

/// Rows of a task, where there are enough.
const TASK_ROWS: usize = 112;

/// Cuts `lines` of `width` rows each, and panels, into tasks: lines first, which read the weights, then panels.
fn cut(lines: usize, width: usize, tile: usize, panels: usize) -> (Vec<Range<usize>>, Vec<Range<usize>>) {
    let wanted = 4 * threads();
    let most = (TASK_ROWS / width.max(1)).max(1);
    let least = (tile / width.max(1)).max(1);
    let mut each = most;
    while each > least && lines.div_ceil(each) < wanted {
        each = each.div_ceil(2).max(least);
    }
    let down = even(lines, lines.div_ceil(each));
    let across = if down.len() < wanted { wanted.div_ceil(down.len().max(1)).min(panels) } else { 1 };
    (down, even(panels, across))
}

/// Nearly equal parts of `0..total`.
fn even(total: usize, parts: usize) -> Vec<Range<usize>> {
    (0..parts).map(|part| part * total / parts..(part + 1) * total / parts).filter(|part| !part.is_empty()).collect()
}

/// Distance between quantised rows of `padded` bytes: an odd number of cache lines, so that rows fall on different sets of the cache.
fn row_stride(padded: usize) -> usize {
    ((padded / STEP) | 1) * STEP
}

/// A product of rows, each with its own scale; `c` columns of y.
fn rows_product<T: Element>(x: &[T], w: &QuantisedWeights, m: usize, y: &mut [T], c: usize, epilogue: Epilogue<T>) {
    if m == 0 {
        return;
    }
    let data = SharedMut::new(y);
    let out = Output { data: &data, rows: Rows::Linear { stride: c }, n: w.outputs, epilogue };
    let work = Product { w, isa: isa8(), out: &out };
    let (down, across) = cut(m, 1, work.isa.rows(), w.outputs.div_ceil(WIDTH));
    if let [all] = &across[..] {
        // Rows are quantised by the task that multiplies them, while they are near.
        return parallel_for(down.len(), |task| {
            let rows = down[task].clone();
            work.with_rows(x, rows.clone(), |quantised| {
                work.rows(&quantised, rows.clone(), all.clone());
            });
        });
    }
    let stride = row_stride(w.padded());
    with_scratch(m, |scales| {
        with_bytes((m + MOST_ROWS) * stride, |bytes| {
            let (shared, shared_scales) = (SharedMut::new(bytes), SharedMut::new(scales));
            let parts = even(m, m.div_ceil(16));
            parallel_for(parts.len(), |part| {
                let rows = parts[part].clone();
                // SAFETY: parts do not overlap.
                let (to, scales) = unsafe {
                    (shared.range(rows.start * stride..rows.end * stride), shared_scales.range(rows.clone()))
                };
                work.quantise_rows(x, rows.clone(), to, scales);
            });
            let quantised = QuantisedRows { first: 0, bytes, scales };
            parallel_for(down.len() * across.len(), |task| {
                let (rows, panels) = (&down[task % down.len()], &across[task / down.len()]);
                work.rows(&quantised, rows.clone(), panels.clone());
            });
        });
    });
}

/// Rows in 8 bits, [`row_stride`] apart, with their scales, from row `first` on. There is room for [`MOST_ROWS`] more.
struct QuantisedRows<'a> {
    first: usize,
    bytes: &'a [u8],
    scales: &'a [f32],
}

/// The quantised images that a convolution reads its windows of.
struct Windows<'a> {
    images: &'a [u8],
    padded: &'a Padded,
    scales: &'a [Scale],
    /// Height and width of the output.
    size: [usize; 2],
}

struct Product<'a, T> {
    w: &'a QuantisedWeights,
    isa: Isa8,
    out: &'a Output<'a, T>,
}

/// The sums of a tile.
#[repr(C, align(64))]
struct Sums([i32; MOST_ROWS * WIDTH]);

impl<T: Element> Product<'_, T> {
    /// Calls `f` with rows of x in 8 bits.
    fn with_rows(&self, x: &[T], rows: Range<usize>, f: impl FnOnce(QuantisedRows)) {
        let stride = row_stride(self.w.padded());
        with_scratch(rows.len(), |scales| {
            with_bytes((rows.len() + MOST_ROWS) * stride, |bytes| {
                self.quantise_rows(x, rows.clone(), &mut bytes[..rows.len() * stride], scales);
                f(QuantisedRows { first: rows.start, bytes, scales });
            });
        });
    }

    fn quantise_rows(&self, x: &[T], rows: Range<usize>, to: &mut [u8], scales: &mut [f32]) {
        let (k, stride) = (self.w.inputs, row_stride(self.w.padded()));
        let factors = self.w.factors.as_deref();
        for ((row, to), step) in rows.zip(to.chunks_exact_mut(stride)).zip(scales) {
            let x = &x[row * k..][..k];
            let scale = Scale::of(largest(x, factors));
            quantise(x, factors, scale.inverse, &mut to[..k]);
            *step = scale.step;
        }
    }

    /// The product of some rows and panels.
    fn rows(&self, x: &QuantisedRows, rows: Range<usize>, panels: Range<usize>) {
        let stride = row_stride(self.w.padded());
        let mut sums = Sums([0; MOST_ROWS * WIDTH]);
        let tiles = even(rows.len(), rows.len().div_ceil(self.isa.rows()));
        for panel in panels {
            let b = self.w.panel(panel);
            for tile in &tiles {
                let first = rows.start + tile.start;
                let t = Tile8 {
                    rows: tile.len(),
                    k: self.w.inputs,
                    a: x.bytes[(first - x.first) * stride..].as_ptr(),
                    a_stride: stride,
                    b: b.as_ptr(),
                    c: sums.0.as_mut_ptr(),
                    accumulate: false,
                };
                // SAFETY: rows are padded, and there are as many more as a tile may read; panels are whole.
                unsafe { self.isa.tile(&t) };
                let scales = &x.scales[first - x.first..][..tile.len()];
                self.finish((first, tile.len()), panel, &mut sums, scales);
            }
        }
    }

    /// The windows of some lines of the output, and panels.
    fn windows(&self, x: &Windows, lines: Range<usize>, panels: Range<usize>) {
        let [height, width] = x.size;
        let mut sums = Sums([0; MOST_ROWS * WIDTH]);
        let tiles = even(width, width.div_ceil(self.isa.rows()));
        let (segment, padded) = (self.w.segment(), self.w.padded());
        for panel in panels {
            let b = self.w.panel(panel);
            for line in lines.clone() {
                let image = line / height;
                for tile in &tiles {
                    for y in 0..self.w.kernel[0] {
                        let t = Tile8 {
                            rows: tile.len(),
                            k: segment,
                            a: x.images[x.padded.at(image, line % height, tile.start, y)..].as_ptr(),
                            a_stride: x.padded.step * x.padded.channels,
                            b: b[y * padded * WIDTH..].as_ptr(),
                            c: sums.0.as_mut_ptr(),
                            accumulate: y > 0,
                        };
                        // SAFETY: `Padded::len` has room for what a tile may read after the last window; panels are whole.
                        unsafe { self.isa.tile(&t) };
                    }
                    let scales = [x.scales[image].step; MOST_ROWS];
                    self.finish((line * width + tile.start, tile.len()), panel, &mut sums, &scales);
                }
            }
        }
    }

    /// Scales the sums of a tile, rows with `scales`, and passes them on.
    #[inline(never)]
    fn finish(&self, (first, rows): (usize, usize), panel: usize, sums: &mut Sums, scales: &[f32]) {
        dispatch!(|s| {
            let used = WIDTH.min(self.w.outputs - panel * WIDTH);
            let mut values = [Line([0.0; 16]); MOST_ROWS * WIDTH / 16];
            let values = &mut bytemuck::cast_slice_mut(&mut values)[..rows * WIDTH];
            self.scale(panel, sums, scales, values);
            self.out.store_block(s, (first, rows), (panel * WIDTH, used), (values, WIDTH));
        });
    }

    /// The sums times the scales of their rows and columns.
    #[inline(always)]
    fn scale(&self, panel: usize, sums: &Sums, scales: &[f32], values: &mut [f32]) {
        let places = panel * WIDTH..(panel + 1) * WIDTH;
        let (offsets, of_columns) = (&self.w.offsets[places.clone()], &self.w.scales[places]);
        let rows = sums.0.chunks_exact(WIDTH).zip(values.chunks_exact_mut(WIDTH));
        for ((sums, values), of_row) in rows.zip(scales) {
            for j in 0..WIDTH {
                values[j] = (sums[j] - offsets[j]) as f32 * of_row * of_columns[j];
            }
        }
    }
}

/// The scale of each image.
fn image_scales<T: Element>(x: &[T], w: &QuantisedWeights, batch: usize) -> Vec<Scale> {
    /// Pixels of a task.
    const PIXELS: usize = 256;
    let (channels, pixels) = (w.inputs, x.len() / w.inputs / batch.max(1));
    let tasks = pixels.div_ceil(PIXELS);
    let mut each = vec![0f32; batch * tasks];
    let shared = SharedMut::new(&mut each);
    parallel_for(batch * tasks, |task| {
        let first = task / tasks * pixels + task % tasks * PIXELS;
        let count = PIXELS.min(pixels - task % tasks * PIXELS);
        let x = &x[first * channels..][..count * channels];
        // SAFETY: each task has an element of its own.
        let most = unsafe { shared.range(task..task + 1) };
        most[0] = match &w.factors {
            None => largest(x, None),
            Some(factors) => x.chunks_exact(channels).map(|pixel| largest(pixel, Some(factors))).fold(0.0, greater),
        };
    });
    each.chunks_exact(tasks.max(1)).map(|image| Scale::of(image.iter().copied().fold(0.0, greater))).collect()
}

/// Images in 8 bits with their padding in memory.
struct Padded {
    batch: usize,
    channels: usize,
    /// Height and width of the images.
    from: [usize; 2],
    /// Height and width with their padding.
    size: [usize; 2],
    /// Lines and columns in front of the images, and those that are left out there, where windows begin inside.
    before: [usize; 2],
    step: usize,
}

impl Padded {
    fn new(shape: &Conv2dShape) -> Self {
        let [top, bottom, left, right] = shape.padding;
        Self {
            batch: shape.batch,
            channels: shape.in_channels,
            from: [shape.height, shape.width],
            size: [shape.height + top + bottom, shape.width + left + right],
            before: [top, left],
            step: shape.stride,
        }
    }

    /// Bytes of all, with room for what tiles read after the last window.
    fn len(&self) -> usize {
        self.batch * self.size[0] * self.size[1] * self.channels + MOST_ROWS * self.step * self.channels + STEP
    }

    /// The beginning of line `y` of the window at a position of the output.
    #[inline(always)]
    fn at(&self, image: usize, row: usize, column: usize, y: usize) -> usize {
        let line = image * self.size[0] + row * self.step + y;
        (line * self.size[1] + column * self.step) * self.channels
    }

    /// Quantises images; their padding is zeros.
    fn fill<T: Element>(&self, x: &[T], w: &QuantisedWeights, scales: &[Scale], to: &mut [u8]) {
        let [height, width] = self.from;
        let (line, used) = (self.size[1] * self.channels, width * self.channels);
        let left = self.before[1] * self.channels;
        let shared = SharedMut::new(to);
        parallel_for(self.batch * self.size[0], |i| {
            // SAFETY: lines do not overlap.
            let to = unsafe { shared.range(i * line..(i + 1) * line) };
            let (image, y) = (i / self.size[0], i % self.size[0]);
            let Some(y) = y.checked_sub(self.before[0]).filter(|&y| y < height) else {
                return to.fill(OFFSET as u8);
            };
            to[..left].fill(OFFSET as u8);
            to[left + used..].fill(OFFSET as u8);
            let (x, to) = (&x[(image * height + y) * used..][..used], &mut to[left..left + used]);
            let inverse = scales[image].inverse;
            match &w.factors {
                None => quantise(x, None, inverse, to),
                Some(factors) => {
                    for (x, to) in x.chunks_exact(self.channels).zip(to.chunks_exact_mut(self.channels)) {
                        quantise(x, Some(factors), inverse, to);
                    }
                }
            }
        });
    }
}
