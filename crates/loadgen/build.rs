//! Compiles MLCommons' LoadGen and our shim around it, with the feature `official`.

fn main() {
    #[cfg(feature = "official")]
    official::build();
}

#[cfg(feature = "official")]
mod official {
    use std::env;
    use std::path::{Path, PathBuf};

    /// The release that `scripts/loadgen.sh` fetches.
    const FOLDER: &str = "mlcommons_loadgen-6.0.17";
    const SOURCE: &str = "CALOTYPE_LOADGEN_SRC";
    /// LoadGen without its bindings, as its own setup.py lists it.
    const FILES: [&str; 9] = [
        "early_stopping.cc",
        "issue_query_controller.cc",
        "loadgen.cc",
        "logging.cc",
        "test_settings_internal.cc",
        "utils.cc",
        "version.cc",
        "results.cc",
        "generated/version_generated.cc",
    ];

    pub(super) fn build() {
        println!("cargo::rerun-if-env-changed={SOURCE}");
        println!("cargo::rerun-if-changed=src/shim.cc");
        let source = source();
        println!("cargo::rerun-if-changed={}", source.display());
        if let Some(missing) =
            FILES.iter().chain(&["loadgen.h", "mlperf_conf.h"]).find(|file| !source.join(file).is_file())
        {
            println!(
                "cargo::error={}: there is no {missing}: run scripts/loadgen.sh, which fetches LoadGen, or set {SOURCE} to the folder of \
                 its sources",
                source.display()
            );
            return;
        }
        // The standard and the optimization of its setup.py.
        let mut loadgen = cc::Build::new();
        loadgen.cpp(true).std("c++14").opt_level(3).include(&source).warnings(false);
        loadgen.files(FILES.iter().map(|file| source.join(file))).compile("calotype_loadgen_official");
        let mut shim = cc::Build::new();
        shim.cpp(true).std("c++14").include(&source).flag_if_supported("-Wno-unused-parameter");
        shim.file("src/shim.cc").compile("calotype_loadgen_shim");
    }

    fn source() -> PathBuf {
        match env::var_os(SOURCE).filter(|path| !path.is_empty()) {
            Some(path) => PathBuf::from(path),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/loadgen").join(FOLDER),
        }
    }
}
