#!/usr/bin/env bash
# PEFT 0.21.2 and LyCORIS 4.1.3 scale the same LoKr adapter differently.
#
# A LoKr change is the Kronecker product of two factors, each whole or a product of two thin matrices, times alpha / rank. Where both
# factors are whole there is no rank. LyCORIS sets alpha to the rank then: the change is the bare product, whatever alpha was asked for. PEFT
# keeps alpha / r of its configuration, although r appears nowhere in the weights. A file of one, loaded by the rule of the other, changes
# the model by a factor of alpha / r (0.25 here) without a word.
#
#   findings/lokr_whole_factors.sh
#
# installs pinned packages in a temporary folder, and fails if either library behaves otherwise. FINDINGS_PYTHON names a Python that has
# PyTorch 2.x, transformers and accelerate already, which saves their download.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
own=(peft==0.21.2 lycoris-lora==4.1.3 einops==0.8.1 toml==0.10.2 psutil==7.1.3)
if [ -n "${FINDINGS_PYTHON:-}" ]; then
    python="$FINDINGS_PYTHON"
    "$python" -m pip install -q --no-deps --target "$folder/packages" "${own[@]}"
else
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q torch==2.15.0 transformers==5.23.0 accelerate==1.12.0 "${own[@]}"
fi
PYTHONPATH="$folder/packages" PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 "$python" - <<'PYTHON'
import importlib.metadata

import torch
from lycoris.modules.lokr import LokrModule
from peft import LoKrConfig, get_peft_model

RANK, ALPHA = 16, 4
torch.manual_seed(0)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 16, bias=False)


config = LoKrConfig(r=RANK, alpha=ALPHA, target_modules=["layer"], init_weights=False, decompose_factor=4)
adapted = get_peft_model(Net(), config).base_model.model.layer
first, second = adapted.lokr_w1["default"].detach(), adapted.lokr_w2["default"].detach()
product = torch.kron(first, second)
by_peft = (adapted.get_delta_weight("default").detach() / product).mean().item()

module = LokrModule("layer", torch.nn.Linear(16, 16, bias=False), multiplier=1.0, lora_dim=RANK, alpha=ALPHA, factor=4)
with torch.no_grad():
    module.lokr_w1.copy_(first)
    module.lokr_w2.copy_(second)
by_lycoris = (module.get_weight((16, 16)).detach() / product).mean().item()

for package, factor in [("peft", by_peft), ("lycoris-lora", by_lycoris)]:
    print(f"{package} {importlib.metadata.version(package)}: both factors whole, rank {RANK}, alpha {ALPHA}: change = {factor:g} x product")
if abs(by_peft - ALPHA / RANK) > 1e-5 or abs(by_lycoris - 1) > 1e-5:
    raise SystemExit("the libraries no longer behave as written above")
PYTHON
