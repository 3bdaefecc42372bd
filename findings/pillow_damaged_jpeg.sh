#!/usr/bin/env bash
# Pillow 13.0.0 (libjpeg-turbo 3.2.0): a JPEG without its last bytes is an error, one whose data are damaged inside is not.
#
# With two thirds of its data taken out and the end marker left, a file loads without an error or a warning, and its lower part is
# grey. So does one with other bytes in its data. A progressive file of which only the first scan is left loads, too, with coefficients
# that libjpeg-turbo estimates from 5x5 blocks. Datasets that were checked by loading their pictures with Pillow may hold such files.
#
#   findings/pillow_damaged_jpeg.sh
#
# installs pinned packages in a temporary folder, and fails if they behave otherwise. FINDINGS_PYTHON names a Python that has them already.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python="${FINDINGS_PYTHON:-}"
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q pillow==13.0.0 numpy
fi
"$python" -W error - <<'PYTHON'
import io

import numpy as np
from PIL import Image, features

print("libjpeg-turbo", features.version("libjpeg_turbo"))
image = Image.fromarray(np.random.RandomState(1).randint(0, 256, (96, 64, 3), dtype=np.uint8))


def saved(**how):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, **how)
    return out.getvalue()


def load(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


whole = saved()
start = whole.index(b"\xff\xda") + 14
try:
    load(whole[:-100])
    raise SystemExit("a cut file loads")
except OSError as error:
    print("cut:", error)
kept = start + (len(whole) - start) // 3
short = load(whole[:kept].rstrip(b"\xff") + b"\xff\xd9")
assert (short[-16:] == 128).all() and (short[:16] == load(whole)[:16]).all()
print("two thirds taken out: no error, the last rows are grey")
bits = bytearray(whole)
bits[start + 200] ^= 0x24
assert (load(bytes(bits)) != load(whole)).any()
print("other bits: no error")
progressive = saved(progressive=True)
first = progressive.index(b"\xff\xda")
second = progressive.index(b"\xff\xc4", first)
coarse = load(progressive[:second] + b"\xff\xd9")
inside = coarse.reshape(6, 16, 4, 16, 3)
assert (inside != inside[:, :1, :, :1]).any(), "blocks of one colour"
print("the first of", progressive.count(b"\xff\xda"), "scans alone: no error, estimated coefficients")
print("as before")
PYTHON
