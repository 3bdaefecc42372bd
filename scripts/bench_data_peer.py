#!/usr/bin/env python3
"""PyTorch's DataLoader with the webdataset library over the shards of the loader's benchmark, as JSON.

    python scripts/bench_data_peer.py FOLDER [--size 512] [--batch 32] [--workers 2] [--passes 3] [--variants NAME,...]

Each variant reads every sample once a pass, decodes the JPEG, makes the shorter side SIZE (bicubic, antialiased), cuts
a random square, mirrors every second one, and yields contiguous batches of [-1, 1]; the fastest pass counts, timed from
making the iterator, whose worker processes run already (persistent_workers), to the last batch.

pil-float      PIL images through torchvision's transforms; floats are made and batched in the workers
pil-uint8      the same, but workers batch bytes, and the main process makes the floats: a quarter of the traffic
pil-collate    floats, batched by DataLoader itself rather than by webdataset
pil-draft      as pil-uint8, but libjpeg may decode at half size (`Image.draft`): other pixels, for information
tensor-uint8   as pil-uint8, but resized as byte tensors (torchvision v2): other pixels, for information
"""

import argparse
import glob
import io
import json
import os
import resource
import time

import torch
import webdataset
from PIL import Image
from torchvision import transforms
from torchvision.transforms import v2

BICUBIC = transforms.InterpolationMode.BICUBIC
EXACT = ("pil-float", "pil-uint8", "pil-collate")


def opened(data):
    return Image.open(io.BytesIO(data)).convert("RGB")


def drafted(size):
    def decode(data):
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (size, size))
        return image.convert("RGB")

    return decode


def pipeline(variant, size):
    """What is done with the bytes of a JPEG in a worker."""
    geometry = [transforms.Resize(size, interpolation=BICUBIC), transforms.RandomCrop(size), transforms.RandomHorizontalFlip()]
    floats = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    if variant in ("pil-float", "pil-collate"):
        return transforms.Compose([opened, *geometry, *floats])
    if variant == "pil-draft":
        return transforms.Compose([drafted(size), *geometry, transforms.PILToTensor()])
    if variant == "tensor-uint8":
        resize = v2.Resize(size, interpolation=BICUBIC, antialias=True)
        return transforms.Compose([opened, transforms.PILToTensor(), resize, v2.RandomCrop(size), v2.RandomHorizontalFlip()])
    return transforms.Compose([opened, *geometry, transforms.PILToTensor()])


def loader(variant, shards, args):
    data = webdataset.WebDataset(shards, shardshuffle=len(shards), nodesplitter=webdataset.split_by_node)
    data = data.shuffle(100).to_tuple("jpg").map_tuple(pipeline(variant, args.size))
    if variant == "pil-collate":
        return torch.utils.data.DataLoader(
            data, batch_size=args.batch, num_workers=args.workers, persistent_workers=True, prefetch_factor=2
        )
    data = data.batched(args.batch, partial=True)
    return torch.utils.data.DataLoader(
        data, batch_size=None, num_workers=args.workers, persistent_workers=True, prefetch_factor=2
    )


def one_pass(batches):
    started = time.perf_counter()
    count = 0
    for batch in batches:
        images = batch[0]
        if images.dtype == torch.uint8:
            images = images.float().mul_(2 / 255).sub_(1)
        count += len(images)
    return count, time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--variants", default=",".join((*EXACT, "pil-draft", "tensor-uint8")))
    args = parser.parse_args()
    torch.set_num_threads(1)
    shards = sorted(glob.glob(os.path.join(args.folder, "*.tar")))
    rates = {}
    for variant in args.variants.split(","):
        batches = loader(variant, shards, args)
        # The first pass starts the workers and is not counted.
        passes = [one_pass(batches) for _ in range(args.passes + 1)][1:]
        count = passes[0][0]
        rates[variant] = max(count / seconds for count, seconds in passes)
        del batches
    best = max((name for name in rates if name in EXACT), key=rates.get)
    peak = [resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({
        "images": count, "rates": rates, "best": best, "images_per_second": rates[best], "workers": args.workers,
        "peak_memory": peak[0] + args.workers * peak[1],
        "torch": torch.__version__, "webdataset": webdataset.__version__,
    }))


if __name__ == "__main__":
    main()
