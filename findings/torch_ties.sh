#!/usr/bin/env bash
# torch 2.15.0 on a CPU: which of several equal scores is the first depends on how it is asked for, and on the number of classes.
#
# argmax, max and a stable argsort take the lowest index. topk(x, 1) of five equal scores is index 2, of eight 6, of a thousand 0, and
# topk(x, 5) of a thousand begins with 3: it is the order that partial selection of the C++ library leaves. argsort without stable=True keeps
# the order of up to 16 scores only. Top-1 accuracy by argmax and by topk, as timm, open_clip and NeMo count it, therefore differs on ties,
# such as two classes of one name, or a model whose outputs are all the same.
#
#   findings/torch_ties.sh
#
# installs pinned packages in a temporary folder, and fails if they behave otherwise. FINDINGS_PYTHON names a Python that has them already.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python="${FINDINGS_PYTHON:-}"
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q torch==2.15.0 numpy
fi
"$python" - <<'PYTHON'
import torch

print("torch", torch.__version__)
for count, first, five, order in [
    (3, 0, None, [0, 1, 2]),
    (5, 2, [2, 4, 3, 0, 1], [0, 1, 2, 3, 4]),
    (8, 6, [4, 7, 6, 5, 2], [0, 1, 2, 3, 4]),
    (16, 10, [12, 9, 10, 11, 14], [0, 1, 2, 3, 4]),
    (17, 10, [10, 12, 11, 13, 9], [8, 16, 15, 14, 13]),
    (1000, 0, [3, 4, 1, 0, 2], [672, 657, 658, 659, 660]),
]:
    scores = torch.ones(count)
    found = scores.topk(1).indices.tolist(), scores.topk(min(5, count)).indices.tolist(), scores.argsort(descending=True)[:5].tolist()
    print(f"{count} equal scores: argmax {scores.argmax().item()}, topk 1 {found[0]}, topk 5 {found[1]}, argsort {found[2]}")
    assert scores.argmax() == 0 and scores.max(0).indices == 0 and scores.argsort(descending=True, stable=True)[0] == 0
    assert found[0] == [first] and (five is None or found[1] == five) and found[2] == order
print("as before")
PYTHON
