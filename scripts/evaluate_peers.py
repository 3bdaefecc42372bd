"""Runs what evaluate-peers.sh describes."""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import scipy.linalg

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "crates" / "evaluate" / "tests" / "golden"))
import make_inception as peers  # noqa: E402

# What Calotype reads; TIFF and PGM, which the packages read too, it does not.
EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


# Metrics besides the Fréchet distance, and what they are called on features that are not official.
METRICS = {"clean-fid": ["fid", "kid"], "torch-fidelity": ["fid", "kid", "inception-score"]}
OTHERWISE = {"kid": "kd", "inception-score": "classifier_score"}


def files(folder):
    """The pictures below a folder, in the order of their paths."""
    return sorted(path for path in pathlib.Path(folder).rglob("*") if path.suffix.lower() in EXTENSIONS)


def distance(first, second):
    """The Fréchet distance in f64; the trace of the root by eigenvalues, which does not fail where products are singular."""
    (mu1, sigma1), (mu2, sigma2) = ((rows.mean(0), np.cov(rows, rowvar=False)) for rows in (first, second))
    roots = np.sqrt(scipy.linalg.eigvals(sigma1 @ sigma2).astype(complex)).real.sum()
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * roots)


def subset(arguments):
    """Pictures in a subset of a KID."""
    return min(1000, *(len(files(folder)) for folder in (arguments.first, arguments.second)))


def kept(arguments, inception, variant, work):
    """Runs Calotype, whose states stay in the folder that is returned."""
    keep = work / f"ours-{variant}"
    command = [arguments.binary, "evaluate", "pictures", arguments.first, "--reference", arguments.second, "--json"]
    command += ["--metrics", ",".join(METRICS.get(variant, ["fid"])), "--fid-variant", variant]
    if variant in METRICS:
        command += ["--subset-size", str(subset(arguments))]
    command += ["--inception", str(inception), "--keep", str(keep)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return keep, {figure["metric"]: figure["value"] for figure in map(json.loads, text.splitlines())}


def ours(arguments, inception, variant, work):
    """Rows of both folders, and figures, by Calotype."""
    keep, figures = kept(arguments, inception, variant, work)
    rows = {}
    for path in keep.glob(f"*/inception.{variant}.features.f32"):
        states = json.loads((path.parent / "state.json").read_text())["features"]
        count = states[f"inception/{variant}"]["samples"]["count"]
        rows[path.parent.name] = np.fromfile(path, "<f4").reshape(count, -1)
    return figures, list(rows.values())


def more(arguments, packages, variant, theirs):
    """Other figures than the distance, as a package computes them of its own features."""
    size = subset(arguments)
    if variant == "clean-fid":
        np.random.seed(2020)
        return {"kid": peers.clean_fid.kernel_distance(*theirs, num_subsets=100, max_subset_size=size)}
    if variant == "torch-fidelity":
        found = peers.torch_fidelity.calculate_metrics(
            input1=arguments.first, input2=arguments.second, cuda=False, batch_size=1, isc=True, kid=True,
            kid_subset_size=size, verbose=False, cache=False, feature_extractor_weights_path=packages.weights,
            samples_find_deep=True, samples_find_ext=",".join(ending[1:] for ending in EXTENSIONS), save_cpu_ram=True,
        )
        return {"kid": found["kernel_inception_distance_mean"], "inception-score": found["inception_score_mean"]}
    return {}


def check(arguments, packages, inception, variant, work):
    """Prints how far both sides are apart; true if that is near enough."""
    extract = peers.VARIANTS[variant]
    theirs = []
    for folder in (arguments.first, arguments.second):
        rows = [extract(packages, str(path))[0].numpy() for path in files(folder)]
        theirs.append(np.stack(rows).astype(np.float64))
    found, rows = ours(arguments, inception, variant, work)
    value = found.get("fid", found.get("fd"))
    expected = distance(*theirs)
    largest = max(np.abs(rows_of).max() for rows_of in theirs)
    exact, jpeg = 0.0, 0.0
    for folder, rows_of in zip((arguments.first, arguments.second), theirs):
        is_jpeg = np.array([path.suffix.lower() in (".jpg", ".jpeg") for path in files(folder)])
        far = [np.abs(found - rows_of).max(1) / largest for found in rows if found.shape == rows_of.shape]
        # Which of the kept folders is which set is told by its rows.
        nearest = min(far, key=np.median)
        exact = max(exact, nearest[~is_jpeg].max(initial=0.0))
        jpeg = max(jpeg, nearest[is_jpeg].max(initial=0.0))
    relative = abs(value - expected) / max(abs(expected), 1e-9)
    print(
        f"{variant:15} features {exact:.2e} (JPEG {jpeg:.2e})  distance {value:.6f} {expected:.6f}  {relative:.2e}",
        flush=True,
    )
    near = max(exact, jpeg) <= 1e-4 and relative <= 1e-3
    for metric, expected in more(arguments, packages, variant, theirs).items():
        value = next(found[name] for name in (metric.replace("-", "_"), OTHERWISE[metric]) if name in found)
        relative = abs(value - expected) / abs(expected)
        print(f"{variant:15} {metric} {value:.6f} {expected:.6f}  {relative:.2e}", flush=True)
        near = near and relative <= 1e-3
    return near


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--inception")
    parser.add_argument("--variants", default=",".join(peers.VARIANTS))
    parser.add_argument("--work")
    arguments = parser.parse_args()
    folder = peers.weights()
    if arguments.inception:
        for path in folder.iterdir():
            shutil.copyfile(arguments.inception, path)
    packages = peers.Packages(folder)
    inception = folder / "pt_inception-2015-12-05-6726825d.pth"
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(arguments.work or temporary)
        results = [check(arguments, packages, inception, variant, work) for variant in arguments.variants.split(",")]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
