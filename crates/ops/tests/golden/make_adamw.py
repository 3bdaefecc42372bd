"""Makes adamw.txt: parameters and moments after 20 steps of torch.optim.AdamW (single tensors), on the CPU in float32.

    pip install torch numpy
    python make_adamw.py > adamw.txt

Each line is a case's name, `parameter`, `mean` or `square`, and the bits of its elements. Parameters and gradients are fractions that
float32 holds exactly; the rate is `lr`, or in the cases called `changing` `lr (1 + (step % 3) / 4)`. Square roots are NumPy's, which
are rounded correctly: those of torch on the CPU are off by one in the last place for a fifth of all numbers.
"""

import numpy as np
import torch

ELEMENTS, STEPS = 37, 20
torch.Tensor.sqrt = lambda values: torch.from_numpy(np.sqrt(values.detach().numpy()))


def fractions(step):
    return torch.tensor([((i * 37 + step * 101) % 257) / 128 - 1 for i in range(ELEMENTS)], dtype=torch.float32)


CASES = {
    "usual": dict(lr=1e-2),
    "other": dict(lr=1e-2, betas=(0.5, 0.95), eps=1e-6, weight_decay=0.3),
    "plain": dict(lr=3e-4, betas=(0.9, 0.98), weight_decay=0.0),
    "changing": dict(lr=1e-2, betas=(0.8, 0.99), eps=1e-5, weight_decay=0.1),
}

for name, settings in CASES.items():
    parameter = torch.nn.Parameter(fractions(0))
    optimizer = torch.optim.AdamW([parameter], foreach=False, fused=False, **settings)
    for step in range(1, STEPS + 1):
        if name == "changing":
            optimizer.param_groups[0]["lr"] = settings["lr"] * (1 + (step % 3) / 4)
        parameter.grad = fractions(step)
        optimizer.step()
    state = optimizer.state[parameter]
    for what, values in ("parameter", parameter), ("mean", state["exp_avg"]), ("square", state["exp_avg_sq"]):
        bits = values.detach().view(torch.int32).tolist()
        print(name, what, *(f"{bits & 0xFFFFFFFF:08x}" for bits in bits))
