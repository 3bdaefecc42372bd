#!/usr/bin/env bash
# PyYAML 6.0.3: a number with an exponent and without a point is a text. `layernorm_epsilon: 1e-5` is read as "1e-5" by yaml.safe_load, and as
# 0.00001 by OmegaConf 2.3.0, which NeMo and Hydra read with; 1.0e-5 is a number to both. A configuration that is written for programs of
# either kind needs the point.
#
#   findings/yaml_exponents.sh
#
# installs pinned packages in a temporary folder, and fails if they behave otherwise. FINDINGS_PYTHON names a Python that has them already.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python="${FINDINGS_PYTHON:-}"
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    python="$folder/venv/bin/python"
    "$python" -m pip install -q pyyaml==6.0.3 omegaconf==2.3.0
fi
"$python" - <<'PYTHON'
import yaml
from omegaconf import OmegaConf

for text, plain, omega in [("1e-5", "1e-5", 1e-5), ("1.0e-5", 1e-5, 1e-5), ("1.0e-05", 1e-5, 1e-5), ("1e+3", "1e+3", 1000.0), ("1.5e3", "1.5e3", 1500.0)]:
    found = yaml.safe_load(f"k: {text}")["k"], OmegaConf.create(f"k: {text}").k
    print(f"{text:8} PyYAML {found[0]!r}, OmegaConf {found[1]!r}")
    assert found == (plain, omega), text
print("as before")
PYTHON
