#!/usr/bin/env bash
# Compares the models, and the images they draw, with their originals.
#
#   scripts/parity.sh [--only NAME,NAME] [--no-grad] [--keep FOLDER] [--out FILE.json]
#       makes randomly initialised checkpoints of the real sizes with diffusers, transformers, open_clip and pytorch-fid, saves
#       them in each layout, and prints a table of the differences of outputs and gradients
#   scripts/parity.sh pictures [--only NAME,NAME] [--time] [--out FILE.json]
#       draws images with diffusers' pipelines and with `calotype generate` from the same folders and numbers; --time also
#       measures a Stable Diffusion 2 image
#   scripts/parity.sh exports
#       writes small models with Calotype and loads them with diffusers and transformers: no key missing or unexpected, the same
#       token ids, pixel values and outputs; takes a minute
#
# The others want about 20 GB of memory and 15 GB of disk for temporary files and take about half an hour on two cores. All end
# with 1 if a bound is broken. CALOTYPE_PEER_PYTHON and CALOTYPE_BIN as in compare-peers.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    -h | --help)
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
        exit 0
        ;;
    exports)
        python="$(scripts/peer-python.sh)"
        folder="$(mktemp -d)"
        trap 'rm -rf "$folder"' EXIT
        # The whole workspace's features, so that nothing is compiled anew for one crate.
        cargo build --release --workspace --example export >&2
        "${CARGO_TARGET_DIR:-target}/release/examples/export" "$folder" >&2
        HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 "$python" scripts/parity_exports.py "$folder"
        exit
        ;;
    pictures)
        script=scripts/parity_pictures.py
        shift
        ;;
    *) script=scripts/parity.py ;;
esac
python="$(scripts/peer-python.sh)"
calotype="${CALOTYPE_BIN:-}"
if [ -z "$calotype" ]; then
    cargo build --release -p calotype >&2
    calotype="${CARGO_TARGET_DIR:-target}/release/calotype"
fi
HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 exec "$python" "$script" --calotype "$calotype" "$@"
