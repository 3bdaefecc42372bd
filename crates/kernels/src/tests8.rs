//! Products in 8 bits against a slow reference: the same bits, over odd shapes, in both storage types, for any number of threads and any
//! batch. `lesser_instruction_sets` runs them on each.

use calotype_core::{Purpose, Stream};
use half::bf16;

use crate::reference::{self, quantised};
use crate::*;

/// Normal numbers that are exact in bf16, with rows that are larger than others.
fn values(len: usize, index: u64) -> Vec<f32> {
    let mut values = vec![0.0; len];
    Stream::new(23, Purpose::Evaluation, index).fill_normal(&mut values);
    values.iter().enumerate().map(|(i, &x)| bf16::from_f32(x * (1.0 + (i / 97 % 5) as f32)).to_f32()).collect()
}

fn stored<T: Element>(x: &[f32]) -> Vec<T> {
    x.iter().map(|&x| T::from_f32(x)).collect()
}

/// Weights in 8 bits, `[outputs, inputs, kernel height, kernel width]`.
struct Weights {
    numbers: Vec<i8>,
    scales: Vec<f32>,
    smooth: Option<Vec<f32>>,
    sizes: [usize; 4],
}

impl Weights {
    fn new(sizes: [usize; 4], smooth: bool) -> Self {
        let [outputs, inputs, rows, columns] = sizes;
        let (numbers, scales) = quantise_rows(&values(sizes.iter().product(), 2), inputs * rows * columns);
        let smooth = smooth.then(|| (0..inputs).map(|i| 0.25 + (i % 7) as f32).collect());
        assert_eq!(scales.len(), outputs);
        Self { numbers, scales, smooth, sizes }
    }

    fn stored(&self) -> StoredWeight8<'_> {
        let [outputs, inputs, rows, columns] = self.sizes;
        let (bytes, smooth) = (bytemuck::cast_slice(&self.numbers), self.smooth.as_deref());
        StoredWeight8 { bytes, scales: &self.scales, smooth, outputs, inputs, kernel: [rows, columns] }
    }

    fn packed(&self) -> QuantisedWeights {
        QuantisedWeights::new(&self.stored()).expect("neither empty nor too long")
    }

    fn factors(&self) -> Option<Vec<f32>> {
        self.smooth.as_ref().map(|smooth| smooth.iter().map(|smooth| 1.0 / smooth).collect())
    }
}

fn bits<T: Element>(x: &[T]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

fn linear_case<T: Element>((m, n, k): (usize, usize, usize), smooth: bool) {
    let what = format!("{} {m} x {k} x {n}, smooth {smooth}", T::NAME);
    let w = Weights::new([n, k, 1, 1], smooth);
    let (x, bias, residual) = (values(m * k, 1), values(n, 3), values(m * n, 4));
    let (tx, tr) = (stored::<T>(&x), stored::<T>(&residual));
    let packed = w.packed();
    let factors = w.factors();
    let rows: Vec<_> = (0..m).map(|i| quantised(&x[i * k..][..k], factors.as_deref())).collect();
    let sum = |i: usize, j: usize| -> f32 {
        let (numbers, scale) = &rows[i];
        let whole: i64 = (0..k).map(|p| numbers[p] * i64::from(w.numbers[j * k + p])).sum();
        whole as f32 * scale * w.scales[j]
    };
    let expected =
        |f: &dyn Fn(usize, usize) -> f32| -> Vec<T> { (0..m * n).map(|at| T::from_f32(f(at / n, at % n))).collect() };
    let mut y = vec![T::from_f32(f32::NAN); m * n];
    linear_forward_int8(&tx, &packed, None, None, &mut y, m, k, n);
    assert!(bits(&y) == bits(&expected(&|i, j| sum(i, j) + 0.0)), "{what}");
    linear_forward_int8(&tx, &packed, Some(&bias), Some(&tr), &mut y, m, k, n);
    let whole = |i: usize, j: usize| sum(i, j) + bias[j] + residual[i * n + j];
    assert!(bits(&y) == bits(&expected(&whole)), "{what}, bias and residual");
}

#[test]
fn linear_layers_in_8_bits() {
    for m in [0, 1, 3, 13, 14, 15, 33, 130] {
        for n in [1, 5, 32, 33, 100] {
            for k in [1, 3, 15, 16, 17, 64, 65, 300] {
                linear_case::<f32>((m, n, k), (m + n + k) % 2 == 0);
                linear_case::<bf16>((m, n, k), (m + n + k) % 2 == 1);
            }
        }
    }
    for shape in [(1000, 40, 33), (260, 70, 1300), (2, 3, 5120), (500, 640, 96)] {
        linear_case::<f32>(shape, true);
        linear_case::<bf16>(shape, false);
    }
}

#[test]
fn gated_layers_in_8_bits() {
    for (m, c, k) in [(0, 16, 4), (1, 16, 3), (33, 48, 65), (65, 208, 300), (200, 64, 1000)] {
        let w = Weights::new([2 * c, k, 1, 1], m % 2 == 0);
        let (x, bias) = (stored::<bf16>(&values(m * k, 1)), values(2 * c, 3));
        let gated = QuantisedWeights::for_geglu(&w.stored()).expect("a multiple of 16");
        assert!(gated.is_gated());
        assert_eq!(bits(&gated.unpack()), bits(&w.packed().unpack()));
        let (mut both, mut one, mut two) = (vec![bf16::NAN; 2 * m * c], vec![bf16::NAN; m * c], vec![bf16::NAN; m * c]);
        linear_forward_int8(&x, &w.packed(), Some(&bias), None, &mut both, m, k, 2 * c);
        geglu_forward(&both, &mut two, m, c);
        linear_geglu_forward_int8(&x, &gated, Some(&bias), &mut one, m, k, c);
        assert!(one == two, "geglu in the product differs from geglu after it, {m} {c} {k}");
    }
    assert!(QuantisedWeights::for_geglu(&Weights::new([34, 4, 1, 1], false).stored()).is_none());
}

fn conv_case<T: Element>(shape: &Conv2dShape, smooth: bool) {
    let what = format!("{} {shape:?}, smooth {smooth}", T::NAME);
    let Conv2dShape { batch, in_channels, out_channels, kernel, .. } = *shape;
    let w = Weights::new([out_channels, in_channels, kernel[0], kernel[1]], smooth);
    let (x, bias) = (values(shape.input_len(), 1), values(out_channels, 3));
    let (added, residual) = (values(batch * out_channels, 5), values(shape.output_len(), 6));
    let product = reference::conv2d_8(shape, &x, &w.numbers, &w.scales, w.factors().as_deref());
    let (tx, ta, tr) = (stored::<T>(&x), stored::<T>(&added), stored::<T>(&residual));
    let mut y = vec![T::from_f32(f32::NAN); shape.output_len()];
    conv2d_forward_int8(shape, &tx, &w.packed(), None, None, None, &mut y);
    assert!(bits(&y) == bits(&stored::<T>(&product.iter().map(|x| x + 0.0).collect::<Vec<_>>())), "{what}");
    conv2d_forward_int8(shape, &tx, &w.packed(), Some(&bias), Some(&ta), Some(&tr), &mut y);
    let image = shape.out_height() * shape.out_width() * out_channels;
    let at = |i: usize| {
        let channel = i % out_channels;
        product[i] + (bias[channel] + added[i / image * out_channels + channel]) + residual[i]
    };
    let whole: Vec<f32> = (0..y.len()).map(at).collect();
    assert!(bits(&y) == bits(&stored::<T>(&whole)), "{what}, with all that is added");
}

fn conv_shapes() -> Vec<Conv2dShape> {
    let base = Conv2dShape {
        batch: 2,
        height: 9,
        width: 7,
        in_channels: 17,
        out_channels: 33,
        kernel: [3, 3],
        stride: 1,
        padding: [1; 4],
        per_image: true,
    };
    vec![
        base,
        Conv2dShape { stride: 2, ..base },
        Conv2dShape { stride: 2, padding: [0, 1, 0, 1], ..base },
        Conv2dShape { kernel: [1, 1], padding: [0; 4], ..base },
        Conv2dShape { kernel: [1, 1], padding: [0; 4], stride: 2, ..base },
        Conv2dShape { kernel: [1, 7], padding: [0, 0, 3, 3], ..base },
        Conv2dShape { in_channels: 3, height: 20, width: 31, ..base },
        Conv2dShape { in_channels: 64, out_channels: 65, ..base },
        Conv2dShape { batch: 0, ..base },
        Conv2dShape { height: 1, width: 1, ..base },
        Conv2dShape { batch: 1, height: 33, width: 40, in_channels: 32, out_channels: 48, ..base },
        Conv2dShape { batch: 3, height: 16, width: 16, in_channels: 16, out_channels: 16, stride: 2, ..base },
    ]
}

#[test]
fn convolutions_in_8_bits() {
    for (i, shape) in conv_shapes().iter().enumerate() {
        conv_case::<f32>(shape, i % 2 == 0);
        conv_case::<bf16>(shape, i % 2 == 1);
    }
}

#[test]
fn products_in_8_bits_of_any_number_of_threads_and_any_batch() {
    let shape = Conv2dShape { batch: 3, in_channels: 40, out_channels: 70, height: 12, ..conv_shapes()[0] };
    let w = Weights::new([70, 40, 3, 3], true);
    let linear = Weights::new([200, 96, 1, 1], false);
    let (x, rows) = (stored::<bf16>(&values(shape.input_len(), 1)), stored::<bf16>(&values(300 * 96, 2)));
    let convolved = |batch: usize, x: &[bf16]| {
        let shape = Conv2dShape { batch, ..shape };
        let mut y = vec![bf16::NAN; shape.output_len()];
        conv2d_forward_int8(&shape, x, &w.packed(), None, None, None, &mut y);
        bits(&y)
    };
    let multiplied = |rows: &[bf16]| {
        let mut y = vec![bf16::NAN; rows.len() / 96 * 200];
        linear_forward_int8(rows, &linear.packed(), None, None, &mut y, rows.len() / 96, 96, 200);
        bits(&y)
    };
    let (all_images, all_rows) = (convolved(3, &x), multiplied(&rows));
    for n in [1, 2, 3, 7] {
        set_threads(n);
        assert!(convolved(3, &x) == all_images && multiplied(&rows) == all_rows, "{n} threads");
        let image = x.len() / 3;
        let alone: Vec<u32> = x.chunks_exact(image).flat_map(|x| convolved(1, x)).collect();
        assert!(alone == all_images, "images by themselves, {n} threads");
        let alone: Vec<u32> = rows.chunks(96 * 7).flat_map(multiplied).collect();
        assert!(alone == all_rows, "rows by themselves, {n} threads");
    }
}

#[test]
fn rows_that_are_zero_or_not_finite() {
    let (k, n) = (70, 40);
    let w = Weights::new([n, k, 1, 1], false);
    let mut x = values(5 * k, 1);
    x[..k].fill(0.0);
    x[k + 3] = f32::NAN;
    x[2 * k + 69] = f32::NEG_INFINITY;
    x[3 * k..4 * k].fill(1e-44);
    let mut y = vec![1.0f32; 5 * n];
    linear_forward_int8(&x, &w.packed(), None, None, &mut y, 5, k, n);
    assert!(y[..n].iter().all(|&y| y == 0.0) && y[3 * n..4 * n].iter().all(|&y| y == 0.0));
    assert!(y[n..3 * n].iter().all(|y| y.is_nan()) && y[4 * n..].iter().all(|y| y.is_finite() && *y != 0.0));
}

#[test]
fn quantised_rows_are_whole_numbers_half_to_even() {
    let row: Vec<f32> = [127.0, 0.5, 1.5, -2.5, -0.5, -127.0, 126.5, 0.49].into();
    let (numbers, scales) = quantise_rows(&row, 8);
    assert_eq!((numbers, scales), (vec![127, 0, 2, -2, 0, -127, 126, 0], vec![1.0]));
    let w = Weights::new([3, 5, 3, 3], true);
    let (unpacked, smooth) = (w.packed().unpack(), w.smooth.as_deref().unwrap_or_default());
    for (at, value) in unpacked.iter().enumerate() {
        // `[outputs, rows, columns, inputs]` of `[outputs, inputs, rows, columns]`
        let (output, tap, input) = (at / 45, at / 5 % 9, at % 5);
        let number = f32::from(w.numbers[output * 45 + input * 9 + tap]);
        assert_eq!(*value, number * w.scales[output] * (1.0 / smooth[input]));
    }
}

#[test]
fn largest_magnitudes_of_columns() {
    let x = values(300 * 7, 1);
    let mut maxima = vec![0.25; 7];
    column_maxima(&x, &mut maxima);
    for (column, maximum) in maxima.iter().enumerate() {
        let exact = x.iter().skip(column).step_by(7).fold(0.25f32, |a, b| a.max(b.abs()));
        assert_eq!(*maximum, exact);
    }
    let mut maxima = vec![0.0; 2];
    column_maxima(&[bf16::ONE, bf16::NAN, bf16::from_f32(-3.0), bf16::ZERO], &mut maxima);
    assert!(maxima[0] == 3.0 && maxima[1].is_nan());
}

#[test]
fn sums_that_32_bits_do_not_hold_are_refused() {
    let (bytes, scales) = (vec![0; 65_537], [1.0]);
    let w = StoredWeight8 { bytes: &bytes, scales: &scales, smooth: None, outputs: 1, inputs: 65_537, kernel: [1, 1] };
    assert!(QuantisedWeights::new(&w).is_none());
    // The largest sum that there is: 255 times -128 in every term.
    let (bytes, x) = (vec![0x80; 65_536], vec![1.0f32; 65_536]);
    let w = StoredWeight8 { bytes: &bytes, inputs: 65_536, ..w };
    let mut y = [0.0];
    linear_forward_int8(&x, &QuantisedWeights::new(&w).expect("fits"), None, None, &mut y, 1, 65_536, 1);
    assert_eq!(y[0], (-128.0 * 127.0 * 65_536.0) * (1.0 / 127.0));
}
