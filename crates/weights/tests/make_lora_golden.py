#!/usr/bin/env python3
"""Makes golden/lora: adapters in each dialect for a tiny model, and the differences they make, by PyTorch.

    python3 -m venv venv && venv/bin/pip install torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 safetensors
    venv/bin/python crates/weights/tests/make_lora_golden.py

model.json                  parameters of the model: component to key to shape (UNet in SDXL's form, two text encoders)
<dialect>.safetensors       an adapter; peft/ is a folder of PEFT's
<dialect>.expected.safetensors   the sum that it adds to each parameter at weight 1, `<component>.<key>`

That LDM's numbers mean the modules they are given here is checked with diffusers' own conversion.
"""

import json
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

GOLDEN = pathlib.Path(__file__).parent / "golden" / "lora"
RANK = 3

LDM = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_4_1_transformer_blocks_0_attn1_to_q": "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "input_blocks_5_1_transformer_blocks_0_attn2_to_out_0": "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0",
    "middle_block_0_emb_layers_1": "mid_block.resnets.0.time_emb_proj",
    "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
    "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
    "output_blocks_2_1_transformer_blocks_0_ff_net_0_proj": "up_blocks.0.attentions.2.transformer_blocks.0.ff.net.0.proj",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_5_0_out_layers_3": "up_blocks.1.resnets.2.conv2",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "out_2": "conv_out",
}


def models():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(4, 8), norm_num_groups=2, cross_attention_dim=6, attention_head_dim=(2, 2),
        layers_per_block=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time", addition_time_embed_dim=2,
        projection_class_embeddings_input_dim=18, use_linear_projection=True,
    )  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
                                        num_attention_heads=2, max_position_embeddings=9))  # fmt: skip
    return unet, {"unet": unet, "text_encoder": text, "text_encoder_2": text}


def factors(weight, tucker=False):
    """Down, up, mid and the difference at scale 1."""
    kernel = weight.shape[2:]
    up = torch.randn(weight.shape[0], RANK)
    if tucker:
        down, mid = torch.randn(RANK, weight.shape[1]), torch.randn(RANK, RANK, *kernel)
        delta = torch.einsum("ijkl,jr,pi->prkl", mid, down, up)
        return down[..., None, None], up[..., None, None], mid, delta
    down = torch.randn(RANK, *weight.shape[1:])
    delta = (up.double() @ down.flatten(1).double()).float().view(weight.shape)
    return down, up.view(*up.shape, *[1] * len(kernel)), None, delta


class Adapter:
    def __init__(self, components):
        self.parameters = {f"{c}.{k}": v for c, model in components.items() for k, v in model.state_dict().items()}
        self.tensors, self.expected = {}, {}

    def add(self, target, down_key, up_key, alpha_key=None, alpha=None, mid_key=None):
        weight = self.parameters[target + ".weight"]
        down, up, mid, delta = factors(weight, mid_key is not None)
        self.tensors |= {down_key: down, up_key: up}
        if mid is not None:
            self.tensors[mid_key] = mid
        if alpha_key:
            self.tensors[alpha_key] = torch.tensor(float(alpha))
        self.expected[target + ".weight"] = delta * (RANK if alpha is None else alpha) / RANK

    def kohya(self, name, target, alpha, tucker=False):
        mid = f"{name}.lora_mid.weight" if tucker else None
        self.add(target, f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha", alpha, mid)

    def save(self, name, tensors_path=None, metadata=None):
        path = GOLDEN / (tensors_path or f"{name}.safetensors")
        path.parent.mkdir(exist_ok=True, parents=True)
        save_file({k: v.contiguous() for k, v in self.tensors.items()}, path, metadata=metadata)
        save_file({k: v.contiguous() for k, v in self.expected.items()}, GOLDEN / f"{name}.expected.safetensors")


def check_ldm_names(unet):
    state = {f"lora_unet_{name}.lora_{part}.weight": name for name in LDM for part in ("down", "up")}
    # The outer modules are not part of the block numbering there.
    mapped = _maybe_map_sgm_blocks_to_diffusers(dict(state), unet.config)
    converted, _ = _convert_non_diffusers_lora_to_diffusers(mapped, "unet", "text_encoder")
    for key, name in converted.items():
        module = key.removeprefix("unet.").replace(".processor", "").replace("_lora.", ".lora.").split(".lora")[0]
        module = module.replace("to_out", "to_out.0") if module.endswith("to_out") else module
        assert module == LDM[name], (key, name)
    assert len(converted) == 2 * len(LDM)


def main():
    unet, components = models()
    check_ldm_names(unet)
    GOLDEN.mkdir(exist_ok=True, parents=True)
    shapes = {c: {k: list(v.shape) for k, v in model.state_dict().items()} for c, model in components.items()}
    (GOLDEN / "model.json").write_text(json.dumps(shapes, separators=(",", ":")))
    prefix = "text_model." if any(k.startswith("text_model.") for k in shapes["text_encoder"]) else ""
    block = "down_blocks.1.attentions.0.transformer_blocks.0"
    layer = f"{prefix}encoder.layers.1"

    xl = Adapter(components)
    for i, (name, module) in enumerate(LDM.items()):
        xl.kohya(f"lora_unet_{name}", f"unet.{module}", 1 + i / 2)
    xl.kohya("lora_te1_text_model_encoder_layers_1_self_attn_q_proj", f"text_encoder.{layer}.self_attn.q_proj", 4)
    xl.kohya("lora_te2_text_model_encoder_layers_1_mlp_fc1", f"text_encoder_2.{layer}.mlp.fc1", 2)
    xl.save("kohya_xl")

    sd = Adapter(components)
    for module, tucker in [(f"{block}.attn2.to_v", False), ("up_blocks.1.resnets.0.conv1", True),
                           ("mid_block.resnets.0.conv2", False), ("time_embedding.linear_1", False),
                           ("down_blocks.1.resnets.0.conv_shortcut", False)]:  # fmt: skip
        sd.kohya("lora_unet_" + module.replace(".", "_"), f"unet.{module}", 1.5, tucker)
    sd.kohya("lora_te_text_model_encoder_layers_1_mlp_fc2", f"text_encoder.{layer}.mlp.fc2", 1)
    sd.tensors = {k: v if k.endswith("alpha") else v.half().float().half() for k, v in sd.tensors.items()}
    halves = sd.tensors
    for key in [k for k in halves if k.endswith("lora_down.weight")]:
        name = key.removesuffix(".lora_down.weight")
        down, up = halves[key].float(), halves[f"{name}.lora_up.weight"].float().flatten(1)
        target = next(t for t in sd.expected if t.endswith(".weight") and name.split("_", 2)[2]
                      in (t.split(".", 1)[1].removesuffix(".weight").replace(".", "_"),
                          "text_model_" + t.split(".", 1)[1].removesuffix(".weight").replace(".", "_")))  # fmt: skip
        mid = halves.get(f"{name}.lora_mid.weight")
        if mid is None:
            delta = up @ down.flatten(1)
        else:
            delta = torch.einsum("ijkl,jr,pi->prkl", mid.float(), down.flatten(1), up)
        sd.expected[target] = (delta * halves[f"{name}.alpha"] / RANK).view(sd.expected[target].shape)
    sd.save("kohya_sd")

    peft = Adapter(components)
    for module, alpha in [(f"{block}.attn1.to_k", 6), (f"{block}.attn1.to_out.0", 5), ("mid_block.resnets.0.conv1", 6)]:
        key = f"base_model.model.{module}"
        peft.add(f"unet.{module}", f"{key}.lora_A.weight", f"{key}.lora_B.weight", alpha=alpha)
    peft.save("peft", "peft/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "alpha_pattern": {"to_out.0": 5}, "use_rslora": False,
              "use_dora": False, "bias": "none", "target_modules": ["to_k", "to_out.0", "conv1"]}  # fmt: skip
    (GOLDEN / "peft" / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")

    new = Adapter(components)
    new.add(f"unet.{block}.attn2.to_q", f"unet.{block}.attn2.to_q.lora_A.weight", f"unet.{block}.attn2.to_q.lora_B.weight", alpha=12)
    key = "text_encoder_2.text_model.encoder.layers.1.self_attn.k_proj"
    new.add(f"text_encoder_2.{layer}.self_attn.k_proj", f"{key}.lora_A.weight", f"{key}.lora_B.weight", alpha=3 * 3**0.5)
    metadata = {"unet.r": RANK, "unet.lora_alpha": 12, "text_encoder_2.r": RANK, "text_encoder_2.lora_alpha": 3,
                "text_encoder_2.use_rslora": True}  # fmt: skip
    new.save("diffusers", metadata={"format": "pt", "lora_adapter_metadata": json.dumps(metadata)})

    old = Adapter(components)
    for module, spelt in [("to_q", "to_q"), ("to_out.0", "to_out")]:
        key = f"unet.{block}.attn1.processor.{spelt}_lora"
        old.add(f"unet.{block}.attn1.{module}", f"{key}.down.weight", f"{key}.up.weight")
    key = f"unet.{block}.attn1.to_v.lora"
    old.add(f"unet.{block}.attn1.to_v", f"{key}.down.weight", f"{key}.up.weight")
    key = "text_encoder.text_model.encoder.layers.1.self_attn.v_proj.lora_linear_layer"
    old.add(f"text_encoder.{layer}.self_attn.v_proj", f"{key}.down.weight", f"{key}.up.weight")
    old.save("diffusers_old")


main()
