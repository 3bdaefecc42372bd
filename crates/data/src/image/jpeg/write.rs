//! Baseline JPEG of RGB images, quickly: what libjpeg writes by default (ITU-T T.81, JFIF 1.02), but for rounding.
//!
//! Tables are those of the standard's annex K, scaled by quality as libjpeg scales them; colour has half the resolution
//! (4:2:0), the mean of four pixels. The transform is that of Arai, Agui and Nakajima (1988), in `f32`, whose last
//! factors are part of the quantization. Levels are not rounded between the steps.
//!
//! The loops are written for lanes of eight, and compiled for AVX2 as well as for any processor; both give the same bytes.

/// Order of coefficients in a file: the place in the block, row by row, of each.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// The same order over a block whose rows and columns are swapped, as the transform leaves it.
const SWAPPED: [u8; 64] = {
    let mut order = [0; 64];
    let mut at = 0;
    while at < 64 {
        order[at] = 8 * (ZIGZAG[at] % 8) + ZIGZAG[at] / 8;
        at += 1;
    }
    order
};

/// Steps of luminance at quality 50, row by row (table K.1).
const LUMA: [u8; 64] = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51,
    87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101,
    72, 92, 95, 98, 112, 100, 103, 99,
];

/// Steps of colour at quality 50 (table K.2): those of the corner, all others are 99.
const CHROMA: [[u8; 4]; 4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]];

/// A Huffman table: number of codes of each length from 1 to 16, and the symbols in the order of their codes.
pub(super) struct Huffman {
    /// 0x10 for other coefficients than the first, and the table's number.
    pub(super) class: u8,
    pub(super) lengths: [u8; 16],
    pub(super) symbols: &'static [u8],
}

const SIZES: [u8; 12] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];

/// Tables K.3 to K.6 in the order of files: of luminance, then of colour, each of first coefficients (class 0x00, 0x01)
/// and others (0x10, 0x11).
pub(super) const HUFFMAN: [Huffman; 4] = [
    Huffman { class: 0x00, lengths: [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], symbols: &SIZES },
    Huffman {
        class: 0x10,
        lengths: [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125],
        symbols: &[
            0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71,
            0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72,
            0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x34, 0x35, 0x36, 0x37,
            0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
            0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83,
            0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3,
            0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3,
            0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2,
            0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
        ],
    },
    Huffman { class: 0x01, lengths: [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], symbols: &SIZES },
    Huffman {
        class: 0x11,
        lengths: [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119],
        symbols: &[
            0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22,
            0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1,
            0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x35, 0x36,
            0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
            0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a,
            0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a,
            0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba,
            0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda,
            0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
        ],
    },
];

/// Code and its length in bits, by symbol.
type Codes = [(u16, u8); 256];

const fn codes(table: &Huffman) -> Codes {
    let mut codes = [(0, 0); 256];
    let (mut code, mut length, mut next, mut of_length) = (0u32, 1, 0, 0);
    while next < table.symbols.len() {
        if of_length == table.lengths[length - 1] {
            code <<= 1;
            length += 1;
            of_length = 0;
            continue;
        }
        codes[table.symbols[next] as usize] = (code as u16, length as u8);
        code += 1;
        next += 1;
        of_length += 1;
    }
    codes
}

static CODES: [Codes; 4] = [codes(&HUFFMAN[0]), codes(&HUFFMAN[1]), codes(&HUFFMAN[2]), codes(&HUFFMAN[3])];

/// Eight numbers that are worked on together.
type Lanes = [f32; 8];

/// A block of coefficients or pixels by its rows.
type Block = [Lanes; 8];

/// What a kind of block is coded with.
struct Coding {
    /// Reciprocals of the steps, with the transform's last factors; row `u` and column `v` are swapped, as the transform
    /// leaves them.
    reciprocals: Block,
    first: &'static Codes,
    others: &'static Codes,
}

/// Encodes `data`, `[height, width, 3]`, with `quality` 1 to 100. Sides are 1 to 65,535.
pub(in super::super) fn encode(data: &[u8], width: u16, height: u16, quality: u8) -> Vec<u8> {
    let steps = [steps(true, quality), steps(false, quality)];
    let mut out = Vec::with_capacity(1024 + data.len() / 4);
    write_head(&mut out, width, height, &steps);
    let codings = [coding(&steps[0], 0), coding(&steps[1], 2)];
    let (width, height) = (usize::from(width), usize::from(height));
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("lzcnt") && is_x86_feature_detected!("bmi1") {
        // SAFETY: the processor has the instructions.
        return unsafe { scan_avx2(data, width, height, &codings, out) };
    }
    scan(data, width, height, &codings, out)
}

/// Steps of the quantization, row by row: libjpeg's `jpeg_set_quality`.
fn steps(luma: bool, quality: u8) -> [u8; 64] {
    let quality = u32::from(quality.clamp(1, 100));
    let scale = if quality < 50 { 5000 / quality } else { 200 - 2 * quality };
    std::array::from_fn(|place| {
        let base = match luma {
            true => LUMA[place],
            false => CHROMA.get(place / 8).and_then(|row| row.get(place % 8)).copied().unwrap_or(99),
        };
        ((u32::from(base) * scale + 50) / 100).clamp(1, 255) as u8
    })
}

fn coding(steps: &[u8; 64], table: usize) -> Coding {
    // The transform's outputs are larger than the coefficients by these factors, in both directions, and by 8.
    let factor = |k: usize| match k {
        0 => 1.0,
        k => (k as f64 * std::f64::consts::PI / 16.0).cos() * std::f64::consts::SQRT_2,
    };
    let reciprocal = |u: usize, v: usize| (1.0 / (8.0 * f64::from(steps[8 * v + u]) * factor(u) * factor(v))) as f32;
    let reciprocals = std::array::from_fn(|u| std::array::from_fn(|v| reciprocal(u, v)));
    Coding { reciprocals, first: &CODES[table], others: &CODES[table + 1] }
}

/// All segments in front of the scan's data.
fn write_head(out: &mut Vec<u8>, width: u16, height: u16, steps: &[[u8; 64]; 2]) {
    out.extend([0xff, 0xd8]);
    let mut segment = |marker: u8, parts: &[&[u8]]| {
        let length = 2 + parts.iter().map(|part| part.len()).sum::<usize>() as u16;
        out.extend([0xff, marker]);
        out.extend(length.to_be_bytes());
        parts.iter().for_each(|part| out.extend_from_slice(part));
    };
    let ([w0, w1], [h0, h1]) = (width.to_be_bytes(), height.to_be_bytes());
    // JFIF 1.02, square pixels, no thumbnail.
    segment(0xe0, &[b"JFIF\0", &[1, 2, 0, 0, 1, 0, 1, 0, 0]]);
    for (number, steps) in steps.iter().enumerate() {
        segment(0xdb, &[&[number as u8], &ZIGZAG.map(|place| steps[usize::from(place)])]);
    }
    // Components: number, sampling factors, table of steps.
    segment(0xc0, &[&[8, h0, h1, w0, w1, 3], &[1, 0x22, 0], &[2, 0x11, 1], &[3, 0x11, 1]]);
    for table in &HUFFMAN {
        segment(0xc4, &[&[table.class], &table.lengths, table.symbols]);
    }
    segment(0xda, &[&[3, 1, 0x00, 2, 0x11, 3, 0x11, 0, 63, 0]]);
}

/// # Safety
/// The processor has AVX2, LZCNT and BMI1.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,lzcnt,bmi1")]
unsafe fn scan_avx2(data: &[u8], width: usize, height: usize, codings: &[Coding; 2], out: Vec<u8>) -> Vec<u8> {
    scan(data, width, height, codings, out)
}

/// Appends the scan and the end of the image.
#[inline(always)]
fn scan(data: &[u8], width: usize, height: usize, codings: &[Coding; 2], out: Vec<u8>) -> Vec<u8> {
    let padded = width.next_multiple_of(16);
    let mut bits = Bits { out, waiting: 0, count: 0 };
    // Channels of two rows of pixels, and 16 rows of luminance and 8 of colour.
    let mut rows: [[Vec<f32>; 3]; 2] = std::array::from_fn(|_| std::array::from_fn(|_| vec![0.0; padded]));
    let mut luma = vec![0f32; 16 * padded];
    let mut chroma = [vec![0f32; 4 * padded], vec![0f32; 4 * padded]];
    let mut before = [0i32; 3];
    for top in (0..height).step_by(16) {
        for pair in 0..8 {
            for (half, channels) in rows.iter_mut().enumerate() {
                let y = (top + 2 * pair + half).min(height - 1);
                split(&data[3 * width * y..][..3 * width], channels);
                let at = (2 * pair + half) * padded;
                brightness(channels, &mut luma[at..at + padded]);
            }
            let at = pair * padded / 2;
            let [blue, red] = &mut chroma;
            // Rows of 0.564 (B - Y) and 0.713 (R - Y), written out (ITU-T T.871).
            colour(&rows, [-0.168_735_9, -0.331_264_1, 0.5], &mut blue[at..at + padded / 2]);
            colour(&rows, [0.5, -0.418_687_6, -0.081_312_4], &mut red[at..at + padded / 2]);
        }
        for left in (0..padded).step_by(16) {
            for (y, x) in [(0, left), (0, left + 8), (8, left), (8, left + 8)] {
                block(&luma[y * padded + x..], padded, &codings[0], &mut before[0], &mut bits);
            }
            for (number, plane) in chroma.iter().enumerate() {
                block(&plane[left / 2..], padded / 2, &codings[1], &mut before[1 + number], &mut bits);
            }
        }
    }
    bits.finish()
}

/// The channels of a row of pixels, padded by the last one.
#[inline(always)]
fn split(row: &[u8], channels: &mut [Vec<f32>; 3]) {
    let pixels = row.as_chunks::<3>().0;
    let [red, green, blue] = channels;
    for (((pixel, r), g), b) in pixels.iter().zip(&mut *red).zip(&mut *green).zip(&mut *blue) {
        (*r, *g, *b) = (f32::from(pixel[0]), f32::from(pixel[1]), f32::from(pixel[2]));
    }
    for channel in channels {
        let last = channel[pixels.len() - 1];
        channel[pixels.len()..].fill(last);
    }
}

/// Luminance, less 128.
#[inline(always)]
fn brightness([red, green, blue]: &[Vec<f32>; 3], out: &mut [f32]) {
    for (((out, r), g), b) in out.iter_mut().zip(red).zip(green).zip(blue) {
        *out = 0.299 * r + 0.587 * g + 0.114 * b - 128.0;
    }
}

/// A component of colour, as the mean of four pixels each.
#[inline(always)]
fn colour(rows: &[[Vec<f32>; 3]; 2], weights: [f32; 3], out: &mut [f32]) {
    out.fill(0.0);
    for (channel, weight) in weights.into_iter().enumerate() {
        let (upper, lower) = (rows[0][channel].as_chunks::<2>().0, rows[1][channel].as_chunks::<2>().0);
        for ((out, a), b) in out.iter_mut().zip(upper).zip(lower) {
            *out += 0.25 * weight * ((a[0] + a[1]) + (b[0] + b[1]));
        }
    }
}

/// Transforms, quantizes and writes the block of pixels at the beginning of `plane`, whose rows are `stride` apart.
#[inline(always)]
fn block(plane: &[f32], stride: usize, coding: &Coding, before: &mut i32, bits: &mut Bits) {
    let mut rows: Block = [[0.0; 8]; 8];
    for (y, row) in rows.iter_mut().enumerate() {
        row.copy_from_slice(&plane[y * stride..][..8]);
    }
    transform(&mut rows);
    let mut turned: Block = [[0.0; 8]; 8];
    for (y, row) in rows.iter().enumerate() {
        for (x, value) in row.iter().enumerate() {
            turned[x][y] = *value;
        }
    }
    transform(&mut turned);
    // Adding this much leaves the nearest whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let mut quantized = [0i32; 64];
    let factors = coding.reciprocals.as_flattened();
    for ((out, value), factor) in quantized.iter_mut().zip(turned.as_flattened()).zip(factors) {
        let nearest = (value * factor + ROUND).to_bits() as i32 - ROUND.to_bits() as i32;
        *out = nearest.clamp(-1024, 1023);
    }
    let mut ordered = [0i32; 64];
    for (out, place) in ordered.iter_mut().zip(&SWAPPED) {
        *out = quantized[usize::from(place % 64)];
    }
    let difference = ordered[0] - *before;
    *before = ordered[0];
    bits.value(difference, 0, coding.first);
    let mut last = 0;
    for (place, value) in ordered.iter().enumerate().skip(1) {
        if *value == 0 {
            continue;
        }
        let mut zeros = place - last - 1;
        while zeros > 15 {
            bits.code(0xf0, coding.others);
            zeros -= 16;
        }
        bits.value((*value).max(-1023), (zeros << 4) as u8, coding.others);
        last = place;
    }
    if last < 63 {
        bits.code(0x00, coding.others);
    }
}

#[inline(always)]
fn sum(a: &Lanes, b: &Lanes) -> Lanes {
    let mut out = [0.0; 8];
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a + b;
    }
    out
}

#[inline(always)]
fn difference(a: &Lanes, b: &Lanes) -> Lanes {
    let mut out = [0.0; 8];
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a - b;
    }
    out
}

#[inline(always)]
fn times(a: &Lanes, factor: f32) -> Lanes {
    let mut out = [0.0; 8];
    for (out, a) in out.iter_mut().zip(a) {
        *out = a * factor;
    }
    out
}

/// The transform of each column, in place: coefficients times `8 / sqrt(8)` and the factors of [`coding`].
#[inline(always)]
fn transform(rows: &mut Block) {
    let [r0, r1, r2, r3, r4, r5, r6, r7] = &*rows;
    let (s0, d0, s1, d1) = (sum(r0, r7), difference(r0, r7), sum(r1, r6), difference(r1, r6));
    let (s2, d2, s3, d3) = (sum(r2, r5), difference(r2, r5), sum(r3, r4), difference(r3, r4));
    // Even coefficients.
    let (a, b, c, d) = (sum(&s0, &s3), difference(&s0, &s3), sum(&s1, &s2), difference(&s1, &s2));
    let turned = times(&sum(&d, &b), std::f32::consts::FRAC_1_SQRT_2);
    let (even0, even4) = (sum(&a, &c), difference(&a, &c));
    let (even2, even6) = (sum(&b, &turned), difference(&b, &turned));
    // Odd ones: rotations by multiples of pi / 8.
    let (a, b, c) = (sum(&d3, &d2), sum(&d2, &d1), sum(&d1, &d0));
    let common = times(&difference(&a, &c), 0.382_683_43);
    let (low, high) = (sum(&times(&a, 0.541_196_1), &common), sum(&times(&c, 1.306_563), &common));
    let middle = times(&b, std::f32::consts::FRAC_1_SQRT_2);
    let (plus, minus) = (sum(&d0, &middle), difference(&d0, &middle));
    *rows = [
        even0,
        sum(&plus, &high),
        even2,
        difference(&minus, &low),
        even4,
        sum(&minus, &low),
        even6,
        difference(&plus, &high),
    ];
}

/// Bits on their way into bytes.
struct Bits {
    out: Vec<u8>,
    /// The last `count` bits are those that wait; at most 31 between calls.
    waiting: u64,
    count: u32,
}

impl Bits {
    #[inline(always)]
    fn put(&mut self, bits: u32, count: u32) {
        self.waiting = self.waiting << count | u64::from(bits);
        self.count += count;
        if self.count >= 32 {
            self.count -= 32;
            let word = (self.waiting >> self.count) as u32;
            // True only if no byte is 0xff, which another byte has to follow.
            match word & 0x8080_8080 & !word.wrapping_add(0x0101_0101) {
                0 => self.out.extend_from_slice(&word.to_be_bytes()),
                _ => word.to_be_bytes().into_iter().for_each(|byte| self.byte(byte)),
            }
        }
    }

    fn byte(&mut self, byte: u8) {
        self.out.push(byte);
        if byte == 0xff {
            self.out.push(0);
        }
    }

    #[inline(always)]
    fn code(&mut self, symbol: u8, codes: &Codes) {
        let (code, length) = codes[usize::from(symbol)];
        self.put(code.into(), length.into());
    }

    /// A value behind the code of its size, in whose symbol `zeros` are the upper bits. Negative ones are stored less 1.
    #[inline(always)]
    fn value(&mut self, value: i32, zeros: u8, codes: &Codes) {
        let size = 32 - value.unsigned_abs().leading_zeros();
        let (code, length) = codes[usize::from(zeros | size as u8)];
        let stored = (value + (value >> 31)) as u32 & ((1 << size) - 1);
        self.put(u32::from(code) << size | stored, u32::from(length) + size);
    }

    /// The bytes, the last one filled up by ones, and the marker of the end.
    fn finish(mut self) -> Vec<u8> {
        let fill = (8 - self.count % 8) % 8;
        self.put((1 << fill) - 1, fill);
        while self.count > 0 {
            self.count -= 8;
            self.byte((self.waiting >> self.count) as u8);
        }
        self.out.extend([0xff, 0xd9]);
        self.out
    }
}

#[cfg(test)]
mod tests {
    use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};

    use super::*;
    use crate::image::RgbImage;

    /// Waves of all lengths, and noise: (channel, x, y) to levels.
    fn image(width: usize, height: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as f32 / 255.0
        };
        let level = |x: usize, y: usize, c: usize| {
            ((x * x) as f32 * (0.002 + 0.001 * c as f32) + y as f32 * 0.07).sin() * 90.0 + 128.0
        };
        let mut pixel = |i: usize| {
            let (place, channel) = (i / 3, i % 3);
            (level(place % width, place / width, channel) + 30.0 * noise()).clamp(0.0, 255.0) as u8
        };
        (0..3 * width * height).map(&mut pixel).collect()
    }

    fn peer(data: &[u8], width: u16, height: u16, quality: u8) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out, quality);
        encoder.set_sampling_factor(SamplingFactor::F_2_2);
        encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
        encoder.encode(data, width, height, ColorType::Rgb).unwrap();
        out
    }

    /// Mean squared difference of what a file holds from an image.
    fn error(file: &[u8], data: &[u8]) -> f64 {
        let found = RgbImage::decode("x", file).unwrap();
        assert_eq!(found.data().len(), data.len());
        let squares = found.data().iter().zip(data).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        squares.sum::<f64>() / data.len() as f64
    }

    #[test]
    fn files_are_as_good_and_as_long_as_another_encoders() {
        for (width, height) in [(64, 64), (1, 1), (17, 33), (16, 15), (250, 31), (3, 200)] {
            let data = image(width, height);
            for quality in [1, 30, 75, 95, 100] {
                let ours = encode(&data, width as u16, height as u16, quality);
                let theirs = peer(&data, width as u16, height as u16, quality);
                let (a, b) = (error(&ours, &data), error(&theirs, &data));
                // Rounding is in favour of this one where steps are small.
                assert!(a <= b * 1.03 + 0.3, "{width}x{height} at {quality}: {a} against {b}");
                let (a, b) = (ours.len() as f64, theirs.len() as f64);
                assert!((a - b).abs() <= 0.02 * b + 12.0, "{width}x{height} at {quality}: {a} bytes against {b}");
            }
        }
    }

    #[test]
    fn tables_are_those_of_another_encoder() {
        let tables = |file: &[u8], marker: u8| {
            let mut found = Vec::new();
            let mut at = 2;
            while file[at + 1] != 0xda {
                let length = usize::from(u16::from_be_bytes([file[at + 2], file[at + 3]]));
                if file[at + 1] == marker {
                    found.push(file[at + 4..at + 2 + length].to_vec());
                }
                at += 2 + length;
            }
            found.sort();
            found
        };
        let data = image(16, 16);
        for quality in [1, 10, 49, 50, 51, 75, 95, 100] {
            let (ours, theirs) = (encode(&data, 16, 16, quality), peer(&data, 16, 16, quality));
            for marker in [0xdb, 0xc4] {
                assert_eq!(tables(&ours, marker), tables(&theirs, marker), "{quality}");
            }
        }
    }

    #[test]
    fn bytes_do_not_depend_on_the_processor() {
        let data = image(70, 40);
        let codings = [coding(&steps(true, 95), 0), coding(&steps(false, 95), 2)];
        let plain = scan(&data, 70, 40, &codings, Vec::new());
        let file = encode(&data, 70, 40, 95);
        assert!(file.ends_with(&plain));
        // Extremes: all bits of all coefficients.
        for colours in [[0u8, 255], [255, 0]] {
            let data: Vec<u8> = (0..3 * 64 * 64).map(|i| colours[(i / 3 + i / 192) % 2]).collect();
            assert!(error(&encode(&data, 64, 64, 100), &data) < 2.0);
        }
    }
}
