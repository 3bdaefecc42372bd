"""Makes encoders.json: outputs and gradients of tiny encoders, and features of Inception, by their reference libraries.

Weights and inputs are a hash of their key and index (`formula`), which the test computes too, so that the file holds
outputs only. Of gradients it holds the norm and three projections.

    python make_encoders.py

with torch 2.15, transformers 5.23, open_clip 3.3, torchvision and pytorch-fid; nothing is downloaded.
"""

import functools
import json
import pathlib

import numpy as np
import open_clip
import torch
import torchvision
from pytorch_fid import inception as fid
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTForImageClassification,
)

PROJECTIONS = 3


def formula(key, count):
    """Uniform in -1..1, multiples of 2^-23, from the key's hash (FNV-1a) and the index."""
    start = functools.reduce(lambda h, byte: (h ^ byte) * 0x01000193 % 2**32, key.encode(), 0x811C9DC5)
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9) + np.uint32(start)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    return (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)


def parameter(key, shape, gain=1.0):
    """Weights of unit variance of outputs; scales around one; shifts around zero."""
    values = formula(key, int(np.prod(shape, dtype=np.int64)))
    if len(shape) > 1:
        values = values * np.float32(gain * np.sqrt(3.0 / np.prod(shape[1:])))
    elif key.endswith(("weight", "running_var")):
        values = np.float32(1.0) + values * np.float32(0.3)
    else:
        values = values * np.float32(0.2)
    return torch.from_numpy(values.reshape(shape))


def fill(model, names=lambda key: key, gain=1.0):
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point() and value.dim() > 0:
                value.copy_(parameter(names(key), tuple(value.shape), gain))
    return model.eval()


def rounded(tensor):
    return [float(f"{x:.8g}") for x in tensor.detach().double().flatten().tolist()]


def fingerprint(key, gradient):
    flat = gradient.detach().double().flatten()
    dots = [float(flat @ torch.from_numpy(formula(f"{i}.{key}", len(flat))).double()) for i in range(PROJECTIONS)]
    return [float(f"{x:.9g}") for x in [float(flat.norm())] + dots]


def record(model, outputs, names=lambda key: key, keys=None):
    """Outputs, and gradients of the sum of their products with numbers by formula."""
    loss = sum((out * torch.from_numpy(formula(name, out.numel())).view_as(out)).sum() for name, out in outputs.items())
    loss.backward()
    gradients = {}
    for key, p in model.named_parameters():
        if p.grad is not None and (keys is None or key in keys):
            gradients[names(key)] = fingerprint(names(key), p.grad)
    values = {name: {"shape": list(out.shape), "values": rounded(out)} for name, out in outputs.items()}
    return {"outputs": values, "gradients": gradients}


def ids(batch, tokens, vocabulary, ends, end):
    """Ids below the end token, which stands at `ends` and after it."""
    values = (formula("input_ids", batch * tokens) * 0.5 + 0.5) * (vocabulary - 1)
    rows = values.astype(np.int64).reshape(batch, tokens)
    for row, position in zip(rows, ends):
        row[position:] = end
    return torch.from_numpy(rows)


def pictures(batch, height, width):
    return torch.from_numpy(formula("pixel_values", batch * 3 * height * width).reshape(batch, 3, height, width))


def config(model):
    return json.loads(model.config.to_json_string(use_diff=False)) | {"architectures": [type(model).__name__]}


def text(cls, **options):
    model = cls(CLIPTextConfig(vocab_size=20, max_position_embeddings=7, **options))
    prefix = "" if cls is CLIPTextModelWithProjection else "text_model."
    names = lambda key: prefix + key
    fill(model, names)
    rows = ids(3, 6, 20, [5, 2, 3], 19)
    out = model(input_ids=rows, output_hidden_states=True)
    outputs = {f"hidden_states.{i}": state for i, state in enumerate(out.hidden_states)}
    outputs["last_hidden_state"] = out.last_hidden_state
    if cls is CLIPTextModelWithProjection:
        outputs["text_embeds"] = out.text_embeds
    else:
        outputs["pooler_output"] = out.pooler_output
    return {"config": config(model), "ids": rows.tolist()} | record(model, outputs, names)


def vision(**options):
    model = fill(CLIPVisionModelWithProjection(CLIPVisionConfig(**options)))
    size = options["image_size"]
    out = model(pixel_values=pictures(2, size, size))
    outputs = {"last_hidden_state": out.last_hidden_state, "image_embeds": out.image_embeds}
    return {"config": config(model)} | record(model, outputs)


def clip():
    sizes = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)
    model = CLIPModel(
        CLIPConfig(
            projection_dim=10,
            text_config=dict(sizes, vocab_size=20, max_position_embeddings=7, eos_token_id=19),
            vision_config=dict(sizes, image_size=12, patch_size=4, hidden_act="gelu"),
        )
    )
    fill(model)
    rows = ids(3, 6, 20, [5, 2, 3], 19)
    out = model(input_ids=rows, pixel_values=pictures(3, 12, 12), return_loss=True)
    outputs = {"text_embeds": out.text_embeds, "image_embeds": out.image_embeds, "loss": out.loss.view(1)}
    return {"config": config(model), "ids": rows.tolist()} | record(model, outputs)


def vit(**options):
    model = fill_vit(ViTForImageClassification(ViTConfig(num_labels=5, **options)))
    size = options["image_size"]
    out = model.vit(pictures(2, size, size)).last_hidden_state
    logits = model.classifier(out[:, 0])
    return {"config": config(model)} | record(model, {"last_hidden_state": out, "logits": logits}, vit_name)


def vit_name(key):
    """The key in checkpoints, which the library renames when it loads them."""
    for new, old in [
        ("vit.layers.", "vit.encoder.layer."),
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ]:
        key = key.replace(new, old)
    return key


def fill_vit(model):
    return fill(model, vit_name)


def open_clip_weights(state, layers):
    """Weights by formula under transformers' keys, arranged as open_clip has them."""
    towers = {"": ("text_model", "encoder.layers"), "visual.": ("vision_model", "encoder.layers")}
    new = {}
    for key, value in state.items():
        prefix = "visual." if key.startswith("visual.") else ""
        tower, shape = towers[prefix][0], tuple(value.shape)
        rest = key.removeprefix(prefix)
        if rest.startswith("transformer.resblocks."):
            _, _, layer, rest = rest.split(".", 3)
            base = f"{tower}.encoder.layers.{layer}."
            for ours, theirs in [
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
                ("attn.out_proj", "self_attn.out_proj"),
            ]:
                if rest.startswith(ours):
                    new[key] = parameter(base + theirs + rest.removeprefix(ours), shape)
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                part = (shape[0] // 3, *shape[1:])
                parts = [parameter(f"{base}self_attn.{p}_proj.{kind}", part) for p in "qkv"]
                new[key] = torch.cat(parts)
            continue
        name = {
            "positional_embedding": f"{tower}.embeddings.position_embedding.weight",
            "token_embedding.weight": f"{tower}.embeddings.token_embedding.weight",
            "class_embedding": f"{tower}.embeddings.class_embedding",
            "conv1.weight": f"{tower}.embeddings.patch_embedding.weight",
            "ln_pre.weight": f"{tower}.pre_layrnorm.weight",
            "ln_pre.bias": f"{tower}.pre_layrnorm.bias",
            "ln_post.weight": f"{tower}.post_layernorm.weight",
            "ln_post.bias": f"{tower}.post_layernorm.bias",
            "ln_final.weight": f"{tower}.final_layer_norm.weight",
            "ln_final.bias": f"{tower}.final_layer_norm.bias",
        }.get(rest)
        if name:
            new[key] = parameter(name, shape)
        elif rest in ("proj", "text_projection"):
            name = "visual_projection.weight" if prefix else "text_projection.weight"
            new[key] = parameter(name, shape[::-1]).T.contiguous()
    return new


def through_open_clip():
    """The features of a tiny model with an odd MLP ratio, and the states that condition Stable Diffusion 2."""
    model = open_clip.CLIP(
        embed_dim=10,
        vision_cfg=open_clip.CLIPVisionCfg(
            layers=2, width=32, head_width=16, mlp_ratio=1.7, patch_size=4, image_size=12
        ),
        text_cfg=open_clip.CLIPTextCfg(context_length=7, vocab_size=20, width=24, heads=3, layers=3),
    )
    missing, unexpected = model.load_state_dict(open_clip_weights(model.state_dict(), 3), strict=False)
    assert not unexpected and set(missing) <= {"logit_scale", "attn_mask"}, (missing, unexpected)
    model.eval()
    rows = ids(3, 7, 20, [5, 2, 3], 19)
    states = []
    model.transformer.resblocks[-2].register_forward_hook(lambda _module, _inputs, out: states.append(out))
    outputs = {"text_embeds": model.encode_text(rows), "image_embeds": model.encode_image(pictures(3, 12, 12))}
    outputs["penultimate_normed"] = model.ln_final(states[0])
    values = {name: {"shape": list(out.shape), "values": rounded(out)} for name, out in outputs.items()}
    return {"ids": rows.tolist(), "outputs": values}


def inception():
    """Every eighth feature and logit, and a few gradients, of the network at full size."""

    # The structure without the download of weights.
    def without_weights(*_, **__):
        return torchvision.models.inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)

    original, fid._inception_v3 = fid._inception_v3, without_weights
    fid.load_state_dict_from_url = lambda *_, **__: fill(without_weights(), gain=2.0**0.5).state_dict()
    # The blocks that are replaced have the same parameters, so that the weights fit the patched network too.
    network = fid.fid_inception_v3()
    wrapped = fid.InceptionV3()
    fid._inception_v3 = original
    network.eval(), wrapped.eval()

    def features(x):
        with torch.no_grad():
            pooled = wrapped(x)[0].flatten(1)
            return pooled, network.fc(pooled)

    outputs = {}
    for name, size in [("exact", (299, 299)), ("resized", (160, 400))]:
        pooled, logits = features(pictures(1, *size) * 0.5 + 0.5)
        outputs[f"{name}.features"], outputs[f"{name}.logits"] = pooled[:, ::8], logits[:, ::8]
    values = {name: {"shape": list(out.shape), "values": rounded(out)} for name, out in outputs.items()}
    keys = [
        "Conv2d_1a_3x3.conv.weight",
        "Mixed_5b.branch_pool.bn.weight",
        "Mixed_6a.branch3x3dbl_3.bn.bias",
        "Mixed_6b.branch7x7_2.conv.weight",
        "Mixed_7a.branch7x7x3_3.conv.weight",
        "Mixed_7c.branch_pool.conv.weight",
        "fc.bias",
    ]
    small = record(network, {"small.logits": network(pictures(1, 80, 75))}, keys=keys)
    values["small.logits"] = small["outputs"]["small.logits"]
    return {"outputs": values, "gradients": small["gradients"]}


def main():
    torch.manual_seed(0)
    sizes = dict(hidden_size=24, intermediate_size=40, num_attention_heads=3)
    cases = {
        "text": text(CLIPTextModel, hidden_size=16, intermediate_size=64, num_attention_heads=2, num_hidden_layers=2,
                     eos_token_id=2),
        "text_projection": text(CLIPTextModelWithProjection, **sizes, num_hidden_layers=3, hidden_act="gelu",
                                projection_dim=10, layer_norm_eps=1e-3, eos_token_id=19),
        "text_tanh": text(CLIPTextModelWithProjection, **sizes, num_hidden_layers=1, hidden_act="gelu_new",
                          projection_dim=5, eos_token_id=19),
        "vision": vision(hidden_size=33, intermediate_size=70, num_attention_heads=3, num_hidden_layers=2,
                         image_size=12, patch_size=4, hidden_act="gelu", projection_dim=10),
        "clip": clip(),
        "vit": vit(**sizes, num_hidden_layers=2, image_size=12, patch_size=4),
        "vit_without_bias": vit(**sizes, num_hidden_layers=1, image_size=8, patch_size=4, qkv_bias=False,
                                layer_norm_eps=1e-3, hidden_dropout_prob=0.1),
        "open_clip": through_open_clip(),
        "inception": inception(),
    }
    path = pathlib.Path(__file__).with_name("encoders.json")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case, separators=(',', ':'))}" for name, case in cases.items())
    path.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
