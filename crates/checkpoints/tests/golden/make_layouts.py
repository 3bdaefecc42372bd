"""Makes layouts.json, the facts that tests/it/layouts.rs compares the key maps with.

Needs torch, diffusers, transformers, open_clip and timm. Real sizes are built on the meta device, so nothing large is
allocated. Wherever two programs are said to hold the same model, their outputs are compared here.

    python make_layouts.py
"""

import json
import os
import tempfile

import numpy as np
import open_clip.model
import timm.models.vision_transformer
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.loaders import single_file_utils
from pytorch_fid import inception as fid
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    ViTConfig,
    ViTForImageClassification,
)

MASK = (1 << 64) - 1


def fnv(data, state=0xCBF29CE484222325):
    """FNV-1a, 64 bits: simple enough to be written twice."""
    for byte in data:
        state = ((state ^ byte) * 0x100000001B3) & MASK
    return state


def formula(key, shape):
    """The tensor that both sides make for a key: element i is a hash of (key, i) in [-1, 1)."""
    count = int(np.prod(shape)) if shape else 1
    mixed = (np.uint64(fnv(key.encode())) + np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    values = (mixed >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
    return torch.from_numpy(values.reshape(shape))


def lines_hash(lines):
    lines = sorted(lines)
    return {"count": len(lines), "hash": f"{fnv(chr(10).join(lines).encode()):016x}"}


def shape_text(shape):
    return "[" + ", ".join(str(extent) for extent in shape) + "]"


def keys_hash(state):
    return lines_hash(f"{key} {shape_text(value.shape)}" for key, value in state.items())


def tensors_hash(state):
    return lines_hash(
        f"{key} {shape_text(value.shape)} {fnv(value.contiguous().numpy().tobytes()):016x}" for key, value in state.items()
    )


def stored_list(state):
    return [[key, list(value.shape)] for key, value in state.items()]


def plain(config):
    """A diffusers configuration as its file would hold it."""
    return {k: v for k, v in json.loads(config.to_json_string()).items() if not k.startswith("_name")}


# Real sizes -----------------------------------------------------------------------------------------------------------

SD1 = dict(cross_attention_dim=768, attention_head_dim=8)
SD2 = dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)
SDXL = dict(
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=[1, 2, 10],
    cross_attention_dim=2048,
    attention_head_dim=[5, 10, 20],
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
REFINER = dict(
    block_out_channels=(384, 768, 1536, 1536),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=4,
    cross_attention_dim=1280,
    attention_head_dim=[6, 12, 24, 24],
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2560,
)
UNETS = {
    "sd1": SD1,
    "sd1-inpainting": {**SD1, "in_channels": 9},
    "instruct-pix2pix": {**SD1, "in_channels": 8},
    "sd2": SD2,
    "sdxl-base": SDXL,
    "sdxl-refiner": REFINER,
}
VAE = dict(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    layers_per_block=2,
)
TEXT = {
    "clip-l": (CLIPTextModel, dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)),
    "openclip-h": (CLIPTextModel, dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16)),
    "bigg": (
        CLIPTextModelWithProjection,
        dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280),
    ),
}
# Width of the embedding; text width, layers; picture width, layers, hidden width, patch.
CLIPS = {
    "ViT-B-32": (512, 512, 12, 768, 12, 3072, 32),
    "ViT-B-16": (512, 512, 12, 768, 12, 3072, 16),
    "ViT-L-14": (768, 768, 12, 1024, 24, 4096, 14),
    "ViT-H-14": (1024, 1024, 24, 1280, 32, 5120, 14),
    "ViT-g-14": (1024, 1024, 24, 1408, 40, 6144, 14),
    "ViT-bigG-14": (1280, 1280, 32, 1664, 48, 8192, 14),
}


def in_unet(config):
    """LDM's names for a UNet of the given diffusers configuration, walked as LDM's code builds it."""
    resnet = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"]
    names = ["time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2", "input_blocks.0.0", "out.0", "out.2"]
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    depths = config["transformer_layers_per_block"]
    depths = depths if isinstance(depths, list) else [depths] * levels

    def attention(place, depth):
        block = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v"]
        block += ["attn2.to_out.0", "norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"]
        inner = [f"transformer_blocks.{i}.{name}" for i in range(depth) for name in block]
        return [f"{place}.{name}" for name in ["norm", "proj_in", "proj_out"] + inner]

    index = 1
    for level, kind in enumerate(config["down_block_types"]):
        for _ in range(layers):
            names += [f"input_blocks.{index}.0.{name}" for name in resnet]
            if kind.startswith("CrossAttn"):
                names += attention(f"input_blocks.{index}.1", depths[level])
            index += 1
        if level + 1 < levels:
            names.append(f"input_blocks.{index}.0.op")
            index += 1
    names += [f"middle_block.{place}.{name}" for place in (0, 2) for name in resnet]
    names += attention("middle_block.1", depths[-1])
    index = 0
    for step, kind in enumerate(config["up_block_types"]):
        for block in range(layers + 1):
            names += [f"output_blocks.{index}.0.{name}" for name in resnet]
            if kind.startswith("CrossAttn"):
                names += attention(f"output_blocks.{index}.1", depths[levels - 1 - step])
            if block == layers and step + 1 < levels:
                names.append(f"output_blocks.{index}.{2 if kind.startswith('CrossAttn') else 1}.conv")
            index += 1
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


class Named:
    """Stands for a tensor of a file and remembers its key through diffusers' converters."""

    def __init__(self, key, shape=()):
        self.key, self.shape = key, shape

    def __getitem__(self, _):
        return self


def unet_pairs(config, state):
    """Canonical keys with LDM's, by diffusers' own loader of single files."""
    prefix = "model.diffusion_model."
    found = single_file_utils.convert_ldm_unet_checkpoint({prefix + k: Named(prefix + k) for k in in_unet(config)}, config)
    pairs = {key: value.key for key, value in found.items() if key in state}
    assert set(pairs) == set(state), set(state) - set(pairs)
    return pairs


def vae_pairs(config, state):
    names = ["quant_conv", "post_quant_conv"]
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    resnet = ["norm1", "conv1", "norm2", "conv2", "nin_shortcut"]
    for half, direction, scale, blocks in (("encoder", "down", "downsample", layers), ("decoder", "up", "upsample", layers + 1)):
        names += [f"{half}.{name}" for name in ("conv_in", "norm_out", "conv_out")]
        names += [f"{half}.mid.block_{i}.{name}" for i in (1, 2) for name in resnet]
        names += [f"{half}.mid.attn_1.{name}" for name in ("norm", "q", "k", "v", "proj_out")]
        for level in range(levels):
            names += [f"{half}.{direction}.{level}.block.{i}.{name}" for i in range(blocks) for name in resnet]
            names.append(f"{half}.{direction}.{level}.{scale}.conv")
    keys = [f"first_stage_model.{name}.{part}" for name in names for part in ("weight", "bias")]
    found = single_file_utils.convert_ldm_vae_checkpoint({key: Named(key) for key in keys}, config)
    pairs = {key: value.key for key, value in found.items() if key in state}
    assert set(pairs) == set(state), set(state) - set(pairs)
    return pairs


def pairs_hash(pairs):
    return lines_hash(f"{canonical} {stored}" for canonical, stored in pairs.items())


def published_text(state):
    """Text encoders' keys as published files have them, whatever the library's version calls its modules."""
    keep = lambda key: key if key.startswith(("text_model.", "text_projection.")) else "text_model." + key
    return {keep(key): value for key, value in state.items()}


def clip_config(name):
    width, text_width, text_layers, vision_width, vision_layers, hidden, patch = CLIPS[name]
    text = dict(hidden_size=text_width, intermediate_size=4 * text_width, num_hidden_layers=text_layers)
    vision = dict(hidden_size=vision_width, intermediate_size=hidden, num_hidden_layers=vision_layers, patch_size=patch)
    heads = dict(num_attention_heads=8)
    return CLIPConfig(text_config={**text, **heads}, vision_config={**vision, **heads}, projection_dim=width)


def real_sizes():
    models = []

    def add(name, component, config, state, pairs=None):
        case = {"name": name, "component": component, "config": config, "keys": keys_hash(state)}
        if pairs is not None:
            case["ldm"] = pairs_hash(pairs)
        models.append(case)

    with torch.device("meta"):
        for name, fields in UNETS.items():
            unet = UNet2DConditionModel(**fields)
            config = plain(unet)
            add(name, "unet", config, unet.state_dict(), unet_pairs(config, unet.state_dict()))
        vae = AutoencoderKL(**VAE)
        add("vae", "vae", plain(vae), vae.state_dict(), vae_pairs(plain(vae), vae.state_dict()))
        for name, (kind, fields) in TEXT.items():
            model = kind(CLIPTextConfig(**fields))
            config = {**model.config.to_diff_dict(), "architectures": [kind.__name__]}
            add(name, "text_encoder", config, published_text(model.state_dict()))
        for name in CLIPS:
            config = clip_config(name)
            twin = CLIPModel(config)
            size = {"projection_dim": config.projection_dim}
            size["text_config"] = {k: getattr(config.text_config, k) for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
            size["vision_config"] = {
                k: getattr(config.vision_config, k)
                for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
            }
            add(name, "clip", size, twin.state_dict())
            theirs = open_clip.factory.get_model_config(name)
            original = open_clip.model.CLIP(**{k: v for k, v in theirs.items()})
            models[-1]["open_clip"] = keys_hash({k: v for k, v in original.state_dict().items() if k != "attn_mask"})
        for name in ("ViT-H-14",):
            config = clip_config(name).vision_config
            config.projection_dim = CLIPS[name][0]
            fields = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "projection_dim")
            model = CLIPVisionModelWithProjection(config)
            fields = {**{k: getattr(config, k) for k in fields}, "architectures": ["CLIPVisionModelWithProjection"]}
            add(name, "image_encoder", fields, model.state_dict())
        network = fid._inception_v3(num_classes=1008, aux_logits=False, weights=None)
        for name, block in {
            "Mixed_5b": fid.FIDInceptionA(192, 32), "Mixed_5c": fid.FIDInceptionA(256, 64), "Mixed_5d": fid.FIDInceptionA(288, 64),
            "Mixed_6b": fid.FIDInceptionC(768, 128), "Mixed_6c": fid.FIDInceptionC(768, 160),
            "Mixed_6d": fid.FIDInceptionC(768, 160), "Mixed_6e": fid.FIDInceptionC(768, 192),
            "Mixed_7b": fid.FIDInceptionE_1(1280), "Mixed_7c": fid.FIDInceptionE_2(2048),
        }.items():
            setattr(network, name, block)
        weights = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
        add("fid", "inception", {}, weights)
    return models


# Tiny models with content ---------------------------------------------------------------------------------------------


def fill(model):
    """Gives a model the formula's tensors by its own keys."""
    state = {key: formula(key, list(value.shape)) for key, value in model.state_dict().items() if key != "attn_mask"}
    model.load_state_dict(state, strict=False)
    return state


def split_thirds(state, old, new, names, out):
    for part in ("weight", "bias"):
        for name, rows in zip(names, state[old + part].chunk(3)):
            out[f"{new}{name}.{part}"] = rows


def close(a, b, what):
    error = (a - b).abs().max() / b.abs().max()
    assert error < 1e-4, f"{what}: {error}"


def tower(state, old, new, layers, out):
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for layer in range(layers):
        here, there = f"{old}transformer.resblocks.{layer}.", f"{new}encoder.layers.{layer}."
        for part in ("weight", "bias"):
            for theirs, ours in names.items():
                out[f"{there}{ours}.{part}"] = state[f"{here}{theirs}.{part}"]
        split_thirds(state, here + "attn.in_proj_", there + "self_attn.", ("q_proj", "k_proj", "v_proj"), out)


def clip_twin(state, text, model_class, config):
    """transformers' CLIP with open_clip's tensors."""
    out = {"logit_scale": state["logit_scale"]}
    tower(state, "visual.", "vision_model.", 2, out)
    tower(state, text, "text_model.", 2, out)
    out["text_model.embeddings.token_embedding.weight"] = state[text + "token_embedding.weight"]
    out["text_model.embeddings.position_embedding.weight"] = state[text + "positional_embedding"]
    out["text_projection.weight"] = state[text + "text_projection"].T
    out["vision_model.embeddings.class_embedding"] = state["visual.class_embedding"]
    out["vision_model.embeddings.patch_embedding.weight"] = state["visual.conv1.weight"]
    out["vision_model.embeddings.position_embedding.weight"] = state["visual.positional_embedding"]
    out["visual_projection.weight"] = state["visual.proj"].T
    for part in ("weight", "bias"):
        out[f"text_model.final_layer_norm.{part}"] = state[f"{text}ln_final.{part}"]
        out[f"vision_model.pre_layrnorm.{part}"] = state[f"visual.ln_pre.{part}"]
        out[f"vision_model.post_layernorm.{part}"] = state[f"visual.ln_post.{part}"]
    twin = model_class(config).eval()
    twin.load_state_dict(out)
    return twin, out


def tiny_clips():
    vision = dict(layers=2, width=32, head_width=8, patch_size=4, image_size=16, mlp_ratio=2.0)
    text = dict(context_length=7, vocab_size=50, width=16, heads=2, layers=2, mlp_ratio=4.0)
    config = CLIPConfig(
        projection_dim=24,
        text_config=dict(
            hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
            max_position_embeddings=7, hidden_act="gelu", eos_token_id=2, bos_token_id=0, pad_token_id=1,
        ),
        vision_config=dict(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4,
            hidden_act="gelu",
        ),
    )
    cases = []
    for name, kind, prefix in (("open_clip", open_clip.model.CLIP, ""), ("open_clip custom text", open_clip.model.CustomTextCLIP, "text.")):
        model = kind(embed_dim=24, vision_cfg=dict(vision), text_cfg=dict(text)).eval()
        state = fill(model)
        twin, canonical = clip_twin(state, prefix, CLIPModel, config)
        pixels, tokens = formula("pixels", [2, 3, 16, 16]), torch.tensor([[1, 5, 9, 49, 0, 0, 0]])
        with torch.no_grad():
            pictures = twin.get_image_features(pixel_values=pixels)
            texts = twin.get_text_features(input_ids=tokens)
            features = lambda out: out if torch.is_tensor(out) else out.pooler_output
            close(features(pictures), model.encode_image(pixels), f"{name} pictures")
            close(features(texts), model.encode_text(tokens), f"{name} text")
        cases.append({"name": name, "component": "clip", "stored": stored_list(state), "canonical": tensors_hash(canonical)})
        if prefix == "":
            prefixed = {"cond_stage_model.model." + k: v for k, v in state.items() if not k.startswith("visual.")}
            text_twin = CLIPTextModelWithProjection(config.text_config)
            converted = single_file_utils.convert_open_clip_checkpoint(text_twin, prefixed)
            # Names only: its slices take the projection's width for the model's.
            names = {key for key in canonical if key.startswith("text_")}
            assert set(converted) | {"text_projection.weight"} == names, set(converted) ^ names
    return cases


def tiny_timm():
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.0, num_classes=5
    ).eval()
    state = fill(model)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4,
        layer_norm_eps=1e-6, num_labels=5,
    )
    out = {
        "vit.embeddings.cls_token": state["cls_token"],
        "vit.embeddings.position_embeddings": state["pos_embed"],
    }
    ends = {"vit.embeddings.patch_embeddings.projection": "patch_embed.proj", "vit.layernorm": "norm", "classifier": "head"}
    layer_names = {
        "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    }
    for layer in range(2):
        here, there = f"blocks.{layer}.", f"vit.encoder.layer.{layer}."
        ends.update({there + ours: here + theirs for ours, theirs in layer_names.items()})
        split_thirds(state, here + "attn.qkv.", there + "attention.attention.", ("query", "key", "value"), out)
    for ours, theirs in ends.items():
        for part in ("weight", "bias"):
            out[f"{ours}.{part}"] = state[f"{theirs}.{part}"]
    with tempfile.TemporaryDirectory() as folder:
        # Through files, whose keys are the published ones.
        ViTForImageClassification(config).save_pretrained(folder)
        from safetensors.torch import load_file, save_file

        path = os.path.join(folder, "model.safetensors")
        assert set(load_file(path)) == set(out), set(load_file(path)) ^ set(out)
        save_file({key: value.contiguous() for key, value in out.items()}, path, {"format": "pt"})
        twin = ViTForImageClassification.from_pretrained(folder).eval()
    pixels = formula("pixels", [2, 3, 16, 16])
    with torch.no_grad():
        close(twin(pixel_values=pixels).logits, model(pixels), "timm")
    return [{"name": "timm", "component": "classifier", "stored": stored_list(state), "canonical": tensors_hash(out)}]


# Pipelines ------------------------------------------------------------------------------------------------------------


def tiny_tokenizer(folder):
    vocabulary = {"<|startoftext|>": 0, "a</w>": 1, "a": 2, "b": 3, "b</w>": 4, "ab</w>": 5, "<|endoftext|>": 6}
    paths = [os.path.join(folder, name) for name in ("vocab.json", "merges.txt")]
    with open(paths[0], "w") as file:
        json.dump(vocabulary, file)
    with open(paths[1], "w") as file:
        file.write("#version: 0.2\na b</w>\n")
    return CLIPTokenizer(*paths, model_max_length=7)


def text_encoder(kind, width, layers, **fields):
    config = CLIPTextConfig(
        vocab_size=7, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=7, bos_token_id=0, eos_token_id=6, **fields,
    )
    return kind(config)


def tiny_unet(**fields):
    base = dict(
        block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return UNet2DConditionModel(**{**base, **fields})


def tiny_vae(**fields):
    kinds = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    return AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, **kinds, **fields)


def pipelines():
    schedule = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
    none = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tiny_tokenizer(folder)
        made = {
            "sd1": StableDiffusionPipeline(
                tiny_vae(), text_encoder(CLIPTextModel, 8, 2), tokenizer, tiny_unet(),
                PNDMScheduler(**schedule, skip_prk_steps=True, steps_offset=1), **none,
            ),
            "sd2-v": StableDiffusionPipeline(
                tiny_vae(), text_encoder(CLIPTextModel, 8, 23, hidden_act="gelu"), tokenizer,
                tiny_unet(use_linear_projection=True, attention_head_dim=[1, 2]),
                DDIMScheduler(**schedule, prediction_type="v_prediction", steps_offset=1), **none,
            ),
            "sdxl-base": StableDiffusionXLPipeline(
                tiny_vae(scaling_factor=0.13025), text_encoder(CLIPTextModel, 8, 2),
                text_encoder(CLIPTextModelWithProjection, 8, 3, hidden_act="gelu", projection_dim=12), tokenizer, tokenizer,
                tiny_unet(
                    use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4,
                    projection_class_embeddings_input_dim=36, cross_attention_dim=16, transformer_layers_per_block=[1, 2],
                    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                ),
                EulerDiscreteScheduler(**schedule),
            ),
        }
        for name, pipeline in made.items():
            path = os.path.join(folder, name)
            pipeline.save_pretrained(path)
            texts = {}
            for root, _, names in os.walk(path):
                for file in names:
                    if not file.endswith(".safetensors"):
                        with open(os.path.join(root, file)) as text:
                            texts[os.path.relpath(os.path.join(root, file), path)] = text.read()
            out[name] = texts
    return out


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    facts = {"models": real_sizes(), "twins": tiny_clips() + tiny_timm(), "pipelines": pipelines()}
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "layouts.json")
    with open(path, "w") as file:
        json.dump(facts, file, separators=(",", ":"), sort_keys=True)
        file.write("\n")
