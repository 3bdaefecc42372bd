//! Layouts, conversion and writing of checkpoints.

mod export;
mod families;
mod feature_networks;
mod layouts;
mod nemo;
mod timm;
