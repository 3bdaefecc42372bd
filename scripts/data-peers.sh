#!/usr/bin/env bash
# Compares what Calotype does to data with the Python libraries that do the same.
#
#   scripts/data-peers.sh [--only NAME,NAME] [--keep FOLDER] [--out FILE.json]
#       writes datasets with each side, reads them with the other, and ends with 1 if anything differs
#   scripts/data-peers.sh --light       only what needs no PyTorch: webdataset, NumPy, pandas, Pillow (60 MB instead of 3 GB)
#   scripts/data-peers.sh --list        the names of the checks
#   scripts/data-peers.sh --python      prints the path of the Python that has the libraries
#
# CALOTYPE_PEER_PYTHON names a Python that has them already. Otherwise a virtual environment is made in target/data-peers,
# once. mosaicml-streaming goes in without its dependencies, most of which are clients of clouds. CALOTYPE_DATA_BIN names the
# program that runs the stages ("calotype data", or the example of crates/prepare); without it, that example is built.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit 0
fi
python="${CALOTYPE_PEER_PYTHON:-}"
if [ "${1:-}" = "--light" ]; then
    shift
    set -- --only "webdataset:,pickles:,coco:" "$@"
    if [ -z "$python" ]; then
        folder=target/data-peers-light
        if [ ! -e "$folder/complete" ]; then
            python3 -m venv "$folder" >&2
            "$folder/bin/python" -m pip install --quiet webdataset==1.0.2 numpy pandas pillow >&2
            touch "$folder/complete"
        fi
        python="$PWD/$folder/bin/python"
    fi
fi
if [ -z "$python" ]; then
    folder=target/data-peers
    if [ ! -e "$folder/complete" ]; then
        python3 -m venv "$folder" >&2
        "$folder/bin/python" -m pip install --quiet torch==2.15.0 numpy pandas pillow webdataset==1.0.2 tqdm requests filelock >&2
        "$folder/bin/python" -m pip install --quiet --no-deps mosaicml-streaming==0.13.0 xxhash zstd python-snappy cramjam \
            brotli catalogue boto3 botocore s3transfer jmespath python-dateutil six urllib3 typing-extensions >&2
        touch "$folder/complete"
    fi
    python="$PWD/$folder/bin/python"
fi
if [ "${1:-}" = "--python" ]; then
    echo "$python"
    exit 0
fi
data="${CALOTYPE_DATA_BIN:-}"
if [ -z "$data" ] && [ "${1:-}" != "--list" ]; then
    cargo build --release -p calotype-prepare --example data >&2
    data="${CARGO_TARGET_DIR:-target}/release/examples/data"
fi
HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1 exec "$python" scripts/data_peers.py --data "$data" "$@"
