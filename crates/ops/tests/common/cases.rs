//! The table of calls: every operation, over odd shapes and the shapes of the models.

use super::{Case, Input, Tolerance};
use calotype_ops::{Activation, Conv2dGeometry, PoolGeometry, Pooling};

pub const ACTIVATIONS: [Activation; 5] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];

/// Every case.
pub fn all() -> Vec<Case> {
    [convolutions(), linears(), attentions(), group_norms(), layer_norms(), pointwise(), structural()]
        .into_iter()
        .flatten()
        .collect()
}

/// Which optional inputs a call has.
#[derive(Clone, Copy, Debug)]
struct Extras {
    bias: bool,
    channel_add: bool,
    residual: bool,
}

impl Extras {
    const ALL: Self = Self { bias: true, channel_add: true, residual: true };

    fn combinations() -> impl Iterator<Item = Self> {
        (0..8).map(|bits| Self { bias: bits & 1 != 0, channel_add: bits & 2 != 0, residual: bits & 4 != 0 })
    }

    fn name(self) -> String {
        let part = |on: bool, name: &str| if on { format!(" {name}") } else { String::new() };
        part(self.bias, "bias") + &part(self.channel_add, "channel_add") + &part(self.residual, "residual")
    }
}

fn conv2d(x: [usize; 4], out: usize, kernel: [usize; 2], geometry: Conv2dGeometry, extras: Extras) -> Case {
    let [batch, height, width, channels] = x;
    let [rows, columns] = geometry.output_size([height, width], kernel);
    let fan_in = (kernel[0] * kernel[1] * channels) as f32;
    let mut inputs = vec![
        Input::activation("x", &x),
        Input::parameter("weight", &[out, kernel[0], kernel[1], channels]).around(0.0, fan_in.sqrt().recip()),
    ];
    if extras.bias {
        inputs.push(Input::parameter("bias", &[out]));
    }
    if extras.channel_add {
        inputs.push(Input::activation("channel_add", &[batch, out]));
    }
    if extras.residual {
        inputs.push(Input::activation("residual", &[batch, rows, columns, out]));
    }
    let Conv2dGeometry { stride, padding } = geometry;
    let name = format!("conv2d {x:?} to {out}, kernel {kernel:?} stride {stride} padding {padding:?}{}", extras.name());
    Case::new(name, inputs, move |t| {
        let (bias, channel_add, residual) = (t.find("bias"), t.find("channel_add"), t.find("residual"));
        t.flat(calotype_ops::conv2d(t.get("x"), t.get("weight"), bias, channel_add, residual, geometry))
    })
}

fn conv2d_relu(x: [usize; 4], out: usize, kernel: [usize; 2], geometry: Conv2dGeometry) -> Case {
    let channels = x[3];
    let fan_in = (kernel[0] * kernel[1] * channels) as f32;
    let inputs = vec![
        Input::activation("x", &x),
        Input::parameter("weight", &[out, kernel[0], kernel[1], channels]).around(0.0, fan_in.sqrt().recip()),
        Input::parameter("bias", &[out]),
    ];
    let case = Case::new(format!("conv2d_relu {x:?} to {out}, kernel {kernel:?}"), inputs, move |t| {
        t.flat(calotype_ops::conv2d_relu(t.get("x"), t.get::<4>("weight"), t.find("bias"), geometry))
    });
    case.kinked()
}

fn convolutions() -> Vec<Case> {
    let same = Conv2dGeometry::same;
    let (down, asymmetric) = (Conv2dGeometry::downsample(), Conv2dGeometry::downsample_asymmetric());
    let every = Extras::ALL;
    let mut cases = Vec::new();
    for extras in Extras::combinations() {
        cases.push(conv2d([2, 5, 3, 7], 3, [3, 3], same(3), extras));
        cases.push(conv2d([2, 3, 5, 17], 5, [1, 1], same(1), extras));
        cases.push(conv2d([3, 5, 7, 3], 5, [3, 3], down, extras));
        cases.push(conv2d([1, 6, 7, 5], 7, [3, 3], asymmetric, extras));
        cases.push(conv2d([2, 6, 4, 3], 17, [2, 2], Conv2dGeometry::patches(2), extras));
    }
    cases.extend([
        conv2d([1, 1, 1, 1], 1, [3, 3], same(3), every),
        conv2d([1, 1, 1, 1], 1, [1, 1], same(1), every),
        conv2d([1, 7, 5, 17], 7, [3, 3], same(3), every),
        conv2d([3, 3, 3, 5], 17, [3, 3], same(3), every),
        conv2d([1, 17, 1, 3], 5, [3, 3], same(3), every),
        conv2d([1, 7, 17, 3], 5, [5, 5], same(5), every),
        conv2d([2, 5, 5, 3], 7, [1, 1], Conv2dGeometry { stride: 2, padding: [0; 4] }, every),
        conv2d([2, 6, 8, 3], 7, [1, 1], Conv2dGeometry { stride: 2, padding: [0; 4] }, every),
        conv2d([1, 1, 1, 3], 5, [3, 3], down, every),
        conv2d([2, 8, 6, 5], 3, [3, 3], down, every),
        conv2d([1, 2, 2, 1], 1, [3, 3], asymmetric, every),
        conv2d([2, 8, 6, 17], 5, [3, 3], asymmetric, every),
        conv2d([1, 7, 7, 3], 5, [3, 3], asymmetric, every),
        // Rows and columns that no window reaches have a gradient of zero.
        conv2d([1, 7, 5, 3], 5, [2, 2], Conv2dGeometry::patches(2), every),
        conv2d([2, 7, 8, 3], 5, [2, 2], Conv2dGeometry { stride: 3, padding: [0; 4] }, every),
        conv2d([2, 14, 7, 3], 17, [7, 7], Conv2dGeometry::patches(7), every),
        conv2d([2, 5, 7, 3], 5, [1, 3], Conv2dGeometry { stride: 1, padding: [0, 0, 1, 1] }, every),
        conv2d([2, 5, 7, 3], 5, [3, 1], Conv2dGeometry { stride: 1, padding: [1, 1, 0, 0] }, every),
        conv2d([1, 7, 5, 3], 3, [5, 5], Conv2dGeometry { stride: 2, padding: [2, 1, 0, 3] }, every),
        conv2d([0, 5, 3, 7], 3, [3, 3], same(3), every),
        // More channels and pixels than a block of the matrix product.
        conv2d([2, 16, 16, 32], 48, [3, 3], same(3), every),
        conv2d([1, 9, 9, 300], 70, [3, 3], same(3), every),
        conv2d([1, 16, 16, 33], 130, [1, 1], same(1), every),
        conv2d([2, 17, 17, 40], 24, [3, 3], down, every),
        conv2d([2, 16, 16, 24], 40, [3, 3], asymmetric, every),
        conv2d_relu([2, 5, 3, 7], 3, [3, 3], same(3)),
        conv2d_relu([2, 3, 5, 17], 5, [1, 1], same(1)),
        conv2d_relu([3, 5, 7, 3], 5, [3, 3], down),
    ]);
    cases
}

fn linear<const D: usize>(x: [usize; D], out: usize, bias: bool, residual: bool) -> Case {
    let features = x[D - 1];
    let mut inputs = vec![
        Input::activation("x", &x),
        Input::parameter("weight", &[out, features]).around(0.0, (features as f32).sqrt().recip()),
    ];
    if bias {
        inputs.push(Input::parameter("bias", &[out]));
    }
    if residual {
        let mut shape = x;
        shape[D - 1] = out;
        inputs.push(Input::activation("residual", &shape));
    }
    let name = format!("linear {x:?} to {out}, bias {bias}, residual {residual}");
    Case::new(name, inputs, |t| {
        t.flat(calotype_ops::linear::<D>(t.get("x"), t.get("weight"), t.find("bias"), t.find("residual")))
    })
}

fn linear_geglu<const D: usize>(x: [usize; D], channels: usize, bias: bool) -> Case {
    let features = x[D - 1];
    let mut inputs = vec![
        Input::activation("x", &x),
        Input::parameter("weight", &[2 * channels, features]).around(0.0, (features as f32).sqrt().recip()),
    ];
    if bias {
        inputs.push(Input::parameter("bias", &[2 * channels]));
    }
    Case::new(format!("linear_geglu {x:?} to {channels}, bias {bias}"), inputs, |t| {
        t.flat(calotype_ops::linear_geglu::<D>(t.get("x"), t.get("weight"), t.find("bias")))
    })
}

fn linears() -> Vec<Case> {
    let mut cases = Vec::new();
    for (bias, residual) in [(false, false), (true, false), (false, true), (true, true)] {
        cases.extend([
            linear([2, 5, 7], 3, bias, residual),
            linear([3, 17], 5, bias, residual),
            linear([1, 3, 3, 5], 17, bias, residual),
        ]);
    }
    cases.extend([
        linear([1, 1], 1, true, true),
        linear([7, 1], 5, true, true),
        linear([7, 5], 1, true, true),
        linear([0, 5, 7], 3, true, true),
        linear([3, 77, 300], 130, true, true),
        linear_geglu([2, 5, 7], 3, true),
        linear_geglu([3, 17], 16, false),
        linear_geglu([2, 5, 33], 48, true),
        linear_geglu([1, 3, 3, 40], 112, true),
    ]);
    cases
}

/// One attention of the table.
#[derive(Clone, Copy)]
struct Tokens {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    head: usize,
    causal: bool,
    /// Standard deviation of queries and keys.
    spread: f32,
}

fn attention_of(tokens: Tokens) -> Case {
    let Tokens { batch, queries, keys, heads, head, causal, spread } = tokens;
    let channels = heads * head;
    let inputs = vec![
        Input::activation("q", &[batch, queries, channels]).around(0.0, spread),
        Input::activation("k", &[batch, keys, channels]).around(0.0, spread),
        Input::activation("v", &[batch, keys, channels]),
    ];
    let scale = (head as f32).sqrt().recip();
    let kind = if causal { "causal " } else { "" };
    let name = format!("{kind}attention, batch {batch}, {queries} queries, {keys} keys, {heads} x {head}, sd {spread}");
    let call = move |t: &super::Leaves| {
        t.flat(calotype_ops::attention(t.get("q"), t.get("k"), t.get("v"), heads, causal, scale))
    };
    // The kernel's backward takes the product of the output and its gradient from the output as stored; in bf16 that is
    // rounded (2^-9 on average) before it is subtracted, and the difference is multiplied by the keys. Where
    // probabilities are 0 or 1, the gradients of q and k are such differences and nothing else.
    let tolerance = Tolerance { forward: 5e-6, bf16: 1.0 / 64.0, floor: spread, ..Tolerance::default() };
    Case::new(name, inputs, call).within(tolerance)
}

fn attentions() -> Vec<Case> {
    let attention = |batch, [queries, keys]: [usize; 2], [heads, head]: [usize; 2], causal| {
        attention_of(Tokens { batch, queries, keys, heads, head, causal, spread: 1.0 })
    };
    let mut cases = Vec::new();
    for causal in [false, true] {
        cases.extend([
            attention(1, [1, 1], [1, 1], causal),
            attention(2, [5, 5], [1, 3], causal),
            attention(3, [7, 7], [3, 5], causal),
            attention(1, [17, 17], [5, 7], causal),
            attention(2, [5, 7], [2, 3], causal),
            attention(2, [7, 5], [2, 3], causal),
            attention(2, [7, 1], [3, 1], causal),
            attention(2, [1, 17], [1, 17], causal),
            attention(1, [77, 77], [2, 64], causal),
            attention(0, [5, 5], [2, 3], causal),
            // More keys than a block, with a rest.
            attention(1, [300, 300], [2, 24], causal),
            attention_of(Tokens { batch: 1, queries: 33, keys: 33, heads: 2, head: 16, causal, spread: 3.0 }),
        ]);
    }
    cases.extend([
        attention(2, [64, 77], [2, 40], false),
        attention(1, [16, 16], [2, 80], false),
        attention(1, [17, 77], [1, 160], false),
        // The autoencoder's one head.
        attention(1, [36, 36], [1, 512], false),
        attention(1, [1100, 7], [1, 8], false),
    ]);
    let shared = vec![Input::activation("x", &[2, 7, 6])];
    cases.push(
        Case::new("attention of one tensor".into(), shared, |t| {
            t.flat(calotype_ops::attention(t.get("x"), t.get("x"), t.get("x"), 2, false, 0.6))
        })
        // The three gradients are added in bf16, in an order that differs.
        .within(Tolerance { bf16: 1.0 / 32.0, ..Tolerance::default() }),
    );
    cases
}

fn norm_inputs(x: &[usize], centre: f32) -> Vec<Input> {
    let channels = x[x.len() - 1];
    vec![
        Input::activation("x", x).around(centre, 1.0),
        Input::parameter("gamma", &[channels]).around(1.0, 0.3),
        Input::parameter("beta", &[channels]).around(0.0, 0.3),
    ]
}

/// `amplification`: by how much the mean is larger than the standard deviation, which is what its subtraction costs.
fn norm_tolerance(amplification: f32) -> Tolerance {
    Tolerance { forward: 2e-6 * amplification, gradient: 1e-5 * amplification, bf16: 1e-5 * amplification, floor: 1.0 }
}

fn group_norm<const D: usize>(x: [usize; D], groups: usize, silu: bool, centre: f32) -> Case {
    let name = format!("group_norm {x:?}, {groups} groups, silu {silu}, mean {centre}");
    Case::new(name, norm_inputs(&x, centre), move |t| {
        t.flat(calotype_ops::group_norm::<D>(t.get("x"), t.get("gamma"), t.get("beta"), groups, 1e-5, silu))
    })
    .within(norm_tolerance(centre.max(1.0)))
}

fn group_norms() -> Vec<Case> {
    let mut cases = Vec::new();
    for silu in [false, true] {
        cases.extend([
            group_norm([1, 1, 1, 1], 1, silu, 0.5),
            group_norm([2, 5, 3, 7], 7, silu, 0.5),
            group_norm([2, 5, 3, 7], 1, silu, 0.5),
            group_norm([3, 7, 5, 17], 17, silu, 0.5),
            group_norm([1, 3, 3, 15], 3, silu, 0.5),
            group_norm([1, 3, 3, 15], 5, silu, 10.0),
            group_norm([2, 1, 1, 5], 1, silu, 0.5),
            group_norm([2, 5, 6], 3, silu, 0.5),
            group_norm([3, 34], 2, silu, 0.5),
            group_norm([0, 3, 3, 6], 3, silu, 0.5),
            group_norm([2, 16, 16, 64], 32, silu, 0.5),
            group_norm([2, 8, 8, 320], 32, silu, 0.5),
        ]);
    }
    cases
}

fn layer_norm<const D: usize>(x: [usize; D], centre: f32) -> Case {
    let name = format!("layer_norm {x:?}, mean {centre}");
    Case::new(name, norm_inputs(&x, centre), |t| {
        t.flat(calotype_ops::layer_norm::<D>(t.get("x"), t.get("gamma"), t.get("beta"), 1e-5))
    })
    .within(norm_tolerance(centre.max(1.0)))
}

fn layer_norms() -> Vec<Case> {
    vec![
        layer_norm([1, 1], 0.5),
        layer_norm([7, 1], 0.5),
        layer_norm([2, 5, 3], 0.5),
        layer_norm([3, 17], 0.5),
        layer_norm([2, 5, 17], 10.0),
        layer_norm([1, 3, 5, 7], 0.5),
        layer_norm([0, 3, 5], 0.5),
        layer_norm([2, 77, 320], 0.5),
    ]
}

fn activation<const D: usize>(kind: Activation, x: [usize; D], spread: f32) -> Case {
    let inputs = vec![Input::activation("x", &x).around(0.0, spread)];
    let case = Case::new(format!("{kind:?} {x:?}, sd {spread}"), inputs, move |t| {
        t.flat(calotype_ops::activation::<D>(t.get("x"), kind))
    });
    if kind == Activation::Relu { case.kinked() } else { case }
}

fn geglu<const D: usize>(x: [usize; D]) -> Case {
    let inputs = vec![Input::activation("x", &x).around(0.0, 2.0)];
    Case::new(format!("geglu {x:?}"), inputs, |t| t.flat(calotype_ops::geglu::<D>(t.get("x"))))
}

fn add<const D: usize>(shape: [usize; D]) -> Case {
    let inputs = vec![Input::activation("a", &shape), Input::activation("b", &shape)];
    Case::new(format!("add {shape:?}"), inputs, |t| t.flat(calotype_ops::add::<D>(t.get("a"), t.get("b"))))
}

fn mean_squared_error<const D: usize>(shape: [usize; D]) -> Case {
    let inputs = vec![Input::activation("prediction", &shape), Input::activation("target", &shape)];
    Case::new(format!("mean_squared_error {shape:?}"), inputs, |t| {
        t.flat(calotype_ops::mean_squared_error::<D>(t.get("prediction"), t.get("target")))
    })
    // Burn's sum on Flex carries the rounding of long runs in f32; the differences of 20,011 numbers show it.
    .within(Tolerance { forward: 3e-5, ..Tolerance::default() })
}

fn pointwise() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in ACTIVATIONS {
        cases.extend([
            activation(kind, [1], 2.0),
            activation(kind, [3, 17], 2.0),
            activation(kind, [2, 5, 7, 3], 2.0),
            activation(kind, [0, 3], 2.0),
            // Far into both tails.
            activation(kind, [7, 77], 40.0),
            activation(kind, [20_011], 2.0),
        ]);
    }
    cases.extend([
        geglu([1, 2]),
        geglu([3, 34]),
        geglu([2, 5, 6]),
        geglu([2, 7, 5, 10]),
        // No empty geglu or upsampling: Burn narrows and repeats empty tensors wrongly, so there is no oracle.
        geglu([77, 600]),
        add([1]),
        add([3, 5, 7]),
        add([2, 5, 7, 17]),
        add([0, 3]),
        add([20_011]),
        // No empty mean squared error: the mean of nothing is not a number.
        mean_squared_error([1]),
        mean_squared_error([3, 5, 7]),
        mean_squared_error([2, 5, 7, 17]),
        mean_squared_error([20_011]),
    ]);
    let one = vec![Input::activation("x", &[3, 5])];
    cases.push(Case::new("add of one tensor to itself".into(), one, |t| {
        t.flat(calotype_ops::add::<2>(t.get("x"), t.get("x")))
    }));
    cases
}

fn upsample(x: [usize; 4]) -> Case {
    let inputs = vec![Input::activation("x", &x)];
    // Burn's gradient adds in bf16: two sums of two, each rounded (2^-9 on average, of sums that may cancel).
    Case::new(format!("upsample {x:?}"), inputs, |t| t.flat(calotype_ops::upsample_nearest2x(t.get("x"))))
        .within(Tolerance { bf16: 1.0 / 128.0, ..Tolerance::default() })
}

fn pool(kind: Pooling, x: [usize; 4], [size, stride, padding]: [usize; 3]) -> Case {
    let geometry = PoolGeometry { size, stride, padding };
    let name = format!("{kind:?} pool {x:?}, windows of {size}, stride {stride}, padding {padding}");
    let inputs = vec![Input::activation("x", &x)];
    let case = Case::new(name, inputs, move |t| t.flat(calotype_ops::pool2d(t.get("x"), kind, geometry)));
    if kind == Pooling::Max { case.kinked() } else { case }
}

fn concat<const D: usize>(a: [usize; D], channels: usize) -> Case {
    let mut b = a;
    b[D - 1] = channels;
    let inputs = vec![Input::activation("a", &a), Input::activation("b", &b)];
    Case::new(format!("concat {a:?} and {b:?}"), inputs, |t| {
        t.flat(calotype_ops::concat_channels::<D>(t.get("a"), t.get("b")))
    })
}

fn structural() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in [Pooling::Max, Pooling::Average] {
        cases.extend([
            pool(kind, [2, 7, 5, 17], [3, 2, 0]),
            pool(kind, [1, 6, 7, 40], [3, 1, 1]),
            pool(kind, [2, 4, 6, 3], [2, 2, 0]),
        ]);
    }
    cases.extend([
        upsample([1, 1, 1, 1]),
        upsample([2, 3, 5, 7]),
        upsample([1, 7, 3, 17]),
        upsample([2, 16, 16, 40]),
        concat([1], 1),
        concat([3, 5], 7),
        concat([2, 17, 3], 1),
        concat([2, 3, 5, 1], 17),
        concat([0, 3, 5], 2),
        concat([2, 64, 64, 40], 24),
    ]);
    cases
}
