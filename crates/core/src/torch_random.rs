//! The random stream of `torch.Generator("cpu")`, for images that start from the same noise as a PyTorch pipeline's.
//!
//! Unlike a [`Stream`](crate::Stream) it has a state: numbers depend on all that was drawn before. Use it only where
//! the peer's numbers are wanted.

use crate::mersenne::MersenneTwister;
use half::{bf16, f16};
use sealed::Float;
use std::f64::consts::PI;

/// Normal numbers are made sixteen at a time, if at least so many are wanted at once.
const BLOCK: usize = 16;

/// PyTorch's generator for CPU tensors: MT19937 with PyTorch's ways of making uniform and normal numbers.
///
/// The state continues from call to call. What a call returns depends on how many numbers it fills, as in PyTorch:
/// `torch.randn(32)` is not `torch.randn(16)` twice where 16 does not divide a size. diffusers' `randn_tensor` with a
/// list of generators draws each image's latent by a generator of its own, with one by a single call for the batch;
/// a latent is `[channels, height, width]`.
///
/// Numbers equal PyTorch 2's of x86 processors with AVX2, all bits of them for `f32`, [`f16`] and [`bf16`]; `f64` and
/// `f32` draws of fewer than 16 numbers use the system's logarithm, sine and cosine in `f64`, which may differ in the
/// last bit.
#[derive(Clone, Debug)]
pub struct TorchCpuGenerator {
    words: MersenneTwister,
    spare: Option<f64>,
}

impl TorchCpuGenerator {
    /// `torch.Generator("cpu").manual_seed(seed)`. As in PyTorch, only the low 32 bits of the seed count.
    pub fn new(seed: u64) -> Self {
        Self { words: MersenneTwister::new(seed as u32), spare: None }
    }

    /// 32 random bits, the generator's own output.
    pub fn next_u32(&mut self) -> u32 {
        self.words.next_u32()
    }

    /// 64 random bits, the high word first.
    pub fn next_u64(&mut self) -> u64 {
        let high = self.next_u32() as u64;
        high << 32 | self.next_u32() as u64
    }

    /// `torch.rand(values.len(), generator=self, dtype=T)`: uniform in [0, 1).
    pub fn fill_uniform<T: TorchFloat>(&mut self, values: &mut [T]) {
        values.iter_mut().for_each(|value| *value = T::uniform(self));
    }

    /// `torch.randn(values.len(), generator=self, dtype=T)`: standard normal.
    pub fn fill_normal<T: TorchFloat>(&mut self, values: &mut [T]) {
        if values.len() < BLOCK {
            return values.iter_mut().for_each(|value| *value = T::round(self.normal()));
        }
        let (blocks, rest) = values.as_chunks_mut::<BLOCK>();
        blocks.iter_mut().for_each(|block| T::normal_block(self, block));
        if !rest.is_empty() {
            // The last sixteen are drawn anew. Full precisions drew uniform numbers for the rest before that.
            if T::DRAWS_REST {
                (0..rest.len()).for_each(|_| _ = T::uniform(self));
            }
            let last = values.last_chunk_mut::<BLOCK>().expect("there are at least sixteen");
            T::normal_block(self, last);
        }
    }

    /// `torch.randperm(n, generator=self)`: a random order of `0..n`. Fisher and Yates' shuffle from the front, with
    /// remainders of whole words, whose slight bias is PyTorch's (`randperm` of PyTorch 2.15 on the CPU).
    ///
    /// # Panics
    ///
    /// If `n` is 2^32 / 20 or more: from there on PyTorch takes words of 64 bits.
    pub fn permutation(&mut self, n: usize) -> Vec<u32> {
        assert!(n < (u32::MAX / 20) as usize, "permutation: at most 2^32 / 20 things");
        let mut order: Vec<u32> = (0..n as u32).collect();
        for i in 0..n.saturating_sub(1) {
            let ahead = self.next_u32() as usize % (n - i);
            order.swap(i, i + ahead);
        }
        order
    }

    /// Box-Muller in pairs, whose second number waits for the next call.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (u, v) = (f64::uniform(self), f64::uniform(self));
        let radius = (-2.0 * (-v).ln_1p()).sqrt();
        let (sin, cos) = (2.0 * PI * u).sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// Eight pairs of uniform numbers made normal, as PyTorch's AVX2 kernel does it.
    fn normal_block_f32(&mut self) -> [f32; BLOCK] {
        let mut block = [0.0f32; BLOCK];
        self.fill_uniform(&mut block);
        for i in 0..BLOCK / 2 {
            let radius = (-2.0 * ln(1.0 - block[i])).sqrt();
            let (sin, cos) = sin_cos((2.0 * PI) as f32 * block[i + BLOCK / 2]);
            // Adding zero takes the sign of a negative zero.
            block[i] = radius * cos + 0.0;
            block[i + BLOCK / 2] = radius * sin + 0.0;
        }
        block
    }
}

mod sealed {
    /// What PyTorch does differently for each floating-point type.
    pub trait Float: Copy {
        /// Whether `randn` draws uniform numbers for what lies behind the last whole block, before it draws the last
        /// block anew.
        const DRAWS_REST: bool;
        fn uniform(generator: &mut super::TorchCpuGenerator) -> Self;
        fn normal_block(generator: &mut super::TorchCpuGenerator, block: &mut [Self; super::BLOCK]);
        fn round(value: f64) -> Self;
    }
}

/// The types of numbers a [`TorchCpuGenerator`] makes: `f32`, `f64`, [`f16`], [`bf16`].
pub trait TorchFloat: Float {}
impl<T: Float> TorchFloat for T {}

impl Float for f32 {
    const DRAWS_REST: bool = true;

    fn uniform(generator: &mut TorchCpuGenerator) -> Self {
        (generator.next_u32() & 0xff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    fn normal_block(generator: &mut TorchCpuGenerator, block: &mut [Self; BLOCK]) {
        *block = generator.normal_block_f32();
    }

    fn round(value: f64) -> Self {
        value as f32
    }
}

impl Float for f64 {
    const DRAWS_REST: bool = true;

    fn uniform(generator: &mut TorchCpuGenerator) -> Self {
        (generator.next_u64() & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    fn normal_block(generator: &mut TorchCpuGenerator, block: &mut [Self; BLOCK]) {
        generator.fill_uniform(block);
        for i in 0..BLOCK / 2 {
            let radius = (-2.0 * (1.0 - block[i]).ln()).sqrt();
            let (sin, cos) = (2.0 * PI * block[i + BLOCK / 2]).sin_cos();
            block[i] = radius * cos + 0.0;
            block[i + BLOCK / 2] = radius * sin + 0.0;
        }
    }

    fn round(value: f64) -> Self {
        value
    }
}

/// Half precisions are `f32` rounded; what rounds to one becomes zero, to stay below it.
macro_rules! half_precision {
    ($($t:ty),*) => {$(
        impl Float for $t {
            const DRAWS_REST: bool = false;

            fn uniform(generator: &mut TorchCpuGenerator) -> Self {
                let value = <$t>::from_f32(f32::uniform(generator));
                if value == <$t>::ONE { <$t>::ZERO } else { value }
            }

            fn normal_block(generator: &mut TorchCpuGenerator, block: &mut [Self; BLOCK]) {
                *block = generator.normal_block_f32().map(<$t>::from_f32);
            }

            fn round(value: f64) -> Self {
                <$t>::from_f32(value as f32)
            }
        }
    )*};
}
half_precision!(f16, bf16);

/// The polynomial with these coefficients, highest power first (Horner).
fn polynomial(x: f32, coefficients: &[f32]) -> f32 {
    coefficients[1..].iter().fold(coefficients[0], |y, &c| y.mul_add(x, c))
}

/// Natural logarithm of a normal positive number: Cephes' `logf`, with products and sums fused where PyTorch's compiled
/// kernel fuses them.
fn ln(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_84e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_4e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    let bits = x.to_bits();
    let mut exponent = (bits >> 23) as f32 - 126.0;
    let mut x = f32::from_bits(bits & 0x007f_ffff | 0x3f00_0000);
    if x < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        x += x - 1.0;
    } else {
        x -= 1.0;
    }
    let square = x * x;
    let y = polynomial(x, &COEFFICIENTS) * x;
    let y = y.mul_add(square, exponent * -2.121_944_4e-4);
    let y = square.mul_add(-0.5, y);
    exponent.mul_add(0.693_359_4, x + y)
}

/// Sine and cosine of a number in [0, 2 pi]: Cephes' `sinf` and `cosf`, fused as [`ln`] is.
fn sin_cos(x: f32) -> (f32, f32) {
    const SIN: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
    const COS: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
    // Pi / 4 in three parts, the first two exact in few bits.
    const PARTS: [f32; 3] = [0.785_156_25, 2.418_756_5e-4, 3.774_895e-8];
    // The even octant next to x.
    let octant = ((x * 1.273_239_5) as u32 + 1) & !1;
    let x = PARTS.iter().fold(x, |x, part| (octant as f32).mul_add(-part, x));
    let square = x * x;
    let cos = polynomial(square, &COS) * square;
    let cos = cos.mul_add(square, square * -0.5) + 1.0;
    let sin = (polynomial(square, &SIN) * square).mul_add(x, x);
    match octant % 8 {
        0 => (sin, cos),
        2 => (cos, -sin),
        4 => (-sin, -cos),
        _ => (-cos, sin),
    }
}
