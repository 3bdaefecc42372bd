#!/usr/bin/env bash
# Runs the operations' tests and a few training steps of the smoke quickstart's UNet on Burn's wgpu backend, with Mesa's
# software driver where there is no GPU. On demand only: the build alone takes 10 to 15 minutes on two free cores.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v cargo >/dev/null; then
    echo "error: cargo is not installed or not in PATH; install Rust (rustup) and start again" >&2
    exit 2
fi
packages=()
command -v cc >/dev/null || packages+=(build-essential pkg-config)
if ! { compgen -G "/usr/share/vulkan/icd.d/*.json" || compgen -G "/etc/vulkan/icd.d/*.json"; } >/dev/null; then
    packages+=(mesa-vulkan-drivers libvulkan1)
fi
if [ "${#packages[@]}" -gt 0 ]; then
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
    $as_root apt-get update -q
    $as_root apt-get install -y -q --no-install-recommends "${packages[@]}"
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# The driver refuses to start without a folder of the user's own.
if [ ! -d "${XDG_RUNTIME_DIR:-}" ]; then
    mkdir -m 700 "$work/runtime"
    export XDG_RUNTIME_DIR="$work/runtime"
fi
# Other features mean other dependencies; in the usual folder they would push out those of the usual build.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target/wgpu}"

# report NAME: says how long the part since the last report took.
part_began=$SECONDS
report() {
    echo "== $1: good after $((SECONDS - part_began)) s"
    part_began=$SECONDS
}

echo "== build"
# Both packages at once and here as well as below: chosen one by one they would ask for different features of shared
# dependencies, and Burn's kernels, which are most of the build, would be compiled twice.
selection=(--release --package calotype --package calotype-ops --features calotype/wgpu)
tests=(--test it --test threads)
cargo build "${selection[@]}" "${tests[@]}" --bin calotype
report build

echo "== operations"
CALOTYPE_TEST_DEVICE=wgpu cargo test "${selection[@]}" "${tests[@]}"
report operations

echo "== training steps"
calotype="$CARGO_TARGET_DIR/release/calotype"
# A dataset with the smoke preset's shapes, by models that have hardly been trained.
"$calotype" quickstart --preset smoke --out "$work/run" \
    dataset.drawings=40 clip.run.samples=64 autoencoder.run.samples=32 diffusion.run.samples=16 \
    evaluation.images=2 evaluation.grid=2 evaluation.sampler.steps=1 >/dev/null
# Four steps, each logged by itself, on both devices in the same precision; without warming up, so that the first one
# already changes the weights.
train() {
    "$calotype" train training/stable_diffusion/quickstart_smoke --device "$1" --out "$work/$1" \
        "data.path=\"$work/run/precache\"" run.samples=64 run.batch_size=16 run.log_every=16 run.precision=f32 \
        optimizer.warmup_samples=0
}
train cpu
train wgpu

# Both devices see the same samples, noise and initial weights, so that losses and gradients agree but for rounding, which
# the steps amplify: AdamW's first steps follow the signs of gradients.
awk '
    function number(name,    text) {
        text = $0
        if (!sub(".*\"" name "\":", "", text)) return "missing"
        sub(/[,}].*/, "", text)
        return text
    }
    function differ(name, got, want) {
        printf "step %d, %s: %s on cpu, %s on wgpu\n", FNR, name, want, got
        # Not the other way round: what is not a number has to fail.
        if (want + 0 > 0 && got + 0 > 0 && got / want > 0.999 && got / want < 1.001) return 0
        print "error: they differ by more than 0.1 %"
        return 1
    }
    { loss = number("loss"); gradient = number("gradient_norm") }
    FNR == NR { cpu_loss[FNR] = loss; cpu_gradient[FNR] = gradient; steps = FNR; next }
    {
        bad += differ("loss", loss, cpu_loss[FNR]) + differ("gradient norm", gradient, cpu_gradient[FNR])
        compared++
    }
    END {
        if (steps != 4 || compared != 4) {
            printf "error: there are %d steps on cpu and %d on wgpu instead of 4\n", steps, compared
            bad++
        }
        exit (bad > 0)
    }
' "$work/cpu/metrics.jsonl" "$work/wgpu/metrics.jsonl"
report "training steps"
echo "== good after $SECONDS s"
