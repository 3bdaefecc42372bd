"""Counts that pandas finds in a table of 200,000 rows, for the filter stage's tests.

    python make_filter.py > filter.json

The table is computed from the row numbers alone, here and in tests/filter.rs, so that it need not be kept.
"""

import json

import numpy as np
import pandas as pd

ROWS = 200_000
LICENSES = ["?", "CC-BY 2.0", "", None, "CC0 1.0"]
VERDICTS = ["UNLIKELY", "UNSURE", "NSFW", None]
WORDS = ["toucan", "Zebra", "50% off", "élan", "snow_man"]


def scattered(column):
    """24 well mixed bits of every row number."""
    rows = np.arange(1, ROWS + 1, dtype=np.uint64)
    return (rows * np.uint64(2654435761 + 80_940 * column) % np.uint64(1 << 32) >> np.uint64(8)).astype(np.int64)


def chosen(values, column):
    return pd.Series(np.array(values, dtype=object)[scattered(column) % len(values)], dtype=object)


table = pd.DataFrame({"SAMPLE_ID": np.arange(ROWS, dtype=np.int64)})
table["WIDTH"] = pd.Series(16 + scattered(1) % 2000, dtype="Int32").mask(scattered(9) % 50 == 0)
table["HEIGHT"] = pd.Series(16 + scattered(2) % 2000, dtype="int32")
table["similarity"] = (scattered(3) % 10_000) / 20_000
table["LICENSE"] = chosen(LICENSES, 4)
table["NSFW"] = chosen(VERDICTS, 5)
table["TEXT"] = [f"a {word} at {number}" for word, number in zip(chosen(WORDS, 6), scattered(7) % 1000)]

width, height = table.WIDTH, table.HEIGHT
text = table.TEXT
longer, shorter = np.maximum(width.fillna(0), height), np.minimum(width.fillna(0), height)
MASKS = {
    # As the reference filters: a missing licence is unequal to the question mark, too.
    "LICENSE is null or LICENSE != '?'": table.LICENSE != "?",
    'LICENSE != "?"': (table.LICENSE != "?") & table.LICENSE.notna(),
    "WIDTH >= 512 and HEIGHT >= 512": (width >= 512) & (height >= 512),
    "WIDTH >= 1024 or HEIGHT >= 1024": (width.fillna(0) >= 1024) | (height >= 1024),
    "not (WIDTH > 300)": ~(width > 300),
    "max(WIDTH, HEIGHT) <= 2 * min(WIDTH, HEIGHT)": width.notna() & (longer <= 2 * shorter),
    "WIDTH / HEIGHT between 0.75 and 1.3333": (width / height >= 0.75) & (width / height <= 1.3333),
    "WIDTH * HEIGHT - 1000 > 1000000": width * height - 1000 > 1_000_000,
    "similarity > 0.3 and similarity <= 0.4": (table.similarity > 0.3) & (table.similarity <= 0.4),
    "NSFW in ('UNLIKELY', 'UNSURE')": table.NSFW.isin(["UNLIKELY", "UNSURE"]),
    "NSFW not in ('NSFW')": table.NSFW.notna() & ~table.NSFW.isin(["NSFW"]),
    "NSFW is null": table.NSFW.isna(),
    "TEXT like 'a toucan%'": text.str.startswith("a toucan"),
    "TEXT like '%50_ off%' or TEXT like '%snow_man%'": text.str.contains("50. off|snow.man"),
    "lower(TEXT) matches 'zebra.*7$'": text.str.lower().str.contains("zebra.*7$"),
    "length(TEXT) < 13": text.str.len() < 13,
    "coalesce(WIDTH, HEIGHT) < 100": width.fillna(height) < 100,
    "abs(WIDTH - HEIGHT) <= 10": (width - height).abs() <= 10,
    "LICENSE > 'CC-BY'": table.LICENSE.notna() & (table.LICENSE.fillna("") > "CC-BY"),
}

golden = []
for condition, mask in MASKS.items():
    kept = table.SAMPLE_ID[mask.fillna(False).astype(bool)]
    golden.append({"condition": condition, "rows": len(kept), "sum_of_ids": int(kept.sum())})
print(json.dumps(golden, indent=1))
