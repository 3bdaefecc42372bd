#!/usr/bin/env bash
# transformers 5.23.0 with Pillow 13.0.0: a picture with a palette and a transparent entry, converted to RGB, is prepared for CLIP with
# other pixels than its own.
#
# Pillow's convert("RGB") drops the transparency of the pixels, and keeps the transparent colour in `info`. CLIPImageProcessor takes that for
# transparency: every pixel of that colour becomes white before the picture is resized. The same pixels in an image without `info`, as
# after Image.fromarray, stay what they are; so do they in CLIPScore, FID and whatever else reads arrays. A figure on such pictures
# therefore depends on how they were handed over.
#
#   findings/transformers_transparency.sh
#
# installs pinned packages in a temporary folder, and fails if they behave otherwise. FINDINGS_PYTHON names a Python that has them already.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python="${FINDINGS_PYTHON:-}"
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q torch==2.15.0 torchvision==0.29.2 transformers==5.23.0 pillow==13.0.0 numpy
fi
HF_HUB_OFFLINE=1 "$python" - 2>/dev/null <<'PYTHON'
import io

import numpy as np
import PIL
import torch
import transformers
from PIL import Image
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

print("transformers", transformers.__version__, "Pillow", PIL.__version__)
# Half red, half blue; red is the transparent entry of the palette.
image = Image.new("P", (32, 32))
image.putpalette([255, 0, 0, 0, 0, 255])
image.paste(1, (16, 0, 32, 32))
file = io.BytesIO()
image.save(file, "PNG", transparency=0)
rgb = Image.open(file).convert("RGB")
bare = Image.fromarray(np.asarray(rgb))
print("in info:", rgb.info.get("transparency"), "and", bare.info.get("transparency"), "; equal pixels:", np.array_equal(rgb, bare))
assert rgb.info["transparency"] == (255, 0, 0) and "transparency" not in bare.info and np.array_equal(rgb, bare)
for kind in (CLIPImageProcessor, CLIPImageProcessorPil):
    processor = kind(do_resize=False, do_center_crop=False, do_normalize=False)
    of = lambda picture: torch.as_tensor(processor(images=picture, return_tensors="pt")["pixel_values"][0])
    with_info, without = of(rgb), of(bare)
    print(kind.__name__, "left half:", with_info[:, 0, 0].tolist(), "and", without[:, 0, 0].tolist())
    assert with_info[:, 0, 0].tolist() == [1.0, 1.0, 1.0] and without[:, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert torch.equal(with_info[:, :, 16:], without[:, :, 16:])
print("as before")
PYTHON
