//! Models against diffusers, on the golden values that `tests/golden/make_models.py` wrote.

mod autoencoder;
mod few_steps;
mod golden;
mod unet;
