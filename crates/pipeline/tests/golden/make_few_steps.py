"""Golden latents of few-step students and of cached blocks, drawn by diffusers' pipeline.

    pip install torch==2.15.0 diffusers==0.42.1 transformers DeepCache==0.1.1
    python make_few_steps.py

writes `few_steps.safetensors` next to itself: the latents of `StableDiffusionPipeline` on a tiny UNet whose weights and
inputs are those of `crates/models/tests/golden/make_models.py`, with the scheduler configuration of Stable Diffusion XL. Each
preset is spelt as its authors' model card spells it. Noise is a formula of the call.
"""

import importlib
import sys
from pathlib import Path

import diffusers
import numpy as np
import torch
from DeepCache import DeepCacheSDHelper
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parents[2] / "models" / "tests" / "golden"))
from make_models import SMALL, fill, values  # noqa: E402

SDXL = dict(
    beta_end=0.012,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    clip_sample=False,
    interpolation_type="linear",
    num_train_timesteps=1000,
    prediction_type="epsilon",
    sample_max_value=1.0,
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    timestep_spacing="leading",
    trained_betas=None,
    use_karras_sigmas=False,
)
LCM, TCD, DDIM = "LCMScheduler", "TCDScheduler", "DDIMScheduler"
EULER, ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
TRAILING = dict(timestep_spacing="trailing")


def lightning(steps, **config):
    return EULER, dict(TRAILING, **config), dict(num_inference_steps=steps, guidance_scale=0)


def hyper(steps):
    return DDIM, TRAILING, dict(num_inference_steps=steps, guidance_scale=0)


# name: scheduler, changes of its configuration, arguments of the call
PRESETS = {
    "lcm-lora": (LCM, {}, dict(num_inference_steps=4, guidance_scale=0)),
    "tcd": (TCD, {}, dict(num_inference_steps=4, guidance_scale=0, eta=0.3)),
    "turbo": (ANCESTRAL, TRAILING, dict(num_inference_steps=1, guidance_scale=0.0)),
    "lightning-1": lightning(1, prediction_type="sample"),
    "lightning-2": lightning(2),
    "lightning-4": lightning(4),
    "lightning-8": lightning(8),
    "dmd2": (LCM, {}, dict(num_inference_steps=4, guidance_scale=0, timesteps=[999, 749, 499, 249])),
    "dmd2-1": (LCM, {}, dict(num_inference_steps=1, guidance_scale=0, timesteps=[399])),
    "hyper-sd-1": (LCM, {}, dict(num_inference_steps=1, guidance_scale=0, timesteps=[800])),
    "hyper-sd-2": hyper(2),
    "hyper-sd-4": hyper(4),
    "hyper-sd-8": hyper(8),
    "hyper-sd-lora": (TCD, {}, dict(num_inference_steps=1, guidance_scale=0, eta=1.0)),
}

# name: scheduler, steps, guidance, interval, branch
CACHED = {
    "ddim": (DDIM, 7, 7.5, 3, 0),
    "ddim deep": (DDIM, 7, 7.5, 2, 4),
    "ddim unguided": (DDIM, 6, 1.0, 2, 1),
    "pndm": ("PNDMScheduler", 6, 5.0, 3, 0),
    "euler": (EULER, 8, 7.5, 5, 2),
    "heun": ("HeunDiscreteScheduler", 4, 7.5, 2, 0),
}


def noise(call, shape):
    """Stands for the standard normal numbers of a call."""
    elements = np.arange(np.prod(shape))
    return torch.from_numpy((1.4 * np.sin(12.9898 * (call + 2) + 78.233 * elements)).astype(np.float32)).reshape(shape)


def pipeline(unet, name, config):
    scheduler = getattr(diffusers, name).from_config(dict(SDXL, **config))
    parts = dict(vae=None, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None)
    pipe = diffusers.StableDiffusionPipeline(unet=unet, scheduler=scheduler, requires_safety_checker=False, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **arguments):
    calls = iter(range(1000))
    module = importlib.import_module(type(pipe.scheduler).__module__)
    module.randn_tensor = lambda shape, **_: noise(next(calls), tuple(shape))
    side = dict(height=64, width=64)
    prompts = dict(
        prompt_embeds=values("encoder_hidden_states", (1, 5, 24)),
        negative_prompt_embeds=values("negative", (1, 5, 24)),
    )
    return pipe(latents=values("latents", (1, 4, 8, 8)), output_type="latent", **prompts, **side, **arguments).images


def main():
    diffusers.utils.logging.set_verbosity_error()
    plain = fill(diffusers.UNet2DConditionModel(**SMALL, sample_size=8))
    told = fill(diffusers.UNet2DConditionModel(**SMALL, sample_size=8, time_cond_proj_dim=256))
    out = {}
    for guidance in [8.5, 1.0]:
        out[f"told/{guidance}"] = draw(pipeline(told, LCM, {}), num_inference_steps=4, guidance_scale=guidance)
    for name, (scheduler, config, arguments) in PRESETS.items():
        out[f"preset/{name}"] = draw(pipeline(plain, scheduler, config), **arguments)
    for name, (scheduler, steps, guidance, interval, branch) in CACHED.items():
        unet = fill(diffusers.UNet2DConditionModel(**SMALL, sample_size=8))
        pipe = pipeline(unet, scheduler, {})
        helper = DeepCacheSDHelper(pipe=pipe)
        helper.set_params(cache_interval=interval, cache_branch_id=branch)
        helper.enable()
        out[f"cached/{name}"] = draw(pipe, num_inference_steps=steps, guidance_scale=guidance)
    save_file({key: value.contiguous() for key, value in out.items()}, FOLDER / "few_steps.safetensors")
    print({key: value.abs().max().item() for key, value in out.items()})


if __name__ == "__main__":
    main()
