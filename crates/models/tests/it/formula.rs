//! Numbers by formula: the weights of tests, which the scripts that make golden values compute the same. The tests of
//! `calotype-evaluate` include this file, too.

/// FNV-1a of the key, mixed with the index.
pub fn hashes(key: &str, count: usize) -> impl Iterator<Item = u32> + use<> {
    let start = key.bytes().fold(0x811C_9DC5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (0..count as u32).map(move |index| {
        let mut x = index.wrapping_mul(0x9E37_79B9).wrapping_add(start);
        x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
        x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
        x ^ (x >> 16)
    })
}

/// Uniform in `-1..1`, multiples of 2^-23.
pub fn formula(key: &str, count: usize) -> Vec<f32> {
    hashes(key, count).map(|hash| (hash >> 8) as f32 * (1.0 / 8_388_608.0) - 1.0).collect()
}

/// A parameter in checkpoint layout: weights that give outputs the variance `gain²`; scales around one; shifts around zero.
pub fn parameter(key: &str, shape: &[usize], gain: f64) -> Vec<f32> {
    let mut values = formula(key, shape.iter().product());
    if shape.len() > 1 {
        let fan_in = shape[1..].iter().product::<usize>() as f64;
        let scale = (gain * (3.0 / fan_in).sqrt()) as f32;
        values.iter_mut().for_each(|v| *v *= scale);
    } else if key.ends_with("weight") || key.ends_with("running_var") {
        values.iter_mut().for_each(|v| *v = 1.0 + *v * 0.3);
    } else {
        values.iter_mut().for_each(|v| *v *= 0.2);
    }
    values
}
