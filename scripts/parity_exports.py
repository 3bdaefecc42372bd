"""Whether diffusers and transformers load what Calotype writes, and compute the same with it; see parity.sh.

The example `export` of calotype-checkpoints writes small models of random weights, with inputs and outputs. Here each is
loaded with its own library: no key may be missing or unexpected, token ids must be equal, pixel values and outputs within
1e-4 in f32 (largest difference over largest value).
"""
import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

F32 = 1e-4
failures = []


def check(what, ok, found=""):
    print(f"{'ok    ' if ok else 'BROKEN'}  {what}  {found}")
    if not ok:
        failures.append(what)


def close(what, found, expected, bound=F32):
    found, expected = found.detach().float(), expected.float()
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    check(what, found.shape == expected.shape and error <= bound, f"{error:.1e}")


def load(kind, folder, **options):
    """The model, with nothing missing and nothing left over."""
    model, info = kind.from_pretrained(folder, output_loading_info=True, **options)
    name = f"{kind.__name__} of {Path(folder).name}"
    for part in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        check(f"{name}: no {part}", not info[part], list(info[part])[:3])
    return model.eval()


def same_ids(what, tokenizer, prompts, ids):
    rows = tokenizer(prompts, padding="max_length", truncation=True, max_length=ids.shape[1], return_tensors="pt").input_ids
    wrong = [prompt for prompt, a, b in zip(prompts, rows, ids) if not torch.equal(a, b)]
    check(f"{what}: token ids", not wrong, wrong)
    check(f"{what}: length", tokenizer.model_max_length == ids.shape[1], tokenizer.model_max_length)


def pipelines(folder, prompts):
    from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer

    root = folder / "pipeline"
    expected = load_file(root / "expected.safetensors")
    unet = load(UNet2DConditionModel, root, subfolder="unet")
    vae = load(AutoencoderKL, root, subfolder="vae")
    text = load(CLIPTextModel, root, subfolder="text_encoder")
    for kind in (CLIPTokenizer, AutoTokenizer):
        same_ids(f"{kind.__name__} of pipeline", kind.from_pretrained(root / "tokenizer"), prompts, expected["ids"])
    check("scaling factor", vae.config.scaling_factor == 0.75)
    check("sample sizes", (unet.config.sample_size, vae.config.sample_size) == (16, 32))
    with torch.no_grad():
        states = text(expected["ids"]).last_hidden_state
        close("hidden states", states, expected["states"])
        context = expected["states"][1:3]
        close("UNet", unet(expected["x"], torch.tensor([3, 700]), context).sample, expected["prediction"])
        mean = vae.encode(expected["image"]).latent_dist.mean
        close("encoder", mean, expected["mean"])
        close("decoder", vae.decode(expected["mean"]).sample, expected["decoded"])
    pipeline = DiffusionPipeline.from_pretrained(root)
    names = [type(part).__name__ for part in (pipeline, pipeline.scheduler, pipeline.tokenizer)]
    check("pipeline", names == ["StableDiffusionPipeline", "DDIMScheduler", "CLIPTokenizer"], names)
    check("prediction type", pipeline.scheduler.config.prediction_type == "v_prediction")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a red circle", num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images
    check("an image is drawn", image.shape == (1, 32, 32, 3) and bool(np.isfinite(image).all()), image.shape)
    half = folder / "pipeline-f16"
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL), ("text_encoder", CLIPTextModel)):
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        types = {tensor.dtype for tensor in load_file(half / name / f"{stem}.safetensors").values()}
        check(f"{name} in f16", types == {torch.float16}, types)
        load(kind, half, subfolder=name, torch_dtype=torch.float16)


def image_processor(what, root, expected):
    from transformers import AutoImageProcessor

    image = Image.fromarray(expected["bytes"][0].numpy().astype(np.uint8))
    for backend in ("torchvision", "pil"):
        try:
            processor = AutoImageProcessor.from_pretrained(root, backend=backend)
        except ImportError as error:
            print(f"        {what}: no {backend}: {error}")
            continue
        pixels = processor(images=image, return_tensors="pt").pixel_values
        close(f"{what}: pixel values of {type(processor).__name__}", pixels, expected["pixel_values"])
    return processor


def clips(folder, prompts):
    from transformers import AutoProcessor, AutoTokenizer, CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer

    root = folder / "clip"
    expected = load_file(root / "expected.safetensors")
    model = load(CLIPModel, root)
    for kind in (CLIPTokenizer, AutoTokenizer):
        same_ids(f"{kind.__name__} of clip", kind.from_pretrained(root), prompts, expected["ids"])
    image_processor("clip", root, expected)
    processor = AutoProcessor.from_pretrained(root)
    check("clip: processor", type(processor).__name__ == "CLIPProcessor", type(processor).__name__)
    with torch.no_grad():
        output = model(input_ids=expected["ids"], pixel_values=expected["pixel_values"])
        close("clip: image embeddings", output.image_embeds, expected["image_embeds"])
        close("clip: text embeddings", output.text_embeds, expected["text_embeds"])
    stored = load_file(root / "model.safetensors")["logit_scale"]
    check("clip: logit_scale is a scalar", stored.shape == () and abs(stored.item() - 2.6592) < 1e-3, stored)
    check("clip: padding", model.config.text_config.pad_token_id == 49407)
    tower = CLIPTextModelWithProjection.from_pretrained(root)
    check("clip: text tower alone", tower.config.projection_dim == 24)


def vits(folder):
    from transformers import ViTForImageClassification

    root = folder / "vit"
    expected = load_file(root / "expected.safetensors")
    model = load(ViTForImageClassification, root)
    image_processor("vit", root, expected)
    with torch.no_grad():
        close("vit: logits", model(pixel_values=expected["pixel_values"]).logits, expected["logits"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what the example wrote")
    folder = parser.parse_args().folder
    prompts = json.loads((folder / "prompts.json").read_text())
    pipelines(folder, prompts)
    clips(folder, prompts)
    vits(folder)
    print(f"{len(failures)} broken" if failures else "all equal")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
