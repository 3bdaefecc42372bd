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

/// Logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(s.splat(1.0), s.add(s.splat(1.0), exp(s, s.neg(x))))
}

/// `x sigmoid(x)`.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::V) -> S::V {
    s.div(x, s.add(s.splat(1.0), exp(s, s.neg(x))))
}

/// Derivative of [`silu`]: `g + x g (1 - g)` with `g = sigmoid(x)`.
#[inline(always)]
pub fn silu_slope<S: Simd>(s: S, x: S::V) -> S::V {
    let g = sigmoid(s, x);
    // g (1 + x (1 - g)); with x bounded, because -inf * 0 is not a number.
    let x = s.max(s.splat(-100.0), s.min(s.splat(100.0), x));
    s.mul(g, s.fma(x, s.sub(s.splat(1.0), g), s.splat(1.0)))
}

/// Hyperbolic tangent, `1 - 2 / (e^2x + 1)`; absolute error about 1e-7.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::V) -> S::V {
    let e = exp(s, s.add(x, x));
    s.sub(s.splat(1.0), s.div(s.splat(2.0), s.add(e, s.splat(1.0))))
}

/// Distribution function of the normal distribution, `(1 + erf(x / sqrt 2)) / 2`, and its density.
///
/// `erfc` by the Chebyshev fit of Numerical Recipes (`erfcc`), whose relative error is below 1.2e-7 everywhere.
#[inline(always)]
pub fn normal_distribution<S: Simd>(s: S, x: S::V) -> (S::V, S::V) {
    let z = s.mul(s.abs(x), s.splat(std::f32::consts::FRAC_1_SQRT_2));
    let square = s.mul(s.mul(x, x), s.splat(-0.5));
    let t = s.div(s.splat(1.0), s.fma(z, s.splat(0.5), s.splat(1.0)));
    let p = s.splat(0.170_872_77);
    let p = s.fma(p, t, s.splat(-0.822_152_23));
    let p = s.fma(p, t, s.splat(1.488_515_9));
    let p = s.fma(p, t, s.splat(-1.135_204));
    let p = s.fma(p, t, s.splat(0.278_868_07));
    let p = s.fma(p, t, s.splat(-0.186_288_06));
    let p = s.fma(p, t, s.splat(0.096_784_18));
    let p = s.fma(p, t, s.splat(0.374_091_96));
    let p = s.fma(p, t, s.splat(1.000_023_7));
    let p = s.fma(p, t, s.splat(-1.265_512_2));
    let e = exp(s, square);
    let half_erfc = s.mul(s.mul(s.splat(0.5), t), s.mul(e, exp(s, p)));
    let below = s.select_lt(x, s.splat(0.0), half_erfc, s.sub(s.splat(1.0), half_erfc));
    // 1 / sqrt(2 pi)
    (below, s.mul(e, s.splat(0.398_942_3)))
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
    use super::*;
    use crate::simd::dispatch;

    fn apply(x: &[f32], y: &mut [f32], which: u32) {
        dispatch!(|s| match which {
            0 => map1(
                s,
                x,
                y,
                #[inline(always)]
                |v| exp(s, v)
            ),
            1 => map1(
                s,
                x,
                y,
                #[inline(always)]
                |v| normal_distribution(s, v).0
            ),
            _ => map1(
                s,
                x,
                y,
                #[inline(always)]
                |v| tanh(s, v)
            ),
        });
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
                apply(&x, &mut y, 0);
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
        apply(&x, &mut y, 0);
        assert_eq!(y[..7], [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
        assert!(y[7].is_nan());
    }

    #[test]
    fn normal_distribution_and_tanh() {
        let x: Vec<f32> = (-9000..9000).map(|i| i as f32 / 1000.0).collect();
        let (mut p, mut t) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        apply(&x, &mut p, 1);
        apply(&x, &mut t, 2);
        for i in 0..x.len() {
            let exact = crate::reference::normal_distribution(x[i] as f64);
            assert!((p[i] as f64 - exact).abs() <= 4e-6 * exact + 1e-38, "{}: {} and {exact}", x[i], p[i]);
            assert!((t[i] as f64 - (x[i] as f64).tanh()).abs() < 2e-7);
        }
    }
}
