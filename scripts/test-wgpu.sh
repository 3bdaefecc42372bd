#!/usr/bin/env bash
# Runs the operations' tests and a few steps of the smoke quickstart's UNet on Burn's wgpu backend, with Mesa's software
# driver where there is no GPU. On demand only: the build alone takes 10 to 15 minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! ls /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json >/dev/null 2>&1; then
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
    $as_root apt-get update -q
    $as_root apt-get install -y -q --no-install-recommends mesa-vulkan-drivers libvulkan1
fi

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
# The driver refuses to start without a folder of the user's own.
if [ -z "${XDG_RUNTIME_DIR:-}" ]; then
    mkdir -m 700 "$work/runtime"
    export XDG_RUNTIME_DIR="$work/runtime"
fi
# Other features mean other dependencies; in the usual folder they would push out those of the usual build.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target/wgpu}"

echo "== operations"
CALOTYPE_TEST_DEVICE=wgpu cargo test --release -p calotype-ops --features wgpu

echo "== training step"
cargo build --release -p calotype --features wgpu
calotype="$CARGO_TARGET_DIR/release/calotype"
# A dataset with the smoke preset's shapes, by models that have hardly been trained.
"$calotype" quickstart --preset smoke --out "$work/run" \
    dataset.drawings=40 clip.run.samples=64 autoencoder.run.samples=32 diffusion.run.samples=32 \
    evaluation.pictures=2 evaluation.grid=2 evaluation.sampler.steps=1 >/dev/null
train() {
    "$calotype" train training/stable_diffusion/quickstart_smoke --device "$1" --out "$work/$1" \
        "data.path=\"$work/run/precache\"" run.samples=64 run.log_every=32
}
train cpu
train wgpu

# Both devices see the same samples, noise and initial weights, so their losses agree but for rounding.
awk '
    {
        loss = $0; sub(/.*"loss":/, "", loss); sub(/[,}].*/, "", loss)
        if (FNR == NR) { cpu[FNR] = loss; lines = FNR; next }
        difference = (loss - cpu[FNR]) / cpu[FNR]
        printf "loss %s on cpu, %s on wgpu\n", cpu[FNR], loss
        if (difference > 0.01 || difference < -0.01) bad = 1
        compared++
    }
    END { exit bad || compared == 0 || compared != lines }
' "$work/cpu/metrics.jsonl" "$work/wgpu/metrics.jsonl"
echo "== good after $SECONDS s"
