//! The autoencoder: encoder, decoder, tiles.

use super::golden::{Golden, channels_first, cosine, filled, picture, relative_error};
use burn::tensor::{DType, Device};
use calotype_models::AutoencoderConfig;
use calotype_models::state::WeightPrecision;

const BATCH: usize = 2;

/// Name and configuration of each case of the script.
fn cases() -> [(&'static str, AutoencoderConfig); 2] {
    let sd = AutoencoderConfig {
        block_out_channels: vec![16, 16, 32],
        norm_groups: 8,
        sample_size: 16,
        ..AutoencoderConfig::stable_diffusion()
    };
    let bare = AutoencoderConfig {
        block_out_channels: vec![16, 32],
        layers_per_block: 1,
        norm_groups: 4,
        latent_channels: 6,
        use_quant_conv: false,
        use_post_quant_conv: false,
        mid_attention: false,
        ..sd.clone()
    };
    [("sd", sd), ("bare", bare)]
}

#[test]
fn outputs_and_tiles() {
    let golden = Golden::open("autoencoder");
    let device = Device::flex();
    for (name, config) in cases() {
        let z = config.latent_channels;
        let large = [28 / config.downscale(), 40 / config.downscale()];
        for (precision, dtype) in [
            (WeightPrecision::F32, DType::F32),
            (WeightPrecision::F32, DType::BF16),
            (WeightPrecision::Bf16, DType::BF16),
        ] {
            let model = filled(precision, &device, |init| config.init(init).unwrap());
            golden.check_layout(name, &model);
            let input = |name, shape| picture(name, shape, &device).cast(dtype);
            let tiling = config.tiling();
            let results = [
                ("moments", model.encode(input("picture", [BATCH, 3, 16, 12])).moments),
                ("decoded", model.decode(input("latent", [BATCH, z, 4, 3]))),
                ("tiled moments", model.encode_tiled(input("large picture", [1, 3, 40, 28]), &tiling).moments),
                ("tiled decoded", model.decode_tiled(input("large latent", [1, z, large[0], large[1]]), &tiling)),
            ];
            for (key, found) in results {
                let (found, expected) = (channels_first(found), golden.values(&format!("{name}/{key}")));
                let error = relative_error(&found, &expected);
                let cosine = cosine(&found, &expected);
                let ok = if dtype == DType::F32 { error < 2e-5 } else { cosine > 0.999 };
                assert!(ok, "{name}, {key}, {dtype:?}, weights {precision:?}: error {error}, cosine {cosine}");
            }
        }
    }
}

#[test]
fn gradients() {
    let golden = Golden::open("autoencoder");
    let device = Device::flex().autodiff();
    for (name, config) in cases() {
        let model = filled(WeightPrecision::F32, &device, |init| config.init(init).unwrap());
        let z = config.latent_channels;
        let pixels = picture("picture", [BATCH, 3, 16, 12], &device).require_grad();
        let latent = picture("latent", [BATCH, z, 4, 3], &device).require_grad();
        let (moments, decoded) = (model.encode(pixels.clone()).moments, model.decode(latent.clone()));
        let seed = |name, like: [usize; 4]| picture(name, [like[0], like[3], like[1], like[2]], &device);
        let (for_moments, for_decoded) = (seed("grad_moments", moments.dims()), seed("grad_output", decoded.dims()));
        let gradients = ((moments * for_moments).sum() + (decoded * for_decoded).sum()).backward();
        golden.check_gradients(name, &model, &gradients);
        for (key, leaf) in [("picture", pixels), ("latent", latent)] {
            let found = channels_first(leaf.grad(&gradients).unwrap());
            let error = relative_error(&found, &golden.values(&format!("{name}/grad.{key}")));
            assert!(error < 1e-3, "{name}: gradient of {key}: relative error {error}");
        }
    }
}

/// A latent that overflows must not come out as a picture.
#[test]
fn decodes_that_are_not_finite_are_errors() {
    let device = Device::flex();
    let (_, config) = &cases()[0];
    let model = filled(WeightPrecision::F32, &device, |init| config.init(init).unwrap());
    let latent = picture("latent", [1, 4, 4, 3], &device);
    assert!(model.decode_finite(latent.clone(), None).is_ok());
    let error = model.decode_finite(latent.mul_scalar(f32::INFINITY), Some(&config.tiling())).unwrap_err().to_string();
    assert!(error.contains("not finite, in f32") && error.contains("decode in f32"), "{error}");
}

/// What pipelines of diffusers do with a latent between autoencoder and UNet.
#[test]
fn latents_are_scaled_and_unscaled() {
    let device = Device::flex();
    let latent = picture("latent", [1, 4, 2, 2], &device);
    let plain = AutoencoderConfig { scaling_factor: Some(0.13025), ..AutoencoderConfig::default() };
    let statistics = AutoencoderConfig {
        latents_mean: Some(vec![0.5, -1.0, 2.0, 0.0]),
        latents_std: Some(vec![2.0, 4.0, 0.5, 1.0]),
        ..plain.clone()
    };
    let first = channels_first(latent.clone())[0];
    assert_eq!(channels_first(plain.scaled(latent.clone()))[0], first * 0.13025);
    assert_eq!(channels_first(statistics.scaled(latent.clone()))[0], (first - 0.5) * 0.13025 / 2.0);
    for config in [plain, statistics] {
        let back = channels_first(config.unscaled(config.scaled(latent.clone())));
        assert!(relative_error(&back, &channels_first(latent.clone())) < 1e-6);
    }
}
