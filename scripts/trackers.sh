#!/usr/bin/env bash
# Trains for a moment with all trackers on, kills the run in the middle, lets it go on, and reads what the trackers wrote with
# their own libraries: pandas, TensorBoard, and Weights & Biases' client, which uploads the run to a server of this script on
# the loopback device. All must say what metrics.jsonl says.
#
#   scripts/trackers.sh             ends with 1 if anything differs
#   scripts/trackers.sh --python    prints the path of the Python that has the libraries
#
# CALOTYPE_TRACKERS_PYTHON names a Python that has wandb 0.31.0, tensorboard 2.21.0 and pandas 3.1.1 already; otherwise a
# virtual environment is made in target/trackers, once. CALOTYPE_BIN names the program; without it, it is built.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit 0
fi
python="${CALOTYPE_TRACKERS_PYTHON:-}"
if [ -z "$python" ]; then
    folder=target/trackers
    if [ ! -e "$folder/complete" ]; then
        python3 -m venv "$folder" >&2
        "$folder/bin/python" -m pip install --quiet wandb==0.31.0 tensorboard==2.21.0 pandas==3.1.1 numpy==2.4.6 >&2
        touch "$folder/complete"
    fi
    python="$PWD/$folder/bin/python"
fi
case "${1:-}" in
--python)
    echo "$python"
    exit 0
    ;;
"") ;;
*)
    echo "error: $1 is not known; say --help" >&2
    exit 2
    ;;
esac
calotype="${CALOTYPE_BIN:-}"
if [ -z "$calotype" ]; then
    cargo build --release -q --workspace --bin calotype >&2
    calotype="${CARGO_TARGET_DIR:-target}/release/calotype"
fi
export PYTHONDONTWRITEBYTECODE=1

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# A dataset whose encoders are known, by models that have hardly been trained.
"$calotype" quickstart --preset smoke --out "$work/quickstart" \
    dataset.drawings=40 clip.run.samples=64 autoencoder.run.samples=32 diffusion.run.samples=16 \
    evaluation.images=2 evaluation.grid=2 evaluation.sampler.steps=1 >/dev/null
# More rows than fit into one block of the transaction log; an evaluation, whose names come late, and previews.
train=(
    "$calotype" train training/stable_diffusion/quickstart_smoke --out "$work/run" "data.path=\"$work/quickstart/precache\""
    run.samples=640 run.batch_size=4 run.log_every=4 run.checkpoint_every=64 run.keep_every=320 run.precision=f32
    'trackers={ csv = true, wandb = { project = "calotype", tags = ["check"] } }'
    'watch={ z_limit = 2.0, window = 16 }'
    "hooks.evaluate={ path = \"$work/quickstart/precache\", every = 160, samples = 8, ranges = 4 }"
    'hooks.preview={ every = 160, prompts = ["a red circle", "a house"], steps = 2 }'
)

# entries: how many the logs have.
entries() {
    if [ -e "$work/run/metrics.jsonl" ]; then wc -l <"$work/run/metrics.jsonl"; else echo 0; fi
}

"${train[@]}" >/dev/null 2>"$work/errors" &
training=$!
# Far enough to have a checkpoint to go on from, and rows to take back.
while kill -0 "$training" 2>/dev/null && [ "$(entries)" -lt 70 ]; do
    sleep 0.05
done
kill -KILL "$training" 2>/dev/null || true
wait "$training" 2>/dev/null || true
if [ -e "$work/run/result.json" ] || [ "$(entries)" -lt 70 ]; then
    cat "$work/errors" >&2
    echo "error: the run was over before it could be killed" >&2
    exit 1
fi
echo "killed behind $(entries) entries of the logs"
"${train[@]}" >/dev/null 2>"$work/errors" || {
    cat "$work/errors" >&2
    exit 1
}
for checkpoint in 320 640; do
    if [ ! -d "$work/run/checkpoints/checkpoint-$(printf %012d "$checkpoint")" ]; then
        echo "error: the checkpoint of $checkpoint samples was not kept" >&2
        exit 1
    fi
done
"$python" scripts/trackers.py "$work/run"
