//! Sizes of initial weights against PyTorch's, over 20 seeds: `golden/make_init.py`.

use burn::tensor::Device;
use calotype_models::{Init, UNetConfig, state};
use std::collections::BTreeMap;
use std::path::Path;

const SEEDS: u64 = 20;

#[test]
fn unets_begin_as_those_of_latent_diffusion() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/init.json");
    let golden: BTreeMap<String, BTreeMap<String, f64>> =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let sd1 = UNetConfig {
        block_out_channels: vec![16, 32, 32, 32],
        head_channels: vec![8, 16, 16, 16],
        context_channels: 24,
        norm_groups: 8,
        transformer_norm_groups: 8,
        linear_projection: false,
        ..UNetConfig::default()
    };
    let sd2 = UNetConfig { linear_projection: true, head_channels: vec![8; 4], ..sd1.clone() };
    for (name, config) in [("sd1", sd1), ("sd2", sd2)] {
        // Sum of squares and number of elements of each parameter.
        let mut found: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for seed in 0..SEEDS {
            let unet = config.init(&mut Init::new(seed, &Device::flex())).unwrap();
            for tensor in state::collect(&unet) {
                let (squares, count) = found.entry(tensor.name).or_default();
                *squares += tensor.values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
                *count += tensor.values.len() as f64;
            }
        }
        let golden = &golden[name];
        assert!(found.keys().eq(golden.keys()), "{name}: the parameters differ");
        for (key, (squares, count)) in found {
            let (size, expected) = ((squares / count).sqrt(), golden[&key]);
            if expected == 0.0 || expected == 1.0 {
                assert_eq!(size, expected, "{name}: {key}");
                continue;
            }
            // Five deviations: that of the root mean square of n uniform numbers is 0.447 / sqrt(n) of it, and both sides
            // are drawn.
            let bound = 5.0 * 0.447 * (2.0 / count).sqrt();
            assert!((size / expected - 1.0).abs() < bound, "{name}: {key} has {size}, in PyTorch {expected}");
        }
    }
}
