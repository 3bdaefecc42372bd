#!/usr/bin/env python3
"""Makes networks.json: features of pictures of mixed sizes and modes, and of captions, behind each published preparation.

The networks are tiny and have weights by formula, which the test computes too: a CLIP in transformers' layout and in
open_clip's, a DINOv2, an EfficientNet-Lite0 (whole), and for Keras' Inception the prepared pictures.

    python make_networks.py

with torch 2.15.0, torchvision 0.29.2, transformers 5.23.0, open_clip 3.3.0, ftfy 6.3.1, torchmetrics 1.9.0, clean-fid 0.1.35,
Pillow 13.0.0 and efficientnet-lite-pytorch 0.1.0; nothing is downloaded.
"""

import json
import os
import pathlib
import sys
import tempfile
import types

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = pathlib.Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "models/tests/golden"))
sys.path.insert(0, str(ROOT / "models/tests"))

import numpy as np
import open_clip
import torch
import torchvision.transforms as transforms
from make_encoders import config, fill, fill_vit, open_clip_weights, parameter
from make_features import fill as fill_published
from make_tokenizer_golden import spell, transformers_files
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

# clean-fid imports OpenAI's package for its weights only.
sys.modules["clip"] = types.ModuleType("clip")
from cleanfid.clip_features import img_preprocess_clip  # noqa: E402

SIDE = 32
FILES = [
    "alpha.png", "deep.png", "deep_alpha.png", "deep_grey.png", "deep_grey_alpha.png", "four_levels.png", "frames.gif",
    "grey.bmp", "grey.png", "grey_alpha.png", "lossless.webp", "lossless_alpha.webp", "orientation_exif.png", "palette.png",
    "palette_transparent.png", "plain.bmp", "transparent.gif", "transparent_colour.png", "two_levels.png",
]
COUNT = 100 - len(FILES)
CAPTIONS = [
    "",
    "a cat",
    "A photograph of an astronaut riding a horse, 4k!",
    "  two   blanks,\tand a tab ",
    "Zürich, l'été & naïve café — “quoted”",
    "日本の桜 и снег 🍕🍕",
    "don't stop!! <|endoftext|> go on",
    " ".join(f"word{i} of many" for i in range(40)),
    " ".join(["tree"] * 75),
    " ".join(["tree"] * 76),
]


def size(n):
    """Sizes of all kinds: smaller and larger than the network's, wide, high, odd."""
    return 9 + n * 37 % 131, 8 + n * 53 % 117


def picture(n):
    width, height = size(n)
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return Image.fromarray((((x * 7 + y * 13 + c * 50 + n * 29) ^ (x * y // 5)) & 255).astype(np.uint8))


def all_pictures():
    """As stored, `convert("RGB")`."""
    folder = ROOT / "data/tests/golden/images"
    # Pixels alone: Pillow's `convert` leaves the transparent colour in `info`, and transformers would lay it on white.
    stored = [Image.fromarray(np.asarray(Image.open(folder / name).convert("RGB"))) for name in FILES]
    return stored + [picture(n) for n in range(COUNT)]


SIZES = dict(num_hidden_layers=2, num_attention_heads=2)


def transformers_clip():
    model = CLIPModel(
        CLIPConfig(
            projection_dim=8,
            text_config=dict(SIZES, hidden_size=16, intermediate_size=32, eos_token_id=49407, hidden_act="quick_gelu"),
            vision_config=dict(SIZES, hidden_size=32, intermediate_size=64, image_size=SIDE, patch_size=8, hidden_act="quick_gelu"),
        )
    )
    return fill(model)


def through_open_clip():
    model = open_clip.CLIP(
        embed_dim=8,
        vision_cfg=open_clip.CLIPVisionCfg(layers=2, width=32, head_width=16, mlp_ratio=2.0, patch_size=8, image_size=SIDE),
        text_cfg=open_clip.CLIPTextCfg(context_length=77, vocab_size=49408, width=16, heads=2, layers=2, mlp_ratio=2.0),
        quick_gelu=False,
    )
    missing, unexpected = model.load_state_dict(open_clip_weights(model.state_dict(), 2), strict=False)
    assert not unexpected and set(missing) <= {"logit_scale", "attn_mask"}, (missing, unexpected)
    return model.eval()


def pooled(out):
    return out if torch.is_tensor(out) else out.pooler_output


def rows(tensor):
    return [[float(f"{x:.7g}") for x in row] for row in tensor.detach().double().tolist()]


def one_by_one(encode, inputs):
    return rows(torch.cat([encode(x) for x in inputs]))


def tokenizer():
    own = SimpleTokenizer()
    merges = sorted(own.bpe_ranks, key=own.bpe_ranks.get)
    with tempfile.TemporaryDirectory() as folder:
        files = transformers_files(pathlib.Path(folder), {spell(token): i for token, i in own.encoder.items()}, merges)
        return CLIPTokenizer(*files, model_max_length=77)


def torchmetrics_features(model, processor, captions):
    """torchmetrics' own code on a model whose methods give tensors, as they did before transformers 5."""
    from torchmetrics.functional.multimodal.clip_score import _get_features

    wrapped = types.SimpleNamespace(
        config=model.config,
        get_text_features=lambda ids, mask: pooled(model.get_text_features(ids, mask)),
        get_image_features=lambda pixels: pooled(model.get_image_features(pixels)),
    )
    device = torch.device("cpu")
    of = lambda data, kind: _get_features(data, kind, device, wrapped, processor)
    texts = rows(of(captions, "text"))
    levels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in all_pictures()]
    return texts, one_by_one(lambda x: of([x], "image"), levels)


def cmmd(image):
    """io_util.py of google-research/cmmd: `_center_crop_and_resize`."""
    width, height = image.size
    shorter = min(width, height)
    left, top = (width - shorter) // 2, (height - shorter) // 2
    return image.crop((left, top, left + shorter, top + shorter)).resize((SIDE, SIDE), resample=Image.BICUBIC)


def clip_cases():
    images, cases = all_pictures(), {}
    model, words = transformers_clip(), tokenizer()
    size = dict(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    encode = lambda pixels: pooled(model.get_image_features(pixels_of(pixels)))
    pixels_of = lambda x: x if x.dim() == 4 else x.unsqueeze(0)
    normalise = transforms.Normalize(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    to_tensor = transforms.ToTensor()
    texts = words(CAPTIONS, padding=True, truncation=True, return_tensors="pt")
    texts = rows(pooled(model.get_text_features(texts["input_ids"], texts["attention_mask"])))
    for name, processor in [("transformers", CLIPImageProcessor(**size)), ("transformers-pillow", CLIPImageProcessorPil(**size))]:
        prepared = [processor(images=image, return_tensors="pt")["pixel_values"] for image in images]
        cases[name] = {"images": one_by_one(encode, prepared), "captions": texts}
    processor = CLIPProcessor(CLIPImageProcessor(**size), words)
    texts, pictures = torchmetrics_features(model, processor, CAPTIONS)
    cases["torchmetrics"] = {"images": pictures, "captions": texts}
    cases["cmmd"] = {"images": one_by_one(encode, [normalise(to_tensor(cmmd(image))) for image in images])}
    # clean-fid's function has the side of its network.
    at_224 = [img_preprocess_clip(np.array(image)) for image in images[:30]]
    transform = image_transform_v2(PreprocessCfg(size=224), is_train=False)
    for image, theirs in zip(images, at_224):
        same = transform(image) - normalise(torch.from_numpy(theirs).permute(2, 0, 1) / 255.0)
        assert same.abs().max() < 1e-6, "clean-fid cuts the pixels of open_clip out"
    model = through_open_clip()
    transform = image_transform_v2(PreprocessCfg(size=SIDE), is_train=False)
    ids = open_clip.tokenize(CAPTIONS)
    cases["open_clip"] = {
        "images": one_by_one(model.encode_image, [transform(image).unsqueeze(0) for image in images]),
        "captions": rows(model.encode_text(ids)),
    }
    return cases


def dinov2():
    """The preparation of dgm-eval: squeezed to 224 x 224; and that of transformers' published files."""
    from transformers import BitImageProcessor

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=140, patch_size=28)
    model = fill_published(Dinov2Model(Dinov2Config(**sizes)))
    squeezed = transforms.Compose(
        [transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    processor = BitImageProcessor(
        image_mean=mean, image_std=std, size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    )
    some = all_pictures()[::5]
    with torch.no_grad():
        class_token = lambda x: model(pixel_values=x).pooler_output
        return {
            "config": config(model),
            "processor": json.loads(processor.to_json_string()),
            "auto": one_by_one(class_token, [squeezed(image).unsqueeze(0) for image in some]),
            "by_processor": one_by_one(class_token, [processor(images=image, return_tensors="pt")["pixel_values"] for image in some]),
        }


def vit():
    """The normalised class token behind ViT's own processor."""
    sizes = dict(SIZES, hidden_size=16, intermediate_size=24, image_size=SIDE, patch_size=8, num_labels=3)
    model = fill_vit(ViTForImageClassification(ViTConfig(**sizes)))
    processor = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    with torch.no_grad():
        class_token = lambda x: model.vit(pixel_values=x).last_hidden_state[:, 0]
        some = [processor(images=image, return_tensors="pt")["pixel_values"] for image in all_pictures()[::5]]
        return {
            "config": config(model),
            "processor": json.loads(processor.to_json_string()),
            "auto": one_by_one(class_token, some),
        }


def efficientnet():
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(parameter(key, tuple(value.shape), 2.0**0.5))
        model.eval()
        prepare = transforms.Compose([transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)])
        levels = [np.asarray(prepare(image)).astype(np.float32) for image in all_pictures()[::25]]
        x = [torch.from_numpy((x - 127.0) / 128.0).permute(2, 0, 1).unsqueeze(0) for x in levels]
        return {"every": 40, "auto": one_by_one(lambda x: model.extract_features(x).mean((2, 3))[:, ::40], x)}


def main():
    with torch.no_grad():
        cases = {"files": FILES, "captions": CAPTIONS, "clip": clip_cases()}
        cases |= {"dinov2": dinov2(), "vit": vit(), "efficientnet": efficientnet()}
    text = json.dumps(cases, ensure_ascii=False, separators=(",", ":"))
    pathlib.Path(__file__).resolve().with_name("networks.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
