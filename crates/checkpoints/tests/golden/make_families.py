"""Makes families.json: each family's scheduler, every sampler that diffusers makes of it, and where each is handed over.

    pip install torch==2.15.0 diffusers==0.42.1 scipy
    python make_families.py

CONFIGS are `scheduler/scheduler_config.json` of the original repositories, with `prediction_type` written out where a file is
older than it. What else they leave out has another default in each class: `timestep_spacing` stands in those of SDXL alone. A run is a family, a scheduler's class (made by `from_config`, as users of diffusers change samplers), a number of
steps, the last latent of the closed-form denoiser, and [end, start]: the calls where `denoising_end` and `denoising_start` of
0.8 end and begin (none where diffusers would leave nothing to do).
"""

import importlib
import json
import pathlib
import types
import warnings

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline

HERE = pathlib.Path(__file__).parent
ELEMENTS = np.arange(8)
SHARED = dict(
    beta_end=0.012,
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    clip_sample=False,
    num_train_timesteps=1000,
    prediction_type="epsilon",
    set_alpha_to_one=False,
    skip_prk_steps=True,
    steps_offset=1,
    trained_betas=None,
)
PNDM = dict(SHARED, _class_name="PNDMScheduler")
DDIM = dict(SHARED, _class_name="DDIMScheduler")
DDIM_V = dict(DDIM, prediction_type="v_prediction")
EULER = dict(
    SHARED,
    _class_name="EulerDiscreteScheduler",
    interpolation_type="linear",
    sample_max_value=1.0,
    timestep_spacing="leading",
    use_karras_sigmas=False,
)
CONFIGS = {
    "sd1": PNDM,
    "sd1-inpainting": DDIM,
    "instruct-pix2pix": PNDM,
    "sd2-base": PNDM,
    "sd2-v": DDIM_V,
    "sd2-inpainting": PNDM,
    "mlperf-sd2": DDIM_V,
    "sdxl-refiner": EULER,
    "sdxl-inpainting": EULER,
    "sdxl-instruct-pix2pix": EULER,
    "sdxl-base": EULER,
}
CLASSES = [
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "TCDScheduler",
]
STEPS = [6, 20]
HANDOVER = 0.8


def as_tensor(values):
    return torch.tensor(np.asarray(values).astype(np.float32)).reshape(1, 2, 2, 2)


def predict(x, t):
    t = float(t)
    return 0.3 * torch.sin(x) + (0.1 * t / 1000) * x + as_tensor(0.2 * np.cos(t / 40 + ELEMENTS))


def noise(call):
    return as_tensor(1.4 * np.sin(12.9898 * (call + 2) + 78.233 * ELEMENTS))


def scheduler_of(config, name, steps):
    own = getattr(diffusers, config["_class_name"]).from_config(config)
    scheduler = getattr(diffusers, name).from_config(own.config)
    scheduler.set_timesteps(steps)
    return scheduler


def last_latent(scheduler):
    module = importlib.import_module(type(scheduler).__module__)
    x = noise(-1) * scheduler.init_noise_sigma
    for call, t in enumerate(scheduler.timesteps):
        module.randn_tensor = lambda *args, **kwargs: noise(call)
        # As diffusers' pipelines do, against the scheduler's own default of 0.3.
        more = {"eta": 0.0} if type(scheduler).__name__ == "TCDScheduler" else {}
        x = scheduler.step(predict(scheduler.scale_model_input(x, t), t), t, x, **more).prev_sample
    return [round(value, 7) for value in x.flatten().tolist()]


def handover(scheduler, steps):
    """[end of the base, start of the refiner]; `end` as in StableDiffusionXLPipeline.__call__, section 8.1."""
    timesteps = scheduler.timesteps
    cutoff = int(round(scheduler.config.num_train_timesteps - HANDOVER * scheduler.config.num_train_timesteps))
    end = len([t for t in timesteps if t >= cutoff])
    pipeline = types.SimpleNamespace(scheduler=scheduler)
    rest, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(pipeline, steps, 0.3, "cpu", denoising_start=HANDOVER)
    return [end, len(timesteps) - len(rest) if len(rest) else None]


def main():
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    runs = []
    for family, config in CONFIGS.items():
        for name in CLASSES:
            for steps in STEPS:
                values = last_latent(scheduler_of(config, name, steps))
                moved = handover(scheduler_of(config, name, steps), steps)
                runs.append(dict(family=family, scheduler=name, steps=steps, latent=values, handover=moved))
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    configs = json.dumps(CONFIGS, indent=1)
    (HERE / "families.json").write_text(f'{{"configs":{configs},\n"runs":[\n{lines}\n]}}\n')
    print(len(runs), "runs")


if __name__ == "__main__":
    main()
