"""Golden values of whole training steps of small ViTs, computed by PyTorch with timm and transformers: losses of 20 steps, final
weights.

    python make_vit_steps.py [--check]

writes `vit_steps.json` next to itself. As in `make_steps.py`, weights and images are computed from their names, each case is a text
of TOML that the test reads as the recipe's tables, and --check compares with float64. Weights have the names of transformers' files
on both sides; fine-tuning begins with a model of another grid and other classes (table `before`), whose position embeddings timm
interpolates. Made with torch 2.15, timm 1.0.31, transformers 5.23.
"""

import argparse
import json
import tomllib
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from make_steps import apart, inputs, learning_rate, uniform, weights
from timm.data.mixup import mixup_target
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from transformers import ViTConfig, ViTForImageClassification

torch.set_num_threads(1)

STEPS, BATCH = 20, 4
SIZES = dict(patch_size=4, channels=32, mlp_channels=64, layers=2, heads=2)


def names(layers):
    """Names of transformers' files, and timm's with the third of a stacked tensor."""
    pairs = [("vit.embeddings.cls_token", "cls_token", None), ("vit.embeddings.position_embeddings", "pos_embed", None)]
    for end in ("weight", "bias"):
        pairs += [(f"vit.embeddings.patch_embeddings.projection.{end}", f"patch_embed.proj.{end}", None),
                  (f"vit.layernorm.{end}", f"norm.{end}", None), (f"classifier.{end}", f"head.{end}", None)]
        for layer in range(layers):
            ours, theirs = f"vit.encoder.layer.{layer}", f"blocks.{layer}"
            pairs += [(f"{ours}.attention.attention.{part}.{end}", f"{theirs}.attn.qkv.{end}", third)
                      for third, part in enumerate(("query", "key", "value"))]
            pairs += [(f"{ours}.{a}.{end}", f"{theirs}.{b}.{end}", None) for a, b in (
                ("layernorm_before", "norm1"), ("attention.output.dense", "attn.proj"), ("layernorm_after", "norm2"),
                ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"))]
    return pairs


def timm_model(config):
    reads = config.get("reads", "first_token")
    return VisionTransformer(
        img_size=config["image_size"], patch_size=config["patch_size"], embed_dim=config["channels"],
        depth=config["layers"], num_heads=config["heads"], mlp_ratio=config["mlp_channels"] / config["channels"],
        num_classes=config["labels"], class_token=config.get("class_tokens", 1) > 0,
        global_pool="avg" if reads == "patches" else "token", norm_layer=partial(torch.nn.LayerNorm, eps=1e-6))


def fill_timm(model):
    own, stacked = dict(model.named_parameters()), {}
    with torch.no_grad():
        for ours, theirs, third in names(len(model.blocks)):
            theirs = theirs if theirs in own else theirs.replace("norm.", "fc_norm.") if theirs.startswith("norm.") else None
            if theirs not in own:
                continue
            parameter = own[theirs]
            view = parameter if third is None else parameter.chunk(3)[third]
            view.copy_(weights(ours, tuple(view.shape)))
            stacked.setdefault(theirs, []).append((ours, third))
    assert set(stacked) == set(own), set(own) - set(stacked)
    return stacked


def timm_case(config, before, dtype):
    if before is None:
        model = timm_model(config)
        stacked = fill_timm(model)
    else:
        small = timm_model({**config, **before, "pooling": False})
        stacked = fill_timm(small)
        model = timm_model(config)
        state = checkpoint_filter_fn(small.state_dict(), model)
        state = {key: value for key, value in state.items() if not key.startswith("head.")}
        missing, unexpected = model.load_state_dict(state, strict=False)
        assert missing == ["head.weight", "head.bias"] and not unexpected
        torch.nn.init.zeros_(model.head.weight)
        torch.nn.init.zeros_(model.head.bias)
    found = lambda: {ours: (p if third is None else p.chunk(3)[third])
                     for theirs, p in model.named_parameters() for ours, third in stacked[theirs]}
    return model.to(dtype).train(), model, found


def library_name(name):
    """A parameter's name in transformers 5, which differs from that in its files."""
    for stored, library in [
        ("vit.encoder.layer.", "vit.layers."), (".attention.attention.query.", ".attention.q_proj."),
        (".attention.attention.key.", ".attention.k_proj."), (".attention.attention.value.", ".attention.v_proj."),
        (".attention.output.dense.", ".attention.o_proj."), (".intermediate.dense.", ".mlp.fc1."),
        (".output.dense.", ".mlp.fc2."),
    ]:
        name = name.replace(stored, library)
    return name


def transformers_case(config, dtype):
    model = ViTForImageClassification(ViTConfig(
        image_size=config["image_size"], patch_size=config["patch_size"], hidden_size=config["channels"],
        intermediate_size=config["mlp_channels"], num_hidden_layers=config["layers"], num_attention_heads=config["heads"],
        num_labels=config["labels"], hidden_dropout_prob=0.0, layer_norm_eps=1e-12))
    own = dict(model.named_parameters())
    known = {ours: library_name(ours) for ours, _, _ in names(config["layers"])}
    assert set(known.values()) == set(own)
    with torch.no_grad():
        for ours, theirs in known.items():
            own[theirs].copy_(weights(ours, tuple(own[theirs].shape)))
    found = lambda: {ours: own[theirs] for ours, theirs in known.items()}
    return model.to(dtype).train(), lambda images: model(images).logits, found


def optimizer_of(model, table):
    decay = table.get("weight_decay", 0.01)
    groups = [dict(params=[p for p in model.parameters() if p.ndim > 1], weight_decay=decay),
              dict(params=[p for p in model.parameters() if p.ndim <= 1],
                   weight_decay=0.0 if "groups" in table else decay)]
    if table.get("name") == "sgd":
        return torch.optim.SGD(groups, lr=1.0, momentum=table["momentum"])
    return torch.optim.AdamW(groups, lr=1.0)


def classes_of(step, labels):
    return ((torch.from_numpy(uniform(f"classes {step}", BATCH)) + 1) / 2 * labels).long()


COMPARED = ["vit.embeddings.position_embeddings", "vit.embeddings.patch_embeddings.projection.weight",
            "vit.encoder.layer.0.attention.attention.query.weight", "vit.encoder.layer.1.output.dense.weight",
            "vit.layernorm.weight", "classifier.weight", "classifier.bias"]
FIRST = 8


def run(library, text, dtype=torch.float32):
    tables = tomllib.loads(text)
    config, objective, table = {**SIZES, **tables["model"]}, tables["objective"], tables["optimizer"]
    made = timm_case(config, tables.get("before"), dtype) if library == "timm" else transformers_case(config, dtype)
    model, logits_of, found = made
    optimizer = optimizer_of(model, table)
    scheduled = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    side, share, losses = config["image_size"], objective.get("share"), []
    for step in range(1, STEPS + 1):
        images = inputs(f"images {step}", (BATCH, 3, side, side), dtype)
        classes = classes_of(step, config["labels"])
        smoothing = objective.get("label_smoothing", 0.0)
        target = mixup_target(classes, config["labels"], share or 1.0, smoothing).to(dtype)
        if share:
            images = images * share + images.flip(0) * (1.0 - share)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(table, scheduled, step)
        optimizer.zero_grad()
        loss = F.cross_entropy(logits_of(images), target)
        loss.backward()
        if table.get("gradient_clip"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), table["gradient_clip"])
        optimizer.step()
        losses.append(loss.item())
    first = {key: value.detach().flatten()[:FIRST].tolist() for key, value in found().items() if key in COMPARED}
    return dict(losses=losses, weights=first, averages={})


ADAMW = """learning_rate = 3e-3
weight_decay = 0.3
gradient_clip = 1.0
groups = [{ kinds = ["biases", "norms"], weight_decay = 0.0 }]
schedule = { name = "cosine", warmup = { steps = 5 }, final = 0.01 }"""
SGD = """name = "sgd"
learning_rate = 3e-2
momentum = 0.9
weight_decay = 0.0
gradient_clip = 1.0
schedule = { name = "cosine", final = 0.003 }"""


def case(library, model, objective="label_smoothing = 0.1", optimizer=ADAMW, before=""):
    before = f"[before]\n{before}\n" if before else ""
    return library, f"[model]\n{model}\n[objective]\n{objective}\n[optimizer]\n{optimizer}\n{before}"


TIMM, OWN = "image_size = 12\nlabels = 5\nnorm_eps = 1e-6", "image_size = 12\nlabels = 5"
CASES = {
    "timm": case("timm", TIMM),
    "transformers": case("transformers", OWN),
    "timm, mean of the patches": case("timm", TIMM + '\nreads = "patches"'),
    "timm, mean of the patches without a class token": case("timm", TIMM + '\nreads = "patches"\nclass_tokens = 0'),
    "timm, mixup": case("timm", TIMM, "label_smoothing = 0.1\nshare = 0.3"),
    "fine-tuning, a larger grid and other classes": case(
        "timm", "image_size = 24\nlabels = 5\nnorm_eps = 1e-6", "", SGD, "image_size = 16\nlabels = 7"),
    "fine-tuning, a smaller grid behind an MLP head": case(
        "timm", TIMM, "", SGD, "image_size = 20\nlabels = 5\npooling = true"),
    "fine-tuning the mean of the patches": case(
        "timm", TIMM + '\nreads = "patches"', "", SGD, "image_size = 16\nlabels = 3"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    out = {}
    for title, (library, text) in CASES.items():
        found = run(library, text)
        if check:
            losses, values = apart(found, run(library, text, torch.float64))
            print(f"{title:50} losses {losses:.1e}  values {values:.1e}", flush=True)
            if losses > 2e-5 or values > 2e-4:
                raise SystemExit(f"{title}: float32 is too far from float64 to be compared with")
        rounded = lambda values: [float(f"{value:.9g}") for value in values]
        labels = tomllib.loads(text)["model"]["labels"]
        classes = [classes_of(step, labels).tolist() for step in range(1, STEPS + 1)]
        out[title] = dict(recipe=text, classes=classes, losses=rounded(found["losses"]),
                          weights={key: rounded(values) for key, values in found["weights"].items()})
    cases = ",\n".join(f"{json.dumps(title)}: {json.dumps(case)}" for title, case in out.items())
    (Path(__file__).parent / "vit_steps.json").write_text(f"{{\n{cases}\n}}\n")


if __name__ == "__main__":
    main()
