//! Settings of adapters that are stored beside their tensors.

use super::change::Difference;
use super::{Component, LoraError};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Key of a file's metadata under which diffusers writes the configuration, with keys like `unet.lora_alpha`.
const METADATA_KEY: &str = "lora_adapter_metadata";

/// Alphas of adapters whose files hold none among their tensors: PEFT's `adapter_config.json`, or the metadata of a
/// file of diffusers. Without either, alpha is the rank.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraConfig {
    /// Settings of components without settings of their own.
    all: Settings,
    components: BTreeMap<Component, Settings>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Settings {
    alpha: Option<f32>,
    /// The rank.
    rank: Option<usize>,
    /// True if it is a DoRA, whose lengths are among the tensors.
    dora: bool,
    /// Alphas of modules whose names end like this.
    pattern: BTreeMap<String, f32>,
    /// True if alpha is divided by the rank's square root (rsLoRA: Kalajdzievski, arXiv 2312.03732).
    by_square_root: bool,
}

impl LoraConfig {
    /// The configuration that PEFT writes beside `adapter_model.safetensors`.
    ///
    /// # Errors
    /// The file cannot be read, is no configuration of a LoRA, or asks for what is not supported.
    pub fn from_adapter_config(path: &Path) -> Result<Self, LoraError> {
        let error = |problem| LoraError::Config { file: path.into(), problem };
        let text = calotype_core::read_text(path).map_err(|source| error(format!("cannot be read: {source}")))?;
        let value: Value = serde_json::from_str(&text).map_err(|source| error(format!("is not JSON: {source}")))?;
        let kind = value.get("peft_type").and_then(Value::as_str).unwrap_or("LORA");
        if !["LORA", "LOHA", "LOKR"].contains(&kind) {
            return Err(error(format!("is for a {kind} adapter, which is not supported; LORA, LOHA and LOKR are")));
        }
        let all = Settings::read(|key| value.get(key)).map_err(error)?;
        Ok(Self { all, components: BTreeMap::new() })
    }

    /// The configuration in a safetensors file's metadata, as diffusers writes it; nothing special if there is none.
    /// `file` is for messages.
    ///
    /// # Errors
    /// The metadata is damaged or asks for what is not supported.
    pub fn from_metadata(file: &Path, metadata: &BTreeMap<String, String>) -> Result<Self, LoraError> {
        let Some(text) = metadata.get(METADATA_KEY) else { return Ok(Self::default()) };
        let error =
            |problem: String| LoraError::Config { file: file.into(), problem: format!("{METADATA_KEY}: {problem}") };
        let value: Value = serde_json::from_str(text).map_err(|source| error(format!("is not JSON: {source}")))?;
        let mut components = BTreeMap::new();
        for component in Component::ALL {
            let get = |key: &str| value.get(format!("{component}.{key}"));
            components.insert(component, Settings::read(get).map_err(error)?);
        }
        Ok(Self { all: Settings::default(), components })
    }

    /// The alpha of a module, if the configuration gives one.
    pub(super) fn alpha(&self, component: Component, module: &str) -> Option<f32> {
        let settings = self.settings(component);
        let named = |(name, _): &(&String, &f32)| {
            module.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        settings.pattern.iter().find(named).map(|(_, &alpha)| alpha).or(settings.alpha)
    }

    /// Factor of a difference. Alpha means nothing for one without a rank, whose matrices are whole; but PEFT divides
    /// alpha by the configured rank for LoKr, whole or not.
    pub(super) fn scale(&self, component: Component, alpha: Option<f32>, difference: &Difference) -> f32 {
        let settings = self.settings(component);
        let configured = settings.rank.filter(|_| difference.is_kronecker());
        let Some(rank) = configured.or(difference.rank()).map(|rank| rank as f32) else { return 1.0 };
        let divisor = if settings.by_square_root { rank.sqrt() } else { rank };
        alpha.unwrap_or(rank) / divisor
    }

    /// True if the adapter is a DoRA.
    pub(super) fn is_dora(&self, component: Component) -> bool {
        self.settings(component).dora
    }

    fn settings(&self, component: Component) -> &Settings {
        self.components.get(&component).unwrap_or(&self.all)
    }
}

impl Settings {
    fn read<'a>(get: impl Fn(&str) -> Option<&'a Value>) -> Result<Self, String> {
        let is_set = |key: &str| get(key).and_then(Value::as_bool).unwrap_or(false);
        for (key, kind) in [("lora_bias", "LoRA of biases"), ("fan_in_fan_out", "transposed weights")] {
            if is_set(key) {
                return Err(format!("`{key}` is set: {kind} are not supported"));
            }
        }
        let number = |key: &str, value: &Value| match value.as_f64().map(|value| value as f32) {
            Some(alpha) if alpha.is_finite() => Ok(alpha),
            _ => Err(format!("`{key}` is {value}, and should be a number")),
        };
        // PEFT's LoHa and LoKr say `alpha`.
        let given = |key: &'static str| get(key).filter(|value| !value.is_null()).map(|value| number(key, value));
        let alpha = given("lora_alpha").or(given("alpha")).transpose()?;
        let rank =
            get("r").and_then(Value::as_u64).and_then(|rank| usize::try_from(rank).ok()).filter(|&rank| rank > 0);
        let mut pattern = BTreeMap::new();
        for (name, value) in get("alpha_pattern").and_then(Value::as_object).into_iter().flatten() {
            // PEFT takes the names as regular expressions; in practice they are modules' names.
            if !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
                return Err(format!(
                    "`alpha_pattern` has the expression `{name}`; only names of modules are supported"
                ));
            }
            pattern.insert(name.clone(), number("alpha_pattern", value)?);
        }
        Ok(Self { alpha, rank, dora: is_set("use_dora"), pattern, by_square_root: is_set("use_rslora") })
    }
}
