"""Checks `.nemo` files of `calotype convert --to nemo` as NeMo reads them, and files as NeMo writes them; called by nemo-files.sh.

NeMo itself needs a GPU and its own container. What its `restore_from` does is done here with the parts that it uses: the archive is unpacked
by tarfile, `model_config.yaml` read as YAML (by OmegaConf too, where it is installed), `model_weights.ckpt` by torch.load(weights_only=True),
and the state goes strictly into modules that have the names, shapes and arithmetic of NeMo 1.23's (vit_backbone.py, attention.py, mlp.py,
megatron_vit_classification_models.py, megatron_clip_models.py), built from that configuration alone. What they compute must be what
transformers computes of the model that was converted.
"""

import argparse
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn as nn
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTForImageClassification

TOLERANCE = 2e-5


# NeMo's modules, by name and arithmetic -----------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.heads, self.legacy = cfg["num_attention_heads"], cfg["megatron_legacy"]
        self.query_key_value = nn.Linear(cfg["hidden_size"], 3 * cfg["hidden_size"])
        self.dense = nn.Linear(cfg["hidden_size"], cfg["hidden_size"])

    def forward(self, x, causal):
        batch, tokens, width = x.shape
        mixed = self.query_key_value(x)
        if self.legacy:
            # Three blocks of heads become heads of three.
            mixed = mixed.view(batch, tokens, 3, self.heads, -1).transpose(2, 3)
        query, key, value = mixed.reshape(batch, tokens, self.heads, -1).transpose(1, 2).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        return self.dense(y.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(cfg["hidden_size"], cfg["ffn_hidden_size"])
        self.dense_4h_to_h = nn.Linear(cfg["ffn_hidden_size"], cfg["hidden_size"])
        if cfg["openai_gelu"]:
            self.activation = lambda x: F.gelu(x, approximate="tanh")
        else:
            self.activation = {"gelu": F.gelu, "approx-gelu": lambda x: x * torch.sigmoid(1.702 * x)}[cfg["activation"]]

    def forward(self, x):
        return self.dense_4h_to_h(self.activation(self.dense_h_to_4h(x)))


def norm(cfg):
    return nn.LayerNorm(cfg["hidden_size"], eps=cfg["layernorm_epsilon"])


class Layer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.input_layernorm, self.self_attention = norm(cfg), Attention(cfg)
        self.post_attention_layernorm, self.mlp = norm(cfg), Mlp(cfg)

    def forward(self, x, causal):
        x = x + self.self_attention(self.input_layernorm(x), causal)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg["num_layers"]))
        self.final_layernorm = norm(cfg)

    def forward(self, x, causal=False):
        for layer in self.layers:
            x = layer(x, causal)
        return self.final_layernorm(x)


class Backbone(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.patch, tokens = cfg["patch_dim"], cfg["class_token_length"]
        positions = (cfg["img_h"] // self.patch) * (cfg["img_w"] // self.patch) + tokens
        self.cls_token = nn.Parameter(torch.zeros(1, tokens, cfg["hidden_size"]))
        self.linear_encoder = nn.Linear(self.patch**2 * cfg["num_channels"], cfg["hidden_size"])
        if cfg.get("position_embedding_type", "learned_absolute") == "learned_absolute":
            self.position_embeddings = nn.Embedding(positions, cfg["hidden_size"])
        else:
            self.position_embeddings = nn.Parameter(torch.empty(positions, cfg["hidden_size"]))
        self.preprocess_layernorm = norm(cfg) if cfg["preprocess_layernorm"] else None
        self.transformer = Transformer(cfg)

    def forward(self, images):
        batch, channels, height, width = images.shape
        p = self.patch
        # Channels vary fastest: b c (h p1) (w p2) -> b (h w) (p1 p2 c).
        patches = images.view(batch, channels, height // p, p, width // p, p).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        x = torch.cat([self.cls_token.expand(batch, -1, -1), self.linear_encoder(patches)], dim=1)
        positions = self.position_embeddings
        x = x + (positions.weight if isinstance(positions, nn.Embedding) else positions)
        return self.transformer(x if self.preprocess_layernorm is None else self.preprocess_layernorm(x))


class MlpHead(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.dense_in, self.dense_out = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x):
        return self.dense_out(torch.tanh(self.dense_in(x)))


class Classifier(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.backbone = Backbone(cfg)
        width, classes = cfg["hidden_size"], cfg["num_classes"]
        self.head = nn.Linear(width, classes) if cfg["finetune"] else MlpHead(width, classes)

    def forward(self, images):
        return self.head(self.backbone(images)[:, 0])


class Vision(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.backbone, self.head = Backbone(cfg), nn.Linear(cfg["hidden_size"], cfg["output_dim"], bias=False)

    def forward(self, images):
        return self.head(self.backbone(images)[:, 0])


class Text(nn.Module):
    def __init__(self, cfg, words):
        super().__init__()
        self.language_model = nn.Module()
        self.language_model.embedding = nn.Module()
        self.language_model.embedding.word_embeddings = nn.Embedding(words, cfg["hidden_size"])
        self.language_model.embedding.position_embeddings = nn.Parameter(
            torch.empty(cfg["max_position_embeddings"], cfg["hidden_size"])
        )
        self.language_model.encoder = Transformer(cfg)
        self.head = nn.Linear(cfg["hidden_size"], cfg["output_dim"], bias=False)

    def forward(self, ids):
        embedding = self.language_model.embedding
        states = self.language_model.encoder(embedding.word_embeddings(ids) + embedding.position_embeddings, causal=True)
        return self.head(states[torch.arange(len(ids)), ids.argmax(dim=-1)])


class TwoTowers(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        # CLIP's tokenizer, filled up to a multiple.
        multiple = cfg["make_vocab_size_divisible_by"]
        self.vision_encoder = Vision(cfg["vision"])
        self.text_encoder = Text(cfg["text"], -(-49408 // multiple) * multiple)
        self.logit_scale = nn.Parameter(torch.ones([]))


CLASSES = {"MegatronVitClassificationModel": Classifier, "MegatronCLIPModel": TwoTowers}


class Wrapped(nn.Module):
    """NeMo's models keep the network as `model`."""

    def __init__(self, cfg):
        super().__init__()
        self.model = CLASSES[cfg["target"].rsplit(".", 1)[1]](cfg)


def restored(path):
    """The network of a file, as NeMo's connector restores it."""
    with tarfile.open(path, "r:") as archive:
        parts = {Path(member.name).name: archive.extractfile(member).read() for member in archive if member.isfile()}
    cfg = yaml.safe_load(parts["model_config.yaml"])
    try:
        from omegaconf import OmegaConf

        assert OmegaConf.to_container(OmegaConf.create(parts["model_config.yaml"].decode()), resolve=True) == cfg
    except ImportError:
        print("  OmegaConf is not installed: its reading is not compared")
    state = torch.load(io.BytesIO(parts["model_weights.ckpt"]), map_location="cpu", weights_only=True)
    network = Wrapped(cfg)
    network.load_state_dict(state, strict=True)
    return network.eval().model, cfg


# Models -------------------------------------------------------------------------------------------------------------------


def vit(hidden_act):
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8, num_labels=7,
        hidden_act=hidden_act, layer_norm_eps=1e-6,
    )
    return noisy(ViTForImageClassification(config).eval())


def clip(hidden_act):
    torch.manual_seed(2)
    tower = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3, hidden_act=hidden_act)
    text = dict(vocab_size=49408, max_position_embeddings=9, eos_token_id=49407, bos_token_id=49406, projection_dim=16)
    config = CLIPConfig(
        projection_dim=16, text_config=tower | text, vision_config=tower | dict(image_size=32, patch_size=8, projection_dim=16)
    )
    return noisy(CLIPModel(config).eval())


def noisy(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def features(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def close(what, ours, theirs):
    error = (ours - theirs).abs().max().item() / theirs.abs().max().item()
    print(f"  {what}: largest difference {error:.1e} of the largest value")
    if not error < TOLERANCE:
        sys.exit(f"{what} differ by {error}")


def convert(options, source, out, layout):
    command = [options.calotype, "convert", str(source), str(out), "--to", layout]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def check_written(options, folder):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for hidden_act in ("gelu", "gelu_pytorch_tanh", "quick_gelu"):
            source, out = folder / f"vit-{hidden_act}", folder / f"vit-{hidden_act}.nemo"
            model = vit(hidden_act)
            model.save_pretrained(source)
            convert(options, source, out, "nemo")
            print(f"{out.name}: {out.stat().st_size} bytes")
            network, cfg = restored(out)
            close("logits", network(images), model(images).logits)

            source, out = folder / f"clip-{hidden_act}", folder / f"clip-{hidden_act}.nemo"
            model = clip(hidden_act)
            model.save_pretrained(source)
            convert(options, source, out, "nemo")
            print(f"{out.name}: {out.stat().st_size} bytes")
            network, cfg = restored(out)
            ids = torch.randint(0, 49406, (3, 9))
            ids[:, 6] = 49407
            ids[:, 7:] = 0
            close("image features", network.vision_encoder(images), features(model.get_image_features(pixel_values=images)))
            close("text features", network.text_encoder(ids), features(model.get_text_features(input_ids=ids)))
            close("temperature", network.logit_scale.detach(), model.logit_scale.detach())


def check_read(options, folder):
    """Files as NeMo writes them, with both orders of queries, keys and values, are read as the same network."""
    images = torch.randn(2, 3, 32, 32)
    source = folder / "vit-gelu.nemo"
    network, cfg = restored(source)
    heads, width = cfg["num_attention_heads"], cfg["hidden_size"]
    for legacy in (True, False):
        state = {f"model.{name}": tensor.clone() for name, tensor in network.state_dict().items()}
        if not legacy:
            for name in [name for name in state if "query_key_value" in name]:
                rows = state[name].view(3, heads, width // heads, -1).transpose(0, 1)
                state[name] = rows.reshape(state[name].shape).clone()
        out = folder / f"nemo-legacy-{legacy}.nemo"
        settings = cfg | {"megatron_legacy": legacy}
        weights = io.BytesIO()
        torch.save(state, weights)
        parts = {"model_config.yaml": yaml.safe_dump(settings, sort_keys=False).encode(), "model_weights.ckpt": weights.getvalue()}
        with tarfile.open(out, "w:") as archive:
            for name, content in parts.items():
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        back = folder / f"back-{legacy}"
        convert(options, out, back, "diffusers")
        model = ViTForImageClassification.from_pretrained(back).eval()
        print(f"{out.name}: read back")
        with torch.no_grad():
            close("logits", model(images).logits, restored(out)[0](images))
        expected = load_file(folder / "vit-gelu/model.safetensors")
        found = load_file(back / "model.safetensors")
        if expected.keys() != found.keys() or any(not torch.equal(expected[name], found[name]) for name in expected):
            sys.exit(f"{out.name}: its tensors are not those of the model")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("calotype", help="the program")
    parser.add_argument("folder", type=Path, help="an empty folder")
    options = parser.parse_args()
    check_written(options, options.folder)
    check_read(options, options.folder)
    print("all files are what they should be")


if __name__ == "__main__":
    main()
