"""Makes optimizers.txt: parameters after 20 steps of torch.optim, on the CPU in float32.

    python make_optimizers.py > optimizers.txt

Parameters and gradients are fractions that float32 holds exactly. Each line is a case's name and the bits of its elements.
"""

import torch

ELEMENTS, STEPS = 37, 20


def fractions(step):
    return torch.tensor([((i * 37 + step * 101) % 257) / 128 - 1 for i in range(ELEMENTS)], dtype=torch.float32)


CASES = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw_other": lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.5, 0.95), eps=1e-6, weight_decay=0.3),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2),
    "sgd_decay": lambda p: torch.optim.SGD(p, lr=1e-2, weight_decay=0.1),
    "sgd_momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "sgd_dampening": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, dampening=0.3),
    "sgd_nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1, nesterov=True),
}

for name, make in CASES.items():
    parameter = torch.nn.Parameter(fractions(0))
    optimizer = make([parameter])
    for step in range(1, STEPS + 1):
        parameter.grad = fractions(step)
        optimizer.step()
    print(name, *(f"{bits & 0xFFFFFFFF:08x}" for bits in parameter.detach().view(torch.int32).tolist()))
