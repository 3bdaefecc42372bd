//! The operations and shapes that the kernels are measured with: those of Stable Diffusion's UNets and autoencoder at
//! 512x512 pixels, a few of the tiny UNet, where calls cost more than arithmetic, and some beyond every cache.

use calotype_core::{Purpose, Stream};
use calotype_kernels::{
    self as kernels, Activation, AdamW, AttentionShape, Conv2dShape, Element, Layout, Matrix, bf16,
};
use calotype_kernels::{PackedWeights, Stepped};
use calotype_ops::Precision;

/// The measure of an operation, where memory decides.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// It reads and writes.
    Copy,
    /// It only reads.
    Read,
}

/// The work of an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Floating-point operations.
    Arithmetic(f64),
    /// Bytes that must at least be read and written.
    Memory(f64, Limit),
}

/// An operation that can be measured: `prepare` makes the operands and gives the call.
pub(crate) struct Case {
    pub(crate) operation: &'static str,
    pub(crate) pass: &'static str,
    pub(crate) shape: String,
    pub(crate) precision: Precision,
    pub(crate) work: Work,
    pub(crate) prepare: Box<dyn FnOnce() -> Box<dyn FnMut()>>,
}

impl Case {
    /// The text that a filter looks into.
    pub(crate) fn name(&self) -> String {
        format!("{} {} {} {}", self.operation, self.pass, self.shape, self.precision)
    }
}

/// All cases of a precision, `f32` or `bf16`.
pub(crate) fn cases(precision: Precision) -> Vec<Case> {
    match precision {
        Precision::Bf16 => {
            let mut cases = Cases::<bf16>::all(precision);
            cases.extend(Cases::packed(precision));
            cases
        }
        Precision::F32 | Precision::Auto => {
            let mut cases = Cases::<f32>::all(precision);
            cases.extend(optimizer(32 << 20));
            cases
        }
    }
}

/// Normal numbers that repeat after a while.
fn noise<T: Element>(len: usize) -> Vec<T> {
    let mut part = vec![0f32; len.min(65_537)];
    Stream::new(0, Purpose::Evaluation, len as u64).fill_normal(&mut part);
    let part: Vec<T> = part.into_iter().map(T::from_f32).collect();
    let mut values = Vec::with_capacity(len);
    while values.len() < len {
        let more = part.len().min(len - values.len());
        values.extend_from_slice(&part[..more]);
    }
    values
}

fn product(m: usize, n: usize, k: usize) -> f64 {
    2.0 * m as f64 * n as f64 * k as f64
}

/// Rows, outputs, inputs of the feed-forward's first half with its GEGLU.
const LINEAR_GEGLU: [(usize, usize, usize); 3] = [(4096, 1280, 320), (1024, 2560, 640), (256, 5120, 1280)];

/// Rows, outputs, inputs: projections, both halves of the feed-forward, text states; from the finest level down, then the
/// tiny UNet's.
const LINEAR: [(usize, usize, usize); 15] = [
    (4096, 1280, 1280),
    (4096, 320, 2560),
    (4096, 320, 320),
    (4096, 2560, 320),
    (4096, 320, 1280),
    (1024, 640, 640),
    (1024, 5120, 640),
    (1024, 640, 5120),
    (1024, 640, 2560),
    (256, 1280, 1280),
    (256, 10240, 1280),
    (256, 1280, 5120),
    (77, 1280, 1024),
    (1024, 64, 64),
    (64, 128, 32),
];

/// Side of the image, channels in and out, stride; in the same order, the first and the last layer behind.
const CONV: [(usize, usize, usize, usize); 13] = [
    (64, 320, 320, 1),
    (64, 960, 320, 1),
    (32, 640, 640, 1),
    (32, 1920, 640, 1),
    (16, 1280, 1280, 1),
    (16, 2560, 1280, 1),
    (8, 1280, 1280, 1),
    (64, 320, 320, 2),
    (32, 640, 640, 2),
    (64, 4, 320, 1),
    (64, 320, 4, 1),
    (32, 32, 32, 1),
    (8, 16, 16, 1),
];

fn conv_shape(size: usize, cin: usize, cout: usize, stride: usize) -> Conv2dShape {
    Conv2dShape {
        batch: 1,
        height: size,
        width: size,
        in_channels: cin,
        out_channels: cout,
        kernel: [3, 3],
        stride,
        padding: [1; 4],
        per_image: false,
    }
}

fn conv_work(s: &Conv2dShape) -> Work {
    Work::Arithmetic(product(s.out_height() * s.out_width(), s.out_channels, 9 * s.in_channels))
}

fn conv_name(s: &Conv2dShape) -> String {
    format!("1x{}x{}x{}-{}/{}", s.height, s.width, s.in_channels, s.out_channels, s.stride)
}

struct Cases<T> {
    precision: Precision,
    cases: Vec<Case>,
    element: std::marker::PhantomData<T>,
}

impl<T: Element> Cases<T> {
    fn none(precision: Precision) -> Self {
        Self { precision, cases: Vec::new(), element: std::marker::PhantomData }
    }

    fn all(precision: Precision) -> Vec<Case> {
        let mut all = Self::none(precision);
        for layout in [Layout::NN, Layout::NT, Layout::TN] {
            all.gemm(layout, 4096, 1280, 1280);
        }
        for (m, n, k) in LINEAR {
            all.linear(m, n, k);
        }
        for (size, cin, cout, stride) in CONV {
            all.conv(size, cin, cout, stride);
        }
        // Stable Diffusion 2, 1, the autoencoder's middle, the tiny UNet.
        for (heads, queries, head_dim) in [
            (5, 4096, 64),
            (10, 1024, 64),
            (20, 256, 64),
            (20, 64, 64),
            (8, 4096, 40),
            (8, 1024, 80),
            (8, 256, 160),
            (1, 4096, 512),
            (8, 1024, 4),
        ] {
            all.attention(heads, queries, queries, head_dim);
        }
        for (heads, queries, head_dim) in
            [(5, 4096, 64), (10, 1024, 64), (20, 256, 64), (8, 4096, 40), (8, 1024, 80), (8, 256, 160), (8, 1024, 4)]
        {
            all.attention(heads, queries, 77, head_dim);
        }
        for (batch, pixels, channels) in
            [(1, 4096, 320), (1, 1024, 640), (1, 256, 1280), (32, 4096, 320), (1, 1024, 32)]
        {
            all.norms(batch, pixels, channels);
            all.pointwise(batch, pixels, channels);
        }
        for (size, channels) in [(32, 640), (8, 1280)] {
            all.upsample(size, channels);
        }
        for (pixels, a, b) in [(4096, 640, 320), (1024, 1280, 640), (256, 1280, 1280)] {
            all.concat(pixels, a, b);
        }
        all.cases
    }

    fn case(
        &mut self,
        (operation, pass): (&'static str, &'static str),
        shape: String,
        work: Work,
        prepare: impl FnOnce() -> Box<dyn FnMut()> + 'static,
    ) {
        let precision = self.precision;
        self.cases.push(Case { operation, pass, shape, precision, work, prepare: Box::new(prepare) });
    }

    fn gemm(&mut self, layout: Layout, m: usize, n: usize, k: usize) {
        let (operation, a_stride, b_stride) = match layout {
            Layout::NN => ("gemm nn", k, n),
            Layout::NT => ("gemm nt", k, k),
            Layout::TN => ("gemm tn", m, n),
            Layout::TT => ("gemm tt", m, k),
        };
        let work = Work::Arithmetic(product(m, n, k));
        self.case((operation, "forward"), format!("{m}x{n}x{k}"), work, move || {
            let (a, b, mut c) = (noise::<T>(m * k), noise::<T>(k * n), vec![T::ZERO; m * n]);
            Box::new(move || {
                let a = Matrix { data: &a, row_stride: a_stride };
                let b = Matrix { data: &b, row_stride: b_stride };
                kernels::gemm(layout, (m, n, k), a, b, &mut c, false);
            })
        });
    }

    fn linear(&mut self, m: usize, n: usize, k: usize) {
        let shape = format!("{m}x{n}x{k}");
        let work = Work::Arithmetic(product(m, n, k));
        self.case(("linear", "forward"), shape.clone(), work, move || {
            let (x, w, bias, mut y) = (noise::<T>(m * k), noise::<f32>(n * k), noise::<f32>(n), vec![T::ZERO; m * n]);
            Box::new(move || kernels::linear_forward(&x, &w, Some(&bias), None, &mut y, m.into(), k, n))
        });
        self.case(("linear", "backward input"), shape.clone(), work, move || {
            let (dy, w, mut dx) = (noise::<T>(m * n), noise::<f32>(n * k), vec![T::ZERO; m * k]);
            Box::new(move || kernels::linear_backward_input(&dy, &w, &mut dx, m, k, n))
        });
        self.case(("linear", "backward weight"), shape, work, move || {
            let (dy, x) = (noise::<T>(m * n), noise::<T>(m * k));
            let (mut dw, mut db) = (vec![0f32; n * k], vec![0f32; n]);
            Box::new(move || kernels::linear_backward_weight(&dy, &x, &mut dw, Some(&mut db), m, k, n))
        });
    }

    fn conv(&mut self, size: usize, cin: usize, cout: usize, stride: usize) {
        let s = conv_shape(size, cin, cout, stride);
        let (shape, work) = (conv_name(&s), conv_work(&s));
        self.case(("conv3x3", "forward"), shape.clone(), work, move || {
            let (x, w, bias) = (noise::<T>(s.input_len()), noise::<f32>(s.weight_len()), noise::<f32>(cout));
            let mut y = vec![T::ZERO; s.output_len()];
            Box::new(move || kernels::conv2d_forward(&s, &x, &w, Some(&bias), None, None, &mut y))
        });
        self.case(("conv3x3", "backward input"), shape.clone(), work, move || {
            let (dy, w) = (noise::<T>(s.output_len()), noise::<f32>(s.weight_len()));
            let mut dx = vec![T::ZERO; s.input_len()];
            Box::new(move || kernels::conv2d_backward_input(&s, &dy, &w, &mut dx))
        });
        self.case(("conv3x3", "backward weight"), shape, work, move || {
            let (dy, x) = (noise::<T>(s.output_len()), noise::<T>(s.input_len()));
            let (mut dw, mut db) = (vec![0f32; s.weight_len()], vec![0f32; cout]);
            Box::new(move || kernels::conv2d_backward_weight(&s, &dy, &x, &mut dw, Some(&mut db)))
        });
    }

    /// Backward counts five products, as the scores are computed a second time.
    fn attention(&mut self, heads: usize, queries: usize, keys: usize, head_dim: usize) {
        let s = AttentionShape {
            batch: 1,
            query_tokens: queries,
            key_tokens: keys,
            heads,
            head_dim,
            causal: false,
            scale: 1.0 / (head_dim as f32).sqrt(),
        };
        let other = if keys == queries { String::new() } else { format!(" keys {keys}") };
        let shape = format!("{heads}x{queries}x{head_dim}{other}");
        let one = product(heads * queries, keys, head_dim);
        let operands = move || {
            let (q, k, v) = (noise::<T>(s.query_len()), noise::<T>(s.key_len()), noise::<T>(s.key_len()));
            let (y, lse) = (vec![T::ZERO; s.query_len()], vec![0f32; s.lse_len()]);
            (q, k, v, y, lse)
        };
        self.case(("attention", "forward"), shape.clone(), Work::Arithmetic(2.0 * one), move || {
            let (q, k, v, mut y, mut lse) = operands();
            Box::new(move || kernels::attention_forward(&s, &q, &k, &v, &mut y, &mut lse))
        });
        self.case(("attention", "backward"), shape, Work::Arithmetic(5.0 * one), move || {
            let (q, k, v, mut y, mut lse) = operands();
            kernels::attention_forward(&s, &q, &k, &v, &mut y, &mut lse);
            let dy = noise::<T>(s.query_len());
            let (mut dq, mut dk, mut dv) = (dy.clone(), k.clone(), v.clone());
            Box::new(move || {
                kernels::attention_backward(&s, &q, &k, &v, &y, &lse, &dy, &mut dq, &mut dk, &mut dv);
            })
        });
    }

    /// Work of an operation that reads or writes `times` tensors of `len` elements.
    fn memory(len: usize, times: usize) -> Work {
        Work::Memory((len * times * size_of::<T>()) as f64, Limit::Copy)
    }

    fn norms(&mut self, batch: usize, pixels: usize, channels: usize) {
        const GROUPS: usize = 32;
        let len = batch * pixels * channels;
        let shape = format!("{batch}x{pixels}x{channels}");
        let parameters = move || (noise::<f32>(channels), noise::<f32>(channels));
        let statistics = |n: usize| (vec![0f32; n], vec![0f32; n]);
        for (operation, silu) in [("group norm", false), ("group norm + silu", true)] {
            let groups = batch * GROUPS;
            self.case((operation, "forward"), shape.clone(), Self::memory(len, 2), move || {
                let (x, mut y) = (noise::<T>(len), vec![T::ZERO; len]);
                let ((gamma, beta), (mut mean, mut rstd)) = (parameters(), statistics(groups));
                Box::new(move || {
                    kernels::group_norm_forward(&x, &gamma, &beta, GROUPS, 1e-5, silu, &mut y, &mut mean, &mut rstd);
                })
            });
            self.case((operation, "backward"), shape.clone(), Self::memory(len, 3), move || {
                let (x, dy, mut dx) = (noise::<T>(len), noise::<T>(len), vec![T::ZERO; len]);
                let ((gamma, beta), (mut mean, mut rstd)) = (parameters(), statistics(groups));
                kernels::group_norm_forward(&x, &gamma, &beta, GROUPS, 1e-5, silu, &mut dx, &mut mean, &mut rstd);
                let (mut dgamma, mut dbeta) = (gamma.clone(), beta.clone());
                Box::new(move || {
                    kernels::group_norm_backward(
                        &x,
                        &dy,
                        &gamma,
                        &beta,
                        &mean,
                        &rstd,
                        GROUPS,
                        silu,
                        &mut dx,
                        &mut dgamma,
                        &mut dbeta,
                    );
                })
            });
        }
        let rows = batch * pixels;
        self.case(("layer norm", "forward"), shape.clone(), Self::memory(len, 2), move || {
            let (x, mut y) = (noise::<T>(len), vec![T::ZERO; len]);
            let ((gamma, beta), (mut mean, mut rstd)) = (parameters(), statistics(rows));
            Box::new(move || kernels::layer_norm_forward(&x, &gamma, &beta, 1e-5, &mut y, &mut mean, &mut rstd))
        });
        self.case(("layer norm", "backward"), shape, Self::memory(len, 3), move || {
            let (x, dy, mut dx) = (noise::<T>(len), noise::<T>(len), vec![T::ZERO; len]);
            let ((gamma, beta), (mut mean, mut rstd)) = (parameters(), statistics(rows));
            kernels::layer_norm_forward(&x, &gamma, &beta, 1e-5, &mut dx, &mut mean, &mut rstd);
            let (mut dgamma, mut dbeta) = (gamma.clone(), beta);
            Box::new(move || {
                kernels::layer_norm_backward(&x, &dy, &gamma, &mean, &rstd, &mut dx, &mut dgamma, &mut dbeta);
            })
        });
    }

    fn pointwise(&mut self, batch: usize, pixels: usize, channels: usize) {
        let len = batch * pixels * channels;
        let shape = format!("{batch}x{pixels}x{channels}");
        for (operation, kind) in [("silu", Activation::Silu), ("gelu", Activation::Gelu)] {
            self.case((operation, "forward"), shape.clone(), Self::memory(len, 2), move || {
                let (x, mut y) = (noise::<T>(len), vec![T::ZERO; len]);
                Box::new(move || kernels::activation_forward(kind, &x, &mut y))
            });
            self.case((operation, "backward"), shape.clone(), Self::memory(len, 3), move || {
                let (x, dy, mut dx) = (noise::<T>(len), noise::<T>(len), vec![T::ZERO; len]);
                Box::new(move || kernels::activation_backward(kind, &x, &dy, &mut dx))
            });
        }
        self.case(("add", "forward"), shape, Self::memory(len, 3), move || {
            let (a, b, mut y) = (noise::<T>(len), noise::<T>(len), vec![T::ZERO; len]);
            Box::new(move || kernels::add(&a, &b, &mut y))
        });
        // The feed-forward's inner width: four times the channels, doubled for the gate.
        let (rows, inner) = (batch * pixels, 4 * channels);
        let half = rows * inner;
        let shape = format!("{batch}x{pixels}x{}", 2 * inner);
        self.case(("geglu", "forward"), shape.clone(), Self::memory(half, 3), move || {
            let (x, mut y) = (noise::<T>(2 * half), vec![T::ZERO; half]);
            Box::new(move || kernels::geglu_forward(&x, &mut y, rows, inner))
        });
        self.case(("geglu", "backward"), shape, Self::memory(half, 5), move || {
            let (x, dy, mut dx) = (noise::<T>(2 * half), noise::<T>(half), vec![T::ZERO; 2 * half]);
            Box::new(move || kernels::geglu_backward(&x, &dy, &mut dx, rows, inner))
        });
    }

    fn upsample(&mut self, size: usize, channels: usize) {
        let len = size * size * channels;
        let shape = format!("1x{size}x{size}x{channels}");
        self.case(("upsample", "forward"), shape.clone(), Self::memory(len, 5), move || {
            let (x, mut y) = (noise::<T>(len), vec![T::ZERO; 4 * len]);
            Box::new(move || kernels::upsample_nearest2x_forward(&x, &mut y, 1, size, size, channels))
        });
        self.case(("upsample", "backward"), shape, Self::memory(len, 5), move || {
            let (dy, mut dx) = (noise::<T>(4 * len), vec![T::ZERO; len]);
            Box::new(move || kernels::upsample_nearest2x_backward(&dy, &mut dx, 1, size, size, channels))
        });
    }

    fn concat(&mut self, pixels: usize, a: usize, b: usize) {
        let len = pixels * (a + b);
        let shape = format!("1x{pixels}x{a}+{b}");
        self.case(("concat", "forward"), shape.clone(), Self::memory(len, 2), move || {
            let (left, right, mut y) = (noise::<T>(pixels * a), noise::<T>(pixels * b), vec![T::ZERO; len]);
            Box::new(move || kernels::concat_channels(&left, &right, &mut y, pixels, a, b))
        });
        self.case(("concat", "backward"), shape, Self::memory(len, 2), move || {
            let (dy, mut left, mut right) = (noise::<T>(len), vec![T::ZERO; pixels * a], vec![T::ZERO; pixels * b]);
            Box::new(move || kernels::split_channels(&dy, &mut left, &mut right, pixels, a, b))
        });
    }
}

impl Cases<bf16> {
    /// Products with weights packed beforehand; none where packing gains nothing.
    fn packed(precision: Precision) -> Vec<Case> {
        let mut all = Self::none(precision);
        if PackedWeights::for_linear(&[0.0], 1, 1).is_none() {
            return all.cases;
        }
        for (m, n, k) in LINEAR {
            let work = || Work::Arithmetic(product(m, n, k));
            all.case(("linear", "forward packed"), format!("{m}x{n}x{k}"), work(), move || {
                let w = PackedWeights::for_linear(&noise::<f32>(n * k), n, k).expect("as the first one");
                let (x, bias, mut y) = (noise::<bf16>(m * k), noise::<f32>(n), vec![bf16::ZERO; m * n]);
                Box::new(move || kernels::linear_forward_packed(&x, &w, Some(&bias), None, &mut y, m.into(), k, n))
            });
            if n.is_multiple_of(32) && k.is_multiple_of(32) {
                all.case(("linear", "backward input packed"), format!("{m}x{n}x{k}"), work(), move || {
                    let w = PackedWeights::for_linear(&noise::<f32>(n * k), n, k).expect("as the first one");
                    let (dy, mut dx) = (noise::<bf16>(m * n), vec![bf16::ZERO; m * k]);
                    Box::new(move || kernels::linear_backward_input_packed(&dy, &w, &mut dx, m, k, n))
                });
            }
        }
        for (m, c, k) in LINEAR_GEGLU {
            let work = Work::Arithmetic(product(m, 2 * c, k));
            all.case(("linear, geglu", "forward packed"), format!("{m}x{}x{k}", 2 * c), work, move || {
                let w = noise::<f32>(2 * c * k);
                let w = PackedWeights::for_linear_geglu(&w, c, k).expect("as the first one, and c is a multiple of 16");
                let (x, bias, mut y) = (noise::<bf16>(m * k), noise::<f32>(2 * c), vec![bf16::ZERO; m * c]);
                Box::new(move || kernels::linear_geglu_forward_packed(&x, &w, Some(&bias), &mut y, m.into(), k, c))
            });
        }
        for (size, cin, cout, stride) in CONV {
            let s = conv_shape(size, cin, cout, stride);
            all.case(("conv3x3", "forward packed"), conv_name(&s), conv_work(&s), move || {
                let w = PackedWeights::for_conv(&s, &noise::<f32>(s.weight_len())).expect("as the first one");
                let (x, bias) = (noise::<bf16>(s.input_len()), noise::<f32>(cout));
                let mut y = vec![bf16::ZERO; s.output_len()];
                Box::new(move || kernels::conv2d_forward_packed(&s, &x, &w, Some(&bias), None, None, &mut y))
            });
            if cin.is_multiple_of(32) && cout.is_multiple_of(32) {
                all.case(("conv3x3", "backward input packed"), conv_name(&s), conv_work(&s), move || {
                    let w = PackedWeights::for_conv(&s, &noise::<f32>(s.weight_len())).expect("as the first one");
                    let (dy, mut dx) = (noise::<bf16>(s.output_len()), vec![bf16::ZERO; s.input_len()]);
                    Box::new(move || kernels::conv2d_backward_input_packed(&s, &dy, &w, &mut dx))
                });
            }
        }
        all.cases
    }
}

/// AdamW on `len` elements that are `parameters` of about the same size.
fn adamw(len: usize, parameters: usize, average: bool) -> Box<dyn FnOnce() -> Box<dyn FnMut()>> {
    let chunk = len.div_ceil(parameters);
    Box::new(move || {
        let (mut p, g) = (noise::<f32>(len), noise::<f32>(len));
        let (mut m, mut v) = (g.clone(), vec![1f32; len]);
        let mut averages = if average { p.clone() } else { vec![] };
        Box::new(move || {
            let mut averages = averages.chunks_mut(chunk);
            let slices = p.chunks_mut(chunk).zip(g.chunks(chunk)).zip(m.chunks_mut(chunk)).zip(v.chunks_mut(chunk));
            let stepped = slices.map(|(((parameter, gradient), first_moment), second_moment)| Stepped {
                parameter,
                gradient,
                first_moment,
                second_moment,
                average: averages.next(),
                packed: None,
            });
            kernels::adamw_step(&AdamW::default(), 1, 1.0, 0.999, stepped);
        })
    })
}

/// The optimizer's passes over `len` elements of parameters.
fn optimizer(len: usize) -> Vec<Case> {
    let case = |operation, work, prepare: Box<dyn FnOnce() -> Box<dyn FnMut()>>| Case {
        operation,
        pass: "step",
        shape: format!("{len}"),
        precision: Precision::F32,
        work,
        prepare,
    };
    let bytes = |times: usize, limit| Work::Memory((4 * len * times) as f64, limit);
    vec![
        case("adamw", bytes(7, Limit::Copy), adamw(len, 1, false)),
        case("adamw, 700 parameters", bytes(7, Limit::Copy), adamw(len, 700, false)),
        case("adamw, ema", bytes(9, Limit::Copy), adamw(len, 1, true)),
        case(
            "ema",
            bytes(3, Limit::Copy),
            Box::new(move || {
                let (mut average, p) = (noise::<f32>(len), noise::<f32>(len));
                Box::new(move || kernels::ema_step(&mut average, &p, 0.999))
            }),
        ),
        case(
            "sum of squares",
            bytes(1, Limit::Read),
            Box::new(move || {
                let g = noise::<f32>(len);
                Box::new(move || {
                    std::hint::black_box(kernels::sums_of_squares(&[&g]));
                })
            }),
        ),
    ]
}
