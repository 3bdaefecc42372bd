#!/usr/bin/env bash
# mlperf-logging 4.1.68: what MLCommons' checkers of training submissions accept, refuse and break off on where a good guess fails.
#
# 1. Evaluations behind run_stop pass the compliance checker and break off the checker of reference points (RCPs), which reads no further.
# 2. samples_count 512000 and 512000.0 are one evaluation, 512000 and "512000" are two, the second of which breaks off the checker.
# 3. A key that has to be there once may be there twice with the same value, and `true` passes as 1.0.
# 4. Of the published reference points of round 5.0 only batch sizes 256 and 2048 count: a run of 512 is held to the line between them.
# 5. A number as host_processor_core_count breaks off the package checker; number_of_nodes may be one.
# 6. package_checker_params takes an option only on a last line without a line break.
# 7. The package checker ends with 0, whatever it finds.
#
#   findings/mlperf_checkers.sh
#
# installs the pinned package in a temporary folder, and fails if it behaves otherwise. FINDINGS_PYTHON names a Python that has it already.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python="${FINDINGS_PYTHON:-}"
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q mlperf-logging==4.1.68 numpy==2.4.6 scipy==1.17.1 pandas==3.1.1 pyyaml==6.0.4
fi
cd "$folder"
PYTHONDONTWRITEBYTECODE=1 "$python" - <<'PYTHON'
import importlib.metadata
import json
import os
import subprocess
import sys

OPTIMIZER = {
    "opt_name": "adamw", "opt_adamw_beta_1": 0.9, "opt_adamw_beta_2": 0.999, "opt_adamw_epsilon": 1e-8,
    "opt_adamw_weight_decay": 0.01, "opt_base_learning_rate": 1.2e-4, "opt_learning_rate_warmup_steps": 1000,
}
FIELDS = """submitter division status system_name number_of_nodes host_processors_per_node host_processor_model_name
host_processor_core_count host_processor_vcpu_count host_processor_frequency host_processor_caches host_processor_interconnect
host_memory_capacity host_storage_type host_storage_capacity host_networking host_networking_topology host_memory_configuration
accelerators_per_node accelerator_model_name accelerator_host_interconnect accelerator_frequency accelerator_on-chip_memories
accelerator_memory_configuration accelerator_memory_capacity accelerator_interconnect accelerator_interconnect_topology cooling
hw_notes framework other_software_stack operating_system sw_notes""".split()


def log(seed=1, points=((1536000, 95.0, 0.1), (2048000, 80.0, 0.2)), clip_samples=lambda n: n, late=False, **changes):
    """A closed Stable Diffusion log of round 5.0 that passes, or a change of it."""
    lines = []

    def put(key, value=None, **metadata):
        value = changes.get(key, value)
        line = {"namespace": "", "time_ms": len(lines), "event_type": "POINT_IN_TIME", "key": key, "value": value}
        lines.append(":::MLLOG " + json.dumps(line | {"metadata": {"file": "a.py", "lineno": 1} | metadata}))

    settings = {"submission_benchmark": "stable_diffusion", "submission_division": "closed", "cache_clear": True, "init_start": None}
    settings |= {"seed": seed, "train_samples": 9, "eval_samples": 9, "gradient_accumulation_steps": 1, "global_batch_size": 512}
    for key, value in (settings | OPTIMIZER | {"init_stop": None, "run_start": None}).items():
        put(key, value)
    put("block_start", samples_count=0)
    put("block_stop", samples_count=1)
    if late:
        put("run_stop", status="success")
    for samples, fid, clip in points:
        put("eval_accuracy", fid, metric="FID", samples_count=samples)
        put("eval_accuracy", clip, metric="CLIP", samples_count=clip_samples(samples))
    if not late:
        put("run_stop", status="success")
    return "\n".join(lines) + "\n"


def run(module, *arguments):
    found = subprocess.run([sys.executable, "-m", f"mlperf_logging.{module}", *arguments], capture_output=True, text=True)
    return found.returncode, found.stdout + found.stderr


def write(path, text):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def compliance(text):
    write("log.txt", text)
    code, said = run("compliance_checker", "--usage", "training", "--ruleset", "5.0.0", "log.txt")
    return "breaks off" if "Traceback" in said else "passes" if code == 0 else "fails"


def rcp(name, **changes):
    for seed in range(10):
        write(f"{name}/result_{seed}.txt", log(seed, **changes))
    return run("rcp_checker", "--rcp_version", "5.0.0", name)


def package(name, parameters=None, seeds=range(10), **fields):
    for index, seed in enumerate(seeds):
        write(f"{name}/results/box/stable_diffusion/result_{index}.txt", log(seed))
    description = dict.fromkeys(FIELDS, "") | {"division": "closed", "status": "Preview", "system_name": "box"} | fields
    write(f"{name}/systems/box.json", json.dumps(description))
    if parameters is not None:
        write(f"{name}/results/box/stable_diffusion/package_checker_params", parameters)
    code, said = run("package_checker", name, "training", "5.0.0")
    return code, "breaks off" if "Traceback" in said else "passes" if "NO ERRORS" in said else "fails"


def expect(what, found, expected):
    print(f"{what}: {found}")
    if found != expected:
        raise SystemExit(f"the checkers no longer behave as written above: {expected} was expected")


print("mlperf-logging", importlib.metadata.version("mlperf-logging"))
expect("a good log", compliance(log()), "passes")
expect("evaluations behind run_stop, compliance", compliance(log(late=True)), "passes")
expect("evaluations behind run_stop, reference points", "Traceback" in rcp("late", late=True)[1], True)
expect("samples_count 512000 and 512000.0", compliance(log(clip_samples=float)), "passes")
expect("samples_count 512000 and \"512000\"", compliance(log(clip_samples=str)), "breaks off")
expect("train_samples twice", compliance(log() + log().splitlines()[5] + "\n"), "passes")
expect("gradient_accumulation_steps true", compliance(log(gradient_accumulation_steps=True)), "passes")
expect("batch size 512 is interpolated", "RCP Interpolation, RCP test PASSED" in rcp("points")[1], True)
same = [0, 0, *range(2, 10)]
expect("a good package", package("good"), (0, "passes"))
expect("two runs of one seed", package("seeds", seeds=same), (0, "fails"))
expect("bypassed", package("bypass", "seed-checker-bypass", same), (0, "passes"))
expect("bypassed, with a line break", package("line", "seed-checker-bypass\n", same), (0, "fails"))
expect("a number of nodes", package("nodes", number_of_nodes=1), (0, "passes"))
expect("a number of cores", package("cores", host_processor_core_count=2), (1, "breaks off"))
PYTHON
