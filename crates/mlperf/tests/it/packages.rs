//! Trees as they are written.

use crate::cases::trees::files_of;
use crate::cases::{Run, flux, stable_diffusion, system, write_run};
use calotype_mlperf::*;
use std::fs;
use std::path::{Path, PathBuf};

fn logs_in(folder: &Path, run: &Run) -> Vec<PathBuf> {
    let log = |seed| {
        let path = folder.join(format!("run-{seed}/mlperf_compliance.log"));
        write_run(&path, &Run { seed, ..run.clone() }).unwrap();
        path
    };
    (0..10).map(log).collect()
}

#[test]
fn ten_runs_make_a_tree_that_passes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("Calotype");
    let recipe = folder.path().join("recipe.toml");
    fs::write(&recipe, "x = 1\n").unwrap();
    let system = system(Division::Closed);
    let logs = logs_in(folder.path(), &stable_diffusion(1_945_600));
    let sources = [recipe.clone()];
    let package = NewPackage {
        benchmark: Benchmark::StableDiffusion,
        system: &system,
        logs: &logs,
        implementation: ("calotype", &sources),
    };
    let written = write_package(&root, &package).unwrap();
    assert_eq!(written, root.join("results/box/stable_diffusion"));
    let found = files_of(&root);
    assert_eq!(
        found[..2],
        [
            "benchmarks/stable_diffusion/implementations/calotype/recipe.toml",
            "results/box/stable_diffusion/result_0.txt"
        ]
    );
    assert_eq!((found.len(), found[11].as_str()), (12, "systems/box.json"));
    assert_eq!(fs::read(written.join("result_3.txt")).unwrap(), fs::read(&logs[3]).unwrap());

    let checked = check_package(&root, Ruleset::V5_0, Bypass::default(), true).unwrap();
    assert_eq!(checked.verdict(), Verdict::Pass, "{}", checked.report);
    assert!(check_repository(&root).unwrap().findings.is_empty());
    // The official checker of packages: 1.0457963 (interpolated mean 2,034,701).
    let result = &checked.results[0];
    assert!((result.scaling - 1.045_796_3).abs() < 1e-6);
    checked.record_scaling().unwrap();
    let recorded = fs::read_to_string(written.join("scaling.json")).unwrap();
    assert!(recorded.contains("\"scaling_factor\": 1.0457"), "{recorded}");

    // A second benchmark joins the tree; nothing takes the place of anything.
    let logs = logs_in(folder.path(), &flux(8_388_608));
    let second = NewPackage { benchmark: Benchmark::Flux1, logs: &logs, ..package.clone() };
    write_package(&root, &second).unwrap();
    assert!(root.join("results/box/flux1/result_9.txt").exists());
    let refused = |package: &NewPackage<'_>| write_package(&root, package).unwrap_err().to_string();
    assert!(refused(&second).contains("flux1: is there already"));
    let other = SystemDescription { cooling: "water".to_owned(), ..system.clone() };
    fs::remove_dir_all(root.join("results/box/flux1")).unwrap();
    let error = refused(&NewPackage { system: &other, ..second.clone() });
    assert!(error.contains("box.json: is there already"), "{error}");
    fs::write(&recipe, "x = 2\n").unwrap();
    let error = refused(&NewPackage { benchmark: Benchmark::Flux1, ..second });
    assert!(error.contains("flux1/implementations/calotype/recipe.toml: is there already"), "{error}");
}

#[test]
fn what_makes_no_tree_is_refused_and_leaves_no_results() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("tree");
    let system = system(Division::Closed);
    let logs = logs_in(folder.path(), &stable_diffusion(2_048_000));
    let package = NewPackage {
        benchmark: Benchmark::StableDiffusion,
        system: &system,
        logs: &logs,
        implementation: ("ours", &[]),
    };
    let refused = |package: &NewPackage<'_>| write_package(&root, package).unwrap_err().to_string();
    let nine = refused(&NewPackage { logs: &logs[..9], ..package.clone() });
    assert_eq!(nine, "stable_diffusion needs the logs of 10 runs, and 9 are given; add or leave out some");
    for name in ["", "a b", ".a", "a/b"] {
        let system = SystemDescription { system_name: name.to_owned(), ..system.clone() };
        assert!(
            refused(&NewPackage { system: &system, ..package.clone() }).contains("cannot be the name of the system")
        );
        assert!(
            refused(&NewPackage { implementation: (name, &[]), ..package.clone() }).contains("of the implementation")
        );
    }
    assert!(!root.exists());
    let mut missing = logs.clone();
    missing[4] = folder.path().join("none.log");
    let error = refused(&NewPackage { logs: &missing, ..package.clone() });
    assert!(error.contains("none.log: cannot read it"), "{error}");
    assert!(!root.exists());
    let open = folder.path().join("open.log");
    write_run(&open, &Run { seed: 3, division: Division::Open, ..stable_diffusion(2_048_000) }).unwrap();
    let mut mixed = logs.clone();
    mixed[3] = open.clone();
    let error = refused(&NewPackage { logs: &mixed, ..package.clone() });
    let parts = ["open.log line", "`submission_division` is \"open\"", "run-0/mlperf_compliance.log it is \"closed\""];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    assert!(!root.exists());
    write_package(&root, &package).unwrap();
    // A tree that was made otherwise.
    let third = root.join("results/box/stable_diffusion/result_3.txt");
    fs::copy(&open, &third).unwrap();
    let checked = check_package(&root, Ruleset::V5_0, Bypass::default(), false).unwrap();
    let advice = checked.report.findings.iter().filter(|finding| finding.severity == Severity::Advice);
    assert!(advice.map(ToString::to_string).any(|text| text.contains("put only runs of one submission")));
}

/// Reading a named pipe would wait for a writer without end.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("tree");
    let (system, logs) = (system(Division::Closed), logs_in(folder.path(), &stable_diffusion(2_048_000)));
    let benchmark = Benchmark::StableDiffusion;
    write_package(&root, &NewPackage { benchmark, system: &system, logs: &logs, implementation: ("ours", &[]) })
        .unwrap();
    let results = root.join("results/box/stable_diffusion");
    for pipe in [results.join("result_3.txt"), results.join("package_checker_params"), root.join("systems/other.json")]
    {
        let _ = fs::remove_file(&pipe);
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    }
    let report = check_package(&root, Ruleset::V5_0, Bypass::default(), false).unwrap().report.to_string();
    assert!(
        report.contains("there are 9 result files") && report.contains("result_3.txt: it is no result file"),
        "{report}"
    );
}

#[test]
fn large_files_and_broken_links_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let large = folder.path().join("a.bin");
    fs::File::create(&large).unwrap().set_len((50 << 20) + 1).unwrap();
    fs::File::create(folder.path().join("b.bin")).unwrap().set_len(50 << 20).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("nowhere", folder.path().join("link")).unwrap();
    let report = check_repository(folder.path()).unwrap().to_string();
    assert!(report.contains("a.bin: it has 50.0 MiB, where 50 MiB are allowed"), "{report}");
    assert_eq!(report.lines().count(), if cfg!(unix) { 2 } else { 1 }, "{report}");
    assert!(!cfg!(unix) || report.contains("link: the link leads nowhere"), "{report}");
}
