//! The kernels against the references, over odd shapes, in both storage types; and the same bits for any number of
//! threads.

use calotype_core::{Purpose, Stream};
use half::bf16;
use proptest::prelude::*;

use crate::reference;
use crate::*;

/// Numbers of about unit size that are exact in bf16, so that both storage types start from the same values.
fn values(len: usize, index: u64) -> Vec<f32> {
    let mut values = vec![0.0; len];
    Stream::new(11, Purpose::Evaluation, index).fill_normal(&mut values);
    values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect()
}

fn stored<T: Element>(x: &[f32]) -> Vec<T> {
    x.iter().map(|&x| T::from_f32(x)).collect()
}

fn zeros<T: Element>(len: usize) -> Vec<T> {
    // Not zero: kernels that overwrite must not read what was there.
    vec![T::from_f32(f32::NAN); len]
}

/// Compares, with an error of f32 sums of `terms` terms and the rounding of the storage type.
#[track_caller]
fn near<T: Element>(what: &str, ours: &[T], exact: &[f64], terms: usize) {
    near_within(what, ours, exact, terms, |_| 0.0);
}

/// [`near`], with a further error that is allowed for each element.
#[track_caller]
fn near_within<T: Element>(what: &str, ours: &[T], exact: &[f64], terms: usize, further: impl Fn(usize) -> f64) {
    assert_eq!(ours.len(), exact.len(), "{what}");
    let size = exact.iter().fold(0.0f64, |a, b| a.max(b.abs()));
    let absolute = 4e-7 * (terms as f64).sqrt().max(4.0) * (size + 1.0);
    for (i, (a, b)) in ours.iter().zip(exact).enumerate() {
        let error = (a.to_f32() as f64 - b).abs();
        let limit = absolute + 1.1 * T::EPSILON as f64 * b.abs() + further(i);
        assert!(error <= limit, "{what}[{i}]: {a:?} instead of {b}, limit {limit:e}");
    }
}

fn shapes3() -> Vec<(usize, usize, usize)> {
    let mut shapes = vec![];
    for m in [0, 1, 3, 7, 17, 65, 130] {
        for n in [0, 1, 5, 16, 17, 33, 63, 100] {
            for k in [0, 1, 3, 27, 65, 300] {
                shapes.push((m, n, k));
            }
        }
    }
    shapes.extend([(300, 400, 70), (5, 9, 5000), (33, 40, 2100), (500, 17, 33), (260, 390, 600)]);
    shapes
}

fn gemm_case<T: Element>((m, n, k): (usize, usize, usize), layout: Layout, pad: usize, accumulate: bool) {
    let a_rows = matches!(layout, Layout::TN | Layout::TT);
    let b_rows = matches!(layout, Layout::NN | Layout::TN);
    let (ar, ac) = if a_rows { (k, m) } else { (m, k) };
    let (br, bc) = if b_rows { (k, n) } else { (n, k) };
    let (a, b) = (values(ar * (ac + pad), 1), values(br * (bc + pad), 2));
    let start = values(m * n, 3);
    let mut c = if accumulate { start.clone() } else { zeros(m * n) };
    let (ta, tb) = (stored::<T>(&a), stored::<T>(&b));
    crate::gemm::gemm(
        layout,
        (m, n, k),
        Matrix { data: &ta, row_stride: ac + pad },
        Matrix { data: &tb, row_stride: bc + pad },
        &mut c,
        accumulate,
    );
    let at = |i: usize, p: usize| if a_rows { a[p * (ac + pad) + i] } else { a[i * (ac + pad) + p] };
    let bt = |p: usize, j: usize| if b_rows { b[p * (bc + pad) + j] } else { b[j * (bc + pad) + p] };
    let mut exact = reference::matmul((m, n, k), at, bt);
    if accumulate {
        exact.iter_mut().zip(&start).for_each(|(c, s)| *c += *s as f64);
    }
    near(&format!("gemm {layout:?} {m} {n} {k}"), &c, &exact, k);
}

#[test]
fn gemm_all_layouts() {
    for shape in shapes3() {
        for layout in [Layout::NN, Layout::NT, Layout::TN, Layout::TT] {
            gemm_case::<f32>(shape, layout, 0, false);
        }
        gemm_case::<bf16>(shape, Layout::NT, 3, true);
        gemm_case::<bf16>(shape, Layout::TN, 1, false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn gemm_random_shapes(m in 0usize..90, n in 0usize..90, k in 0usize..700, which in 0usize..4, pad in 0usize..4) {
        gemm_case::<f32>((m, n, k), [Layout::NN, Layout::NT, Layout::TN, Layout::TT][which], pad, pad == 2);
    }

    #[test]
    fn conv_random_shapes(
        (batch, height, width) in (0usize..3, 1usize..9, 1usize..9),
        (cin, cout) in (1usize..20, 1usize..20),
        (kh, kw, stride) in (1usize..5, 1usize..5, 1usize..4),
        padding in prop::array::uniform4(0usize..4),
        per_image: bool,
    ) {
        let shape = Conv2dShape {
            batch, height, width, in_channels: cin, out_channels: cout, kernel: [kh, kw], stride, padding,
            per_image,
        };
        conv_case::<f32>(&shape);
        conv_case::<bf16>(&shape);
    }

    #[test]
    fn attention_random_shapes(
        (batch, heads) in (0usize..3, 1usize..3),
        (tq, tk, d) in (0usize..80, 0usize..80, 1usize..40),
        causal: bool,
    ) {
        let shape = AttentionShape {
            batch, query_tokens: tq, key_tokens: tk, heads, head_dim: d, causal, scale: 1.0 / (d as f32).sqrt(),
        };
        attention_case::<f32>(&shape);
        attention_case::<bf16>(&shape);
    }
}

fn linear_case<T: Element>((m, n, k): (usize, usize, usize)) {
    let what = format!("linear {} {m} {n} {k}", T::NAME);
    let (x, w, bias) = (values(m * k, 1), values(n * k, 2), values(n, 3));
    let (residual, dy) = (values(m * n, 4), values(m * n, 5));
    let (tx, tr, tdy) = (stored::<T>(&x), stored::<T>(&residual), stored::<T>(&dy));
    let (mut y, mut dx, mut dw, mut db) = (zeros::<T>(m * n), zeros::<T>(m * k), zeros(n * k), zeros(n));
    let product = reference::matmul((m, n, k), |i, p| x[i * k + p], |p, j| w[j * k + p]);
    linear_forward(&tx, &w, None, None, &mut y, m.into(), k, n);
    near(&what, &y, &product, k);
    linear_forward(&tx, &w, Some(&bias), Some(&tr), &mut y, m.into(), k, n);
    let full: Vec<f64> = (0..m * n).map(|i| product[i] + bias[i % n] as f64 + residual[i] as f64).collect();
    near(&what, &y, &full, k);
    linear_backward_input(&tdy, &w, &mut dx, m, k, n);
    near(&what, &dx, &reference::matmul((m, k, n), |i, p| dy[i * n + p], |p, j| w[p * k + j]), n);
    linear_backward_weight(&tdy, &tx, &mut dw, Some(&mut db), m, k, n);
    near(&what, &dw, &reference::matmul((n, k, m), |i, p| dy[p * n + i], |p, j| x[p * k + j]), m);
    near(&what, &db, &reference::matmul((1, n, m), |_, _| 1.0, |p, j| dy[p * n + j]), m);
}

#[test]
fn linear() {
    for (m, n, k) in shapes3() {
        if m * n * k < 1 << 22 {
            linear_case::<f32>((m, n, k));
            linear_case::<bf16>((m, n, k));
        }
    }
    linear_case::<f32>((6000, 7, 12));
}

#[test]
fn packed_weights_give_what_plain_weights_give() {
    for (m, n, k) in [(1, 5, 3), (17, 33, 65), (65, 100, 1300), (130, 64, 96), (0, 4, 4), (3, 4, 0)] {
        let (x, w, bias) = (stored::<bf16>(&values(m * k, 1)), values(n * k, 2), values(n, 3));
        let Some(packed) = PackedWeights::for_linear(&w, n, k) else { return };
        let mut y = zeros::<bf16>(m * n);
        linear_forward_packed(&x, &packed, Some(&bias), None, &mut y, m.into(), k, n);
        let product = reference::matmul((m, n, k), |i, p| x[i * k + p].to_f32(), |p, j| w[j * k + p]);
        let exact: Vec<f64> = (0..m * n).map(|i| product[i] + bias[i % n] as f64).collect();
        near(&format!("packed linear {m} {n} {k}"), &y, &exact, k);
    }
    for (m, c, k) in [(1, 16, 3), (33, 48, 65), (65, 208, 1300), (200, 64, 5000), (0, 16, 4), (3, 16, 0)] {
        let (x, w, bias) = (stored::<bf16>(&values(m * k, 1)), values(2 * c * k, 2), values(2 * c, 3));
        let Some(packed) = PackedWeights::for_linear_geglu(&w, c, k) else { return };
        let mut y = zeros::<bf16>(m * c);
        linear_geglu_forward_packed(&x, &packed, Some(&bias), &mut y, m.into(), k, c);
        let product = reference::matmul((m, 2 * c, k), |i, p| x[i * k + p].to_f32(), |p, j| w[j * k + p]);
        let at = |r: usize, j: usize| product[r * 2 * c + j] + bias[j] as f64;
        let exact = (0..m * c)
            .map(|i| (i / c, i % c))
            .map(|(r, j)| at(r, j) * reference::activation(Activation::Gelu, at(r, c + j)));
        let exact: Vec<f64> = exact.collect();
        // What is between the layer and the GEGLU is rounded, too.
        near_within(&format!("packed geglu {m} {c} {k}"), &y, &exact, k, |i| 0.01 * (exact[i].abs() + 1.0));
        let (mut both, mut two) = (zeros::<bf16>(m * 2 * c), zeros::<bf16>(m * c));
        linear_forward(&x, &w, Some(&bias), None, &mut both, m.into(), k, 2 * c);
        geglu_forward(&both, &mut two, m, c);
        assert!(y == two, "geglu in the product differs from geglu after it, {m} {c} {k}");
    }
    assert!(PackedWeights::for_linear_geglu(&[0.0; 2 * 17 * 4], 17, 4).is_none());
    for (size, cin, cout, kernel, stride) in
        [(9, 32, 33, 3, 1), (16, 64, 40, 3, 2), (7, 5, 70, 1, 1), (40, 4, 32, 3, 1)]
    {
        let shape = Conv2dShape {
            batch: 2,
            height: size,
            width: size + 1,
            in_channels: cin,
            out_channels: cout,
            kernel: [kernel; 2],
            stride,
            padding: [kernel / 2; 4],
            per_image: false,
        };
        let (x, w) = (stored::<bf16>(&values(shape.input_len(), 1)), values(shape.weight_len(), 2));
        let Some(packed) = PackedWeights::for_conv(&shape, &w) else { return };
        let mut y = zeros::<bf16>(shape.output_len());
        conv2d_forward_packed(&shape, &x, &packed, None, None, None, &mut y);
        let Some(product) = PackedWeights::for_product_conv(&shape, &w) else { return };
        let (mut plain, mut rectified) = (zeros::<bf16>(shape.output_len()), zeros::<bf16>(shape.output_len()));
        conv2d_relu_forward(&shape, &x, &w, None, &mut plain);
        conv2d_relu_forward_packed(&shape, &x, &product, None, &mut rectified);
        assert!(plain == rectified, "relu {shape:?}");
        let x: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
        near(&format!("packed {shape:?}"), &y, &reference::conv2d(&shape, &x, &w), kernel * kernel * cin);
    }
}

#[test]
fn packed_weights_give_the_input_gradients_of_plain_ones() {
    for (m, n, k) in [(1, 32, 32), (17, 64, 352), (300, 320, 96), (65, 1056, 64), (2, 960, 2400)] {
        let (dy, w) = (stored::<bf16>(&values(m * n, 1)), values(n * k, 2));
        let Some(packed) = PackedWeights::for_linear(&w, n, k) else { return };
        assert!(packed.gives_input_gradients());
        let (mut plain, mut dx) = (zeros::<bf16>(m * k), zeros::<bf16>(m * k));
        linear_backward_input(&dy, &w, &mut plain, m, k, n);
        linear_backward_input_packed(&dy, &packed, &mut dx, m, k, n);
        assert!(dx == plain, "linear {m} {n} {k}");
    }
    for (n, k) in [(33, 32), (32, 48), (16, 32)] {
        let Some(packed) = PackedWeights::for_linear(&vec![0.0; n * k], n, k) else { return };
        assert!(!packed.gives_input_gradients(), "{n} x {k}");
    }
    for (size, cin, cout, kernel, stride) in [
        (9, 32, 64, 3, 1),
        (16, 64, 96, 3, 2),
        (7, 96, 352, 3, 1),
        (5, 32, 32, 1, 1),
        (4, 704, 32, 3, 1),
        (6, 64, 32, 2, 2),
    ] {
        let shape = Conv2dShape {
            batch: 2,
            height: size,
            width: size + 2,
            in_channels: cin,
            out_channels: cout,
            kernel: [kernel; 2],
            stride,
            padding: [kernel / 2, 0, kernel / 2, 1],
            per_image: false,
        };
        let (dy, w) = (stored::<bf16>(&values(shape.output_len(), 1)), values(shape.weight_len(), 2));
        let Some(packed) = PackedWeights::for_conv(&shape, &w) else { return };
        let (mut plain, mut dx) = (zeros::<bf16>(shape.input_len()), zeros::<bf16>(shape.input_len()));
        conv2d_backward_input(&shape, &dy, &w, &mut plain);
        conv2d_backward_input_packed(&shape, &dy, &packed, &mut dx);
        assert!(dx == plain, "{shape:?}");
    }
}

#[test]
fn optimizer_steps_pack_the_new_weights() {
    for (n, kernel, cin) in [(1, 1, 1), (70, 1, 40), (65, 1, 1300), (33, 3, 5), (64, 3, 224), (128, 3, 160)] {
        let len = n * kernel * kernel * cin;
        let shape = Conv2dShape {
            // Enough for Winograd of the last one.
            batch: 8,
            height: 6,
            width: 5,
            in_channels: cin,
            out_channels: n,
            kernel: [kernel; 2],
            stride: 1,
            padding: [kernel / 2; 4],
            per_image: false,
        };
        let [mut p, mut m, mut v, mut ema] =
            [1, 2, 3, 4].map(|i| values(len, i).iter().map(|x| x * x).collect::<Vec<_>>());
        let Some(mut packed) = PackedWeights::for_conv(&shape, &p) else { return };
        let mut plain = [&p, &m, &v, &ema].map(|values| values.clone());
        let g = values(len, 5);
        for packed in [Some(&mut packed), None] {
            let state = if packed.is_some() { [&mut p, &mut m, &mut v, &mut ema] } else { plain.each_mut() };
            let [parameter, first_moment, second_moment, average] = state.map(Vec::as_mut_slice);
            let average = Some(average);
            let step = Stepped { parameter, gradient: &g, first_moment, second_moment, average, packed };
            adamw_step(&AdamW::default(), 3, 0.5, 0.9, [step]);
        }
        assert!([&p, &m, &v, &ema].map(|values| values.clone()) == plain, "packing changes the step");
        let x = stored::<bf16>(&values(shape.input_len(), 6));
        let (mut old, mut new) = (zeros::<bf16>(shape.output_len()), zeros::<bf16>(shape.output_len()));
        conv2d_forward(&shape, &x, &p, None, None, None, &mut old);
        conv2d_forward_packed(&shape, &x, &packed, None, None, None, &mut new);
        assert!(old == new, "{n} {kernel} {cin}");
    }
}

fn conv_case<T: Element>(shape: &Conv2dShape) {
    let what = format!("{} {shape:?}", T::NAME);
    let (x, w) = (values(shape.input_len(), 1), values(shape.weight_len(), 2));
    let (bias, dy) = (values(shape.out_channels, 3), values(shape.output_len(), 4));
    let (added, residual) = (values(shape.batch * shape.out_channels, 5), values(shape.output_len(), 6));
    let terms = shape.in_channels * shape.kernel[0] * shape.kernel[1];
    let (tx, tdy) = (stored::<T>(&x), stored::<T>(&dy));
    let mut y = zeros::<T>(shape.output_len());
    let product = reference::conv2d(shape, &x, &w);
    conv2d_forward(shape, &tx, &w, None, None, None, &mut y);
    near(&what, &y, &product, terms);
    conv2d_relu_forward(shape, &tx, &w, Some(&bias), &mut y);
    let biased = (0..y.len()).map(|i| product[i] + bias[i % shape.out_channels] as f64);
    near(&format!("relu {what}"), &y, &biased.map(|y| y.max(0.0)).collect::<Vec<_>>(), terms);
    let (ta, tr) = (stored::<T>(&added), stored::<T>(&residual));
    conv2d_forward(shape, &tx, &w, Some(&bias), Some(&ta), Some(&tr), &mut y);
    let (c, image) = (shape.out_channels, shape.out_height() * shape.out_width() * shape.out_channels);
    let full: Vec<f64> = (0..y.len())
        .map(|i| product[i] + bias[i % c] as f64 + added[i / image * c + i % c] as f64 + residual[i] as f64)
        .collect();
    near(&what, &y, &full, terms);
    let (mut dx, mut dw, mut db) = (zeros::<T>(x.len()), zeros(w.len()), zeros(c));
    let (exact_dx, exact_dw) = reference::conv2d_backward(shape, &x, &w, &dy);
    conv2d_backward_input(shape, &tdy, &w, &mut dx);
    near(&format!("dx {what}"), &dx, &exact_dx, c * shape.kernel[0] * shape.kernel[1]);
    conv2d_backward_weight(shape, &tdy, &tx, &mut dw, Some(&mut db));
    let rows = y.len() / c;
    near(&format!("dw {what}"), &dw, &exact_dw, rows);
    near(&format!("db {what}"), &db, &reference::matmul((1, c, rows), |_, _| 1.0, |p, j| dy[p * c + j]), rows);
}

#[test]
fn conv() {
    let base = Conv2dShape {
        batch: 2,
        height: 9,
        width: 7,
        in_channels: 17,
        out_channels: 33,
        kernel: [3, 3],
        stride: 1,
        padding: [1; 4],
        per_image: false,
    };
    let shapes = [
        base,
        Conv2dShape { stride: 2, ..base },
        Conv2dShape { stride: 2, padding: [0, 1, 0, 1], ..base },
        Conv2dShape { kernel: [1, 1], padding: [0; 4], ..base },
        Conv2dShape { kernel: [1, 1], padding: [0; 4], stride: 2, ..base },
        Conv2dShape { kernel: [1, 7], padding: [0, 0, 3, 3], ..base },
        Conv2dShape { kernel: [16, 16], height: 32, width: 32, stride: 16, padding: [0; 4], in_channels: 3, ..base },
        Conv2dShape { in_channels: 3, height: 20, width: 31, ..base },
        Conv2dShape { in_channels: 4, out_channels: 65, ..base },
        Conv2dShape { in_channels: 65, out_channels: 3, ..base },
        Conv2dShape { batch: 0, ..base },
        Conv2dShape { per_image: true, ..base },
        Conv2dShape { batch: 0, in_channels: 32, out_channels: 32, height: 16, per_image: true, ..base },
        Conv2dShape { batch: 5, in_channels: 128, out_channels: 32, per_image: true, ..base },
        Conv2dShape { height: 1, width: 1, ..base },
        Conv2dShape { batch: 3, height: 30, width: 30, in_channels: 16, out_channels: 16, ..base },
    ];
    for shape in &shapes {
        conv_case::<f32>(shape);
        conv_case::<bf16>(shape);
    }
}

fn attention_case<T: Element>(shape: &AttentionShape) {
    let what = format!("{} {shape:?}", T::NAME);
    let (q, k) = (values(shape.query_len(), 1), values(shape.key_len(), 2));
    let (v, dout) = (values(shape.key_len(), 3), values(shape.query_len(), 4));
    let (tq, tk, tv, td) = (stored::<T>(&q), stored::<T>(&k), stored::<T>(&v), stored::<T>(&dout));
    let (mut out, mut lse) = (zeros::<T>(q.len()), zeros(shape.lse_len()));
    attention_forward(shape, &tq, &tk, &tv, &mut out, &mut lse);
    let (exact, exact_lse) = reference::attention(shape, &q, &k, &v);
    let terms = 64 * (shape.key_tokens + shape.head_dim);
    // With bf16, probabilities and the slopes of scores may be rounded once more, where they become operands.
    let rounded = reference::attention_rounding(shape, &q, &k, &v, &dout);
    let unit = if T::IS_HALF { 1.05 * T::EPSILON as f64 } else { 0.0 };
    near_within(&what, &out, &exact, terms, |i| unit * rounded[0][i]);
    if shape.key_tokens > 0 {
        near(&what, &lse, &exact_lse, terms);
    } else {
        assert!(lse.iter().all(|&x| x == f32::NEG_INFINITY));
    }
    let [mut dq, mut dk, mut dv] = [zeros::<T>(q.len()), zeros::<T>(k.len()), zeros::<T>(k.len())];
    attention_backward(shape, &tq, &tk, &tv, &out, &lse, &td, &mut dq, &mut dk, &mut dv);
    let exact = reference::attention_backward(shape, &q, &k, &v, &dout);
    for (which, (ours, exact)) in [&dq, &dk, &dv].into_iter().zip(&exact).enumerate() {
        let further = |i: usize| unit * rounded[which + 1][i];
        near_within(&format!("{} of {what}", ["dq", "dk", "dv"][which]), ours, exact, 16 * terms, further);
    }
}

#[test]
fn attention() {
    let base = AttentionShape {
        batch: 2,
        query_tokens: 64,
        key_tokens: 64,
        heads: 3,
        head_dim: 40,
        causal: false,
        scale: 0.15,
    };
    let shapes = [
        base,
        AttentionShape { causal: true, ..base },
        AttentionShape { query_tokens: 77, key_tokens: 77, causal: true, head_dim: 64, ..base },
        AttentionShape { query_tokens: 63, key_tokens: 5, head_dim: 8, ..base },
        AttentionShape { query_tokens: 1, key_tokens: 300, head_dim: 17, ..base },
        AttentionShape { query_tokens: 270, key_tokens: 530, heads: 1, ..base },
        AttentionShape { query_tokens: 530, key_tokens: 530, heads: 1, causal: true, ..base },
        AttentionShape { query_tokens: 20, key_tokens: 30, heads: 1, head_dim: 300, scale: 0.05, ..base },
        AttentionShape { query_tokens: 1030, key_tokens: 40, heads: 1, batch: 1, ..base },
        AttentionShape { query_tokens: 7, key_tokens: 77, head_dim: 1, heads: 5, ..base },
        AttentionShape { query_tokens: 65, key_tokens: 17, head_dim: 3, ..base },
        AttentionShape { query_tokens: 17, key_tokens: 65, head_dim: 65, scale: 0.12, ..base },
        AttentionShape { query_tokens: 33, key_tokens: 33, head_dim: 80, scale: 0.11, causal: true, ..base },
        AttentionShape { query_tokens: 5, key_tokens: 77, head_dim: 160, scale: 0.08, ..base },
        AttentionShape { query_tokens: 3, key_tokens: 1, head_dim: 4, ..base },
        // Few channels: several groups of keys, the last one short; few and many heads; an odd number of queries.
        AttentionShape { batch: 1, query_tokens: 131, key_tokens: 530, heads: 2, head_dim: 4, ..base },
        AttentionShape { batch: 1, query_tokens: 40, key_tokens: 1025, heads: 1, head_dim: 7, ..base },
        AttentionShape { query_tokens: 19, key_tokens: 290, heads: 33, head_dim: 6, ..base },
        // Queries before the first key of a block see none of it; more keys than queries.
        AttentionShape { query_tokens: 40, key_tokens: 530, heads: 1, causal: true, ..base },
        // Several tasks for a head, in both passes.
        AttentionShape { batch: 1, query_tokens: 700, key_tokens: 700, heads: 1, head_dim: 16, causal: true, ..base },
        // Many keys, and channels that fill a vector, or nearly.
        AttentionShape { query_tokens: 150, key_tokens: 1100, heads: 1, ..base },
        AttentionShape { batch: 1, query_tokens: 40, key_tokens: 2060, head_dim: 64, ..base },
        AttentionShape { query_tokens: 33, key_tokens: 1025, heads: 1, head_dim: 31, ..base },
        AttentionShape { query_tokens: 130, key_tokens: 31, heads: 1, head_dim: 32, ..base },
        // Scores of very different size.
        AttentionShape { query_tokens: 65, key_tokens: 300, heads: 1, scale: 3.0, ..base },
        // Exponents that are bounded, but whose sums are not near 1; exponents that are not bounded.
        AttentionShape { query_tokens: 65, key_tokens: 300, heads: 1, scale: 5.0, ..base },
        AttentionShape { query_tokens: 65, key_tokens: 300, heads: 1, scale: 12.0, ..base },
        AttentionShape { scale: -0.15, ..base },
        AttentionShape { scale: 0.0, ..base },
        AttentionShape { batch: 0, ..base },
        AttentionShape { key_tokens: 0, ..base },
        AttentionShape { query_tokens: 0, ..base },
    ];
    for shape in &shapes {
        attention_case::<f32>(shape);
        attention_case::<bf16>(shape);
    }
}

/// Heads whose scores are too large for the short way, or not finite, do not disturb the others.
#[test]
fn attention_with_unusual_heads() {
    let shape = AttentionShape {
        batch: 1,
        query_tokens: 150,
        key_tokens: 90,
        heads: 4,
        head_dim: 24,
        causal: false,
        scale: 0.2,
    };
    let (mut q, mut k, v) = (values(shape.query_len(), 1), values(shape.key_len(), 2), values(shape.key_len(), 3));
    for i in 0..shape.query_tokens {
        q[(i * 4 + 1) * 24..][..24].iter_mut().for_each(|x| *x *= 64.0);
    }
    k[(50 * 4 + 2) * 24 + 5] = f32::NAN;
    let (mut out, mut lse) = (zeros::<bf16>(q.len()), zeros(shape.lse_len()));
    let [tq, tk, tv] = [&q, &k, &v].map(|x| stored::<bf16>(x));
    attention_forward(&shape, &tq, &tk, &tv, &mut out, &mut lse);
    let head = |all: &[bf16], head: usize| -> Vec<bf16> {
        all.chunks_exact(24).skip(head).step_by(4).flatten().copied().collect()
    };
    assert!(head(&out, 2).iter().all(|x| x.to_f32().is_nan()), "a key that is not a number");
    assert!(lse[300..450].iter().all(|x| x.is_nan()));
    for h in [0, 1, 3] {
        let one = AttentionShape { heads: 1, ..shape };
        let [q, k, v] = [&tq, &tk, &tv].map(|x| head(x, h));
        let wide = |x: &[bf16]| -> Vec<f32> { x.iter().map(|x| x.to_f32()).collect() };
        let (exact, exact_lse) = reference::attention(&one, &wide(&q), &wide(&k), &wide(&v));
        let rounded = reference::attention_rounding(&one, &wide(&q), &wide(&k), &wide(&v), &wide(&q));
        let further = |i: usize| 1.05 * bf16::EPSILON.to_f64() * rounded[0][i];
        near_within(&format!("head {h}"), &head(&out, h), &exact, 4096, further);
        near(&format!("lse of head {h}"), &lse[h * 150..][..150], &exact_lse, 4096);
    }
}

fn norm_case<T: Element>(batch: usize, pixels: usize, c: usize, groups: usize, silu: bool, shift: f32) {
    let what = format!("group norm {} {batch} {pixels} {c} {groups} {silu}", T::NAME);
    let x: Vec<f32> = values(batch * pixels * c, 1).iter().map(|x| bf16::from_f32(x + shift).to_f32()).collect();
    let (gamma, beta, dy) = (values(c, 2), values(c, 3), values(x.len(), 4));
    let exact = reference::GroupNorm { batch, pixels, groups, silu, eps: 1e-5, gamma: &gamma, beta: &beta };
    let (tx, tdy) = (stored::<T>(&x), stored::<T>(&dy));
    let (mut y, mut mean, mut rstd) = (zeros::<T>(x.len()), zeros(batch * groups), zeros(batch * groups));
    let (mut dx, mut dgamma, mut dbeta) = (zeros::<T>(x.len()), zeros(c), zeros(c));
    let (forward, backward) = (exact.forward(&x), exact.backward(&x, &dy));
    // A single element, or a constant group, is divided by sqrt(eps): rounding errors grow with it.
    let terms = if shift != 0.0 || pixels * c / groups == 1 { 1 << 16 } else { 4 * (pixels * c + 64) };
    if pixels > 0 {
        group_norm_forward(&tx, &gamma, &beta, groups, 1e-5, silu, &mut y, &mut mean, &mut rstd);
        near(&what, &y, &forward[0], terms);
        near(&what, &mean, &forward[1], terms);
        near(&what, &rstd, &forward[2], terms);
        group_norm_backward(&tx, &tdy, &gamma, &beta, &mean, &rstd, groups, silu, &mut dx, &mut dgamma, &mut dbeta);
        near(&format!("{what} dx"), &dx, &backward[0], terms);
        near(&format!("{what} dgamma"), &dgamma, &backward[1], terms * batch.max(1));
        near(&format!("{what} dbeta"), &dbeta, &backward[2], terms * batch.max(1));
    }
    if pixels == 1 && groups == 1 && !silu {
        layer_norm_forward(&tx, &gamma, &beta, 1e-5, &mut y, &mut mean, &mut rstd);
        near(&what, &y, &forward[0], terms);
        near(&what, &mean, &forward[1], terms);
        near(&what, &rstd, &forward[2], terms);
        layer_norm_backward(&tx, &tdy, &gamma, &mean, &rstd, &mut dx, &mut dgamma, &mut dbeta);
        near(&format!("{what} dx"), &dx, &backward[0], terms);
        near(&format!("{what} dgamma"), &dgamma, &backward[1], terms * batch.max(1));
        near(&format!("{what} dbeta"), &dbeta, &backward[2], terms * batch.max(1));
    }
}

#[test]
fn norms() {
    for silu in [false, true] {
        for (batch, pixels, c, groups) in
            [(2, 64, 32, 8), (1, 1, 32, 2), (3, 7, 15, 5), (2, 1000, 17, 1), (1, 63, 130, 65), (0, 5, 8, 2)]
        {
            norm_case::<f32>(batch, pixels, c, groups, silu, 0.0);
            norm_case::<bf16>(batch, pixels, c, groups, silu, 0.0);
        }
    }
    norm_case::<f32>(2, 500, 16, 4, false, 100.0);
    for (rows, c) in [(1, 2), (7, 17), (65, 63), (300, 320), (0, 5)] {
        norm_case::<f32>(rows, 1, c, 1, false, 0.0);
        norm_case::<bf16>(rows, 1, c, 1, false, 0.0);
    }
}

const ACTIVATIONS: [Activation; 5] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];

fn activation_case<T: Element>(len: usize) {
    let x: Vec<f32> = values(len, 1).iter().map(|x| x * 4.0).collect();
    let dy = values(len, 2);
    let (tx, tdy) = (stored::<T>(&x), stored::<T>(&dy));
    let (mut y, mut dx) = (zeros::<T>(len), zeros::<T>(len));
    for kind in ACTIVATIONS {
        let what = format!("{kind:?} {}", T::NAME);
        let f = |x: f64| reference::activation(kind, x);
        activation_forward(kind, &tx, &mut y);
        near(&what, &y, &x.iter().map(|&x| f(x as f64)).collect::<Vec<_>>(), 1);
        activation_backward(kind, &tx, &tdy, &mut dx);
        let exact: Vec<f64> = x.iter().zip(&dy).map(|(&x, &dy)| dy as f64 * reference::slope(f, x as f64)).collect();
        near(&what, &dx, &exact, 1);
    }
}

fn geglu_case<T: Element>(rows: usize, c: usize) {
    let (x, dy) = (values(rows * 2 * c, 1), values(rows * c, 2));
    let (tx, tdy) = (stored::<T>(&x), stored::<T>(&dy));
    let (mut y, mut dx) = (zeros::<T>(rows * c), zeros::<T>(x.len()));
    geglu_forward(&tx, &mut y, rows, c);
    geglu_backward(&tx, &tdy, &mut dx, rows, c);
    let gelu = |x: f64| reference::activation(Activation::Gelu, x);
    let (mut exact, mut exact_dx) = (vec![0.0; y.len()], vec![0.0; x.len()]);
    for r in 0..rows {
        for i in 0..c {
            let (v, g) = (x[r * 2 * c + i] as f64, x[r * 2 * c + c + i] as f64);
            let dy = dy[r * c + i] as f64;
            exact[r * c + i] = v * gelu(g);
            exact_dx[r * 2 * c + i] = dy * gelu(g);
            exact_dx[r * 2 * c + c + i] = dy * v * reference::slope(gelu, g);
        }
    }
    near("geglu", &y, &exact, 1);
    near("geglu dx", &dx, &exact_dx, 1);
}

#[test]
fn activations() {
    for len in [0, 1, 3, 17, 65, 40_000] {
        activation_case::<f32>(len);
        activation_case::<bf16>(len);
    }
    for (rows, c) in [(0, 3), (1, 1), (5, 17), (63, 65), (3, 20_000), (4, 0)] {
        geglu_case::<f32>(rows, c);
        geglu_case::<bf16>(rows, c);
    }
}

#[test]
fn activations_at_the_ends() {
    let x = [-1e30f32, -200.0, -90.0, 90.0, 200.0, 1e30];
    for kind in ACTIVATIONS {
        let (mut y, mut dx) = ([7.0f32; 6], [7.0f32; 6]);
        activation_forward(kind, &x, &mut y);
        activation_backward(kind, &x, &[1.0; 6], &mut dx);
        for i in 0..3 {
            assert!(y[i].abs() < 1e-30 && y[3 + i] == x[3 + i], "{kind:?} {y:?}");
            assert!(dx[i].abs() < 1e-30 && dx[3 + i] == 1.0, "{kind:?} {dx:?}");
        }
    }
}

fn pool_case<T: Element>(kind: Pooling, shape: &Pool2dShape) {
    let s = shape;
    let (x, dy) = (values(s.input_len(), 1), values(s.output_len(), 2));
    let (tx, tdy) = (stored::<T>(&x), stored::<T>(&dy));
    let (mut y, mut dx) = (zeros::<T>(dy.len()), zeros::<T>(x.len()));
    pool2d_forward(kind, s, &tx, &mut y);
    pool2d_backward(kind, s, &tx, &tdy, &mut dx);
    let (mut exact, mut exact_dx) = (vec![0.0f64; dy.len()], vec![0.0f64; x.len()]);
    for i in 0..dy.len() {
        let (place, c) = (i / s.channels, i % s.channels);
        let (ox, rest) = (place % s.out_width(), place / s.out_width());
        let (oy, b) = (rest % s.out_height(), rest / s.out_height());
        let mut taps = vec![];
        for tap in 0..s.size * s.size {
            let iy = (oy * s.stride + tap / s.size).wrapping_sub(s.padding);
            let ix = (ox * s.stride + tap % s.size).wrapping_sub(s.padding);
            if iy < s.height && ix < s.width {
                taps.push(((b * s.height + iy) * s.width + ix) * s.channels + c);
            }
        }
        if kind == Pooling::Max {
            let greatest = taps.iter().copied().fold(taps[0], |a, b| if x[b] > x[a] { b } else { a });
            taps = vec![greatest];
        }
        for &tap in &taps {
            exact[i] += x[tap] as f64 / taps.len() as f64;
            exact_dx[tap] += dy[i] as f64 / taps.len() as f64;
        }
    }
    near(&format!("{kind:?} {s:?} {}", T::NAME), &y, &exact, 9);
    near(&format!("gradient of {kind:?} {s:?} {}", T::NAME), &dx, &exact_dx, 9);
}

#[test]
fn pool() {
    for [batch, height, width, channels, size, stride, padding] in [
        [2, 7, 5, 17, 3, 2, 0],
        [2, 7, 5, 17, 3, 1, 1],
        [1, 8, 6, 40, 3, 2, 1],
        [3, 4, 4, 3, 2, 2, 0],
        [1, 1, 1, 1, 3, 1, 1],
        [0, 3, 3, 2, 3, 1, 1],
        [2, 2, 2, 5, 3, 1, 0],
        [1, 5, 9, 1, 5, 3, 2],
    ] {
        let shape = Pool2dShape { batch, height, width, channels, size, stride, padding };
        for kind in [Pooling::Max, Pooling::Average] {
            pool_case::<f32>(kind, &shape);
            pool_case::<bf16>(kind, &shape);
        }
    }
}

#[test]
fn resample() {
    for (b, h, w, c) in [(2, 3, 5, 17), (0, 1, 1, 1), (1, 1, 1, 1), (3, 4, 4, 0)] {
        let x = values(b * h * w * c, 1);
        let dy = values(4 * x.len(), 2);
        let (mut y, mut dx) = (zeros::<f32>(4 * x.len()), zeros::<f32>(x.len()));
        upsample_nearest2x_forward(&x, &mut y, b, h, w, c);
        upsample_nearest2x_backward(&dy, &mut dx, b, h, w, c);
        let mut exact = vec![0.0f64; x.len()];
        for i in 0..y.len() {
            let (rest, e) = (i / c, i % c);
            let (rest, px) = (rest / (2 * w), rest % (2 * w));
            let (image, py) = (rest / (2 * h), rest % (2 * h));
            let from = ((image * h + py / 2) * w + px / 2) * c + e;
            assert_eq!(y[i], x[from]);
            exact[from] += dy[i] as f64;
        }
        near("upsample", &dx, &exact, 4);
    }
}

#[test]
fn pointwise() {
    for len in [0, 1, 17, 70_000] {
        let (a, b) = (values(len, 1), values(len, 2));
        let mut y = zeros::<f32>(len);
        add(&a, &b, &mut y);
        assert!((0..len).all(|i| y[i] == a[i] + b[i]));
        add_assign(&mut y, &a);
        assert!((0..len).all(|i| y[i] == (a[i] + b[i]) + a[i]));
        scale(&a, 0.5, &mut y);
        assert!((0..len).all(|i| y[i] == 0.5 * a[i]));
        let mut narrow = zeros::<bf16>(len);
        f32_to_bf16(&y, &mut narrow);
        assert!((0..len).all(|i| narrow[i] == bf16::from_f32(y[i])));
        bf16_to_f32(&narrow, &mut y);
        assert!((0..len).all(|i| y[i] == narrow[i].to_f32()));
    }
    for (rows, ca, cb) in [(0, 1, 2), (5, 3, 17), (1000, 64, 1), (4, 0, 3), (4, 3, 0), (2, 0, 0)] {
        let (a, b) = (values(rows * ca, 1), values(rows * cb, 2));
        let mut y = zeros::<f32>(rows * (ca + cb));
        concat_channels(&a, &b, &mut y, rows, ca, cb);
        for r in 0..rows {
            let row = &y[r * (ca + cb)..][..ca + cb];
            assert!(row[..ca] == a[r * ca..][..ca] && row[ca..] == b[r * cb..][..cb]);
        }
        let (mut a2, mut b2) = (zeros::<f32>(a.len()), zeros::<f32>(b.len()));
        split_channels(&y, &mut a2, &mut b2, rows, ca, cb);
        assert!(a == a2 && b == b2);
    }
    for (groups, rows, c) in [(1, 0, 3), (3, 1, 1), (2, 700, 17), (5, 64, 130), (2, 3, 0)] {
        let x = values(groups * rows * c, 1);
        let mut sum = zeros::<f32>(groups * c);
        sum_row_groups(&x, &mut sum, groups, rows, c);
        let mut exact = vec![0.0; groups * c];
        (0..x.len()).for_each(|i| exact[i / (rows * c) * c + i % c] += x[i] as f64);
        near("sum_row_groups", &sum, &exact, rows);
    }
}

#[test]
fn losses() {
    for (rows, c) in [(0, 0), (1, 1), (7, 17), (3, 40_000)] {
        let (a, b, w) = (values(rows * c, 1), values(rows * c, 2), values(rows, 3));
        for weights in [None, Some(&w[..])] {
            let weight = |i: usize| weights.map_or(1.0, |w| w[i / c] as f64);
            let n = (rows * c).max(1) as f64;
            let exact = (0..a.len()).map(|i| weight(i) * (a[i] as f64 - b[i] as f64).powi(2)).sum::<f64>() / n;
            near("mse", &[mse_loss(&a, &b, weights, rows)], &[exact], 4);
            let mut d = zeros::<f32>(a.len());
            mse_loss_backward(&a, &b, weights, rows, 3.0, &mut d);
            let exact: Vec<f64> =
                (0..a.len()).map(|i| 3.0 * 2.0 * weight(i) * (a[i] as f64 - b[i] as f64) / n).collect();
            near("mse gradient", &d, &exact, 4);
        }
        let (signal, noise_scale) = (values(rows, 4), values(rows, 5));
        let mut y = zeros::<f32>(a.len());
        mix_rows(&a, &b, &signal, &noise_scale, &mut y);
        let exact: Vec<f64> = (0..a.len())
            .map(|i| a[i] as f64 * signal[i / c] as f64 + b[i] as f64 * noise_scale[i / c] as f64)
            .collect();
        near("mix_rows", &y, &exact, 2);
    }
}

/// Outputs that are too large for the caches are written past them, and large batches image by image.
#[test]
fn norms_of_large_tensors() {
    let (batch, pixels, c, groups) = (5, 5000, 352, 32);
    let size = pixels * c;
    let (x, dy) = (values(batch * size, 1), values(batch * size, 2));
    assert!(crate::stream::past_caches(&x) && !crate::stream::past_caches(&x[..size]));
    let (gamma, beta) = (values(c, 3), values(c, 4));
    let run = |x: &[f32], dy: &[f32]| {
        let (rows, batch) = (x.len() / c, x.len() / size);
        let (mut y, mut mean, mut rstd) = (zeros(x.len()), zeros(batch * groups), zeros(batch * groups));
        let (mut dgamma, mut dbeta) = (zeros(c), zeros(c));
        let mut all: Vec<Vec<f32>> = vec![];
        group_norm_forward(x, &gamma, &beta, groups, 1e-5, true, &mut y, &mut mean, &mut rstd);
        all.push(y.clone());
        group_norm_backward(x, dy, &gamma, &beta, &mean, &rstd, groups, true, &mut y, &mut dgamma, &mut dbeta);
        all.push(y.clone());
        let (mut mean, mut rstd) = (zeros(rows), zeros(rows));
        layer_norm_forward(x, &gamma, &beta, 1e-5, &mut y, &mut mean, &mut rstd);
        all.push(y.clone());
        layer_norm_backward(x, dy, &gamma, &mean, &rstd, &mut y, &mut dgamma, &mut dbeta);
        all.push(y);
        all
    };
    let whole = run(&x, &dy);
    for b in 0..batch {
        let at = b * size..(b + 1) * size;
        for (i, (whole, alone)) in whole.iter().zip(run(&x[at.clone()], &dy[at.clone()])).enumerate() {
            assert!(whole[at.clone()] == alone, "result {i} of image {b} depends on the others");
        }
    }
}

/// Cuts a slice into parameters of odd sizes, empty ones among them.
fn pieces(mut values: &[f32]) -> Vec<&[f32]> {
    let mut pieces = vec![];
    for len in [0, 1, 7, 0, 5_000, 16_384, 16_385, 33, usize::MAX] {
        let (piece, rest) = values.split_at(len.min(values.len()));
        pieces.push(piece);
        values = rest;
    }
    pieces
}

/// A step of all [`pieces`] of p, m, v and ema.
fn step_pieces(settings: &AdamW, step: u64, state: &mut [Vec<f32>; 4], g: &[f32]) {
    let [mut p, mut m, mut v, mut ema] = state.each_mut().map(Vec::as_mut_slice);
    let stepped = pieces(g).into_iter().map(|gradient| {
        fn front<'a>(slice: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
            slice.split_off_mut(..len).expect("as long as g")
        }
        let len = gradient.len();
        Stepped {
            parameter: front(&mut p, len),
            gradient,
            first_moment: front(&mut m, len),
            second_moment: front(&mut v, len),
            average: Some(front(&mut ema, len)),
            packed: None,
        }
    });
    adamw_step(settings, step, 0.5, 0.9, stepped.collect::<Vec<_>>());
}

#[test]
fn optimizer() {
    for len in [0, 1, 17, 40_000] {
        let settings = AdamW { lr: 1e-2, weight_decay: 0.1, ..AdamW::default() };
        let (mut p, mut m, mut v) = (values(len, 1), vec![0.0; len], vec![0.0; len]);
        let mut ema = values(len, 9);
        let mut exact: Vec<[f64; 4]> = (0..len).map(|i| [p[i] as f64, 0.0, 0.0, ema[i] as f64]).collect();
        for step in 1..=5u64 {
            let g = values(len, 1 + step);
            let mut once = [&p, &m, &v, &ema].map(|values| values.clone());
            step_pieces(&settings, step, &mut once, &g);
            let [parameter, first_moment, second_moment] = [&mut p, &mut m, &mut v].map(Vec::as_mut_slice);
            let alone = Stepped { parameter, gradient: &g, first_moment, second_moment, average: None, packed: None };
            adamw_step(&settings, step, 0.5, 0.0, [alone]);
            ema_step(&mut ema, &p, 0.9);
            assert!(once == [&p, &m, &v, &ema].map(|values| values.clone()), "many parameters differ from one");
            let squares = |g: &[f32]| g.iter().map(|&g| (g as f64).powi(2)).sum::<f64>();
            for (g, got) in pieces(&g).iter().zip(sums_of_squares(&pieces(&g))) {
                assert!((got - squares(g)).abs() <= 2e-6 * squares(g));
                assert!(got.to_bits() == sums_of_squares(&[g])[0].to_bits(), "a sum depends on the others");
            }
            let (b1, b2) = (settings.beta1 as f64, settings.beta2 as f64);
            for ([p, m, v, ema], g) in exact.iter_mut().zip(&g) {
                let g = 0.5 * *g as f64;
                *p *= 1.0 - settings.lr as f64 * settings.weight_decay as f64;
                *m = b1 * *m + (1.0 - b1) * g;
                *v = b2 * *v + (1.0 - b2) * g * g;
                let denominator = v.sqrt() / (1.0 - b2.powi(step as i32)).sqrt() + settings.eps as f64;
                *p -= settings.lr as f64 / (1.0 - b1.powi(step as i32)) * *m / denominator;
                *ema = 0.9f32 as f64 * *ema + (1.0 - 0.9f32 as f64) * *p;
            }
        }
        for (which, ours) in [&p, &m, &v, &ema].into_iter().enumerate() {
            near("adamw", ours, &exact.iter().map(|e| e[which]).collect::<Vec<_>>(), 4);
        }
    }
}

/// With packed weights and without, and whole or in pieces, SGD gives the same bits; those of PyTorch's equations to rounding.
#[test]
fn sgd() {
    let plain = Sgd { lr: 1e-2, ..Sgd::default() };
    let heavy = Sgd { momentum: 0.9, weight_decay: 0.1, ..plain };
    for params in [plain, heavy, Sgd { dampening: 0.25, ..heavy }, Sgd { nesterov: true, ..heavy }] {
        let (n, k) = (70, 640);
        let len = n * k;
        let shape = Conv2dShape {
            batch: 8,
            height: 6,
            width: 5,
            in_channels: k,
            out_channels: n,
            kernel: [1; 2],
            stride: 1,
            padding: [0; 4],
            per_image: false,
        };
        let start = || (values(len, 1), if params.momentum == 0.0 { vec![] } else { vec![0.0; len] }, values(len, 9));
        let (mut p, mut b, mut ema) = start();
        let (mut p2, mut b2, mut ema2) = start();
        let mut packed = PackedWeights::for_conv(&shape, &p2);
        let mut exact: Vec<[f64; 3]> = p.iter().zip(&ema).map(|(&p, &ema)| [p as f64, 0.0, ema as f64]).collect();
        for step in 1..=5u64 {
            let g = values(len, 1 + step);
            let all = [&mut p, &mut b, &mut ema].map(Vec::as_mut_slice);
            let [parameter, first_moment, average] = all;
            let (second_moment, average) = (&mut [][..], Some(average));
            let whole = Stepped { parameter, gradient: &g, first_moment, second_moment, average, packed: None };
            sgd_step(&params, step, 0.5, 0.9, [whole]);
            let [parameter, first_moment, average] = [&mut p2, &mut b2, &mut ema2].map(Vec::as_mut_slice);
            let (second_moment, average) = (&mut [][..], Some(average));
            let packed = packed.as_mut();
            let other = Stepped { parameter, gradient: &g, first_moment, second_moment, average, packed };
            sgd_step(&params, step, 0.5, 0.9, [other]);
            assert!(p == p2 && b == b2 && ema == ema2, "packing changes the step");
            let [momentum, dampening, decay] = [params.momentum, params.dampening, params.weight_decay].map(f64::from);
            for ([p, b, ema], g) in exact.iter_mut().zip(&g) {
                let g = 0.5 * *g as f64 + decay * *p;
                *b = if step == 1 { g } else { momentum * *b + (1.0 - dampening) * g };
                let along = if params.nesterov { g + momentum * *b } else { *b };
                *p -= params.lr as f64 * if momentum == 0.0 { g } else { along };
                *ema = 0.9f32 as f64 * *ema + (1.0 - 0.9f32 as f64) * *p;
            }
        }
        near("sgd", &p, &exact.iter().map(|e| e[0]).collect::<Vec<_>>(), 4);
        near("sgd's average", &ema, &exact.iter().map(|e| e[2]).collect::<Vec<_>>(), 4);
        if let Some(packed) = packed {
            let x = stored::<bf16>(&values(shape.input_len(), 6));
            let (mut old, mut new) = (zeros::<bf16>(shape.output_len()), zeros::<bf16>(shape.output_len()));
            conv2d_forward(&shape, &x, &p, None, None, None, &mut old);
            conv2d_forward_packed(&shape, &x, &packed, None, None, None, &mut new);
            assert!(old == new);
        }
    }
}

#[test]
fn tiny_gradients_leave_no_subnormal_moments() {
    for (g, eps, kept) in [(1e-19f32, 1e-8f32, false), (1e-15, 1e-8, true), (1e-18, 1e-20, true)] {
        let mut state = [vec![0.5; 40], vec![0.0; 40], vec![0.0; 40], vec![0.5; 40]];
        let settings = AdamW { lr: 1e-2, eps, weight_decay: 0.0, ..AdamW::default() };
        step_pieces(&settings, 1, &mut state, &[g; 40]);
        let scaled = 0.5 * g as f64;
        let expected = 0.5 - 1e-2 * scaled / (scaled + eps as f64);
        assert!(state[0].iter().all(|&p| (p as f64 - expected).abs() <= 1e-7), "{} instead of {expected}", state[0][0]);
        assert!(state[2].iter().all(|&v| (v > 0.0) == kept), "{:e} of {g:e} with {eps:e}", state[2][0]);
    }
}

/// Everything that cuts work, in one vector of bits.
fn fingerprint<T: Element>() -> Vec<u32> {
    let mut bits: Vec<u32> = vec![];
    let mut keep = |x: &[T]| bits.extend(x.iter().map(|x| x.to_f32().to_bits()));
    let mut floats: Vec<f32> = vec![];
    // The second one may be computed by Winograd.
    for (in_channels, out_channels, stride) in [(20, 40, 2), (128, 160, 1)] {
        let (batch, height, width, kernel, padding, per_image) = (3, 24, 20, [3, 3], [1; 4], stride == 1);
        let shape = Conv2dShape { batch, height, width, in_channels, out_channels, kernel, stride, padding, per_image };
        let (x, w, dy) = (
            stored::<T>(&values(shape.input_len(), 1)),
            values(shape.weight_len(), 2),
            stored::<T>(&values(shape.output_len(), 3)),
        );
        let (mut y, mut dx) = (zeros::<T>(dy.len()), zeros::<T>(x.len()));
        let (mut dw, mut db) = (zeros(w.len()), zeros(out_channels));
        conv2d_forward(&shape, &x, &w, None, None, None, &mut y);
        conv2d_backward_input(&shape, &dy, &w, &mut dx);
        conv2d_backward_weight(&shape, &dy, &x, &mut dw, Some(&mut db));
        keep(&y);
        keep(&dx);
        floats.extend(dw.iter().chain(&db));
    }
    for (m, n, k) in [(2000, 24, 40), (5000, 20, 30), (300, 500, 600)] {
        let (x, w, dy) = (stored::<T>(&values(m * k, 1)), values(n * k, 2), stored::<T>(&values(m * n, 3)));
        let (mut y, mut dx, mut dw, mut db) = (zeros::<T>(m * n), zeros::<T>(m * k), zeros(n * k), zeros(n));
        linear_forward(&x, &w, None, None, &mut y, m.into(), k, n);
        linear_backward_input(&dy, &w, &mut dx, m, k, n);
        linear_backward_weight(&dy, &x, &mut dw, Some(&mut db), m, k, n);
        keep(&y);
        keep(&dx);
        floats.extend(dw.iter().chain(&db));
    }
    let shape = AttentionShape {
        batch: 2,
        query_tokens: 1100,
        key_tokens: 300,
        heads: 2,
        head_dim: 24,
        causal: false,
        scale: 0.2,
    };
    let q = stored::<T>(&values(shape.query_len(), 1));
    let k = stored::<T>(&values(shape.key_len(), 2));
    let (mut out, mut lse) = (zeros::<T>(q.len()), zeros(shape.lse_len()));
    let [mut dq, mut dk, mut dv] = [zeros::<T>(q.len()), zeros::<T>(k.len()), zeros::<T>(k.len())];
    attention_forward(&shape, &q, &k, &k, &mut out, &mut lse);
    attention_backward(&shape, &q, &k, &k, &out, &lse, &q, &mut dq, &mut dk, &mut dv);
    [&out, &dq, &dk, &dv].into_iter().for_each(|x| keep(x));
    floats.extend(&lse);
    let (batch, pixels, c, groups) = (3, 700, 40, 8);
    let (x, dy) = (stored::<T>(&values(batch * pixels * c, 1)), stored::<T>(&values(batch * pixels * c, 2)));
    let (gamma, beta) = (values(c, 3), values(c, 4));
    let (mut y, mut dx, mut dgamma, mut dbeta) = (zeros::<T>(x.len()), zeros::<T>(x.len()), zeros(c), zeros(c));
    let (mut mean, mut rstd) = (zeros(batch * groups), zeros(batch * groups));
    group_norm_forward(&x, &gamma, &beta, groups, 1e-5, true, &mut y, &mut mean, &mut rstd);
    group_norm_backward(&x, &dy, &gamma, &beta, &mean, &rstd, groups, true, &mut dx, &mut dgamma, &mut dbeta);
    keep(&y);
    keep(&dx);
    floats.extend(mean.iter().chain(&rstd).chain(&dgamma).chain(&dbeta));
    let (mut mean, mut rstd) = (zeros(batch * pixels), zeros(batch * pixels));
    layer_norm_forward(&x, &gamma, &beta, 1e-5, &mut y, &mut mean, &mut rstd);
    layer_norm_backward(&x, &dy, &gamma, &mean, &rstd, &mut dx, &mut dgamma, &mut dbeta);
    keep(&y);
    keep(&dx);
    floats.extend(dgamma.iter().chain(&dbeta));
    floats.push(mse_loss(&x, &dy, None, batch));
    let g = values(100_000, 1);
    let mut state = [2, 3, 4, 5].map(|seed| values(g.len(), seed).into_iter().map(f32::abs).collect());
    step_pieces(&AdamW::default(), 3, &mut state, &g);
    floats.extend(state.concat());
    floats.extend(sums_of_squares(&pieces(&g)).into_iter().map(|sum| sum as f32));
    bits.extend(floats.iter().map(|x| x.to_bits()));
    bits
}

#[test]
fn the_same_bits_for_any_number_of_threads() {
    set_threads(1);
    let (wide, narrow) = (fingerprint::<f32>(), fingerprint::<bf16>());
    for n in [2, 3, 7] {
        set_threads(n);
        assert!(wide == fingerprint::<f32>(), "f32, {n} threads");
        assert!(narrow == fingerprint::<bf16>(), "bf16, {n} threads");
    }
}

/// Runs the tests above once more in processes that are asked to use lesser instruction sets.
#[test]
fn lesser_instruction_sets() {
    if std::env::var_os("CALOTYPE_ISA").is_some() {
        return;
    }
    for isa in ["avx512bf16", "avx512", "avx2", "scalar"] {
        let test = std::env::current_exe().expect("a test knows where it is");
        let run = std::process::Command::new(test).env("CALOTYPE_ISA", isa).output().expect("the test starts again");
        assert!(run.status.success(), "{isa}:\n{}", String::from_utf8_lossy(&run.stdout));
    }
}

/// Outputs of images must be the same bits in batches of several sizes, in any place. `f` is given the number of images and their inputs.
#[track_caller]
fn alike_in_any_batch<T: Element>(what: &str, inputs: &[T], f: impl Fn(usize, &[T]) -> Vec<T>) {
    const IMAGES: usize = 5;
    let len = inputs.len() / IMAGES;
    let bits = |x: &[T]| x.iter().map(|x| x.to_f32().to_bits()).collect::<Vec<_>>();
    let alone: Vec<_> = inputs.chunks_exact(len).map(|image| bits(&f(1, image))).collect();
    for size in [2, 3, 5] {
        for first in 0..=IMAGES - size {
            let together = bits(&f(size, &inputs[first * len..(first + size) * len]));
            assert!(together == alone[first..first + size].concat(), "{what}: images {first}.. in a batch of {size}");
        }
    }
}

fn convolutions_alike<T: Element>() {
    // Sums that are cut: apart for all batches, and in the tasks of large ones; Winograd for an image, or by the batch alone; sums that
    // are not cut; fewer rows than a tile; in steps of 2; pixels as they are.
    for (size, cin, cout, kernel, stride) in [
        ([8, 8], 640, 32, 3, 1),
        ([8, 8], 128, 32, 3, 1),
        ([12, 11], 64, 96, 3, 1),
        ([8, 8], 64, 64, 3, 1),
        ([24, 20], 17, 33, 3, 1),
        ([2, 3], 352, 65, 3, 1),
        ([17, 16], 128, 40, 3, 2),
        ([5, 5], 2080, 96, 1, 1),
    ] {
        let (padding, per_image) = ([kernel / 2; 4], true);
        let one = Conv2dShape {
            batch: 1,
            height: size[0],
            width: size[1],
            in_channels: cin,
            out_channels: cout,
            kernel: [kernel; 2],
            stride,
            padding,
            per_image,
        };
        let all = Conv2dShape { batch: 5, ..one };
        let (x, w, bias) = (stored::<T>(&values(all.input_len(), 1)), values(one.weight_len(), 2), values(cout, 3));
        let plain = |batch: usize, x: &[T]| {
            let shape = Conv2dShape { batch, ..one };
            let mut y = zeros::<T>(shape.output_len());
            conv2d_forward(&shape, x, &w, Some(&bias), None, None, &mut y);
            y
        };
        alike_in_any_batch(&format!("{one:?}"), &x, plain);
        let (Some(packed), Some(x)) = (PackedWeights::for_conv(&one, &w), T::as_half(&x)) else { continue };
        alike_in_any_batch(&format!("packed {one:?}"), x, |batch, x| {
            let shape = Conv2dShape { batch, ..one };
            let [mut y, mut same] = [(); 2].map(|()| zeros::<bf16>(shape.output_len()));
            conv2d_forward_packed(&shape, x, &packed, Some(&bias), None, None, &mut y);
            conv2d_forward(&shape, x, &w, Some(&bias), None, None, &mut same);
            assert!(y == same, "packed weights give other bits: {shape:?}");
            y
        });
    }
}

#[test]
fn convolutions_of_an_image_are_the_same_bits_in_any_batch() {
    convolutions_alike::<f32>();
    convolutions_alike::<bf16>();
}

fn layers_alike<T: Element>() {
    // Tokens of an image, features: of sums that are cut and of others, of one row and of less than a tile.
    for (tokens, k, n) in
        [(64, 5120, 64), (77, 3072, 768), (100, 1024, 32), (256, 2560, 640), (1, 1280, 320), (9, 96, 64)]
    {
        let (x, w, bias) = (stored::<T>(&values(5 * tokens * k, 1)), values(n * k, 2), values(n, 3));
        let rows = |batch: usize| RowCount { all: batch * tokens, deciding: tokens };
        alike_in_any_batch(&format!("linear {tokens} {k} {n}"), &x, |batch, x| {
            let mut y = zeros::<T>(batch * tokens * n);
            linear_forward(x, &w, Some(&bias), None, &mut y, rows(batch), k, n);
            y
        });
        let Some(x) = T::as_half(&x) else { continue };
        let (Some(packed), Some(gated)) =
            (PackedWeights::for_linear(&w, n, k), PackedWeights::for_linear_geglu(&w, n / 2, k))
        else {
            continue;
        };
        alike_in_any_batch(&format!("packed linear {tokens} {k} {n}"), x, |batch, x| {
            let [mut y, mut same] = [(); 2].map(|()| zeros::<bf16>(batch * tokens * n));
            linear_forward_packed(x, &packed, Some(&bias), None, &mut y, rows(batch), k, n);
            linear_forward(x, &w, Some(&bias), None, &mut same, rows(batch), k, n);
            assert!(y == same, "packed weights give other bits: {batch} x {tokens} {k} {n}");
            y
        });
        alike_in_any_batch(&format!("packed geglu {tokens} {k} {n}"), x, |batch, x| {
            let mut y = zeros::<bf16>(batch * tokens * n / 2);
            linear_geglu_forward_packed(x, &gated, Some(&bias), &mut y, rows(batch), k, n / 2);
            y
        });
    }
}

#[test]
fn layers_of_an_image_are_the_same_bits_in_any_batch() {
    layers_alike::<f32>();
    layers_alike::<bf16>();
}

fn attentions_and_norms_alike<T: Element>() {
    for (tokens, heads, head_dim) in [(700, 2, 40), (300, 3, 8), (77, 2, 64), (33, 1, 160)] {
        let channels = heads * head_dim;
        let x = stored::<T>(&values(5 * tokens * channels, 1));
        alike_in_any_batch(&format!("attention {tokens} {heads} {head_dim}"), &x, |batch, x| {
            let (scale, causal) = (1.0 / (head_dim as f32).sqrt(), tokens == 77);
            let (query_tokens, key_tokens) = (tokens, tokens);
            let shape = AttentionShape { batch, query_tokens, key_tokens, heads, head_dim, causal, scale };
            let (mut y, mut lse) = (zeros::<T>(x.len()), zeros::<f32>(shape.lse_len()));
            attention_forward(&shape, x, x, x, &mut y, &mut lse);
            y
        });
        let (gamma, beta) = (values(channels, 2), values(channels, 3));
        alike_in_any_batch(&format!("layer norm {tokens} {channels}"), &x, |batch, x| {
            let (mut y, rows) = (zeros::<T>(x.len()), batch * tokens);
            layer_norm_forward(x, &gamma, &beta, 1e-5, &mut y, &mut zeros(rows), &mut zeros(rows));
            y
        });
        alike_in_any_batch(&format!("group norm {tokens} {channels}"), &x, |batch, x| {
            let (mut y, groups) = (zeros::<T>(x.len()), 4);
            let stats = batch * groups;
            group_norm_forward(x, &gamma, &beta, groups, 1e-5, true, &mut y, &mut zeros(stats), &mut zeros(stats));
            y
        });
    }
}

#[test]
fn attentions_and_norms_of_an_image_are_the_same_bits_in_any_batch() {
    attentions_and_norms_alike::<f32>();
    attentions_and_norms_alike::<bf16>();
}
