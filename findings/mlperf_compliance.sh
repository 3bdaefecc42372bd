#!/usr/bin/env bash
# MLCommons' compliance scripts (mlcommons/inference, commit b66003e1 of August 2026) where a good guess fails.
#
# 1. TEST01 compares the first byte of two responses, not the responses: pictures that differ in all other pixels pass.
# 2. A response is compared with the last one of its sample in the performance run's log, if there was one, not with the accuracy run's.
# 3. TEST01 breaks off (NameError) where a detail log has errors, so that no verdict is written; TEST04 warns and passes.
# 4. TEST01 fails a run that is more than 10 % faster, too.
# 5. TEST04's comparison of Server's target latencies never matches a line: its pattern has unescaped parentheses.
# 6. --unixmode divides by zero on logs of fewer than 100 lines.
#
#   findings/mlperf_compliance.sh
#
# fetches compliance/ and tools/submission/log_parser.py into a temporary folder, and fails if they behave otherwise.
# CALOTYPE_MLPERF_INFERENCE names a copy that is there already; FINDINGS_PYTHON a Python with NumPy.
set -euo pipefail
logs="$(cd "$(dirname "$0")/../crates/inference/tests/golden/compliance" && pwd)"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
repository="${CALOTYPE_MLPERF_INFERENCE:-}"
if [ -z "$repository" ]; then
    repository="$folder/repository"
    git clone -q --filter=blob:none --no-checkout https://github.com/mlcommons/inference "$repository"
    git -C "$repository" sparse-checkout set --no-cone '/compliance/*' '/tools/submission/log_parser.py'
    git -C "$repository" checkout -q b66003e1
fi
python="${FINDINGS_PYTHON:-}"
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q numpy==2.4.6
fi
cd "$folder"
PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 "$python" - "$repository/compliance" "$logs" <<'PYTHON'
import json
import pathlib
import subprocess
import sys

tests, logs = map(pathlib.Path, sys.argv[1:])


def entries(*responses):
    return json.dumps([dict(seq_id=n, qsl_idx=sample, data=data) for n, (sample, data) in enumerate(responses)])


def accuracy(reference, tested, *more):
    pathlib.Path("reference.json").write_text(reference)
    pathlib.Path("tested.json").write_text(tested)
    script = tests / "TEST01" / "verify_accuracy.py"
    return run(script, "-r", "reference.json", "-t", "tested.json", *more)


def performance(test, scenario, name, *edits):
    """The script's words on a submitted run beside itself, edited."""
    submitted = logs / scenario / "performance" / "run_1" / name
    text = submitted.read_text()
    for old, new in edits:
        assert old in text, old
        text = text.replace(old, new)
    pathlib.Path(name).write_text(text)
    return run(tests / test / "verify_performance.py", "-r", submitted, "-t", name)


def run(*command):
    done = subprocess.run([sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout


def number(scenario, name, before):
    text = (logs / scenario / "performance" / "run_1" / name).read_text()
    return text.split(before)[1].split(",")[0].split("\n")[0].strip()


assert "TEST PASS" in accuracy(entries((0, "AB0000")), entries((0, "ABFFFF")))
assert "TEST FAIL" in accuracy(entries((0, "AB0000")), entries((0, "AC0000")))
print("1. one byte")

found = accuracy(entries((0, "AB")), entries((0, "AC"), (0, "AC"), (0, "AC")))
assert "num_perf_log_data_mismatch = 1\n" in found, found
print("2. the last response")

error = ('"num_errors", "value": 0', '"num_errors", "value": 1')
assert "NameError" in performance("TEST01", "Offline", "mlperf_log_detail.txt", error)
found = performance(
    "TEST04", "Offline", "mlperf_log_summary.txt", ("No errors encountered during test.", "1 ERROR encountered. See detailed log.")
)
assert "WARNING: 1 ERROR reported in test results" in found and "TEST PASS" in found, found
print("3. errors")

score = number("Offline", "mlperf_log_detail.txt", '"result_samples_per_second", "value": ')
faster = (f'"value": {score}', f'"value": {float(score) * 1.2}')
assert "TEST FAIL: Test score invalid" in performance("TEST01", "Offline", "mlperf_log_detail.txt", faster)
print("4. faster")

found = performance("TEST04", "Server", "mlperf_log_summary.txt", ("target_latency (ns): 500000000", "target_latency (ns): 900000000"))
assert "TEST PASS" in found, found
print("5. target latencies")

log = "[\n" + ",\n".join(f'{{ "seq_id" : {n}, "qsl_idx" : {n}, "data" : "AB" }}' for n in range(50)) + "\n]\n"
assert "ZeroDivisionError" in accuracy(log, log, "--unixmode")
print("6. short logs")
PYTHON
