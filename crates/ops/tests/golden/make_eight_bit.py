"""Makes eight_bit.txt: moments in 8 bits, from bitsandbytes' code books and its AdamW8bit on the CPU.

    pip install torch numpy bitsandbytes==0.50.2
    python make_eight_bit.py > eight_bit.txt

Values are fractions that float32 holds exactly, made again by the test. Lines are: `codes` of either kind, the bits of the code book;
`rounded`, the nearest codes of the fractions (or of their squares) in blocks of 256, found by search in float64; `adamw8`, the bits
of every 50th parameter after 20 steps of AdamW8bit on 5,000 parameters, and `adamw` of the same in float32.

The nearest codes are not asked of bitsandbytes: `quantize_blockwise` on the CPU looks them up in a table of 65,536 steps, which takes
zero, and all below 1e-5 of the largest number, to 2e-5 of it.
"""

import bitsandbytes as bnb
import numpy as np
import torch
from bitsandbytes import functional as F

ELEMENTS, STEPS, EVERY, BLOCK = 5000, 20, 50, 256


def fractions(step, octaves):
    values = [(((i * 37 + step * 101) % 257) / 128 - 1) * 2.0 ** -((i * 7) % octaves) for i in range(ELEMENTS)]
    return torch.tensor(values, dtype=torch.float32)


def bits(tensor):
    return " ".join(f"{bits & 0xFFFFFFFF:08x}" for bits in tensor.detach().contiguous().view(torch.int32).tolist())


def nearest(book, values):
    blocks = [values[i : i + BLOCK] / np.abs(values[i : i + BLOCK]).max() for i in range(0, len(values), BLOCK)]
    return np.abs(np.concatenate(blocks)[:, None] - book[None]).argmin(1)


for kind, signed in (("signed", True), ("unsigned", False)):
    book = F.create_dynamic_map(signed)
    print("codes", kind, bits(book))
    values = fractions(0, 13)[:1000].double().numpy()
    codes = nearest(book.double().numpy(), values if signed else values**2)
    print("rounded", kind, " ".join(f"{code:02x}" for code in codes.tolist()))

for name, make in (("adamw8", bnb.optim.AdamW8bit), ("adamw", torch.optim.AdamW)):
    parameter = torch.nn.Parameter(fractions(0, 5))
    optimizer = make([parameter], lr=1e-2, weight_decay=0.1)
    for step in range(1, STEPS + 1):
        parameter.grad = fractions(step, 5)
        optimizer.step()
    print(name, "-", bits(parameter[::EVERY]))
