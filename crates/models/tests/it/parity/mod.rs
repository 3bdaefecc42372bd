//! Models against diffusers, on the golden values that `tests/golden/make_models.py` wrote.

mod autoencoder;
mod golden;
mod unet;
