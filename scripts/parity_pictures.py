"""Images of `calotype generate` against those of diffusers' pipelines, from the same folders.

With `--noise torch-cpu` both start from the same numbers, so that the images must be the same: the mean absolute error is at
most one level of 255 in f32. The families have the published shapes and random weights; the quickstart is the folder that
`calotype quickstart --preset smoke` makes. `--time` also measures a Stable Diffusion 2 image of 512x512 in 20 steps with guidance.
See parity.sh.
"""
import argparse
import gzip
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy
import torch
from PIL import Image

PROMPTS = ["a photo of a red fox in the snow", "two wooden boats on a lake, oil painting"]
NEGATIVE = "blurry, low quality"


def tokenizer(pad=None):
    """CLIP's tokenizer from the vocabulary that open_clip carries."""
    import open_clip
    from transformers import CLIPTokenizer

    packed = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.open(packed).read().decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(open_clip.tokenizer.bytes_to_unicode().values())
    words = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=77,
        unk_token="<|endoftext|>", pad_token=pad or "<|endoftext|>",
    )


def text_encoder(projection=False, **config):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(CLIPTextConfig(**config)).eval()


def autoencoder(**changes):
    from diffusers import AutoencoderKL

    return AutoencoderKL(**dict(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ) | changes).eval()


def unet(**changes):
    from parity import sd_unet

    return sd_unet(**changes).eval()


BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu")
CLIP_H = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu")


def sd15(**changes):
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=text_encoder(**CLIP_L), tokenizer=tokenizer(),
        unet=unet(cross_attention_dim=768, **changes),
        scheduler=PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **BETAS),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )


def sd21():
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=text_encoder(**CLIP_H), tokenizer=tokenizer("!"),
        unet=unet(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True, sample_size=96),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction", **BETAS),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )


def sdxl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from parity import SDXL_UNET

    big_g = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=3, num_attention_heads=20, hidden_act="gelu")
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025, sample_size=1024), tokenizer=tokenizer(), tokenizer_2=tokenizer("!"),
        text_encoder=text_encoder(**CLIP_L), text_encoder_2=text_encoder(projection=True, projection_dim=1280, **big_g),
        unet=unet(**SDXL_UNET, transformer_layers_per_block=(1, 1, 2)),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **BETAS),
    )


def refiner(base):
    """SDXL's refiner in few layers: the second text encoder and a UNet that takes five numbers."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLImg2ImgPipeline

    return StableDiffusionXLImg2ImgPipeline(
        vae=base.vae, tokenizer=None, tokenizer_2=base.tokenizer_2, text_encoder=None, text_encoder_2=base.text_encoder_2,
        unet=unet(
            block_out_channels=(64, 128), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(1, 2), use_linear_projection=True,
            cross_attention_dim=1280, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=1280 + 5 * 256, sample_size=128,
        ),
        scheduler=EulerDiscreteScheduler(timestep_spacing="leading", **BETAS),
        requires_aesthetics_score=True, force_zeros_for_empty_prompt=False,
    )


def refined_pictures(base, second, size, steps, start):
    """The way of diffusers' documentation: `denoising_end` of the base, `denoising_start` of the refiner."""
    out = []
    for i, prompt in enumerate(PROMPTS):
        shared = dict(prompt=prompt, negative_prompt=NEGATIVE, num_inference_steps=steps)
        generator = torch.Generator("cpu").manual_seed(40 + i)
        with torch.no_grad():
            latents = base(**shared, height=size, width=size, generator=generator, denoising_end=start, output_type="latent").images
            image = second(**shared, image=latents, generator=generator, denoising_start=start).images[0]
        out.append(numpy.asarray(image, dtype=float))
    return out


def refiner_cases(args, pipeline, size, folder, start, rows):
    second = refiner(pipeline)
    second.set_progress_bar_config(disable=True)
    second.save_pretrained(folder / "refiner")
    out, model = folder / "out", folder / "refiner"
    given = ["--image", folder / "start.png", "--strength", 0.6]
    theirs = diffusers_images(second, size, 6, image=start, strength=0.6)
    compare(args, "SDXL refiner alone", calotype(args, model, out, size, 6, *given), theirs, rows)
    for share in [0.8, 0.5]:
        theirs = refined_pictures(pipeline, second, size, 10, share)
        more = ["--refiner", model, "--refiner-start", share]
        ours = calotype(args, folder / "model", out, size, 10, *more)
        compare(args, f"SDXL with a refiner from {share}", ours, theirs, rows)


def variant(kind, pipeline):
    """The same networks in another of diffusers' pipelines."""
    import diffusers

    name = "StableDiffusionXL" if "XL" in type(pipeline).__name__ else "StableDiffusion"
    parts = {key: value for key, value in pipeline.components.items() if key != "image_encoder"}
    extra = {} if "XL" in name else {"requires_safety_checker": False}
    return getattr(diffusers, f"{name}{kind}Pipeline")(**parts, **extra)


def start_image(size, seed):
    x = numpy.random.default_rng(seed).uniform(0, 255, (size // 16, size // 16, 3)).astype("uint8")
    return Image.fromarray(x).resize((size, size), Image.BICUBIC)


def calotype(args, folder, out, size, steps, *more):
    command = [args.calotype, "generate", *PROMPTS, "--model", folder, "--out", out, "--noise", "torch-cpu", "--seed", 40,
               "--steps", steps, "--negative", NEGATIVE, "--precision", "f32", "--width", size, "--height", size, *more]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    return [numpy.asarray(Image.open(path), dtype=float) for path in done.stdout.splitlines() if path.endswith(".png")]


def diffusers_images(pipeline, size, steps, **more):
    pipeline.set_progress_bar_config(disable=True)
    sized = {} if "image" in more and "mask_image" not in more else {"height": size, "width": size}
    out = []
    # One call an image: each has a generator of its own, and calls of one image are what the numbers are for.
    for i, prompt in enumerate(PROMPTS):
        generator = torch.Generator("cpu").manual_seed(40 + i)
        with torch.no_grad():
            image = pipeline(
                prompt, negative_prompt=NEGATIVE, num_inference_steps=steps, generator=generator, **sized, **more
            ).images[0]
        out.append(numpy.asarray(image, dtype=float))
    return out


def compare(args, label, ours, theirs, rows):
    error = max(float(numpy.abs(a - b).mean()) for a, b in zip(ours, theirs, strict=True))
    spread = min(float(image.std()) for image in theirs)
    good = error < 1.0 and spread > 5
    rows.append({"case": label, "mean_error_levels": error, "spread_levels": spread, "good": good})
    print(f"| {label} | {error:.4f} | {spread:.1f} | {'good' if good else '**beyond the bound**'} |", flush=True)


def scheduler_cases(folder):
    import diffusers

    names = {
        "euler_ancestral": "EulerAncestralDiscreteScheduler", "dpm_multistep": "DPMSolverMultistepScheduler",
        "unipc": "UniPCMultistepScheduler", "heun": "HeunDiscreteScheduler",
    }
    for ours, theirs in names.items():
        # From the folder: in memory, diffusers knows which settings nobody chose.
        yield ours, getattr(diffusers, theirs).from_pretrained(folder / "scheduler")


def run_family(args, name, build, size, folder, rows):
    torch.manual_seed(7)
    pipeline = build()
    # The last layers start at values that give images some contrast.
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.mul_(4)
    guidance = {} if name == "SDXL, reduced" else {"guidance_scale": 7.5}
    pipeline.save_pretrained(folder / "model")
    model, out = folder / "model", folder / "out"
    compare(args, name, calotype(args, model, out, size, 5), diffusers_images(pipeline, size, 5, **guidance), rows)
    if name == "SD 1.5":
        for sampler, scheduler in scheduler_cases(model):
            own, pipeline.scheduler = pipeline.scheduler, scheduler
            theirs = diffusers_images(pipeline, size, 4, **guidance)
            pipeline.scheduler = own
            compare(args, f"{name}, {sampler}", calotype(args, model, out, size, 4, "--sampler", sampler), theirs, rows)
    start, mask = start_image(size, 1), Image.new("L", (size, size), 0)
    mask.paste(255, (size // 4, size // 4, size * 3 // 4, size))
    start.save(folder / "start.png")
    mask.save(folder / "mask.png")
    given = ["--image", folder / "start.png"]
    theirs = diffusers_images(variant("Img2Img", pipeline), size, 6, image=start, strength=0.6, **guidance)
    compare(args, f"{name}, image to image", calotype(args, model, out, size, 6, *given, "--strength", 0.6), theirs, rows)
    if name == "SDXL, reduced":
        refiner_cases(args, pipeline, size, folder, start, rows)
    if name == "SD 1.5":
        theirs = diffusers_images(variant("Inpaint", pipeline), size, 6, image=start, mask_image=mask, strength=0.7, **guidance)
        ours = calotype(args, model, out, size, 6, *given, "--mask", folder / "mask.png", "--strength", 0.7)
        compare(args, f"{name}, inpainting", ours, theirs, rows)
        pipeline.unet = unet(cross_attention_dim=768, in_channels=9)
        shutil.rmtree(model)
        pipeline.save_pretrained(model)
        theirs = diffusers_images(variant("Inpaint", pipeline), size, 5, image=start, mask_image=mask, strength=1.0, **guidance)
        ours = calotype(args, model, out, size, 5, *given, "--mask", folder / "mask.png")
        compare(args, "SD 1.5 inpainting UNet", ours, theirs, rows)


def run_quickstart(args, name, folder, rows):
    """A pipeline that Calotype trained, from its folder."""
    from diffusers import DiffusionPipeline

    model = folder / "quickstart"
    command = [args.calotype, "quickstart", "--preset", "smoke", "--out", str(model)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    pipeline = DiffusionPipeline.from_pretrained(model)
    size = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    theirs = diffusers_images(pipeline, size, 10, guidance_scale=7.5)
    compare(args, name, calotype(args, model, folder / "out", size, 10, "--guidance", 7.5), theirs, rows)


def measure(args, folder):
    """Seconds for a Stable Diffusion 2 image of 512x512 in 20 steps with guidance, networks in bf16."""
    torch.manual_seed(7)
    pipeline = sd21()
    pipeline.save_pretrained(folder / "model")
    pipeline = pipeline.to(torch.bfloat16)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    call = dict(num_inference_steps=20, height=512, width=512, guidance_scale=7.5)
    ours, theirs = [], []
    for _ in range(args.rounds):
        begin = time.time()
        with torch.no_grad():
            pipeline(PROMPTS[0], generator=torch.Generator("cpu").manual_seed(1), **call)
        theirs.append(time.time() - begin)
        command = ["/usr/bin/time", "-v", args.calotype, "generate", PROMPTS[0], "--model", folder / "model", "--out",
                   folder / "out", "--steps", 20, "--width", 512, "--height", 512, "--precision", "bf16", "--json"]
        begin = time.time()
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
        ours.append(time.time() - begin)
        stages = json.loads(done.stdout.splitlines()[-1])
        memory = next(int(line.split()[-1]) for line in done.stderr.splitlines() if "Maximum resident" in line) / 2**20
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"\n512x512, 20 steps, guidance, bf16: calotype {a:.2f} s with loading ({memory:.2f} GiB), diffusers {b:.2f} s "
          f"without: {b / a:.2f}x")
    print("stages of the last round: " + ", ".join(f"{key} {value:.2f} s" for key, value in stages.items() if key != "images"))


FAMILIES = {"SD 1.5": (sd15, 128), "SD 2.1": (sd21, 128), "SDXL, reduced": (sdxl, 128)}
QUICKSTART = "quickstart"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calotype", required=True)
    parser.add_argument("--only", help="names of families, or parts of them, with commas between")
    parser.add_argument("--time", action="store_true", help="measure an image, too")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", help="write the rows as JSON")
    args = parser.parse_args()
    only = args.only.split(",") if args.only is not None else [""]
    rows = []
    print("| images | mean absolute error, levels of 255 | spread, levels | |\n|---|---|---|---|")
    for name, (build, size) in FAMILIES.items():
        if any(part in name for part in only):
            with tempfile.TemporaryDirectory(prefix="parity-") as folder:
                run_family(args, name, build, size, Path(folder), rows)
    if any(part in QUICKSTART for part in only):
        with tempfile.TemporaryDirectory(prefix="parity-") as folder:
            run_quickstart(args, QUICKSTART, Path(folder), rows)
    if args.time:
        with tempfile.TemporaryDirectory(prefix="parity-") as folder:
            measure(args, Path(folder))
    if args.out:
        Path(args.out).write_text(json.dumps(rows, indent=1))
    sys.exit(any(not row["good"] for row in rows))


if __name__ == "__main__":
    main()
