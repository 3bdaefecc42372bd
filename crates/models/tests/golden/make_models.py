"""Golden values of the UNet and the autoencoder, computed by diffusers.

    python make_models.py

writes `unet.safetensors` and `autoencoder.safetensors` next to itself. Weights and inputs are not stored: both sides
compute them from their names (`values`). Made with torch 2.15, diffusers 0.42.1.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file

FOLDER = Path(__file__).parent


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


def values(name, shape):
    """An input."""
    return torch.from_numpy(uniform(name, int(np.prod(shape))).astype(np.float32)).reshape(shape)


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


def fill(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights(name, tuple(parameter.shape)))
    return model.eval()


def layout(model):
    """A hash of all keys and shapes."""
    lines = sorted(f"{name} {list(p.shape)}" for name, p in model.named_parameters())
    return torch.tensor([np.uint64(fnv1a("\n".join(lines))).astype(np.int64)])


def gradients(model):
    """Of each parameter, in the order of the names: the gradient's norm, and its products with two known vectors."""
    rows = []
    for name, parameter in sorted(model.named_parameters()):
        g = parameter.grad.double().flatten().numpy()
        rows.append([np.linalg.norm(g)] + [g @ uniform(f"{name} {i}", g.size) for i in range(2)])
    return torch.tensor(np.array(rows), dtype=torch.float32)


def group_norms(model, groups):
    """Other groups in all norms but those of the spatial transformers, as in MLPerf's reference."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.GroupNorm) and "attentions" not in name:
            module.num_groups = groups
    return model


SMALL = dict(
    norm_num_groups=8,
    block_out_channels=(16, 32, 32, 32),
    layers_per_block=2,
    cross_attention_dim=24,
    attention_head_dim=2,
)
LINEAR = dict(SMALL, use_linear_projection=True, attention_head_dim=(2, 4, 4, 4))
XL = dict(
    norm_num_groups=8,
    block_out_channels=(16, 32, 32),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 3),
    attention_head_dim=(1, 2, 4),
    use_linear_projection=True,
    cross_attention_dim=24,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=20 + 6 * 8,
)
REFINER = dict(
    SMALL,
    block_out_channels=(16, 32, 48, 48),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    attention_head_dim=(1, 2, 4, 4),
    transformer_layers_per_block=2,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=20 + 5 * 8,
)

# name: configuration, sides of the latent, groups of the residual blocks' norms where they are others
UNETS = {
    "sd1": (SMALL, (8, 8), None),
    "sd2": (LINEAR, (8, 8), None),
    "mlperf": (LINEAR, (8, 8), 4),
    "pix2pix": (dict(SMALL, in_channels=8), (8, 8), None),
    "inpainting": (dict(SMALL, in_channels=9), (8, 8), None),
    "xl": (XL, (8, 8), None),
    "refiner": (REFINER, (8, 8), None),
    "odd": (dict(LINEAR, flip_sin_to_cos=False, freq_shift=1), (11, 6), None),
}

BATCH = 2
TIMESTEPS = [3.0, 721.5]


def unet(config, side, groups):
    model = UNet2DConditionModel(**config)
    if groups:
        group_norms(model, groups)
    fill(model)
    sample = values("sample", (BATCH, model.config.in_channels, *side)).requires_grad_()
    context = values("encoder_hidden_states", (BATCH, 5, 24)).requires_grad_()
    inputs = {"sample": sample, "encoder_hidden_states": context}
    added = None
    if model.config.addition_embed_type:
        numbers = (model.config.projection_class_embeddings_input_dim - 20) // 8
        texts = values("text_embeds", (BATCH, 20)).requires_grad_()
        inputs["text_embeds"] = texts
        added = {"text_embeds": texts, "time_ids": values("time_ids", (BATCH, numbers)).abs() * 1000}
    y = model(sample, torch.tensor(TIMESTEPS), context, added_cond_kwargs=added).sample
    y.backward(values("grad_output", tuple(y.shape)))
    out = {"sample": y.detach(), "layout": layout(model), "gradients": gradients(model)}
    out |= {f"grad.{name}": tensor.grad for name, tensor in inputs.items()}
    for name in ["conv_in.weight", "time_embedding.linear_1.bias", "conv_out.bias"]:
        out[f"grad.{name}"] = dict(model.named_parameters())[name].grad
    return out


AUTOENCODERS = {
    "sd": dict(
        block_out_channels=(16, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        norm_num_groups=8,
        sample_size=16,
    ),
    "bare": dict(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
        latent_channels=6,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ),
}


def autoencoder(config):
    model = fill(AutoencoderKL(**config))
    scale = 2 ** (len(config["block_out_channels"]) - 1)
    z = model.config.latent_channels
    picture = values("picture", (BATCH, 3, 16, 12)).requires_grad_()
    latent = values("latent", (BATCH, z, 4, 3)).requires_grad_()
    moments = model.encode(picture).latent_dist.parameters
    decoded = model.decode(latent).sample
    moments.backward(values("grad_moments", tuple(moments.shape)))
    decoded.backward(values("grad_output", tuple(decoded.shape)))
    out = {"moments": moments.detach(), "decoded": decoded.detach(), "layout": layout(model)}
    out |= {"gradients": gradients(model), "grad.picture": picture.grad, "grad.latent": latent.grad}
    model.enable_tiling()
    with torch.no_grad():
        large = values("large picture", (1, 3, 40, 28))
        out["tiled moments"] = model.encode(large).latent_dist.parameters
        large = values("large latent", (1, z, 28 // scale, 40 // scale))
        out["tiled decoded"] = model.decode(large).sample
    return out


def write(name, cases):
    tensors = {f"{case}/{key}": t.contiguous() for case, results in cases.items() for key, t in results.items()}
    save_file(tensors, FOLDER / f"{name}.safetensors")


if __name__ == "__main__":
    write("unet", {name: unet(*case) for name, case in UNETS.items()})
    write("autoencoder", {name: autoencoder(config) for name, config in AUTOENCODERS.items()})
