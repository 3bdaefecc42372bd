"""Draws with Calotype and with diffusers' pipelines: students of few steps, and cached blocks with DeepCache.

    CALOTYPE_BIN=target/release/calotype python scripts/few_steps_peers.py

needs torch 2.15, diffusers 0.42, transformers, open_clip, safetensors and DeepCache 0.1.1. Networks are small and their
weights random; the noise is diffusers' (`--noise torch-cpu`). Prints the largest and the mean difference of the levels for each
case, and fails where the mean is above a fiftieth of a level.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
from DeepCache import DeepCacheSDHelper
from parity_pictures import BETAS, autoencoder, text_encoder, tokenizer
from PIL import Image

PROMPT, NEGATIVE, SEED, SIDE = "a photo of a red fox in the snow", "blurry, low quality", 11, 64
LCM, TCD, DDIM = diffusers.LCMScheduler, diffusers.TCDScheduler, diffusers.DDIMScheduler
EULER, ANCESTRAL = diffusers.EulerDiscreteScheduler, diffusers.EulerAncestralDiscreteScheduler

# Published files say it, and a pipeline that is made with DDIM corrects it.
UNCLIPPED = dict(clip_sample=False)

# name: options of ours, scheduler and changes of its configuration, arguments of the pipeline, whether the UNet is told its guidance
CASES = {
    "lcm, told": ([], LCM, {}, dict(num_inference_steps=4, guidance_scale=8.5), True),
    "lcm, told 3 in 6": (["--steps", "6", "--guidance", "3"], LCM, {}, dict(num_inference_steps=6, guidance_scale=3.0), True),
    "lcm-lora": (["--preset", "lcm-lora"], LCM, {}, dict(num_inference_steps=4, guidance_scale=0), False),
    "tcd": (["--preset", "tcd"], TCD, {}, dict(num_inference_steps=4, guidance_scale=0, eta=0.3), False),
    "turbo": (
        ["--preset", "turbo", "--steps", "3"], ANCESTRAL, dict(timestep_spacing="trailing"),
        dict(num_inference_steps=3, guidance_scale=0), False,
    ),
    "lightning-4": (
        ["--preset", "lightning-4"], EULER, dict(timestep_spacing="trailing"),
        dict(num_inference_steps=4, guidance_scale=0), False,
    ),
    "dmd2": (
        ["--preset", "dmd2"], LCM, {},
        dict(num_inference_steps=4, guidance_scale=0, timesteps=[999, 749, 499, 249]), False,
    ),
    "hyper-sd-8": (
        ["--preset", "hyper-sd-8"], DDIM, dict(UNCLIPPED, timestep_spacing="trailing"),
        dict(num_inference_steps=8, guidance_scale=0), False,
    ),
    "sigmas": (
        ["--sampler", "euler", "--sigmas", "14.6,6.5,2.9,1.1,0.4,0", "--guidance", "5"], EULER, {},
        dict(sigmas=[14.6, 6.5, 2.9, 1.1, 0.4, 0.0], guidance_scale=5.0), False,
    ),
}
# name: sampler of ours, scheduler, steps, guidance, interval, branch
CACHED = {
    "cached ddim 3/0": ("ddim", DDIM, 10, 7.5, 3, 0),
    "cached euler 2/4": ("euler", EULER, 9, 7.5, 2, 4),
    "cached pndm 5/2": ("pndm", diffusers.PNDMScheduler, 12, 5.0, 5, 2),
}
MOST = 0.02


def pipeline(told):
    torch.manual_seed(5)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 64, 64), layers_per_block=2, cross_attention_dim=32, attention_head_dim=4, sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=8,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), time_cond_proj_dim=256 if told else None,
    )
    text = text_encoder(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, hidden_act="quick_gelu")
    vae = autoencoder(block_out_channels=(16, 16, 32, 32), layers_per_block=1, norm_num_groups=8)
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **BETAS)
    if told:
        scheduler = LCM.from_config(scheduler.config)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer(), unet=unet.eval(), scheduler=scheduler, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def loaded(folder):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def theirs(pipe, **arguments):
    generator = torch.Generator("cpu").manual_seed(SEED)
    prompts = dict(prompt=PROMPT, negative_prompt=NEGATIVE)
    return np.asarray(pipe(generator=generator, height=SIDE, width=SIDE, **prompts, **arguments).images[0], dtype=np.int32)


def ours(calotype, model, options, out):
    command = [calotype, "generate", PROMPT, "--negative", NEGATIVE, "--seed", str(SEED), "--noise", "torch-cpu"]
    command += ["--precision", "f32", "--width", str(SIDE), "--height", str(SIDE), "--model", str(model), "--out", str(out)]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join([*command, *options])}\n{done.stderr}")
    return np.asarray(Image.open(done.stdout.split()[-1]).convert("RGB"), dtype=np.int32)


def main():
    diffusers.utils.logging.set_verbosity_error()
    calotype = os.environ.get("CALOTYPE_BIN", "target/release/calotype")
    wrong = []

    def tell(name, found, expected):
        off = np.abs(found - expected)
        spread = expected.std()
        print(f"{name:<18} largest {off.max():3d}, mean {off.mean():.5f} of 255 (deviation of the picture {spread:.0f})")
        if off.mean() > MOST:
            wrong.append(name)

    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for told in [False, True]:
            pipeline(told).save_pretrained(folder / f"model-{told}")
        for name, (options, scheduler, config, arguments, told) in CASES.items():
            # A scheduler that is made of a file's fields is another than one of those in memory, whose defaults are left out.
            pipe = loaded(folder / f"model-{told}")
            pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **config)
            tell(name, ours(calotype, folder / f"model-{told}", options, folder / "out"), theirs(pipe, **arguments))
        for name, (sampler, scheduler, steps, guidance, interval, branch) in CACHED.items():
            pipe = loaded(folder / "model-False")
            pipe.scheduler = scheduler.from_config(pipe.scheduler.config, **UNCLIPPED)
            plain = theirs(pipe, num_inference_steps=steps, guidance_scale=guidance)
            helper = DeepCacheSDHelper(pipe=pipe)
            helper.set_params(cache_interval=interval, cache_branch_id=branch)
            helper.enable()
            expected = theirs(pipe, num_inference_steps=steps, guidance_scale=guidance)
            options = ["--sampler", sampler, "--steps", str(steps), "--guidance", str(guidance)]
            options += ["--cache-interval", str(interval), "--cache-branch", str(branch)]
            tell(name, ours(calotype, folder / "model-False", options, folder / "out"), expected)
            print(f"{'':<18} without caching: mean {np.abs(plain - expected).mean():.3f}")
    if wrong:
        sys.exit(f"error: other pictures: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
