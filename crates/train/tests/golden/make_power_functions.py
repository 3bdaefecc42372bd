"""Makes power_functions.txt from the formulas of Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models".

    python make_power_functions.py > power_functions.txt

Lines are: `gamma` with a relative width and the exponent that the cubic equation of appendix C gives for it; `decay` with a width, samples
seen, samples since the last update and the decay of equation 2; `fit` with the width and time of an average that is wanted, then width,
time and coefficient of each snapshot (algorithm 3), of which the sum is one.
"""

import numpy as np

print_numbers = lambda what, numbers: print(what, *(repr(float(number)) for number in numbers))


def exponent(width):
    t = width**-2.0
    return np.roots([1, 7, 16 - t, 12 - t]).real.max()


def product(a, b):
    """The integral of two profiles (width, time) over all times."""
    (early, late) = sorted([a, b], key=lambda snapshot: snapshot[1])
    p, q = exponent(early[0]), exponent(late[0])
    return (p + 1) * (q + 1) / (p + q + 1) * (early[1] / late[1]) ** q / late[1]


for width in (0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.28):
    print_numbers("gamma", (width, exponent(width)))
for width, samples, interval in ((0.05, 64, 64), (0.05, 128, 64), (0.1, 6400, 64), (0.1, 10**9, 2048), (0.2, 1000, 999)):
    decay = (1 - interval / samples) ** (exponent(width) + 1)
    print_numbers("decay", (width, samples, interval, decay))

for wanted, times in (
    ((0.12, 4000), (2000, 4000)),
    ((0.07, 4000), (1000, 2000, 3000, 4000)),
    ((0.2, 3500), (1000, 2000, 3000)),
    ((0.05, 4000), (2000, 4000)),
):
    snapshots = [(width, time) for time in times for width in (0.05, 0.1)]
    matrix = np.array([[product(a, b) for b in snapshots] for a in snapshots])
    coefficients = np.linalg.solve(matrix, np.array([product(a, wanted) for a in snapshots]))
    coefficients /= coefficients.sum()
    print_numbers("fit", [*wanted, *(x for (width, time), c in zip(snapshots, coefficients) for x in (width, time, c))])
