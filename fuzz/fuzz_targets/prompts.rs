#![no_main]
//! Prompts with weights. The parsers are taken as files: the crate that holds them has networks, which fuzzing needs none of.

#[path = "../../crates/pipeline/src/prompt_syntax/a1111.rs"]
mod a1111;
#[path = "../../crates/pipeline/src/prompt_syntax/compel.rs"]
mod compel;
#[path = "../../crates/pipeline/src/prompt_syntax/fragment.rs"]
mod fragment;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &str| {
    for fragments in [a1111::parse(content), compel::parse(content)].into_iter().flatten() {
        assert!(!fragments.is_empty());
        assert!(fragments.iter().all(|fragment| (fragment.weight as f32).is_finite()));
    }
});
