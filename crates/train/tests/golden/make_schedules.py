"""Makes schedules.txt: factors of the learning rate in a run of 100 steps, from the schedulers that ours are named after.

    pip install torch open_clip_torch==3.3.0
    python make_schedules.py > schedules.txt

Each line is a name and the factors for `last_epoch` = 0, 1, …, 110. Those called `torch_*` are of torch.optim.lr_scheduler; `ldm_*` are
LambdaLinearScheduler of CompVis's latent-diffusion (ldm/lr_scheduler.py) and `nemo_*` WarmupHoldPolicy and CosineAnnealing of NeMo
(nemo/core/optim/lr_scheduler.py), written again from their definitions; `open_clip_cosine` is of open_clip_train.scheduler.
"""

import math
import warnings

import torch
from open_clip_train.scheduler import cosine_lr
from torch.optim import lr_scheduler

warnings.simplefilter("ignore")
EPOCHS = 111


def by_torch(make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(EPOCHS):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return factors


def ldm(n, warm_up, start, top, bottom, cycle):
    """One cycle: up to the top in a line, then in a line that would begin at the cycle's start."""
    if n < warm_up:
        return start + (top - start) / warm_up * n
    return bottom + (top - bottom) * (cycle - n) / cycle


def nemo(n, warmup, hold, max_steps, least):
    if 0 < warmup and n <= warmup:
        return (n + 1) / (warmup + 1)
    if n < warmup + hold or n <= max_steps:
        return 1.0
    return least


def nemo_cosine(n, warmup, max_steps, least):
    if n <= warmup:
        return (n + 1) / (warmup + 1)
    if n > max_steps:
        return least
    return (1 - least) * 0.5 * (1 + math.cos(math.pi * (n - warmup) / (max_steps - warmup))) + least


def open_clip(warmup, steps, count):
    """Beyond its last step the rate would rise again."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    adjust = cosine_lr(optimizer, 1.0, warmup, steps)
    return [adjust(n) for n in range(count)]


LINES = {
    "torch_constant": by_torch(lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0)),
    "torch_linear": by_torch(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=50)),
    "torch_polynomial": by_torch(lambda o: lr_scheduler.PolynomialLR(o, total_iters=100, power=2.0)),
    "torch_step": by_torch(lambda o: lr_scheduler.StepLR(o, 30, 0.5)),
    "torch_multi_step": by_torch(lambda o: lr_scheduler.MultiStepLR(o, [30, 80], 0.5)),
    # Beyond T_max it would rise again.
    "torch_cosine": by_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, 100, eta_min=0.1))[:101],
    "ldm_mlperf": [ldm(n, 10, 1e-6, 1.0, 1.0, 10**13) for n in range(EPOCHS)],
    "ldm_falling": [ldm(n, 10, 1e-6, 1.0, 0.1, 120) for n in range(EPOCHS)],
    "nemo_hold": [nemo(n, 10, 10**13, 100, 0.0) for n in range(EPOCHS)],
    "nemo_ending": [nemo(n, 10, 20, 60, 0.1) for n in range(EPOCHS)],
    "open_clip_cosine": open_clip(10, 100, 101),
    "nemo_cosine": [nemo_cosine(n, 10, 100, 0.1) for n in range(EPOCHS)],
}
for name, factors in LINES.items():
    print(name, *(f"{factor:.15g}" for factor in factors))
