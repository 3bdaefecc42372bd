//! Golden values, and the weights and inputs that belong to them: functions of names alone, as in the script.

use burn::module::Module;
use burn::tensor::{DType, Device, Gradients, Tensor, TensorData};
use calotype_models::Init;
use calotype_models::state::{self, StateError, StoredTensor, WeightPrecision, values_of};
use std::borrow::Cow;
use std::path::Path;

/// 64-bit FNV-1a hash.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Numbers in -1..1 that belong to a name: splitmix64 from the name's hash, upper 24 bits.
pub fn uniform(name: &str) -> impl Iterator<Item = f64> {
    let mut state = fnv1a(name);
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 40) as f64 / f64::from(1 << 23) - 1.0
    })
}

/// An input.
pub fn input<const D: usize>(name: &str, shape: [usize; D], device: &Device) -> Tensor<D> {
    let values: Vec<f32> = uniform(name).take(shape.iter().product()).map(|u| u as f32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// An input whose shape is given and made channels-first, as a channels-last tensor.
pub fn picture(name: &str, shape: [usize; 4], device: &Device) -> Tensor<4> {
    input(name, shape, device).permute([0, 2, 3, 1])
}

/// A parameter: deviation of one over the root of the inputs, scales around one, small shifts.
fn weights(name: &str, shape: &[usize]) -> Vec<f32> {
    let scaled: Box<dyn Fn(f64) -> f64> = match shape {
        [_, inputs @ ..] if !inputs.is_empty() => {
            let factor = (3.0 / inputs.iter().product::<usize>() as f64).sqrt();
            Box::new(move |u| u * factor)
        }
        _ if name.ends_with("weight") => Box::new(|u| 1.0 + 0.25 * u),
        _ => Box::new(|u| 0.125 * u),
    };
    uniform(name).take(shape.iter().product()).map(|u| scaled(u) as f32).collect()
}

/// A module with the weights of the script.
pub fn filled<M: Module>(precision: WeightPrecision, device: &Device, init: impl FnOnce(&mut Init<'_>) -> M) -> M {
    let module = init(&mut Init::placeholders(device));
    let lookup = |name: &str, shape: &[usize]| {
        let bytes: Vec<u8> = weights(name, shape).into_iter().flat_map(f32::to_le_bytes).collect();
        let (shape, bytes) = (shape.to_vec(), Cow::Owned(bytes));
        Ok::<_, StateError>(StoredTensor { source_name: "formula", dtype: DType::F32, shape, bytes })
    };
    state::load_with(module, precision, lookup).expect("the formula has every tensor")
}

/// The results of one file.
pub struct Golden(Vec<u8>);

impl Golden {
    pub fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("safetensors");
        Self(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn bytes(&self, key: &str) -> Vec<u8> {
        let file = safetensors::SafeTensors::deserialize(&self.0).expect("a safetensors file");
        file.tensor(key).unwrap_or_else(|e| panic!("{key}: {e}")).data().to_vec()
    }

    pub fn values(&self, key: &str) -> Vec<f32> {
        let bytes = self.bytes(key);
        bytes.as_chunks::<4>().0.iter().map(|&element| f32::from_le_bytes(element)).collect()
    }

    /// Compares all keys and shapes of a module by their hash.
    pub fn check_layout<M: Module>(&self, case: &str, module: &M) {
        let mut lines: Vec<String> =
            state::layout(module).into_iter().map(|(name, shape)| format!("{name} {shape:?}")).collect();
        lines.sort_unstable();
        let expected = self.bytes(&format!("{case}/layout"));
        assert!(fnv1a(&lines.join("\n")).to_le_bytes() == *expected, "{case}: keys or shapes differ: {lines:#?}");
    }

    /// Compares every parameter's gradient: its norm, and its products with two known vectors, in units of the norm.
    ///
    /// Keys' biases have no gradient but rounding (softmax does not see a constant), hence a floor that comes from all
    /// gradients.
    pub fn check_gradients<M: Module>(&self, case: &str, module: &M, gradients: &Gradients) {
        let mut found = crate::common::gradients(module, gradients);
        let shapes: std::collections::HashMap<_, _> = state::layout(module).into_iter().collect();
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let expected = self.values(&format!("{case}/gradients"));
        assert_eq!(found.len() * 3, expected.len(), "{case}: number of parameters");
        let floor = 1e-5 * expected.iter().step_by(3).fold(0f32, |m, &x| m.max(x));
        let mut bad = Vec::new();
        for ((name, gradient), expected) in found.iter().zip(expected.chunks_exact(3)) {
            let gradient = gradient.as_ref().unwrap_or_else(|| panic!("{case}: {name} has no gradient"));
            let gradient = in_checkpoint_order(gradient, &shapes[name]);
            let product =
                |i: usize| gradient.iter().zip(uniform(&format!("{name} {i}"))).map(|(g, u)| g * u).sum::<f64>();
            let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
            let scale = f64::from(expected[0].max(floor));
            let found = [norm, product(0), product(1)];
            let error = found.iter().zip(expected).fold(0f64, |m, (a, &b)| m.max((a - f64::from(b)).abs())) / scale;
            if error.is_nan() || error > 1e-3 {
                bad.push(format!("{name}: norm and products {found:?}, diffusers {expected:?}"));
            }
        }
        assert!(bad.is_empty(), "{case}: {bad:#?}");
    }
}

/// Values of a tensor in memory layout whose checkpoint shape is given, in checkpoint order.
fn in_checkpoint_order(values: &[f32], shape: &[usize]) -> Vec<f64> {
    let values = match *shape {
        [o, i, h, w] => state::to_checkpoint(values, &[o, h, w, i]),
        _ => values.to_vec(),
    };
    values.into_iter().map(f64::from).collect()
}

/// A channels-last tensor's values in channels-first order.
pub fn channels_first(t: Tensor<4>) -> Vec<f32> {
    values_of(t.cast(DType::F32).permute([0, 3, 1, 2]))
}

/// Largest difference over the largest expected value.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len(), "number of values");
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    found.iter().zip(expected).fold(0f32, |m, (a, b)| if (a - b).abs() > m || a.is_nan() { (a - b).abs() } else { m })
        / largest
}

/// Cosine of the angle between two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
