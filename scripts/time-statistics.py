"""Times numpy's covariance and scipy's matrix square root on 2,048 features, in turn with Calotype's (see
docs/benchmarks.md):

    cargo build --release -p calotype-metrics --example time_statistics
    python -m venv venv && venv/bin/pip install numpy==2.4.6 scipy==1.17.1
    OMP_NUM_THREADS=2 venv/bin/python scripts/time-statistics.py target/release/examples/time_statistics

Features are made anew here: neither program's time depends on their values.
"""

import os
import re
import statistics
import subprocess
import sys
import time
import warnings

import numpy as np
import scipy.linalg

warnings.filterwarnings("ignore")
ROWS, WIDTH, ROUNDS = 30_000, 2048, 3
threads = os.environ["OMP_NUM_THREADS"]

generator = np.random.default_rng(1)
features = generator.random((ROWS, WIDTH), dtype=np.float32)
features[:, 1:] += np.float32(0.7) * features[:, :-1]
features /= 1 + np.arange(WIDTH, dtype=np.float32) // 8
other = np.cov(features[: ROWS // 3], rowvar=False)

times = {name: [] for name in ("numpy mean and cov", "scipy sqrtm", "statistics", "distance")}


def timed(name, function):
    start = time.perf_counter()
    result = function()
    times[name].append(time.perf_counter() - start)
    return result


for _ in range(ROUNDS):
    _, sigma = timed("numpy mean and cov", lambda: (features.mean(axis=0), np.cov(features, rowvar=False)))
    product = sigma.dot(other)
    timed("scipy sqrtm", lambda: scipy.linalg.sqrtm(product))
    line = subprocess.run([sys.argv[1], str(ROWS), "1", threads], capture_output=True, text=True, check=True).stdout
    found = re.search(r"statistics ([\d.]+) s .*distance ([\d.]+) s", line)
    times["statistics"].append(float(found[1]))
    times["distance"].append(float(found[2]))

median = {name: statistics.median(values) for name, values in times.items()}
for name, values in times.items():
    print(f"{name:20s} {median[name]:8.3f} s   {' '.join(f'{value:.3f}' for value in values)}")
print(f"statistics {median['numpy mean and cov'] / median['statistics']:.2f}x, "
      f"distance {median['scipy sqrtm'] / median['distance']:.2f}x")
