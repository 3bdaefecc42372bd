#!/usr/bin/env python3
"""Makes golden/torch_resize.bin: torchvision's ToTensor, Resize(side, bicubic), CenterCrop(side). Needs torchvision 0.17
or later; made with 0.29.2.

Cases, each: line of ASCII `width height side`, then the result as little-endian float32 [side, side, 3]. Level i of a
picture is (i * 37 + i // 91 * 11) % 256.
"""

import pathlib

import numpy as np
from PIL import Image
from torchvision import transforms

HERE = pathlib.Path(__file__).parent / "golden"
CASES = [(23, 17, 8), (17, 23, 8), (40, 40, 12), (9, 14, 15), (61, 20, 20), (5, 64, 3)]

with open(HERE / "torch_resize.bin", "wb") as out:
    for width, height, side in CASES:
        i = np.arange(width * height * 3)
        picture = Image.fromarray(((i * 37 + i // 91 * 11) % 256).astype(np.uint8).reshape(height, width, 3))
        steps = [
            transforms.ToTensor(),
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
        ]
        result = transforms.Compose(steps)(picture).permute(1, 2, 0).contiguous().numpy().astype("<f4")
        out.write(f"{width} {height} {side}\n".encode() + result.tobytes())
