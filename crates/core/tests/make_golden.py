"""Golden values of PyTorch's CPU generator: writes golden/torch_random.txt.

    python crates/core/tests/make_golden.py

A line per seed and type holds calls in their order, each with a generator that continues:
`<dtype> <seed> <call> ...`, a call being `<n|u><size>=<hash>:<bits>,<bits>,...`: randn or rand, the FNV-1a hash of the
bits of all numbers, and the bits of the first and the last numbers.
"""

import pathlib

import torch

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64, torch.float16: torch.int16, torch.bfloat16: torch.int16}
BITS = {torch.float32: 32, torch.float64: 64, torch.float16: 16, torch.bfloat16: 16}
SIZES = [
    [1, 5, 15, 16, 17, 31, 100, 1],
    [3, 33, 2, 16, 1, 15],
    [100, 1, 700],
]
SEEDS = [0, 1, 42, 1234567, 2**32 - 1, 2**32 + 7]


def fnv(words, size):
    value = 0xCBF29CE484222325
    for word in words:
        for shift in range(0, size, 8):
            value = ((value ^ (word >> shift & 0xFF)) * 0x100000001B3) & (2**64 - 1)
    return value


def call(kind, size, generator, dtype):
    draw = torch.randn if kind == "n" else torch.rand
    bits = BITS[dtype]
    words = [w & (2**bits - 1) for w in draw(size, generator=generator, dtype=dtype).view(INTEGERS[dtype]).tolist()]
    shown = words if size <= 33 else words[:8] + words[-16:]
    return f"{kind}{size}={fnv(words, bits):016x}:" + ",".join(f"{w:x}" for w in shown)


def main():
    lines = [f"torch {torch.__version__.split('+')[0]} with {torch.backends.cpu.get_cpu_capability()}"]
    for dtype in INTEGERS:
        name = str(dtype).removeprefix("torch.")
        for i, seed in enumerate(SEEDS):
            generator = torch.Generator("cpu").manual_seed(seed)
            calls = [("n", size) for size in SIZES[i % len(SIZES)]] + [("u", 20), ("n", 18)]
            if seed == 42 or (seed == 0 and dtype == torch.float32):
                calls += [("n", 16384), ("u", 16384)]
            lines.append(f"{name} {seed} " + " ".join(call(*c, generator, dtype) for c in calls))
    path = pathlib.Path(__file__).parent / "golden" / "torch_random.txt"
    path.write_text("\n".join(lines) + "\n")


main()
