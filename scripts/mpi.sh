#!/usr/bin/env bash
# Runs processes under Open MPI's mpirun: sums that must have the same bits for 1, 2 and 4 of them, over MPI and over TCP, and runs of
# which one process dies, falls silent or gives up.
#
#   scripts/mpi.sh [--bench] [--profile NAME]
#
# Installs Open MPI and libclang from Debian where they are missing, and builds only the program `ranks` of crates/collective, in
# the release profile unless another is named. --bench measures the rates of sums with 2 processes, too. Ends with 1 if anything is not as it
# should be.
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
# The crate `mpi` reads the library's header with it.
ldconfig -p | grep -q 'libclang[-.0-9]*\.so' || ls /usr/lib/llvm-*/lib/libclang*.so* >/dev/null 2>&1 || missing+=(libclang-dev)
if [ "${#missing[@]}" -gt 0 ]; then
    as_root=""
    if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
    $as_root apt-get update -q && $as_root apt-get install -y -q --no-install-recommends "${missing[@]}" || {
        echo "error: installing ${missing[*]} failed" >&2
        exit 2
    }
fi

cargo build --profile "$profile" -p calotype-collective --features mpi --example ranks || exit 2
folder="$profile"
if [ "$profile" = dev ]; then folder=debug; fi
ranks="${CARGO_TARGET_DIR:-target}/$folder/examples/ranks"

run=(mpirun --oversubscribe)
if [ "$(id -u)" -eq 0 ]; then run+=(--allow-run-as-root); fi
# On one machine nothing is started by ssh, which may be missing.
command -v ssh >/dev/null || run+=(--mca plm isolated)
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
failures=0

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
        echo "good: $2 processes over $1, $hash"
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
        echo "good: $2 of rank $1 ends all after $((SECONDS - started)) s: $(grep '^error after' "$work/out")"
    fi
}

# refused TEXT COMMAND...: ends with code 2 and says why.
refused() {
    local text="$1" code
    shift
    timeout 60 "$@" >"$work/out" 2>&1
    code=$?
    if [ "$code" -eq 2 ] && grep -qF "$text" "$work/out"; then
        echo "good: $(grep -m 1 '^error' "$work/out")"
    else
        wrong "exit code $code, and not: $text"
    fi
}

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
if [ "$bench" = yes ]; then
    for transport in mpi tcp; do
        RANKS_TRANSPORT="$transport" "${run[@]}" -x RANKS_TRANSPORT -np 2 "$ranks" bench || failures=$((failures + 1))
    done
fi
[ "$failures" -eq 0 ]
