#!/usr/bin/env python3
"""Makes golden/torch_levels.txt: 8-bit pictures resized by torchvision's `resize` of tensors with antialiasing. Made with
torchvision 0.29.2 and torch 2.15.0.

Lines, each: `width height to_width to_height filter digits`, the digits being the first 16 of the SHA-256 of the result's
levels [height, width, 3]. Level i of a picture is (i * 37 + i // 91 * 11) % 256.
"""

import hashlib
import pathlib

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

SIZES = [
    ((23, 17), (8, 6)),
    ((17, 23), (17, 9)),
    ((40, 40), (64, 40)),
    ((9, 14), (15, 23)),
    ((300, 201), (224, 150)),
    ((640, 480), (298, 224)),
    ((1, 1), (5, 7)),
    ((2, 301), (3, 12)),
    ((500, 3), (20, 4)),
    ((1999, 3), (7, 3)),
    ((150, 150), (150, 150)),
]

lines = []
for (width, height), (to_width, to_height) in SIZES:
    i = np.arange(width * height * 3)
    levels = ((i * 37 + i // 91 * 11) % 256).astype(np.uint8).reshape(height, width, 3)
    for filter in ("bilinear", "bicubic"):
        mode = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}[filter]
        tensor = torch.from_numpy(levels).permute(2, 0, 1).contiguous()
        result = functional.resize(tensor, [to_height, to_width], interpolation=mode, antialias=True)
        assert result.dtype == torch.uint8
        digits = hashlib.sha256(result.permute(1, 2, 0).contiguous().numpy().tobytes()).hexdigest()[:16]
        lines.append(f"{width} {height} {to_width} {to_height} {filter} {digits}\n")
(pathlib.Path(__file__).parent / "golden" / "torch_levels.txt").write_text("".join(lines))
