"""Golden values of CLIP's training, computed by open_clip's own training loop: losses and logit scales of 20 steps, by one, two and
four processes, with and without accumulation.

    python make_contrastive.py [--check]

writes `contrastive.json` next to itself. Weights, images and captions are not stored: both sides compute them from formulas. Each case
is a text of TOML that the test reads as the recipe's tables, and this script by itself. Processes are real ones, connected by gloo,
with DistributedDataParallel, as `open_clip_train.main` sets them up. With --check, everything is computed in float64 too, and cases
whose float32 is further from it than a fifth of the test's bound are refused. Made with torch 2.15, open_clip 3.3.0.
"""

import argparse
import contextlib
import json
import logging
import math
import os
import tempfile
import tomllib
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import open_clip
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from open_clip import transformer
from open_clip.factory import create_loss
from open_clip.model import CLIP
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch

from make_steps import weights

STEPS, BATCH, SIDE, PATCH, CHANNELS, LAYERS, HEADS, WIDTH, TOKENS = 20, 16, 16, 4, 32, 2, 2, 16, 8
SAMPLES = STEPS * BATCH
COLOURS = ["red", "blue", "green", "black", "white", "pink", "brown", "grey"]
THINGS = ["cat", "dog", "boat", "house", "tree", "car", "cup", "hat"]
NUMBERS = ["one", "two", "three", "four", "five"]
SEED = 7
DROPOUT = 9  # Purpose::Dropout


def caption(sample):
    return f"{NUMBERS[sample // 64]} {COLOURS[sample % 8]} {THINGS[sample // 8 % 8]}"


def image(sample):
    """Levels by rows, columns and channels."""
    y, x, channel = np.meshgrid(np.arange(SIDE), np.arange(SIDE), np.arange(3), indexing="ij")
    a, b, c = sample % 8, sample // 8 % 8, sample // 64
    return (37 * a * (channel + 1) + 11 * b * (x // 4) + 29 * c * (y // 4) + 7 * x + 5 * y + sample % 13) % 256


def philox(counter, key):
    """Ten rounds of Philox 4x32 (Salmon et al. 2011)."""
    mask = 0xFFFFFFFF
    for _ in range(10):
        low, high = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [high >> 32 ^ counter[1] ^ key[0], high & mask, low >> 32 ^ counter[3] ^ key[1], low & mask]
        key = [key[0] + 0x9E3779B9 & mask, key[1] + 0xBB67AE85 & mask]
    return counter


def kept(position, patches, rate):
    """The patches that an image at a position of the run keeps: those of the smallest of as many random words, in their order."""
    words = []
    for block in range(math.ceil(patches / 4)):
        words += philox([block, position & 0xFFFFFFFF, position >> 32, DROPOUT], [SEED & 0xFFFFFFFF, SEED >> 32])
    count = max(1, int(patches * (1 - rate)))
    return sorted(sorted(range(patches), key=lambda patch: (words[patch], patch))[:count])


def published(name, shape, objective):
    """A parameter under the name that transformers has for it."""
    if name == "logit_scale":
        usual = math.log(10) if objective.get("loss") == "siglip" else math.log(1 / 0.07)
        return torch.tensor(objective.get("logit_scale_init", usual))
    if name == "logit_bias":
        return torch.tensor(objective.get("logit_bias_init", -10.0))
    return weights(name, shape)


def tower(model, objective, prefix, blocks):
    """Fills a tower's blocks: queries, keys and values are one tensor in open_clip."""
    for i, block in enumerate(blocks):
        own = f"{prefix}.encoder.layers.{i}"
        get = lambda name, *shape: published(f"{own}.{name}", shape, objective)
        for kind, theirs in (("weight", "in_proj_weight"), ("bias", "in_proj_bias")):
            shape = (CHANNELS, CHANNELS) if kind == "weight" else (CHANNELS,)
            parts = [get(f"self_attn.{part}_proj.{kind}", *shape) for part in "qkv"]
            getattr(block.attn, theirs).copy_(torch.cat(parts))
        for ours, theirs in (("self_attn.out_proj", block.attn.out_proj), ("layer_norm1", block.ln_1),
                             ("layer_norm2", block.ln_2), ("mlp.fc1", block.mlp.c_fc), ("mlp.fc2", block.mlp.c_proj)):
            for kind in ("weight", "bias"):
                parameter = getattr(theirs, kind)
                parameter.copy_(get(f"{ours}.{kind}", *parameter.shape))


def network(objective, dtype):
    siglip = objective.get("loss") == "siglip"
    vision = dict(layers=LAYERS, width=CHANNELS, head_width=CHANNELS // HEADS, patch_size=PATCH, image_size=SIDE,
                  patch_dropout=objective.get("patch_dropout", 0.0))
    text = dict(context_length=TOKENS, vocab_size=49408, width=CHANNELS, heads=HEADS, layers=LAYERS)
    model = CLIP(WIDTH, vision, text, quick_gelu=True, output_dict=True, init_logit_bias=-10.0 if siglip else None)
    with torch.no_grad():
        fill = lambda parameter, name, shape=None: parameter.copy_(
            published(name, tuple(shape or parameter.shape), objective))
        tower(model, objective, "text_model", model.transformer.resblocks)
        tower(model, objective, "vision_model", model.visual.transformer.resblocks)
        fill(model.token_embedding.weight, "text_model.embeddings.token_embedding.weight")
        fill(model.positional_embedding, "text_model.embeddings.position_embedding.weight")
        fill(model.visual.class_embedding, "vision_model.embeddings.class_embedding")
        fill(model.visual.conv1.weight, "vision_model.embeddings.patch_embedding.weight")
        fill(model.visual.positional_embedding, "vision_model.embeddings.position_embedding.weight")
        for norm, name in ((model.ln_final, "text_model.final_layer_norm"), (model.visual.ln_pre, "vision_model.pre_layrnorm"),
                           (model.visual.ln_post, "vision_model.post_layernorm")):
            for kind in ("weight", "bias"):
                fill(getattr(norm, kind), f"{name}.{kind}")
        model.text_projection.copy_(published("text_projection.weight", (WIDTH, CHANNELS), objective).T)
        model.visual.proj.copy_(published("visual_projection.weight", (WIDTH, CHANNELS), objective).T)
        fill(model.logit_scale, "logit_scale")
        if siglip:
            fill(model.logit_bias, "logit_bias")
    return model.to(dtype)


def optimizer(model, table):
    """As `open_clip_train.main` makes it."""
    exclude = lambda n, p: p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n
    named = list(model.named_parameters())
    groups = [
        {"params": [p for n, p in named if exclude(n, p)], "weight_decay": 0.0},
        {"params": [p for n, p in named if not exclude(n, p)], "weight_decay": table["weight_decay"]},
    ]
    return torch.optim.AdamW(groups, lr=table["learning_rate"], betas=(table["beta1"], table["beta2"]), eps=table["eps"])


class Loader:
    """The batches of one rank, part by part."""

    def __init__(self, rank, world, parts, dtype):
        tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=TOKENS)
        part, own = BATCH // parts, BATCH // parts // world
        self.batches, self.positions = [], {}
        for first in range(0, SAMPLES, part):
            positions = range(first + rank * own, first + (rank + 1) * own)
            pixels = torch.stack([torch.from_numpy(image(p).astype(np.float64) / 255 * 2 - 1) for p in positions])
            pixels = pixels.permute(0, 3, 1, 2).to(torch.float32).to(dtype)
            self.batches.append((pixels, tokenizer([caption(p) for p in positions])))
            self.positions.update({p.numpy().tobytes(): position for p, position in zip(pixels, positions)})
        self.num_batches, self.num_samples = len(self.batches), SAMPLES

    def __iter__(self):
        return iter(self.batches)


@contextlib.contextmanager
def injected(model, loader, rate):
    """Makes PatchDropout keep the patches that a position's random numbers name, whatever it draws."""
    if rate == 0.0:
        yield
        return
    seen = {}
    look = model.visual.register_forward_pre_hook(lambda _, args: seen.update(
        positions=[loader.positions[pixels.numpy().tobytes()] for pixels in args[0]]))
    drawn = torch.randn

    def scores(batch, patches):
        out = torch.zeros(batch, patches)
        for row, position in enumerate(seen["positions"]):
            out[row, kept(position, patches, rate)] = 1.0
        return out

    transformer.torch = SimpleNamespace(**{**vars(torch), "randn": scores})
    try:
        yield
    finally:
        transformer.torch = torch
        look.remove()
        assert torch.randn is drawn


def train(rank, case, dtype):
    """The losses of one process, and the logit scale (its logarithm) behind each step."""
    tables = tomllib.loads(case["recipe"])
    objective, table = tables["objective"], tables["optimizer"]
    world, parts = case["ranks"], table.get("accumulate", 1)
    args = SimpleNamespace(
        device="cpu", precision="fp32", accum_freq=parts, distill=False, skip_scheduler=False, horovod=False,
        grad_clip_norm=table.get("gradient_clip") or None, world_size=world, rank=rank, local_rank=rank, batch_size=BATCH // world,
        log_every_n_steps=10**9, wandb=False, log_local=False, model="ViT", siglip=objective["loss"] == "siglip",
        local_loss=objective["loss"] == "local", gather_with_grad=True, loss_dist_impl=None)
    model = network(objective, dtype)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    made = optimizer(model, table)
    loader = Loader(rank, world, parts, dtype)
    loss, seen, scales = create_loss(args), [], []

    def recorded(**inputs):
        found = loss(**inputs)
        seen.append(sum(found.values()).item())
        return found

    rate = cosine_lr(made, table["learning_rate"], table["schedule"]["warmup"]["steps"], STEPS)

    def scheduled(step):
        if step > len(scales):
            scales.append(model.logit_scale.item())
        rate(step)

    data = {"train": SimpleNamespace(dataloader=loader, set_epoch=lambda _: None)}
    with injected(model, loader, objective.get("patch_dropout", 0.0)):
        train_one_epoch(wrapped, data, recorded, 0, made, None, scheduled, None, args)
    scales.append(model.logit_scale.item())
    return dict(losses=seen[::parts], scales=scales)


def work(rank, world, dtypes, place):
    """One of the processes that compute all cases of their number."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{place}/meeting", rank=rank, world_size=world)
    of_world = {title: made for title, made in CASES.items() if made["ranks"] == world}
    found = {title: [train(rank, made, dtype) for dtype in dtypes] for title, made in of_world.items()}
    Path(place, f"{rank}.json").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


def together(ranks):
    """What a case came to: the means of the processes' losses."""
    assert all(one["scales"] == ranks[0]["scales"] for one in ranks)
    losses = [sum(values) / len(values) for values in zip(*(one["losses"] for one in ranks))]
    assert len(losses) == len(ranks[0]["scales"]) == STEPS
    return dict(losses=losses, scales=ranks[0]["scales"])


def run_all(dtypes):
    """Each case in each of the types."""
    results = {}
    for world in sorted({made["ranks"] for made in CASES.values()}):
        with tempfile.TemporaryDirectory() as place:
            if world == 1:
                work(0, world, dtypes, place)
            else:
                mp.spawn(work, (world, dtypes, place), nprocs=world)
            ranks = [json.loads(Path(place, f"{rank}.json").read_text()) for rank in range(world)]
        for title in ranks[0]:
            results[title] = [together([rank[title][i] for rank in ranks]) for i in range(len(dtypes))]
    return results


OPTIMIZER = """learning_rate = 1e-3
beta1 = 0.9
beta2 = 0.98
eps = 1e-6
schedule = { name = "cosine", variant = "open_clip", warmup = { steps = 5 } }
groups = [{ kinds = ["vectors"], weight_decay = 0.0 }]
"""


def case(loss, ranks=1, parts=1, objective="", optimizer="", decay=0.2):
    optimizer += f"weight_decay = {decay}\n"
    recipe = f'[objective]\nloss = "{loss}"\nclamp = "step"\n{objective}[optimizer]\n{OPTIMIZER}{optimizer}'
    return dict(ranks=ranks, recipe=recipe + (f"accumulate = {parts}\n" if parts > 1 else ""))


CASES = {
    f"{loss}, {ranks} ranks, accumulate {parts}": case(loss, ranks, parts)
    for loss in ("full", "local", "siglip") for ranks in (1, 2, 4) for parts in (1, 2, 4)
    if loss != "local" or ranks > 1
}
HALF = "patch_dropout = 0.5\n"
CASES |= {
    "patch dropout": case("full", objective=HALF),
    "patch dropout, 2 ranks, accumulate 2": case("local", 2, 2, objective=HALF),
    "clamped": case("full", objective="logit_scale_init = 4.7\n"),
    "clamped, 2 ranks": case("local", 2, objective="logit_scale_init = 4.7\n"),
    "clipped": case("full", optimizer="gradient_clip = 0.5\n"),
    "strong decay": case("full", decay=5.0),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    rounded = lambda values: [float(f"{value:.9g}") for value in values]
    lines = []
    results = run_all([torch.float32, torch.float64] if check else [torch.float32])
    for title, made in CASES.items():
        found, *exact = results[title]
        if check:
            (exact,) = exact
            apart = max(abs(a / b - 1) for what in found for a, b in zip(found[what], exact[what]))
            print(f"{title:40} {found['losses'][0]:.4f} to {found['losses'][-1]:.4f}  float64 {apart:.1e} away", flush=True)
            if apart > 2e-5:
                raise SystemExit(f"{title}: float32 is too far from float64 to be compared with")
        lines.append(f"{json.dumps(title)}: {json.dumps(dict(made, **{k: rounded(v) for k, v in found.items()}))}")
    versions = json.dumps(dict(torch=torch.__version__.split("+")[0], open_clip=open_clip.__version__))[:-1]
    cases = ",\n".join(lines)
    (Path(__file__).parent / "contrastive.json").write_text(f'{versions}, "cases": {{\n{cases}\n}}}}\n')


if __name__ == "__main__":
    main()
