#!/usr/bin/env bash
# Converts small ViTs and CLIPs to .nemo files and has them read as NeMo does (torch.load with weights alone, a YAML reader, strict
# loading into modules of NeMo's names and arithmetic); and reads files as NeMo writes them, in both orders of attention's rows.
#
#   scripts/nemo-files.sh
#
# CALOTYPE_PEER_PYTHON names a Python that has torch, transformers and safetensors; without it one is made in target/peers.
# CALOTYPE_BIN names a calotype to take instead of building one.
set -euo pipefail
cd "$(dirname "$0")/.."

python="$(scripts/peer-python.sh)"
calotype="${CALOTYPE_BIN:-}"
if [ -z "$calotype" ]; then
    cargo build --release -p calotype >&2
    calotype="${CARGO_TARGET_DIR:-target}/release/calotype"
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$python" scripts/nemo_files.py "$calotype" "$work"
