#!/usr/bin/env bash
# Compares Calotype's check of MLPerf Inference submissions with MLCommons' own (tools/submission of mlcommons/inference).
#
#   scripts/inference-checkers.sh                   writes every tree of the table of crates/mlperf, has the official checkers judge
#                                                   them, and ends with 1 if a verdict or a summary is not the golden one, which the
#                                                   crate's tests hold ours to
#   scripts/inference-checkers.sh --write           the same, and writes the golden file
#   scripts/inference-checkers.sh --tree FOLDER ROUND [--short-run]
#                                                   the official verdict on a tree beside ours; ends with 1 if they differ
#
# No package of PyPI holds these checkers (endpoints-submission-cli has one, of another kind of run), so they are fetched into
# target/inference-checkers, once, by the ids of three commits, which fix every byte: v4.1, v5.1.1, and b66003e1 for rounds v6.0 and v6.1.
# Tried in this order: the git repository that CALOTYPE_INFERENCE_SOURCE names, then https://github.com/mlcommons/inference. Where
# neither can be had, the script says so and ends with 3: nothing was compared.
#
# CALOTYPE_INFERENCE_PYTHON names a Python that has PyYAML 6 already; otherwise a virtual environment is made in
# target/inference-checkers. CALOTYPE_SUBMISSIONS names the built example `submissions` of crates/mlperf; without it, it is built.
set -euo pipefail
cd "$(dirname "$0")/.."
golden=crates/mlperf/tests/golden/submission_verdicts.json
folder=target/inference-checkers
github=https://github.com/mlcommons/inference
declare -A commits=(
    [v4.1]=379ee5345a25ee123fd5faec33285b6e8be0dadf
    [v5.1]=6776245e99dce0600cfc9a6fb61efd310f87de3d
    [v6.1]=b66003e10e2db4b8c36a448b0545ec90fcc6e9e9
)

if [ "${1:-}" = "-h" ] || [ "${1:-}" = "--help" ]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit 0
fi

# A repository that has a commit's files: what the caller names, or a fetch of that commit alone, without contents until they are read.
repository_with() {
    local commit="$1" fetched="$folder/inference.git"
    if [ -n "${CALOTYPE_INFERENCE_SOURCE:-}" ]; then
        git -C "$CALOTYPE_INFERENCE_SOURCE" cat-file -e "$commit" || {
            echo "error: $CALOTYPE_INFERENCE_SOURCE (CALOTYPE_INFERENCE_SOURCE) has no commit $commit of mlcommons/inference" >&2
            return 1
        }
        echo "$CALOTYPE_INFERENCE_SOURCE"
        return
    fi
    if [ ! -d "$fetched" ]; then
        git init -q --bare "$fetched" && git -C "$fetched" remote add origin "$github" &&
            git -C "$fetched" config remote.origin.promisor true && git -C "$fetched" config remote.origin.partialclonefilter blob:none
    fi >&2
    GIT_TERMINAL_PROMPT=0 timeout 300 git -C "$fetched" fetch -q --depth 1 --filter=blob:none origin "$commit" >&2 || return 1
    echo "$fetched"
}

# Writes tools/submission of a commit, but for samples and tests.
extract() {
    local repository="$1" commit="$2" target="$3" file
    git -C "$repository" ls-tree -r --name-only "$commit" tools/submission |
        grep -v -e directory_structure_samples -e /tests/ | while IFS= read -r file; do
        mkdir -p "$target/$(dirname "$file")"
        git -C "$repository" show "$commit:$file" >"$target/$file"
    done
}

for generation in "${!commits[@]}"; do
    target="$folder/$generation"
    if [ ! -e "$target/complete" ]; then
        mkdir -p "$folder"
        rm -rf "$target"
        if ! repository="$(repository_with "${commits[$generation]}")" || ! extract "$repository" "${commits[$generation]}" "$target"; then
            if [ -n "${CALOTYPE_INFERENCE_SOURCE:-}" ]; then
                exit 2
            fi
            echo "NOT COMPARED: MLCommons' submission checkers cannot be had, for $github cannot be read and CALOTYPE_INFERENCE_SOURCE names"
            echo "no clone of it. Ours is still held to the verdicts of $golden by cargo test."
            exit 3
        fi
        touch "$target/complete"
    fi
done
python="${CALOTYPE_INFERENCE_PYTHON:-}"
if [ -z "$python" ]; then
    if [ ! -e "$folder/venv/complete" ]; then
        python3 -m venv "$folder/venv" >&2
        "$folder/venv/bin/python" -m pip install --quiet pyyaml==6.0.4 >&2
        touch "$folder/venv/complete"
    fi
    python="$PWD/$folder/venv/bin/python"
fi
submissions="${CALOTYPE_SUBMISSIONS:-}"
if [ -z "$submissions" ]; then
    cargo build --release -q -p calotype-mlperf --example submissions >&2
    submissions="${CARGO_TARGET_DIR:-target}/release/examples/submissions"
fi
export PYTHONDONTWRITEBYTECODE=1

case "${1:-}" in
--tree)
    if [ $# -lt 3 ]; then
        echo "error: --tree takes a folder and a round, such as v6.1" >&2
        exit 2
    fi
    official="$("$python" scripts/inference-golden.py "$folder" "$@")"
    ours="$("$submissions" tree "${@:2}")"
    printf '%s\n' "$ours" | sed '$d'
    ours="$(printf '%s\n' "$ours" | tail -n 1)"
    echo "$2 by the rules of $3: $official by MLCommons' checker, $ours by Calotype"
    [ "$official" = "$ours" ]
    exit
    ;;
"" | --write) ;;
*)
    echo "error: $1 is not known; say --help" >&2
    exit 2
    ;;
esac

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
"$submissions" write "$work/cases"
"$python" scripts/inference-golden.py "$folder" "$work/cases" >"$work/verdicts.json"
if [ "${1:-}" = "--write" ]; then
    cp "$work/verdicts.json" "$golden"
fi
diff "$golden" "$work/verdicts.json" >"$work/difference" && result=ok || result=FAILED
cat "$work/difference"
# Of cases that differ, both sides name the case.
failed="$(sed -n 's/^[<>] *\("[^"]*"\): .*/\1/p' "$work/difference" | sort -u | wc -l)"
passed=$(($(grep -c '"verdict"' "$golden") - failed))
echo "test result: $result. $passed passed; $failed failed"
if [ "$result" != ok ]; then
    echo "the official checkers' verdicts are not those of $golden"
    exit 1
fi
