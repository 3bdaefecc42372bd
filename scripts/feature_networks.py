"""Compares Calotype's EfficientNet-Lite0 and Keras' Inception v3 with their own libraries, on trained weights and a real picture.

    python feature_networks.py FOLDER CALOTYPE

FOLDER is what feature-networks.sh makes. Ends with 1 if features differ by more than 1e-4 of the largest, or if the picture's
class is none of a cat's.
"""

import os
import pathlib
import subprocess
import sys

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.numpy import load_file, save_file
from torchvision import transforms

FOLDER, CALOTYPE = pathlib.Path(sys.argv[1]), sys.argv[2]
WORK = FOLDER / "work"
BOUND = 1e-4
CATS = range(281, 286)
SIDE = 299


def probe(network, weights, pixels):
    """Outputs of a network for [batch, channels, height, width]."""
    save_file({"pixel_values": np.ascontiguousarray(pixels, dtype=np.float32)}, WORK / "in.safetensors")
    command = [CALOTYPE, "probe", network, "--model", weights, "--in", WORK / "in.safetensors", "--out", WORK / "out.safetensors"]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    return load_file(WORK / "out.safetensors")


def far(ours, theirs):
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def efficientnet(picture):
    weights = FOLDER / "efficientnet-lite0.pth"
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, weights_only=True))
    model.eval()
    cut = transforms.Compose([transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)])
    levels = np.asarray(cut(picture)).astype(np.float32)
    pixels = ((levels - 127.0) / 128.0).transpose(2, 0, 1)[None]
    with torch.no_grad():
        features = model.extract_features(torch.from_numpy(pixels.copy())).mean((2, 3)).numpy()
        logits = model(torch.from_numpy(pixels.copy())).numpy()
    ours = probe("efficientnet-lite", weights, pixels)
    best = int(ours["logits"].argmax())
    print(f"efficientnet-lite0: features differ by {far(ours['features'], features):.1e}, class {best}")
    return max(far(ours["features"], features), far(ours["logits"], logits)) <= BOUND and best in CATS


def keras_inception(picture):
    (WORK / "pixels").write_bytes(np.asarray(picture).tobytes())
    script = pathlib.Path(__file__).resolve().with_name("nsfw_inception.cjs")
    model = WORK / "package/dist/models/inception_v3"
    command = ["node", script, "features", model, WORK / "pixels", picture.width, picture.height, WORK / "features"]
    environment = os.environ | {"NODE_PATH": str(WORK / "node_modules")}
    subprocess.run([str(part) for part in command], check=True, env=environment, stderr=subprocess.DEVNULL)
    values = np.fromfile(WORK / "features", dtype="<f4")
    prepared, features = values[: SIDE * SIDE * 3].reshape(1, SIDE, SIDE, 3), values[SIDE * SIDE * 3 :]
    ours = probe("keras-inception", FOLDER / "nsfw-inception-v3.safetensors", prepared.transpose(0, 3, 1, 2))
    print(f"keras-inception-v3: features differ by {far(ours['features'][0], features):.1e}")
    return far(ours["features"][0], features) <= BOUND


chelsea = Image.open(WORK / "chelsea.png").convert("RGB")
good = [efficientnet(chelsea), keras_inception(chelsea)]
sys.exit(0 if all(good) else 1)
