//! Images that a request begins with, and images that are written.

use crate::error::PipelineError;
use burn::tensor::{Device, Tensor, TensorData};
use calotype_core::durable::{create_file, replace_file};
use calotype_data::image::text::{PngText, add_png_text, read_png_text};
use calotype_data::image::{Background, DecodeNotes, DecodeOptions, Filter, PngEffort, RgbImage};
use calotype_weights::TensorFile;
use std::path::{Path, PathBuf};

/// Sides of images to begin with are multiples of this, where they are not given.
const MULTIPLE: usize = 8;

/// An image to begin with, and what of it is drawn anew.
#[derive(Clone, Debug)]
pub struct StartImage {
    /// `[1, height, width, 3]` in `-1..1`.
    pub pixels: Tensor<4>,
    /// `[1, height, width, 1]`, 1 where it is drawn anew; none: everywhere.
    pub mask: Option<Tensor<4>>,
}

impl StartImage {
    /// Reads an image, and a mask that is white where the image is drawn anew; sentences on what was changed of them come
    /// with it. Both are resized (Lanczos) to `[height, width]`; a side that is not given is the image's own, rounded down to
    /// a multiple of 8. What is transparent of a mask is black.
    ///
    /// # Errors
    /// [`PipelineError::Io`] and [`PipelineError::Image`] naming the file; [`PipelineError::Setting`] for an image without 8
    /// pixels in each direction.
    pub fn read(
        image: &Path,
        mask: Option<&Path>,
        options: &DecodeOptions,
        [height, width]: [Option<usize>; 2],
        device: &Device,
    ) -> Result<(Self, Vec<String>), PipelineError> {
        let mut notes = Vec::new();
        let found = read_image(image, options, &mut notes)?;
        let side = |given: Option<usize>, own: usize| given.unwrap_or(own / MULTIPLE * MULTIPLE);
        let (height, width) = (side(height, found.height()), side(width, found.width()));
        if width == 0 || height == 0 {
            let (path, w, h) = (image.display(), found.width(), found.height());
            return Err(PipelineError::setting(format!(
                "{path}: an image of {w}x{h} pixels is too small: sides of at least {MULTIPLE} are needed"
            )));
        }
        let pixels = fitted(found, [height, width])?.to_f32_hwc(-1.0, 1.0);
        let over_black = DecodeOptions { background: Background::BLACK, ..*options };
        let mask = mask.map(|path| fitted(read_image(path, &over_black, &mut notes)?, [height, width])).transpose()?;
        let white = |mask: RgbImage| mask.data().chunks_exact(3).map(|p| f32::from(luma(p) >= 128)).collect::<Vec<_>>();
        let start = Self {
            pixels: Tensor::from_data(TensorData::new(pixels, [1, height, width, 3]), device),
            mask: mask.map(|mask| Tensor::from_data(TensorData::new(white(mask), [1, height, width, 1]), device)),
        };
        Ok((start, notes))
    }

    /// `[height, width]` in pixels.
    pub fn size(&self) -> [usize; 2] {
        let [_, height, width, _] = self.pixels.dims();
        [height, width]
    }
}

fn read_image(path: &Path, options: &DecodeOptions, notes: &mut Vec<String>) -> Result<RgbImage, PipelineError> {
    let bytes = calotype_core::read_input(path).map_err(PipelineError::io("read", path))?;
    let (image, found) =
        RgbImage::decode_noting(&path.display().to_string(), &bytes, options).map_err(|error| error.of_file(path))?;
    let counts = DecodeNotes::default();
    counts.add(&found);
    notes.extend(counts.sentences(options).into_iter().map(|sentence| format!("{}: {sentence}", path.display())));
    Ok(image)
}

fn fitted(image: RgbImage, [height, width]: [usize; 2]) -> Result<RgbImage, PipelineError> {
    let fits = (image.width(), image.height()) == (width, height);
    if fits { Ok(image) } else { Ok(image.resize(width, height, Filter::Lanczos3)?) }
}

/// Brightness as Pillow's `convert("L")` computes it (ITU-R 601-2).
fn luma(pixel: &[u8]) -> u8 {
    let [r, g, b] = [pixel[0], pixel[1], pixel[2]].map(u32::from);
    ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
}

/// Standard normal noise to begin with, one latent `[1, height, width, channels]` for each image: the tensor `latents`,
/// `[images, channels, height, width]`, of a safetensors file.
///
/// # Errors
/// [`PipelineError::Tensor`] naming the file; [`PipelineError::Setting`] for another number of axes.
pub fn read_noise(path: &Path, device: &Device) -> Result<Vec<Tensor<4>>, PipelineError> {
    let file = TensorFile::open(path)?;
    let view = file.get("latents")?;
    let Ok(shape) = <[usize; 4]>::try_from(view.shape()) else {
        return Err(PipelineError::setting(format!(
            "{}: `latents` has shape {:?}; [images, channels, height, width] is needed",
            path.display(),
            view.shape()
        )));
    };
    let all = Tensor::<4>::from_data(TensorData::new(view.to_f32_vec_finite()?, shape), device).permute([0, 2, 3, 1]);
    Ok((0..shape[0]).map(|image| all.clone().narrow(0, image, 1)).collect())
}

/// An image in levels of 8 bits, rounded to the nearest.
///
/// # Shapes
/// `pixels`: `[height, width, 3]` in `0..1`
///
/// # Errors
/// [`calotype_data::Error`] for an image without pixels.
pub fn to_rgb(pixels: &Tensor<3>) -> Result<RgbImage, calotype_data::Error> {
    let [height, width, _] = pixels.dims();
    let values: Vec<f32> = pixels.to_data().iter::<f32>().collect();
    RgbImage::from_f32_hwc(width, height, &values, 0.0, 1.0)
}

/// Writes an image as a PNG with texts inside into a folder, as `00000.png` or the next number behind those that are there,
/// and returns its path. No file is ever replaced, by whatever process it was made.
///
/// # Shapes
/// `pixels`: `[height, width, 3]` in `0..1`
///
/// # Errors
/// As of [`write_png`].
pub fn write_next_png(folder: &Path, pixels: &Tensor<3>, texts: &[PngText]) -> Result<PathBuf, PipelineError> {
    let png = png_with(pixels, texts)?;
    let mut number = next_number(folder).map_err(PipelineError::io("read", folder))?;
    loop {
        let path = folder.join(format!("{number:05}.png"));
        match create_file(&path, &png) {
            Ok(()) => return Ok(path),
            // Another process was faster.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(PipelineError::io("write", &path)(error)),
        }
    }
}

/// One more than the largest number that a file of a folder begins with, whatever its extension.
fn next_number(folder: &Path) -> std::io::Result<u64> {
    let mut next = 0;
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let stem = name.to_str().and_then(|name| name.split('.').next()).unwrap_or_default();
        if let Ok(number) = stem.parse::<u64>() {
            next = next.max(number.saturating_add(1));
        }
    }
    Ok(next)
}

fn png_with(pixels: &Tensor<3>, texts: &[PngText]) -> Result<Vec<u8>, PipelineError> {
    let png = to_rgb(pixels)?.encode_png(PngEffort::Default)?;
    Ok(if texts.is_empty() { png } else { add_png_text(&png, texts)? })
}

/// Writes an image as a PNG with texts inside, atomically, in place of what is there.
///
/// # Shapes
/// `pixels`: `[height, width, 3]` in `0..1`
///
/// # Errors
/// [`PipelineError::Image`] for an image without pixels or texts that the format cannot hold; [`PipelineError::Io`].
pub fn write_png(path: &Path, pixels: &Tensor<3>, texts: &[PngText]) -> Result<(), PipelineError> {
    let png = png_with(pixels, texts)?;
    replace_file(path, |file| file.write_all(&png)).map_err(PipelineError::io("write", path))
}

/// The text inside of a preview, by which [`is_preview`] knows it.
const PREVIEW: (&str, &str) = ("Software", "Calotype preview");

/// Writes a small image that shows how far a drawing is, as [`write_png`] does.
///
/// # Shapes
/// `pixels`: `[height, width, 3]` in `0..1`
///
/// # Errors
/// As of [`write_png`].
pub fn write_preview(path: &Path, pixels: &Tensor<3>) -> Result<(), PipelineError> {
    let text = PngText { keyword: PREVIEW.0.to_owned(), text: PREVIEW.1.to_owned() };
    write_png(path, pixels, &[text])
}

/// Whether a file is one that [`write_preview`] wrote.
pub fn is_preview(path: &Path) -> bool {
    let texts = std::fs::read(path).ok().and_then(|png| read_png_text("", &png).ok());
    texts.is_some_and(|texts| texts.iter().any(|text| (text.keyword.as_str(), text.text.as_str()) == PREVIEW))
}
