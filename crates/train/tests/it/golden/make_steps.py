"""Golden values of whole training steps, computed by PyTorch and diffusers: losses of 20 steps, final weights, averages.

    python make_steps.py [--check]

writes `steps.json` next to itself. Weights, latents, noise and states of captions are not stored: both sides compute them from their
names (`uniform`). Each case is a text of TOML that the test reads as the recipe's tables, and this script by itself. With
--check, everything is computed in float64 too, and cases whose float32 is further from it than a fifth of the
test's bounds are refused: they would compare rounding. Made with torch 2.15, diffusers 0.42.1,
transformers 5.
"""

import argparse
import json
import math
import tomllib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_snr
from transformers import get_inverse_sqrt_schedule

torch.set_num_threads(1)

STEPS, BATCH, SIDE, TOKENS = 20, 4, 8, 5


def fnv1a(text):
    """64-bit FNV-1a hash."""
    state = 0xCBF29CE484222325
    for byte in text.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    return state


def uniform(name, count):
    """`count` numbers in -1..1 that belong to a name: splitmix64 from the name's hash, upper 24 bits."""
    with np.errstate(over="ignore"):
        state = np.uint64(fnv1a(name)) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, count + 1, dtype=np.uint64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(40)).astype(np.float64) / 2**23 - 1


def inputs(name, shape, dtype):
    """Numbers of deviation one, as float32 has them."""
    values = (uniform(name, int(np.prod(shape))) * math.sqrt(3)).astype(np.float32)
    return torch.from_numpy(values).reshape(shape).to(dtype)


def weights(name, shape):
    """A parameter: deviation of one over the root of the inputs, scales around one, small shifts."""
    u = uniform(name, int(np.prod(shape)))
    if len(shape) > 1:
        u = u * np.sqrt(3.0 / np.prod(shape[1:]))
    elif name.endswith("weight"):
        u = 1 + 0.25 * u
    else:
        u = 0.125 * u
    return torch.from_numpy(u.astype(np.float32)).reshape(shape)


SMALL = dict(norm_num_groups=8, block_out_channels=(16, 32, 32, 32), layers_per_block=2, cross_attention_dim=24,
             attention_head_dim=2)
LINEAR = dict(SMALL, use_linear_projection=True, attention_head_dim=(2, 4, 4, 4))
TINY = dict(norm_num_groups=4, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=24,
            attention_head_dim=(1, 2), use_linear_projection=True,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"))
# name: configuration, groups of the residual blocks' norms where they are others
UNETS = {"sd1": (SMALL, None), "sd2": (LINEAR, None), "mlperf": (LINEAR, 4), "tiny": (TINY, None)}


def unet(name, dtype):
    config, groups = UNETS[name]
    model = UNet2DConditionModel(**config)
    for path, module in model.named_modules():
        if groups and isinstance(module, torch.nn.GroupNorm) and "attentions" not in path:
            module.num_groups = groups
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(weights(key, tuple(parameter.shape)))
    return model.to(dtype).train()


def noise_schedule(table, prediction):
    kind = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
    return DDPMScheduler(
        num_train_timesteps=table.get("timesteps", 1000), beta_schedule=kind[table.get("kind", "scaled_linear")],
        beta_start=table.get("beta_start", 0.00085), beta_end=table.get("beta_end", 0.012),
        rescale_betas_zero_snr=table.get("zero_terminal_snr", False), prediction_type=prediction)


def loss_of(scheduler, objective, output, clean, noise, timesteps):
    """The loss as diffusers' training scripts compute it."""
    prediction = scheduler.config.prediction_type
    target = {"epsilon": noise, "sample": clean}.get(prediction)
    if target is None:
        target = scheduler.get_velocity(clean, noise, timesteps)
    shape = objective.get("loss", "l2")
    if shape == "l2":
        errors = F.mse_loss(output, target, reduction="none")
    else:
        ((kind, huber),) = shape.items()
        c, cumulative = huber["c"], scheduler.alphas_cumprod.to(output.dtype)[timesteps]
        thresholds = {
            "constant": torch.full_like(cumulative, c),
            "exponential": torch.exp(math.log(c) / len(scheduler.alphas_cumprod) * timesteps.to(output.dtype)),
            "snr": (1 - c) / (1 + ((1 - cumulative) / cumulative) ** 0.5) ** 2 + c,
        }[huber.get("schedule", "snr")].view(-1, 1, 1, 1)
        root = torch.sqrt((output - target) ** 2 + thresholds**2) - thresholds
        errors = 2 * thresholds * root if kind == "huber" else 2 * root
    errors = errors.mean((1, 2, 3))
    weight = objective.get("loss_weight", "uniform")
    if weight != "uniform":
        snr = compute_snr(scheduler, timesteps).to(output.dtype)
        least = torch.minimum(snr, torch.full_like(snr, weight["min_snr"]))
        errors = errors * {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}[prediction]
    return errors.mean()


def stepped(scheduler, step):
    """The factor of one of PyTorch's schedulers after so many steps."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    made = scheduler(optimizer)
    for _ in range(step):
        optimizer.step()
        made.step()
    return optimizer.param_groups[0]["lr"]


def learning_rate(table, optimizer, step):
    """Of the step of this number, counted from 1: the rate at its end; of LambdaLinearScheduler, at its beginning."""
    peak, schedule = table["learning_rate"], table.get("schedule", {"name": "constant"})
    warmup = schedule.get("warmup", {}).get("steps", 0)
    name = schedule["name"]
    if name == "lambda_linear":
        before = step - 1
        start, most, least = schedule.get("f_start", 1e-6), schedule.get("f_max", 1.0), schedule.get("f_min", 1.0)
        cycle = schedule["cycle"]["steps"]
        if before < warmup:
            return peak * ((most - start) / warmup * before + start)
        return peak * (least + (most - least) * (cycle - before) / cycle)
    if name == "cosine" and "final" in schedule:
        # A floor: NeMo's CosineAnnealing with min_lr.
        if step < warmup:
            return peak * step / warmup
        done = (step - warmup) / (STEPS - warmup)
        return peak * (schedule["final"] + (1 - schedule["final"]) * 0.5 * (1 + math.cos(math.pi * done)))
    if name == "step":
        every = schedule["every"]["steps"]
        return peak * stepped(lambda o: torch.optim.lr_scheduler.StepLR(o, every, schedule["gamma"]), step)
    if name == "multi_step":
        points = [point["steps"] for point in schedule["milestones"]]
        return peak * stepped(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, points, schedule["gamma"]), step)
    if name == "inverse_sqrt":
        return peak * get_inverse_sqrt_schedule(optimizer, warmup).lr_lambdas[0](step)
    named = {"constant": "constant_with_warmup"}.get(name, name)
    power = {"power": schedule["power"]} if "power" in schedule else {}
    made = get_scheduler(named, optimizer, num_warmup_steps=warmup, num_training_steps=STEPS, **power)
    return peak * made.lr_lambdas[0](step)


class Average:
    """The moving average of the weights."""

    def __init__(self, table, model):
        self.table, self.updates = table, 0
        self.parameters = [p.detach().clone() for p in model.parameters()]
        self.theirs = None
        if table["name"] == "diffusers":
            self.theirs = EMAModel(model.parameters(), decay=table["decay"], use_ema_warmup=table.get("warmup", False))

    def update(self, model):
        self.updates += 1
        if self.theirs:
            return self.theirs.step(model.parameters())
        decay = self.table["decay"]
        if self.table["name"] == "lit_ema":
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        for average, parameter in zip(self.parameters, model.parameters()):
            average.sub_((1 - decay) * (average - parameter.detach()))

    def values(self):
        return self.theirs.shadow_params if self.theirs else self.parameters


def timesteps_of(step):
    return torch.from_numpy(((uniform(f"timesteps {step}", BATCH) + 1) / 2 * 1000).astype(np.int64))


# Ends of the keys whose tensors are compared, in whichever network.
COMPARED = ["conv_in.weight", "time_embedding.linear_2.weight", "down_blocks.0.resnets.0.conv2.weight",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight", "mid_block.resnets.0.norm1.weight",
            "up_blocks.1.attentions.0.proj_out.weight", "conv_out.weight", "conv_out.bias"]
FIRST = 8


def run(name, text, dtype=torch.float32):
    tables = tomllib.loads(text)
    objective, optimizer_table = tables["objective"], tables["optimizer"]
    model = unet(name, dtype)
    scheduler = noise_schedule(tables.get("schedule", {}), objective["prediction"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=optimizer_table.get("weight_decay", 0.01))
    scheduled = torch.optim.AdamW(model.parameters(), lr=1.0)
    average = Average(tables["ema"], model)
    parts = optimizer_table.get("accumulate", 1)
    losses = []
    for step in range(1, STEPS + 1):
        clean, noise = (inputs(f"{what} {step}", (BATCH, 4, SIDE, SIDE), dtype) for what in ("clean", "noise"))
        states = inputs(f"states {step}", (BATCH, TOKENS, 24), dtype)
        timesteps = timesteps_of(step)
        optimizer.param_groups[0]["lr"] = learning_rate(optimizer_table, scheduled, step)
        optimizer.zero_grad()
        total = 0.0
        for part in torch.arange(BATCH).chunk(parts):
            noisy = scheduler.add_noise(clean[part], noise[part], timesteps[part])
            output = model(noisy, timesteps[part], states[part]).sample
            loss = loss_of(scheduler, objective, output, clean[part], noise[part], timesteps[part]) / parts
            loss.backward()
            total += loss.item()
        clip = optimizer_table.get("gradient_clip", 0.0)
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        average.update(model)
        losses.append(total)
    keys = [key for key, _ in model.named_parameters()]
    first = lambda values: {key: value.flatten()[:FIRST].tolist() for key, value in zip(keys, values) if key in COMPARED}
    return dict(losses=losses, weights=first([p.detach() for p in model.parameters()]), averages=first(average.values()))


def case(network, objective, optimizer="learning_rate = 1e-3", schedule="", ema='name = "lit_ema"\ndecay = 0.9999'):
    return network, f"[objective]\n{objective}\n[schedule]\n{schedule}\n[optimizer]\n{optimizer}\n[ema]\n{ema}\n"


def rate(schedule):
    return f"learning_rate = 1e-3\nschedule = {{ {schedule} }}"


EPSILON, V, X0 = (f'prediction = "{p}"\ncaption_dropout = 0.0' for p in ("epsilon", "v_prediction", "sample"))
MLPERF = 'learning_rate = 6.4e-5\nschedule = { name = "lambda_linear", warmup = { steps = 1000 }, cycle = { steps = 10000000 } }'
CASES = {
    "mlperf": case("mlperf", V, MLPERF),
    "sd1": case("sd1", EPSILON, "learning_rate = 1e-4", ema='name = "diffusers"\ndecay = 0.9999'),
    "sd2": case("sd2", V, "learning_rate = 1e-4", ema='name = "constant"\ndecay = 0.9'),
    "epsilon": case("tiny", EPSILON),
    "sample": case("tiny", X0),
    "v": case("tiny", V),
    "linear betas": case("tiny", EPSILON, schedule='kind = "linear"\nbeta_start = 0.0001\nbeta_end = 0.02'),
    "cosine betas": case("tiny", V, schedule='kind = "cosine"'),
    "zero terminal": case("tiny", V, schedule="zero_terminal_snr = true"),
    "min-snr epsilon": case("tiny", EPSILON + "\nloss_weight = { min_snr = 5.0 }"),
    "min-snr v": case("tiny", V + "\nloss_weight = { min_snr = 5.0 }"),
    "min-snr sample": case("tiny", X0 + "\nloss_weight = { min_snr = 5.0 }"),
    "huber": case("tiny", EPSILON + "\nloss = { huber = { c = 0.1 } }"),
    "huber exponential": case("tiny", V + '\nloss = { huber = { c = 0.1, schedule = "exponential" } }'),
    "smooth l1": case("tiny", EPSILON + '\nloss = { smooth_l1 = { c = 0.1, schedule = "constant" } }'),
    "smooth l1 min-snr": case("tiny", V + "\nloss = { smooth_l1 = { c = 0.1 } }\nloss_weight = { min_snr = 5.0 }"),
    "accumulate 2": case("tiny", EPSILON, "learning_rate = 1e-3\naccumulate = 2"),
    "accumulate 4": case("tiny", EPSILON, "learning_rate = 1e-3\naccumulate = 4\nweight_decay = 0.1"),
    "clipped": case("tiny", V, "learning_rate = 1e-3\ngradient_clip = 0.5"),
    "warm-up": case("tiny", EPSILON, rate('name = "constant", warmup = { steps = 5 }')),
    "cosine": case("tiny", EPSILON, rate('name = "cosine", warmup = { steps = 5 }')),
    "cosine with a floor": case("tiny", EPSILON, rate('name = "cosine", warmup = { steps = 5 }, final = 0.1')),
    "linear": case("tiny", EPSILON, rate('name = "linear", warmup = { steps = 5 }')),
    # lr_end of diffusers is 1e-7, whatever the rate.
    "polynomial": case("tiny", EPSILON, rate('name = "polynomial", warmup = { steps = 5 }, power = 2.0, final = 1e-7')),
    "lambda linear": case("tiny", EPSILON, rate(
        'name = "lambda_linear", warmup = { steps = 5 }, f_start = 0.01, f_min = 0.1, cycle = { steps = 20 }')),
    "inverse root": case("tiny", EPSILON, rate('name = "inverse_sqrt", warmup = { steps = 5 }')),
    "steps": case("tiny", EPSILON, rate('name = "step", every = { steps = 7 }, gamma = 0.5')),
    "milestones": case("tiny", EPSILON, rate(
        'name = "multi_step", milestones = [{ steps = 4 }, { steps = 12 }], gamma = 0.3')),
    "diffusers average": case("tiny", V, ema='name = "diffusers"\ndecay = 0.9999\nwarmup = true'),
    "constant average": case("tiny", V, ema='name = "constant"\ndecay = 0.9'),
}


def apart(found, exact):
    """How far a run is from another: losses relatively, weights and averages as the test measures them."""
    losses = max(abs(a / b - 1) for a, b in zip(found["losses"], exact["losses"]))
    pairs = ((a, b) for what in ("weights", "averages") for key in exact[what]
             for a, b in zip(found[what][key], exact[what][key]))
    return losses, max(abs(a - b) for a, b in pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    out = {"torch": torch.__version__.split("+")[0], "timesteps": [timesteps_of(s).tolist() for s in range(1, STEPS + 1)]}
    out["cases"] = {}
    for title, (network, text) in CASES.items():
        found = run(network, text)
        if check:
            losses, values = apart(found, run(network, text, torch.float64))
            print(f"{title:20} losses {losses:.1e}  values {values:.1e}", flush=True)
            if losses > 2e-5 or values > 2e-4:
                raise SystemExit(f"{title}: float32 is too far from float64 to be compared with")
        rounded = lambda values: [float(f"{value:.9g}") for value in values]
        for what in ("weights", "averages"):
            found[what] = {key: rounded(values) for key, values in found[what].items()}
        out["cases"][title] = dict(network=network, recipe=text, **dict(found, losses=rounded(found["losses"])))
    cases = ",\n".join(f"{json.dumps(title)}: {json.dumps(case)}" for title, case in out.pop("cases").items())
    head = json.dumps(out)[:-1]
    (Path(__file__).parent / "steps.json").write_text(f'{head}, "cases": {{\n{cases}\n}}}}\n')


if __name__ == "__main__":
    main()
