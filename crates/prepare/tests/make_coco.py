#!/usr/bin/env python3
"""Makes golden/coco.txt: what pandas makes of the tables of `coco.rs`. Needs pandas (made with 3.1.1, NumPy 2.4.6).

Lines `order N SHA256`: of `DataFrame.sample(frac=1, random_state=2023)` of N rows, their numbers as `<u4`.
Lines `training N COUNT SHA256` and `sdxl N COUNT SHA256`: of the lists of captions, as `to_csv` writes them.
"""

import hashlib
import pathlib

import numpy as np
import pandas as pd

OUT = pathlib.Path(__file__).parent / "golden" / "coco.txt"
WORDS = ["a cat", " two\ndogs\n", 'the "big" one', "tab\there", "caf\u00e9 \u3000", "\x1ex", ""]


def table(n):
    """Annotations of n captions, about four to an image, neither in the order of ids nor of images."""
    images = max(1, n // 4)
    annotations = [
        {"image_id": i * 7919 % images * 3 + 1, "id": i * 104729 % n + 10, "caption": f"{WORDS[i % 7]} {i}{WORDS[i % 5]}"}
        for i in range(n)
    ]
    images = [
        {"id": p * 3 + 1, "height": 480 + p % 7, "width": 640 - p % 9, "file_name": f"{p}.jpg", "coco_url": f"http://x/{p}"}
        for p in range(images)
    ]
    return pd.DataFrame(annotations), pd.DataFrame(images)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def main():
    lines = []
    for n in (1, 2, 3, 17, 1000, 65537, 200_000):
        rows = pd.DataFrame({"row": np.arange(n)}).sample(frac=1, random_state=2023)["row"]
        lines.append(f"order {n} {hashlib.sha256(rows.to_numpy().astype('<u4').tobytes()).hexdigest()}")
    strip = lambda text: text.replace("\n", "").strip()
    for n, count in ((1000, 200), (40_000, 5000)):
        annotations, images = table(n)
        first = lambda rows: rows.drop_duplicates(subset=["image_id"], keep="first")
        rows = annotations.assign(caption=annotations["caption"].apply(strip))
        rows = first(rows.sample(frac=1, random_state=2023))[:count].sort_values(by=["id"])
        lines.append(f"training {n} {count} {digest(rows.to_csv(sep=chr(9), index=False))}")
        rows = first(annotations).sort_values(by=["id"]).sample(frac=1, random_state=2023)[:count]
        rows = rows.assign(caption=rows["caption"].apply(strip))
        rows = rows.merge(images, left_on="image_id", right_on="id").rename(columns={"id_x": "id"}).sort_values(by=["id"])
        columns = ["id", "image_id", "caption", "height", "width", "file_name", "coco_url"]
        lines.append(f"sdxl {n} {count} {digest(rows[columns].to_csv(sep=chr(9), index=False))}")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
