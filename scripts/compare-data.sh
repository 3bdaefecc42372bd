#!/usr/bin/env bash
# Times Calotype's loader and PyTorch's DataLoader (torchvision on PIL images, webdataset library) on the same shards
# of JPEGs, in turn on the same cores, and prints their rates and ratio.
#
#   scripts/compare-data.sh [--shards FOLDER] [--samples N] [--size N] [--variants NAME,...] [--threads N] [--passes N] [--small]
#
# FOLDER is made by the benchmark if it holds no shards. --small compares on JPEGs that have SIZE already, so that
# nothing is resized. CALOTYPE_PEER_PYTHON names a Python that has torch, torchvision and webdataset; without it one is
# made in target/peers.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
    echo "error: $*" >&2
    exit 2
}

shards="" variants="" samples=600 size=512 threads="$(nproc)" passes=3 sides=(640 1024)
while [ $# -gt 0 ]; do
    case "$1" in
        --shards | --samples | --size | --threads | --passes | --variants)
            [ $# -ge 2 ] || die "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        --small)
            sides=()
            shift
            ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
            exit 0
            ;;
        *) die "unknown argument $1; --help shows all" ;;
    esac
done
[ ${#sides[@]} -gt 0 ] || sides=("$size" "$size")
shards="${shards:-runs/bench-data-${sides[0]}-${sides[1]}}"

python="$(scripts/peer-python.sh)"
"$python" -c 'import torch, torchvision, webdataset' || die "$python lacks torch, torchvision or webdataset"
bench="${CALOTYPE_BENCH_LOADER:-}"
if [ -z "$bench" ]; then
    cargo build --release --quiet -p calotype-prepare --example bench_loader
    bench="${CARGO_TARGET_DIR:-target}/release/examples/bench_loader"
fi

run_ours() {
    "$bench" --json --shards "$shards" --samples "$samples" --shortest "${sides[0]}" --longest "${sides[1]}" \
        --size "$size" --threads "$threads" --passes "$passes"
}
ours="$(run_ours)"
peer="$("$python" scripts/bench_data_peer.py "$shards" --size "$size" --workers "$threads" --passes "$passes" \
    ${variants:+--variants "$variants"})"
# Once more, since the machine may have been slower in one half than in the other.
again="$(run_ours)"
"$python" - "$ours" "$again" "$peer" <<'PYTHON'
import json, sys

first, second, peer = map(json.loads, sys.argv[1:])
ours = max(first, second, key=lambda run: run["images_per_second"])
memory = lambda run: f"{run['peak_memory'] / 1e6:.0f} MB"
print(f"{ours['images']} JPEGs of {ours['mean_bytes'] / 1e3:.0f} kB to {ours['size']}x{ours['size']}, {ours['threads']} threads or workers")
print(f"calotype      {ours['images_per_second']:8.1f} images/s  {ours['megabytes_per_second']:.1f} MB/s  {memory(ours)}")
print(f"  one thread: decode {ours['decode_ms']:.2f} ms, with resize and crop {ours['image_ms']:.2f} ms, numbers {ours['numbers_ms']:.2f} ms")
for name, rate in sorted(peer["rates"].items(), key=lambda item: -item[1]):
    mark = "" if name != peer["best"] else f"  <- compared; torch {peer['torch']}, webdataset {peer['webdataset']}"
    print(f"{name:13} {rate:8.1f} images/s{mark}")
print(f"all variants' peak of the main process and the workers: {memory(peer)}")
print(f"ratio {ours['images_per_second'] / peer['images_per_second']:.2f}")
PYTHON
