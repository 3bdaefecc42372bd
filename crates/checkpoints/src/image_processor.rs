//! Preprocessing of images for a network: transformers' `preprocessor_config.json`.

use serde_json::{Value, json};

calotype_core::names! {
    /// A filter that images are resized with, by Pillow's names.
    Filter, "filter" {
        /// The nearest pixel.
        Nearest = "nearest",
        /// Lanczos with three lobes.
        Lanczos = "lanczos",
        /// A triangle.
        Bilinear = "bilinear",
        /// Cubic, with `a = -0.5`.
        Bicubic = "bicubic",
        /// The mean of all pixels.
        Box = "box",
        /// Hamming's window.
        Hamming = "hamming",
    }
}

/// The size that an image is resized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// Its own size.
    Keep,
    /// The shorter side to this many pixels, the other in proportion.
    ShortestEdge(usize),
    /// This height and width.
    Exact([usize; 2]),
}

/// Resize, crop and normalisation of images for a CLIP model or a ViT. Values of 0 to 255 are divided by 255 before the
/// mean is subtracted and the rest is divided by the deviation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ImageProcessor {
    /// The size.
    pub resize: Resize,
    /// The filter of the resize.
    pub filter: Filter,
    /// Height and width that are cut out of the middle, if any are.
    pub crop: Option<[usize; 2]>,
    /// Mean of red, green and blue; 0 to 1.
    pub mean: [f32; 3],
    /// Deviation of red, green and blue.
    pub std: [f32; 3],
}

/// A `preprocessor_config.json` that cannot be followed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("field `{field}` {problem}")]
pub struct ImageProcessorError {
    /// The field.
    pub field: &'static str,
    /// The fault.
    pub problem: String,
}

/// Mean of the images that OpenAI's CLIP was trained with.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Their deviation.
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Fields that must not ask for what is not done here, with the values that do not.
const FIXED: [(&str, &[Value]); 3] =
    [("do_rescale", &[Value::Bool(true)]), ("do_normalize", &[Value::Bool(true)]), ("do_pad", &[Value::Bool(false)])];

impl ImageProcessor {
    /// Name of the file.
    pub const FILE: &'static str = "preprocessor_config.json";

    /// OpenAI CLIP's, for images of `size` pixels a side: the shorter side resized bicubically, the middle cut out.
    pub fn clip(size: usize) -> Self {
        Self {
            resize: Resize::ShortestEdge(size),
            filter: Filter::Bicubic,
            crop: Some([size; 2]),
            mean: CLIP_MEAN,
            std: CLIP_STD,
        }
    }

    /// ViT's, for images of `size` pixels a side: resized bilinearly to a square, values from -1 to 1.
    pub fn vit(size: usize) -> Self {
        Self { resize: Resize::Exact([size; 2]), filter: Filter::Bilinear, crop: None, mean: [0.5; 3], std: [0.5; 3] }
    }

    /// As transformers' `CLIPImageProcessor` (with a crop) or `ViTImageProcessor` (without one) writes it.
    pub fn to_transformers(&self) -> Value {
        let decimals = |values: [f32; 3]| values.map(|value| value.to_string().parse().unwrap_or(f64::from(value)));
        let sides = |[height, width]: [usize; 2]| json!({ "height": height, "width": width });
        let mut config = json!({
            "do_normalize": true,
            "do_rescale": true,
            "do_resize": self.resize != Resize::Keep,
            "image_mean": decimals(self.mean),
            "image_std": decimals(self.std),
            "resample": pillow_number(self.filter),
            "rescale_factor": 1.0 / 255.0,
        });
        match self.resize {
            Resize::Keep => {}
            Resize::ShortestEdge(side) => config["size"] = json!({ "shortest_edge": side }),
            Resize::Exact(size) => config["size"] = sides(size),
        }
        // Only CLIP's class crops and knows the shorter side.
        if self.crop.is_some() || matches!(self.resize, Resize::ShortestEdge(_)) {
            config["image_processor_type"] = "CLIPImageProcessor".into();
            config["do_center_crop"] = self.crop.is_some().into();
            config["do_convert_rgb"] = true.into();
            if let Some(crop) = self.crop {
                config["crop_size"] = sides(crop);
            }
        } else {
            config["image_processor_type"] = "ViTImageProcessor".into();
        }
        config
    }

    /// From a `preprocessor_config.json` of a CLIP, ViT or similar image processor; fields that are missing have the
    /// class's defaults.
    ///
    /// # Errors
    /// [`ImageProcessorError`] naming a field that is malformed or asks for what is not done here.
    pub fn from_transformers(config: &Value) -> Result<Self, ImageProcessorError> {
        let class = ["image_processor_type", "feature_extractor_type"].iter().find_map(|name| config[*name].as_str());
        // Old files name CLIP's class by its feature extractor, or not at all; ViT's class never crops.
        let vit = class.is_some_and(|class| class.starts_with("ViT") || class.starts_with("DeiT"));
        let defaults = if vit { Self::vit(224) } else { Self::clip(224) };
        for (field, allowed) in FIXED {
            let value = &config[field];
            if !value.is_null() && !allowed.contains(value) {
                return Err(ImageProcessorError { field, problem: format!("is {value}, which is not supported") });
            }
        }
        let scale = config["rescale_factor"].as_f64().unwrap_or(1.0 / 255.0);
        if (scale * 255.0 - 1.0).abs() > 1e-4 {
            let problem = format!("is {scale}; only 1/255 is supported");
            return Err(ImageProcessorError { field: "rescale_factor", problem });
        }
        let on = |field: &str, default: bool| config[field].as_bool().unwrap_or(default);
        let resize = match config["do_resize"].as_bool() {
            Some(false) => Resize::Keep,
            _ => resize(&config["size"], vit)?.unwrap_or(defaults.resize),
        };
        let crop = match on("do_center_crop", !vit) {
            true => sides("crop_size", &config["crop_size"])?.or(defaults.crop),
            false => None,
        };
        Ok(Self {
            resize,
            filter: filter(&config["resample"])?.unwrap_or(defaults.filter),
            crop,
            mean: channels("image_mean", &config["image_mean"])?.unwrap_or(defaults.mean),
            std: channels("image_std", &config["image_std"])?.unwrap_or(defaults.std),
        })
    }

    /// Height and width of what comes out, where they do not depend on the image.
    pub fn output_size(&self) -> Option<[usize; 2]> {
        match (self.crop, self.resize) {
            (Some(crop), _) => Some(crop),
            (None, Resize::Exact(size)) => Some(size),
            _ => None,
        }
    }
}

/// Most pixels of a side.
const MOST_PIXELS: u64 = 1 << 16;

fn pixels(field: &'static str, value: &Value) -> Result<usize, ImageProcessorError> {
    match value.as_u64() {
        Some(side) if (1..=MOST_PIXELS).contains(&side) => Ok(side as usize),
        _ => Err(ImageProcessorError { field, problem: format!("is {value}, no number of pixels") }),
    }
}

/// A height and a width: an object, or one number for both.
fn sides(field: &'static str, value: &Value) -> Result<Option<[usize; 2]>, ImageProcessorError> {
    match value {
        Value::Null => Ok(None),
        Value::Object(size) if size.contains_key("height") => {
            Ok(Some([pixels(field, &value["height"])?, pixels(field, &value["width"])?]))
        }
        _ => Ok(Some([pixels(field, value)?; 2])),
    }
}

fn resize(value: &Value, square: bool) -> Result<Option<Resize>, ImageProcessorError> {
    match value {
        Value::Object(size) if size.contains_key("shortest_edge") => {
            Ok(Some(Resize::ShortestEdge(pixels("size", &value["shortest_edge"])?)))
        }
        // A single number means the shorter side to CLIP's class, both sides to ViT's.
        Value::Number(_) if !square => Ok(Some(Resize::ShortestEdge(pixels("size", value)?))),
        _ => Ok(sides("size", value)?.map(Resize::Exact)),
    }
}

/// Pillow's numbers of its filters.
const PILLOW: [(u64, Filter); 6] = [
    (0, Filter::Nearest),
    (1, Filter::Lanczos),
    (2, Filter::Bilinear),
    (3, Filter::Bicubic),
    (4, Filter::Box),
    (5, Filter::Hamming),
];

fn pillow_number(filter: Filter) -> u64 {
    PILLOW.iter().find(|(_, known)| *known == filter).map_or(0, |(number, _)| *number)
}

fn filter(value: &Value) -> Result<Option<Filter>, ImageProcessorError> {
    if value.is_null() {
        return Ok(None);
    }
    let found = PILLOW.iter().find(|(number, _)| value.as_u64() == Some(*number));
    let unknown =
        || ImageProcessorError { field: "resample", problem: format!("is {value}, none of Pillow's filters") };
    found.map(|(_, filter)| Some(*filter)).ok_or_else(unknown)
}

fn channels(field: &'static str, value: &Value) -> Result<Option<[f32; 3]>, ImageProcessorError> {
    if value.is_null() {
        return Ok(None);
    }
    let malformed = || ImageProcessorError { field, problem: format!("is {value}, not three numbers") };
    let list: Vec<f64> = value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let [red, green, blue] = list[..] else { return Err(malformed()) };
    let values = [red, green, blue].map(|value| value as f32);
    let divides = field != "image_std" || values.iter().all(|value| *value > 0.0);
    if divides && values.iter().all(|value| value.is_finite()) { Ok(Some(values)) } else { Err(malformed()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_processors_are_read_again() {
        for processor in [
            ImageProcessor::clip(32),
            ImageProcessor::vit(224),
            ImageProcessor { filter: Filter::Lanczos, resize: Resize::Keep, crop: None, ..ImageProcessor::vit(8) },
        ] {
            assert_eq!(ImageProcessor::from_transformers(&processor.to_transformers()), Ok(processor));
        }
    }

    #[test]
    fn old_files_are_read() {
        let old = json!({
            "crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.481_454_66, 0.457_827_5, 0.408_210_73],
            "image_std": [0.268_629_54, 0.261_302_58, 0.275_777_11], "resample": 3, "size": 224,
        });
        assert_eq!(ImageProcessor::from_transformers(&old), Ok(ImageProcessor::clip(224)));
        let vit = json!({ "feature_extractor_type": "ViTFeatureExtractor", "size": 384 });
        assert_eq!(ImageProcessor::from_transformers(&vit), Ok(ImageProcessor::vit(384)));
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        for (config, field) in [
            (json!({ "size": "big" }), "size"),
            (json!({ "crop_size": 0 }), "crop_size"),
            (json!({ "resample": 9 }), "resample"),
            (json!({ "image_mean": [0.5, 0.5] }), "image_mean"),
            (json!({ "image_std": [0.5, 0.0, 0.5] }), "image_std"),
            (json!({ "do_normalize": false }), "do_normalize"),
            (json!({ "rescale_factor": 1.0 }), "rescale_factor"),
        ] {
            assert_eq!(ImageProcessor::from_transformers(&config).unwrap_err().field, field);
        }
    }
}
