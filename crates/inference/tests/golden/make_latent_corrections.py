"""Writes src/latent_corrections.bin: where the published latent of MLPerf Inference differs from what PyTorch 2.15 makes of seed 0.

    python make_latent_corrections.py latents.npy      # text_to_image/tools/latents.npy of mlcommons/inference
"""

import hashlib
import pathlib
import sys

import numpy as np
import torch

PUBLISHED = "78cac10a20ea287f88b5851382e21504a755338d3f8ba8ffd2bcf9e9bf2404f9"


def main():
    file = pathlib.Path(sys.argv[1])
    assert hashlib.sha256(file.read_bytes()).hexdigest() == PUBLISHED, f"{file} is not the published latent"
    published = np.load(file).reshape(-1)
    made = torch.randn(published.size, generator=torch.Generator("cpu").manual_seed(0)).numpy()
    units = published.view(np.int32).astype(int) - made.view(np.int32).astype(int)
    rows = [int(i).to_bytes(2, "little") + int(units[i]).to_bytes(1, "little", signed=True) for i in np.nonzero(units)[0]]
    (pathlib.Path(__file__).parents[2] / "src" / "latent_corrections.bin").write_bytes(b"".join(rows))
    print(len(rows), "numbers differ")


if __name__ == "__main__":
    main()
