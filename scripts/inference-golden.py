"""Verdicts of MLCommons' submission checkers (tools/submission of mlcommons/inference) on trees.

    python inference-golden.py CHECKERS CASES              cases.json of CASES, as the golden file has them
    python inference-golden.py CHECKERS --tree FOLDER ROUND [--short-run]

CHECKERS holds a folder for each generation (v4.1, v5.1, v6.1) with its tools/submission; scripts/inference-checkers.sh makes it. A short
run is judged as `run-mlperf-inference-submission-checker,_short-run` of mlperf-automations (20d3d94) does: by a checker in which some
`return`s are rewritten.
"""
import contextlib
import csv
import importlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile

GENERATIONS = {"v4.1": "v4.1", "v5.1": "v5.1", "v6.0": "v6.1", "v6.1": "v6.1"}
# Modules that the checkers load by their bare names.
BARE = ("submission_checker", "log_parser", "power")


def rewritten(source, target):
    """A checker in which performance (and, in the package, accuracy) refuses nothing but what breaks it off."""
    shutil.copytree(source, target)
    single = os.path.join(target, "submission_checker.py")
    if os.path.exists(single):
        edit(single, [("return is_valid, res, inferred", "return True, res, inferred")])
        return target
    for name in ["performance_check.py", "accuracy_check.py"]:
        edit(
            os.path.join(target, "submission_checker", "checks", name),
            [("return is_valid", "return True"), ("return False", "return True")],
        )
    # The package's audit tests keep the checks that are not rewritten.
    shutil.copy(
        os.path.join(source, "submission_checker", "checks", "performance_check.py"),
        os.path.join(target, "submission_checker", "checks", "performance_check_as_it_is.py"),
    )
    edit(
        os.path.join(target, "submission_checker", "checks", "compliance_check.py"),
        [("from .performance_check import", "from .performance_check_as_it_is import")],
    )
    return target


def edit(path, changes):
    with open(path) as file:
        text = file.read()
    for before, after in changes:
        if before not in text:
            raise SystemExit(f"{path}: holds no `{before}`")
        text = text.replace(before, after)
    with open(path, "w") as file:
        file.write(text)


class Checkers:
    def __init__(self, folder, scratch):
        self.folder, self.scratch = os.path.abspath(folder), scratch

    def load(self, generation, short):
        """The `main` of a checker; modules of the one before are forgotten."""
        source = os.path.join(self.folder, generation, "tools", "submission")
        if short:
            target = os.path.join(self.scratch, f"{generation}-short")
            source = target if os.path.exists(target) else rewritten(source, target)
        for name in [name for name in sys.modules if name.split(".")[0] in BARE]:
            del sys.modules[name]
        sys.path[:] = [source] + [path for path in sys.path if "tools/submission" not in path and self.scratch not in path]
        importlib.invalidate_caches()
        package = os.path.exists(os.path.join(source, "submission_checker"))
        return importlib.import_module("submission_checker.main" if package else "submission_checker").main

    def judge(self, main, root, version, short):
        table = os.path.join(self.scratch, "summary.csv")
        root = os.path.abspath(root)
        arguments = ["checker", "--input", root, "--version", version, "--csv", table]
        if short and version >= "v6":
            arguments.append("--skip-dataset-size-check")
        if os.path.exists(table):
            os.remove(table)
        before, folder = sys.argv, os.getcwd()
        sys.argv = arguments
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                passed = main() == 0
        except (Exception, SystemExit):
            return {"verdict": "stop"}
        finally:
            sys.argv = before
            os.chdir(folder)
        if not passed:
            return {"verdict": "fail"}
        with open(table) as file:
            lines = file.read().replace(root, "ROOT").splitlines()
        # Nothing that cannot be read as a table is compared.
        assert all(len(row) == len(lines[0].split(",")) for row in csv.reader(lines)), lines
        return {"verdict": "pass", "summary": lines[:1] + sorted(lines[1:])}


def main(arguments):
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as scratch:
        checkers = Checkers(arguments[0], scratch)
        if arguments[1] == "--tree":
            short = "--short-run" in arguments[4:]
            run = checkers.load(GENERATIONS[arguments[3]], short)
            print(checkers.judge(run, arguments[2], arguments[3], short)["verdict"])
            return
        with open(os.path.join(arguments[1], "cases.json")) as file:
            cases = json.load(file)
        found = {}
        # Cases of one checker in a row, for each is loaded once.
        for generation, short in sorted({(GENERATIONS[case["round"]], case["short"]) for case in cases}):
            run = checkers.load(generation, short)
            for case in cases:
                if (GENERATIONS[case["round"]], case["short"]) == (generation, short):
                    found[case["name"]] = checkers.judge(run, case["path"], case["round"], short)
        lines = [f"  {json.dumps(case['name'])}: {json.dumps(found[case['name']])}" for case in cases]
        print("{\n" + ",\n".join(lines) + "\n}")


if __name__ == "__main__":
    main(sys.argv[1:])
