//! Features of this process compared with those of all.

use super::objective::{ClipLoss, ClipObjective};
use burn::tensor::{Device, Tensor, TensorData};
use calotype_collective::{Collective, CollectiveError};
use calotype_models::Clip;
use calotype_models::state::values_of;
use std::ops::Range;

/// Features of images and texts, row by row; without autodiff.
#[derive(Debug, Default)]
pub(super) struct Features {
    images: Vec<f32>,
    texts: Vec<f32>,
    width: usize,
}

impl Features {
    /// Adds rows behind those that are there.
    pub(super) fn add(&mut self, images: &Tensor<2>, texts: &Tensor<2>) {
        self.width = images.dims()[1];
        self.images.extend(values_of(images.clone().inner()));
        self.texts.extend(values_of(texts.clone().inner()));
    }

    fn rows(&self) -> usize {
        self.images.len() / self.width.max(1)
    }

    /// Those of all processes, in the order of the ranks, and which rows of them are our own.
    fn of_all(self, collective: &dyn Collective) -> Result<(Self, Range<usize>), CollectiveError> {
        let (width, rows) = (self.width, self.rows());
        let (mut all, mut own) = (Self { width, ..Self::default() }, 0..rows);
        for (rank, values) in collective.all_gather(&[self.images, self.texts].concat())?.into_iter().enumerate() {
            if rank == collective.rank() {
                own = all.rows()..all.rows() + rows;
            }
            let (images, texts) = values.split_at(values.len() / 2);
            all.images.extend_from_slice(images);
            all.texts.extend_from_slice(texts);
        }
        Ok((all, own))
    }

    fn tensors(self, device: &Device) -> [Tensor<2>; 2] {
        let shape = [self.rows(), self.width];
        [self.images, self.texts].map(|values| Tensor::from_data(TensorData::new(values, shape), device))
    }
}

/// The logits' parameters, by their values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Temperature {
    log_scale: f32,
    bias: Option<f32>,
}

impl Temperature {
    pub(super) fn of(model: &Clip) -> Self {
        let value = |tensor: Tensor<1>| tensor.inner().into_scalar::<f32>();
        let (log_scale, bias) = model.logits();
        Self { log_scale: value(log_scale), bias: bias.map(value) }
    }
}

/// The loss of all processes' features.
#[derive(Debug)]
pub(super) struct Comparison {
    /// The loss, or that of this process's rows.
    pub(super) loss: f32,
    /// Its gradients with respect to this process's features, `[rows, width]` of images and of texts.
    images: Vec<f32>,
    texts: Vec<f32>,
    width: usize,
    /// What these are to be multiplied by: the number of processes, unless that is done. The trainer takes the mean over them.
    times: usize,
    /// Its derivatives with respect to the logits' parameters, of which the mean over processes is the whole one.
    temperature: Vec<f32>,
}

impl Comparison {
    /// Compares. With `whole`, each process computes the loss of all rows, so that bits do not depend on whose rows are whose.
    pub(super) fn of(
        objective: &ClipObjective,
        own: Features,
        temperature: Temperature,
        (collective, whole): (&dyn Collective, bool),
        device: &Device,
    ) -> Result<Self, CollectiveError> {
        let (width, world) = (own.width, collective.world());
        let (all, own) = own.of_all(collective)?;
        let rows = all.rows();
        let whole = whole || objective.loss == ClipLoss::Full;
        let [images, texts] = all.tensors(device);
        let Temperature { log_scale, bias } = temperature;
        let (logits, slope) = objective.logits(log_scale, bias.unwrap_or(0.0));
        let looked_at = if whole { 0..rows } else { own.clone() };
        let found = objective.contrast().of([&images, &texts], looked_at, logits);
        let mut gradients = [values_of(found.images), values_of(found.texts)].concat();
        if !whole {
            // The loss is the mean of what the processes compute, and each is a function of all features.
            collective.all_reduce_sum(&mut gradients)?;
        }
        let (images, texts) = gradients.split_at(rows * width);
        let own = own.start * width..own.end * width;
        let scale = (found.scale * f64::from(slope)) as f32;
        Ok(Self {
            loss: found.loss as f32,
            images: images[own.clone()].to_vec(),
            texts: texts[own].to_vec(),
            width,
            times: if whole { world } else { 1 },
            temperature: std::iter::once(scale).chain(bias.map(|_| found.bias as f32)).collect(),
        })
    }

    /// What concerns some of this process's rows, as one of so many parts: the gradients of images, texts and the logits' parameters.
    pub(super) fn gradients(&self, rows: Range<usize>, parts: usize) -> Vec<Vec<f32>> {
        let values = rows.start * self.width..rows.end * self.width;
        // One multiplication, so that the bits are those of as many parts of other processes.
        let times = (self.times * parts) as f32;
        let of = |all: &[f32]| all[values.clone()].iter().map(|value| value * times).collect();
        let mut gradients = vec![of(&self.images), of(&self.texts)];
        gradients.extend(self.temperature.iter().map(|value| vec![*value]));
        gradients
    }
}

/// What [`Comparison::gradients`] are of.
pub(super) fn outputs(model: &Clip, images: Tensor<2>, texts: Tensor<2>) -> Vec<Tensor<1>> {
    let flat = |tensor: Tensor<2>| {
        let size = tensor.shape().num_elements();
        tensor.reshape([size])
    };
    let (log_scale, bias) = model.logits();
    [flat(images), flat(texts), log_scale].into_iter().chain(bias).collect()
}
