#!/usr/bin/env python3
"""Writes the logs of tests/golden/loadgen/ with MLCommons' own LoadGen (pip install mlcommons-loadgen==6.0.17).

    python3 make_loadgen.py FOLDER

Each run has 50 samples, as the student competition's smallest variant, a system that waits some milliseconds, and the settings of
user.conf, which shorten it; everything else is LoadGen's mlperf.conf for stable-diffusion-xl. Every run is a process of its own, for
LoadGen reads mlperf.conf once in a process. Times and identifiers in the logs differ from one making to the next.
"""
import array
import os
import subprocess
import sys
import threading
import time

SAMPLES = 50
USER_CONF = """# 50 samples and no least duration: a short run, for the tests of Calotype.
stable-diffusion-xl.*.performance_sample_count_override = 50
*.*.min_duration = 0
*.Offline.min_query_count = 50
*.Offline.target_qps = 20
*.Server.target_qps = 250
*.Server.min_query_count = 500
*.SingleStream.target_latency = 5
*.SingleStream.min_query_count = 700
*.MultiStream.target_latency = 40
*.MultiStream.min_query_count = 700
"""
SCENARIOS = ["Offline", "Server", "SingleStream", "MultiStream"]
# Names of the runs' folders, LoadGen's modes.
MODES = {"performance": "PerformanceOnly", "accuracy": "AccuracyOnly"}


def payload(index):
    """Bytes of a sample, as many as keep the log of all samples above the size from which it is shortened."""
    return bytes((index * 37 + position) % 256 for position in range(160))


def run(folder, scenario, mode):
    import mlperf_loadgen as lg

    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, scenario)
    settings.mode = getattr(lg.TestMode, mode)
    if settings.FromConfig(os.path.join(folder, "user.conf"), "stable-diffusion-xl", scenario) != 0:
        raise SystemExit("LoadGen does not read user.conf")
    ended = threading.Event()

    def answer(query):
        def work():
            time.sleep(0.002)
            for sample in query:
                data = array.array("B", payload(sample.index))
                lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, data.buffer_info()[0], len(data))])
            # LoadGen 6.0.17 writes its logs from the threads that answered: they have to live until it is done.
            ended.wait()

        threading.Thread(target=work).start()

    system = lg.ConstructSUT(answer, lambda: None)
    library = lg.ConstructQSL(SAMPLES, SAMPLES, lambda samples: None, lambda samples: None)
    output = lg.LogOutputSettings()
    output.outdir = folder
    output.copy_summary_to_stdout = False
    logging = lg.LogSettings()
    logging.log_output = output
    logging.enable_trace = False
    lg.StartTestWithLogSettings(system, library, settings, logging)
    ended.set()
    lg.DestroyQSL(library)
    lg.DestroySUT(system)


def main(target):
    for scenario in SCENARIOS:
        for name, mode in MODES.items():
            folder = os.path.join(target, scenario, name)
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, "user.conf"), "w") as file:
                file.write(USER_CONF)
            subprocess.run([sys.executable, __file__, "--run", folder, scenario, mode], check=True)
            for left in ["mlperf_log_trace.json", "user.conf"]:
                os.remove(os.path.join(folder, left))
            if name == "performance" or scenario != "Offline":
                os.remove(os.path.join(folder, "mlperf_log_accuracy.json"))
    with open(os.path.join(target, "user.conf"), "w") as file:
        file.write(USER_CONF)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(*sys.argv[2:5])
    elif len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        main(sys.argv[1])
    else:
        sys.exit(__doc__)
