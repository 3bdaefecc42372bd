#!/usr/bin/env python3
"""Makes the golden files of `images.rs`: what Pillow and torchvision make of images.

    python3 -m venv venv && venv/bin/pip install pillow==13.0.0 numpy torchvision
    venv/bin/python crates/data/tests/make_images.py FOLDER_OF_EMOJI
    venv/bin/python crates/data/tests/make_images.py --check FILE.npz

FOLDER_OF_EMOJI holds Twemoji's PNGs of 72x72 pixels (`1f600.png`), as crate twemoji-assets has them in its assets.

golden/images/resized.txt    for each of 50 images: of 4 filters, down and up, the first 16 digits of the SHA-256
golden/images/cropped.txt    torchvision's Resize and CenterCrop: width, height, side, digits
golden/images/composited.txt for each image that may be transparent: digits of it over white and over #c0ffee
golden/images/NAME.EXT       an image file of each kind, and NAME.rgb: its size in a line, and its `convert("RGB")`
golden/images/fid*.npz       numpy.savez and numpy.savez_compressed of `mu` and `sigma`
"""

import hashlib
import pathlib
import struct
import sys
import zlib

import numpy as np
from PIL import Image, ImageOps

HERE = pathlib.Path(__file__).parent / "golden" / "images"
FILTERS = [Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
SIZES = [
    (1, 1), (2, 1), (1, 2), (1, 37), (41, 1), (3, 500), (500, 3), (2, 301), (7, 5), (16, 16),
    (31, 64), (64, 31), (97, 131), (131, 97), (150, 150), (255, 257), (200, 13), (13, 200), (333, 111), (128, 256),
]
EMOJI = ["1f600", "1f355", "1f98a", "1f6b2", "1f499", "1f308", "1f3e0", "26bd", "1f319", "1f34e"]


def noise(size, seed):
    """Bytes [height, width, 3] of three kinds by the seed: noise with many extremes, a gradient, tiles."""
    width, height = size
    i = np.arange(width * height * 3, dtype=np.uint32)
    x = i * np.uint32(2654435761) + np.uint32(seed * 40503)
    x ^= x >> np.uint32(15)
    x *= np.uint32(2246822519)
    x ^= x >> np.uint32(13)
    kinds = (x >> np.uint32(22)) & np.uint32(3)
    if seed % 3 == 0:
        data = np.where(kinds == 0, 0, np.where(kinds == 1, 255, x >> np.uint32(24)))
    else:
        column, row, channel = i // 3 % width, i // 3 // width, i % 3
        data = column * 13 + row * 7 + channel * 50
        if seed % 3 == 2:
            data = ((column // 3 + row // 2 + channel) % 2) * 255
    return (data % 256).astype(np.uint8).reshape(height, width, 3)


def digits(image):
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def resized(emoji):
    pictures = [Image.fromarray(noise(SIZES[seed % len(SIZES)], seed)) for seed in range(40)]
    for name in EMOJI:
        drawing = Image.open(emoji / f"{name}.png").convert("RGBA")
        white = Image.new("RGBA", drawing.size, (255, 255, 255, 255))
        pictures.append(Image.alpha_composite(white, drawing).convert("RGB"))
    lines = []
    for image in pictures:
        w, h = image.size
        down = (max(1, w * 2 // 5), max(1, h * 3 // 7))
        up = (w * 7 // 3 + 1, h * 9 // 5 + 1)
        lines.append(" ".join(digits(image.resize(size, f)) for f in FILTERS for size in (down, up)))
    (HERE / "resized.txt").write_text("\n".join(lines) + "\n")


def cropped():
    from torchvision import transforms

    lines = []
    for seed, (size, side) in enumerate([
        ((640, 480), 64), ((480, 640), 64), ((333, 500), 32), ((500, 333), 33), ((100, 100), 100), ((101, 99), 50),
        ((64, 1000), 24), ((1000, 64), 25), ((17, 31), 40), ((31, 17), 41),
    ]):
        steps = transforms.Compose([
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True),
            transforms.CenterCrop(side),
        ])
        lines.append(f"{size[0]} {size[1]} {side} {digits(steps(Image.fromarray(noise(size, seed))))}")
    (HERE / "cropped.txt").write_text("\n".join(lines) + "\n")


def png(size, depth, kind, rows, extra=b""):
    """A PNG of given bytes, for the kinds that Pillow does not write."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def formats():
    width, height = size = (17, 11)
    smooth = Image.fromarray(noise((90, 60), 1)).resize(size, Image.Resampling.BICUBIC)
    sharp = Image.fromarray(noise(size, 3))
    alpha = sharp.copy()
    alpha.putalpha(Image.fromarray(noise(size, 6)[:, :, 0]))
    palette = sharp.quantize(16)
    files = {
        "grey.png": lambda p: sharp.convert("L").save(p),
        "grey_alpha.png": lambda p: alpha.convert("LA").save(p),
        "alpha.png": lambda p: alpha.save(p),
        "palette.png": lambda p: palette.save(p),
        "palette_transparent.png": lambda p: palette.save(p, transparency=3),
        "two_levels.png": lambda p: sharp.convert("1").save(p),
        "transparent_colour.png": lambda p: sharp.save(p, transparency=sharp.getpixel((0, 0))),
        "plain.bmp": lambda p: sharp.save(p),
        "grey.bmp": lambda p: sharp.convert("L").save(p),
        "frames.gif": lambda p: palette.save(p, save_all=True, append_images=[smooth.quantize(8)]),
        "transparent.gif": lambda p: palette.save(p, transparency=3),
        "lossless.webp": lambda p: sharp.save(p, lossless=True),
        "lossless_alpha.webp": lambda p: alpha.save(p, lossless=True, exact=True),
        "lossy.webp": lambda p: smooth.save(p, quality=90),
        "plain.jpg": lambda p: smooth.save(p, quality=90),
        "full_colour.jpg": lambda p: smooth.save(p, quality=90, subsampling=0),
        "half_colour.jpg": lambda p: smooth.save(p, quality=90, subsampling=1),
        "progressive.jpg": lambda p: smooth.save(p, quality=90, progressive=True),
        "grey.jpg": lambda p: smooth.convert("L").save(p, quality=90),
        "cmyk.jpg": lambda p: smooth.convert("CMYK").save(p, quality=95),
        "restarts.jpg": lambda p: smooth.save(p, quality=90, restart_marker_blocks=1),
    }
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[f"orientation_{orientation}.jpg"] = lambda p, e=exif: smooth.save(p, quality=90, exif=e)
    exif = Image.Exif()
    exif[0x0112] = 6
    files["orientation_exif.png"] = lambda p: smooth.save(p, exif=exif)
    files["orientation_exif.webp"] = lambda p: smooth.save(p, lossless=True, exif=exif)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
    files["orientation_xmp.jpg"] = lambda p: smooth.save(p, quality=90, xmp=xmp % 8)
    files["orientation_xmp.webp"] = lambda p: smooth.save(p, lossless=True, xmp=xmp % 5)
    for name, save in files.items():
        save(HERE / name)
    words = np.frombuffer(noise((width * 8, height), 9).tobytes(), dtype=np.uint8)
    deep = lambda channels: [words[y * width * 8 :][: width * channels * 2].tobytes() for y in range(height)]
    (HERE / "deep_grey_alpha.png").write_bytes(png(size, 16, 4, deep(2)))
    (HERE / "deep.png").write_bytes(png(size, 16, 2, deep(3)))
    (HERE / "deep_alpha.png").write_bytes(png(size, 16, 6, deep(4)))
    (HERE / "deep_grey.png").write_bytes(png(size, 16, 0, deep(1)))
    (HERE / "four_levels.png").write_bytes(png(size, 2, 0, [words[y * 40 :][:5].tobytes() for y in range(height)]))
    for path in sorted(HERE.iterdir()):
        if path.suffix in (".png", ".jpg", ".gif", ".webp", ".bmp"):
            image = Image.open(path)
            if path.stem.startswith("orientation"):
                image = ImageOps.exif_transpose(image)
            rgb = image.convert("RGB")
            path.with_name(path.name + ".rgb").write_bytes(b"%d %d\n" % rgb.size + rgb.tobytes())


def composited():
    """Every picture over two backgrounds, at full size: name, digits of each."""
    lines = []
    for path in sorted(HERE.iterdir()):
        if path.suffix not in (".png", ".gif", ".webp") or path.stem.startswith("orientation") or path.stem == "deep_grey":
            continue
        image = Image.open(path).convert("RGBA")
        over = [
            Image.alpha_composite(Image.new("RGBA", image.size, colour), image).convert("RGB")
            for colour in ("#ffffff", "#c0ffee")
        ]
        lines.append(" ".join([path.name] + [digits(rgb) for rgb in over]))
    (HERE / "composited.txt").write_text("\n".join(lines) + "\n")


def statistics():
    rng = np.random.RandomState(7)
    features = rng.randn(50, 4)
    arrays = {"mu": features.mean(0), "sigma": np.cov(features, rowvar=False)}
    np.savez(HERE / "fid.npz", **arrays)
    np.savez_compressed(HERE / "fid_compressed.npz", **arrays)


def check(path):
    """A file that the test wrote, against the one of this script."""
    found, expected = np.load(path), np.load(HERE / "fid.npz")
    assert sorted(found.files) == ["mu", "sigma"], found.files
    for name in found.files:
        assert found[name].dtype == np.float64 and np.array_equal(found[name], expected[name]), name
    print("equal")


if __name__ == "__main__":
    if sys.argv[1] == "--check":
        check(sys.argv[2])
    else:
        HERE.mkdir(parents=True, exist_ok=True)
        resized(pathlib.Path(sys.argv[1]))
        cropped()
        formats()
        composited()
        statistics()
