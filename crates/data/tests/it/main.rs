//! The tests of the public interface, as one program: every program more is linked with everything that the crate uses.

mod augment;
mod emoji;
mod foreign;
mod images;
mod jpegs;
mod loader;
mod mds;
mod pickled;
mod pillow;
mod precache;
mod remote;
mod shards;
mod sources;
mod stream;
mod synthetic;

#[path = "../../../prepare/tests/it/support.rs"]
mod support;
