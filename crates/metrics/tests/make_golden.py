"""Makes tests/golden.json: what numpy, scipy and mpmath say about the features that tests/it/golden.rs generates.

    python -m venv venv && venv/bin/pip install numpy scipy mpmath && venv/bin/python make_golden.py > golden.json
"""

import json

import mpmath
import numpy as np
import scipy.linalg

MASK = (1 << 64) - 1


def features(n, d, seed, shift):
    """Correlated features of unequal spread. All arithmetic is on small integers, so Rust gets the same f32 bits."""
    state, rows = seed, []
    for _ in range(n):
        row, before = [], 0
        for column in range(d):
            state = (state * 6364136223846793005 + 1442695040888963407) & MASK
            value = state >> 54
            row.append(((value + 2 * before) * (column % 7 + 1) + shift * column) / 1024)
            before = value
        rows.append(row)
    result = np.array(rows, dtype=np.float32)
    assert np.array_equal(result.astype(np.float64), np.array(rows)), "not exact in f32"
    return result


def by_scipy(a, b):
    """The formula as in pytorch-fid; for covariances of full rank."""
    s1, s2 = (np.atleast_2d(np.cov(x.astype(np.float64), rowvar=False)) for x in (a, b))
    m1, m2 = (x.astype(np.float64).mean(axis=0) for x in (a, b))
    root = scipy.linalg.sqrtm(s1 @ s2)
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2) - 2 * np.trace(root).real)


def by_mpmath(a, b):
    """The formula in 60 digits, so that singular covariances are no problem."""
    mpmath.mp.dps = 60

    def statistics(x):
        x = mpmath.matrix(x.astype(np.float64).tolist())
        n, d = x.rows, x.cols
        mean = mpmath.matrix([[sum(x[i, j] for i in range(n)) / n for j in range(d)]])
        for i in range(n):
            x[i, :] = x[i, :] - mean
        return mean, x.T * x / (n - 1)

    def root(s):
        values, vectors = mpmath.eigsy(s)
        return vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T

    (m1, s1), (m2, s2) = statistics(a), statistics(b)
    r1 = root(s1)
    inner = r1 * s2 * r1
    cross = sum(mpmath.sqrt(max(v, 0)) for v in mpmath.eigsy((inner + inner.T) / 2, eigvals_only=True))
    trace = sum(s1[i, i] + s2[i, i] for i in range(s1.rows))
    return float(sum((x - y) ** 2 for x, y in zip(m1, m2)) + trace - 2 * cross)


def frechet_case(name, d, n1, n2, shift):
    a, b = features(n1, d, 1, 0), features(n2, d, 2, shift)
    case = {"name": name, "width": d, "rows": [n1, n2], "shift": shift, "mpmath": by_mpmath(a, b)}
    if min(n1, n2) > d:
        case["scipy"] = by_scipy(a, b)
    if d <= 4:
        case["mean"] = a.astype(np.float64).mean(axis=0).tolist()
        case["covariance"] = np.cov(a.astype(np.float64), rowvar=False).ravel().tolist()
    return case


def cosines(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def retrieval_case(n, k, d):
    images, candidates = features(n, d, 3, 0) - 1, features(n * k, d, 4, 0).reshape(n, k, d) - 1
    scores = cosines(images[:, None, :], candidates)
    correct = np.arange(n) % k
    rank = (scores >= scores[np.arange(n), correct][:, None]).sum(axis=1)
    return {
        "rows": n, "candidates": k, "width": d,
        "clip_score": float(cosines(images, candidates[:, 0]).mean()),
        "top1": float((rank <= 1).mean()), "top5": float((rank <= 5).mean()),
    }


print(json.dumps({
    "frechet": [
        frechet_case("narrow", 3, 300, 270, 5),
        frechet_case("wide", 24, 600, 100, 3),
        frechet_case("one side singular", 24, 300, 9, 3),
        frechet_case("both sides singular", 32, 12, 20, 1),
        frechet_case("one column", 1, 40, 50, 0),
    ],
    "retrieval": retrieval_case(60, 8, 12),
}, indent=1))
