//! The public functions of activations, compiled in this crate once for each storage type.
//!
//! A generic function is compiled again by every crate that calls it, and a kernel is large: it stands here behind a trait
//! whose implementations are compiled where they are written.

use crate::activation::Activation;
use crate::attention::AttentionShape;
use crate::conv::Conv2dShape;
use crate::element::Element;
use crate::gemm::{Layout, Matrix};
use crate::pool::{Pool2dShape, Pooling};
use crate::product::RowCount;
use crate::product8::QuantisedWeights;
use half::bf16;

/// Declares the functions: their public form, the trait behind it, and its implementations.
macro_rules! compiled {
    ($($(#[$doc:meta])* $module:ident::$name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of a storage type; the crate's own business.
        pub trait Compiled<T> {
            $(#[doc(hidden)] #[allow(missing_docs)] fn $name($($argument: $type),*) $(-> $result)?;)*
        }

        compiled!(@type f32_functions, f32, $($module::$name($($argument: $type),*) $(-> $result)?;)*);
        compiled!(@type bf16_functions, bf16, $($module::$name($($argument: $type),*) $(-> $result)?;)*);

        $(
            $(#[$doc])*
            #[inline]
            pub fn $name<T: Element>($($argument: $type),*) $(-> $result)? {
                T::$name($($argument),*)
            }
        )*
    };
    (@type $functions:ident, $element:ty, $($module:ident::$name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        mod $functions {
            use super::*;
            type T = $element;

            impl Compiled<T> for T {
                $(
                    #[inline(never)]
                    fn $name($($argument: $type),*) $(-> $result)? {
                        crate::$module::$name($($argument),*)
                    }
                )*
            }
        }
    };
}

compiled! {
    /// `y = f(x)`, element by element.
    ///
    /// # Panics
    ///
    /// If the slices differ in length.
    activation::activation_forward(kind: Activation, x: &[T], y: &mut [T]);

    /// `dx = dy f'(x)`, element by element.
    ///
    /// # Panics
    ///
    /// If the slices differ in length.
    activation::activation_backward(kind: Activation, x: &[T], dy: &[T], dx: &mut [T]);

    /// `y[r, i] = x[r, i] gelu(x[r, c + i])` with the exact GELU: the GEGLU of diffusers, whose first half is the value and
    /// second half the gate. x is `[rows, 2 c]`, y `[rows, c]`.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    activation::geglu_forward(x: &[T], y: &mut [T], rows: usize, c: usize);

    /// Gradient of [`geglu_forward`]: x and dx (overwritten) are `[rows, 2 c]`, dy `[rows, c]`.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    activation::geglu_backward(x: &[T], dy: &[T], dx: &mut [T], rows: usize, c: usize);

    /// `out[b, i, h] = sum over j of softmax over j (scale q[b, i, h] . k[b, j, h]) v[b, j, h]`, and
    /// `lse[b, h, i] = ln sum over j of exp(scale q . k)`.
    ///
    /// A query that sees no key gives zero, and lse minus infinity.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    attention::attention_forward(shape: &AttentionShape, q: &[T], k: &[T], v: &[T], out: &mut [T], lse: &mut [f32]);

    /// Gradients of [`attention_forward`]: dq lies like q, dk and dv like k; all are overwritten. `out` and `lse` are what
    /// the forward pass returned.
    ///
    /// With P the probabilities: dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(dO * O)), dQ = scale dS K,
    /// dK = scale dS^T Q.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    attention::attention_backward(
        shape: &AttentionShape,
        q: &[T],
        k: &[T],
        v: &[T],
        out: &[T],
        lse: &[f32],
        dout: &[T],
        dq: &mut [T],
        dk: &mut [T],
        dv: &mut [T]
    );

    /// `y = conv(x, w) + bias + channel_add + residual`.
    ///
    /// x is `[batch, height, width, in_channels]`, w is `[out_channels, kernel height, kernel width, in_channels]`, bias
    /// `[out_channels]`, channel_add `[batch, out_channels]` (a time embedding, added to all pixels), y and residual
    /// `[batch, out_height, out_width, out_channels]`.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    conv::conv2d_forward(
        shape: &Conv2dShape,
        x: &[T],
        w: &[f32],
        bias: Option<&[f32]>,
        channel_add: Option<&[T]>,
        residual: Option<&[T]>,
        y: &mut [T]
    );

    /// `y = max(conv(x, w) + bias, 0)`, as [`conv2d_forward`] without `channel_add` and `residual`, and a ReLU behind it, but never by
    /// Winograd: networks with ReLUs have many convolutions of few channels, for which transforms take longer than they save (on Zen 5,
    /// 64 to 96 channels of 35x35 pixels 1.7 times as long as the product).
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    conv::conv2d_relu_forward(shape: &Conv2dShape, x: &[T], w: &[f32], bias: Option<&[f32]>, y: &mut [T]);

    /// Gradient of [`conv2d_forward`] with respect to x: dy lies like y, dx (overwritten) like x.
    ///
    /// With a stride, the pixels of dx fall into stride x stride classes that meet different taps; each class is a dense
    /// convolution of dy of its own.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    conv::conv2d_backward_input(shape: &Conv2dShape, dy: &[T], w: &[f32], dx: &mut [T]);

    /// Gradients of [`conv2d_forward`] with respect to w and bias: dw lies like w, db is `[out_channels]`. Both are
    /// overwritten.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    conv::conv2d_backward_weight(shape: &Conv2dShape, dy: &[T], x: &[T], dw: &mut [f32], db: Option<&mut [f32]>);

    /// `C[m, n] = A B`, plus what C held if `accumulate` is set. Rows of C are `n` apart.
    ///
    /// Sums are f32, in pieces whose lengths depend on (m, n, k) alone.
    ///
    /// # Panics
    ///
    /// If a slice is too short for the shape, or a row stride for its row.
    gemm::gemm(layout: Layout, sizes: (usize, usize, usize), a: Matrix<T>, b: Matrix<T>, c: &mut [T], accumulate: bool);

    /// `y[m, n] = x[m, k] w[n, k]^T + bias[n] + residual[m, n]`. The deciding rows of m say in which order is added.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    linear::linear_forward(
        x: &[T],
        w: &[f32],
        bias: Option<&[f32]>,
        residual: Option<&[T]>,
        y: &mut [T],
        m: RowCount,
        k: usize,
        n: usize
    );

    /// `y[m, n] = x[m, k] w[n, k]^T + bias[n] + residual[m, n]` in 8 bits: each row of x is quantised by itself (symmetric, largest
    /// magnitude / 127, half to even), sums are whole numbers, and what the scales make of them is `f32`. The same bits on every
    /// instruction set.
    ///
    /// # Panics
    ///
    /// If a slice or the weights do not have the size the shape says, or the weights were packed for GEGLU.
    product8::linear_forward_int8(
        x: &[T],
        w: &QuantisedWeights,
        bias: Option<&[f32]>,
        residual: Option<&[T]>,
        y: &mut [T],
        m: usize,
        k: usize,
        n: usize
    );

    /// `y = value gelu(gate)` with `(value, gate)` as [`linear_forward_int8`] gives them: x is `[m, k]`, bias `[2 c]`, y `[m, c]`.
    ///
    /// # Panics
    ///
    /// If a slice or the weights do not have the size the shape says, or the weights were not packed for GEGLU.
    product8::linear_geglu_forward_int8(
        x: &[T],
        w: &QuantisedWeights,
        bias: Option<&[f32]>,
        y: &mut [T],
        m: usize,
        k: usize,
        c: usize
    );

    /// [`conv2d_forward`] in 8 bits, as [`linear_forward_int8`]: each pixel is quantised by itself where windows are pixels, and each
    /// image otherwise, so that an image is the same bits in any batch.
    ///
    /// # Panics
    ///
    /// If a slice or the weights do not have the size the shape says.
    product8::conv2d_forward_int8(
        shape: &Conv2dShape,
        x: &[T],
        w: &QuantisedWeights,
        bias: Option<&[f32]>,
        channel_add: Option<&[T]>,
        residual: Option<&[T]>,
        y: &mut [T]
    );

    /// Raises `maxima[c]` to the largest magnitude in column `c` of x, `[rows, columns]`, of as many columns as there are maxima; NaN
    /// where something is NaN.
    ///
    /// # Panics
    ///
    /// If there are not whole rows.
    quantise8::column_maxima(x: &[T], maxima: &mut [f32]);

    /// `dx[m, k] = dy[m, n] w[n, k]`.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    linear::linear_backward_input(dy: &[T], w: &[f32], dx: &mut [T], m: usize, k: usize, n: usize);

    /// `dw[n, k] = dy[m, n]^T x[m, k]` and `db[n]`, the sum of the rows of dy. Both are overwritten.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    linear::linear_backward_weight(
        dy: &[T],
        x: &[T],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        m: usize,
        k: usize,
        n: usize
    );

    /// `y = f((x - mean) rstd gamma + beta)`, f being the identity or SiLU, with the statistics of each image and group
    /// of channels: `rstd = 1 / sqrt(variance + eps)`, the variance without Bessel's correction.
    ///
    /// x and y are `[batch, pixels, c]`, gamma and beta `[c]`, mean and rstd `[batch, groups]` (they tell the batch). c is
    /// the length of gamma.
    ///
    /// # Panics
    ///
    /// If lengths do not fit together, or the channels do not divide into the groups.
    norm::group_norm_forward(
        x: &[T],
        gamma: &[f32],
        beta: &[f32],
        groups: usize,
        eps: f32,
        silu: bool,
        y: &mut [T],
        mean: &mut [f32],
        rstd: &mut [f32]
    );

    /// Gradients of [`group_norm_forward`]: dx lies like x, dgamma and dbeta are `[c]`; all are overwritten. mean and rstd
    /// are what the forward pass returned.
    ///
    /// With h = (x - mean) rstd and dz = dy f'(h gamma + beta): dbeta = sum dz, dgamma = sum dz h,
    /// dx = rstd (gamma dz - average(gamma dz) - h average(gamma dz h)), the averages over a group.
    ///
    /// # Panics
    ///
    /// If lengths do not fit together, or the channels do not divide into the groups.
    norm::group_norm_backward(
        x: &[T],
        dy: &[T],
        gamma: &[f32],
        beta: &[f32],
        mean: &[f32],
        rstd: &[f32],
        groups: usize,
        silu: bool,
        dx: &mut [T],
        dgamma: &mut [f32],
        dbeta: &mut [f32]
    );

    /// `y = (x - mean) rstd gamma + beta` with the statistics of each row. x and y are `[rows, c]`, gamma and beta `[c]`,
    /// mean and rstd `[rows]`.
    ///
    /// # Panics
    ///
    /// If lengths do not fit together.
    norm::layer_norm_forward(
        x: &[T],
        gamma: &[f32],
        beta: &[f32],
        eps: f32,
        y: &mut [T],
        mean: &mut [f32],
        rstd: &mut [f32]
    );

    /// Gradients of [`layer_norm_forward`]: dx lies like x, dgamma and dbeta are `[c]`; all are overwritten.
    ///
    /// With h = (x - mean) rstd: dbeta = sum dy, dgamma = sum dy h,
    /// dx = rstd (gamma dy - average(gamma dy) - h average(gamma dy h)), the averages over a row.
    ///
    /// # Panics
    ///
    /// If lengths do not fit together.
    norm::layer_norm_backward(
        x: &[T],
        dy: &[T],
        gamma: &[f32],
        mean: &[f32],
        rstd: &[f32],
        dx: &mut [T],
        dgamma: &mut [f32],
        dbeta: &mut [f32]
    );

    /// `y = a + b`.
    ///
    /// # Panics
    ///
    /// If the slices differ in length.
    pointwise::add(a: &[T], b: &[T], y: &mut [T]);

    /// `y += x`.
    ///
    /// # Panics
    ///
    /// If the slices differ in length.
    pointwise::add_assign(y: &mut [T], x: &[T]);

    /// `y = factor x`.
    ///
    /// # Panics
    ///
    /// If the slices differ in length.
    pointwise::scale(x: &[T], factor: f32, y: &mut [T]);

    /// `y[r] = (a[r], b[r])`: joins the channels of two tensors. a is `[rows, ca]`, b `[rows, cb]`, y `[rows, ca + cb]`.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    pointwise::concat_channels(a: &[T], b: &[T], y: &mut [T], rows: usize, ca: usize, cb: usize);

    /// `(a[r], b[r]) = y[r]`: takes apart what [`concat_channels`] joined; its gradient. a and b are overwritten.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    pointwise::split_channels(y: &[T], a: &mut [T], b: &mut [T], rows: usize, ca: usize, cb: usize);

    /// `sum[c] = sum over rows of x[rows, c]`: the gradient of a bias. Rows are added in blocks, then the blocks.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    pointwise::sum_rows(x: &[T], sum: &mut [f32], rows: usize, c: usize);

    /// `sum[g, c] = sum over rows of x[groups, rows, c]`: the gradient of what is added to all pixels of an image.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    pointwise::sum_row_groups(x: &[T], sum: &mut [f32], groups: usize, rows: usize, c: usize);

    /// `average over all elements of weight[row] (prediction - target)^2`, summed up in f64. A row is an example, of which
    /// there are `rows`; without weights they count 1. Zero if there are no elements.
    ///
    /// # Panics
    ///
    /// If lengths do not fit together.
    pointwise::mse_loss(prediction: &[T], target: &[T], weight_per_row: Option<&[f32]>, rows: usize) -> f32;

    /// Gradient of [`mse_loss`] with respect to the prediction, times `dloss`:
    /// `dloss 2 weight[row] (prediction - target) / number of elements`. Overwritten.
    ///
    /// # Panics
    ///
    /// If lengths do not fit together.
    pointwise::mse_loss_backward(
        prediction: &[T],
        target: &[T],
        weight_per_row: Option<&[f32]>,
        rows: usize,
        dloss: f32,
        dprediction: &mut [T]
    );

    /// Adds noise to a batch: `y[r] = signal[r] x[r] + noise_scale[r] noise[r]`, the two factors being those of the row's
    /// diffusion time. x, noise and y are `[rows, c]`.
    ///
    /// # Panics
    ///
    /// If lengths do not fit together.
    pointwise::mix_rows(x: &[T], noise: &[T], signal: &[f32], noise_scale: &[f32], y: &mut [T]);

    /// Pools x, `[batch, height, width, channels]`, into y, `[batch, out height, out width, channels]`.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says, or the padding is not less than the window.
    pool::pool2d_forward(kind: Pooling, shape: &Pool2dShape, x: &[T], y: &mut [T]);

    /// Gradient of [`pool2d_forward`] with respect to x: dy lies like y, dx (overwritten) like x. Of equal greatest pixels
    /// the first one, by rows, has the gradient. The work is cut by images, each element on its own.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says, or the padding is not less than the window.
    pool::pool2d_backward(kind: Pooling, shape: &Pool2dShape, x: &[T], dy: &[T], dx: &mut [T]);

    /// `y[b, i, j] = x[b, i / 2, j / 2]`: every pixel four times. x is `[batch, height, width, channels]`, y
    /// `[batch, 2 height, 2 width, channels]`.
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    resample::upsample_nearest2x_forward(
        x: &[T],
        y: &mut [T],
        batch: usize,
        height: usize,
        width: usize,
        channels: usize
    );

    /// Gradient of [`upsample_nearest2x_forward`]: each element of dx (overwritten, shaped like x) is the sum of its four
    /// copies in dy (shaped like y).
    ///
    /// # Panics
    ///
    /// If a slice does not have the length its shape says.
    resample::upsample_nearest2x_backward(
        dy: &[T],
        dx: &mut [T],
        batch: usize,
        height: usize,
        width: usize,
        channels: usize
    );
}
