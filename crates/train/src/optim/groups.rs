//! Groups of parameters that are trained differently, by rules over their names.

use super::check;
use serde::{Deserialize, Serialize};

calotype_core::names! {
    /// Parameters of a kind that recipes often single out.
    ParameterKind, "kind of parameter" {
        /// Biases: the last part of the name ends in `bias`.
        Biases = "biases",
        /// Scales of normalisations: parameters of fewer than two axes that are no biases.
        Norms = "norms",
        /// Parameters of fewer than two axes: biases, scales of normalisations, class tokens, temperatures. Those that open_clip
        /// trains without weight decay.
        Vectors = "vectors",
        /// Tables of vectors: `embedding`, `embeddings` or `embed` ends the name, or comes before its last part `weight`.
        Embeddings = "embeddings",
    }
}

impl ParameterKind {
    fn includes(self, name: &str, shape: &[usize]) -> bool {
        let (path, last) = name.rsplit_once('.').unwrap_or(("", name));
        let is_bias = last.ends_with("bias");
        let is_table = |part: &str| ["embedding", "embeddings", "embed"].iter().any(|end| part.ends_with(end));
        match self {
            Self::Biases => is_bias,
            Self::Vectors => shape.len() < 2,
            Self::Norms => shape.len() < 2 && !is_bias && !Self::Embeddings.includes(name, shape),
            // Convolutions that make embeddings of patches have four axes.
            Self::Embeddings => shape.len() < 4 && (is_table(last) || (last == "weight" && is_table(path))),
        }
    }
}

/// How some parameters are trained differently; one of `optimizer.groups` of a recipe. Of several rules that match a
/// parameter, the last one that sets a key decides about it.
///
/// ```
/// use calotype_train::optim::GroupRule;
/// let rule: GroupRule = toml::from_str("kinds = ['biases', 'norms']\nweight_decay = 0.0").unwrap();
/// assert!(rule.matches("mid_block.resnets.0.norm1.weight", &[320]));
/// assert!(!rule.matches("conv_in.weight", &[320, 3, 3, 4]));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GroupRule {
    /// Checkpoint names of the parameters that the rule applies to; `*` stands for any characters, dots included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Kinds of parameters that the rule applies to as well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<ParameterKind>,
    /// Whether the parameters are frozen: they have no gradient, no moments and no average.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen: Option<bool>,
    /// Weight decay instead of the optimizer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f32>,
    /// Factor of the learning rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate_scale: Option<f64>,
    /// The least and the largest value, which each step is followed by: a parameter that a step moves beyond is put back, in front of
    /// averages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clamp: Option<[f64; 2]>,
}

impl GroupRule {
    /// A rule that freezes parameters by name.
    pub fn frozen(names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let names = names.into_iter().map(Into::into).collect();
        Self { names, frozen: Some(true), ..Self::default() }
    }

    /// A rule that takes weight decay from kinds of parameters.
    pub fn no_decay(kinds: impl Into<Vec<ParameterKind>>) -> Self {
        Self { kinds: kinds.into(), weight_decay: Some(0.0), ..Self::default() }
    }

    /// Whether the rule applies to the parameter of a checkpoint name and shape.
    pub fn matches(&self, name: &str, shape: &[usize]) -> bool {
        self.names.iter().any(|pattern| glob(pattern, name)) || self.kinds.iter().any(|kind| kind.includes(name, shape))
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// A message that names the key inside the rule.
    pub fn validate(&self) -> Result<(), String> {
        check(!self.names.is_empty() || !self.kinds.is_empty(), || {
            "names or kinds must say which parameters it is about; names = [\"*\"] are all".to_owned()
        })?;
        check(self.weight_decay.is_none_or(|decay| decay >= 0.0 && decay.is_finite()), || {
            "weight_decay must be 0 or more".to_owned()
        })?;
        check(self.learning_rate_scale.is_none_or(|scale| scale >= 0.0 && scale.is_finite()), || {
            "learning_rate_scale must be 0 or more; to leave parameters alone, set frozen = true".to_owned()
        })?;
        check(self.clamp.is_none_or(|[least, most]| least <= most), || {
            "clamp must be two numbers, the smaller one first".to_owned()
        })
    }
}

/// Whether a pattern with `*` for any characters matches a whole name.
fn glob(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let Some(end) = parts.pop() else { return true };
    for part in parts {
        let Some(at) = name.find(part) else { return false };
        name = &name[at + part.len()..];
    }
    name.ends_with(end)
}

/// The settings of a parameter after all rules were applied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Whether it is frozen.
    pub frozen: bool,
    /// Weight decay instead of the optimizer's.
    pub weight_decay: Option<f32>,
    /// Factor of the learning rate.
    pub learning_rate_scale: f64,
    /// The least and the largest value.
    pub clamp: Option<[f32; 2]>,
}

impl Default for Group {
    fn default() -> Self {
        Self { frozen: false, weight_decay: None, learning_rate_scale: 1.0, clamp: None }
    }
}

impl Group {
    /// The settings of the parameter of a name and shape.
    pub fn of(name: &str, shape: &[usize], rules: &[GroupRule]) -> Self {
        rules.iter().filter(|rule| rule.matches(name, shape)).fold(Self::default(), |group, rule| Self {
            frozen: rule.frozen.unwrap_or(group.frozen),
            weight_decay: rule.weight_decay.or(group.weight_decay),
            learning_rate_scale: rule.learning_rate_scale.unwrap_or(group.learning_rate_scale),
            clamp: rule.clamp.map(|bounds| bounds.map(|bound| bound as f32)).or(group.clamp),
        })
    }
}

/// A rule about parameters that the model does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule} matches no parameter of the model; its parameters are called {examples}, for example")]
pub struct GroupError {
    /// The rule.
    pub rule: String,
    /// Some names.
    pub examples: String,
}

impl GroupError {
    pub(super) fn new(rule: &GroupRule, names: &[&str]) -> Self {
        let kinds = rule.kinds.iter().map(|kind| kind.name().to_owned());
        let about: Vec<String> = rule.names.iter().cloned().chain(kinds).map(|about| format!("`{about}`")).collect();
        // From all parts of the model.
        let step = (names.len() / 4).max(1);
        let examples: Vec<_> = names.iter().step_by(step).take(4).map(|name| format!("`{name}`")).collect();
        Self {
            rule: format!("the group of parameters {} (optimizer.groups)", about.join(", ")),
            examples: examples.join(", "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names() {
        for (pattern, name, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.b.c", false),
            ("a.*", "a.b.c", true),
            ("*.bias", "a.b.bias", true),
            ("*.bias", "bias", false),
            ("*", "", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abcd", false),
            ("a*a", "a", false),
            ("**", "x", true),
            ("down*attn*to_k.weight", "down.0.attn2.to_k.weight", true),
        ] {
            assert_eq!(glob(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn kinds_are_told_by_name_and_axes() {
        use ParameterKind::{Biases, Embeddings, Norms, Vectors};
        let kinds = |name: &str, shape: &[usize]| -> Vec<_> {
            ParameterKind::ALL.iter().copied().filter(|kind| kind.includes(name, shape)).collect()
        };
        assert_eq!(kinds("mid_block.resnets.0.conv1.bias", &[4]), [Biases, Vectors]);
        assert_eq!(kinds("encoder.norm1.weight", &[4]), [Norms, Vectors]);
        assert_eq!(kinds("logit_scale", &[1]), [Norms, Vectors]);
        assert_eq!(kinds("text_model.embeddings.token_embedding.weight", &[9, 4]), [Embeddings]);
        assert_eq!(kinds("vision_model.embeddings.class_embedding", &[4]), [Vectors, Embeddings]);
        assert_eq!(kinds("vision_model.embeddings.patch_embedding.weight", &[4, 2, 2, 3]), []);
        assert_eq!(kinds("time_embedding.linear_1.weight", &[4, 4]), []);
    }

    #[test]
    fn the_last_rule_that_says_something_decides() {
        let rules = [
            GroupRule::frozen(["*"]),
            GroupRule { frozen: Some(false), ..GroupRule::frozen(["*attn2*"]) },
            GroupRule { learning_rate_scale: Some(0.5), ..GroupRule::no_decay([ParameterKind::Biases]) },
        ];
        let group = |name, shape: &[usize]| Group::of(name, shape, &rules);
        assert!(group("conv_in.weight", &[1, 1, 1, 1]).frozen);
        assert_eq!(group("mid.attn2.to_k.weight", &[1, 1]), Group::default());
        let biases = Group { weight_decay: Some(0.0), learning_rate_scale: 0.5, ..Group::default() };
        assert_eq!(group("mid.attn2.to_out.0.bias", &[1]), biases);
    }

    #[test]
    fn rules_about_nothing_are_refused() {
        assert!(GroupRule::default().validate().unwrap_err().contains("names or kinds"));
        let rule = GroupRule { learning_rate_scale: Some(-1.0), ..GroupRule::frozen(["*"]) };
        assert!(rule.validate().unwrap_err().contains("learning_rate_scale"));
        for clamp in [[1.0, 0.0], [f64::NAN, 1.0]] {
            let rule = GroupRule { clamp: Some(clamp), ..GroupRule::no_decay([ParameterKind::Norms]) };
            assert!(rule.validate().unwrap_err().contains("clamp"));
        }
        let error = GroupError::new(&GroupRule::frozen(["text.*"]), &["a.weight", "b.weight"]).to_string();
        assert!(error.contains("`text.*`") && error.contains("`a.weight`, `b.weight`"), "{error}");
        assert!(toml::from_str::<GroupRule>("kinds = ['bias']").unwrap_err().to_string().contains("biases"));
    }
}
