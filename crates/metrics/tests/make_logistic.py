"""Makes tests/logistic.json: what scikit-learn's LogisticRegression finds for the features that tests/it/logistic.rs makes.

    python -m venv venv && venv/bin/pip install scikit-learn==1.9.1 && venv/bin/python make_logistic.py > logistic.json
"""

import json

import numpy as np
from sklearn.linear_model import LogisticRegression

MASK = (1 << 64) - 1


def data(rows, width, classes, seed):
    """Rows of small integers over 256, and classes that depend on them and on chance."""
    state, features, labels = seed, [], []
    for _ in range(rows):
        row = []
        for _ in range(width + 1):
            state = (state * 6364136223846793005 + 1442695040888963407) & MASK
            row.append((state >> 55) - 256)
        features.append([value / 256 for value in row[:width]])
        # The last number is chance.
        labels.append((2 * row[0] + row[1] + row[width] + 1024) * classes // 2048)
    return np.array(features), np.array(labels)


cases = []
for rows, width, classes, c in [(300, 6, 4, 0.316), (300, 6, 4, 100.0), (700, 3, 2, 0.316), (40, 60, 3, 10.0)]:
    features, labels = data(rows, width, classes, rows + classes)
    assert sorted(set(labels)) == list(range(classes)), np.bincount(labels)
    # Newton steps end closer to the minimum than those of L-BFGS, which is the same.
    fitted = LogisticRegression(C=c, solver="newton-cg", max_iter=100_000, tol=1e-14).fit(features, labels)
    cases.append(
        {
            "rows": rows,
            "width": width,
            "classes": classes,
            "c": c,
            "weights": fitted.coef_.tolist(),
            "bias": fitted.intercept_.tolist(),
            "probabilities": fitted.predict_proba(features[:5]).tolist(),
            "right": float(fitted.score(features, labels)),
        }
    )
    print(rows, width, classes, c, fitted.n_iter_, cases[-1]["right"], file=__import__("sys").stderr)
print(json.dumps(cases, indent=1))
