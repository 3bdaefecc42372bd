use crate::images::to_rgb;
use crate::preview::{LatentColours, preview};
use crate::prompts::CutPrompt;
use crate::request::Request;
use burn::tensor::Tensor;
use calotype_data::image::RgbImage;
use calotype_diffusion::samplers::SamplerStep;

/// Follows the drawing of images, and may end it. `()` is an observer that does neither.
pub trait Observer {
    /// A prompt was longer than a text encoder's context, and was cut.
    fn prompt_cut(&mut self, _cut: &CutPrompt) {}

    /// A call of the UNet is done.
    fn step(&mut self, _step: &Step<'_>) {}

    /// An image is done. Images come in the order of the requests.
    fn image(&mut self, _image: &DrawnImage<'_>) {}

    /// Asked before each batch, and after each step and each image. `false` ends the work with
    /// [`PipelineError::Stopped`](crate::PipelineError::Stopped).
    fn go_on(&mut self) -> bool {
        true
    }
}

impl Observer for () {}

/// A call of the UNet for a batch.
#[derive(Debug)]
pub struct Step<'a> {
    /// Number of the batch's first request among all requests.
    pub first: usize,
    /// The requests of the batch.
    pub requests: &'a [Request],
    /// The sampler's report.
    pub progress: &'a SamplerStep<'a>,
    pub(crate) colours: LatentColours,
}

impl Step<'_> {
    /// Roughly what image `row` of the batch looks like so far: `[height, width, 3]` in `0..1`, at the latent's size.
    pub fn preview(&self, row: usize) -> Tensor<3> {
        preview(self.progress.clean.clone().narrow(0, row, 1), self.colours)
    }
}

/// An image that is done.
#[derive(Debug)]
pub struct DrawnImage<'a> {
    /// Number of its request among all requests.
    pub index: usize,
    /// The request that it was drawn for.
    pub request: &'a Request,
    /// `[height, width, 3]` in `0..1`.
    pub pixels: &'a Tensor<3>,
}

impl DrawnImage<'_> {
    /// The image in levels of 8 bits.
    ///
    /// # Errors
    /// [`calotype_data::Error`] if it has no pixels.
    pub fn to_rgb(&self) -> Result<RgbImage, calotype_data::Error> {
        to_rgb(self.pixels)
    }
}
