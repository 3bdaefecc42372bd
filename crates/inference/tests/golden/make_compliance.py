"""Makes compliance/: logs of LoadGen in all scenarios, and verdicts.json with what MLCommons' scripts say of them and of edited ones.

    python make_compliance.py REPOSITORY

with mlcommons-loadgen 6.0.17 and NumPy. REPOSITORY is a copy of github.com/mlcommons/inference of which compliance/ and
tools/submission/log_parser.py are needed; verdicts.json is that of commit b66003e1.

Detail logs are cut down to the lines that a verdict depends on.
"""

import array
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import mlperf_loadgen as lg

HERE = pathlib.Path(__file__).parent / "compliance"
SAMPLES = 20
# Lines of a detail log that are kept.
KEYS = (
    "effective_scenario|effective_target_latency_ns|effective_accuracy_log_(rng_seed|sampling_target)|num_errors|"
    "effective_performance_issue_same(_index)?|result_validity|result_samples_per_second|result_completed_samples_per_sec|"
    "early_stopping_latency_(ss|ms)"
)


def response(sample):
    """Four bytes that are another sample's only by chance."""
    return (sample * 2654435761 % 2**32).to_bytes(4, "little")


def settings(scenario, mode):
    s = lg.TestSettings()
    s.scenario, s.mode = getattr(lg.TestScenario, scenario), mode
    s.min_duration_ms, s.min_query_count = 100, {"Offline": 1, "Server": 600, "SingleStream": 70, "MultiStream": 700}[scenario]
    s.offline_expected_qps, s.server_target_qps = 100.0, 600.0
    s.server_target_latency_ns = 500_000_000
    return s


def run(scenario, mode, out, audit=None):
    """A run with LoadGen; it takes up audit.config in the working folder."""
    offline = scenario == "Offline"

    def answer(query):
        time.sleep(0.5 if offline else 0.002)
        for sample in query:
            data = array.array("B", response(sample.index))
            address, length = data.buffer_info()
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, address, length)])

    def issue(query):
        if scenario != "Server":
            return answer(query)
        threading.Thread(target=lambda: (answer(query), time.sleep(0.1))).start()

    def drop(_):
        pass

    with tempfile.TemporaryDirectory() as folder:
        before = os.getcwd()
        os.chdir(folder)
        if audit:
            shutil.copy(audit, "audit.config")
        output = lg.LogOutputSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        logs = lg.LogSettings()
        logs.log_output = output
        sut, qsl = lg.ConstructSUT(issue, lambda: None), lg.ConstructQSL(SAMPLES, SAMPLES, drop, drop)
        lg.StartTestWithLogSettings(sut, qsl, settings(scenario, mode), logs, "audit.config")
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)
        os.chdir(before)
        out.mkdir(parents=True)
        for name in ("accuracy.json", "summary.txt", "detail.txt"):
            text = (pathlib.Path(folder) / f"mlperf_log_{name}").read_text()
            if name == "detail.txt":
                text = "".join(line + "\n" for line in text.splitlines() if re.search(f'"key": "({KEYS})"', line))
            (out / f"mlperf_log_{name}").write_text(text)


def edits():
    """Cases: scenario, test, and what is replaced in which file of the scenario; the whole file if nothing is named."""
    accuracy, performance = "accuracy/mlperf_log_accuracy.json", "performance/run_1/mlperf_log_"
    for scenario in ("Offline", "Server", "SingleStream", "MultiStream"):
        for test in ("TEST01", "TEST04"):
            detail, summary = f"{test}/mlperf_log_detail.txt", f"{test}/mlperf_log_summary.txt"
            yield scenario, test, []
            for name in (performance, f"{test}/mlperf_log_"):
                invalid = [
                    [name + "detail.txt", '"result_validity", "value": "VALID"', '"result_validity", "value": "INVALID"'],
                    [name + "summary.txt", "Result is : VALID", "Result is : INVALID"],
                ]
                errors = [
                    [name + "detail.txt", '"num_errors", "value": 0', '"num_errors", "value": 2'],
                    [name + "summary.txt", "No errors encountered during test.", "2 ERRORS encountered. See detailed log."],
                ]
                yield scenario, test, invalid
                yield scenario, test, errors
            if scenario == "Offline":
                for factor in (0.5, 0.89, 0.91, 1.09, 1.11):
                    yield scenario, test, [scaled(scenario, detail, factor), scaled(scenario, summary, factor)]
                yield scenario, test, [
                    [detail, '"effective_scenario", "value": "Offline"', '"effective_scenario", "value": "Server"'],
                    [detail, "result_samples_per_second", "result_completed_samples_per_sec"],
                    [summary, "Scenario : Offline", "Scenario : Server"],
                    [summary, "Samples per second", "Completed samples per second"],
                ]
    log = (HERE / "Offline" / accuracy).read_text()
    entries = [line.rstrip(",") for line in log.splitlines()[1:-1]]
    pattern = re.compile('"qsl_idx" : (\\d+), "data" : "(..)(....)(..)"')
    # One whose bytes are none of those that take their place.
    entries.sort(key=lambda entry: pattern.search(entry).group(2) == "00")
    first = pattern.search(entries[0])
    sample, head, middle, tail = first.groups()
    whole = f'"qsl_idx" : {sample}, "data" : "{head}{middle}{tail}"'
    tested = "TEST01/mlperf_log_accuracy.json"
    for file in (tested, accuracy):
        for other in ("00" + middle + tail, head + middle + "00", head, ""):
            yield "Offline", "TEST01", [[file, whole, f'"qsl_idx" : {sample}, "data" : "{other}"']]
        yield "Offline", "TEST01", [[file, whole, whole.replace(f" {sample},", " 999,")]]
        yield "Offline", "TEST01", [[file, "", "[\n]\n"]]
        doubled = f"{entries[0]},\n{entries[0].replace(tail + chr(34), '00' + chr(34))}"
        yield "Offline", "TEST01", [[file, entries[0], doubled]]
    both = [[file, whole, f'"qsl_idx" : {sample}, "data" : ""'] for file in (tested, accuracy)]
    yield "Offline", "TEST01", both


def scaled(scenario, name, factor):
    """An edit that multiplies the score of a log."""
    text = (HERE / scenario / name).read_text()
    pattern = '"result_samples_per_second", "value": ([\\d.]+)' if "detail" in name else "Samples per second: ([\\d.]+)"
    found = re.search(pattern, text)
    reference = re.search(pattern, (HERE / scenario / "performance/run_1" / pathlib.Path(name).name).read_text()).group(1)
    return [name, found.group(0), found.group(0).replace(found.group(1), f"{float(reference) * factor:.4f}")]


def verdict(repository, scenario, test, changes):
    """What run_verification.py writes of edited logs, without the lines of its own log, and with FOLDER for the logs' folder."""
    with tempfile.TemporaryDirectory() as folder:
        logs = pathlib.Path(folder) / "logs"
        shutil.copytree(HERE / scenario, logs)
        for name, old, new in changes:
            text = (logs / name).read_text()
            assert old in text, (scenario, test, name, old)
            (logs / name).write_text(text.replace(old, new, 1) if old else new)
        script = repository / "compliance" / test / "run_verification.py"
        command = [sys.executable, script, "-r", logs, "-c", logs / test, "-o", "out"]
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        subprocess.run(command, cwd=folder, check=True, capture_output=True, env=environment)

        def text(name):
            path = pathlib.Path(folder) / "out" / test / name
            if not path.exists():
                return None
            lines = [line for line in path.read_text().splitlines(True) if not re.match("\\[\\d{4}-.* INFO\\]", line)]
            text = "".join(lines).replace(str(logs), "FOLDER")
            # Of a script that broke off, the error's name.
            return re.sub(r"Traceback \(most recent call last\):\n(?: .*\n)*(\w+)(?::.*)?\n", r"\1\n", text)

        return dict(accuracy=text("verify_accuracy.txt"), performance=text("verify_performance.txt"))


def main():
    repository = pathlib.Path(sys.argv[1]).absolute()
    shutil.rmtree(HERE, ignore_errors=True)
    for scenario in ("Offline", "Server", "SingleStream", "MultiStream"):
        run(scenario, lg.TestMode.AccuracyOnly, HERE / scenario / "accuracy")
        run(scenario, lg.TestMode.PerformanceOnly, HERE / scenario / "performance" / "run_1")
        for test, config in (("TEST01", "TEST01/stable-diffusion-xl"), ("TEST04", "TEST04")):
            audit = repository / "compliance" / config / "audit.config"
            run(scenario, lg.TestMode.PerformanceOnly, HERE / scenario / test, audit)
    cases = [
        dict(scenario=scenario, test=test, edits=changes, **verdict(repository, scenario, test, changes))
        for scenario, test, changes in edits()
    ]
    lines = ",\n".join(json.dumps(case) for case in cases)
    (HERE / "verdicts.json").write_text(f"[\n{lines}\n]\n")
    for case in cases:
        last = [(case[kind] or "-\n").strip().splitlines()[-1] for kind in ("accuracy", "performance")]
        print(case["scenario"], case["test"], [name for name, _, _ in case["edits"]], *last)


main()
