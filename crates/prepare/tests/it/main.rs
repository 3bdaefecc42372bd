//! The stages as their users see them: command lines, real files, a real server, real kills. All tests are one program:
//! every program more is linked with everything that the crate uses.

mod coco;
mod convert;
mod download;
mod fetch;
mod filter;
mod foreign;
mod shard_stages;
mod support;
mod synth;

/// The example that runs stages as a process of its own. Cargo builds it with the tests.
fn program() -> std::path::PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(std::path::Path::parent).unwrap().join("examples/data")
}
