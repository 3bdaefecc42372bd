//! Models against diffusers, on the golden values that `tests/golden/make_models.py` wrote.

mod autoencoder;
#[path = "../common/mod.rs"]
mod common;
mod golden;
mod unet;
