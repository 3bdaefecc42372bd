#!/usr/bin/env bash
# Judges small vision models on 200 real pictures of 10 classes with Calotype, and with transformers, open_clip and scikit-learn.
#
#   scripts/vision-peers.sh [--keep FOLDER]
#
# The models have random weights and are saved by transformers; two of their classes are the same, so that ranks tie. The pictures
# are the embedded ones, turned, cut and scaled to many sizes. Top-1, top-5, zero-shot accuracy, recalls, the linear probe, what
# `classify` and `similarity` print, and CLIP scores of 100 pictures have to be the same; ends with 1 if anything differs. Takes some
# minutes on two cores.
# CALOTYPE_PEER_PYTHON names a Python that has torch, transformers, open_clip and scikit-learn; otherwise they are installed into
# target/peers (see peer-python.sh). CALOTYPE_BIN names the program; without it, it is built.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    -h | --help)
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
        exit 0
        ;;
esac
python="$(scripts/peer-python.sh)"
"$python" -c 'import sklearn' 2>/dev/null || "$python" -m pip install --quiet scikit-learn==1.9.1 >&2
calotype="${CALOTYPE_BIN:-}"
if [ -z "$calotype" ]; then
    cargo build --release -p calotype >&2
    calotype="${CARGO_TARGET_DIR:-target}/release/calotype"
fi
HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 exec "$python" scripts/vision_peers.py --calotype "$calotype" "$@"
