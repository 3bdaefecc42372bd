//! Layouts, conversion and writing of checkpoints.

mod export;
mod families;
mod layouts;
