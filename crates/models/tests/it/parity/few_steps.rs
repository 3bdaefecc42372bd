//! UNets that are told their guidance scale, and UNets whose deep features are kept between calls (DeepCache).

use super::golden::{Golden, channels_first, filled, input, picture, relative_error, uniform};
use super::unet::{TEXT_CHANNELS, TIMESTEPS, case};
use burn::tensor::{Device, Tensor};
use calotype_models::embeddings::guidance_features;
use calotype_models::state::{WeightPrecision, values_of};
use calotype_models::unet::{InputError, UNet};
use calotype_models::{AddedConditions, DeepFeatures, Init, Pass, UNetConfig};

#[test]
fn networks_that_are_told_their_guidance() {
    const SCALES: [f32; 2] = [1.0, 8.5];
    let (golden, device) = (Golden::open("few_steps"), Device::flex());
    let features = values_of(guidance_features(&SCALES, 256, &device));
    let error = relative_error(&features, &golden.values("told/features"));
    // A frequency's last bit moves the angle of 7,500 radians by 4e-4.
    assert!(error < 1e-3, "features: {error}");
    let config = UNetConfig { guidance_features: Some(256), ..case("sd1") };
    let unet = filled(WeightPrecision::F32, &device, |init| config.init(init).unwrap());
    golden.check_layout("told", &unet);
    let (x, context) = (picture("sample", [2, 4, 8, 8], &device), input("encoder_hidden_states", [2, 5, 24], &device));
    let pass = Pass { guidance: Some(&SCALES), ..Pass::default() };
    let found = channels_first(unet.forward_with(pass, x, &TIMESTEPS, context, None));
    let error = relative_error(&found, &golden.values("told/sample"));
    assert!(error < 1e-4, "relative error {error}");
    assert!(unet.is_told_guidance());
    assert_eq!(unet.check_guidance(Some(&SCALES), 2), Ok(()));
    assert_eq!(unet.check_guidance(None, 2), Err(InputError::Guidance { needed: true }));
    let short = unet.check_guidance(Some(&SCALES[..1]), 2).unwrap_err().to_string();
    assert_eq!(short, "guidance_scale has 1 values, not 2");
    let plain = case("sd1").init(&mut Init::placeholders(&device)).unwrap();
    assert_eq!(plain.check_guidance(Some(&SCALES), 2), Err(InputError::Guidance { needed: false }));
}

/// The calls of the script; one timestep twice.
const CALLS: [f32; 6] = [901.0, 801.0, 801.0, 601.0, 501.0, 401.0];
/// Those that compute the whole network.
const WHOLE: [usize; 2] = [0, 3];

fn call(unet: &UNet, number: usize, config: &UNetConfig, side: [usize; 2], deep: &mut DeepFeatures) -> Tensor<4> {
    let device = Device::flex();
    let x = picture(&format!("sample {number}"), [1, 4, side[0], side[1]], &device);
    let context = input("encoder_hidden_states", [1, 5, 24], &device);
    let added = config.added.as_ref().map(|_| AddedConditions {
        text_embeds: input("text_embeds", [1, TEXT_CHANNELS], &device),
        time_ids: uniform("time_ids").take(6).map(|u| (u as f32).abs() * 1000.0).collect(),
    });
    let pass = Pass { deep: Some(deep), ..Pass::default() };
    unet.forward_with(pass, x, &[CALLS[number]], context, added.as_ref())
}

#[test]
fn deep_features_are_those_of_deepcache() {
    let golden = Golden::open("few_steps");
    let thin = UNetConfig { layers_per_block: 1, ..case("sd2") };
    for (name, config, side, branches) in [
        ("sd1", case("sd1"), [8, 8], &[0, 1, 2, 3, 4, 5, 8, 9, 11][..]),
        ("xl", case("xl"), [8, 8], &[0, 2, 4, 8]),
        ("thin", thin, [8, 8], &[0, 1, 2, 4]),
        ("uneven", case("sd2"), [11, 6], &[0, 3, 7]),
    ] {
        let unet = filled(WeightPrecision::F32, &Device::flex(), |init| config.init(init).unwrap());
        for &branch in branches {
            let mut deep = unet.deep_features(branch).unwrap();
            for number in 0..CALLS.len() {
                if WHOLE.contains(&number) {
                    deep.forget();
                }
                let found = channels_first(call(&unet, number, &config, side, &mut deep));
                if [2, 5].contains(&number) {
                    let expected = golden.values(&format!("cached/{name}/{branch}/{number}"));
                    let error = relative_error(&found, &expected);
                    assert!(error < 2e-5, "{name}, branch {branch}, call {number}: relative error {error}");
                }
            }
        }
        let branches = DeepFeatures::branches(config.block_out_channels.len());
        assert!(unet.deep_features(branches - 1).is_some() && unet.deep_features(branches).is_none());
    }
}

/// A pass that finds no features is a whole one, to the bit, and one that finds its own is, too.
#[test]
fn features_of_the_same_call_change_nothing() {
    let device = Device::flex();
    let config = case("sd1");
    let unet = filled(WeightPrecision::F32, &device, |init| config.init(init).unwrap());
    let (x, context) =
        (picture("sample 0", [1, 4, 8, 8], &device), input("encoder_hidden_states", [1, 5, 24], &device));
    let plain = channels_first(unet.forward(x, &CALLS[..1], context, None));
    for branch in 0..12 {
        let mut deep = unet.deep_features(branch).unwrap();
        for _ in 0..2 {
            assert_eq!(channels_first(call(&unet, 0, &config, [8, 8], &mut deep)), plain, "branch {branch}");
        }
    }
}
