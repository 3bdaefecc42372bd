#!/usr/bin/env bash
# Three ways to prepare a picture and a caption for CLIP that sound the same and are not: transformers 5.23.0, torchvision 0.29.2,
# torchmetrics 1.9.0, open_clip 3.3.0, Pillow 13.0.0.
#
# - CLIPImageProcessor (through torchvision, the default since transformers 5) resizes 8-bit tensors with torch's weights of 16 bits, and
#   its levels differ from those of CLIPImageProcessorPil by one here and there. Both begin the middle at the lower half pixel, where
#   torchvision's CenterCrop, and with it open_clip, rounds to even: other pixels altogether.
# - open_clip's transform resizes a picture with a palette in its own mode, by the nearest pixel, before it converts it.
# - torchmetrics' CLIPScore cuts rows of ids at 77, so that a caption that is too long has no end token, and is read at its start.
#
#   findings/clip_preparations.sh
#
# installs pinned packages in a temporary folder, and fails if they behave otherwise. FINDINGS_PYTHON names a Python that has them already.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python="${FINDINGS_PYTHON:-}"
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q torch==2.15.0 torchvision==0.29.2 transformers==5.23.0 open-clip-torch==3.3.0 torchmetrics==1.9.0 \
        pillow==13.0.0 numpy
fi
HF_HUB_OFFLINE=1 "$python" - 2>/dev/null <<'PYTHON'
import types

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchmetrics.functional.multimodal.clip_score import _get_features
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SIDE = 32
MEAN, STD = [torch.tensor(x).view(3, 1, 1) for x in (CLIPImageProcessor.image_mean, CLIPImageProcessor.image_std)]
size = dict(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def levels(pixels):
    return ((pixels * STD + MEAN) * 255).round().int()


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8))


# 100 x 110 becomes 32 x 35, of which three rows are over.
image = picture(100, 110)
through_torch = levels(CLIPImageProcessor(**size)(images=image, return_tensors="pt")["pixel_values"][0])
through_pillow = levels(torch.as_tensor(CLIPImageProcessorPil(**size)(images=image, return_tensors="pt")["pixel_values"][0]))
open_clip = levels(image_transform_v2(PreprocessCfg(size=SIDE), is_train=False)(image))
far = (through_torch - through_pillow).abs()
print("torch against Pillow:", (far > 0).float().mean().item(), "of the levels differ, at most by", far.max().item())
assert far.max() == 1
whole = torch.from_numpy(np.asarray(image.resize((32, 35), Image.BICUBIC)).copy()).permute(2, 0, 1).int()
assert torch.equal(through_pillow, whole[:, 1:33]) and torch.equal(open_clip, whole[:, 2:34])
print("of three rows that are over, transformers leaves one out above, open_clip two")

palette = image.quantize(16)
own = levels(image_transform_v2(PreprocessCfg(size=SIDE), is_train=False)(palette))
converted = levels(image_transform_v2(PreprocessCfg(size=SIDE), is_train=False)(palette.convert("RGB")))
colours = {tuple(c) for c in np.asarray(palette.convert("RGB")).reshape(-1, 3).tolist()}
assert {tuple(c) for c in own.reshape(3, -1).T.tolist()} <= colours and not torch.equal(own, converted)
print("open_clip keeps to the palette's colours")

seen = []
model = types.SimpleNamespace(
    config=types.SimpleNamespace(text_config=types.SimpleNamespace(max_position_embeddings=77)),
    get_text_features=lambda ids, mask: seen.append(ids) or torch.zeros(len(ids), 1),
)
row = torch.cat([torch.tensor([49406]), torch.full((80,), 320), torch.tensor([49407])])
_get_features(["x"], "text", torch.device("cpu"), model, lambda **_: {"input_ids": row[None], "attention_mask": torch.ones(1, 82)})
assert seen[0].shape == (1, 77) and not (seen[0] == 49407).any()
print("torchmetrics: 77 ids, none of which is the end of text")
PYTHON
