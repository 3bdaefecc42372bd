//! Elementary functions on vectors, and loops over slices.

use crate::element::Element;
use crate::simd::Simd;

/// `e^x`, within 1 ULP for x in [-87.3, 88.7] (the test measures it). Zero below -87.33, where results would be
/// subnormal; infinity above 88.72; NaN for NaN.
///
/// Reduction to |r| <= ln(2)/2 with a two-part ln 2 (Cody and Waite), then the polynomial of Cephes `expf`.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::V) -> S::V {
    // The operand that is returned for NaN stands second.
    let bounded = s.max(s.splat(-87.4), s.min(s.splat(88.8), x));
    let n = s.round(s.mul(bounded, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), bounded);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let p = s.splat(1.987_569_1e-4);
    let p = s.fma(p, r, s.splat(1.398_2e-3));
    let p = s.fma(p, r, s.splat(8.333_452e-3));
    let p = s.fma(p, r, s.splat(4.166_579_6e-2));
    let p = s.fma(p, r, s.splat(1.666_666_5e-1));
    let p = s.fma(p, r, s.splat(0.5));
    let p = s.add(s.fma(s.mul(r, r), p, r), s.splat(1.0));
    let y = s.scale(p, n);
    let y = s.select_lt(x, s.splat(-87.336_54), s.splat(0.0), y);
    s.select_lt(s.splat(88.722_84), x, s.splat(f32::INFINITY), y)
}

/// `2^x` within a factor of 1 ± 3e-6, for magnitudes below 250 (with AVX-512 for any x: 0 far below zero and for minus
/// infinity): for results that are rounded to bf16.
///
/// `2^(x - floor(x))` by the polynomial of degree 4 that is 1 at 0 and has the smallest relative error in [0, 1] (Remez).
#[inline(always)]
pub fn exp2_near<S: Simd>(s: S, x: S::V) -> S::V {
    let (f, floor) = s.split(x);
    let p = s.splat(0.013_426_69);
    let p = s.fma(p, f, s.splat(0.052_242_47));
    let p = s.fma(p, f, s.splat(0.241_280_21));
    let p = s.fma(p, f, s.splat(0.693_044_84));
    s.scale(s.fma(p, f, s.splat(1.0)), floor)
}

/// The place from which functions with an exponential tail are as good as at their limit: e^87 and e^-87 are still normal numbers.
const FAR: f32 = 87.0;

/// `e^-x` by [`exp2_near`], for magnitudes below 173.
#[inline(always)]
fn power_of_negative<S: Simd>(s: S, x: S::V) -> S::V {
    exp2_near(s, s.mul(x, s.splat(-std::f32::consts::LOG2_E)))
}

/// `g = 1 / (1 + e^-x)`, and `1 - g` without cancellation.
#[inline(always)]
fn sigmoid<S: Simd, T: Element>(s: S, x: S::V) -> (S::V, S::V) {
    // The operand that is returned for NaN stands second.
    let x = s.min(s.splat(FAR), s.max(s.splat(-FAR), x));
    let e = if T::IS_HALF { power_of_negative(s, x) } else { exp(s, s.neg(x)) };
    let g = s.reciprocal(s.add(s.splat(1.0), e));
    (g, s.mul(e, g))
}

/// `x sigmoid(k x)`, for k up to 2.
#[inline(always)]
pub fn swish<S: Simd, T: Element>(s: S, x: S::V, k: f32) -> S::V {
    let x = s.max(s.splat(-FAR), x);
    if !T::IS_HALF {
        return s.mul(x, sigmoid::<S, T>(s, s.mul(x, s.splat(k))).0);
    }
    // Beside 1, the power of a greater x is nothing.
    let e = power_of_negative(s, s.mul(s.min(s.splat(FAR), x), s.splat(k)));
    s.mul(x, s.reciprocal_near(s.add(s.splat(1.0), e)))
}

/// Derivative of [`swish`]: `g (1 + k x (1 - g))` with `g = sigmoid(k x)`.
#[inline(always)]
pub fn swish_slope<S: Simd, T: Element>(s: S, x: S::V, k: f32) -> S::V {
    let x = s.mul(x, s.splat(k));
    let (g, rest) = sigmoid::<S, T>(s, x);
    let x = s.min(s.splat(FAR), s.max(s.splat(-FAR), x));
    s.mul(g, s.fma(x, rest, s.splat(1.0)))
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

/// The place from which GELU is zero or the identity; the density of the normal distribution is about 1e-38 there.
const GELU_FAR: f32 = 13.0;

/// `x (1 + tanh u) / 2 = x sigmoid(2 u)` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`.
#[inline(always)]
pub fn gelu_tanh<S: Simd, T: Element>(s: S, x: S::V) -> S::V {
    let near = s.max(s.splat(-GELU_FAR), s.min(s.splat(GELU_FAR), x));
    let inner = s.fma(s.mul(near, near), s.splat(2.0 * SQRT_2_OVER_PI * CUBIC), s.splat(2.0 * SQRT_2_OVER_PI));
    let g = sigmoid::<S, T>(s, s.mul(near, inner)).0;
    s.mul(s.max(s.splat(-GELU_FAR), x), g)
}

/// Derivative of [`gelu_tanh`].
#[inline(always)]
pub fn gelu_tanh_slope<S: Simd, T: Element>(s: S, x: S::V) -> S::V {
    let x = s.max(s.splat(-GELU_FAR), s.min(s.splat(GELU_FAR), x));
    let square = s.mul(x, x);
    let linear = s.splat(2.0 * SQRT_2_OVER_PI);
    let (g, rest) = sigmoid::<S, T>(s, s.mul(x, s.fma(square, s.splat(2.0 * SQRT_2_OVER_PI * CUBIC), linear)));
    let steep = s.fma(square, s.splat(6.0 * SQRT_2_OVER_PI * CUBIC), linear);
    s.mul(g, s.fma(s.mul(x, steep), rest, s.splat(1.0)))
}

/// Distribution function of the normal distribution, `(1 + erf(x / sqrt 2)) / 2`, and its density.
///
/// The smaller tail is `e^(-x^2 / 2) P(1 / (1 + k |x|))`, P a polynomial without constant term that was fitted for the
/// smallest relative error over |x| <= 13.5 (Remez): 3.5e-5 for bf16, 1.6e-7 for f32.
#[inline(always)]
fn normal_distribution<S: Simd, T: Element>(s: S, x: S::V) -> (S::V, S::V) {
    // The operand that is returned for NaN stands second.
    let size = s.min(s.splat(GELU_FAR), s.abs(x));
    let half_square = s.mul(s.mul(size, size), s.splat(0.5));
    let e = if T::IS_HALF { power_of_negative(s, half_square) } else { exp(s, s.neg(half_square)) };
    let t = s.fma(size, s.splat(if T::IS_HALF { 0.38 } else { 0.3 }), s.splat(1.0));
    let t = if T::IS_HALF { s.reciprocal_near(t) } else { s.reciprocal(t) };
    let p = if T::IS_HALF {
        let p = s.fma(s.splat(-0.089_928_28), t, s.splat(0.188_876_3));
        let p = s.fma(p, t, s.splat(0.091_979_88));
        let p = s.fma(p, t, s.splat(0.157_829_42));
        s.fma(p, t, s.splat(0.151_225_13))
    } else {
        let p = s.fma(s.splat(0.035_931_72), t, s.splat(-0.158_275_92));
        let p = s.fma(p, t, s.splat(0.208_206_43));
        let p = s.fma(p, t, s.splat(-0.055_393_7));
        let p = s.fma(p, t, s.splat(0.129_469_13));
        let p = s.fma(p, t, s.splat(0.099_637_52));
        let p = s.fma(p, t, s.splat(0.120_798_36));
        s.fma(p, t, s.splat(0.119_626_4))
    };
    let tail = s.mul(s.mul(p, t), e);
    let below = s.select_lt(x, s.splat(0.0), tail, s.sub(s.splat(1.0), tail));
    // 1 / sqrt(2 pi)
    (below, s.mul(e, s.splat(0.398_942_3)))
}

/// `x Phi(x)`, and its derivative `Phi(x) + x phi(x)`; the latter has a zero, near which it wants the exactness of f32.
#[inline(always)]
pub fn gelu<S: Simd, T: Element>(s: S, x: S::V) -> (S::V, S::V) {
    let (below, density) = normal_distribution::<S, T>(s, x);
    let near = s.max(s.splat(-GELU_FAR), x);
    (s.mul(near, below), s.fma(s.min(s.splat(GELU_FAR), near), density, below))
}

/// `y[i] = f(x[i])`.
#[inline(always)]
pub fn map1<S: Simd, X: Element, Y: Element>(s: S, x: &[X], y: &mut [Y], f: impl Fn(S::V) -> S::V) {
    assert_eq!(x.len(), y.len());
    let whole = x.len() / S::LANES * S::LANES;
    let mut i = 0;
    while i < whole {
        Y::store(s, f(X::load(s, &x[i..i + S::LANES])), &mut y[i..i + S::LANES]);
        i += S::LANES;
    }
    if whole < x.len() {
        Y::store_part(s, f(X::load_part(s, &x[whole..])), &mut y[whole..]);
    }
}

/// `y[i] = f(a[i], b[i])`.
#[inline(always)]
pub fn map2<S: Simd, A: Element, B: Element, Y: Element>(
    s: S,
    a: &[A],
    b: &[B],
    y: &mut [Y],
    f: impl Fn(S::V, S::V) -> S::V,
) {
    assert!(a.len() == y.len() && b.len() == y.len());
    let whole = y.len() / S::LANES * S::LANES;
    let mut i = 0;
    while i < whole {
        let v = f(A::load(s, &a[i..i + S::LANES]), B::load(s, &b[i..i + S::LANES]));
        Y::store(s, v, &mut y[i..i + S::LANES]);
        i += S::LANES;
    }
    if whole < y.len() {
        let v = f(A::load_part(s, &a[whole..]), B::load_part(s, &b[whole..]));
        Y::store_part(s, v, &mut y[whole..]);
    }
}

/// `(y[i], z[i]) = f(a[i], b[i], c[i])`.
#[inline(always)]
pub fn map3to2<S: Simd, T: Element>(
    s: S,
    from: [&[T]; 3],
    y: &mut [T],
    z: &mut [T],
    f: impl Fn(S::V, S::V, S::V) -> (S::V, S::V),
) {
    let n = y.len();
    assert!(from.iter().all(|x| x.len() == n) && z.len() == n);
    let [a, b, c] = from;
    let whole = n / S::LANES * S::LANES;
    let mut i = 0;
    while i < whole {
        let j = i + S::LANES;
        let (v, w) = f(T::load(s, &a[i..j]), T::load(s, &b[i..j]), T::load(s, &c[i..j]));
        T::store(s, v, &mut y[i..j]);
        T::store(s, w, &mut z[i..j]);
        i = j;
    }
    if whole < n {
        let (v, w) = f(T::load_part(s, &a[whole..]), T::load_part(s, &b[whole..]), T::load_part(s, &c[whole..]));
        T::store_part(s, v, &mut y[whole..]);
        T::store_part(s, w, &mut z[whole..]);
    }
}

/// Calls `f(begin, end)` for the whole vectors of `0..n`, and for the rest.
#[inline(always)]
pub fn for_vectors<S: Simd>(_: S, n: usize, mut f: impl FnMut(usize, usize)) {
    let whole = n / S::LANES * S::LANES;
    let mut i = 0;
    while i < whole {
        f(i, i + S::LANES);
        i += S::LANES;
    }
    if whole < n {
        f(whole, n);
    }
}

/// Reads up to a vector of `from`.
#[inline(always)]
pub fn load_up_to<S: Simd, T: Element>(s: S, from: &[T]) -> S::V {
    if from.len() >= S::LANES { T::load(s, from) } else { T::load_part(s, from) }
}

/// Writes up to a vector to `to`.
#[inline(always)]
pub fn store_up_to<S: Simd, T: Element>(s: S, v: S::V, to: &mut [T]) {
    if to.len() >= S::LANES { T::store(s, v, to) } else { T::store_part(s, v, to) }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::simd::dispatch;

    fn exps(x: &[f32], y: &mut [f32]) {
        dispatch!(|s| map1(
            s,
            x,
            y,
            #[inline(always)]
            |v| exp(s, v)
        ));
    }

    fn powers(x: &[f32], y: &mut [f32]) {
        dispatch!(|s| map1(
            s,
            x,
            y,
            #[inline(always)]
            |v| exp2_near(s, v)
        ));
    }

    fn distribution<T: Element>(x: &[f32], y: &mut [f32]) {
        dispatch!(|s| map1(
            s,
            x,
            y,
            #[inline(always)]
            |v| normal_distribution::<_, T>(s, v).0
        ));
    }

    #[test]
    fn exp_is_within_one_ulp() {
        let mut worst = 0.0f64;
        let (mut x, mut y) = (vec![0.0f32; 4096], vec![0.0f32; 4096]);
        let mut bits = 0u32;
        while f32::from_bits(bits) < 88.7 {
            for x in &mut x {
                *x = f32::from_bits(bits).min(88.7);
                bits += 307;
            }
            for sign in [1.0, -1.0] {
                x.iter_mut().for_each(|x| *x = (x.abs() * sign).max(-87.3));
                exps(&x, &mut y);
                for (x, y) in x.iter().zip(&y) {
                    let exact = (*x as f64).exp();
                    let ulp = f32::from_bits((exact as f32).to_bits() + 1) as f64 - exact as f32 as f64;
                    worst = worst.max((*y as f64 - exact).abs() / ulp);
                }
            }
        }
        println!("largest error of exp: {worst:.3} ULP");
        assert!(worst <= 1.0, "{worst} ULP");
    }

    #[test]
    fn exp_at_the_ends() {
        let x = [f32::NEG_INFINITY, -1e30, -88.0, 0.0, 89.0, 1e30, f32::INFINITY, f32::NAN];
        let mut y = [7.0; 8];
        exps(&x, &mut y);
        assert_eq!(y[..7], [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
        assert!(y[7].is_nan());
    }

    #[test]
    fn powers_of_two() {
        let x: Vec<f32> = (-126_000..=126_000).map(|i| i as f32 / 1000.0).collect();
        let mut y = vec![0.0; x.len()];
        powers(&x, &mut y);
        for (x, y) in x.iter().zip(y) {
            let exact = (*x as f64).exp2();
            assert!((y as f64 - exact).abs() <= 3.2e-6 * exact, "{x}: {y} instead of {exact}");
        }
    }

    #[test]
    fn normal_distribution_to_the_end_of_its_tail() {
        let x: Vec<f32> = (-12_500..9000).map(|i| i as f32 / 1000.0).collect();
        let (mut wide, mut narrow) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        distribution::<f32>(&x, &mut wide);
        distribution::<bf16>(&x, &mut narrow);
        for i in 0..x.len() {
            let exact = crate::reference::normal_distribution(x[i] as f64);
            let error = |ours: f32| (ours as f64 - exact).abs() / exact;
            // Beyond 9, the rounding of the square counts.
            let limit = if x[i].abs() <= 9.0 { 4e-6 } else { 8e-6 };
            assert!(error(wide[i]) <= limit, "{}: {} and {exact}", x[i], wide[i]);
            assert!(error(narrow[i]) <= 2e-4, "{}: {} and {exact}", x[i], narrow[i]);
        }
    }
}
