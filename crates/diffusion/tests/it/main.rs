//! The crate from outside: trajectories against diffusers, and configurations in its form.

mod scheduler_configs;
mod trajectories;
