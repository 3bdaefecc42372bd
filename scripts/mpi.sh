#!/usr/bin/env bash
# Runs processes under Open MPI's mpirun: sums that must have the same bits for 1, 2 and 4 of them, over MPI and over TCP, and runs of
# which one process dies, falls silent or gives up. Then `calotype train` with 1, 2 and 4 processes, which must end with the same
# bits, also where their number changes on the way or one is killed; and with processes that compute layers together, whose losses must
# be those of one process to 1e-5 and checkpoints to 1e-4.
#
#   scripts/mpi.sh [--bench] [--profile NAME]
#
# Installs Open MPI and libclang from Debian where they are missing, and builds the program `ranks` of crates/collective and
# `calotype` with the feature mpi, in the release profile unless another is named; CALOTYPE_FEATURES names more features, for builds that
# other scripts go on with. --bench measures instead: the rates of sums with 2
# processes, and training with two processes of one thread in turn with one of two threads: a UNet whose batches they share, and a
# ViT-L/16 whose layers they share. Ends with 1 if anything is not as it should be.
set -uo pipefail
cd "$(dirname "$0")/.."

bench=no profile=release
while [ $# -gt 0 ]; do
    case "$1" in
        --bench) bench=yes ;;
        --profile) profile="${2:-}" && shift ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0 ;;
        *) echo "error: $1 is no option; see scripts/mpi.sh --help" >&2 && exit 2 ;;
    esac
    shift
done

missing=()
command -v mpicc >/dev/null || missing+=(libopenmpi-dev)
command -v mpirun >/dev/null || missing+=(openmpi-bin)
# The crate `mpi` reads the library's header with it; libclang-cpp is another library.
{ ldconfig -p; ls /usr/lib/llvm-*/lib 2>/dev/null; } | grep -q 'libclang[-.0-9]*\.so' || missing+=(libclang-dev)
if [ "${#missing[@]}" -gt 0 ]; then
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
    $as_root apt-get update -q && $as_root apt-get install -y -q --no-install-recommends "${missing[@]}" || {
        echo "error: installing ${missing[*]} failed" >&2
        exit 2
    }
fi

# The whole workspace's features, so that no dependency is compiled again.
cargo build --profile "$profile" --workspace --features "calotype/mpi${CALOTYPE_FEATURES:+,$CALOTYPE_FEATURES}" --bins --example ranks ||
    exit 2
folder="$profile"
if [ "$profile" = dev ]; then folder=debug; fi
target="$(realpath "${CARGO_TARGET_DIR:-target}")/$folder"
ranks="$target/examples/ranks" calotype="$target/calotype"

run=(mpirun --oversubscribe)
if [ "$(id -u)" -eq 0 ]; then run+=(--allow-run-as-root); fi
# On one machine nothing is started by ssh, which may be missing.
command -v ssh >/dev/null || run+=(--mca plm isolated)
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
passed=0
failures=0

good() {
    echo "good: $1"
    passed=$((passed + 1))
}

wrong() {
    echo "FAILED: $1"
    sed 's/^/    /' "$work/out"
    failures=$((failures + 1))
}

# same TRANSPORT PROCESSES: the bits of the sums are those of one process.
same() {
    local hash
    if ! RANKS_TRANSPORT="$1" timeout 120 "${run[@]}" -x RANKS_TRANSPORT -np "$2" "$ranks" check >"$work/out" 2>&1; then
        wrong "$2 processes over $1"
        return
    fi
    hash="$(grep '^sums of' "$work/out")"
    if [ -n "$hash" ] && [ "$hash" = "${first:=$hash}" ]; then
        good "$2 processes over $1, $hash"
    else
        wrong "$2 processes over $1 have other bits than: $first"
    fi
}

# ends RANK HOW TEXT: with one message, within 10 seconds (and one for the start), not with 0. Which code it is says little: Debian's mpirun
# 4.1.4 crashes now and then after it has ended the job (PMIx_server_finalize).
ends() {
    local started=$SECONDS code
    timeout 60 "${run[@]}" -np 4 "$ranks" fail "$1" "$2" >"$work/out" 2>&1
    code=$?
    if [ "$(grep -c '^error after' "$work/out")" -ne 1 ] || ! grep '^error after' "$work/out" | grep -qF "$3"; then
        wrong "$2 of rank $1: not one message with: $3"
    elif [ "$code" -eq 0 ] || [ $((SECONDS - started)) -gt 11 ]; then
        wrong "$2 of rank $1: exit code $code, $((SECONDS - started)) s"
    else
        good "$2 of rank $1 ends all after $((SECONDS - started)) s: $(grep '^error after' "$work/out")"
    fi
}

# refused TEXT COMMAND...: ends with code 2 and says why.
refused() {
    local text="$1" code
    shift
    timeout 60 "$@" >"$work/out" 2>&1
    code=$?
    if [ "$code" -eq 2 ] && grep -qF "$text" "$work/out"; then
        good "$(grep -m 1 '^error' "$work/out")"
    else
        wrong "exit code $code, and not: $text"
    fi
}

# The small UNet that is trained, and its data: a quickstart of a few seconds.
unet=(model.block_out_channels="[16, 32]" model.in_channels=4 model.out_channels=4 model.head_channels="[8, 8]"
    model.context_channels=32 model.norm_groups=4 model.transformer_norm_groups=4)
prepare() {
    local resolution="$1" clip autoencoder
    clip=(projection=16 text.channels=32 text.layers=1 text.heads=2 vision.image_size=32 vision.channels=32 vision.layers=1 vision.heads=2)
    autoencoder=(block_out_channels="[8, 8, 16, 16]" norm_groups=4 latent_channels=4)
    "$calotype" quickstart --preset smoke --out "$work/quickstart" dataset.drawings=40 dataset.resolution="$resolution" \
        "${clip[@]/#/clip.model.}" clip.run.samples=64 clip.run.batch_size=16 clip.run.log_every=16 clip.run.checkpoint_every=32 \
        "${autoencoder[@]/#/autoencoder.model.}" autoencoder.objective.resolution=32 autoencoder.run.samples=32 \
        autoencoder.run.batch_size=8 autoencoder.run.log_every=16 autoencoder.run.checkpoint_every=32 \
        precache.resolution="$resolution" precache.batch_size=8 "${unet[@]/#/diffusion.}" diffusion.run.samples=8 \
        diffusion.run.batch_size=8 diffusion.run.log_every=8 diffusion.run.checkpoint_every=8 evaluation.images=4 evaluation.grid=4 \
        evaluation.sampler.steps=2 'evaluation.prompts=["a cat on a red background"]' >"$work/out" 2>&1 || {
        wrong "the quickstart that makes the data"
        exit 1
    }
}

# train TRANSPORT PROCESSES OUT KEY=VALUE...: a run whose bits do not depend on the processes, one thread each.
train() {
    local transport="$1" processes="$2" out="$3"
    shift 3
    [[ "$*" == *run.checkpoint_every=* ]] || set -- "$@" run.checkpoint_every=16
    CALOTYPE_TRANSPORT="$transport" timeout 300 "${run[@]}" -x CALOTYPE_TRANSPORT -np "$processes" "$calotype" train \
        training/stable_diffusion/quickstart_smoke --threads 1 "${unet[@]}" data.path="$work/quickstart/precache" data.threads=1 \
        run.batch_size=8 run.log_every=16 'distributed.reproducible="ranks"' optimizer.accumulate=4 "$@" \
        --out "$work/$out" >"$work/out" 2>&1
}

# equal OUT WHAT: the run has ended with the weights, moments and average of the first one.
equal() {
    local model=model/unet/diffusion_pytorch_model.safetensors last
    last="$(cd "$work/$1/checkpoints" && printf '%s\n' checkpoint-* | tail -n 1)/tensors.safetensors"
    if cmp "$work/$1/$model" "$work/first/$model" && cmp "$work/$1/checkpoints/$last" "$work/first/checkpoints/$last"; then
        good "$2"
    else
        wrong "$2: other bits than one process"
    fi
}

trained() {
    local transport processes sharded
    train tcp 1 first run.samples=128 || wrong "training with one process"
    for transport in mpi tcp; do
        for processes in 2 4; do
            for sharded in false true; do
                local out="$transport-$processes-$sharded"
                train "$transport" "$processes" "$out" run.samples=128 distributed.shard_optimizer="$sharded" || wrong "training, $out"
                equal "$out" "training with $processes processes over $transport, sharded optimizer: $sharded"
            done
        done
    done
    # A longer run is the same run, as the learning rate is constant here.
    for processes in 4 2 1 4; do
        samples=$((${samples:-0} + 32))
        train mpi "$processes" elastic run.samples="$samples" optimizer.decay=constant || wrong "training with $processes processes"
    done
    train tcp 1 first-constant run.samples=128 optimizer.decay=constant || wrong "training with one process"
    if cmp "$work/elastic/checkpoints/checkpoint-"*128/tensors.safetensors "$work/first-constant/checkpoints/checkpoint-"*128/tensors.safetensors; then
        good "training with 4, 2, 1 and 4 processes in turn"
    else
        wrong "training with 4, 2, 1 and 4 processes in turn: other bits than one process"
    fi
}

# classifier FILE KEY=VALUE...: a recipe of a ViT on made-up images of the given side.
classifier() {
    local file="$1" side="$2"
    shift 2
    {
        printf 'kind = "vit"\n[data]\npath = "synthetic://256/bmp=bmp:%sx%s/cls=class:10"\nthreads = 1\n' "$side" "$side"
        printf '[model]\nimage_size = %s\nlabels = 10\n' "$side"
        printf '%s\n' "$@"
    } >"$work/$file"
}

# layers TRANSPORT PROCESSES TOGETHER OUT KEY=VALUE...: trains the small classifier, one thread each.
layers() {
    local transport="$1" processes="$2" together="$3" out="$4"
    shift 4
    CALOTYPE_TRANSPORT="$transport" timeout 300 "${run[@]}" -x CALOTYPE_TRANSPORT -np "$processes" "$calotype" train "$work/classifier.toml" \
        --threads 1 distributed.tensor_parallel="$together" "$@" --out "$work/$out" >"$work/out" 2>&1 || wrong "training, $out"
}

# near OUT WHAT: losses to 1e-5 and the last checkpoint to 1e-4 of those of one process.
near() {
    if python3 - "$work/$1" "$work/layers" >>"$work/out" 2>&1 <<'PYTHON'
import array, glob, json, struct, sys

def losses(run):
    lines = map(json.loads, open(run + "/metrics.jsonl"))
    return [line["loss"] for line in lines if "loss" in line]

def tensors(run):
    data = open(max(glob.glob(run + "/checkpoints/checkpoint-*")) + "/tensors.safetensors", "rb").read()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    return {name: array.array("f", data[8 + size :][slice(*entry["data_offsets"])]) for name, entry in header.items()}

found, expected = [losses(run) for run in sys.argv[1:]]
assert len(found) == len(expected) == 20, (len(found), len(expected))
worst = max(abs(a - b) / max(abs(b), 1) for a, b in zip(found, expected))
assert worst <= 1e-5, f"losses differ by {worst}"
found, expected = [tensors(run) for run in sys.argv[1:]]
assert found.keys() == expected.keys()
worst = max((max(abs(a - b) for a, b in zip(found[name], expected[name])), name) for name in expected)
assert worst[0] <= 1e-4, f"tensors differ by {worst}"
PYTHON
    then
        good "$2"
    else
        wrong "$2: not the run of one process"
    fi
}

# Processes that compute layers together, alone and in a grid, and runs that go on in another layout.
shared() {
    local transport layout processes together out
    # The gradient of a key's bias is rounding alone, which a larger epsilon keeps from being a step.
    classifier classifier.toml 32 'patch_size = 8' 'channels = 64' 'mlp_channels = 128' 'layers = 3' 'heads = 4' '[optimizer]' \
        'learning_rate = 1e-3' 'eps = 1e-5' 'gradient_clip = 1.0' '[ema]' 'half_life = 16' '[run]' 'seed = 3' 'samples = 160' \
        'batch_size = 8' 'precision = "f32"' 'log_every = 8' 'checkpoint_every = 80'
    layers tcp 1 1 layers
    for transport in mpi tcp; do
        for layout in "2 2" "4 4" "4 2"; do
            read -r processes together <<<"$layout"
            out="layers-$transport-$processes-$together"
            layers "$transport" "$processes" "$together" "$out"
            near "$out" "$processes processes over $transport, of which $together compute layers together"
        done
    done
    layers mpi 4 2 layers-elastic run.samples=40
    layers mpi 2 2 layers-elastic run.samples=80
    layers mpi 4 4 layers-elastic run.samples=120
    layers mpi 1 2 layers-elastic run.samples=160
    near layers-elastic "2 x 2, 2, 4 and 1 processes in turn, which share layers"
}

# killed TRANSPORT: one process is killed behind a checkpoint; the run ends soon, says which, and goes on.
killed() {
    local started victim
    train "$1" 2 "killed-$1" run.samples=4096 run.checkpoint_every=64 &
    local job=$!
    until compgen -G "$work/killed-$1/checkpoints/checkpoint-*" >/dev/null; do
        kill -0 "$job" 2>/dev/null || break
        sleep 0.05
    done
    # The second process of this run, by its own variables.
    for victim in $(pgrep -f "killed-$1"); do
        if tr '\0' '\n' <"/proc/$victim/environ" 2>/dev/null | grep -qx 'OMPI_COMM_WORLD_RANK=1'; then break; fi
    done
    started=$SECONDS
    kill -9 "$victim"
    wait "$job" && wrong "a run of which one process was killed ended well"
    if [ $((SECONDS - started)) -gt 11 ] || [ "$(grep -c '^error: rank 1 on' "$work/out")" -ne 1 ]; then
        wrong "one of two processes killed over $1: $((SECONDS - started)) s"
        return
    fi
    good "killed over $1, ended after $((SECONDS - started)) s: $(grep '^error: rank 1 on' "$work/out")"
    train "$1" 1 "killed-$1" run.samples=4096 run.checkpoint_every=64 || wrong "going on after a process was killed over $1"
    train "$1" 1 "whole-$1" run.samples=4096 run.checkpoint_every=64 || wrong "training with one process"
    if cmp "$work/"{killed,whole}"-$1/checkpoints/checkpoint-"*4096/tensors.safetensors; then
        good "what was killed has the bits of what was not"
    else
        wrong "what was killed over $1 has other bits than what was not"
    fi
}

# A UNet of half Stable Diffusion 2's width (text states of 32 channels, as the quickstart has them), 256x256, batch 4.
half=(model.block_out_channels="[160, 320, 640, 640]" model.layers_per_block=2 model.attention_levels="[true, true, true, false]"
    model.in_channels=4 model.out_channels=4 model.head_channels="[32, 32, 32, 32]" model.context_channels=32 model.norm_groups=32
    model.transformer_norm_groups=32)

# rate OUT: images per second of the last two thirds of a run's entries, and communication: seconds a step, and hidden behind the passes.
rate() {
    awk -v name="$1" '
        function field(name,   found) {
            if (!match($0, "\"" name "\":[-+.eE0-9]+")) return 0
            found = substr($0, RSTART, RLENGTH); sub(/.*:/, "", found); return found + 0
        }
        NR > 2 { n++; seconds += 1 / field("images_per_second"); all += field("communication_seconds"); wait += field("communication_waiting_seconds") }
        END {
            printf "%s: %.3f img/s", name, n / seconds
            if (all > 0) printf ", communication %.3f s a step, %.0f %% of it hidden", all / n, 100 * (1 - wait / all)
            print ""
        }' "$work/$1/metrics.jsonl"
}

# ViT-L/16 at 224 px in batches of 8.
bench_layers() {
    local round transport precision
    classifier large.toml 224 'patch_size = 16' 'channels = 1024' 'mlp_channels = 4096' 'layers = 24' 'heads = 16' '[optimizer]' \
        'learning_rate = 1e-4' '[run]' 'seed = 3' 'samples = 48' 'batch_size = 8' 'log_every = 8' 'checkpoint_every = 1000'
    for precision in f32 bf16; do
        for round in 1 2; do
            for transport in mpi tcp; do
                CALOTYPE_TRANSPORT="$transport" "${run[@]}" -x CALOTYPE_TRANSPORT -np 2 "$calotype" train "$work/large.toml" --threads 1 \
                    distributed.tensor_parallel=2 run.precision="\"$precision\"" --out "$work/vit-two-$transport-$precision-$round" \
                    >"$work/out" 2>&1 || wrong "two processes that compute layers together"
                rate "vit-two-$transport-$precision-$round"
                # Checkpoint and model are 5 GB.
                rm -rf "$work/vit-"*
            done
            "$calotype" train "$work/large.toml" --threads 2 run.precision="\"$precision\"" --out "$work/vit-one-$precision-$round" \
                >"$work/out" 2>&1 || wrong "one process"
            rate "vit-one-$precision-$round"
            rm -rf "$work/vit-"*
        done
    done
}

bench_training() {
    local round common
    prepare 256
    common=("${half[@]}" data.path="$work/quickstart/precache" data.threads=1 run.batch_size=4 run.samples=24 run.log_every=4
        run.checkpoint_every=1000)
    for round in 1 2; do
        for transport in mpi tcp; do
            CALOTYPE_TRANSPORT="$transport" "${run[@]}" -x CALOTYPE_TRANSPORT -np 2 "$calotype" train \
                training/stable_diffusion/quickstart_smoke --threads 1 "${common[@]}" --out "$work/two-$transport-$round" >"$work/out" 2>&1 ||
                wrong "two processes"
            rate "two-$transport-$round"
        done
        "$calotype" train training/stable_diffusion/quickstart_smoke --threads 2 "${common[@]}" --out "$work/one-$round" >"$work/out" 2>&1 ||
            wrong "one process"
        rate "one-$round"
        rm -rf "$work/"{one,two}*
    done
}

# figures PROCESSES: a row for scripts/step_time.py: seconds a step of processes of one thread with two images each, the memory's rate for each of
# them, and the rate and latency of their sums.
figures() {
    local processes="$1" threads memory
    threads=$((processes < $(nproc) ? processes : $(nproc)))
    "${run[@]}" -np "$processes" "$calotype" train training/stable_diffusion/quickstart_smoke --threads 1 "${half[@]}" \
        data.path="$work/quickstart/precache" data.threads=1 run.batch_size=$((2 * processes)) run.samples=$((24 * processes)) \
        run.log_every=$((2 * processes)) run.checkpoint_every=1000 --out "$work/figures-$processes" >"$work/out" 2>&1 || wrong "$processes processes"
    memory="$("$calotype" bench kernels --filter "adamw, 700" --threads "$threads" --json | grep '"memory copy"' | head -1)"
    [ "$processes" -eq 1 ] || "${run[@]}" -np "$processes" "$ranks" bench >"$work/sums" || wrong "sums of $processes processes"
    python3 - "$processes" "$work/figures-$processes/metrics.jsonl" "$work/sums" "$memory" <<'PYTHON'
import json, re, statistics, sys
processes, log, sums, memory = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
rates = [json.loads(line).get("images_per_second") for line in open(log)]
row = {"ranks": processes, "images_per_rank": 2, "seconds": statistics.median(2 * processes / rate for rate in rates[2:] if rate)}
# What all of them get is shared out.
row["memory_bytes_per_second"] = memory["rate"] * 1e9 / processes
if processes > 1:
    found = {int(kib): float(ms) / 1e3 for kib, ms in re.findall(r"all_reduce_sum +(\d+) KiB: +([\d.]+) ms", open(sums).read())}
    row["bytes_per_second"] = 2 * (processes - 1) / processes * (4 << 20) / found[4096]
    row["latency"] = found[4]
print(json.dumps(row))
PYTHON
    rm -rf "$work/figures-$processes"
}

# Own figures against the model of docs/distributed.md.
bench_model() {
    local parameters rows
    parameters="$("$calotype" train training/stable_diffusion/quickstart_smoke --dry-run "${half[@]}" data.path="$work/quickstart/precache" --out "$work/none" 2>&1 |
        sed -n 's/^network *\([0-9,]*\) parameters.*/\1/p' | tr -d ,)"
    rows="$(for processes in 1 2 4; do figures "$processes"; done | paste -sd,)"
    echo "{\"parameters\": ${parameters:?}, \"cores\": $(nproc), \"rows\": [$rows]}" >"$work/measured.json"
    cat "$work/measured.json"
    python3 scripts/step_time.py --measured "$work/measured.json"
}

if [ "$bench" = yes ]; then
    for transport in mpi tcp; do
        RANKS_TRANSPORT="$transport" "${run[@]}" -x RANKS_TRANSPORT -np 2 "$ranks" bench || failures=$((failures + 1))
    done
    bench_training
    bench_layers
    bench_model
    exit "$((failures > 0))"
fi

host="$(hostname)"
for transport in mpi tcp; do
    for processes in 1 2 4; do
        same "$transport" "$processes"
    done
done
ends 2 kill "rank 2 on $host died"
ends 0 kill "rank 0 on $host died"
ends 2 busy "rank 2 on $host died"
ends 3 stop "rank 3 on $host is silent"
ends 1 abort "rank 1 on $host gave up: the loss is not finite"
own=(CALOTYPE_RANK=1 CALOTYPE_WORLD_SIZE=2 CALOTYPE_LOCAL_RANK=1 CALOTYPE_LOCAL_SIZE=2)
refused "Calotype says rank 1 of 2, but MPI says rank 0 of 1" env "${own[@]}" RANKS_TRANSPORT=mpi "$ranks" check
refused "Calotype and Open MPI disagree" "${run[@]}" -np 2 env "${own[@]}" "$ranks" check
prepare 32
trained
shared
killed mpi
killed tcp
if [ "$failures" -eq 0 ]; then result=ok; else result=FAILED; fi
echo "test result: $result. $passed passed; $failures failed"
[ "$failures" -eq 0 ]
