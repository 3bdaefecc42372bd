"""Verdicts of MLCommons' official checkers (mlperf-logging) on the cases that crates/mlperf writes down.

    mlperf-golden.py FOLDER                 reads FOLDER/cases.json, prints {name: {"verdict", ...}} as JSON
    mlperf-golden.py --log FILE RULESET     the verdict on one log
    mlperf-golden.py --tree FOLDER RULESET [--bypass-rcp]
                                            the verdict on a submission's tree

A verdict is "pass", "fail", or "stop" where a checker breaks off with an exception. Further fields are figures and names: "keys" of the
log that the compliance checker complains about, the "basis" among the reference points, the "scaling" factor, the "minutes" of the score.
scripts/mlperf-checkers.sh installs the checkers and runs this.
"""

import contextlib
import glob
import io
import json
import logging
import os
import re
import sys
import warnings

from mlperf_logging.benchmark_meta import get_allowed_benchmarks
from mlperf_logging.compliance_checker import mlp_compliance
from mlperf_logging.package_checker import package_checker
from mlperf_logging.rcp_checker import rcp_checker
from mlperf_logging.repo_checker import repo_checker
from mlperf_logging.result_summarizer import result_summarizer

# Whose rules crates/mlperf knows.
BENCHMARKS = ("stable_diffusion", "flux1")
BASES = {"RCP found": "found", "RCP Interpolation": "interpolated", "RCP not found": "smallest"}


def judged(check):
    """What `check` returns, or that it broke off. The checkers print; nothing of it is kept."""
    mlp_compliance.enqueued_configs.clear()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return check()
    except (Exception, SystemExit):
        return {"verdict": "stop"}


def verdict(passed):
    return {"verdict": "pass" if passed else "fail"}


def check_log(path, ruleset, strict):
    checker = mlp_compliance.make_checker("training", ruleset, False, strict)
    passed, *_ = mlp_compliance.main(path, f"training_{ruleset}/common.yaml", checker)
    named = re.search(r'"key": "submission_benchmark", "value": "(\w+)"', open(path, encoding="latin-1").read())
    if named and named[1] not in BENCHMARKS:
        return verdict(passed)
    return verdict(passed) | {"keys": sorted(checker.overwritable)}


def check_runs(folder, ruleset, full):
    which = "full_rcps" if full else "pruned_rcps"
    passed, message, scaling = rcp_checker.check_directory(folder, "training", ruleset, False, False, rcp_pass=which)
    if not passed:
        return verdict(False)
    basis = next(name for start, name in BASES.items() if message.startswith(start))
    return verdict(True) | {"basis": basis, "scaling": scaling}


def check_tree(folder, ruleset, strict=False, rcp_bypass=False, seed_bypass=False):
    systems = package_checker.check_systems(folder, "training", ruleset)
    results = package_checker.check_training_result_files(folder, "training", ruleset, False, strict, rcp_bypass, False, seed_bypass)
    found = verdict(systems and results)
    scored = set(BENCHMARKS) & set(get_allowed_benchmarks("training", ruleset))
    places = glob.glob(f"{folder}/results/*/*")
    if found["verdict"] == "pass" and len(places) == 1 and os.path.basename(places[0]) in scored:
        found |= score(places[0], ruleset)
    return found


def score(folder, ruleset):
    factor = 1.0
    if os.path.exists(f"{folder}/scaling.json"):
        with open(f"{folder}/scaling.json") as file:
            factor = json.load(file)["scaling_factor"]
        os.remove(f"{folder}/scaling.json")
    benchmark, system = os.path.basename(folder), os.path.basename(os.path.dirname(folder))
    figures = result_summarizer._compute_strong_score_standalone(benchmark, system, False, folder, "training", ruleset)
    return {"scaling": factor} | ({"minutes": figures[0] * factor} if all_succeeded(folder) else {})


def all_succeeded(folder):
    """The summarizer counts the time of runs that were aborted; those trees are not compared."""
    texts = [open(path, encoding="latin-1").read() for path in glob.glob(f"{folder}/result_*.txt")]
    return len(texts) == 10 and all('"success"' in text for text in texts)


def check_repository(folder):
    files, folders = repo_checker.list_files_recursively(folder), repo_checker.list_dirs_recursively(folder)
    return verdict(
        repo_checker._check_bad_filenames(files, folders)
        and repo_checker._check_file_sizes(files)
        and repo_checker._check_symbolic_links(folder, files)
    )


def check_case(case):
    path, ruleset = case["path"], case["ruleset"]
    if case["kind"] == "log":
        return judged(lambda: check_log(f"{path}/log.txt", ruleset, case["strict"]))
    if case["kind"] == "runs":
        return judged(lambda: check_runs(path, ruleset, case["full"]))
    if case["kind"] == "repository":
        return judged(lambda: check_repository(path))
    return judged(lambda: check_tree(path, ruleset, case["strict"], case["rcp_bypass"], case["seed_bypass"]))


def main(arguments):
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if arguments[0] == "--log":
        print(judged(lambda: check_log(arguments[1], arguments[2], False))["verdict"])
    elif arguments[0] == "--tree":
        bypass = "--bypass-rcp" in arguments[3:]
        print(judged(lambda: check_tree(arguments[1].rstrip("/"), arguments[2], rcp_bypass=bypass))["verdict"])
    else:
        with open(f"{arguments[0]}/cases.json") as file:
            cases = json.load(file)
        lines = [f"  {json.dumps(case['name'])}: {json.dumps(check_case(case))}" for case in cases]
        print("{\n" + ",\n".join(lines) + "\n}")


if __name__ == "__main__":
    main(sys.argv[1:])
