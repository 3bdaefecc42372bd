#!/usr/bin/env bash
# Trains small runs of MLPerf's Stable Diffusion benchmark, has MLCommons' checkers (mlperf-logging) judge what they write, and compares
# their verdicts with those of `calotype mlperf check`.
#
#   scripts/mlperf-run.sh [--out FOLDER] [--full]
#
# 1. A run that is handed the reference's published convergence: its log passes in rounds 4.0, 4.1 and 5.0.
# 2. The same with results that miss the targets, and ended by easier targets of its own: only the rule of accuracy is broken.
# 3. Runs whose kept checkpoints are evaluated after training pass, and so does a run that was killed and went on.
# 4. A mini run that draws and judges its own images, on networks of random weights: only the rule of accuracy is broken.
# 5. Ten runs, packed: the checkers of packages and of reference points (RCPs) accept the tree. The sample counts of runs so short are no
#    reference's, so that the RCP checker is told to bypass that. With --full the ten runs have a batch of 512 and as many samples as the
#    reference needed, and nothing is bypassed.
#
# The last line counts the verdicts; the script ends with 1 if one is not as it has to be. CALOTYPE_PROGRAM names a built program;
# without it, one is built. --out keeps everything.
set -uo pipefail
cd "$(dirname "$0")/.."

out="" full=no
while [ $# -gt 0 ]; do
    case "$1" in
        --out) out="${2:?--out takes a folder}" && shift ;;
        --full) full=yes ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
        *) echo "error: $1 is no option; see scripts/mlperf-run.sh --help" >&2 && exit 2 ;;
    esac
    shift
done
python="$(scripts/mlperf-checkers.sh --python)" || exit 2
program="${CALOTYPE_PROGRAM:-}"
unset CALOTYPE_PROGRAM
if [ -z "$program" ]; then
    cargo build --release --workspace >&2 || exit 2
    program="${CARGO_TARGET_DIR:-target}/release/calotype"
fi
program="$(realpath "$program")" golden="$PWD/scripts/mlperf-golden.py"
mini=training/stable_diffusion/mlperf_32x08x02_mini judging=training/stable_diffusion/mlperf_01x08x08_mini
if [ -z "$out" ]; then
    out="$(mktemp -d)"
    trap 'rm -rf "$out"' EXIT
fi
mkdir -p "$out" && out="$(realpath "$out")" && cd "$out" || exit 2
export PYTHONDONTWRITEBYTECODE=1
passed=0 failed=0

# expect WORDS WANTED FOUND: counts a verdict.
expect() {
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
        echo "$1: $3"
    else
        failed=$((failed + 1))
        echo "FAILED: $1: $3, where it has to be: $2"
    fi
}

# A UNet on what a quickstart of seconds has encoded: the mini encodes captions in every step, which takes most of its time.
small_recipe() {
    "$program" quickstart --preset smoke --out quickstart dataset.drawings=40 dataset.resolution=32 \
        clip.model.projection=16 clip.model.text.channels=32 clip.model.text.layers=1 clip.model.text.heads=2 \
        clip.model.vision.image_size=32 clip.model.vision.channels=32 clip.model.vision.layers=1 clip.model.vision.heads=2 \
        clip.run.samples=64 clip.run.batch_size=16 clip.run.log_every=16 clip.run.checkpoint_every=32 clip.data.threads=1 \
        'autoencoder.model.block_out_channels=[8, 8, 16, 16]' autoencoder.model.norm_groups=4 \
        autoencoder.model.latent_channels=4 autoencoder.objective.resolution=32 autoencoder.run.samples=32 \
        autoencoder.run.batch_size=8 autoencoder.run.log_every=16 autoencoder.run.checkpoint_every=32 \
        'diffusion.model.block_out_channels=[16, 32]' diffusion.model.in_channels=4 diffusion.model.out_channels=4 \
        'diffusion.model.head_channels=[8, 8]' diffusion.model.context_channels=32 diffusion.model.norm_groups=4 \
        diffusion.model.transformer_norm_groups=4 diffusion.run.samples=16 diffusion.run.batch_size=8 \
        diffusion.run.log_every=16 diffusion.run.checkpoint_every=16 \
        precache.resolution=32 precache.batch_size=16 evaluation.images=4 evaluation.grid=4 evaluation.sampler.steps=2 \
        'evaluation.prompts=["a cat on a red background"]' >quickstart.log 2>&1 || return 1
    cat <<TOML
base = "training/stable_diffusion/quickstart_smoke"

[data]
path = "$out/quickstart/precache"

[model]
block_out_channels = [16, 32]
in_channels = 4
out_channels = 4
head_channels = [8, 8]
context_channels = 32
norm_groups = 4
transformer_norm_groups = 4

TOML
}

# What makes a recipe a run of the benchmark. Every 16 samples stand for 512,000 of the reference.
as_benchmark() {
    cat <<'TOML'
[optimizer]
beta2 = 0.999

[run]
samples = 96
batch_size = 8
log_every = 16
checkpoint_every = 16

[mlperf]
enabled = true
benchmark = "stable_diffusion"
division = "closed"
org = "Calotype"
platform = "mini"
status = "onprem"
TOML
}

if [ "$full" = no ]; then
    { printf 'base = "%s"\n\n' "$mini" && as_benchmark; } >recipe.toml
else
    { small_recipe && as_benchmark; } >recipe.toml || {
        echo "error: the quickstart that makes the data failed" >&2
        tail -n 20 quickstart.log >&2
        exit 1
    }
fi

# The first run of the reference at batch 512 (README of mlcommons/training, retired_benchmarks/stable_diffusion): samples / 512,000, FID, CLIP.
published="1 240.31 0.0704
2 160.47 0.0955
3 116.10 0.1298
4 98.62 0.1490
5 77.91 0.1700
6 78.28 0.1755"

# figures EVERY LINES: the same as a recipe's value, and as lines of JSON.
figures() {
    awk -v every="$1" '{ printf "%s{ samples = %d, fid = %s, clip = %s }", (NR > 1 ? ", " : ""), every * $1, $2, $3 }'
}
scores() {
    awk -v every="$1" '{ printf "{\"samples\": %d, \"fid\": %s, \"clip\": %s}\n", every * $1, $2, $3 }'
}

# run NAME OVERRIDES...: trains; what it says is in NAME.log.
run() {
    local name="$1"
    shift
    if ! "$program" train recipe.toml --out "$name" "$@" >"$name.log" 2>&1; then
        echo "the run $name failed:"
        tail -n 20 "$name.log"
        failed=$((failed + 1))
        return 1
    fi
}

# official RUN RULESET: SUCCESS, or FAILED with the keys whose rules are broken.
official() {
    local said
    said="$("$python" -m mlperf_logging.compliance_checker --usage training --ruleset "$2" --log_output "$out/checker.log" \
        "$1/mlperf_compliance.log" 2>&1)"
    printf '%s\n' "$said" | sed -n 's/^INFO - SUCCESS$/SUCCESS/p; s/^ERROR - FAILED$/FAILED/p' | tail -n 1 | tr '\n' ' '
    # What is neither progress nor verdict: the rules that are broken.
    printf '%s\n' "$said" | grep -v '^INFO -\|^ERROR - FAILED$\|^\*\* Logging output' |
        sed 's/.*checks for \([a-z_0-9]*\) .*/\1/' | sort -u | tr '\n' ' '
}

# judged RUN WANTED: the official verdict in each round, and ours.
judged() {
    local ruleset ours
    for ruleset in 4.0.0 4.1.0 5.0.0; do
        expect "$1 by the rules of $ruleset" "$2 " "$(official "$1" "$ruleset")"
        if "$program" mlperf check "$1" --ruleset "$ruleset" >"$1.check" 2>&1; then ours=SUCCESS; else ours=FAILED; fi
        expect "$1 by the rules of $ruleset, calotype mlperf check" "${2%% *}" "$ours"
    done
}

hook="hooks.benchmark={ every = 16, figures = [$(printf '%s\n' "$published" | figures 16)] }"
run published "$hook" && judged published SUCCESS

missed="$(printf '%s\n' "$published" | head -n 3)"
hook_missed="hooks.benchmark={ every = 16, figures = [$(printf '%s\n' "$missed" | figures 16)] }"
run missed "$hook_missed" && judged missed "FAILED aggregated_eval_accuracy"
run own_targets "$hook_missed" 'mlperf.targets={ fid = 120.0, clip = 0.12 }' && judged own_targets "FAILED aggregated_eval_accuracy"
expect "own_targets ended at its targets" 1 "$(grep -c '"run_stop".*"success"' own_targets/mlperf_compliance.log)"

# Kept checkpoints, evaluated after training.
if run offline run.keep_checkpoints=10; then
    printf '%s\n' "$published" | scores 16 >scores.jsonl
    "$program" mlperf finish offline --scores scores.jsonl >finish.log 2>&1
    expect "mlperf finish" 0 "$?"
    judged offline SUCCESS
fi

# Killed between two steps that nothing announces, then continued.
"$program" train recipe.toml --out killed "$hook" >killed.log 2>&1 &
pid=$!
while kill -0 "$pid" 2>/dev/null && ! grep -qs '"eval_stop"' killed/mlperf_compliance.log; do sleep 0.01; done
kill -9 "$pid" 2>/dev/null
wait "$pid" 2>/dev/null
run killed "$hook" && judged killed SUCCESS
# keys LOG: the log without times and places.
keys() {
    sed 's/"time_ms": [0-9]*, //; s/"file": "[^"]*", "lineno": [0-9]*,\{0,1\}//' "$1/mlperf_compliance.log"
}
expect "lines by which a killed run's log differs from an uninterrupted one's" 0 "$(diff <(keys published) <(keys killed) | grep -c '^[<>]')"

# It judges itself, and is not handed anything.
if "$program" train "$judging" --out itself run.samples=1024 mlperf.enabled=true mlperf.org=Calotype mlperf.platform=mini >itself.log 2>&1; then
    judged itself "FAILED aggregated_eval_accuracy"
    expect "evaluations of itself" 2 "$(grep -c '"eval_stop"' itself/mlperf_compliance.log)"
else
    expect "the run that judges itself" 0 "$(tail -n 5 itself.log)"
fi

# Ten runs, each with a seed of its own.
length=(run.samples=96 "$hook") bypass=(--bypass-rcp)
if [ "$full" = yes ]; then
    every=512000 bypass=()
    # What is learned does not matter, and batches of 512 have to be quick.
    smallest=('model.block_out_channels=[8, 8]' 'model.head_channels=[8, 8]' model.layers_per_block=1 'model.attention_levels=[false, false]'
        model.norm_groups=4 model.transformer_norm_groups=4)
    length=("${smallest[@]}" run.samples=3072000 run.batch_size=512 run.log_every=51200 run.checkpoint_every=512000
        "hooks.benchmark={ figures = [$(printf '%s\n' "$published" | figures "$every")] }")
fi
runs=()
for seed in 0 1 2 3 4 5 6 7 8 9; do
    run "seed-$seed" "run.seed=$seed" "${length[@]}" && runs+=("seed-$seed")
done
"$program" mlperf package "${runs[@]}" --out submission --ruleset 5.0.0 "${bypass[@]}" >package.log 2>&1
expect "mlperf package" 0 "$?"
for ruleset in 4.0.0 4.1.0 5.0.0; do
    expect "ten runs by the rules of $ruleset" pass "$("$python" "$golden" --tree submission "$ruleset" "${bypass[@]}")"
    if "$program" mlperf check submission --ruleset "$ruleset" "${bypass[@]}" >submission.check 2>&1; then ours=pass; else ours=fail; fi
    expect "ten runs by the rules of $ruleset, calotype mlperf check" pass "$ours"
done
if [ "$full" = no ]; then
    expect "ten short runs without the bypass" fail "$("$python" "$golden" --tree submission 5.0.0)"
fi

if [ "$failed" -eq 0 ]; then result=ok; else result=FAILED; fi
echo "test result: $result. $passed passed; $failed failed"
[ "$failed" -eq 0 ]
