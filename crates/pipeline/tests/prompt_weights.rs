//! Prompts with weights against compel and AUTOMATIC1111's algorithm; `golden/make_prompt_weights.py` made the files.

use burn::tensor::Device;
use calotype_core::{Purpose, Stream};
use calotype_ops::Precision;
use calotype_pipeline::encoders::text::first;
use calotype_pipeline::encoders::{HiddenStates, TextEncoder, TextSettings, TokenizerChoice};
use calotype_pipeline::prompt_syntax::{a1111, compel};
use calotype_pipeline::{PromptOptions, PromptSyntax, foreign};
use calotype_weights::TensorFile;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn encoder() -> TextEncoder {
    let settings = TextSettings {
        model: golden("prompt_weights").display().to_string(),
        component: first(),
        states: HiddenStates::Last,
        tokenizer: TokenizerChoice::Auto,
        precision: Precision::F32,
    };
    TextEncoder::open(&settings, &Device::default()).unwrap()
}

#[test]
fn hidden_states_are_those_of_the_reference_implementations() {
    let encoder = encoder();
    let text = std::fs::read_to_string(golden("prompt_weights.json")).unwrap();
    let prompts: BTreeMap<String, String> = serde_json::from_str(&text).unwrap();
    let states = TensorFile::open(golden("prompt_weights.safetensors")).unwrap();
    assert_eq!(prompts.len(), 16);
    for (name, prompt) in prompts {
        let (syntax, long_prompts) = match name.split_once('.').unwrap().0 {
            "a1111" => (PromptSyntax::A1111, false),
            "compel" => (PromptSyntax::Compel, false),
            _ => (PromptSyntax::Compel, true),
        };
        let options = PromptOptions { syntax, long_prompts, clip_skip: 0 };
        let (found, cut) = encoder.encode_prompts(&[&prompt], &options).unwrap().remove(0);
        let expected = states.get(&name).unwrap();
        assert_eq!(found.hidden_states.dims().to_vec(), expected.shape(), "{name}");
        let expected = expected.to_f32_vec_finite().unwrap();
        let found: Vec<f32> = found.hidden_states.into_data().iter::<f32>().collect();
        let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 3e-5, "{name}: {off}, {prompt}");
        // The longest of one row has 74 tokens.
        assert!(cut.is_none(), "{name}");
    }
}

#[test]
fn what_is_no_weight_is_told_with_the_prompt() {
    let encoder = encoder();
    for (syntax, prompt, part) in [
        (PromptSyntax::A1111, "a (cat:1.2.3)", "the weight `1.2.3` is no number"),
        (PromptSyntax::Compel, "(a, b).blend(1, 1)", "`.blend` is not supported"),
    ] {
        let options = PromptOptions { syntax, ..PromptOptions::default() };
        let error = encoder.encode_prompts(&[prompt], &options).map(|_| ()).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(part), "{error}");
        assert!(error.to_string().contains(prompt), "{error}");
    }
}

/// Prompts and texts of other programs with letters changed, left out and put in: they end in settings or in words.
#[test]
fn damaged_texts_end_in_settings_or_words() {
    let seeds = [
        "a (((house:1.3)) [on] a \\(hill:0.5), BREAK (((sky))).",
        "a (big (red)-- cat)1.2, \"the \\\"dog\\\"\"1.3 mat++ x.attend(1.5)",
        "x <lora:a:1>\nNegative prompt: y\nSteps: 2, Sampler: Euler a, Size: 512x512, CFG scale: 7, Seed: 1",
        r#"{"1":{"class_type":"KSampler","inputs":{"seed":["2",0],"model":["1",0],"positive":["3",0],"cfg":NaN}},
            "2":{"inputs":{"value":7}},"3":{"class_type":"CLIPTextEncode","inputs":{"text":"a","clip":["1",0]}}}"#,
    ];
    let mut random = Stream::new(6, Purpose::DatasetOrder, 0);
    let mut graphs = 0;
    for round in 0..8000 {
        let mut text: Vec<char> = seeds[round % seeds.len()].chars().collect();
        for _ in 0..=random.below(4) {
            let at = random.below(text.len() as u64) as usize;
            let letter = ['(', ')', '[', ']', ':', '"', '\\', '+', '-', '.', '9', ',', ' ', '猫', '{', '<']
                [random.below(16) as usize];
            match random.below(3) {
                0 => text[at] = letter,
                1 => text.truncate(at + 1),
                _ => text.insert(at, letter),
            }
        }
        let text: String = text.into_iter().collect();
        for fragments in [a1111::parse(&text), compel::parse(&text)].into_iter().flatten() {
            assert!(!fragments.is_empty());
            assert!(fragments.iter().all(|fragment| (fragment.weight as f32).is_finite()), "{text}");
        }
        let _ = foreign::a1111::read(&text);
        graphs += usize::from(foreign::comfy::read(&text).is_ok());
    }
    assert!(graphs > 150, "{graphs}");
}
