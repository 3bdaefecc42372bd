#!/usr/bin/env bash
# Compares the features and figures of `calotype evaluate` with those of pytorch-fid, clean-fid, torch-fidelity, torchmetrics and
# NeMo's steps, on the same weights and pictures.
#
#   scripts/evaluate-peers.sh FIRST SECOND [--inception FILE] [--variants NAME,NAME] [--work FOLDER]
#       FIRST and SECOND are folders of pictures of any sizes and modes; without --inception, weights are made up. Ends with 1 if
#       features differ by more than 1e-4 of the largest, those of JPEGs included, or a distance, a KID or an Inception score by more
#       than 1e-3 of itself. Pillow has to be one with libjpeg-turbo from 2.1 on.
#
# CALOTYPE_PEER_PYTHON names a Python with torch, torchvision, pytorch-fid 0.3.0, clean-fid 0.1.35, torch-fidelity 0.4.0 and
# torchmetrics 1.9.0. CALOTYPE_BIN names the program; without it, it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 2 ] || [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit 0
fi
binary="${CALOTYPE_BIN:-}"
if [ -z "$binary" ]; then
    cargo build --release --bin calotype >&2
    binary="${CARGO_TARGET_DIR:-target}/release/calotype"
fi
HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 exec "${CALOTYPE_PEER_PYTHON:-python3}" scripts/evaluate_peers.py --binary "$binary" "$@"
