#!/usr/bin/env bash
# Compares `calotype mlperf inference accuracy` with the reference's accuracy_coco.py on the same accuracy log: pictures of 1024x1024
# with captions, Inception and CLIP ViT-B/32 of made-up weights in the published layouts, made-up statistics of full rank.
#
#   scripts/inference-accuracy.sh [--pictures N] [--work FOLDER] [--low-memory]
#       ends with 1 if a figure differs by more than 1e-4 (of itself, above 1), or the files are not the same in form. With
#       --low-memory, the reference's --low_memory is run, too.
#
# CALOTYPE_PEER_PYTHON names a Python with torch, torchvision, open_clip 3.3.0, SciPy 1.17, pandas, Pillow and safetensors; ijson and tqdm
# are installed aside if it lacks them. CALOTYPE_MLPERF_INFERENCE names a copy of github.com/mlcommons/inference; without it, the
# folder text_to_image/tools of commit b66003e1 is fetched into target/mlperf-inference. CALOTYPE_BIN names the program; without it,
# it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit 0
fi
repository="${CALOTYPE_MLPERF_INFERENCE:-}"
if [ -z "$repository" ]; then
    repository="$PWD/target/mlperf-inference"
    if [ ! -e "$repository/complete" ]; then
        rm -rf "$repository"
        git clone -q --filter=blob:none --no-checkout https://github.com/mlcommons/inference "$repository"
        git -C "$repository" sparse-checkout set --no-cone '/text_to_image/tools/*' '!/text_to_image/tools/val2014.npz'
        git -C "$repository" checkout -q b66003e1
        touch "$repository/complete"
    fi
fi
python="$(scripts/peer-python.sh)"
modules="$PWD/target/inference-accuracy-modules"
if ! "$python" -c 'import ijson, tqdm, pandas' 2>/dev/null && [ ! -e "$modules/complete" ]; then
    "$python" -m pip install --quiet --target "$modules" ijson==3.5.1 tqdm pandas==3.1.1 >&2
    touch "$modules/complete"
fi
binary="${CALOTYPE_BIN:-}"
if [ -z "$binary" ]; then
    cargo build --release --bin calotype >&2
    binary="${CARGO_TARGET_DIR:-target}/release/calotype"
fi
PYTHONPATH="$modules" HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 \
    exec "$python" scripts/inference_accuracy.py --binary "$binary" --reference "$repository" "$@"
