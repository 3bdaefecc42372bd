"""Times other programs on what `calotype bench vit` and `bench clip` time, and prints one JSON object a line for each.

    python scripts/peer_vision.py --network vit --model b16 --batch 16 --mode train --engines autocast,autocast-compiled

Same shapes, same kind of random weights, same method: iterations are timed one by one, the last half counts, `seconds` is its median and
`best` its minimum. ViT is timm's, CLIP open_clip's. Forward is one call without gradients (of CLIP, the image tower's unit features);
train is forward, the loss (cross-entropy; of CLIP, both towers' contrastive loss), backward and a fused AdamW step.

Engines: f32, autocast (f32 weights, bf16 arithmetic), autocast-compiled (the same through torch.compile), bf16 (all bf16, in training the
weights too), compiled (bf16 through torch.compile with frozen weights, forward only), openvino (the faster one of f32 and bf16, forward
only).
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
import torch._inductor.config
import torch.nn.functional as F

SIDE = 224
VITS = {
    "b16": "vit_base_patch16_224",
    "l16": "vit_large_patch16_224",
    "h14": "vit_huge_patch14_224",
    "g14": "vit_giant_patch14_224",
    "bigg14": "vit_gigantic_patch14_224",
}
CLIPS = {
    "b32": "ViT-B-32",
    "b16": "ViT-B-16",
    "l14": "ViT-L-14",
    "h14": "ViT-H-14",
    "g14": "ViT-g-14",
    "bigg14": "ViT-bigG-14",
}


def with_noise(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model


class Vit:
    """timm's classifier of 1,000 classes."""

    def __init__(self, options):
        import timm

        self.model = with_noise(timm.create_model(VITS[options.model], num_classes=1000))
        self.images = torch.randn(options.batch, 3, SIDE, SIDE)
        self.labels = torch.arange(options.batch) % 1000

    def tower(self):
        return self.model

    def loss(self, model):
        return F.cross_entropy(model(self.images).float(), self.labels)

    def forward(self, model):
        return model(self.images)


class Clip:
    """open_clip's two towers. `forward` is the image tower with its projection."""

    def __init__(self, options):
        import open_clip

        self.model = with_noise(open_clip.create_model(CLIPS[options.model], pretrained=None))
        self.images = torch.randn(options.batch, 3, SIDE, SIDE)
        tokens = self.model.context_length
        self.ids = (7 * torch.arange(options.batch)[:, None] + torch.arange(tokens)) % (self.model.vocab_size - 1)
        self.ids[:, -1] = self.model.vocab_size - 1

    def tower(self):
        return self.model.visual

    def loss(self, model):
        images, texts, scale = model(self.images, self.ids)
        logits = scale * images.float() @ texts.float().T
        labels = torch.arange(len(logits))
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    def forward(self, model):
        return F.normalize(model(self.images), dim=-1)


NETWORKS = {"vit": (Vit, VITS), "clip": (Clip, CLIPS)}


def plain(network, model, call):
    return lambda: call(model)


def autocast(network, model, call):
    def run():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(model)

    return run


def autocast_compiled(network, model, call):
    return autocast(network, torch.compile(model), call)


def bf16(network, model, call):
    network.images = network.images.bfloat16()
    model.to(torch.bfloat16)
    return plain(network, model, call)


def compiled(network, model, call):
    torch._inductor.config.freezing = True
    network.images = network.images.bfloat16()
    return plain(network, torch.compile(model.to(torch.bfloat16)), call)


def openvino(network, model, call):
    import openvino as ov

    graph = ov.convert_model(model.eval(), example_input=network.images, input=[network.images.shape])
    array = network.images.numpy()
    candidates = []
    for precision in ("bf16", "f32"):
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        request = ov.Core().compile_model(graph, "CPU", options).create_infer_request()
        request.infer([array])
        start = time.perf_counter()
        request.infer([array])
        candidates.append((time.perf_counter() - start, request))
    fastest = min(candidates, key=lambda candidate: candidate[0])[1]
    return lambda: fastest.infer([array])


ENGINES = {
    "f32": plain,
    "autocast": autocast,
    "autocast-compiled": autocast_compiled,
    "bf16": bf16,
    "compiled": compiled,
    "openvino": openvino,
}
FORWARD_ONLY = ("compiled", "openvino")


def training_step(loss, model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step():
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def measure(engine, options):
    network = NETWORKS[options.network][0](options)
    train = options.mode == "train"
    network.model.train(train)
    seconds = []
    with torch.set_grad_enabled(train):
        model, call = (network.model, network.loss) if train else (network.tower(), network.forward)
        step = ENGINES[engine](network, model, call)
        if train:
            step = training_step(step, network.model)
        for _ in range(options.iterations):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
    steady = seconds[len(seconds) // 2 :]
    median = statistics.median(steady)
    return dict(
        engine=engine,
        family=options.network,
        model=options.model,
        resolution=SIDE,
        batch=options.batch,
        mode=options.mode,
        threads=options.threads,
        iterations=options.iterations,
        seconds=round(median, 6),
        best=round(min(steady), 6),
        images_per_second=round(options.batch / median, 4),
        peak_rss_gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="vit")
    parser.add_argument("--model", default=None, help="its size: b16, l16, h14, g14, bigg14; of CLIP also b32 and l14, and no l16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--mode", choices=("forward", "train"), default="forward")
    parser.add_argument("--engines", default="autocast,bf16", help="comma-separated names of " + ", ".join(ENGINES))
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    sizes = NETWORKS[options.network][1]
    options.model = options.model or next(iter(sizes))
    if options.model not in sizes:
        parser.error(f"there is no {options.network} {options.model}; use one of {', '.join(sizes)}")
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
