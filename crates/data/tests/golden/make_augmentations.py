"""Golden values of augmentations, computed by Pillow, torchvision and timm.

    python make_augmentations.py

writes `augmentations.json` next to itself: checksums (CRC-32 of the pixels, row by row) of images that are made by formulas and
changed by the operations of torchvision's and timm's RandAugment with given magnitudes and signs, by torchvision's ColorJitter in a
given order, and by the policies of AutoAugment for ImageNet as NeMo has them; torchvision's magnitudes, and the
rectangles of its RandomResizedCrop with the numbers that they were drawn from. Made with Pillow 13.0.0, torchvision 0.29.2 and
timm 1.0.31.
"""

import json
import random
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment
from torchvision.transforms import InterpolationMode, RandAugment, RandomResizedCrop
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op


def picture(kind, width, height):
    """Levels by formula, as the test computes them."""
    i = np.arange(3 * width * height, dtype=np.int64)
    x, y, c = i // 3 % width, i // 3 // width, i % 3
    levels = {
        "noise": (i * i * 31 + i * 7) % 256,
        "ramp": (5 * x + 3 * y + 40 * c) % 256,
        "dull": 90 + (i * 7 + y) % 60,
        "flat": 77 + 0 * i,
    }[kind]
    return Image.fromarray(levels.astype(np.uint8).reshape(height, width, 3))


PICTURES = [("noise", 37, 29), ("ramp", 64, 48), ("dull", 16, 16), ("flat", 5, 7), ("noise", 2, 3), ("ramp", 1, 1)]
SAMPLINGS = {"nearest": InterpolationMode.NEAREST, "bilinear": InterpolationMode.BILINEAR,
             "bicubic": InterpolationMode.BICUBIC}
MOVING = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "TranslateXRel", "TranslateYRel")


def checksum(image):
    return zlib.crc32(image.tobytes())


def samplings(name):
    return list(SAMPLINGS) if name in MOVING else ["nearest"]


def torchvision_cases():
    augment = RandAugment()
    for kind, width, height in PICTURES:
        image = picture(kind, width, height)
        for name, (magnitudes, signed) in augment._augmentation_space(31, (height, width)).items():
            for at in (9, 30) if magnitudes.ndim else (0,):
                magnitude = float(magnitudes[at]) if magnitudes.ndim else 0.0
                for value in (magnitude, -magnitude) if signed else (magnitude,):
                    for sampling in samplings(name):
                        changed = _apply_op(image, name, value, SAMPLINGS[sampling], [10, 20, 30])
                        yield [kind, width, height, name, value, sampling, checksum(changed)]


def timm_cases():
    for kind, width, height in PICTURES:
        image = picture(kind, width, height)
        for increasing in (False, True):
            for name in auto_augment._RAND_INCREASING_TRANSFORMS if increasing else auto_augment._RAND_TRANSFORMS:
                plain = name.replace("Increasing", "")
                for magnitude in (2.5, 9.3) if auto_augment.LEVEL_TO_ARG[name] else (0.0,):
                    for negative in (False, True):
                        random.random = lambda: 0.9 if negative else 0.1
                        level = auto_augment.LEVEL_TO_ARG[name]
                        arguments = level(magnitude, dict(auto_augment._HPARAMS_DEFAULT)) if level else ()
                        for sampling in samplings(name):
                            resample = getattr(Image.Resampling, sampling.upper())
                            if plain == "Posterize" and arguments[0] < 1:
                                # Pillow 13 refuses what earlier ones made black.
                                changed = Image.new("RGB", image.size)
                            else:
                                changed = auto_augment.NAME_TO_OP[name](
                                    image, *arguments, fillcolor=(124, 116, 104), resample=resample)
                            yield [kind, width, height, plain, increasing, magnitude, negative, sampling,
                                   checksum(changed)]


def magnitudes():
    for name, (values, _) in RandAugment()._augmentation_space(31, (29, 37)).items():
        if values.ndim:
            yield [name, [float(value) for value in values]]


def jitters():
    functions = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    torch.manual_seed(1)
    for number in range(24):
        kind, width, height = PICTURES[number % 3]
        image, order = picture(kind, width, height), torch.randperm(4).tolist()
        factors = (0.6 + 0.8 * torch.rand(4)).tolist()[:3] + [torch.empty(1).uniform_(-0.5, 0.5).item()]
        for which in order:
            image = functions[which](image, factors[which])
        yield [kind, width, height, order, factors, checksum(image)]


# Cubuk et al. 2019, table 9, as NeMo's autoaugment.py has it.
POLICIES = [
    ("posterize", 8, "rotate", 9), ("solarize", 5, "autocontrast", 5), ("equalize", 8, "equalize", 3),
    ("posterize", 7, "posterize", 6), ("equalize", 7, "solarize", 4), ("equalize", 4, "rotate", 8),
    ("solarize", 3, "equalize", 7), ("posterize", 5, "equalize", 2), ("rotate", 3, "solarize", 8),
    ("equalize", 8, "posterize", 6), ("rotate", 8, "color", 0), ("rotate", 9, "equalize", 2),
    ("equalize", 7, "equalize", 8), ("invert", 4, "equalize", 8), ("color", 4, "contrast", 8), ("rotate", 8, "color", 2),
    ("color", 8, "solarize", 7), ("sharpness", 7, "invert", 8), ("shearX", 5, "equalize", 9), ("color", 0, "equalize", 3),
    ("equalize", 7, "solarize", 4), ("solarize", 5, "autocontrast", 5), ("invert", 4, "equalize", 8),
    ("color", 4, "contrast", 8), ("equalize", 8, "equalize", 3),
]


def policy_step(image, name, at, sign):
    """What NeMo's SubPolicy does, with numpy's ranges; a rotation leaves transparent corners, which become grey."""
    even = lambda end: np.linspace(0, end, 11)[at]
    if name == "rotate":
        rotated = image.convert("RGBA").rotate(even(30))
        return Image.composite(rotated, Image.new("RGBA", image.size, (128,) * 4), rotated).convert("RGB")
    if name == "shearX":
        matrix = (1, even(0.3) * sign, 0, 0, 1, 0)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=(128,) * 3)
    if name == "posterize":
        return ImageOps.posterize(image, int(np.round(np.linspace(8, 4, 11), 0)[at]))
    if name == "solarize":
        return ImageOps.solarize(image, np.linspace(256, 0, 11)[at])
    enhance = dict(color=ImageEnhance.Color, contrast=ImageEnhance.Contrast, sharpness=ImageEnhance.Sharpness).get(name)
    if enhance:
        return enhance(image).enhance(1 + even(0.9) * sign)
    return getattr(ImageOps, name)(image)


def policies():
    for number, (first, at_first, second, at_second) in enumerate(POLICIES):
        for kind, width, height in PICTURES[:2]:
            for made in ((True, True), (True, False), (False, True)):
                for negative in (False, True):
                    image = picture(kind, width, height)
                    for wanted, name, at in zip(made, (first, second), (at_first, at_second)):
                        image = policy_step(image, name, at, -1 if negative else 1) if wanted else image
                    yield [kind, width, height, number, made, negative, checksum(image)]


class Recorder:
    """torch's random numbers, written down."""

    def __init__(self):
        self.drawn = []

    def empty(self, count):
        recorder = self

        class Numbers:
            def uniform_(self, low, high):
                number = torch.zeros(count).uniform_(float(low), float(high))
                recorder.drawn.append(number.item())
                return number

        return Numbers()

    def randint(self, low, high, size):
        number = torch.zeros(size, dtype=torch.long).random_(low, high)
        self.drawn.append(number.item())
        return number


def crops():
    from torchvision.transforms import transforms

    torch.manual_seed(0)
    sizes = [(64, 48), (37, 29), (200, 20), (9, 90), (3, 3)]
    settings = [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.5, 1.0), (1.0, 1.0)), ((0.9, 1.0), (0.2, 0.4))]
    for number in range(90):
        (width, height), (scale, ratio) = sizes[number % 5], settings[number // 5 % 3]
        recorder = Recorder()

        class Torch:
            """What the class takes of torch, with numbers that are written down."""

            log, exp, tensor, empty, randint = torch.log, torch.exp, torch.tensor, recorder.empty, recorder.randint

        original, transforms.torch = transforms.torch, Torch
        image = picture("noise", width, height)
        top, left, rows, columns = RandomResizedCrop.get_params(image, scale, ratio)
        transforms.torch = original
        filters = [InterpolationMode.BILINEAR, InterpolationMode.BICUBIC]
        changed = F.resized_crop(image, top, left, rows, columns, [16, 16], filters[number % 2])
        yield [width, height, scale, ratio, recorder.drawn, [left, top, columns, rows], number % 2, checksum(changed)]


def main():
    uniform = random.random
    groups = dict(torchvision=torchvision_cases(), timm=timm_cases(), jitters=jitters(), policies=policies(),
                  magnitudes=magnitudes(), crops=crops())
    lines = []
    for name, cases in groups.items():
        rows = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        lines.append(f"{json.dumps(name)}: [\n{rows}\n]")
        random.random = uniform
    text = "{" + ",\n".join(lines) + "}\n"
    json.loads(text)
    (Path(__file__).parent / "augmentations.json").write_text(text)


if __name__ == "__main__":
    main()
