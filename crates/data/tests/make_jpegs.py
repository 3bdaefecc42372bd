#!/usr/bin/env python3
"""Makes the golden files of `jpegs.rs`: JPEGs of every kind, and what Pillow makes of them.

    python3 -m venv venv && venv/bin/pip install pillow==13.0.0 numpy
    venv/bin/python crates/data/tests/make_jpegs.py

`cjpeg` of libjpeg-turbo has to be there (Debian: libjpeg-turbo-progs 2.1.5). Pillow 13.0.0 brings libjpeg-turbo 3.2.0.

golden/jpeg/NAME.jpg     the files
golden/jpeg/pixels.txt   of each: name, width, height, first 16 digits of the SHA-256 of its `convert("RGB")`
"""

import hashlib
import io
import pathlib
import subprocess
import tempfile

import numpy as np
from PIL import Image, features

HERE = pathlib.Path(__file__).parent / "golden" / "jpeg"
SAMPLES = ["1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "2x4", "3x1", "2x2,1x2,2x1", "1x1,2x2,1x1", "2x2,2x1,1x1"]
PROGRESSION = "0 1 2: 0-0, 0, 1;\n0: 1-5, 0, 2;\n2: 1-63, 0, 1;\n1: 1-63, 0, 1;\n0: 6-63, 0, 2;\n0: 1-63, 2, 1;\n"


def picture(width, height, seed):
    """Waves, and noise of a seed."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * a + y * b + c) for a, b, c in random.rand(3, 3) * [0.9, 0.7, 6]]
    levels = 128 + 90 * np.stack(waves, -1) + random.randint(-30, 31, (height, width, 3))
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def cjpeg(image, *arguments):
    ppm = io.BytesIO()
    image.save(ppm, "PPM")
    return subprocess.run(["cjpeg", *arguments], input=ppm.getvalue(), capture_output=True, check=True).stdout


def pillow(image, **how):
    out = io.BytesIO()
    image.save(out, "JPEG", **how)
    return out.getvalue()


def segments(data):
    """Marker and bytes of each segment; a scan with its data."""
    at, found = 2, []
    while data[at + 1] != 0xD9:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            while data[end] != 0xFF or data[end + 1] == 0 or 0xD0 <= data[end + 1] <= 0xD7:
                end += 1
        found.append((marker, data[at:end]))
        at = end
    return found


def joined(parts):
    return b"\xff\xd8" + b"".join(part for _, part in parts) + b"\xff\xd9"


def without(data, *markers):
    return joined([part for part in segments(data) if part[0] not in markers])


def adobe(data, transform):
    part = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    return joined([(0xEE, part)] + [part for part in segments(data) if part[0] not in (0xE0, 0xEE)])


def first_scans(data, count):
    parts, scans = [], 0
    for marker, part in segments(data):
        scans += marker == 0xDA
        if marker != 0xDA or scans <= count:
            parts.append((marker, part))
    return joined(parts)


def identified(data, ids):
    """Other numbers for the components of a baseline file."""
    head, body = [], segments(data)
    for marker, part in body:
        part = bytearray(part)
        if marker == 0xC0:
            part[10::3] = bytes(ids)
        if marker == 0xDA:
            part[5 : 5 + 2 * len(ids) : 2] = bytes(ids)
        head.append((marker, bytes(part)))
    return joined(head)


def damaged(data, changes):
    """Other bytes behind the head of the first scan, at places in 1000ths of the rest."""
    data = bytearray(data)
    start = data.index(b"\xff\xda") + 14
    for place, byte in changes:
        data[start + (len(data) - start - 2) * place // 1000] = byte
    return bytes(data)


def files():
    image, small = picture(53, 37, 1), picture(21, 35, 2)
    for samples in SAMPLES:
        yield "sampled_" + samples.replace(",", "_"), cjpeg(image, "-quality", "60", "-sample", samples)
    for side in range(1, 5):
        for samples in ("2x1", "2x2", "1x2"):
            yield f"side_{side}_{samples}", cjpeg(picture(side, 5 - side, side), "-sample", samples)
    for quality in (1, 25, 100):
        yield f"quality_{quality}", cjpeg(small, "-quality", str(quality), "-sample", "2x2")
    yield "restarts", cjpeg(image, "-restart", "2B", "-sample", "2x1")
    yield "optimised", cjpeg(image, "-optimize", "-sample", "2x2")
    yield "grey_2x2", cjpeg(image, "-grayscale", "-sample", "2x2")
    yield "rgb", pillow(small, quality=80, keep_rgb=True)
    yield "rgb_ids", identified(without(pillow(small, quality=80, subsampling=0), 0xE0), b"RGB")
    yield "adobe_rgb", adobe(pillow(small, quality=80, subsampling=0), 0)
    yield "adobe_ycc", adobe(pillow(small, quality=80), 1)
    yield "cmyk", pillow(small.convert("CMYK"), quality=80)
    yield "cmyk_plain", without(pillow(small.convert("CMYK"), quality=80), 0xEE)
    yield "ycck", adobe(pillow(small.convert("CMYK"), quality=80), 2)
    yield "standard_tables", without(cjpeg(image, "-quality", "70"), 0xC4)
    yield "equal_ids", identified(pillow(small, quality=80), [7, 7, 7])
    for samples in ("1x1", "2x2", "1x2"):
        yield f"progressive_{samples}", cjpeg(image, "-progressive", "-sample", samples, "-quality", "80")
    yield "progressive_restarts", cjpeg(image, "-progressive", "-restart", "3B")
    with tempfile.NamedTemporaryFile("w") as scans:
        scans.write("0;\n1 2;\n")
        scans.flush()
        yield "scans", cjpeg(image, "-scans", scans.name, "-sample", "2x2")
    with tempfile.NamedTemporaryFile("w") as scans:
        scans.write(PROGRESSION)
        scans.flush()
        yield "progressive_partial", cjpeg(image, "-scans", scans.name, "-sample", "2x2")
    tall = picture(45, 83, 3)
    for samples in ("1x1", "2x2", "1x4"):
        whole = cjpeg(tall, "-progressive", "-sample", samples, "-quality", "30")
        for count in (1, 2, 5):
            yield f"first_{count}_{samples}", first_scans(whole, count)
    restarts = cjpeg(image, "-restart", "2B", "-quality", "50")
    yield "damaged_restarts", restarts.replace(b"\xff\xd2", b"\xff\xd6").replace(b"\xff\xd4", b"\xff\xd5")
    yield "damaged_bits", damaged(cjpeg(image, "-quality", "50"), [(300, 0x55), (500, 0x0F), (700, 0xA0)])
    yield "damaged_short", restarts[: len(restarts) * 4 // 5].rstrip(b"\xff") + b"\xff\xd9"
    yield "damaged_progressive", damaged(cjpeg(image, "-progressive", "-quality", "50"), [(15, 0x33), (40, 0x71)])
    yield "damaged_levels", damaged(cjpeg(picture(53, 37, 4), "-quality", "3"), [(n, 0x10 + n // 9) for n in range(50, 900, 90)])


def main():
    print("Pillow with libjpeg-turbo", features.version("libjpeg_turbo"))
    HERE.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, data in files():
        pixels = Image.open(io.BytesIO(data)).convert("RGB")
        (HERE / f"{name}.jpg").write_bytes(data)
        digits = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        lines.append(f"{name} {pixels.width} {pixels.height} {digits}")
    (HERE / "pixels.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
