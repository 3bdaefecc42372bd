#!/usr/bin/env python3
"""A model of the time of a data-parallel training step, held against published scaling tables.

    scripts/step_time.py [--measured FILE]

Prints the tables of docs/distributed.md. FILE is JSON, figures of own runs, of which the row of one rank is the model's
input and the others are compared:

    {"gradient_bytes": 3463642880, "bytes_per_second": 4e9, "latency": 2e-5, "optimizer_seconds": 0.2,
     "rows": [{"ranks": 1, "images_per_rank": 4, "seconds": 5.2}, {"ranks": 2, "images_per_rank": 2, "seconds": 2.7}]}

Nothing is fitted: a table's first row gives the seconds of an image on one device, all else is hardware data. The last
column shows what the published figures say beside: with the cost of a step that does not depend on the batch, as the
first two rows have it.
"""

import argparse
import json
import math
from dataclasses import dataclass

# Stable Diffusion 2's UNet.
PARAMETERS = 865_910_724
# A backward pass takes about twice the time of the forward pass, and gradients come about during all of it.
BACKWARD = 2 / 3
# Bytes that AdamW moves for a parameter: weight, two moments and gradient read, three written, in f32.
STEP_BYTES = 28


@dataclass(frozen=True)
class Hardware:
    """Devices in nodes of eight. Bandwidths are one way, in bytes per second and device; latency is of one message."""

    name: str
    memory: float
    inside: float
    between: float
    latency: float
    per_node: int = 8


# Data sheets: H100 SXM (HBM3 3.35 TB/s, NVLink 900 GB/s both ways), DGX H100 (one 400 Gb/s adapter a device); A100 SXM 80 GB
# (2.04 TB/s, NVLink 600 GB/s both ways), DGX A100 (one 200 Gb/s adapter a device). Five microseconds a message.
H100 = Hardware("H100", 3.35e12, 450e9, 50e9, 5e-6)
A100 = Hardware("A100", 2.04e12, 300e9, 25e9, 5e-6)

# devices, images of a device in a step, images per second of all.
TABLES = [
    (
        "MLPerf v3.1, NVIDIA and Dell, 512x512 (logs)",
        H100,
        2,
        [(8, 64, 939), (64, 32, 6_775), (512, 4, 23_782), (1024, 2, 28_045)],
    ),
    ("MLPerf v4.1, NVIDIA, 512x512 (logs)", H100, 2, [(8, 32, 1_099), (64, 16, 7_968), (512, 4, 39_327)]),
    (
        "Mosaic diffusion-benchmark, 512x512, encoders in training (README)",
        A100,
        4,
        [(8, 256, 128.2), (16, 128, 254.0), (32, 64, 485.7), (64, 32, 912.2), (128, 16, 1_618.4), (256, 8, 2_589.4)],
    ),
    (
        "NeMo, 512x512, A100 (user guide)",
        A100,
        4,
        [(8, 32, 199.98), (16, 32, 390.60), (32, 32, 786.78), (64, 32, 1_504.99), (128, 32, 2_952.49)],
    ),
    (
        "NeMo, 512x512, H100 (user guide)",
        H100,
        4,
        [(8, 32, 419.47), (16, 32, 840.86), (32, 32, 1_591.79), (64, 32, 3_090.85), (128, 32, 6_056.48)],
    ),
]
# Bytes of memory that a step of our own optimizer moves for a parameter: weight and two moments read and written, gradient read, packed
# weight written.
OWN_STEP_BYTES = 30
# As `BUCKET_BYTES` of crates/collective.
BUCKET = 4 << 20


def all_reduce(devices: int, size: float, hardware: Hardware, bucket: float = BUCKET) -> float:
    """Seconds to sum `size` bytes over all devices: scattered and gathered in each node, between them by every device's own
    adapter; a message for each bucket, and for each stage of the first one."""
    local = min(devices, hardware.per_node)
    nodes = math.ceil(devices / hardware.per_node)
    inside = 2 * (local - 1) / local * size / hardware.inside
    between = 2 * (nodes - 1) / nodes * size / local / hardware.between
    # Buckets follow each other through the stages of a tree.
    stages = 2 * math.ceil(math.log2(devices)) if devices > 1 else 0
    return inside + between + (stages + math.ceil(size / bucket)) * hardware.latency


def step(compute: float, fixed: float, communication: float, buckets: int) -> float:
    """compute + fixed + what of communication does not fit behind the backward pass; the last bucket never does."""
    hidden = min(communication * (1 - 1 / max(buckets, 1)), BACKWARD * compute)
    return compute + fixed + communication - hidden


def predictions(hardware: Hardware, element: int, rows: list) -> list:
    """For each row: published and predicted seconds of a step, from hardware alone and with the first two rows' fixed cost."""
    size = PARAMETERS * element
    buckets = math.ceil(size / BUCKET)
    update = PARAMETERS * STEP_BYTES / hardware.memory
    seconds = [devices * images / rate for devices, images, rate in rows]
    communication = [all_reduce(devices, size, hardware) for devices, _, _ in rows]

    def overhead(i: int, compute: float) -> float:
        return step(compute, update, communication[i], buckets) - compute

    # The first row's images, without what else its step holds.
    per_image = (seconds[0] - overhead(0, seconds[0])) / rows[0][1]
    if rows[0][1] == rows[1][1]:
        slope, fixed = per_image, max(0.0, seconds[1] - (per_image * rows[1][1] + overhead(1, per_image * rows[1][1])))
    else:
        slope = (seconds[0] - seconds[1]) / (rows[0][1] - rows[1][1])
        fixed = max(0.0, seconds[0] - slope * rows[0][1] - overhead(0, slope * rows[0][1]))
    result = []
    for i, (devices, images, _) in enumerate(rows):
        plain, with_fixed = per_image * images, slope * images
        extra = fixed if rows[0][1] != rows[1][1] or i > 0 else 0.0
        result.append(
            (devices, images, seconds[i], plain + overhead(i, plain), with_fixed + extra + overhead(i, with_fixed))
        )
    return result


def print_table(name: str, hardware: Hardware, element: int, rows: list) -> None:
    print(f"{name}; gradients of {element} bytes, {hardware.name}:\n")
    print("| devices | images each | published s | model s | error | with a fixed cost | error |")
    print("|---|---|---|---|---|---|---|")
    for devices, images, published, plain, fixed in predictions(hardware, element, rows):
        errors = [f"{100 * (value / published - 1):+.0f} %" for value in (plain, fixed)]
        print(f"| {devices} | {images} | {published:.3f} | {plain:.3f} | {errors[0]} | {fixed:.3f} | {errors[1]} |")
    print()


def print_measured(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        measured = json.load(file)
    rows = {row["ranks"]: row for row in measured["rows"]}
    if 1 not in rows:
        raise SystemExit(f"error: {path} has no row of 1 rank, which is the model's input")
    size, cores = measured["parameters"] * 4, measured["cores"]
    buckets = math.ceil(size / BUCKET)

    def update(row: dict) -> float:
        return measured["parameters"] * OWN_STEP_BYTES / row["memory_bytes_per_second"]

    per_image = (rows[1]["seconds"] - update(rows[1])) / rows[1]["images_per_rank"]
    print("| ranks | images each | measured s | model s | error |")
    print("|---|---|---|---|---|")
    for ranks, row in sorted(rows.items()):
        # Every process is a node of its own; more processes than cores take turns.
        turns = max(1.0, ranks / cores)
        hardware = Hardware("", 1.0, math.inf, row.get("bytes_per_second", math.inf), row.get("latency", 0.0), per_node=1)
        communication = all_reduce(ranks, size, hardware) if ranks > 1 else 0.0
        # What is hidden behind the backward pass takes the same core.
        compute = turns * per_image * row["images_per_rank"]
        seconds = compute + update(row) + communication
        error = 100 * (seconds / row["seconds"] - 1)
        print(f"| {ranks} | {row['images_per_rank']} | {row['seconds']:.3f} | {seconds:.3f} | {error:+.0f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", metavar="FILE", help="figures of own runs")
    arguments = parser.parse_args()
    if arguments.measured:
        print_measured(arguments.measured)
        return
    for table in TABLES:
        print_table(*table)


if __name__ == "__main__":
    main()
