#!/usr/bin/env bash
# Trains a small ViT on a real folder of some 35 classes (Debian's openclipart), fine-tunes it at twice the resolution, trains a small
# CLIP on the same pictures with their titles, and judges all three on pictures that were held out: top-1 of both ViTs, CLIP's accuracy
# without training on the classes and its retrieval along training. About 10 minutes on 2 cores.
#
#   scripts/vit-curves.sh [--out DIR] [--debs DIR] [--quick] [--threads N]
#
# DIR (default: target/vit-curves) keeps pictures, runs and evaluated/*/report.html with curves, confusion and classes; what is there
# already is not done again. --debs names a folder with the packages openclipart-png and openclipart-svg, which `apt-get download`
# fetches otherwise (156 MB). --quick trains a fiftieth of it, to see that all works, and judges nothing.
#
# CALOTYPE_BIN names a calotype to take instead of building one, CALOTYPE_PEER_PYTHON a Python that has Pillow.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
    echo "error: $*" >&2
    exit 2
}

out=target/vit-curves debs="" quick="" threads="$(nproc)"
while [ $# -gt 0 ]; do
    case "$1" in
        --out | --debs | --threads)
            [ $# -ge 2 ] || die "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        --quick)
            quick=yes
            shift
            ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
            exit 0
            ;;
        *) die "unknown argument $1; --help shows all" ;;
    esac
done

calotype="${CALOTYPE_BIN:-}"
if [ -z "$calotype" ]; then
    cargo build --release -p calotype >&2
    calotype="${CARGO_TARGET_DIR:-target}/release/calotype"
fi
python="${CALOTYPE_PEER_PYTHON:-python3}"
if ! "$python" -c 'import PIL' 2>/dev/null; then
    python="$PWD/target/pillow/bin/python"
    if [ ! -x "$python" ]; then
        python3 -m venv target/pillow
        "$python" -m pip install --quiet pillow
    fi
fi
mkdir -p "$out"
out="$(cd "$out" && pwd)"

# Pictures ---------------------------------------------------------------------------------------------------------------

if [ ! -e "$out/prepared" ]; then
    work="$(mktemp -d)"
    trap 'rm -rf "$work"' EXIT
    if [ -z "$debs" ]; then
        debs="$work/debs"
        mkdir "$debs"
        (cd "$debs" && apt-get download openclipart-png openclipart-svg >&2) || die "cannot fetch the packages; give --debs DIR"
    fi
    for package in openclipart-png openclipart-svg; do
        deb="$(find "$debs" -name "${package}_*.deb" | head -n 1)"
        [ -n "$deb" ] || die "there is no package $package in $debs"
        dpkg-deb -x "$deb" "$work/root"
    done
    rm -rf "$out/classes" "$out/captions"
    "$python" scripts/vit_curves.py prepare "$work/root" "$out"
    touch "$out/prepared"
fi
classes="$(wc -l <"$out/classes.txt")"

# Training ---------------------------------------------------------------------------------------------------------------

# samples N: N, or a fiftieth of it.
samples() {
    if [ -n "$quick" ]; then echo $(($1 / 50)); else echo "$1"; fi
}

train() {
    echo "+ train $*" >&2
    "$calotype" train "$@" --threads "$threads"
}

# of_vit NAME SIDE EVERY SAMPLES [LINE...]: trains on pictures of so many pixels by a recipe that is written to a file, with more lines at
# its top.
mkdir -p "$out/recipes"
of_vit() {
    local name="$1" side="$2" every samples
    every="$(samples "$3")" samples="$(samples "$4")"
    shift 4
    cat >"$out/recipes/$name.toml" <<TOML
base = "training/vit/folder_mini"
$(printf '%s\n' "$@")
[data]
path = "$out/classes/train"
threads = $threads
[model]
labels = $classes
image_size = $side
patch_size = 4
[hooks.evaluate]
path = "$out/classes/held_out"
every = $every
samples = 256
[hooks.vision]
every = $every
[hooks.vision.recipes.held_out]
base = "evaluation/vit/imagenet_val"
preparation = "checkpoint"
batch_size = 64
data = { path = "$out/classes/held_out" }
[run]
samples = $samples
checkpoint_every = $samples
TOML
    if [ -n "$quick" ]; then printf '[optimizer.schedule]\nwarmup = { steps = 2 }\n' >>"$out/recipes/$name.toml"; fi
    train "$out/recipes/$name.toml" --out "$out/runs/$name"
}

of_vit vit 16 12800 128000
of_vit vit-finetuned 32 6400 64000 "init_from = \"$out/runs/vit\"" "optimizer.learning_rate = 5e-4"

every="$(samples 12800)"
cat >"$out/recipes/clip.toml" <<TOML
base = "training/clip/quickstart"
[data]
path = "$out/captions/train"
threads = $threads
[hooks.vision]
every = $every
[hooks.vision.recipes.zero_shot]
base = "evaluation/clip/imagenet_zeroshot"
classes = ["$out/classes.txt"]
templates = ["a drawing of {}"]
batch_size = 64
data = { path = "$out/classes/held_out" }
[hooks.vision.recipes.retrieval]
base = "evaluation/clip/coco_retrieval"
batch_size = 64
data = { path = "$out/captions/held_out" }
[run]
samples = $(samples 64000)
TOML
train "$out/recipes/clip.toml" --out "$out/runs/clip"

# Judging ----------------------------------------------------------------------------------------------------------------

judge() {
    echo "+ evaluate $*" >&2
    "$calotype" evaluate "$@" --threads "$threads" batch_size=64
}

for run in vit vit-finetuned; do
    judge vit/imagenet_val --out "$out/evaluated/$run" model="$out/runs/$run" data.path="$out/classes/held_out" \
        preparation=checkpoint line="\"{top_1} of the pictures of $run are right\""
done
judge clip/imagenet_zeroshot --out "$out/evaluated/clip-zero-shot" model="$out/runs/clip" data.path="$out/classes/held_out" \
    classes="[\"$out/classes.txt\"]" templates='["a drawing of {}"]'
judge clip/coco_retrieval --out "$out/evaluated/clip-retrieval" model="$out/runs/clip" data.path="$out/captions/held_out"

if [ -n "$quick" ]; then
    echo "trained too little to be judged; pages: $(echo "$out"/evaluated/*/report.html)"
else
    "$python" scripts/vit_curves.py judge "$out"
fi
