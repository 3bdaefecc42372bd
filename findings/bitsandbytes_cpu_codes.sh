#!/usr/bin/env bash
# quantize_blockwise of bitsandbytes 0.50.2 on the CPU does not take the nearest code, and makes zero something else.
#
# It finds codes in a table of 65,536 steps over -1 to 1, so that zero, and all below 1e-5 of a block's largest number, become 1.6e-5
# (unsigned) or 2.1e-5 (signed) of it, where the code book has zero and six codes below. Golden values of rounding are therefore searched in the code
# book, and not asked of it; AdamW8bit's trajectories on the CPU are compared with a tolerance.
#
#   findings/bitsandbytes_cpu_codes.sh
#
# installs pinned packages in a temporary folder, and fails if bitsandbytes behaves otherwise. FINDINGS_PYTHON names a Python that has
# PyTorch and bitsandbytes 0.50.2 already, which saves their download.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python="${FINDINGS_PYTHON:-}"
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q torch==2.15.0 numpy bitsandbytes==0.50.2
fi
"$python" - 2>/dev/null <<'PYTHON'
import torch
from bitsandbytes import functional

for signed, zero in ((True, 127), (False, 0)):
    book = functional.create_dynamic_map(signed)
    assert book[zero] == 0
    values = torch.zeros(256)
    values[0] = 1.0
    codes, _ = functional.quantize_blockwise(values, code=book, blocksize=256)
    code = codes.flatten()[1].item()
    print("signed" if signed else "unsigned", "zero becomes code", code, "of", book[code].item())
    assert code == (131 if signed else 7), code
PYTHON
