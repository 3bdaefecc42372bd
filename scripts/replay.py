"""Replays the first steps of a training run in PyTorch and compares losses, gradient norms and weights.

    calotype train RECIPE --out RUN --record RECORD.safetensors --record-steps 20 run.precision=f32
    python scripts/replay.py RECORD.safetensors RUN/model [--losses OUT.json] [--bound 1e-4]

The network is built from the configuration of RUN/model (diffusers or transformers), gets the record's initial weights,
and is trained with torch.optim on the recorded inputs at the recorded learning rates. One line a step; ends with 1 if a
loss is further away than the bound. --losses writes PyTorch's losses, as crates/train/tests/it/golden holds them.
"""

import argparse
import json
import os
import sys
import tomllib
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from safetensors import safe_open


class Record:
    def __init__(self, path):
        self.file = safe_open(path, "pt")
        metadata = self.file.metadata()
        self.kind, self.steps = metadata["kind"], int(metadata["steps"])
        self.recipe = tomllib.loads(metadata["recipe"])
        self.names = list(self.file.keys())

    def weights(self, when):
        own = [name for name in self.names if name.startswith(f"{when}.")]
        known = in_memory if self.kind == "vit" else str
        return {known(name.removeprefix(f"{when}.")): self.file.get_tensor(name) for name in own}

    def figure(self, step, name):
        return self.file.get_tensor(f"step{step}.{name}").item()

    def parts(self, step):
        """What the loss saw in each part of a step (one, unless gradients were accumulated), by argument name."""
        parts = {}
        for name in self.names:
            head, _, rest = name.partition(".")
            if head != f"step{step}" or rest in ("loss", "learning_rate", "gradient_norm"):
                continue
            part, _, argument = rest.rpartition(".")
            parts.setdefault(part, {})[argument] = self.file.get_tensor(name)
        return [parts[part] for part in sorted(parts)]


def component(folder, name):
    return folder / name if (folder / name).is_dir() else folder


def clip(folder, recipe):
    from transformers import CLIPConfig, CLIPModel

    model = CLIPModel(CLIPConfig.from_pretrained(folder))
    return model, lambda inputs: model(**inputs, return_loss=True).loss


def autoencoder(folder, recipe):
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_config(AutoencoderKL.load_config(component(folder, "vae")))
    objective = recipe["objective"]
    distance = {"l1": F.l1_loss, "l2": F.mse_loss}[objective["reconstruction"]]

    def loss(inputs):
        latents = model.encode(inputs["sample"]).latent_dist
        decoded = model.decode(latents.mean + latents.std * inputs["noise"]).sample
        divergence = 0.5 * (latents.mean**2 + latents.var - 1 - latents.logvar).mean()
        return distance(decoded, inputs["sample"]) + objective["kl_weight"] * divergence

    return model, loss


def diffusion(folder, recipe):
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(component(folder, "unet")))

    def loss(inputs):
        target, weight = inputs.pop("target"), inputs.pop("loss_weight", None)
        threshold, factor = (inputs.pop(name, None) for name in ("huber_threshold", "huber_factor"))
        output = model(**inputs).sample
        if threshold is None:
            errors = F.mse_loss(output, target, reduction="none")
        else:
            threshold, factor = (values.view(-1, 1, 1, 1) for values in (threshold, factor))
            errors = factor * (torch.sqrt((output - target) ** 2 + threshold**2) - threshold)
        errors = errors.mean((1, 2, 3))
        return (errors if weight is None else errors * weight).mean()

    return model, loss


def vit(folder, recipe):
    from transformers import ViTConfig, ViTForImageClassification

    model = ViTForImageClassification(ViTConfig.from_pretrained(folder))
    smoothing = recipe.get("objective", {}).get("label_smoothing", 0.0)

    def loss(inputs):
        labels = inputs["labels"]
        # Those of mixed images are probabilities, smoothed already.
        rest = smoothing if labels.ndim == 1 else 0.0
        return F.cross_entropy(model(inputs["pixel_values"]).logits, labels, label_smoothing=rest)

    return model, loss


def in_memory(name):
    """A parameter's name in the library, which for ViT differs from that in its files since transformers 5."""
    for stored, library in [
        ("vit.encoder.layer.", "vit.layers."), (".attention.attention.query.", ".attention.q_proj."),
        (".attention.attention.key.", ".attention.k_proj."), (".attention.attention.value.", ".attention.v_proj."),
        (".attention.output.dense.", ".attention.o_proj."), (".intermediate.dense.", ".mlp.fc1."),
        (".output.dense.", ".mlp.fc2."),
    ]:
        name = name.replace(stored, library)
    return name


TASKS = dict(clip=clip, autoencoder=autoencoder, diffusion=diffusion, vit=vit)


def optimizer(model, settings):
    rate = settings.get("learning_rate", 1e-4)
    if settings.get("name", "adamw") == "sgd":
        keys = dict(momentum=0.9, dampening=0.0, nesterov=False, weight_decay=0.0)
        return torch.optim.SGD(model.parameters(), lr=rate, **{key: settings.get(key, usual) for key, usual in keys.items()})
    betas = settings.get("beta1", 0.9), settings.get("beta2", 0.999)
    eps, decay = settings.get("eps", 1e-8), settings.get("weight_decay", 0.01)
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=betas, eps=eps, weight_decay=decay)


def load(model, weights):
    own = model.state_dict()
    # A published scalar is a vector of one number in the trainer.
    weights = {name: value.reshape(own[name].shape) if name in own else value for name, value in weights.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing or unexpected:
        sys.exit(f"error: the network lacks {unexpected}, the record lacks {missing}")


def step(model, loss, torch_optimizer, record, number):
    """One step; the loss and the norm of the gradient."""
    for group in torch_optimizer.param_groups:
        group["lr"] = record.figure(number, "learning_rate")
    torch_optimizer.zero_grad()
    parts = record.parts(number)
    if record.kind == "clip":
        # Its loss is that of the whole batch, in however many parts that goes through the network.
        parts = [{name: torch.cat([part[name] for part in parts]) for name in parts[0]}]
    total = 0.0
    for inputs in parts:
        value = loss(inputs) / len(parts)
        value.backward()
        total += value.item()
    clip = record.recipe["optimizer"].get("gradient_clip", 0.0)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).item()
    if 0 < clip < norm:
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(clip / norm)
    torch_optimizer.step()
    return total, norm


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--losses", type=Path)
    parser.add_argument("--bound", type=float, default=1e-4)
    arguments = parser.parse_args()
    record = Record(arguments.record)
    if record.recipe["optimizer"].get("groups"):
        sys.exit("error: optimizer.groups are not replayed")
    if record.kind == "clip" and record.recipe.get("objective"):
        sys.exit("error: of CLIP, only the usual objective is replayed; crates/train/tests/it/golden/make_contrastive.py has the others")
    model, loss = TASKS[record.kind](arguments.model, record.recipe)
    load(model, record.weights("initial"))
    model.train()
    torch_optimizer = optimizer(model, record.recipe["optimizer"])
    losses, furthest = [], 0.0
    for number in range(record.steps):
        value, norm = step(model, loss, torch_optimizer, record, number)
        ours, our_norm = record.figure(number, "loss"), record.figure(number, "gradient_norm")
        furthest = max(furthest, abs(value - ours))
        losses.append(value)
        print(f"{record.kind}  step {number}  loss {value:.7f}  ours {ours:.7f}  norm {norm:.5f}  ours {our_norm:.5f}")
    final = record.weights("final")
    state = model.state_dict()
    apart = max((state[name].flatten() - value.flatten()).abs().max().item() for name, value in final.items())
    print(f"{record.kind}: losses at most {furthest:.2e} apart, weights behind the last step {apart:.2e}")
    if arguments.losses:
        arguments.losses.write_text(json.dumps({"torch": torch.__version__, "losses": losses}, indent=1) + "\n")
    sys.exit(furthest > arguments.bound)


if __name__ == "__main__":
    main()
