//! Reading of the `config.json` files that transformers writes. A field that is left out or null has the library's default.

use crate::transformer::HiddenActivation;
use calotype_core::fields::Fields;
use serde_json::{Value, json};

/// The activation of the feed-forward layers.
pub(crate) fn activation(fields: &mut Fields<'_>, default: HiddenActivation) -> HiddenActivation {
    fields.named("hidden_act", default, HiddenActivation::from_transformers, "quick_gelu and the variants of gelu")
}

/// True if `architectures` names a class, among others.
pub(crate) fn has_architecture(fields: &mut Fields<'_>, class: &str) -> bool {
    let classes = fields.raw("architectures").and_then(Value::as_array);
    classes.is_some_and(|classes| classes.iter().any(|name| name == class))
}

/// True if a configuration is of a whole `CLIPModel`, whose towers stand in objects of their own.
pub(crate) fn is_whole_clip(fields: &mut Fields<'_>) -> bool {
    fields.raw("model_type").is_some_and(|kind| kind == "clip")
}

/// Refuses every value of the fields but 0, which is their default.
pub(crate) fn without(fields: &mut Fields<'_>, names: &[&'static str]) {
    names.iter().for_each(|name| fields.fixed(name, &[json!(0)]));
}
