"""Makes samplers.json and samplers.bin: the trajectories of diffusers' schedulers on a denoiser of closed form.

    pip install torch==2.15.0 diffusers==0.42.1 scipy
    python make_samplers.py

samplers.json lists groups of runs: a scheduler configuration (in the words of scheduler_config.json, on top of the common
`betas`), and the predictions, spacings and step counts to combine, in this order of nesting. samplers.bin holds for each run, as little-endian f32,
element `i % 8` of the latent after call i of the denoiser, for every call (above 20 steps, for every second and the
last), and then the 8 elements of the last latent.
"""

import importlib
import itertools
import json
import pathlib
import warnings

import diffusers
import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
ELEMENTS = np.arange(8)
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
ALL, EPS, EPS_V = ["epsilon", "v_prediction", "sample"], ["epsilon"], ["epsilon", "v_prediction"]
SPACINGS, STEPS = ["leading", "trailing", "linspace"], [5, 20, 50]


def as_tensor(values):
    return torch.tensor(np.asarray(values).astype(np.float32))


def predict(x, t):
    """Nonlinear in latent and time, and different for each element."""
    t = float(t)
    return 0.3 * torch.sin(x) + (0.1 * t / 1000) * x + as_tensor(0.2 * np.cos(t / 40 + ELEMENTS))


def noise(call):
    """Stands for the standard normal numbers of a call; -1 is the initial latent."""
    return as_tensor(1.4 * np.sin(12.9898 * (call + 2) + 78.233 * ELEMENTS))


def clean_latent():
    return as_tensor(np.cos(1.7 * ELEMENTS))


def run(group, prediction, spacing, steps):
    config = dict(group["config"], prediction_type=prediction)
    name = config.pop("_class_name")
    if not name.startswith("EDM"):
        config = BETAS | config
    if spacing is not None:
        config["timestep_spacing"] = spacing
    scheduler = getattr(diffusers, name)(**config)
    lists = {key: group[key] for key in ["timesteps", "sigmas"] if key in group}
    scheduler.set_timesteps(**(lists or dict(num_inference_steps=steps)))
    first, timesteps = 0, scheduler.timesteps
    if group.get("strength") is not None:
        first = (steps - min(int(steps * group.get("strength")), steps)) * scheduler.order
        timesteps = timesteps[first:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    x = noise(-1).reshape(1, 2, 2, 2)
    if group.get("strength") is None:
        x = x * scheduler.init_noise_sigma
    else:
        x = scheduler.add_noise(clean_latent().reshape(1, 2, 2, 2), x, timesteps[:1])
    options = {"eta": group.get("eta", 0.0)} if name in ["DDIMScheduler", "TCDScheduler"] else {}
    module = importlib.import_module(type(scheduler).__module__)
    out = []
    for i, t in enumerate(timesteps):
        module.randn_tensor = lambda *args, **kwargs: noise(first + i).reshape(1, 2, 2, 2)
        output = predict(scheduler.scale_model_input(x, t).flatten(), t).reshape(1, 2, 2, 2)
        x = scheduler.step(output, t, x, **options).prev_sample
        if i % (1 + (steps > 20)) == 0 or i == len(timesteps) - 1:
            out.append(x.flatten()[i % 8].item())
    values = np.array(out + x.flatten().tolist(), dtype="<f4")
    # Some Karras sigmas end with a step between equal sigmas, which the higher orders divide by.
    assert np.isfinite(values[:-9]).all(), (group, prediction, spacing, steps)
    return values


def group(
    name,
    predictions,
    spacings,
    steps=STEPS,
    betas={},
    eta=None,
    strength=None,
    timesteps=None,
    sigmas=None,
    tolerance=None,
    **config,
):
    optional = dict(eta=eta, strength=strength, timesteps=timesteps, sigmas=sigmas, tolerance=tolerance)
    config = dict(betas, _class_name=name, **config)
    result = dict(config=config, predictions=predictions, spacings=spacings, steps=steps)
    return result | {key: value for key, value in optional.items() if value is not None}


def alpha_families():
    ddim = dict(name="DDIMScheduler", clip_sample=False)
    yield group(predictions=ALL, spacings=SPACINGS, steps_offset=1, set_alpha_to_one=False, **ddim)
    yield group(predictions=EPS_V, spacings=SPACINGS, eta=1.0, steps_offset=1, **ddim)
    yield group(predictions=["v_prediction"], spacings=["trailing"], eta=0.5, rescale_betas_zero_snr=True, **ddim)
    yield group("DDIMScheduler", ALL, ["leading"], clip_sample=True, clip_sample_range=0.8)
    for kind in ["linear", "squaredcos_cap_v2"]:
        yield group(predictions=EPS_V, spacings=["leading"], betas=dict(beta_schedule=kind), **ddim)
    trained = dict(trained_betas=[0.05 + 0.01 * i for i in range(20)], num_train_timesteps=20)
    yield group(predictions=EPS_V, spacings=SPACINGS, steps=[4, 10], betas=trained, **ddim)
    ddpm = dict(name="DDPMScheduler", steps_offset=1)
    yield group(predictions=ALL, spacings=SPACINGS, clip_sample=False, **ddpm)
    yield group(predictions=ALL, spacings=["leading"], clip_sample=True, **ddpm)
    for variance in ["fixed_small_log", "fixed_large"]:
        yield group(predictions=EPS, spacings=SPACINGS, clip_sample=False, variance_type=variance, **ddpm)
    for skip in [True, False]:
        for one in [True, False]:
            pndm = dict(skip_prk_steps=skip, set_alpha_to_one=one, steps_offset=1)
            yield group("PNDMScheduler", EPS_V, SPACINGS, **pndm)
    yield group("LCMScheduler", ALL, ["leading"], steps=[1, 4, 20, 50])
    yield group("LCMScheduler", EPS, ["leading"], steps=[3, 7], original_inference_steps=30, timestep_scaling=8.0)
    yield group("LCMScheduler", EPS, ["leading"], steps=[4], clip_sample=True, set_alpha_to_one=False)


def dpm_families():
    multi, single = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
    for karras in [False, True]:
        for final in ["zero", "sigma_min"]:
            base = dict(use_karras_sigmas=karras, final_sigmas_type=final)
            yield group(multi, ALL, SPACINGS, steps_offset=1, **base)
            for order in [1, 3]:
                yield group(multi, EPS_V, SPACINGS, solver_order=order, steps_offset=1, **base)
            yield group(multi, EPS_V, ["linspace"], solver_type="heun", **base)
            yield group(multi, EPS, ["linspace"], lower_order_final=False, euler_at_final=True, solver_order=3, **base)
            yield group(multi, EPS, ["linspace"], lower_order_final=False, **base)
            for order in [1, 2, 3]:
                for solver in ["midpoint", "heun"]:
                    both = dict(solver_order=order, solver_type=solver, **base)
                    yield group(multi, EPS_V, ["trailing"], algorithm_type="sde-dpmsolver++", **both)
                    steps = [6, 20, 50]
                    yield group(single, ALL, [None], steps=steps, **both)
                    yield group(single, EPS_V, [None], steps=steps, lower_order_final=True, **both)
                    sde = dict(algorithm_type="sde-dpmsolver++")
                    if (order, solver) == (3, "heun"):
                        # The scheduler's weight of the second difference does not vanish with the step, so that its
                        # own f32 differs from its f64 by up to 4e-4.
                        sde["tolerance"] = 5e-4
                    yield group(single, EPS, [None], steps=steps, **sde, **both)
                    if final == "zero":
                        continue
                    for algorithm in ["dpmsolver", "sde-dpmsolver"]:
                        if (algorithm, order) != ("sde-dpmsolver", 3):
                            yield group(multi, ALL, ["linspace"], algorithm_type=algorithm, **both)
                    yield group(single, ALL, [None], algorithm_type="dpmsolver", steps=steps, **both)
    for curve in ["use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"]:
        yield group(multi, EPS_V, ["linspace"], **{curve: True})
        if curve != "use_lu_lambdas":
            yield group(single, EPS, [None], steps=[6, 20], **{curve: True})
    yield group(multi, ["v_prediction"], SPACINGS, rescale_betas_zero_snr=True)
    cosine = dict(beta_schedule="squaredcos_cap_v2")
    yield group(multi, EPS_V, SPACINGS, betas=cosine, lambda_min_clipped=-5.1)
    yield group(multi, EPS_V, ["linspace"], betas=cosine, lambda_min_clipped=-5.1, use_karras_sigmas=True)
    yield group(single, EPS_V, [None], betas=cosine, lambda_min_clipped=-5.1, steps=[6, 20, 50])


def unipc():
    name = "UniPCMultistepScheduler"
    for order in [1, 2, 3]:
        for final in ["zero", "sigma_min"]:
            for karras in [False, True]:
                base = dict(solver_order=order, final_sigmas_type=final, use_karras_sigmas=karras)
                yield group(name, ALL if order == 2 else EPS_V, SPACINGS, steps_offset=1, **base)
                if final == "sigma_min":
                    yield group(name, EPS_V, ["linspace"], solver_type="bh1", **base)
        for solver in ["bh1", "bh2"]:
            base = dict(solver_order=order, final_sigmas_type="sigma_min", solver_type=solver)
            yield group(name, ALL, ["linspace"], predict_x0=False, **base)
    yield group(name, EPS, ["linspace"], disable_corrector=[0, 2])
    yield group(name, EPS, ["linspace"], lower_order_final=False, final_sigmas_type="sigma_min", solver_order=3)
    for curve in ["use_exponential_sigmas", "use_beta_sigmas"]:
        for final in ["zero", "sigma_min"]:
            yield group(name, EPS, ["linspace"], final_sigmas_type=final, **{curve: True})
    yield group(name, EPS, ["linspace"], use_karras_sigmas=True, sigma_min=0.05, sigma_max=10.0)
    yield group(name, ["v_prediction"], SPACINGS, rescale_betas_zero_snr=True)


def sigma_families():
    for karras in [False, True]:
        for final in ["zero", "sigma_min"]:
            base = dict(use_karras_sigmas=karras, final_sigmas_type=final)
            yield group("EulerDiscreteScheduler", ALL, SPACINGS, steps_offset=1, **base)
        yield group("HeunDiscreteScheduler", ALL, SPACINGS, steps_offset=1, use_karras_sigmas=karras)
    for curve in ["use_exponential_sigmas", "use_beta_sigmas"]:
        yield group("EulerDiscreteScheduler", EPS_V, SPACINGS, **{curve: True})
        yield group("HeunDiscreteScheduler", EPS_V, ["leading"], **{curve: True})
    yield group("EulerDiscreteScheduler", EPS, ["linspace"], use_karras_sigmas=True, sigma_min=0.05, sigma_max=10.0)
    yield group("EulerDiscreteScheduler", ["v_prediction"], SPACINGS, rescale_betas_zero_snr=True)
    yield group("HeunDiscreteScheduler", EPS, ["linspace"], clip_sample=True, clip_sample_range=1.5)
    yield group("EulerAncestralDiscreteScheduler", EPS_V, SPACINGS, steps_offset=1)
    yield group("EulerAncestralDiscreteScheduler", ["v_prediction"], SPACINGS, rescale_betas_zero_snr=True)


def from_pictures():
    """Image-to-image starts."""
    for name in ["DDIM", "DDPM", "PNDM", "LCM", "DPMSolverMultistep", "EulerDiscrete", "EulerAncestralDiscrete"]:
        config = {"clip_sample": False} if name in ["DDIM", "DDPM"] else {}
        for strength in [0.35, 0.8]:
            yield group(name + "Scheduler", EPS_V, ["leading"], strength=strength, steps_offset=1, **config)
    for name in ["HeunDiscrete", "UniPCMultistep", "EulerDiscrete"]:
        for strength in [0.35, 0.8]:
            yield group(name + "Scheduler", EPS, ["linspace"], strength=strength, use_karras_sigmas=True)
    yield group("PNDMScheduler", EPS, ["leading"], strength=0.7, skip_prk_steps=True)
    yield group("DPMSolverSinglestepScheduler", EPS, [None], strength=0.5, steps=[6, 21], solver_order=3)


def edm():
    euler, multi = "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"
    cosxl = dict(sigma_max=120.0, sigma_data=1.0, sigma_schedule="exponential")
    for name in [euler, multi]:
        for levels in [{}, cosxl]:
            for final in ["zero", "sigma_min"]:
                yield group(name, EPS_V, [None], final_sigmas_type=final, **levels)
        yield group(name, EPS_V, [None], steps=[10], strength=0.6, rho=5.0, **cosxl)
    for order in [1, 2, 3]:
        for solver in ["midpoint", "heun"]:
            both = dict(solver_order=order, solver_type=solver, final_sigmas_type="sigma_min")
            yield group(multi, EPS_V, [None], **both)
            if order < 3:
                yield group(multi, EPS, [None], algorithm_type="sde-dpmsolver++", **both)
    yield group(multi, EPS, [None], solver_order=3, lower_order_final=False, euler_at_final=True, **cosxl)


def few_steps():
    """Students of few steps: TCD, and the lists of timesteps and noise levels that they and others visit."""
    for eta in [0.0, 0.3, 1.0]:
        yield group("TCDScheduler", ALL, ["leading"], steps=[1, 2, 4, 8, 50], eta=eta)
    yield group("TCDScheduler", EPS, ["trailing"], steps=[3, 7], eta=0.75, original_inference_steps=30)
    yield group("TCDScheduler", EPS_V, ["leading"], steps=[8], eta=0.3, strength=0.5)
    dmd2, one = [999, 749, 499, 249], [800]
    for name in ["LCMScheduler", "TCDScheduler", "DDPMScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler"]:
        config = {"clip_sample": False} if name == "DDPMScheduler" else {}
        eta = {"eta": 0.5} if name == "TCDScheduler" else {}
        for timesteps in [dmd2, one]:
            steps = [len(timesteps)]
            yield group(name, EPS_V, [None], steps=steps, timesteps=timesteps, **eta, **config)
    # Align your steps (Sabour et al. 2024), the table of diffusers for SDXL.
    ays = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]
    yield group("DPMSolverMultistepScheduler", EPS_V, [None], steps=[10], timesteps=ays)
    yield group("DPMSolverMultistepScheduler", EPS, [None], steps=[10], timesteps=ays, algorithm_type="sde-dpmsolver++")
    yield group("EulerDiscreteScheduler", EPS, ["trailing"], steps=[10], timesteps=ays)
    yield group("EulerDiscreteScheduler", EPS, ["leading"], steps=[2], timesteps=[700.25, 99.5])
    levels = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029]
    for spacing in ["leading", "trailing"]:
        yield group("EulerDiscreteScheduler", ALL, [spacing], steps=[10], sigmas=levels)
        yield group("EulerDiscreteScheduler", EPS, [spacing], steps=[2], sigmas=[14.615, 2.0, 0.0])
    for steps in [1, 2, 4, 8]:
        yield group("EulerDiscreteScheduler", ["epsilon", "sample"], ["trailing"], steps=[steps])
        yield group("EulerAncestralDiscreteScheduler", EPS, ["trailing"], steps=[steps])
        ddim = dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
        yield group("DDIMScheduler", EPS, ["trailing"], steps=[steps], **ddim)


def main():
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    groups = [g for part in [alpha_families, dpm_families, unipc, sigma_families, from_pictures, edm, few_steps] for g in part()]
    values = []
    for g in groups:
        for combination in itertools.product(g["predictions"], g["spacings"], g["steps"]):
            values.append(run(g, *combination))
    lines = ",\n".join(json.dumps(g, separators=(",", ":")) for g in groups)
    (HERE / "samplers.json").write_text(f'{{"betas":{json.dumps(BETAS)},"groups":[\n{lines}\n]}}\n')
    (HERE / "samplers.bin").write_bytes(np.concatenate(values).tobytes())
    print(len(groups), "groups,", len(values), "runs,", sum(v.nbytes for v in values), "bytes")


if __name__ == "__main__":
    main()
