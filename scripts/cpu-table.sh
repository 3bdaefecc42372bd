#!/usr/bin/env bash
# Measures how long pictures of full-size models take on this CPU, and how much memory, and prints the table of
# docs/benchmarks.md: in bf16, with cached blocks, in few steps, and in INT8 where a quantized checkpoint is given.
#
#   scripts/cpu-table.sh --model sd1=DIR --model sd2=DIR --model sdxl=DIR [--int8 sd2=DIR] [--rows NAME,NAME] [--steps N]
#                        [--short N] [--quickstart DIR] [--threads N] [--out FILE]
#
# Each row is one `calotype generate`, whose command is printed below the table. Seconds are those of prompts, sampling and
# decoding, without reading the weights; memory is the process's largest. Weights may be random: neither depends on them.
# --steps is what a picture takes without a student of few steps (default 20). --short N measures N steps of each row only,
# and counts the others as long: for hours that nobody has.
# --quickstart DIR names the folder of a finished quickstart, whose trained UNet says what cached blocks cost in quality;
# students of few steps have figures of their own with their authors alone, for their weights are not here.
# Measurements are appended to FILE as lines of JSON (default: a temporary file).
#
# CALOTYPE_BIN names a calotype to take instead of building one.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
    -h | --help)
        sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
        exit 0
        ;;
esac

calotype="${CALOTYPE_BIN:-}"
if [ -z "$calotype" ]; then
    cargo build --release --locked
    calotype="${CARGO_TARGET_DIR:-target}/release/calotype"
fi
exec python3 scripts/cpu_table.py --calotype "$calotype" "$@"
