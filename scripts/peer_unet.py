"""Times other programs on the UNet that `calotype bench unet` times, and prints one JSON object a line for each.

    python scripts/peer_unet.py --family sd2 --resolution 512 --batch 1 --mode forward --engines bf16,openvino

Same shapes, same kind of random weights, same method: iterations are timed one by one, the last half counts, `seconds`
is its median and `best` its minimum. Forward is one call without gradients; train is forward, mean squared error,
backward and a fused AdamW step.

Engines: f32, autocast (f32 weights, bf16 arithmetic), bf16 (all bf16, in training the weights too), compiled (bf16
through torch.compile with frozen weights, forward only), openvino (the faster one of f32 and bf16, forward only).
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import UNet2DConditionModel

TOKENS = 77
# `attention_head_dim` of this class is the number of heads, in spite of its name.
NETWORKS = {
    "sd1": dict(cross_attention_dim=768, attention_head_dim=8),
    "sd2": dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
    "tiny": dict(cross_attention_dim=64, attention_head_dim=8, block_out_channels=(32, 64, 64, 64)),
}


class Inputs:
    """Noise in the shape of latents, times and text states."""

    def __init__(self, family, resolution, batch):
        side = resolution // 8
        self.latent = torch.randn(batch, 4, side, side)
        self.times = torch.full((batch,), 500, dtype=torch.long)
        self.context = torch.randn(batch, TOKENS, NETWORKS[family]["cross_attention_dim"])


def network(family):
    """The network with random weights, which are never copied: they may fill most of the memory."""
    shape = dict(block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, in_channels=4, out_channels=4)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**(shape | NETWORKS[family]))
    unet = unet.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.normal_(std=0.02)
    return unet.to(memory_format=torch.channels_last)


def plain(unet, inputs):
    return lambda: unet(inputs.latent, inputs.times, inputs.context).sample


def autocast(unet, inputs):
    call = plain(unet, inputs)

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call()

    return run


def bf16(unet, inputs):
    unet.to(torch.bfloat16)
    inputs.latent, inputs.context = inputs.latent.bfloat16(), inputs.context.bfloat16()
    return plain(unet, inputs)


def compiled(unet, inputs):
    import torch._inductor.config

    torch._inductor.config.freezing = True
    bf16(unet, inputs)
    return plain(torch.compile(unet), inputs)


def openvino(unet, inputs):
    import openvino as ov

    class Traceable(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unet = unet

        def forward(self, latent, times, context):
            return self.unet(latent, times, context, return_dict=False)[0]

    tensors = (inputs.latent, inputs.times, inputs.context)
    shapes = [tensor.shape for tensor in tensors]
    graph = ov.convert_model(Traceable().eval(), example_input=tensors, input=shapes)
    arrays = [tensor.numpy() for tensor in tensors]
    candidates = []
    for precision in ("bf16", "f32"):
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        request = ov.Core().compile_model(graph, "CPU", options).create_infer_request()
        request.infer(arrays)
        start = time.perf_counter()
        request.infer(arrays)
        candidates.append((time.perf_counter() - start, request))
    fastest = min(candidates, key=lambda candidate: candidate[0])[1]
    return lambda: fastest.infer(arrays)


ENGINES = {"f32": plain, "autocast": autocast, "bf16": bf16, "compiled": compiled, "openvino": openvino}
FORWARD_ONLY = ("compiled", "openvino")


def training_step(forward, unet, target):
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=True)

    def step():
        loss = torch.nn.functional.mse_loss(forward().float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def measure(engine, options):
    unet = network(options.family)
    inputs = Inputs(options.family, options.resolution, options.batch)
    target = torch.randn(inputs.latent.shape)
    seconds = []
    with torch.set_grad_enabled(options.mode == "train"):
        step = ENGINES[engine](unet, inputs)
        if options.mode == "train":
            step = training_step(step, unet, target)
        for _ in range(options.iterations):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
    steady = seconds[len(seconds) // 2 :]
    return dict(
        engine=engine,
        family=options.family,
        resolution=options.resolution,
        batch=options.batch,
        mode=options.mode,
        threads=options.threads,
        iterations=options.iterations,
        seconds=round(statistics.median(steady), 6),
        best=round(min(steady), 6),
        peak_rss_gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=NETWORKS, default="sd2")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--mode", choices=("forward", "train"), default="forward")
    parser.add_argument("--engines", default="autocast,bf16", help="comma-separated names of " + ", ".join(ENGINES))
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    engines = options.engines.split(",")
    for engine in engines:
        if engine not in ENGINES:
            parser.error(f"there is no engine {engine}; use some of {', '.join(ENGINES)}")
        if options.mode == "train" and engine in FORWARD_ONLY:
            parser.error(f"{engine} has no training")
    if options.iterations < 1:
        parser.error("--iterations must be at least 1")
    torch.set_num_threads(options.threads)
    for engine in engines:
        print(json.dumps(measure(engine, options)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
