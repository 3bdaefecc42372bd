//! What timm's `config.json` says beyond the weights: the preparation of pictures (`pretrained_cfg`) and the names of classes.
//!
//! Sources: timm 1.0's `data/config.py`, `data/transforms_factory.py` (`transforms_imagenet_eval`) and `models/_hub.py`.

use crate::image_processor::{Filter, ImageProcessor, Resize};
use serde_json::Value;

/// Mean and deviation of ImageNet's channels, timm's default.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
/// The share of the resized side that is cut out, where nothing says it.
const CROP: f64 = 0.875;

/// The preparation of pictures for evaluation: resized to `side` by the share that is cut out, and the middle of it; none if it is one
/// that is not followed here (padded pictures).
pub(crate) fn processor(config: &Value, side: usize) -> Option<ImageProcessor> {
    // Before version 0.9.
    let published = if config["pretrained_cfg"].is_object() { &config["pretrained_cfg"] } else { config };
    let channels = |field: &str, default: [f32; 3]| match &published[field] {
        Value::Null => Some(default),
        given => serde_json::from_value(given.clone()).ok(),
    };
    let filter = match published["interpolation"].as_str() {
        None => Filter::Bicubic,
        Some(name) => name.parse().ok()?,
    };
    let crop = match &published["crop_pct"] {
        Value::Null => CROP,
        given => given.as_f64().filter(|share| (0.01..=1.0).contains(share))?,
    };
    // Of a float that is just below a whole number, the floor is taken, as there.
    let resized = (side as f64 / crop).floor() as usize;
    let resize = match published["crop_mode"].as_str() {
        None | Some("center") => Resize::ShortestEdge(resized),
        Some("squash") => Resize::Exact([resized; 2]),
        Some(_) => return None,
    };
    let (mean, std) = (channels("mean", IMAGENET.0)?, channels("std", IMAGENET.1)?);
    Some(ImageProcessor { resize, filter, crop: Some([side; 2]), mean, std })
}

/// Gives a classifier's configuration the names of its classes, if there are as many as it has.
pub(crate) fn take_labels(classifier: &mut Value, config: &Value) {
    let names: Vec<&str> = config["label_names"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if names.is_empty() || classifier["num_labels"].as_u64() != Some(names.len() as u64) {
        return;
    }
    // A description is what people read; the name of ImageNet's classes is a number of WordNet.
    let shown = |name: &str| Value::from(config["label_descriptions"][name].as_str().unwrap_or(name));
    classifier["id2label"] = names.iter().enumerate().map(|(at, name)| (at.to_string(), shown(name))).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What timm 1.0's `create_transform(**resolve_data_config(…))` does for these configurations.
    #[test]
    fn preparations_are_those_of_timm() {
        let vit = json!({ "pretrained_cfg": {
            "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "crop_mode": "center",
        } });
        let found = processor(&vit, 224).unwrap();
        let half = [0.5; 3];
        let expected = ImageProcessor {
            resize: Resize::ShortestEdge(248),
            filter: Filter::Bicubic,
            crop: Some([224; 2]),
            mean: half,
            std: half,
        };
        assert_eq!(found, expected);
        // Written and read again as transformers' file.
        assert_eq!(ImageProcessor::from_transformers(&found.to_transformers()), Ok(expected));
        let plain = processor(&json!({ "architecture": "vit_tiny_patch16_224" }), 224).unwrap();
        assert_eq!((plain.resize, plain.mean), (Resize::ShortestEdge(256), IMAGENET.0));
        let squash =
            json!({ "pretrained_cfg": { "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bilinear" } });
        assert_eq!(processor(&squash, 384).unwrap().resize, Resize::Exact([384; 2]));
        for refused in
            [json!({ "crop_mode": "border" }), json!({ "crop_pct": 0 }), json!({ "interpolation": "random" })]
        {
            assert_eq!(processor(&json!({ "pretrained_cfg": refused }), 224), None);
        }
    }

    #[test]
    fn names_of_classes_are_taken_where_they_are_as_many() {
        let config = json!({ "label_names": ["n01", "n02"], "label_descriptions": { "n02": "a toucan" } });
        let mut two = json!({ "num_labels": 2 });
        take_labels(&mut two, &config);
        assert_eq!(two["id2label"], json!({ "0": "n01", "1": "a toucan" }));
        let mut three = json!({ "num_labels": 3 });
        take_labels(&mut three, &config);
        assert!(three["id2label"].is_null());
    }
}
