#!/usr/bin/env bash
# Fetches the sources of MLCommons' LoadGen (PyPI, mlcommons-loadgen 6.0.17), checks their SHA-256 and unpacks them, for the feature
# `loadgen`. Prints what to export for a build:
#
#   eval "$(scripts/loadgen.sh)" && cargo build --release --workspace --features calotype/loadgen
#
# LOADGEN_ARCHIVE names an archive that is at hand, for machines without a network; it is checked likewise.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit 0; fi
version=6.0.17
name="mlcommons_loadgen-$version"
sha256=a2e85d09e3cc0c606f89bfe1fbf97537c8b5b238ae0afbd923ad9c710fcf2ca8
folder="${CARGO_TARGET_DIR:-target}/loadgen"
mkdir -p "$folder" && folder="$(realpath "$folder")"

holds() { echo "$sha256  $1" | sha256sum --check --status; }

if [ ! -f "$folder/$name/loadgen.cc" ]; then
    archive="${LOADGEN_ARCHIVE:-$folder/$name.tar.gz}"
    if [ -n "${LOADGEN_ARCHIVE:-}" ] && [ ! -f "$archive" ]; then
        echo "error: LOADGEN_ARCHIVE is $archive, where there is no file" >&2 && exit 1
    fi
    if [ ! -f "$archive" ] || { [ -z "${LOADGEN_ARCHIVE:-}" ] && ! holds "$archive"; }; then
        # pip knows where packages come from on this machine.
        python3 -m venv "$folder/venv" >&2
        "$folder/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --no-binary mlcommons-loadgen --dest "$folder" \
            "mlcommons-loadgen==$version" >&2
    fi
    if ! holds "$archive"; then
        echo "error: $archive has another SHA-256 than $sha256: remove it and start again" >&2 && exit 1
    fi
    rm -rf "$folder/.unpacked" && mkdir "$folder/.unpacked"
    tar -xzf "$archive" -C "$folder/.unpacked"
    rm -rf "${folder:?}/$name" && mv "$folder/.unpacked/$name" "$folder/$name" && rmdir "$folder/.unpacked"
fi
echo "export CALOTYPE_LOADGEN_SRC='$folder/$name'"
