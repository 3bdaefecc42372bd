#!/usr/bin/env bash
# Runs MLPerf Inference's benchmark of Stable Diffusion XL through MLCommons' LoadGen, on a tiny checkpoint of random weights: 50 samples
# in every scenario, for speed and for accuracy. Then LoadGen against systems that fail, answer twice or are slow, and runs of several
# processes of which one is killed, falls silent or is stopped.
#
#   scripts/mlperf-inference.sh [--profile NAME]
#
# Fetches LoadGen (scripts/loadgen.sh) and builds `calotype` and the program `drive` of crates/loadgen with the feature loadgen, in the
# release profile unless another is named; CALOTYPE_FEATURES names more features. With Open MPI's mpirun, processes are started by it,
# too. Ends with 1 if anything is not as it should be.
set -uo pipefail
cd "$(dirname "$0")/.."

profile=release
while [ $# -gt 0 ]; do
    case "$1" in
        --profile) profile="${2:?--profile takes a name}" && shift ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
        *) echo "error: $1 is no option; see scripts/mlperf-inference.sh --help" >&2 && exit 2 ;;
    esac
    shift
done
exports="$(scripts/loadgen.sh)" || exit 2
eval "$exports"
features="calotype/loadgen,calotype-loadgen/official${CALOTYPE_FEATURES:+,$CALOTYPE_FEATURES}"
cargo build --profile "$profile" --workspace --features "$features" --bins --example ranks --example drive || exit 2
folder="$profile"
if [ "$profile" = dev ]; then folder=debug; fi
target="$(realpath "${CARGO_TARGET_DIR:-target}")/$folder"
drive="$target/examples/drive" calotype="$target/calotype"

work="$(mktemp -d)"
workers=()
# end PID: whatever state it is in, without the shell's word.
end() {
    kill -CONT "$1" && kill -9 "$1" && wait "$1"
} 2>/dev/null
cleanup() {
    for pid in "${workers[@]}"; do
        end "$pid"
    done
    rm -rf "$work"
}
trap cleanup EXIT
cd "$work" || exit 2
passed=0 failures=0

good() {
    echo "good: $1"
    passed=$((passed + 1))
}

wrong() {
    echo "FAILED: $1"
    sed 's/^/    /' "$work/out" 2>/dev/null
    failures=$((failures + 1))
}

# says TEXT...: whether all of them stand in what was said last.
says() {
    local text
    for text in "$@"; do
        if ! grep -qF -- "$text" "$work/out"; then
            echo "there is no: $text"
            return 1
        fi
    done
}

# check WHAT COMMAND...: counts it.
check() {
    local what="$1"
    shift
    if "$@"; then good "$what"; else wrong "$what"; fi
}

awk 'BEGIN {
    print "id\timage_id\tcaption"
    split("red blue old small wet", look, " "); split("cat boat bench kite clock", thing, " ")
    for (i = 0; i < 50; i++) printf "%d\t%d\tA %s %s, number %d.\n", i + 1, 100 + i, look[i % 5 + 1], thing[int(i / 5) % 5 + 1], i
}' >captions.tsv
# Of so few queries, a 99th percentile says nothing, as LoadGen finds, too (early stopping).
cat >user.conf <<'END'
*.*.min_duration = 0
*.Offline.min_query_count = 50
*.Server.min_query_count = 50
*.Server.target_latency_percentile = 80
*.Server.target_qps = 10
*.SingleStream.min_query_count = 50
*.SingleStream.target_latency_percentile = 80
*.MultiStream.min_query_count = 12
*.MultiStream.target_latency_percentile = 50
END
mini=(--recipe inference/sdxl/mlperf_mini --captions captions.tsv --user-conf user.conf --threads 1)
sdxl() { timeout 300 "$calotype" mlperf inference sdxl "$@" >"$work/out" 2>&1; }

logs_there() {
    local name
    for name in summary.txt detail.txt accuracy.json trace.json; do
        [ -f "$1/mlperf_log_$name" ] || { echo "there is no $1/mlperf_log_$name" && return 1; }
    done
}

# entries FOLDER: samples of its accuracy log, and how many are different.
entries() {
    local log="$1/mlperf_log_accuracy.json"
    echo "$(grep -c '"seq_id"' "$log") $(grep -o '"qsl_idx" : [0-9]*' "$log" | sort -u | wc -l)"
}

# pictures FOLDER: a hash of them, whatever their order.
pictures() {
    grep -o '"qsl_idx".*"' "$1/mlperf_log_accuracy.json" | sort -u | sha256sum
}

performance() {
    local scenario="$1" logs="runs/$1/performance/run_1"
    sdxl "${mini[@]}" --scenario "$scenario" --out runs || return 1
    says "result       VALID" "unofficial   a least duration of 0 ms; the benchmark's is 600000 ms" "unofficial   the model has random weights" \
        "unofficial   pictures have 64x64 pixels" "unofficial   2 steps" "No errors encountered during test." &&
        logs_there "$logs" && grep -qx 'Result is : VALID' "$logs/mlperf_log_summary.txt" &&
        [ "$(entries "$logs")" = "0 0" ] && [ -s "runs/$scenario/user.conf" ] && grep -q '"unofficial"' "runs/$scenario/summary.json" &&
        grep -q "least duration of 0 ms" "runs/$scenario/summary.txt" && ! ls runs/"$scenario"/unfinished* 2>/dev/null
}

accuracy() {
    local scenario="$1" logs="runs/$1/accuracy" data
    sdxl "${mini[@]}" --scenario "$scenario" --accuracy --out runs || return 1
    data="$(grep -o '"data" : "[0-9A-F]*"' "$logs/mlperf_log_accuracy.json" | awk '{ print length($3) - 2 }' | sort -u)"
    # Two hexadecimal digits for each of 64x64 pixels of three levels. Queries of eight are filled up, and 50 is no multiple of it.
    case "$scenario $(entries "$logs")" in
        "multistream 5"[0-9]" 50" | "$scenario 50 50") ;;
        *) echo "entries and samples: $(entries "$logs")" && return 1 ;;
    esac
    logs_there "$logs" && [ "$data" = 24576 ] &&
        [ "$(pictures "$logs")" = "${first:=$(pictures "$logs")}" ]
}

for scenario in offline server singlestream multistream; do
    check "$scenario, performance" performance "$scenario"
    grep -m 1 '^figure' out
    check "$scenario, accuracy: 50 samples, and the same pictures as in the others" accuracy "$scenario"
done

batches() {
    sdxl "${mini[@]}" --scenario offline --accuracy --batch 4 serve.decode_batch=2 serve.workers=2 --out batched || return 1
    [ "$(pictures batched/offline/accuracy)" = "$first" ]
}
check "batches of 4 by two threads: the same pictures" batches

# refused CODE TEXT COMMAND...: ends with the code and says why.
refused() {
    local code="$1" text="$2" found
    shift 2
    "$@"
    found=$?
    [ "$found" -eq "$code" ] && says "$text"
}
check "a run that is there is not replaced" refused 2 "replace it with --replace" sdxl "${mini[@]}" --scenario offline --out runs
check "unless that is asked for" sdxl "${mini[@]}" --scenario offline --out runs --replace
commands() { [ "$(grep -c '"[^"]*calotype mlperf inference sdxl' runs/run.json)" -eq 16 ]; }
check "the folder knows the commands of its runs" commands
check "other settings need another folder" refused 2 "drawing.steps is 2 there, and 3 now" sdxl "${mini[@]}" --scenario offline --steps 3 --out runs --replace
short=(--recipe inference/sdxl/scc24_base_mini --scenario offline --threads 1)
check "the Student Cluster Competition's base variant" sdxl "${short[@]}" --out scc
check "which is said" says "the variant scc24-base takes 50 of 5000 samples" "samples      50 in"
seeds() { grep -q '"effective_qsl_rng_seed", "value": 3066443479025735752' scc/offline/performance/run_1/mlperf_log_detail.txt; }
check "with the seeds of its round" seeds
check "the peak of the server scenario" sdxl "${mini[@]}" --scenario server --find-peak --qps 5 --time 1 --max-latency 0.5 --out runs
check "which is no result" says "unofficial   a search for the peak is no result"

# LoadGen against a system that only waits.

# drives CODE SECONDS SCENARIO MODE HOW [SECONDS] -- TEXT...
drives() {
    local code="$1" most="$2" out="$work/driven" begun=$SECONDS found
    shift 2
    local arguments=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do arguments+=("$1") && shift; done
    [ $# -gt 0 ] && shift
    rm -rf "$out" && mkdir "$out"
    timeout 60 "$drive" "$out" "${arguments[0]}" "${arguments[1]}" drive.conf "${arguments[@]:2}" >"$work/out" 2>&1
    found=$?
    [ "$found" -eq "$code" ] && [ $((SECONDS - begun)) -le "$most" ] && says "$@"
}
for scenario in SingleStream MultiStream Server Offline; do
    # The values that LoadGen reads are compared with ours before it runs.
    for line in "*.$scenario.min_query_count = 24" "*.*.min_query_count = 24" "stable-diffusion-xl.*.min_query_count = 24" \
        "stable-diffusion-xl.$scenario.min_query_count = 24"; do
        printf '%s\n*.*.min_duration = 0\n*.*.target_qps = 500\n*.Server.target_latency_percentile = 50\n' "$line" >drive.conf
        check "$scenario with $line" drives 0 20 "$scenario" performance good 0.0001 -- "LoadGen 6.0.17" "again: true"
    done
    check "$scenario, each sample answered twice" drives 0 20 "$scenario" performance twice 0.0001 -- "refused: sample"
    quiet() { grep -q 'No errors encountered' driven/mlperf_log_summary.txt; }
    check "of which LoadGen sees nothing" quiet
    check "$scenario, a sample fails" drives 1 10 "$scenario" performance fail 0.001 -- "error: sample"
    check "$scenario, accuracy, a sample fails" drives 1 10 "$scenario" accuracy fail 0.001 -- "error: sample"
    check "$scenario, the system panics" drives 1 10 "$scenario" performance panic -- "error: the system under test panicked"
done
backwards() { drives 0 20 Offline accuracy reverse 0.0001 && [ "$(entries driven)" = "24 24" ] && head -2 driven/mlperf_log_accuracy.json | grep -q '"seq_id" : 23'; }
check "answers in any order are logged as they come" backwards
printf '*.Server.target_qps = 0.02\n*.Server.min_duration = 0\n*.Server.min_query_count = 24\n' >drive.conf
check "LoadGen waits for its schedule longer than it is waited for" drives 1 15 Server performance fail-first 0.001 -- "was left behind"

# Several processes.

# with_worker PORT: starts one that listens, and waits until it does.
with_worker() {
    : >"worker-$1.log"
    "$calotype" mlperf inference worker --listen "127.0.0.1:$1" "${many[@]:0:4}" --threads 1 --out "worker-$1" >"worker-$1.log" 2>&1 &
    workers+=($!)
    until grep -q 'listening' "worker-$1.log"; do
        kill -0 "${workers[-1]}" 2>/dev/null || return 1
        sleep 0.05
    done
}
# Runs of some seconds, so that what happens in their midst happens in their midst on a fast machine, too; and one of minutes.
many=(--recipe inference/sdxl/scc24_main_mini --steps 24 --scenario offline --threads 1)
endless=(--recipe inference/sdxl/scc24_main_mini --steps 999 --scenario offline --threads 1)
port=$((20000 + $$ % 10000))

# together PROCESSES OUT ARGUMENT...: a run with a worker that listens, which another command may disturb ($disturb, with its process).
disturb=true
together() {
    local out="$1" code job
    shift
    with_worker "$port" || return 1
    timeout 120 "$calotype" mlperf inference sdxl "${many[@]}" --workers "127.0.0.1:$port" --out "$out" "$@" >"$work/out" 2>&1 &
    job=$!
    until grep -q 'begins' "$work/out"; do
        kill -0 "$job" 2>/dev/null || break
        sleep 0.02
    done
    sleep 0.5
    $disturb "${workers[-1]}" "$job"
    wait "$job"
    code=$?
    end "${workers[-1]}"
    port=$((port + 1))
    return "$code"
}
kill_worker() { kill -9 "$1"; }
stop_worker() { kill -STOP "$1"; }
stop_head() { kill -TERM "$(pgrep -P "$2" || echo "$2")"; }

whole() { together two && says "drawn        by 2 processes" "samples      500 in" "result       VALID"; }
check "two processes" whole
disturb=kill_worker
resent() { together killed && says "samples      500 in" "result       VALID" "resent"; }
check "a worker that is killed: its samples are drawn by the other process" resent
fails() { ! together killed-fail processes.lost_worker=fail && [ "$(grep -c '^error' out)" -eq 1 ] && says "is lost" && [ -s killed-fail/offline/unfinished_performance/failure.txt ] && [ ! -e killed-fail/offline/performance ]; }
check "or the run fails with one message, and its logs stay apart" fails
disturb=stop_worker
silent() { together silent processes.silence_seconds=2 && says "samples      500 in" "resent"; }
check "a worker that falls silent" silent
disturb=stop_head
stopped() { together stopped; [ $? -eq 130 ] && says "counts for nothing"; }
check "a run that is asked to stop" stopped

# By variables of a launcher, and by mpirun.
ranks() {
    local launch=(env CALOTYPE_WORLD_SIZE=3 CALOTYPE_LOCAL_SIZE=3 "CALOTYPE_RENDEZVOUS=127.0.0.1:$port") rank
    for rank in 1 2; do
        "${launch[@]}" CALOTYPE_RANK=$rank CALOTYPE_LOCAL_RANK=$rank "$calotype" mlperf inference sdxl "${short[@]}" --out ranks >"rank-$rank.log" 2>&1 &
        workers+=($!)
    done
    timeout 120 "${launch[@]}" CALOTYPE_RANK=0 CALOTYPE_LOCAL_RANK=0 "$calotype" mlperf inference sdxl "${short[@]}" --out ranks >"$work/out" 2>&1 &&
        says "drawn        by 3 processes" "samples      50 in" && wait "${workers[-1]}" && wait "${workers[-2]}" && [ ! -s rank-1.log ]
}
check "three processes of a launcher, of which one speaks" ranks
port=$((port + 1))
if command -v mpirun >/dev/null; then
    run=(mpirun --oversubscribe)
    if [ "$(id -u)" -eq 0 ]; then run+=(--allow-run-as-root); fi
    command -v ssh >/dev/null || run+=(--mca plm isolated)
    mpi() { timeout 120 "${run[@]}" "$@" >"$work/out" 2>&1; }
    by_mpirun() { mpi -np 3 "$calotype" mlperf inference sdxl "${short[@]}" --out mpirun && says "drawn        by 3 processes" "samples      50 in"; }
    check "three processes of mpirun" by_mpirun
    # The process of rank 2 kills itself while the others draw.
    cat >rank.sh <<END
#!/bin/sh
if [ "\$OMPI_COMM_WORLD_RANK" = 2 ]; then
    "$calotype" mlperf inference sdxl "\$@" & victim=\$!
    until [ -e began ]; do sleep 0.05; done
    kill -9 \$victim
    exit 1
fi
exec "$calotype" mlperf inference sdxl "\$@"
END
    chmod +x rank.sh
    # killed_of_mpi OUT FLAG... -- ARGUMENT...: the killing waits until the run has begun.
    killed_of_mpi() {
        local out="$1" job flags=()
        shift
        while [ "$1" != -- ]; do flags+=("$1") && shift; done
        shift
        rm -f began
        mpi -np 3 "${flags[@]}" ./rank.sh "$@" --out "$out" &
        job=$!
        until [ -d "$out/offline/unfinished_performance" ] || ! kill -0 "$job" 2>/dev/null; do sleep 0.05; done
        sleep 0.5
        touch began
        wait "$job"
    }
    recovered() { killed_of_mpi recovered --enable-recovery -- "${many[@]}"; says "samples      500 in" "result       VALID"; }
    check "a killed process of mpirun --enable-recovery: its samples are drawn by the others" recovered
    ended() {
        local code=0
        killed_of_mpi ended -- "${endless[@]}" || code=$?
        [ "$code" -ne 0 ] && [ "$code" -ne 124 ] && [ ! -e ended/offline/performance ]
    }
    check "without it mpirun ends all, and nothing hangs" ended
fi

if [ "$failures" -eq 0 ]; then result=ok; else result=FAILED; fi
echo "test result: $result. $passed passed; $failures failed"
[ "$failures" -eq 0 ]
