#!/usr/bin/env bash
# Times Calotype and its peers (PyTorch, OpenVINO) on the same UNets, ViTs and CLIPs, in turn on the same cores, and prints their
# ratios as a Markdown table with the date and the processor.
#
#   scripts/compare-peers.sh [--family sd1|sd2|sdxl|tiny|vit-SIZE|clip-SIZE] [--modes forward,train] [--resolution N] [--batch N]
#                            [--engines NAME,NAME] [--rounds N] [--threads N] [--out FILE]
#
# Sizes are those of `calotype bench vit` and `bench clip`: --family vit-b16, --family clip-l14; --family vit and --family clip take the
# usual ones. Forward is of CLIP the image tower's. sdxl is of 1024 pixels with guidance, and in 8 bits, too; it is measured only when it
# is named, for its peers take 24 GB of memory. Without --resolution and --batch: the usual shapes of the families. Every measurement is appended to FILE as a line of
# JSON (default: a temporary file). A round runs ours, then each peer once; the table has medians over the rounds.
#
# CALOTYPE_PEER_PYTHON names a Python that has torch, diffusers and openvino; without it one is made in target/peers (several
# GB of downloads). CALOTYPE_BIN names a calotype to take instead of building one.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
    echo "error: $*" >&2
    exit 2
}

family="" modes="forward,train" resolution="" batch="" engines="" rounds=2 threads="$(nproc)" out=""
while [ $# -gt 0 ]; do
    case "$1" in
        --family | --modes | --resolution | --batch | --engines | --rounds | --threads | --out)
            [ $# -ge 2 ] || die "$1 needs a value"
            printf -v "${1#--}" '%s' "$2"
            shift 2
            ;;
        -h | --help)
            sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
            exit 0
            ;;
        *) die "unknown argument $1; --help shows all" ;;
    esac
done

python="$(scripts/peer-python.sh)"
"$python" -c 'import torch, diffusers' || die "$python lacks torch or diffusers"

calotype="${CALOTYPE_BIN:-}"
if [ -z "$calotype" ]; then
    cargo build --release -p calotype >&2
    calotype="${CARGO_TARGET_DIR:-target}/release/calotype"
fi

# Family, resolution, batch, mode, iterations.
usual="sd2 512 1 forward 8
sd2 512 1 train 6
sd1 512 1 forward 8
sd1 512 1 train 6
sd2 256 4 train 6
tiny 256 1 forward 40
tiny 256 1 train 20
vit-b16 224 1 forward 20
vit-b16 224 16 forward 8
vit-b16 224 16 train 6
clip-l14 224 1 forward 12
clip-l14 224 16 forward 6
clip-b32 224 64 train 6"
if [ "$family" = sdxl ]; then usual="sdxl 1024 2 forward 3"; fi
if [ -n "$resolution$batch" ]; then
    family="${family:-sd2}"
    iterations=8 pixels=512
    if [ "$family" = tiny ]; then iterations=40; fi
    case "$family" in
        vit | clip) die "--batch needs a size: --family $family-b16" ;;
        vit-* | clip-*)
            pixels=224
            [ "${resolution:-224}" = 224 ] || die "ViT and CLIP are measured on images of 224 pixels"
            ;;
    esac
    usual="$(for mode in forward train; do
        echo "$family ${resolution:-$pixels} ${batch:-1} $mode $iterations"
    done)"
fi

# Whether a row is of the family that is asked for.
wanted() {
    [ -z "$family" ] || [ "$family" = "$1" ] || [ "$family" = "${1%%-*}" ]
}

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
out="${out:-$work/measurements.jsonl}"
touch "$out"
before="$(wc -l <"$out")"
failures=0

# Processor seconds of everything on this machine (user, nice, system, interrupts, stolen), where Linux tells.
all_seconds() {
    if [ -r /proc/stat ]; then
        awk -v hz="$(getconf CLK_TCK)" '/^cpu / { print ($2 + $3 + $4 + $7 + $8 + $9) / hz }' /proc/stat
    fi
}

# Processor seconds of the commands that this script has run. Not in a subshell, which has none of its own.
own_seconds() {
    times >"$work/times"
    awk 'NR == 2 { for (i = 1; i <= 2; i++) { split($i, part, "[ms]"); sum += 60 * part[1] + part[2] } print sum }' \
        "$work/times" >"$work/own"
}

# measured COMMAND...: appends what it prints to the measurements, and says so where it fails or has not been alone.
most_of_others=0
measured() {
    local all own begin others
    echo "+ $*" >&2
    own_seconds
    own="$(cat "$work/own")" all="$(all_seconds)" begin="$(date +%s.%N)"
    if ! "$@" >>"$out"; then
        echo "FAILED: $*" >&2
        failures=$((failures + 1))
    fi
    own_seconds
    if [ -n "$all" ]; then
        others="$(echo "$all $(all_seconds) $own $(cat "$work/own") $begin $(date +%s.%N)" |
            awk -v cores="$(nproc)" '{ printf "%d", 100 * ($2 - $1 - $4 + $3) / ($6 - $5) / cores }')"
        if [ "$others" -ge 5 ]; then echo "warning: other programs took $others % of the processor meanwhile" >&2; fi
        if [ "$others" -gt "$most_of_others" ]; then most_of_others="$others"; fi
    fi
}

ran=0
while read -r name pixels images mode iterations; do
    wanted "$name" || continue
    if [[ ",$modes," != *",$mode,"* ]]; then continue; fi
    ran=$((ran + 1))
    peers="${engines:-bf16,autocast}"
    if [ -z "$engines" ] && [ "$mode" = forward ]; then peers=bf16,autocast,compiled,openvino; fi
    if [ -z "$engines" ] && [ "$name" = sdxl ]; then peers=compiled,openvino,openvino-int8; fi
    common=(--batch "$images" --mode "$mode" --iterations "$iterations" --threads "$threads")
    case "$name" in
        vit-* | clip-*)
            kind="${name%%-*}"
            if [ -z "$engines" ] && [ "$mode" = train ]; then peers=autocast,autocast-compiled; fi
            ours=("$calotype" bench "$kind" --json --model "${name#*-}")
            theirs=(scripts/peer_vision.py --network "$kind" --model "${name#*-}")
            ;;
        *)
            shape=(--family "$name" --resolution "$pixels")
            ours=("$calotype" bench unet --json "${shape[@]}")
            theirs=(scripts/peer_unet.py "${shape[@]}")
            ;;
    esac
    for ((round = 0; round < rounds; round++)); do
        measured "${ours[@]}" --precision bf16 "${common[@]}" </dev/null
        if [ "$name" = sdxl ]; then measured "${ours[@]}" --precision int8 "${common[@]}" </dev/null; fi
        for engine in ${peers//,/ }; do
            measured "$python" "${theirs[@]}" --engines "$engine" "${common[@]}" </dev/null
        done
    done
done <<<"$usual"
[ "$ran" -gt 0 ] || die "nothing to run: there is no family \`$family\` with modes \`$modes\`"

tail -n "+$((before + 1))" "$out" | "$python" -c '
import datetime, json, platform, statistics, sys

TITLES = {"bf16": "PyTorch bf16", "autocast": "PyTorch autocast", "compiled": "PyTorch compiled", "f32": "PyTorch f32",
          "autocast-compiled": "PyTorch autocast, compiled", "openvino": "OpenVINO", "openvino-int8": "OpenVINO, NNCF int8",
          "calotype int8": "Calotype int8"}

def processor():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

cases, engines, threads = {}, [], None
for line in sys.stdin:
    row = json.loads(line)
    family = " ".join(row[name] for name in ("family", "model") if name in row)
    key = family, row["resolution"], row["batch"], row["mode"]
    engine = row["engine"] + (" int8" if row.get("precision") == "int8" else "")
    cases.setdefault(key, {}).setdefault(engine, []).append(row)
    threads = row["threads"]
    if engine != "calotype" and engine not in engines:
        engines.append(engine)

print(f"{datetime.date.today()}, {processor()}, {threads} threads. Seconds, and how many times as long as Calotype.")
print()
print("| network | pass | Calotype bf16 | " + " | ".join(TITLES.get(e, e) for e in engines) + " | fastest peer / Calotype |")
print("|---|---|---" + "|---" * len(engines) + "|---|")
for (family, resolution, batch, mode), rows in cases.items():
    seconds = {engine: statistics.median(row["seconds"] for row in of) for engine, of in rows.items()}
    ours = seconds.pop("calotype", None)
    def cell(value):
        if value is None:
            return "–"
        ratio = f" ({value / ours:.2f}x)" if ours else ""
        return f"{value:#.4g}{ratio}"
    fastest = min((taken for engine, taken in seconds.items() if engine != "calotype int8"), default=None)
    last = f"**{fastest / ours:.2f}x**" if ours and fastest else "–"
    cells = [f"{family} {resolution}x{resolution}, batch {batch}", mode, f"{ours:#.4g}" if ours else "–"]
    print("| " + " | ".join(cells + [cell(seconds.get(engine)) for engine in engines] + [last]) + " |")
'
if [ "$most_of_others" -ge 5 ]; then
    echo
    echo "Other programs took up to $most_of_others % of the processor during a measurement: not for publication."
fi
if [ "$failures" -gt 0 ]; then
    echo "$failures measurements failed and are not in the table" >&2
    exit 1
fi
