//! The crate's tests, in one program: runs without LoadGen, accuracy logs judged, compliance runs judged beside MLCommons' scripts.

mod accuracy;
mod benchmark;
mod compliance;
mod drawing;
mod plan;
mod queue;
mod remote;
mod wire;
