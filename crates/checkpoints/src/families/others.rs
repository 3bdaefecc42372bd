//! Networks without a UNet.

use super::{Facts, PLAIN};
use crate::kinds::Component;

pub(super) const VIT: Facts = Facts { recognise: |seen| seen.is_alone(Component::Classifier), ..PLAIN };

pub(super) const INCEPTION: Facts = Facts { recognise: |seen| seen.is_alone(Component::Inception), ..PLAIN };

pub(super) const KERAS_INCEPTION: Facts = Facts { recognise: |seen| seen.is_alone(Component::KerasInception), ..PLAIN };

pub(super) const DINOV2: Facts = Facts { recognise: |seen| seen.is_alone(Component::Dinov2), ..PLAIN };

pub(super) const EFFICIENTNET_LITE: Facts =
    Facts { recognise: |seen| seen.is_alone(Component::EfficientNetLite), ..PLAIN };

pub(super) const VAE: Facts = Facts { recognise: |seen| seen.is_alone(Component::Vae), ..PLAIN };

pub(super) const CLIP: Facts = Facts { recognise: |seen| seen.unet.is_none() && !seen.components.is_empty(), ..PLAIN };
