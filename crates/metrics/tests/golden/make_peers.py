"""Makes peers.json: what the field's packages say about features that tests/it/peers.rs generates.

    python -m venv venv && venv/bin/pip install numpy==2.4.6 scipy==1.17.1 torch==2.15.0 torchvision \
        pytorch-fid==0.3.0 clean-fid==0.1.35 torch-fidelity==0.4.0 torchmetrics==1.9.0 prdc==0.2
    OMP_NUM_THREADS=1 venv/bin/python make_peers.py > peers.json

Features are given to the packages in f64, so that their own rounding does not hide a difference of definition.
"""

import contextlib
import io
import json
import sys
import warnings
from importlib.metadata import version

import numpy as np
import torch

with contextlib.redirect_stdout(sys.stderr):
    from cleanfid import fid as clean
    from prdc import compute_prdc
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
MASK = (1 << 64) - 1


def features(n, d, seed, shift=0):
    """Correlated features of unequal spread, as in tests/it/features.rs: small integers over 1,024, exact in f32."""
    state, rows = seed, []
    for _ in range(n):
        row, before = [], 0
        for column in range(d):
            state = (state * 6364136223846793005 + 1442695040888963407) & MASK
            value = state >> 54
            row.append(((value + 2 * before) * (column % 7 + 1) + shift * column) / 1024 - 4)
            before = value
        rows.append(row)
    return np.array(rows, dtype=np.float64)


class Identity(torch.nn.Module):
    """Features that are given as pictures."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, x):
        return x


def frechet(d, n1, n2, shift):
    a, b = features(n1, d, 1), features(n2, d, 2, shift)
    statistics = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b)]
    (m1, s1), (m2, s2) = statistics
    fidelity = [metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    metric = FrechetInceptionDistance(feature=Identity(d)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(a), real=True)
    metric.update(torch.from_numpy(b), real=False)
    return {
        "width": d, "rows": [n1, n2], "shift": shift,
        "pytorch-fid": float(calculate_frechet_distance(m1, s1, m2, s2)),
        "clean-fid": float(clean.frechet_distance(m1, s1, m2, s2)),
        "torch-fidelity": metric_fid.fid_statistics_to_metric(*fidelity, False)["frechet_inception_distance"],
        "torchmetrics": float(metric.compute()),
    }


def kid(d, n, m, subsets, size, seed, degree=3, gamma=None, coefficient=1.0):
    x, y = features(n, d, 5), features(m, d, 6, 2)
    fidelity = metric_kid.kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=subsets, kid_subset_size=size, rng_seed=seed, verbose=False,
        kid_kernel_poly_degree=degree, kid_kernel_poly_gamma=gamma, kid_kernel_poly_coef0=coefficient,
    )
    metric = KernelInceptionDistance(
        feature=Identity(d), subsets=subsets, subset_size=size, degree=degree, gamma=gamma, coef=coefficient)
    metric.update(torch.from_numpy(y), real=True)
    metric.update(torch.from_numpy(x), real=False)
    torch.manual_seed(seed)
    mean, deviation = metric.compute()
    case = {
        "width": d, "rows": [n, m], "subsets": subsets, "size": size, "seed": seed,
        "degree": degree, "gamma": gamma, "coefficient": coefficient,
        "torch-fidelity": [fidelity[metric_kid.KEY_METRIC_KID_MEAN], fidelity[metric_kid.KEY_METRIC_KID_STD]],
        "torchmetrics": [float(mean), float(deviation)],
    }
    if (degree, gamma, coefficient) == (3, None, 1.0):
        np.random.seed(seed)
        case["clean-fid"] = [clean.kernel_distance(x, y, num_subsets=subsets, max_subset_size=size), None]
    return case


def score(n, classes, splits, seed):
    logits = features(n, classes, 7)
    def by_fidelity(shuffle):
        result = metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits, shuffle, seed)
        return [result[metric_isc.KEY_METRIC_ISC_MEAN], result[metric_isc.KEY_METRIC_ISC_STD]]
    metric = InceptionScore(feature=Identity(classes), splits=splits)
    metric.update(torch.from_numpy(logits))
    torch.manual_seed(seed)
    # The deviation of a single split is NaN there.
    by_torchmetrics = [float(value) if value == value else None for value in metric.compute()]
    return {
        "rows": n, "classes": classes, "splits": splits, "seed": seed, "torch-fidelity": by_fidelity(True),
        "as given": by_fidelity(False), "torchmetrics": by_torchmetrics,
    }


def neighbourhoods(d, n, m, k):
    x, y = features(n, d, 8), features(m, d, 9, 3)
    closed = metric_prc.prc_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), prc_neighborhood=k, prc_batch_size=10000, save_cpu_ram=False,
        verbose=False)
    with contextlib.redirect_stdout(io.StringIO()):
        opened = compute_prdc(y, x, k)
    return {
        "width": d, "rows": [n, m], "neighbours": k,
        "torch-fidelity": [closed["precision"], closed["recall"], closed["f_score"]],
        "prdc": [float(opened[name]) for name in ("precision", "recall", "density", "coverage")],
    }


def cmmd(d, n, m):
    """Equation 3 of arXiv:2401.09603 with all pairs, as google-research/cmmd takes the means."""
    x, y = features(n, d, 10), features(m, d, 11, 2)
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    def mean(a, b):
        distances = ((a[:, None] - b[None]) ** 2).sum(axis=2)
        return np.exp(-distances / (2 * 10.0**2)).mean()
    return {"width": d, "rows": [n, m], "formula": 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))}


def ties(n, values, seed):
    state, scores = seed, []
    for _ in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        scores.append((state >> 40) % values)
    scores = torch.tensor(scores, dtype=torch.float32)
    order = torch.argsort(scores, descending=True).tolist()
    return {
        "rows": n, "values": values, "seed": seed,
        "topk": {str(k): torch.topk(scores, k).indices.tolist() for k in (1, 5, 10) if k <= n},
        "argsort": order[:40], "argsort sum": sum((place + 1) * index for place, index in enumerate(order)),
    }


names = ["numpy", "scipy", "torch", "pytorch-fid", "clean-fid", "torch-fidelity", "torchmetrics", "prdc"]
result = {
    "versions": {name: version(name) for name in names},
    "frechet": [frechet(24, 600, 300, 3), frechet(48, 90, 700, 0), frechet(32, 12, 20, 1), frechet(24, 300, 9, 3)],
    "kid": [
        kid(16, 120, 90, 6, 40, 2020), kid(8, 50, 50, 3, 50, 7), kid(600, 40, 30, 2, 30, 1),
        kid(5, 700, 600, 2, 560, 3), kid(12, 60, 80, 4, 25, 9, degree=2, gamma=0.125, coefficient=0.5),
    ],
    "inception score": [score(103, 11, 10, 2020), score(40, 5, 1, 3), score(29, 30, 6, 2020)],
    "neighbourhoods": [neighbourhoods(6, 300, 280, 3), neighbourhoods(10, 90, 120, 5), neighbourhoods(2, 700, 300, 1)],
    "cmmd": [cmmd(12, 70, 50), cmmd(5, 300, 20)],
    "ties": [ties(n, values, n + values) for n, values in [
        (1, 1), (2, 1), (3, 2), (5, 1), (10, 1), (16, 3), (17, 1), (17, 4), (40, 1), (40, 6), (100, 1), (100, 9),
        (320, 1), (320, 20), (321, 2), (640, 1), (1000, 3), (1000, 1), (1000, 250), (5000, 40)]],
}
print(json.dumps(result, indent=1))
