#!/usr/bin/env python3
"""Makes golden/lora/{lycoris_*,peft_*}: LoHa, LoKr, whole differences and DoRA for the model of make_lora_golden.py, with what
LyCORIS' and PEFT's own code makes of them.

    venv/bin/pip install torch==2.15.0 diffusers==0.42.1 peft==0.21.2 lycoris-lora==4.1.3 safetensors
    venv/bin/python crates/weights/tests/make_adapter_golden.py

<name>.safetensors or <name>/      an adapter
<name>.expected.safetensors        what it adds to each parameter, whose values are those of `base` here
"""

import json
import os
import pathlib
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from diffusers import UNet2DConditionModel
from lycoris.functional.general import rebuild_tucker
from lycoris.functional.lokr import make_kron
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from safetensors.torch import save_file

GOLDEN = pathlib.Path(__file__).parent / "golden" / "lora"
SHAPES = json.loads((GOLDEN / "model.json").read_text())["unet"]
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"
CONV = "mid_block.resnets.0.conv1"


def base(shape):
    """The values of a parameter."""
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 37 % 101 - 50).float() / 64).view(shape)


def rand(*shape):
    return torch.randn(*shape) * 0.5


class File:
    def __init__(self):
        self.tensors, self.expected = {}, {}

    def add(self, module, prefix, parts, delta, alpha=None, rank=None, dora=None):
        """`delta` is the difference before it is scaled."""
        weight = base(SHAPES[module + ".weight"])
        self.tensors |= {f"{prefix}{module.replace('.', '_')}.{name}": value for name, value in parts.items()}
        if alpha is not None:
            self.tensors[f"{prefix}{module.replace('.', '_')}.alpha"] = torch.tensor(float(alpha))
        scale = alpha / rank if alpha is not None and rank else 1.0
        new = weight + scale * delta.reshape(weight.shape)
        if dora is not None:
            self.tensors[f"{prefix}{module.replace('.', '_')}.dora_scale"] = dora
            axes = [axis for axis in range(new.dim()) if dora.shape[axis] == 1]
            new = new * dora / (new**2).sum(axes, keepdim=True).sqrt()
        self.expected[f"unet.{module}.weight"] = new - weight

    def save(self, name):
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, GOLDEN / f"{name}.safetensors")
        save_file({k: v.contiguous() for k, v in self.expected.items()}, GOLDEN / f"{name}.expected.safetensors")


def loha(shape, rank, tucker):
    out, inputs, *kernel = shape
    if tucker:
        names, parts = ("1", "2"), {}
        for n in names:
            parts |= {f"hada_t{n}": rand(rank, rank, *kernel), f"hada_w{n}_a": rand(rank, out), f"hada_w{n}_b": rand(rank, inputs)}
        sides = [rebuild_tucker(parts[f"hada_t{n}"], parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"]) for n in names]
    else:
        flat = inputs * torch.Size(kernel).numel()
        parts = {f"hada_w{n}_{p}": rand(*s) for n in "12" for p, s in (("a", (out, rank)), ("b", (rank, flat)))}
        sides = [parts[f"hada_w{n}_a"] @ parts[f"hada_w{n}_b"] for n in "12"]
    return parts, sides[0] * sides[1]


def lokr(shape, rank, first, second):
    """`first` and `second`: whole, factors or tucker."""
    out, inputs, *kernel = shape
    parts = {}
    if first == "whole":
        w1 = parts["lokr_w1"] = rand(2, 2)
    else:
        parts |= {"lokr_w1_a": rand(2, rank), "lokr_w1_b": rand(rank, 2)}
        w1 = parts["lokr_w1_a"] @ parts["lokr_w1_b"]
    if second == "whole":
        w2 = parts["lokr_w2"] = rand(out // 2, inputs // 2, *kernel)
    elif second == "tucker":
        parts |= {"lokr_t2": rand(rank, rank, *kernel), "lokr_w2_a": rand(rank, out // 2), "lokr_w2_b": rand(rank, inputs // 2)}
        w2 = rebuild_tucker(parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
    else:
        parts |= {"lokr_w2_a": rand(out // 2, rank), "lokr_w2_b": rand(rank, inputs // 2, *kernel)}
        w2 = (parts["lokr_w2_a"] @ parts["lokr_w2_b"].flatten(1)).view(-1, inputs // 2, *kernel)
    return parts, make_kron(w1, w2, 1)


def lycoris():
    shape = lambda module: SHAPES[module + ".weight"]
    names = [f"{ATTENTION}.attn1.to_q", f"{ATTENTION}.attn1.to_k", f"{ATTENTION}.attn2.to_out.0", CONV, "up_blocks.0.resnets.0.conv2"]
    file = File()
    for module, tucker, alpha in [(names[0], False, 1), (names[1], False, None), (names[3], True, 2), (names[4], False, 3)]:
        parts, delta = loha(shape(module), 2, tucker)
        file.add(module, "lora_unet_", parts, delta, alpha, 2)
    file.save("lycoris_loha")

    file = File()
    for module, first, second, alpha in [(names[0], "whole", "whole", 7), (names[1], "whole", "factors", 3), (names[2], "factors", "whole", 5),
                                         (names[3], "whole", "tucker", 2), (names[4], "factors", "factors", 1)]:  # fmt: skip
        parts, delta = lokr(shape(module), 2, first, second)
        # Alpha means nothing where both are whole.
        file.add(module, "lycoris_", parts, delta, alpha, None if (first, second) == ("whole", "whole") else 2)
    file.save("lycoris_lokr")

    file = File()
    for module, axis in [(names[0], 0), (names[1], 1), (names[3], 0), (names[4], 1)]:
        out, inputs, *kernel = shape(module)
        down, up = rand(2, inputs, *kernel), rand(out, 2, *[1] * len(kernel))
        delta = (up.flatten(1) @ down.flatten(1)).view(shape(module))
        lengths = torch.rand(*[size if at == axis else 1 for at, size in enumerate(shape(module))]) + 0.5
        file.add(module, "lora_unet_", {"lora_down.weight": down, "lora_up.weight": up}, delta, 1, 2, lengths)
    parts, delta = loha(shape(names[2]), 2, False)
    file.add(names[2], "lora_unet_", parts, delta, 1, 2, torch.rand(shape(names[2])[0], 1) + 0.5)
    file.save("lycoris_dora")

    file = File()
    for module in names[:1] + names[3:4]:
        diff = rand(*shape(module))
        file.add(module, "lora_unet_", {"diff": diff}, diff)
    file.save("lycoris_full")


def unet():
    model = UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8), norm_num_groups=2, cross_attention_dim=6, attention_head_dim=(2, 2),
        layers_per_block=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time", addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=18, use_linear_projection=True,
    )  # fmt: skip
    model.load_state_dict({k: base(list(v.shape)) for k, v in model.state_dict().items()})
    return model


def peft(name, config):
    before = unet().state_dict()
    model = get_peft_model(unet(), config)
    for key, value in model.state_dict().items():
        if any(part in key for part in ("lora_", "hada_", "lokr_")):
            value.copy_(torch.rand_like(value) + 0.5 if "magnitude" in key else rand(*value.shape))
    folder = GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    merged = model.merge_and_unload().state_dict()
    expected = {f"unet.{k}": v - before[k] for k, v in merged.items() if not torch.equal(v, before[k])}
    save_file({k: v.contiguous() for k, v in expected.items()}, GOLDEN / f"{name}.expected.safetensors")


def main():
    torch.manual_seed(3)
    lycoris()
    targets = [f"{ATTENTION}.attn1.to_q", f"{ATTENTION}.attn2.to_out.0", CONV]
    peft("peft_dora", LoraConfig(r=2, lora_alpha=3, use_dora=True, target_modules=targets))
    peft("peft_loha", LoHaConfig(r=2, alpha=3, use_effective_conv2d=True, target_modules=targets))
    peft("peft_lokr", LoKrConfig(r=2, alpha=3, decompose_both=True, use_effective_conv2d=True, target_modules=targets))


main()
