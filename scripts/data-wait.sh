#!/usr/bin/env bash
# How much of the steps' time each mini recipe waits for data: trains some steps of it and prints the share that its log has (`data_wait`),
# over all entries but the first, in which everything is read for the first time.
#
#   scripts/data-wait.sh [--steps N] [--threads N] [RECIPE…]
#
# Without recipes: all of recipes/training whose name ends with _mini. Ends with 1 where it is 2 % or more. CALOTYPE_BIN names a calotype
# to take instead of building one.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
    echo "error: $*" >&2
    exit 2
}

steps=64 threads="$(nproc)" recipes=()
while [ $# -gt 0 ]; do
    case "$1" in
        --steps | --threads)
            [ $# -ge 2 ] || die "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
        -*) die "unknown argument $1; --help shows all" ;;
        *) recipes+=("$1") ;;
    esac
    shift
done
calotype="${CALOTYPE_BIN:-}"
if [ -z "$calotype" ]; then
    cargo build --release --workspace >&2
    calotype="${CARGO_TARGET_DIR:-target}/release/calotype"
fi
if [ "${#recipes[@]}" -eq 0 ]; then
    mapfile -t recipes < <(cd recipes && find training -name '*_mini.toml' ! -name 'folder_*' | sort | sed 's/\.toml$//')
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
over=0
echo "| recipe | batch | seconds a step | waiting for data |"
echo "|---|---|---|---|"
for recipe in "${recipes[@]}"; do
    rm -rf "$work/run"
    batch="$("$calotype" recipes "$recipe" 2>/dev/null | sed -n '/^\[run\]/,/^\[/s/^batch_size = \([0-9]*\).*/\1/p')"
    [ -n "$batch" ] || die "calotype recipes $recipe tells no run.batch_size"
    # Evaluations and previews take time that is no step's.
    if ! "$calotype" train "$recipe" --out "$work/run" --threads "$threads" run.samples=$((steps * batch)) run.log_every=$((8 * batch)) \
        run.checkpoint_every=$((steps * batch)) >"$work/log" 2>&1; then
        tail -n 3 "$work/log" >&2
        die "$recipe failed"
    fi
    line="$(awk -v steps=8 -v recipe="$recipe" -v batch="$batch" '
        /"data_wait"/ {
            entry += 1
            match($0, /"seconds":[0-9.eE+-]+/); now = substr($0, RSTART + 10, RLENGTH - 10)
            match($0, /"data_wait":[0-9.eE+-]+/); share = substr($0, RSTART + 12, RLENGTH - 12)
            if (entry > 1) { taken += now - last; waited += share * (now - last); entries += 1 }
            last = now
        }
        END {
            share = (taken > 0) ? 100 * waited / taken : 100
            printf("| %s | %d | %.4f | %.2f %% |%s\n", recipe, batch, taken / (entries * steps), share, (share >= 2) ? " over" : "")
        }' "$work/run/metrics.jsonl")"
    echo "${line% over}"
    if [ "${line% over}" != "$line" ]; then over=$((over + 1)); fi
done
if [ "$over" -gt 0 ]; then
    echo "$over recipes wait for 2 % or more of their steps' time" >&2
    exit 1
fi
