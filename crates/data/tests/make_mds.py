#!/usr/bin/env python3
"""Makes golden/mds with mosaicml-streaming 0.13.0, and golden/mds/*.json, which says what Streaming reads in it.

    scripts/data-peers.sh --python    prints a Python that has it
    that-python crates/data/tests/make_mds.py

plain     several shards by a size limit, nearly every encoding, md5 and xxh64
odd       what is read but not written in the same form: pickles, pictures of one bit
zstd      few columns, compressed with zstd:7, with hashes of all algorithms
gz, br, snappy    three samples, one shard each
"""

import io
import json
import pathlib
import pickle
import shutil
from decimal import Decimal

import numpy as np
from PIL import Image
from streaming import MDSWriter
from streaming.base.hashing import get_hashes

HERE = pathlib.Path(__file__).parent / "golden" / "mds"

PLAIN = {
    "a_bytes": "bytes", "a_int": "int", "a_str": "str", "f16": "float16", "f32": "float32", "f64": "float64",
    "i16": "int16", "i32": "int32", "i64": "int64", "i8": "int8", "u16": "uint16", "u32": "uint32", "u64": "uint64",
    "u8": "uint8", "s_dec": "str_decimal", "s_float": "str_float", "s_int": "str_int", "nd": "ndarray",
    "nd_f2": "ndarray:float16", "nd_fixed": "ndarray:float32:2,3", "json": "json", "jpg": "jpeg",
    "png": "png", "pil": "pil", "jpegs": "jpeg_array", "pngs": "list[png]", "pils": "list[pil]",
}


def picture(i, mode="RGB", size=(5, 4)):
    levels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels).convert(mode)


def encoded(image, kind):
    out = io.BytesIO()
    image.save(out, format=kind)
    return out.getvalue()


def sample(i):
    kinds = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
    side = 300 if i == 3 else 2 + i
    return {
        "a_bytes": bytes(range(i)), "a_int": -(10**15) * i, "a_str": f"läuft {i} \N{GRINNING FACE}"[: 7 + 3 * i],
        "f16": [0.1, -2.5, 65504.0, 1e-7, 3.0][i], "f32": [0.1, float("inf"), -3e38, 1e-40, 2.0][i],
        "f64": [0.1, float("nan"), 1e300, 5e-324, -0.0][i],
        "i16": -i * 1000, "i32": i * 10**8, "i64": -(2**63) + i, "i8": i - 128, "u16": 65535 - i, "u32": 2**32 - 1 - i,
        "u64": 2**64 - 1 - i, "u8": 255 - i, "s_dec": Decimal("1.10") * 10**i, "s_float": 1e-5 * i, "s_int": 10 ** (20 + i),
        "nd": (np.arange(2 * side) - 3).astype(kinds[(2 * i + 1) % 10]).reshape(side, 2),
        "nd_f2": (np.arange(1, 2 + i) / 3).astype(np.float16), "nd_fixed": np.arange(6, dtype=np.float32).reshape(2, 3) * i,
        "json": {"n": i, "list": [1, None, "é"]}, "key": f"dir/{i}",
        "pkl": {"n": i, "t": (1, 2.5, "x"), "none": None}, "jpg": encoded(picture(i), "JPEG"), "png": encoded(picture(i), "PNG"),
        "pil": picture(i, ["RGB", "L", "RGBA", "LA", "RGB"][i]), "pil_1": picture(i, "1", (11, 3)),
        "jpegs": [encoded(picture(i + n), "JPEG") for n in range(1 + i % 2)],
        "pngs": [picture(i + n) for n in range(i % 3)], "pils": [picture(i + n, "L") for n in range(i % 2)],
    }


def text(column, value):
    """What is expected of a part, as text or hexadecimal bytes."""
    if isinstance(value, Image.Image):
        return {"mode": value.mode, "size": value.size, "pixels": value.tobytes().hex()}
    if isinstance(value, np.ndarray):
        out = io.BytesIO()
        np.save(out, value)
        return {"npy": out.getvalue().hex()}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, list):
        return [text(column, element) for element in value]
    if isinstance(value, np.generic):
        value = value.item()
    return {"value": value if isinstance(value, (dict, str)) else str(value)}


def main():
    shutil.rmtree(HERE, ignore_errors=True)
    samples = [sample(i) for i in range(5)]
    with MDSWriter(out=str(HERE / "plain"), columns=PLAIN, size_limit=9000, hashes=["md5", "xxh64"]) as writer:
        for one in samples:
            writer.write(one)
    with MDSWriter(out=str(HERE / "odd"), columns={"pkl": "pkl", "pil_1": "pil", "__key__": "str"}) as writer:
        for one in samples:
            writer.write({"pkl": one["pkl"], "pil_1": one["pil_1"], "__key__": one["key"]})
    small = {name: PLAIN[name] for name in ("a_bytes", "a_int", "a_str", "nd")}
    with MDSWriter(out=str(HERE / "zstd"), columns=small, compression="zstd:7", hashes=sorted(get_hashes())) as writer:
        for one in samples:
            writer.write({name: one[name] for name in small})
    for compression in ("gz", "br:4", "snappy"):
        out = HERE / compression.split(":")[0]
        with MDSWriter(out=str(out), columns={"a_str": "str"}, compression=compression, size_limit=None) as writer:
            for one in samples[:3]:
                writer.write({"a_str": one["a_str"]})
    expected = []
    for one in samples:
        # What goes in is checked against what comes out by Streaming's own tests; numbers of fixed width are rounded.
        for name in ("f16", "f32"):
            one[name] = getattr(np, "float" + name[1:])(one[name])
        expected.append({name: text(name, value) for name, value in one.items()})
    (HERE / "expected.json").write_text(json.dumps(expected, indent=0, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
