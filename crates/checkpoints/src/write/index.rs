//! `model_index.json`: which classes make up a diffusers pipeline.

use crate::families::{Facts, Family};
use crate::kinds::Component;
use serde_json::{Value, json};

/// The index of a pipeline of these components with this scheduler. Components that the family's pipeline lists and that
/// are not there are listed as absent.
pub(super) fn model_index(family: Option<Family>, components: &[Component], scheduler: &Value) -> Value {
    let facts = Facts::of(family);
    let mut index = json!({ "_class_name": facts.pipeline, "scheduler": ["diffusers", scheduler["_class_name"]] });
    let mut list = |name: &str, library: &str, class: &str, there: bool| {
        index[name] = if there { json!([library, class]) } else { json!([null, null]) };
    };
    for component in [Component::Unet, Component::Vae] {
        list(component.name(), component.library().0, component.class(), components.contains(&component));
    }
    for text in facts.text_encoders {
        let there = components.contains(&text.component);
        list(text.component.name(), "transformers", text.component.class(), there);
        list(text.tokenizer, "transformers", "CLIPTokenizer", there);
    }
    for (name, value) in (facts.index)().as_object().into_iter().flatten() {
        index[name.as_str()] = value.clone();
    }
    index
}

/// An index of another folder, of whose parts only those for which `there` says so were taken along.
pub(super) fn without_absent(index: &Value, there: impl Fn(&str) -> bool) -> Value {
    let mut index = index.clone();
    for (name, value) in index.as_object_mut().into_iter().flatten() {
        let listed = value.as_array().is_some_and(|pair| matches!(pair.as_slice(), [_, Value::String(_)]));
        if listed && !there(name) {
            *value = json!([null, null]);
        }
    }
    if !there("safety_checker") && index["requires_safety_checker"] == true {
        index["requires_safety_checker"] = false.into();
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_listed_as_absent() {
        let index = json!({
            "_class_name": "StableDiffusionPipeline", "requires_safety_checker": true,
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "unet": ["diffusers", "UNet2DConditionModel"],
        });
        let shortened = without_absent(&index, |name| name == "unet");
        assert_eq!(shortened["safety_checker"], json!([null, null]));
        assert_eq!(shortened["requires_safety_checker"], false);
        assert_eq!(shortened["unet"], index["unet"]);
    }

    #[test]
    fn refiners_list_their_missing_encoder() {
        let components = [Component::Unet, Component::Vae, Component::TextEncoder2];
        let scheduler = json!({ "_class_name": "EulerDiscreteScheduler" });
        let index = model_index(Some(Family::SdxlRefiner), &components, &scheduler);
        assert_eq!(index["text_encoder"], json!([null, null]));
        assert_eq!(index["tokenizer_2"], json!(["transformers", "CLIPTokenizer"]));
        assert_eq!(index["scheduler"], json!(["diffusers", "EulerDiscreteScheduler"]));
        assert_eq!(index["_class_name"], "StableDiffusionXLImg2ImgPipeline");
    }
}
