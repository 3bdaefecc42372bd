"""Makes features.json: outputs of networks that give features of pictures, by their reference libraries.

Weights and inputs are a hash of their key and index (`formula` of make_encoders.py), which the test computes too.

    python make_features.py

with torch 2.15, transformers 5.23 and efficientnet-lite-pytorch 0.1.0; nothing is downloaded.
"""

import json
import pathlib

import torch
from efficientnet_lite_pytorch import EfficientNet
from make_encoders import config, parameter, pictures, rounded
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel


def published(key):
    """The key in checkpoints, which the library renames when it loads them."""
    for new, old in [
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"),
        ("mlp.down_proj", "mlp.weights_out"),
    ]:
        key = key.replace(new, old)
    return key


def fill(model):
    """Weights by formula under the published keys; there, the gates and the values of SwiGLU are one layer."""
    with torch.no_grad():
        for key, value in model.state_dict().items():
            shape = tuple(value.shape)
            for part, name in enumerate(["mlp.gate_proj", "mlp.up_proj"]):
                if name in key:
                    joined = parameter(key.replace(name, "mlp.weights_in"), (2 * shape[0], *shape[1:]))
                    value.copy_(joined[part * shape[0] : (part + 1) * shape[0]])
                    break
            else:
                value.copy_(parameter(published(key), shape))
    return model.eval()


def outputs(named):
    return {name: {"shape": list(out.shape), "values": rounded(out)} for name, out in named.items()}


SIZES = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, mlp_ratio=2, image_size=20, patch_size=4)


def dinov2(model, sizes):
    """Positions are for a grid of 5 x 5."""
    fill(model)
    with torch.no_grad():
        named = {
            f"{height}x{width}": model(pixel_values=pictures(2, height, width)).last_hidden_state
            for height, width in sizes
        }
    return {"config": config(model), "outputs": outputs(named)}


def facebook():
    """The positions of facebookresearch/dinov2, `interpolate_pos_encoding` with `interpolate_offset = 0.1`, given to a
    model that was made for the new grid."""
    own = fill(Dinov2Model(Dinov2Config(**SIZES)))
    rows = 3
    model = fill(Dinov2Model(Dinov2Config(**(SIZES | {"image_size": 4 * rows}))))
    with torch.no_grad():
        state = own.state_dict()
        positions = state["embeddings.position_embeddings"]
        grid = positions[:, 1:].reshape(1, 5, 5, -1).permute(0, 3, 1, 2)
        factor = (float(rows + 0.1) / 5, float(rows + 0.1) / 5)
        grid = torch.nn.functional.interpolate(grid, scale_factor=factor, mode="bicubic")
        assert grid.shape[-2:] == (rows, rows)
        grid = grid.permute(0, 2, 3, 1).reshape(1, rows * rows, -1)
        state["embeddings.position_embeddings"] = torch.cat((positions[:, :1], grid), dim=1)
        model.load_state_dict(state)
        out = model(pixel_values=pictures(2, 4 * rows, 4 * rows)).last_hidden_state
    named = {f"{4 * rows}x{4 * rows}": out}
    return {"config": config(own) | {"position_interpolation": "offset"}, "outputs": outputs(named)}


def efficientnet(variant, side):
    """Every eighth feature and logit."""
    model = EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=side)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(parameter(key, tuple(value.shape), 2.0**0.5))
        model.eval()
        x = pictures(2, side, side)
        features = model.extract_features(x).mean((2, 3))
        named = {"features": features[:, ::8], "logits": model(x)[:, ::8]}
    return {"config": {"model_type": "efficientnet_lite", "variant": variant}, "side": side, "outputs": outputs(named)}


def main():
    torch.manual_seed(0)
    cases = {
        "dinov2": dinov2(Dinov2Model(Dinov2Config(**SIZES)), [(20, 20), (12, 12), (28, 25)]),
        "dinov2_swiglu": dinov2(Dinov2Model(Dinov2Config(**SIZES, use_swiglu_ffn=True, qkv_bias=False)), [(12, 12)]),
        "dinov2_registers": dinov2(
            Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=3)),
            [(20, 20), (12, 16), (28, 24)],
        ),
        "dinov2_facebook": facebook(),
        "efficientnet_lite0": efficientnet(0, 75),
        "efficientnet_lite2": efficientnet(2, 40),
    }
    path = pathlib.Path(__file__).with_name("features.json")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case, separators=(',', ':'))}" for name, case in cases.items())
    path.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
