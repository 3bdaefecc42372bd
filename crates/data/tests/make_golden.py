#!/usr/bin/env python3
"""Makes the golden files of this folder. Needs Pillow 13.0.0, NumPy 2.4 and ml_dtypes:

    python3 -m venv venv && venv/bin/pip install pillow==13.0.0 numpy ml_dtypes
    venv/bin/python crates/data/tests/make_golden.py

golden/resize.bin      cases, each: line of ASCII `mode filter in_w in_h out_w out_h`, source bytes, result bytes
golden/over.bin        RGBA source (16x16), then RGB results over (35, 85, 220), (255, 255, 255), (0, 0, 0)
golden/array_*.npy     numpy.save
golden/python/*.tar    tarfile in PAX and GNU format, with what real shards hold: folders, long names, stray members
"""

import io
import pathlib
import random
import tarfile

import ml_dtypes
import numpy as np
from PIL import Image

HERE = pathlib.Path(__file__).parent / "golden"
FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos3": Image.Resampling.LANCZOS,
}
SIZES = [
    ((17, 13), (7, 5)),
    ((7, 5), (17, 13)),
    ((12, 9), (12, 4)),
    ((12, 9), (5, 9)),
    ((16, 16), (15, 15)),
    ((9, 9), (9, 9)),
    ((3, 320), (2, 11)),
    ((1, 1), (3, 2)),
]


def picture(rng, mode, size):
    """Half noise (overshoot of the sharp filters), half gradient (rounding)."""
    channels = len(mode)
    data = bytearray()
    for y in range(size[1]):
        for x in range(size[0]):
            for c in range(channels):
                noise = rng.choice([0, 255, rng.randrange(256)])
                data.append(noise if (x + y) % 2 else (x * 13 + y * 7 + c * 50) % 256)
    return Image.frombytes(mode, size, bytes(data))


def resize():
    rng = random.Random(1841)
    out = bytearray()
    for mode in ("RGB", "RGBA"):
        for name, resampling in FILTERS.items():
            for source, target in SIZES:
                image = picture(rng, mode, source)
                result = image.resize(target, resampling)
                out += f"{mode} {name} {source[0]} {source[1]} {target[0]} {target[1]}\n".encode()
                out += image.tobytes() + result.tobytes()
    (HERE / "resize.bin").write_bytes(out)


def over():
    image = picture(random.Random(72), "RGBA", (16, 16))
    out = bytearray(image.tobytes())
    for colour in [(35, 85, 220), (255, 255, 255), (0, 0, 0)]:
        background = Image.new("RGBA", image.size, colour + (255,))
        out += Image.alpha_composite(background, image).convert("RGB").tobytes()
    (HERE / "over.bin").write_bytes(out)


def arrays():
    np.save(HERE / "array_f32.npy", np.arange(24, dtype="<f4").reshape(2, 3, 4) / 8)
    np.save(HERE / "array_f16.npy", np.linspace(-2, 2, 5).astype("<f2"))
    np.save(HERE / "array_bf16.npy", np.linspace(-2, 2, 5).astype(ml_dtypes.bfloat16))
    np.save(HERE / "array_i64.npy", np.array(-7, dtype="<i8"))


def member(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mtime = 1_700_000_000.25  # PAX writes a fraction as an extended header
    tar.addfile(info, io.BytesIO(data))


def tars():
    (HERE / "python").mkdir(exist_ok=True)
    for number, form in enumerate([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]):
        with tarfile.open(HERE / "python" / f"shard-{number}.tar", "w", format=form) as tar:
            folder = tarfile.TarInfo(f"dir{number}")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            member(tar, "__meta__", b"passed by")
            member(tar, "README", b"no dot, passed by")
            member(tar, f"dir{number}/a.jpg", b"picture a")
            member(tar, f"dir{number}/a.TXT", b"caption a")
            member(tar, f"dir{number}/" + "long" * 70 + ".seg.png", b"x" * 513)
            member(tar, f"dir{number}/" + "long" * 70 + ".txt", "Gr\u00fc\u00dfe".encode())
            member(tar, f"v1.{number}/\u00fcml.cls", b"")


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    resize()
    over()
    arrays()
    tars()
