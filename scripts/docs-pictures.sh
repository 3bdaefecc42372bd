#!/usr/bin/env bash
# Makes the pictures of docs/evaluation.md again. Needs chromium and Python with Pillow.
#
#   scripts/docs-pictures.sh            of the example of crate evaluate, whose figures are made up
#   scripts/docs-pictures.sh FOLDER     of an evaluation (its report.html and fid_clip_plot.png)
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ $# -gt 0 ]; then
    cp "$1/report.html" "$work/report.html"
else
    cargo run --release --quiet -p calotype-evaluate --example report "$work"
    cp "$work/training/convergence_clip.svg" docs/convergence_clip.svg
fi
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --user-data-dir="$work/chromium" --window-size=1200,880 \
    --screenshot="$work/report.png" "file://$work/report.html" 2> /dev/null
# 128 colours are enough for a page, and a third of the size.
python3 - "$work/report.png" docs/evaluation_report.png << 'PYTHON'
import sys
from PIL import Image
Image.open(sys.argv[1]).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(sys.argv[2], optimize=True)
PYTHON
for file in docs/evaluation_report.png docs/convergence_clip.svg; do
    [ "$(stat -c %s "$file")" -lt 150000 ] || { echo "$file: larger than 150 kB" >&2; exit 1; }
done
