//! Prints the throughput of the main kernels on shapes of diffusion models.
//!
//! `cargo run --release -p calotype-kernels --example throughput [part of a name]`; `CALOTYPE_THREADS` and
//! `CALOTYPE_ISA` are respected.

use std::time::Instant;

use calotype_kernels::*;

fn values<T: Element>(len: usize) -> Vec<T> {
    let mut values = vec![0.0; len];
    Stream::new(1, Purpose::Evaluation, len as u64).fill_uniform(&mut values);
    values.iter().map(|&x| T::from_f32(x - 0.5)).collect()
}

/// Times `f` until a third of a second has passed; prints the best run. `work` is floating-point operations, or bytes.
fn measure(name: &str, unit: &str, work: usize, mut f: impl FnMut()) {
    if std::env::args().nth(1).is_some_and(|part| !name.contains(&part)) {
        return;
    }
    f();
    let begin = Instant::now();
    let mut best = f64::INFINITY;
    while begin.elapsed().as_secs_f64() < 0.33 {
        let start = Instant::now();
        f();
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{name:<58} {:>9.1} us {:>8.1} {unit}", best * 1e6, work as f64 / best * 1e-9);
}

fn linear<T: Element>(m: usize, n: usize, k: usize) {
    let (x, w, dy) = (values::<T>(m * k), values::<f32>(n * k), values::<T>(m * n));
    let (mut y, mut dx, mut dw) = (values::<T>(m * n), values::<T>(m * k), values::<f32>(n * k));
    let name = |pass: &str| format!("linear {} {pass} m {m} n {n} k {k}", T::NAME);
    let work = 2 * m * n * k;
    measure(&name("forward"), "GFLOP/s", work, || linear_forward(&x, &w, None, None, &mut y, m, k, n));
    measure(&name("input"), "GFLOP/s", work, || linear_backward_input(&dy, &w, &mut dx, m, k, n));
    measure(&name("weight"), "GFLOP/s", work, || linear_backward_weight(&dy, &x, &mut dw, None, m, k, n));
}

fn conv<T: Element>(batch: usize, size: usize, cin: usize, cout: usize, stride: usize) {
    let shape = Conv2dShape {
        batch,
        height: size,
        width: size,
        in_channels: cin,
        out_channels: cout,
        kernel: [3, 3],
        stride,
        padding: [1; 4],
    };
    let (x, w) = (values::<T>(shape.input_len()), values::<f32>(shape.weight_len()));
    let (dy, mut y) = (values::<T>(shape.output_len()), values::<T>(shape.output_len()));
    let (mut dx, mut dw) = (x.clone(), w.clone());
    let work = 2 * shape.output_len() * cin * 9;
    let name = |pass: &str| format!("conv3x3 {} {pass} {batch} x {size}^2 {cin}->{cout} /{stride}", T::NAME);
    measure(&name("forward"), "GFLOP/s", work, || conv2d_forward(&shape, &x, &w, None, None, None, &mut y));
    measure(&name("input"), "GFLOP/s", work, || conv2d_backward_input(&shape, &dy, &w, &mut dx));
    measure(&name("weight"), "GFLOP/s", work, || conv2d_backward_weight(&shape, &dy, &x, &mut dw, None));
}

fn attention<T: Element>(batch: usize, tokens: usize, heads: usize, head_dim: usize) {
    attention_to::<T>(batch, [tokens; 2], heads, head_dim);
}

fn attention_to<T: Element>(batch: usize, [tokens, keys]: [usize; 2], heads: usize, head_dim: usize) {
    let scale = 1.0 / (head_dim as f32).sqrt();
    let shape = AttentionShape { batch, query_tokens: tokens, key_tokens: keys, heads, head_dim, causal: false, scale };
    let (q, k, v) = (values::<T>(shape.query_len()), values::<T>(shape.key_len()), values::<T>(shape.key_len()));
    let (mut out, mut lse) = (q.clone(), vec![0.0; shape.lse_len()]);
    let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
    let work = 2 * batch * heads * tokens * keys * head_dim;
    let name = |pass: &str| format!("attention {} {pass} {batch} x {tokens} to {keys}, {heads} x {head_dim}", T::NAME);
    measure(&name("forward"), "GFLOP/s", 2 * work, || attention_forward(&shape, &q, &k, &v, &mut out, &mut lse));
    measure(&name("backward"), "GFLOP/s", 5 * work, || {
        attention_backward(&shape, &q, &k, &v, &out, &lse, &q, &mut dq, &mut dk, &mut dv)
    });
}

fn streams<T: Element>(batch: usize, pixels: usize, c: usize) {
    let len = batch * pixels * c;
    let bytes = len * size_of::<T>();
    let (x, dy, mut y, mut dx) = (values::<T>(len), values::<T>(len), values::<T>(len), values::<T>(len));
    let (gamma, beta) = (values::<f32>(c), values::<f32>(c));
    let (mut dgamma, mut dbeta) = (gamma.clone(), beta.clone());
    let (mut mean, mut rstd) = (vec![0.0; batch * 32], vec![0.0; batch * 32]);
    let name = |what: &str| format!("{what} {} {batch} x {pixels} x {c}", T::NAME);
    measure(&name("group norm + silu forward"), "GB/s", 2 * bytes, || {
        group_norm_forward(&x, &gamma, &beta, 32, 1e-5, true, &mut y, &mut mean, &mut rstd)
    });
    measure(&name("group norm + silu backward"), "GB/s", 3 * bytes, || {
        group_norm_backward(&x, &dy, &gamma, &beta, &mean, &rstd, 32, true, &mut dx, &mut dgamma, &mut dbeta)
    });
    let (mut mean, mut rstd) = (vec![0.0; batch * pixels], vec![0.0; batch * pixels]);
    measure(&name("layer norm forward"), "GB/s", 2 * bytes, || {
        layer_norm_forward(&x, &gamma, &beta, 1e-5, &mut y, &mut mean, &mut rstd)
    });
    measure(&name("layer norm backward"), "GB/s", 3 * bytes, || {
        layer_norm_backward(&x, &dy, &gamma, &mean, &rstd, &mut dx, &mut dgamma, &mut dbeta)
    });
    measure(&name("silu forward"), "GB/s", 2 * bytes, || activation_forward(Activation::Silu, &x, &mut y));
    measure(&name("gelu forward"), "GB/s", 2 * bytes, || activation_forward(Activation::Gelu, &x, &mut y));
    measure(&name("gelu backward"), "GB/s", 3 * bytes, || activation_backward(Activation::Gelu, &x, &dy, &mut dx));
    measure(&name("add"), "GB/s", 3 * bytes, || add(&x, &dy, &mut y));
}

fn main() {
    println!("{}, {} threads", isa_name(), threads());
    linear::<f32>(2048, 1152, 128);
    linear::<bf16>(2048, 1152, 128);
    linear::<f32>(4096, 1280, 1280);
    linear::<bf16>(4096, 1280, 1280);
    linear::<f32>(64, 128, 32);
    conv::<f32>(8, 64, 16, 16, 1);
    conv::<bf16>(8, 64, 32, 32, 1);
    conv::<bf16>(8, 64, 3, 32, 1);
    conv::<bf16>(8, 64, 32, 64, 2);
    conv::<bf16>(8, 16, 128, 128, 1);
    conv::<bf16>(2, 64, 320, 320, 1);
    conv::<bf16>(2, 16, 1280, 1280, 1);
    conv::<bf16>(1, 64, 320, 320, 1);
    conv::<bf16>(1, 32, 640, 640, 1);
    conv::<bf16>(1, 16, 1280, 1280, 1);
    conv::<bf16>(1, 8, 1280, 1280, 1);
    linear::<bf16>(4096, 320, 2560);
    linear::<bf16>(4096, 2560, 320);
    linear::<bf16>(64, 10240, 1280);
    attention::<f32>(32, 64, 4, 16);
    attention::<bf16>(64, 64, 8, 64);
    for (tokens, heads, head_dim) in [
        (4096, 5, 64),
        (1024, 10, 64),
        (256, 20, 64),
        (64, 20, 64),
        (4096, 8, 40),
        (1024, 8, 80),
        (256, 8, 160),
        (64, 8, 160),
        (4096, 1, 512),
        (1024, 8, 4),
        (256, 8, 8),
        (16, 8, 8),
    ] {
        attention::<bf16>(1, tokens, heads, head_dim);
    }
    attention_to::<bf16>(1, [4096, 77], 5, 64);
    attention_to::<bf16>(1, [1024, 77], 8, 80);
    streams::<f32>(8, 4096, 32);
    streams::<bf16>(4, 4096, 320);
    let len = 4 << 20;
    let (mut p, g, mut m, mut v) = (values::<f32>(len), values::<f32>(len), vec![0.0; len], vec![0.0; len]);
    measure("adamw 4 M", "GB/s", 7 * 4 * len, || adamw_step(&AdamW::default(), 1, 1.0, &mut p, &g, &mut m, &mut v));
    measure("sum of squares 4 M", "GB/s", 4 * len, || assert!(sum_of_squares(&g) > 0.0));
    measure("parallel_for of nothing", "G tasks/s", 2, || parallel_for(2, |_| {}));
}
