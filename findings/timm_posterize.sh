#!/usr/bin/env bash
# timm 1.0.31 with Pillow 13.0.0: RandAugment of increasing strength, as DeiT trains with it (rand-m9-mstd0.5-inc1), ends now and then with a
# ValueError.
#
# Its PosterizeIncreasing keeps 4 - int(magnitude / 10 * 4) bits, none from a magnitude of 10 on, which noise reaches. Pillow up to 12 made such
# images black; Pillow 13 refuses 0 bits. About one image in 700 is concerned, and every eighth with rand-m10-inc1-p1.0. Here such an image is black.
#
#   findings/timm_posterize.sh
#
# installs pinned packages in a temporary folder, and fails if they behave otherwise. FINDINGS_PYTHON names a Python that has them already.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python="${FINDINGS_PYTHON:-}"
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q timm==1.0.31 pillow==13.0.0
fi
"$python" - <<'PYTHON'
import random

import numpy as np
import PIL
import timm
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

print("timm", timm.__version__, "Pillow", PIL.__version__)
image = Image.new("RGB", (8, 8), (200, 100, 50))
for name, count, least, most in [("rand-m9-mstd0.5-inc1", 20000, 15, 60), ("rand-m10-inc1-p1.0", 2000, 200, 330),
                                 ("rand-m9-inc1", 2000, 0, 0)]:
    np.random.seed(0)
    random.seed(0)
    augment, failed = rand_augment_transform(name, {}), 0
    for _ in range(count):
        try:
            augment(image)
        except ValueError as error:
            assert "bits must be between" in str(error), error
            failed += 1
    print(f"{name}: {failed} of {count} images")
    assert least <= failed <= most
print("as before")
PYTHON
