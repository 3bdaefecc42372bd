#!/usr/bin/env bash
# Prints the path of a Python that has the peers: PyTorch, diffusers, transformers, open_clip, pytorch-fid, OpenVINO.
#
#   scripts/peer-python.sh [FOLDER]
#
# CALOTYPE_PEER_PYTHON names one that is there already. Otherwise a virtual environment is made in FOLDER (default:
# target/peers; several GB of downloads), once.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -n "${CALOTYPE_PEER_PYTHON:-}" ]; then
    echo "$CALOTYPE_PEER_PYTHON"
    exit
fi
folder="${1:-target/peers}"
if [ ! -e "$folder/complete" ]; then
    python3 -m venv "$folder" >&2
    "$folder/bin/python" -m pip install --quiet \
        torch==2.15.0 torchvision==0.29.2 diffusers==0.42.1 transformers==5.23.0 open-clip-torch==3.3.0 \
        pytorch-fid==0.3.0 timm openvino safetensors numpy pillow accelerate scipy >&2
    touch "$folder/complete"
fi
echo "$PWD/${folder#"$PWD/"}/bin/python"
