#!/usr/bin/env bash
# Kills training at random moments, some of them inside a save, and compares what comes out with an undisturbed run, bit by bit.
#
#   scripts/kills.sh [--kills N] [--seed N]
#       N kills (20 by default) of a run of one process, and N of a run of two, of which one or both are killed; then a full
#       disk and a folder without write rights, which must cost nothing
#
# Takes about ten minutes on two cores. The full disk is a small file system in memory, which root may mount.
# CALOTYPE_BIN as in compare-peers.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

kills=20
RANDOM=17
while [ $# -gt 0 ]; do
    case "$1" in
        --kills) kills="$2" && shift 2 ;;
        --seed) RANDOM="$2" && shift 2 ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
        *) echo "error: $1 is no option; see --help" >&2 && exit 2 ;;
    esac
done
calotype="${CALOTYPE_BIN:-}"
unset CALOTYPE_BIN
if [ -z "$calotype" ]; then
    cargo build --release --workspace >&2
    calotype="${CARGO_TARGET_DIR:-target}/release/calotype"
fi
work="$(mktemp -d)"
mounted=""
pids=()
clean() {
    if [ "${#pids[@]}" -gt 0 ]; then kill -9 "${pids[@]}" 2>/dev/null || true; fi
    if [ -n "$mounted" ]; then umount "$mounted"; fi
    rm -rf "$work"
}
trap clean EXIT

passed=0
failed=0
# verdict NAME COMMAND...: counts whether the command holds.
verdict() {
    local name="$1"
    shift
    if "$@"; then
        echo "good    $name"
        passed=$((passed + 1))
    else
        echo "FAILED  $name"
        failed=$((failed + 1))
    fi
}

settings=(run.samples=4000 run.seed=3 run.checkpoint_every=96 run.log_every=96 data.threads=1)
# train OUT [KEY=VALUE...]: the arguments of a training on the quickstart's dataset.
train() {
    local out="$1"
    shift
    words=(train training/stable_diffusion/quickstart_smoke "data.path=$work/quickstart/precache" "${settings[@]}" --out "$out" "$@")
}

# start RANKS OUT: starts a run in the background; its processes are in pids.
start() {
    local ranks="$1" rank port
    train "$2" "${@:3}"
    pids=()
    port=$((20000 + RANDOM % 20000))
    for rank in $(seq 0 $((ranks - 1))); do
        if [ "$ranks" -eq 1 ]; then
            "$calotype" "${words[@]}" >"$work/log.$rank" 2>&1 &
        else
            CALOTYPE_RANK="$rank" CALOTYPE_WORLD_SIZE="$ranks" CALOTYPE_LOCAL_RANK="$rank" CALOTYPE_LOCAL_SIZE="$ranks" \
                CALOTYPE_RENDEZVOUS="127.0.0.1:$port" \
                "$calotype" "${words[@]}" --threads 1 >"$work/log.$rank" 2>&1 &
        fi
        pids+=($!)
    done
}

# finished: waits for all processes; whether all ended well.
finished() {
    local pid good=0
    for pid in "${pids[@]}"; do wait "$pid" || good=1; done
    pids=()
    return "$good"
}

# without_clock RUN: its logs without what depends on the clock.
without_clock() {
    sed -E 's/"(seconds|images_per_second[a-z_]*|data_wait|tflops|communication_[a-z_]*)":[^,}]*//g' "$1/metrics.jsonl"
}

# same RUN OTHER: whether two finished runs have the same weights, optimizer state and numbers in their logs.
same() {
    local file newest
    newest="$(cd "$2/checkpoints" && ls -d checkpoint-* | sort | tail -1)"
    for file in model/unet/diffusion_pytorch_model.safetensors "checkpoints/$newest/tensors.safetensors"; do
        cmp "$1/$file" "$2/$file" || return 1
    done
    cmp <(without_clock "$1") <(without_clock "$2")
}

# kill_once RANKS OUT: starts a run, kills it at a random moment or inside a save; whether it was killed before it was done.
kill_once() {
    local ranks="$1" out="$2" waited=0 victim
    start "$ranks" "$out"
    if [ $((RANDOM % 2)) -eq 0 ]; then
        # Inside a save: as soon as a folder in the making is seen.
        while [ "$waited" -lt 2000 ] && kill -0 "${pids[0]}" 2>/dev/null; do
            if compgen -G "$out/checkpoints/.partial-*" >/dev/null; then
                inside=$((inside + 1))
                break
            fi
            sleep 0.002
            waited=$((waited + 1))
        done
    else
        sleep "$((RANDOM % 4)).$((RANDOM % 10))"
    fi
    if ! kill -0 "${pids[0]}" 2>/dev/null; then
        finished
        return 1
    fi
    if [ "$ranks" -gt 1 ] && [ $((RANDOM % 2)) -eq 0 ]; then
        victim=$((RANDOM % ranks))
        kill -9 "${pids[$victim]}" 2>/dev/null
        # The others must end by themselves.
        finished && echo "a run went on without one of its processes" && return 2
    else
        kill -9 "${pids[@]}" 2>/dev/null
        finished || true
    fi
    return 0
}

# killed RANKS: kills runs until the number is reached, finishes each after four kills and compares it.
killed() {
    local ranks="$1" done=0 run=0 round out
    inside=0
    while [ "$done" -lt "$kills" ]; do
        run=$((run + 1))
        out="$work/killed-$ranks-$run"
        for round in 1 2 3 4; do
            kill_once "$ranks" "$out" || break
            done=$((done + 1))
            [ "$done" -lt "$kills" ] || break
        done
        if [ ! -f "$out/result.json" ]; then
            start "$ranks" "$out"
            finished || { tail -n 5 "$work"/log.* && return 1; }
        fi
        same "$out" "$work/undisturbed-$ranks" || return 1
        rm -rf "$out"
    done
    echo "        $done kills of $ranks process(es), $inside inside a save, $run runs compared"
}

# full_disk SIZE: the disk, of SIZE MiB, is filled while a run goes; it stops, and goes on to the same bits once there is room again.
full_disk() {
    local out="$work/full/run"
    mkdir "$work/full"
    mount -t tmpfs -o "size=${1}m" tmpfs "$work/full" || { echo "a file system of its own needs root" && return 1; }
    mounted="$work/full"
    start 1 "$out"
    until compgen -G "$out/checkpoints/checkpoint-*" >/dev/null || ! kill -0 "${pids[0]}" 2>/dev/null; do sleep 0.01; done
    dd if=/dev/zero of="$work/full/filler" bs=1M >/dev/null 2>&1 || true
    if finished; then echo "the disk was never full" && return 1; fi
    grep -q "no space left on the disk\|free; free some" "$work/log.0" || { cat "$work/log.0" && return 1; }
    compgen -G "$out/checkpoints/checkpoint-*" >/dev/null || { echo "no checkpoint was kept" && return 1; }
    rm "$work/full/filler"
    start 1 "$out"
    finished || { cat "$work/log.0" && return 1; }
    same "$out" "$work/undisturbed-1" || return 1
    umount "$work/full"
    mounted=""
}

# A folder that cannot be written to is refused, and what is in it stays.
read_only() {
    local out="$work/readonly" before
    cp -r "$work/undisturbed-1" "$out"
    rm -r "$out/model" "$out/result.json"
    mount --bind "$out" "$out" && mounted="$out" && mount -o remount,ro,bind "$out" || return 1
    before="$(find "$out" -type f -exec sha256sum {} + | sort | sha256sum)"
    start 1 "$out"
    if finished; then echo "a run went on in a folder that cannot be written to" && return 1; fi
    grep -qi "read-only\|permission\|written" "$work/log.0" || { cat "$work/log.0" && return 1; }
    umount "$out"
    mounted=""
    [ "$before" = "$(find "$out" -type f -exec sha256sum {} + | sort | sha256sum)" ]
}

# The shell's own lines on processes that were killed.
exec 2>"$work/shell.log"
echo "preparing a dataset and undisturbed runs"
"$calotype" quickstart --preset smoke --out "$work/quickstart" >"$work/log.0" 2>&1 || { tail -n 5 "$work/log.0" && exit 1; }
for ranks in 1 2; do
    start "$ranks" "$work/undisturbed-$ranks"
    finished || { tail -n 5 "$work"/log.* && exit 1; }
done
verdict "kills of one process" killed 1
verdict "kills of two processes" killed 2
saved=("$work"/undisturbed-1/checkpoints/checkpoint-*)
checkpoint="$(du -sm "${saved[0]}" | cut -f 1)"
verdict "a full disk" full_disk $((checkpoint * 6))
verdict "a folder without write rights" read_only
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
