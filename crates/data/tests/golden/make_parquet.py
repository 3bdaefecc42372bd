"""Writes `pictures.parquet` as Hugging Face's `datasets` (5.2.0, pyarrow 26) does: run in this folder.

Four pictures of one colour each, with captions and class labels; `tests/sources.rs` knows the colours.
"""

import io

from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow

COLOURS = {"red": (215, 25, 30), "green": (30, 150, 60), "blue": (35, 85, 220), "white": (255, 255, 255)}


def encoded(colour, kind):
    out = io.BytesIO()
    Pillow.new("RGB", (16, 8), colour).save(out, kind)
    return out.getvalue()


rows = [
    {
        "image": {"bytes": encoded(colour, "JPEG" if name == "white" else "PNG"), "path": f"{name}.picture"},
        "text": f"a {name} picture",
        "label": number % 2,
        "weight": number / 4,
    }
    for number, (name, colour) in enumerate(COLOURS.items())
]
features = Features(
    {"image": Image(), "text": Value("string"), "label": ClassLabel(names=["even", "odd"]), "weight": Value("float32")}
)
Dataset.from_list(rows, features=features).to_parquet("pictures.parquet", batch_size=3)
