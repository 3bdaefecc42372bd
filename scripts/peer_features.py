"""Times other programs on the networks that `calotype bench features` times, and prints one JSON object a line for each.

    python scripts/peer_features.py --network vit-h-14 --batch 8 --engines bf16,compiled,openvino

Random weights in the published shapes (pytorch-fid's Inception, open_clip's image towers), images of 299 or 224 pixels; iterations are
timed one by one, the last half counts, `seconds` is its median and `best` its minimum.

Engines: f32, f32-compiled, bf16 (all bf16, channels last), compiled (the same through torch.compile with frozen weights), openvino (bf16
hint), openvino-f32.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch._inductor.config

TOWERS = {"vit-b-32": "ViT-B-32", "vit-l-14": "ViT-L-14", "vit-h-14": "ViT-H-14"}


def network(name):
    torch.manual_seed(0)
    if name == "inception":
        from pytorch_fid import inception

        # Its own weights are downloaded; the structure is what is timed.
        inception.load_state_dict_from_url = lambda *_, **__: inception._inception_v3(
            num_classes=1008, aux_logits=False, weights=None
        ).state_dict()
        inner = inception.InceptionV3([3], resize_input=False, normalize_input=False)

        class Features(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = inner

            def forward(self, images):
                return self.inner(images)[0].flatten(1)

        return Features().eval(), 299
    import open_clip

    return open_clip.create_model(TOWERS[name], pretrained=None).visual.eval(), 224


def torch_call(model, images, dtype, compiled):
    model = model.to(dtype).to(memory_format=torch.channels_last)
    images = images.to(dtype).to(memory_format=torch.channels_last)
    if compiled:
        torch._inductor.config.freezing = True
        model = torch.compile(model)
    return lambda: model(images)


def openvino_call(model, images, hint):
    import openvino as ov

    graph = ov.convert_model(model, example_input=images, input=[images.shape])
    options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    request = ov.Core().compile_model(graph, "CPU", options).create_infer_request()
    array = images.numpy()
    return lambda: request.infer([array])


ENGINES = {
    "f32": lambda model, images: torch_call(model, images, torch.float32, False),
    "f32-compiled": lambda model, images: torch_call(model, images, torch.float32, True),
    "bf16": lambda model, images: torch_call(model, images, torch.bfloat16, False),
    "compiled": lambda model, images: torch_call(model, images, torch.bfloat16, True),
    "openvino": lambda model, images: openvino_call(model, images, "bf16"),
    "openvino-f32": lambda model, images: openvino_call(model, images, "f32"),
}


def measure(engine, options):
    model, side = network(options.network)
    images = torch.randn(options.batch, 3, side, side)
    seconds = []
    with torch.no_grad():
        call = ENGINES[engine](model, images)
        call()
        for _ in range(options.iterations):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    counted = seconds[options.iterations // 2 :]
    median = statistics.median(counted)
    return {
        "engine": engine,
        "network": options.network,
        "batch": options.batch,
        "threads": torch.get_num_threads(),
        "seconds": median,
        "best": min(counted),
        "images_per_second": options.batch / median,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=["inception", *TOWERS], required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--engines", default="bf16,compiled,openvino")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for engine in options.engines.split(","):
        print(json.dumps(measure(engine, options)), flush=True)


if __name__ == "__main__":
    main()
