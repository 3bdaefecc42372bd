"""Sizes of a UNet's initial weights, as PyTorch and latent-diffusion make them.

    python make_init.py

writes `init.json` next to itself: for each parameter the root of the mean square of its elements over 20 seeds. Layers have
PyTorch's own initial weights; those that latent-diffusion and MLPerf's reference build with `zero_module` are zero: the second
convolution of residual blocks, the projection out of spatial transformers, the last convolution. Made with torch 2.15,
diffusers 0.42.1 (whose UNet has PyTorch's initial weights everywhere).
"""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

torch.set_num_threads(1)
SEEDS = 20
SMALL = dict(norm_num_groups=8, block_out_channels=(16, 32, 32, 32), layers_per_block=2, cross_attention_dim=24,
             attention_head_dim=2)
UNETS = {"sd1": SMALL, "sd2": dict(SMALL, use_linear_projection=True, attention_head_dim=(2, 4, 4, 4))}
ZERO = (".conv2.weight", ".conv2.bias", ".proj_out.weight", ".proj_out.bias")


def main():
    out = {}
    for name, config in UNETS.items():
        squares, counts = {}, {}
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            for key, parameter in UNet2DConditionModel(**config).named_parameters():
                zero = key.startswith("conv_out.") or key.endswith(ZERO)
                squares[key] = squares.get(key, 0.0) + (0.0 if zero else parameter.double().square().sum().item())
                counts[key] = counts.get(key, 0) + parameter.numel()
        out[name] = {key: float(f"{(squares[key] / counts[key]) ** 0.5:.6g}") for key in squares}
    (Path(__file__).parent / "init.json").write_text(json.dumps(out, indent=0) + "\n")


if __name__ == "__main__":
    main()
