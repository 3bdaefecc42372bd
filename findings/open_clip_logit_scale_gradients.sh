#!/usr/bin/env bash
# open_clip 3.3.0 gives the logit scale and the towers gradients of different sizes where a batch goes through in parts, or is shared.
#
# --accum-freq N differentiates the loss of the whole batch N times, each time with the features of one part: the towers' gradients add up to
# the whole one, and the logit scale gets the whole one N times. Without --gather-with-grad, each of W processes differentiates the
# loss with respect to its own features alone: the mean over the processes is a W-th of the towers' gradient, and the whole of the logit scale's.
# AdamW hides a factor until gradients are clipped, where the logit scale then takes more of the norm than its share.
#
#   findings/open_clip_logit_scale_gradients.sh
#
# installs the pinned packages in a temporary folder, runs open_clip's own training loop, with gloo for the processes, and fails if the
# factors are others.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q torch==2.15.0 torchvision open_clip_torch==3.3.0
cat >"$folder/look.py" <<'PYTHON'
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from open_clip.factory import create_loss
from open_clip.model import CLIP
from open_clip_train.train import train_one_epoch

BATCH, TOKENS = 8, 8


def gradients(rank, world, parts, gather, place):
    """The gradients of the logit scale and of a projection, behind a step that changes nothing."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{place}/meeting-{gather}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = CLIP(16, dict(layers=1, width=32, head_width=16, patch_size=8, image_size=16),
                 dict(context_length=TOKENS, vocab_size=64, width=32, heads=2, layers=1), output_dict=True)
    images, texts = torch.randn(BATCH, 3, 16, 16), torch.randint(1, 64, (BATCH, TOKENS))
    own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    batches = list(zip(images[own].chunk(parts), texts[own].chunk(parts)))

    class Loader(list):
        num_batches, num_samples = parts, BATCH

    args = SimpleNamespace(
        device="cpu", precision="fp32", accum_freq=parts, distill=False, skip_scheduler=True, horovod=False, grad_clip_norm=None,
        world_size=world, rank=rank, local_rank=rank, batch_size=BATCH, log_every_n_steps=10**9, wandb=False, log_local=False,
        model="ViT", siglip=False, local_loss=False, gather_with_grad=gather, loss_dist_impl=None)
    wrapped = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    data = {"train": SimpleNamespace(dataloader=Loader(batches), set_epoch=lambda _: None)}
    train_one_epoch(wrapped, data, create_loss(args), 0, torch.optim.SGD(model.parameters(), lr=0.0), None, None, None, args)
    if rank == 0:
        found = dict(scale=model.logit_scale.grad.item(), tower=model.visual.proj.grad.norm().item())
        Path(place, "found.json").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


def look(world, parts, gather, place):
    if world > 1:
        mp.spawn(gradients, (world, parts, gather, place), nprocs=world)
    else:
        gradients(0, world, parts, gather, place)
    return json.loads(Path(place, "found.json").read_text())


if __name__ == "__main__":
    place = sys.argv[1]
    plain = look(1, 1, True, place)
    for world, parts, gather, scale, tower in [(1, 4, True, 4, 1), (2, 1, True, 1, 1), (2, 1, False, 1, 0.5)]:
        found = look(world, parts, gather, place)
        times = {name: found[name] / plain[name] for name in plain}
        print(f"{world} processes, {parts} parts, gather_with_grad {gather}: logit scale x {times['scale']:.4f}, tower x {times['tower']:.4f}")
        assert abs(times["scale"] - scale) < 1e-3 and abs(times["tower"] - tower) < 1e-3
PYTHON
PYTHONWARNINGS=ignore "$folder/venv/bin/python" "$folder/look.py" "$folder"
