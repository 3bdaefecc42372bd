//! Which layers are quantised, and what their inputs are divided by.

use super::{Calibration, Quantisation};
use crate::error::PipelineError;
use calotype_checkpoints::{ComponentSource, TensorSpec};
use calotype_kernels::column_maxima;
use calotype_models::unet::stays_wide;
use calotype_weights::{TensorFileError, TensorSource};
use std::collections::BTreeMap;

/// Bounds of factors: beyond, they would do harm in `bf16`.
const FACTORS: [f64; 2] = [1.0 / 65_536.0, 65_536.0];

/// A layer in 8 bits.
#[derive(Clone, Debug, Default)]
pub(super) struct Layer {
    /// What the columns of its weight are multiplied by, and its inputs divided by.
    pub(super) factors: Option<Vec<f32>>,
    /// The norm in front divides.
    pub(super) folded: bool,
}

/// What becomes of each tensor.
#[derive(Debug)]
pub(super) struct Plan {
    /// By the key of the weight.
    pub(super) layers: BTreeMap<String, Layer>,
    /// What weight and bias of norms are divided by, by their keys.
    pub(super) norms: BTreeMap<String, Vec<f32>>,
    /// Modules with matrices that stay as they are.
    pub(super) kept: Vec<String>,
    /// Weights of all layers in 8 bits.
    pub(super) weights: usize,
}

impl Plan {
    pub(super) fn new(source: &ComponentSource, quantisation: &Quantisation) -> Result<Self, PipelineError> {
        let specs = source.specs();
        let module = |spec: &TensorSpec| spec.name.strip_suffix(".weight").map(str::to_owned);
        let matrices: Vec<(String, &TensorSpec)> = specs
            .iter()
            .filter(|spec| spec.shape.len() > 1)
            .filter_map(|spec| module(spec).map(|module| (module, spec)))
            .collect();
        for pattern in &quantisation.keep {
            if !matrices.iter().any(|(module, _)| names(pattern, module)) {
                return Err(PipelineError::setting(format!(
                    "--keep {pattern}: the UNet has no such layer; names are those of `calotype inspect --tensors`, such as \
                     mid_block.attentions.0 or *.conv_shortcut"
                )));
            }
        }
        let mut plan = Self { layers: BTreeMap::new(), norms: BTreeMap::new(), kept: Vec::new(), weights: 0 };
        for (module, spec) in matrices {
            let kept = quantisation.keep.iter().any(|pattern| names(pattern, &module));
            if kept || stays_wide(&spec.name) {
                plan.kept.push(module);
            } else {
                plan.weights += spec.shape.iter().product::<usize>();
                plan.layers.insert(spec.name.clone(), Layer::default());
            }
        }
        match plan.layers.is_empty() {
            true => Err(PipelineError::setting("--keep names all layers: none would be in 8 bits")),
            false => Ok(plan),
        }
    }

    /// Finds factors for all layers that were seen.
    pub(super) fn smooth(
        &mut self,
        source: &ComponentSource,
        calibration: &Calibration,
        alpha: f64,
    ) -> Result<(), TensorFileError> {
        let mut columns = BTreeMap::new();
        for key in self.layers.keys() {
            columns.insert(key.clone(), largest_columns(source, key)?);
        }
        let keys: Vec<String> = self.layers.keys().cloned().collect();
        for key in keys {
            let Some(inputs) = calibration.maxima.get(&key) else { continue };
            let norm = norm_in_front(&key);
            let siblings: Vec<String> = norm.as_ref().map_or_else(|| vec![key.clone()], |norm| norm.layers.clone());
            // One norm can only divide for all layers behind it.
            let folded = norm.filter(|norm| norm.layers.iter().all(|layer| self.layers.contains_key(layer)));
            let mut weights = vec![0f32; inputs.len()];
            let there = siblings.iter().filter(|sibling| folded.is_some() || **sibling == key);
            there.filter_map(|sibling| columns.get(sibling)).for_each(|each| column_maxima(each, &mut weights));
            let factors: Vec<f32> = inputs.iter().zip(&weights).map(|(&x, &w)| factor(x, w, alpha)).collect();
            if let Some(norm) = &folded {
                for end in ["weight", "bias"] {
                    self.norms.insert(format!("{}.{end}", norm.module), factors.clone());
                }
            }
            self.layers.insert(key, Layer { factors: Some(factors), folded: folded.is_some() });
        }
        Ok(())
    }
}

/// SmoothQuant's equation 4, for the largest magnitudes of an input channel and of its weights.
fn factor(input: f32, weight: f32, alpha: f64) -> f32 {
    if input <= 0.0 || weight <= 0.0 {
        return 1.0;
    }
    let factor = f64::from(input).powf(alpha) / f64::from(weight).powf(1.0 - alpha);
    factor.clamp(FACTORS[0], FACTORS[1]) as f32
}

/// Largest magnitudes of the weights of each input channel.
fn largest_columns(source: &ComponentSource, key: &str) -> Result<Vec<f32>, TensorFileError> {
    let tensor = source.tensor(key)?;
    let values = super::tensors::finite(source, &tensor)?;
    source.release(key);
    let (inputs, row) = (tensor.shape[1], tensor.shape[1..].iter().product::<usize>());
    let mut columns = vec![0f32; row];
    column_maxima(&values, &mut columns);
    let taps = (row / inputs.max(1)).max(1);
    Ok(columns.chunks_exact(taps).map(|taps| taps.iter().fold(0.0, |a: f32, &b| a.max(b))).collect())
}

/// A norm and the weights of all layers that it feeds.
struct Norm {
    module: String,
    layers: Vec<String>,
}

/// The norm in front of a layer, where nothing but layers stands behind it.
fn norm_in_front(key: &str) -> Option<Norm> {
    const BLOCKS: [(&str, &[&str]); 3] = [
        ("norm1", &["attn1.to_q", "attn1.to_k", "attn1.to_v"]),
        ("norm2", &["attn2.to_q"]),
        ("norm3", &["ff.net.0.proj"]),
    ];
    let of = |block: &str, norm: &str, layers: &[&str]| Norm {
        module: format!("{block}.{norm}"),
        layers: layers.iter().map(|layer| format!("{block}.{layer}.weight")).collect(),
    };
    let module = key.strip_suffix(".weight")?;
    let block = |layer: &str| module.strip_suffix(layer)?.strip_suffix('.');
    if let Some(block) = block("proj_in") {
        return Some(of(block, "norm", &["proj_in"]));
    }
    BLOCKS
        .iter()
        .find_map(|(norm, layers)| layers.iter().find_map(|layer| block(layer)).map(|block| of(block, norm, layers)))
}

/// Whether a pattern names a module, or what it is in.
fn names(pattern: &str, module: &str) -> bool {
    let mut ends = module.match_indices('.').map(|(at, _)| at).chain([module.len()]);
    ends.any(|end| matches(pattern, &module[..end]))
}

/// Whether a text is like a pattern, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(start) else { return false };
    text.char_indices().map(|(at, _)| at).chain([text.len()]).any(|at| matches(rest, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_modules_and_what_they_are_in() {
        let module = "down_blocks.1.attentions.0.proj_in";
        for pattern in [module, "down_blocks", "down_blocks.1", "*.proj_in", "down_*.attentions", "*", "*.0.*"] {
            assert!(names(pattern, module), "{pattern}");
        }
        for pattern in ["", "down_block", "proj_in", "down_blocks.1.att", "*.proj", "up_*"] {
            assert!(!names(pattern, module), "{pattern}");
        }
    }

    #[test]
    fn norms_feed_layers() {
        let norm = |key: &str| norm_in_front(key).map(|norm| (norm.module, norm.layers.len()));
        assert_eq!(norm("a.0.attn1.to_k.weight"), Some(("a.0.norm1".into(), 3)));
        assert_eq!(norm("a.0.attn2.to_q.weight"), Some(("a.0.norm2".into(), 1)));
        assert_eq!(norm("a.0.ff.net.0.proj.weight"), Some(("a.0.norm3".into(), 1)));
        assert_eq!(norm("a.proj_in.weight"), Some(("a.norm".into(), 1)));
        for key in ["a.attn2.to_k.weight", "a.attn1.to_out.0.weight", "a.ff.net.2.weight", "a.conv1.weight", "a.to_q"] {
            assert_eq!(norm(key), None, "{key}");
        }
    }

    #[test]
    fn factors_are_smoothquants() {
        assert_eq!(factor(16.0, 4.0, 0.5), 2.0);
        assert_eq!(factor(16.0, 4.0, 1.0), 16.0);
        assert_eq!([factor(0.0, 4.0, 0.5), factor(3.0, 0.0, 0.5)], [1.0; 2]);
        assert_eq!(factor(f32::MAX, f32::MIN_POSITIVE, 0.5), 65_536.0);
    }
}
