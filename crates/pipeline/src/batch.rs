//! The latents of one batch.

use crate::error::PipelineError;
use crate::images::StartImage;
use crate::noise::{ImageNoise, ImageSeed};
use crate::observer::{Observer, Step};
use crate::pipeline::{Batch, Pipeline};
use crate::prompts::{EncodedPrompt, EncodedPrompts};
use crate::request::{Request, Settings, Timings, timed};
use burn::tensor::{DType, Int, Tensor};
use calotype_diffusion::caching::{CachedRun, Caching};
use calotype_diffusion::guidance::{Conditions, GuidedUNet};
use calotype_diffusion::samplers::{Inpainting, Run, Sampler, SamplerError, SamplerStep};
use calotype_models::{DeepFeatures, LatentDistribution, UNet};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Pixels of the longest side that is drawn: more cannot be counted everywhere.
const LONGEST_SIDE: usize = 1 << 17;

/// The properties that all requests of a batch share.
#[derive(Clone, Copy, PartialEq)]
struct Shape {
    /// Tokens of the prompt.
    tokens: usize,
    /// Height and width in pixels.
    size: [usize; 2],
    /// For an image to begin with: the share of it that is drawn anew, and whether there is a mask.
    start: Option<(f64, bool)>,
    /// True if the noise is given.
    noise: bool,
}

/// The start of sampling, and its end.
pub(crate) struct Beginning {
    pub x: Tensor<4>,
    /// The first call of the UNet.
    pub first: usize,
    /// The call to end before; none: all are made.
    pub end: Option<usize>,
    /// Channels behind the latent's that the UNet takes besides it.
    pub extra: Option<Tensor<4>>,
    pub inpainting: Option<Inpainting>,
}

/// Latents that were drawn, and the source of the numbers that come next.
pub(crate) struct Drawn {
    pub latents: Tensor<4>,
    pub noise: ImageNoise,
}

impl Pipeline {
    /// Height and width of a request's image in pixels.
    ///
    /// # Errors
    /// [`PipelineError::Setting`] for sides that the autoencoder cannot make.
    pub fn image_size(&self, request: &Request, settings: &Settings) -> Result<[usize; 2], PipelineError> {
        let by = self.autoencoder.config().downscale();
        let usual = self.defaults.latent_size.map(|side| side * by);
        let size = match &request.start {
            Some(start) => start.size(),
            None => [settings.height.unwrap_or(usual[0]), settings.width.unwrap_or(usual[1])],
        };
        // The UNet halves odd sides by rounding up; only the autoencoder needs whole latents.
        let best = by * self.unet.config().size_multiple();
        for (name, side) in ["height", "width"].into_iter().zip(size) {
            if side > LONGEST_SIDE {
                return Err(PipelineError::setting(format!(
                    "a {name} of {side} pixels: sides go to {LONGEST_SIDE} pixels"
                )));
            }
            if side == 0 || side % by != 0 {
                return Err(PipelineError::setting(format!(
                    "a {name} of {side} pixels: sides must be multiples of {by}, and are best multiples of {best}"
                )));
            }
        }
        Ok(size)
    }

    /// Consecutive requests that can share a batch of at most [`Settings::batch`]: their images have one size, their prompts as
    /// many tokens, and all or none of them begin with an image (of one strength, all or none with a mask) and with given
    /// noise. Prompts, seeds and guidance may differ.
    ///
    /// # Errors
    /// [`PipelineError::Setting`] for a request that the pipeline cannot draw.
    pub fn batches(
        &self,
        requests: &[Request],
        prompts: &EncodedPrompts,
        settings: &Settings,
    ) -> Result<Vec<Range<usize>>, PipelineError> {
        let mut batches: Vec<Range<usize>> = Vec::new();
        let mut before: Option<Shape> = None;
        for (index, request) in requests.iter().enumerate() {
            let shape = self.shape(request, prompts, settings)?;
            match batches.last_mut() {
                Some(batch) if before == Some(shape) && batch.len() < settings.batch.max(1) => batch.end = index + 1,
                _ => batches.push(index..index + 1),
            }
            before = Some(shape);
        }
        Ok(batches)
    }

    fn shape(&self, request: &Request, prompts: &EncodedPrompts, settings: &Settings) -> Result<Shape, PipelineError> {
        self.check(request)?;
        if self.unet.config().added.is_none() && (settings.original_size.is_some() || settings.crop != [0, 0]) {
            return Err(PipelineError::setting(
                "--original-size and --crop have no effect: this UNet takes no sizes, as those of Stable Diffusion XL do",
            ));
        }
        let size = self.image_size(request, settings)?;
        let [height, width, channels] = self.latent_size(size);
        if let Some(noise) = &request.noise
            && noise.dims() != [1, height, width, channels]
        {
            let [_, h, w, c] = noise.dims();
            return Err(PipelineError::setting(format!(
                "the given latents have {c} channels, {h} rows and {w} columns; {channels} channels, {height} rows and {width} \
                 columns are needed"
            )));
        }
        Ok(Shape {
            tokens: prompts.of(request)?[0].tokens(),
            size,
            start: request.start.as_ref().map(|start| (request.strength, start.mask.is_some())),
            noise: request.noise.is_some(),
        })
    }

    /// Checks that the loaded networks can do what a request asks for: the UNet has the input channels for it, and a start
    /// image finds an encoder.
    pub(crate) fn check(&self, request: &Request) -> Result<(), PipelineError> {
        if request.start.is_some() && !self.start_images {
            return Err(PipelineError::setting(format!(
                "{}: the pipeline was loaded without the autoencoder's encoder, which a request with a start image needs: load \
                 it with `start_images`",
                self.name.display()
            )));
        }
        let (channels, latent) = (self.unet.config().in_channels, self.autoencoder.config().latent_channels);
        let masked = request.start.as_ref().is_some_and(|start| start.mask.is_some());
        let fault = if channels == latent {
            None
        } else if channels == 2 * latent + 1 {
            (!masked).then_some("is made for inpainting: give an image with --image and a mask with --mask")
        } else {
            Some("takes another input than noise and a mask, which this pipeline does not make")
        };
        match fault {
            None => Ok(()),
            Some(fault) => Err(PipelineError::setting(format!(
                "{}: the UNet has {channels} input channels; it {fault}",
                self.name.display()
            ))),
        }
    }

    /// Checks that the UNet has the skip connection below which features are to be kept.
    ///
    /// # Errors
    /// [`PipelineError::Setting`] for one that it does not have, and for an interval of 0.
    pub fn check_caching(&self, settings: &Settings) -> Result<(), PipelineError> {
        let Some(Caching { interval, branch }) = settings.caching else { return Ok(()) };
        let branches = DeepFeatures::branches(self.unet.config().block_out_channels.len());
        let name = self.name.display();
        if interval == 0 {
            return Err(PipelineError::setting("--cache-interval 0: it counts steps, from 1, which keeps nothing"));
        }
        if branch >= branches {
            let last = branches - 1;
            return Err(PipelineError::setting(format!(
                "--cache-branch {branch}: {name}: the UNet has the skip connections 0 to {last}; 0 leaves out most"
            )));
        }
        Ok(())
    }

    /// `[height, width, channels]` of a latent.
    fn latent_size(&self, [height, width]: [usize; 2]) -> [usize; 3] {
        let config = self.autoencoder.config();
        let by = config.downscale();
        [height / by, width / by, config.latent_channels]
    }

    /// The latents of requests that can share a batch (see [`Pipeline::batches`]): `[images, height, width, channels]`. A
    /// refiner has no part in them.
    ///
    /// # Errors
    /// [`PipelineError::Setting`] for requests that cannot share a batch or not be drawn, and for prompts that were not
    /// encoded; [`PipelineError::Sampler`]; [`PipelineError::Stopped`] when the observer asks for it.
    pub fn sample(
        &self,
        requests: &[Request],
        prompts: &EncodedPrompts,
        settings: &Settings,
        observer: &mut dyn Observer,
    ) -> Result<Tensor<4>, PipelineError> {
        let together = Settings { batch: requests.len(), ..settings.clone() };
        if self.batches(requests, prompts, &together)?.len() != 1 {
            return Err(PipelineError::setting(
                "these requests cannot share a batch: they must have one size, as many tokens, and all or none an image to \
                 begin with, of one strength, a mask, and given noise",
            ));
        }
        let batch = Batch { first: 0, requests };
        let drawn = self.sample_batch(&batch, prompts, settings, None, (&mut Timings::default(), observer))?;
        drawn.map(|drawn| drawn.latents).ok_or(PipelineError::Stopped { done: 0, all: requests.len() })
    }

    /// The latents of a batch, up to where another network takes over after `handover` of the noise's way; none if the observer
    /// ended the work.
    pub(crate) fn sample_batch(
        &self,
        batch: &Batch<'_>,
        prompts: &EncodedPrompts,
        settings: &Settings,
        handover: Option<f64>,
        (timings, observer): (&mut Timings, &mut dyn Observer),
    ) -> Result<Option<Drawn>, PipelineError> {
        let requests = batch.requests;
        let sampler = self.sampler(settings)?;
        let size = self.latent_size(self.image_size(&requests[0], settings)?);
        let seeds: Vec<_> = requests.iter().map(|r| ImageSeed { seed: r.seed, number: r.number }).collect();
        let drawing =
            self.drawing(requests, &sampler, size, ImageNoise::new(settings.noise, &seeds, self.dtype, &self.device));
        let mut beginning = timed(&mut timings.encode, || drawing.begin())?;
        beginning.end = handover.map(|share| sampler.handed_over_at(share, beginning.first)).transpose()?;
        let latents = self.draw(&drawing, beginning, batch, prompts, (settings, timings, observer))?;
        Ok(latents.map(|latents| Drawn { latents, noise: drawing.noise }))
    }

    /// A batch on its way; `size` is `[height, width, channels]` of a latent.
    pub(crate) fn drawing<'a>(
        &'a self,
        requests: &'a [Request],
        sampler: &'a Sampler,
        size: [usize; 3],
        noise: ImageNoise,
    ) -> Drawing<'a> {
        Drawing { pipeline: self, requests, sampler, size, noise }
    }

    /// The latents at the end of the way; none if the observer ended the work.
    pub(crate) fn draw(
        &self,
        drawing: &Drawing<'_>,
        beginning: Beginning,
        batch: &Batch<'_>,
        prompts: &EncodedPrompts,
        (settings, timings, observer): (&Settings, &mut Timings, &mut dyn Observer),
    ) -> Result<Option<Tensor<4>>, PipelineError> {
        let unet = self.unet.get()?;
        let requests = batch.requests;
        let by = self.autoencoder.config().downscale();
        let size = [drawing.size[0] * by, drawing.size[1] * by];
        let mut denoiser = self.denoiser(&unet, requests, prompts, (settings, size), beginning.extra.clone())?;
        self.check_caching(settings)?;
        denoiser.cached =
            settings.caching.and_then(|caching| CachedRun::new(caching, &unet, drawing.sampler.timesteps()));
        let first = batch.range().start;
        let hear = &mut |progress: SamplerStep<'_>| {
            observer.step(&Step { first, requests, progress: &progress, colours: self.defaults.latent_colours });
            if observer.go_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        match timed(&mut timings.sample, || drawing.run(&denoiser, beginning, hear)) {
            Ok(latents) => Ok(Some(latents)),
            Err(SamplerError::Stopped { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The UNet with prompts, guidance and sizes of requests; `size` is that of their images.
    fn denoiser<'a>(
        &self,
        unet: &'a UNet,
        requests: &[Request],
        prompts: &EncodedPrompts,
        (settings, size): (&Settings, [usize; 2]),
        extra: Option<Tensor<4>>,
    ) -> Result<GuidedUNet<'a>, PipelineError> {
        let of = requests.iter().map(|request| prompts.of(request)).collect::<Result<Vec<_>, _>>()?;
        let conditions = |which: usize| {
            let all: Vec<EncodedPrompt> = of.iter().map(|pair| pair[which].clone()).collect();
            let added = self.unet.config().added.as_ref().and_then(|added| {
                let scored = added.numbers(all.first()?.pooled.as_ref()?.dims()[1]) == SCORED_NUMBERS;
                EncodedPrompt::added(&all, &size_numbers(settings, size, scored.then_some(which)))
            });
            Conditions { context: EncodedPrompt::batch(&all), added }
        };
        let (cond, uncond) = (conditions(0), conditions(1));
        self.check_conditions(unet, &cond, size)?;
        let scales: Vec<f32> = requests.iter().map(|r| r.guidance.unwrap_or(self.defaults.guidance)).collect();
        let mut denoiser = GuidedUNet::new(unet, cond, &uncond, &scales);
        (denoiser.rescale, denoiser.extra, denoiser.dtype) = (settings.guidance_rescale, extra, self.dtype);
        Ok(denoiser)
    }

    /// Checks that the text encoders' hidden states have the shape that the UNet was trained with.
    fn check_conditions(&self, unet: &UNet, conditions: &Conditions, size: [usize; 2]) -> Result<(), PipelineError> {
        let [batch, _, _] = conditions.context.dims();
        let [height, width, _] = self.latent_size(size);
        let x = Tensor::zeros([batch, height, width, self.unet.config().in_channels], &self.device);
        unet.check(&x, &vec![0.0; batch], &conditions.context, conditions.added.as_ref()).map_err(|error| {
            PipelineError::setting(format!(
                "{}: text encoders and UNet do not fit together: {error}",
                self.name.display()
            ))
        })
    }
}

/// Numbers besides the text that SDXL's refiner takes; the base takes one more.
const SCORED_NUMBERS: usize = 5;

/// The numbers that a UNet of SDXL takes besides the text: with a score of beauty in place of the image's size, of the prompt
/// (0) or of the negative prompt (1), if `scored` names one.
fn size_numbers(settings: &Settings, size: [usize; 2], scored: Option<usize>) -> Vec<f32> {
    let numbers = [settings.original_size.unwrap_or(size), settings.crop].concat();
    let mut numbers: Vec<f32> = numbers.into_iter().map(|number| number as f32).collect();
    match scored {
        Some(which) => numbers.push(settings.aesthetic_scores[which]),
        None => numbers.extend(size.map(|side| side as f32)),
    }
    numbers
}

/// One batch on its way from noise to latents.
pub(crate) struct Drawing<'a> {
    pipeline: &'a Pipeline,
    requests: &'a [Request],
    sampler: &'a Sampler,
    /// `[height, width, channels]` of a latent.
    size: [usize; 3],
    noise: ImageNoise,
}

impl Drawing<'_> {
    /// The first latents, and what stays of the images to begin with. Numbers are drawn in the order of diffusers: the
    /// posterior of the images, the noise, the posterior of the masked images.
    fn begin(&self) -> Result<Beginning, PipelineError> {
        let starts: Vec<Arc<StartImage>> = self.requests.iter().filter_map(|request| request.start.clone()).collect();
        let deviation = self.sampler.init_noise_sigma();
        if starts.is_empty() {
            let x = self.first_noise().mul_scalar(deviation);
            return Ok(Beginning { x, first: 0, end: None, extra: None, inpainting: None });
        }
        let strength = self.requests[0].strength;
        let first = self.sampler.first_call(strength)?;
        let inpaints = self.pipeline.unet.config().in_channels != self.size[2];
        let (whole, masked) = (strength >= 1.0, starts[0].mask.is_some());
        let plain = |start: &StartImage| start.pixels.clone();
        let clean = if inpaints && whole { None } else { Some(self.encode(&starts, plain)?) };
        let fresh = self.first_noise();
        let x = match &clean {
            Some(clean) if !(whole && masked) => self.sampler.add_noise(clean.clone(), fresh.clone(), first)?,
            _ => fresh.clone().mul_scalar(deviation),
        };
        if !masked {
            return Ok(Beginning { x, first, end: None, extra: None, inpainting: None });
        }
        let [height, width, _] = self.size;
        let small = starts.iter().filter_map(|start| Some(nearest(start.mask.as_ref()?, [height, width])));
        let mask = Tensor::cat(small.collect(), 0);
        if !inpaints {
            let inpainting = clean.map(|clean| Inpainting { clean, noise: fresh, mask });
            return Ok(Beginning { x, first, end: None, extra: None, inpainting });
        }
        let kept = self.encode(&starts, |start| match &start.mask {
            Some(mask) => start.pixels.clone() * mask.clone().mul_scalar(-1.0).add_scalar(1.0),
            None => start.pixels.clone(),
        })?;
        let extra = Some(Tensor::cat(vec![mask, kept], 3));
        Ok(Beginning { x, first, end: None, extra, inpainting: None })
    }

    /// The noise that the images are made of: drawn, or given.
    fn first_noise(&self) -> Tensor<4> {
        let given: Vec<_> = self.requests.iter().filter_map(|request| request.noise.clone()).collect();
        if given.is_empty() { self.noise.draw(self.size) } else { Tensor::cat(given, 0) }
    }

    /// A sample of the scaled latents of images to begin with. One that several requests share is encoded once.
    fn encode(
        &self,
        starts: &[Arc<StartImage>],
        pixels: impl Fn(&StartImage) -> Tensor<4>,
    ) -> Result<Tensor<4>, PipelineError> {
        let (config, autoencoder) = (self.pipeline.autoencoder.config(), self.pipeline.autoencoder.get()?);
        let mut moments: Vec<Tensor<4>> = Vec::with_capacity(starts.len());
        for (row, start) in starts.iter().enumerate() {
            let same = starts[..row].iter().position(|before| Arc::ptr_eq(before, start));
            moments.push(match same {
                Some(before) => moments[before].clone(),
                None => {
                    let pixels = pixels(start).cast(self.pipeline.dtype);
                    let found = match self.pipeline.tiled {
                        true => autoencoder.encode_tiled(pixels, &config.tiling()),
                        false => autoencoder.encode(pixels),
                    };
                    found.moments.cast(DType::F32)
                }
            });
        }
        let moments = LatentDistribution { moments: Tensor::cat(moments, 0) };
        Ok(config.scaled(moments.sample(self.noise.draw(self.size))))
    }

    fn run(
        &self,
        denoiser: &GuidedUNet<'_>,
        beginning: Beginning,
        hear: &mut dyn FnMut(SamplerStep<'_>) -> ControlFlow<()>,
    ) -> Result<Tensor<4>, SamplerError> {
        let Beginning { x, first, end, inpainting, .. } = beginning;
        let fresh = |_: usize| self.noise.draw(self.size);
        let put_back = |call: usize, latent: Tensor<4>| match &inpainting {
            // The call is one of the sampler's own, for which this cannot fail.
            Some(inpainting) => inpainting.edit(self.sampler, call, latent.clone()).unwrap_or(latent),
            None => latent,
        };
        self.sampler.sample(denoiser, x, Run { first, end, noise: Some(&fresh), edit: Some(&put_back), observe: hear })
    }
}

/// A mask in another size, the nearest pixel for each (`interpolate` of torch by default).
fn nearest(mask: &Tensor<4>, [height, width]: [usize; 2]) -> Tensor<4> {
    let [_, rows, columns, _] = mask.dims();
    let index = |to: usize, from: usize| -> Vec<i32> { (0..to).map(|i| (i * from / to) as i32).collect() };
    let device = mask.device();
    let pick = |x: Tensor<4>, axis: usize, index: Vec<i32>| {
        x.select(axis, Tensor::<1, Int>::from_data(index.as_slice(), &device))
    };
    pick(pick(mask.clone(), 1, index(height, rows)), 2, index(width, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of `_get_add_time_ids` in diffusers 0.42: of `StableDiffusionXLPipeline`, and of
    /// `StableDiffusionXLImg2ImgPipeline` with `requires_aesthetics_score`, for the prompt and the negative prompt.
    #[test]
    fn numbers_beside_the_text() {
        let settings = Settings { crop: [8, 16], ..Settings::default() };
        assert_eq!(size_numbers(&settings, [512, 768], None), [512.0, 768.0, 8.0, 16.0, 512.0, 768.0]);
        assert_eq!(size_numbers(&settings, [512, 768], Some(0)), [512.0, 768.0, 8.0, 16.0, 6.0]);
        let original_size = Some([1024, 1024]);
        let settings = Settings { original_size, aesthetic_scores: [7.0, 1.0], ..settings };
        assert_eq!(size_numbers(&settings, [512, 768], Some(1)), [1024.0, 1024.0, 8.0, 16.0, 1.0]);
    }
}
