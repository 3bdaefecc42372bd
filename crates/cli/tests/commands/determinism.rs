//! The figures are a function of the seed.

use crate::common::{SEED, finished, quickstart, succeed};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// `summary.json` without what depends on the clock, the machine and the folder.
fn figures(out: &Path) -> Value {
    let mut summary: Value = serde_json::from_slice(&fs::read(out.join("summary.json")).unwrap()).unwrap();
    for field in ["seconds", "peak_rss_gib", "pictures"] {
        assert!(summary.as_object_mut().unwrap().remove(field).is_some(), "summary.json has no `{field}`");
    }
    summary
}

#[test]
fn the_same_seed_gives_the_same_figures_with_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let again = |name: &str, arguments: &[&str]| {
        let out = folder.path().join(name);
        succeed(&mut quickstart(&out, arguments));
        out
    };
    let first = finished().out();
    let one = again("one", &["--seed", SEED, "--threads", "1"]);
    let two = again("two", &["--seed", SEED, "--threads", "2"]);
    let other = again("other", &["--seed", "6"]);
    assert_eq!(figures(&one), figures(&first));
    assert_eq!(figures(&two), figures(&first));
    assert_ne!(figures(&other)["loss_last"], figures(&first)["loss_last"]);
    // A start that finds all done has measured only itself.
    let before = fs::read(one.join("summary.json")).unwrap();
    again("one", &["--seed", SEED, "--threads", "1"]);
    assert!(fs::read(one.join("summary.json")).unwrap() == before, "the summary was written again");
    for file in ["unet/diffusion_pytorch_model.safetensors", "pictures/held_out.png", "pictures/prompts.png"] {
        let read = |out: &Path| fs::read(out.join(file)).unwrap();
        assert!(read(&one) == read(&first) && read(&two) == read(&first), "{file} differs");
        assert!(read(&other) != read(&first), "{file} does not depend on the seed");
    }
}
