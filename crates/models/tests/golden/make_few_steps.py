"""Golden values of UNets that are told their guidance scale, and of UNets whose deep features are kept between calls.

    pip install torch==2.15.0 diffusers==0.42.1 DeepCache==0.1.1
    python make_few_steps.py

writes `few_steps.safetensors` next to itself. Weights and inputs are those of `make_models.py`. The first are diffusers'
`UNet2DConditionModel` with `time_cond_proj_dim` on its pipeline's `get_guidance_scale_embedding`, the others `DeepCacheSDHelper`
around one.
"""

from types import SimpleNamespace

import torch
from DeepCache import DeepCacheSDHelper
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from make_models import LINEAR, SMALL, TIMESTEPS, XL, fill, layout, values, write

TOLD = dict(SMALL, time_cond_proj_dim=256)
SCALES = [1.0, 8.5]

# name: configuration, sides of the latent, branches of DeepCache
CACHED = {
    "sd1": (SMALL, (8, 8), [0, 1, 2, 3, 4, 5, 8, 9, 11]),
    "xl": (XL, (8, 8), [0, 2, 4, 8]),
    "thin": (dict(LINEAR, layers_per_block=1), (8, 8), [0, 1, 2, 4]),
    "uneven": (LINEAR, (11, 6), [0, 3, 7]),
}
# One timestep twice, as PLMS visits it; with an interval of 3, calls 0 and 3 compute the whole network.
CALLS = [901.0, 801.0, 801.0, 601.0, 501.0, 401.0]
INTERVAL = 3


def told():
    model = fill(UNet2DConditionModel(**TOLD))
    features = StableDiffusionPipeline.get_guidance_scale_embedding(None, torch.tensor(SCALES) - 1, 256)
    sample, context = values("sample", (2, 4, 8, 8)), values("encoder_hidden_states", (2, 5, 24))
    with torch.no_grad():
        y = model(sample, torch.tensor(TIMESTEPS), context, timestep_cond=features).sample
    return {"sample": y, "features": features, "layout": layout(model)}


def cached(config, side, branches):
    out = {}
    for branch in branches:
        model = fill(UNet2DConditionModel(**config))
        scheduler = SimpleNamespace(timesteps=torch.tensor(CALLS))
        helper = DeepCacheSDHelper(pipe=SimpleNamespace(unet=model, scheduler=scheduler))
        helper.set_params(cache_interval=INTERVAL, cache_branch_id=branch)
        helper.enable()
        context = values("encoder_hidden_states", (1, 5, 24))
        added = None
        if config.get("addition_embed_type"):
            added = {"text_embeds": values("text_embeds", (1, 20)), "time_ids": values("time_ids", (1, 6)).abs() * 1000}
        for call, t in enumerate(CALLS):
            sample = values(f"sample {call}", (1, 4, *side))
            with torch.no_grad():
                y = model(sample, torch.tensor(t), context, added_cond_kwargs=added, return_dict=False)[0]
            if call in [2, 5]:
                out[f"{branch}/{call}"] = y
    return out


if __name__ == "__main__":
    cases = {f"cached/{name}": cached(*case) for name, case in CACHED.items()}
    write("few_steps", {"told": told(), **cases})
