"""Times other programs on the UNet that `calotype bench unet` times, and prints one JSON object a line for each.

    python scripts/peer_unet.py --family sd2 --resolution 512 --batch 1 --mode forward --engines bf16,openvino

Same shapes, same kind of random weights, same method: iterations are timed one by one, the last half counts, `seconds`
is its median and `best` its minimum. Forward is one call without gradients; train is forward, mean squared error,
backward and a fused AdamW step.

Engines: f32, autocast (f32 weights, bf16 arithmetic), bf16 (all bf16, in training the weights too), compiled (bf16
through torch.compile with frozen weights, forward only), openvino (the faster one of f32 and bf16, forward only), openvino-int8
(weights and activations in 8 bits by NNCF, calibrated on one call; forward only).

`--network decoder` times the decoder of SDXL's and Stable Diffusion's autoencoder on latents of an image of that size.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

TOKENS = 77
# `attention_head_dim` of this class is the number of heads, in spite of its name.
NETWORKS = {
    "sd1": dict(cross_attention_dim=768, attention_head_dim=8),
    "sd2": dict(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
    "sdxl": dict(
        cross_attention_dim=2048, attention_head_dim=(5, 10, 20), use_linear_projection=True, block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    ),
    "tiny": dict(cross_attention_dim=64, attention_head_dim=8, block_out_channels=(32, 64, 64, 64)),
}


class UNet(torch.nn.Module):
    """A UNet of tensors alone, as tracing wants it."""

    def __init__(self, family):
        super().__init__()
        shape = dict(block_out_channels=(320, 640, 1280, 1280), layers_per_block=2, in_channels=4, out_channels=4)
        self.network = UNet2DConditionModel(**(shape | NETWORKS[family]))

    def forward(self, latent, times, context, texts=None, sizes=None):
        added = None if texts is None else dict(text_embeds=texts, time_ids=sizes)
        return self.network(latent, times, context, added_cond_kwargs=added, return_dict=False)[0]


class Decoder(torch.nn.Module):
    """An autoencoder's decoder of latents."""

    def __init__(self):
        super().__init__()
        blocks = dict(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
        self.network = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, **blocks)
        del self.network.encoder, self.network.quant_conv

    def forward(self, latent):
        return self.network.decode(latent, return_dict=False)[0]


def inputs_of(options):
    """Noise in the shape of latents, and for a UNet times, text states, and what the family takes beside them."""
    side, batch = options.resolution // 8, options.batch
    latent = torch.randn(batch, 4, side, side)
    if options.network == "decoder":
        return [latent]
    context = torch.randn(batch, TOKENS, NETWORKS[options.family]["cross_attention_dim"])
    added = [torch.randn(batch, 1280), torch.randn(batch, 6)] if options.family == "sdxl" else []
    return [latent, torch.full((batch,), 500, dtype=torch.long), context, *added]


def network_of(options):
    """The network with random weights, which are never copied: they may fill most of the memory."""
    with torch.device("meta"):
        network = Decoder() if options.network == "decoder" else UNet(options.family)
    network = network.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.02)
    return network.to(memory_format=torch.channels_last).eval()


def plain(network, inputs):
    return lambda: network(*inputs)


def autocast(network, inputs):
    call = plain(network, inputs)

    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call()

    return run


def narrowed(inputs):
    return [tensor.bfloat16() if tensor.is_floating_point() else tensor for tensor in inputs]


def bf16(network, inputs):
    return plain(network.to(torch.bfloat16), narrowed(inputs))


def compiled(network, inputs):
    import torch._inductor.config

    torch._inductor.config.freezing = True
    return plain(torch.compile(network.to(torch.bfloat16)), narrowed(inputs))


def converted(network, inputs):
    import openvino as ov

    return ov.convert_model(network, example_input=tuple(inputs), input=[tensor.shape for tensor in inputs])


def fastest(graph, arrays, precisions):
    import openvino as ov

    candidates = []
    for precision in precisions:
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        request = ov.Core().compile_model(graph, "CPU", options).create_infer_request()
        request.infer(arrays)
        start = time.perf_counter()
        request.infer(arrays)
        candidates.append((time.perf_counter() - start, request))
    best = min(candidates, key=lambda candidate: candidate[0])[1]
    return lambda: best.infer(arrays)


def openvino(network, inputs):
    # In f32, the largest network does not fit beside its other forms.
    large = sum(parameter.numel() for parameter in network.parameters()) > 2e9
    return fastest(converted(network, inputs), [tensor.numpy() for tensor in inputs], ["bf16"] if large else ["bf16", "f32"])


def openvino_int8(network, inputs):
    import nncf

    arrays = [tensor.numpy() for tensor in inputs]
    kind = nncf.ModelType.TRANSFORMER
    # Its progress is no measurement.
    with contextlib.redirect_stdout(sys.stderr):
        graph = nncf.quantize(converted(network, inputs), nncf.Dataset([arrays]), model_type=kind, subset_size=1)
    return fastest(graph, arrays, ["bf16"])


ENGINES = {"f32": plain, "autocast": autocast, "bf16": bf16, "compiled": compiled, "openvino": openvino,
           "openvino-int8": openvino_int8}
FORWARD_ONLY = ("compiled", "openvino", "openvino-int8")


def training_step(forward, network, target):
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=True)

    def step():
        loss = torch.nn.functional.mse_loss(forward().float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def measure(engine, options):
    network, inputs = network_of(options), inputs_of(options)
    target = torch.randn(inputs[0].shape)
    seconds = []
    with torch.set_grad_enabled(options.mode == "train"):
        step = ENGINES[engine](network, inputs)
        if options.mode == "train":
            step = training_step(step, network, target)
        for _ in range(options.iterations):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
    steady = seconds[len(seconds) // 2 :]
    return dict(
        engine=engine,
        family=options.family if options.network == "unet" else options.network,
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
    parser.add_argument("--network", choices=("unet", "decoder"), default="unet")
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
        if options.mode == "train" and (engine in FORWARD_ONLY or options.network == "decoder"):
            parser.error(f"{engine if engine in FORWARD_ONLY else options.network} has no training")
    if options.iterations < 1:
        parser.error("--iterations must be at least 1")
    torch.set_num_threads(options.threads)
    for engine in engines:
        print(json.dumps(measure(engine, options)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
